"""Variants of your own 8x8 digits: each starts from a real image plus noise and keeps its class. Under a minute on one CPU core.

synthaug generate digits_real_guidance --data data/digits/train --out stores/digits-variants
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.real_guidance.RealGuidance.
generator = dict(
    type='synthaug_plugins.RealGuidance',
    model='embedded:digits_edm',  # or a folder with config.json and model.safetensors
    # Noise level at the start: how far a variant may leave its real image. Strength decides the sign. In trials with one
    # labelled image per class and a model without labels, 0.3 to 0.6 raised a classifier's accuracy and 1 or more lowered it:
    # a variant then forgets its class. A model that is told the class keeps it at any strength, and gains up to the full 80.
    sigma=[0.3, 0.6],
    sampler=dict(num_steps=18),  # steps of the full range; a start at 0.3 or 0.6 runs the last 7 or 8 of them
    use_labels=True,  # tell the model the class; False works for classes that the model never saw
    fit='crop',  # how a real image becomes a square: 'crop' the centre, or 'squash'
)
# Folder with one folder of real images per class; --data sets it.
data = None
# Class names in label order; None takes the class folders of data ('zero' to 'nine' here, sorted by name).
classes = None
# Accepted images wanted per class: a number, or dict(three=50, eight=200).
per_class = 100
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 100
# Images per network call; halved by itself when memory runs out.
batch_size = 250
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
# How images are stored: png loses nothing; size='source' gives each variant the size of its real image.
image = dict(format='png', size='source')
