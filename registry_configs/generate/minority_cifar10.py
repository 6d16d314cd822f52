"""Rare CIFAR-10 images from pure noise: a model of CIFAR-10, guided by a classifier of levels of rarity within each class.

synthaug learn minority minority_cifar10 --data data/cifar10/train --out models/cifar10-levels

synthaug generate minority_cifar10 --out stores/cifar10-minority

Minority guidance (Um, Lee and Ye, ICLR 2024). Their weight for CIFAR-10 is not in their code; this one is a start, untried: make a few images at several
(weight=[1, 2, 3.5, 5]) and see by `synthaug evaluate ... --by params.minority_weight` where labels begin to suffer.
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.edm.EDM.
generator = dict(
    type='synthaug_plugins.EDM',
    model='models/cifar10/model',  # from `synthaug learn edm edm_cifar10` or `synthaug convert`
    sampler=dict(preset='edm'),  # Heun, 18 steps
    # Every option: the docstring of synthaug_plugins.generators.minority_classifier.MinorityClassifier.
    guidance=[
        dict(
            type='synthaug_plugins.MinorityClassifier',
            classifier='models/cifar10-levels/model',  # what the first command above writes
            level=9,  # 0 is the most common, 9 the rarest of a class
            weight=2.0,
            # interval=(0.2, 5),  # between which noise levels it acts; by default at all
            normalise=None,
        )
    ],
    precision='fp32',  # 'bf16' and 'fp16' are faster; the sampler's own arithmetic stays float64
)
# Which classes, by the model's names. None takes all of them.
classes = None
# Accepted images wanted per class: a number, or a dict from class name to number, such as what a rare class lacks.
per_class = 1000
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 500
# Images per network call; halved by itself when memory runs out.
batch_size = 250
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store.
inspectors = [
    dict(type='synthaug_plugins.ImageSanity'),
    # What is rare may be broken, or another class: so a CLIP looks at the label.
    dict(type='synthaug_plugins.ClipFilter', model='ViT-B-32', pretrained='openai', rule='argmax', dataset='cifar10'),
]
# How images are stored: png loses nothing.
image = dict(format='png')
