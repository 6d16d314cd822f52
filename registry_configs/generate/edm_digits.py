"""Handwritten digits from pure noise, by the embedded class-conditional model. Under a minute on one CPU core.

synthaug generate edm_digits --out stores/digits-edm
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.edm.EDM.
generator = dict(
    type='synthaug_plugins.EDM',
    model='embedded:digits_edm',  # or a folder with config.json and model.safetensors
    # How noise becomes an image: the options of synthaug_plugins.diffusion.sample.
    sampler=dict(
        num_steps=18,  # Heun costs 2 * 18 - 1 network calls per image
        solver='heun',  # 'euler' calls the network once per step and is less exact; 'dpmpp_2m' and 'unipc' are made for few steps
        S_churn=0,  # fresh noise on the way: how much; on CIFAR-10 the paper's own models gained nothing from it
    ),
    # What to steer by, such as dict(type='synthaug_plugins.ClassifierFree', weight=0.5, interval=(0.2, 5)); their effects add up.
    guidance=[],
)
# Which classes, by the model's names: 'zero' to 'nine'. None takes all of them.
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
# How images are stored: png loses nothing.
image = dict(format='png')
