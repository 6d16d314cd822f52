"""ImageNet images of 64 pixels from pure noise, by a model that `synthaug learn edm edm_imagenet64` trained or `synthaug convert` made.

synthaug generate edm_imagenet64 --out stores/imagenet64-edm --cfg-options "classes=['tench', 'goldfish']"

With churn and 511 network calls per image the paper states FID 1.36 for its own model, without churn 2.22 at 79 (Karras et al. 2022).
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.edm.EDM.
generator = dict(
    type='synthaug_plugins.EDM',
    model='models/imagenet64/model',  # a folder with config.json and model.safetensors
    # How noise becomes an image: the options of synthaug_plugins.diffusion.sample.
    sampler=dict(
        preset='churn_imagenet64_edm',  # 256 steps, S_churn 40 between sigma 0.05 and 50, S_noise 1.003; dict(num_steps=40) is the fast way
    ),
    # What to steer by, such as dict(type='synthaug_plugins.Autoguidance', weak='models/imagenet64-small', weight=1.0, interval=(0.1, 10)); effects add up.
    guidance=[],
    precision='fp32',  # 'bf16' and 'fp16' are faster; the sampler's own arithmetic stays float64
)
# Which classes, by the model's names. None takes all of them.
classes = None
# Accepted images wanted per class: a number, or a dict from class name to number, such as what a rare class lacks.
per_class = 100
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 100
# Images per network call; halved by itself when memory runs out.
batch_size = 100
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
# How images are stored: png loses nothing.
image = dict(format='png')
