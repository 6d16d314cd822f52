"""The study of Diffusion Inversion (Zhou et al., 2023) on your images with Stable Diffusion: what helps, and what the autoencoder costs. GPU, and days.

synthaug compare inversion --data data/stl10 --out runs/inversion     # data/stl10 holds train/ and test/ (and perhaps val/), a folder per class in each
synthaug compare inversion --set set=cifar10 --data data/cifar10 --out runs/inversion-cifar10

`set` names the recipes: stl10, cifar10, cifar100, imagenette, medmnist or eurosat; one that is near in size serves other images. For each number of real
images per class and each seed it learns an embedding of every image (3000 steps each), makes 15 stores and trains 20 classifiers of 50,000 steps. Start
with fewer: synthaug init compare/inversion copies this file for you to cut shots, seeds and arms; what no arm names is not made. It has not been run to
the end here; inversion_digits has.
"""

_base_ = './_base_/inversion_study.py'

# This name stands in braces below; --set NAME=VALUE changes it.
values = dict(set='stl10')
title = 'Diffusion Inversion on {set}, {shots} real images per class'
notes = 'Embeddings and synthetic images see the real images of a draw and nothing else. What Stable Diffusion had seen of these classes, nobody knows.'

train = 'inversion_{set}'
shots = [10, 50, 200]
seeds = [0, 1, 2]

# One value of alpha, where the recipe of a set has several (medmnist): arms vary one thing about it.
_told = {'generator.embeddings': '{embeddings}', 'generator.alphas': [0.1], 'per_source': 5}


def _store(**changes):
    """A store that differs from `variants` in a few options of the generator."""
    return dict(kind='store', recipe='inversion_{set}', cfg_options={**_told, **{f'generator.{key}': value for key, value in changes.items()}})


made = dict(
    embeddings=dict(kind='embeddings', recipe='inversion_{set}'),
    # 10 of each real image; arms that take fewer take the first ones.
    variants=dict(kind='store', recipe='inversion_{set}', cfg_options={**_told, 'per_source': 10}),
    round_trips=dict(kind='store', recipe='round_trip_{set}'),
    guidance_1=_store(guidance_scales=[1.0]),
    guidance_4=_store(guidance_scales=[4.0]),
    lambda_0=_store(lambdas=[0.0]),
    # The paper's largest, and one beyond: how far it leads depends on how long embeddings are.
    lambda_04=_store(lambdas=[0.4]),
    lambda_1=_store(lambdas=[1.0]),
    alpha_0=_store(alphas=[0.0]),
    alpha_03=_store(alphas=[0.3]),
    alpha_05=_store(alphas=[0.5]),
    few_steps=_store(**{'sampler.num_steps': 25}),
    more_steps=_store(**{'sampler.num_steps': 200}),
    class_mean=_store(unconditional='class'),
    # Groups of 100 images: the 10 shots of 10 classes are one, which is the mean of all again.
    group_mean=_store(unconditional='group'),
    empty_prompt=_store(unconditional='empty'),
)
curves = dict(steps=dict(axis='steps of sampling', arms={25: 'few_steps', 100: 'inversion', 200: 'more_steps'}))
