"""Digits for the classes that lack them: every class is filled up to the largest, by the embedded class-conditional model. No guidance.

synthaug generate long_tail_digits_edm --data data/long-tail --out stores/fill

The recipes long_tail_digits_* inherit this one and steer the same model to rare images.
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.edm.EDM.
generator = dict(
    type='synthaug_plugins.EDM',
    model='embedded:digits_edm',
    sampler=dict(num_steps=18),
    guidance=[],
)
# Folder with one folder of real images per class, of different numbers; --data sets it.
data = None
# Class names in label order; None takes the class folders of data ('zero' to 'nine' here, sorted by name).
classes = None
# Every class gets what it lacks of this many: a number, or the images of the largest class.
fill_to = 'largest'
# Images per block: the unit that is redone after a kill, and one shard of the store; small classes share one.
block_size = 500
# Images per network call; halved by itself when memory runs out.
batch_size = 250
# Requests allowed per wanted image before a class is left short of its quota: rare images are rejected more often.
tries_per_image = 10.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image. Rare images are often broken or of another class: what CLIP takes for another class is left out. The embedded CLIP has seen the
# same digits as the generator.
inspectors = [
    dict(type='synthaug_plugins.ImageSanity'),
    dict(type='synthaug_plugins.ClipFilter', model='embedded:digits_clip', rule='argmax'),
]
# How images are stored: png loses nothing.
image = dict(format='png')
