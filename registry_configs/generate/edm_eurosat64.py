"""Satellite images of EuroSAT's ten classes from pure noise, by a model that `synthaug learn edm edm_eurosat64` trained.

synthaug generate edm_eurosat64 --out stores/eurosat64-edm
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.edm.EDM.
generator = dict(
    type='synthaug_plugins.EDM',
    model='models/eurosat64/model',  # a folder with config.json and model.safetensors
    # How noise becomes an image: the options of synthaug_plugins.diffusion.sample.
    sampler=dict(
        num_steps=40,  # the paper's choice for 64 pixels: 79 network calls per image
        sigma_max=80,
    ),
    # What to steer by, such as dict(type='synthaug_plugins.ClassifierFree', weight=0.5, interval=(0.2, 5)); effects add up.
    guidance=[],
    precision='fp32',  # 'bf16' and 'fp16' are faster; the sampler's own arithmetic stays float64
)
# Which classes, by the model's names. None takes all of them.
classes = None
# Accepted images wanted per class: a number, or a dict from class name to number, such as what a rare class lacks.
per_class = 500
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 250
# Images per network call; halved by itself when memory runs out.
batch_size = 125
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
# How images are stored: png loses nothing.
image = dict(format='png')
