"""Rare bedrooms of 256 pixels from pure noise, as published: the rarest of 100 levels, weight 3.5, 250 ancestral steps.

synthaug learn minority minority_lsun_bedroom --data data/lsun-bedroom-tenth --out models/lsun-bedroom-levels

synthaug generate minority_lsun_bedroom --out stores/lsun-bedroom-minority

Minority guidance (Um, Lee and Ye, ICLR 2024). Three things differ. Their model predicts the variance of each step; here it is the posterior's (eta=1). Their
classifier looks at features of a classifier of ImageNet, this one at those of the denoiser. And their D is clamped to [-1, 1] before it is guided.
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.edm.EDM.
generator = dict(
    type='synthaug_plugins.EDM',
    model='models/lsun-bedroom/model',  # a model with the noise levels of the linear schedule, from sigma 0.01 to 152
    # Equal steps of time, nearly the published ones: every fourth of the linear schedule's 1000.
    sampler=dict(num_steps=250, solver='euler', eta=1.0, discretization='vp'),
    # Every option: the docstring of synthaug_plugins.generators.minority_classifier.MinorityClassifier.
    guidance=[
        dict(
            type='synthaug_plugins.MinorityClassifier',
            classifier='models/lsun-bedroom-levels/model',  # what the first command above writes
            level=99,  # the rarest hundredth
            weight=3.5,
            interval=(0.0101, 152.0),  # the noise levels that the classifier learned
            normalise=None,
        )
    ],
    precision='fp32',  # 'bf16' and 'fp16' are faster; the sampler's own arithmetic stays float64
)
# The one class of a model without labels: the name of its folder of training images.
classes = ['bedroom']
# Accepted images wanted per class: a number, or a dict from class name to number, such as what a rare class lacks.
per_class = 50000
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 500
# Images per network call; halved by itself when memory runs out.
batch_size = 50
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
# How images are stored: png loses nothing.
image = dict(format='png')
