"""Rare faces of 64 pixels from pure noise: a model of a folder such as CelebA-64, guided by a classifier of levels of rarity.

synthaug learn minority minority_celeba64 --data data/celeba64 --out models/celeba64-levels

synthaug generate minority_celeba64 --out stores/celeba64-minority

Minority guidance (Um, Lee and Ye, ICLR 2024). Their weight for CelebA is not in their code; this one is theirs for LSUN. The two alternatives with what is
published for CelebA are minority_celeba64_self_guided.py and minority_celeba64_boost_and_skip.py.
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.edm.EDM.
generator = dict(
    type='synthaug_plugins.EDM',
    model='models/celeba64/model',  # a folder with config.json and model.safetensors
    # 250 ancestral steps in equal steps of time, as published.
    sampler=dict(num_steps=250, solver='euler', eta=1.0, discretization='vp', sigma_max=80.0),
    # Every option: the docstring of synthaug_plugins.generators.minority_classifier.MinorityClassifier.
    guidance=[
        dict(
            type='synthaug_plugins.MinorityClassifier',
            classifier='models/celeba64-levels/model',  # what the first command above writes
            level=9,  # 0 is the most common, 9 the rarest
            weight=3.5,
            # interval=(0.2, 5),  # between which noise levels it acts; by default at all
            normalise=None,
        )
    ],
    precision='fp32',  # 'bf16' and 'fp16' are faster; the sampler's own arithmetic stays float64
)
# The one class of a model without labels: the name of its folder of training images.
classes = ['face']
# Accepted images wanted per class: a number, or a dict from class name to number, such as what a rare class lacks.
per_class = 10000
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 500
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
