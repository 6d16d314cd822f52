"""CIFAR-10 images from pure noise, by a model that `synthaug learn edm edm_cifar10` trained or `synthaug convert` made.

synthaug generate edm_cifar10 --out stores/cifar10-edm

With these 35 network calls per image the paper states FID 1.79 for its own model (Karras et al. 2022, Table 2).
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.edm.EDM.
generator = dict(
    type='synthaug_plugins.EDM',
    model='models/cifar10/model',  # a folder with config.json and model.safetensors
    # How noise becomes an image: the options of synthaug_plugins.diffusion.sample.
    sampler=dict(
        preset='edm',  # Heun, 18 steps
        S_churn=0,  # fresh noise on the way: the paper's own CIFAR-10 models got worse with any
    ),
    # What to steer by, such as dict(type='synthaug_plugins.Autoguidance', weak='models/cifar10-early', weight=0.5, interval=(0.1, 10)); effects add up.
    guidance=[],
    precision='fp32',  # 'bf16' and 'fp16' are faster; the sampler's own arithmetic stays float64
)
# Which classes, by the model's names. None takes all of them.
classes = None
# Accepted images wanted per class: a number, or a dict from class name to number, such as what a rare class lacks.
per_class = 1000
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 500
# Images per network call; halved by itself when memory runs out.
batch_size = 500
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
# How images are stored: png loses nothing.
image = dict(format='png')
