"""The study of Diffusion Inversion (Zhou et al., 2023) on handwritten digits: real images, synthetic ones per real, guidance, noise, interpolation, steps.

python tools/demo.py --out runs/demo --only-data
synthaug compare inversion_digits --data runs/demo/data --out runs/inversion --jobs 2

For every number of shots and every seed it draws the shots, learns an embedding of each, makes stores from the embeddings and trains all arms with equal
steps. curves.png and report.html show accuracy over each quantity.
"""

_base_ = './_base_/inversion_study.py'

# This name stands in braces below; --set NAME=VALUE changes it.
values = dict(model='embedded:digits_sd')
title = 'Diffusion Inversion on digits, {shots} labelled per class'
notes = [
    'Small real handwriting (scikit-learn digits, 8 x 8 pixels), split by position, since the file is ordered by writer: shots are drawn from 0 to 1,199, '
    'validated on 1,200 to 1,396, tested on 1,397 to 1,796.',
    'What the generator had seen: the images 0 to 1,199 with captions, so every shot among them. Embeddings and synthetic images see the shots of a draw and '
    'nothing else.',
]

train = 'inversion_digits'
shots = [2, 4]
# Each seed draws its own shots; embeddings, stores and classifiers start anew with it.
seeds = [0, 1]

# Half the steps of the recipe, for the time that 20 arms take.
cfg_options = {'train_cfg.max_iters': 100, 'param_scheduler.1.end': 100}

_sizes = {'per_source': 5, 'block_size': 1000, 'batch_size': 100}
_told = {'generator.model': '{model}', 'generator.embeddings': '{embeddings}', 'generator.sampler.num_steps': 10, **_sizes}


def _store(**changes):
    """A store that differs from `variants` in a few options of the generator."""
    return dict(kind='store', recipe='inversion_digits', cfg_options={**_told, **{f'generator.{key}': value for key, value in changes.items()}})


made = dict(
    embeddings=dict(kind='embeddings', recipe='inversion_digits', cfg_options={'model.name': '{model}'}),
    # 10 of each real image; arms that take fewer take the first ones.
    variants=dict(kind='store', recipe='inversion_digits', cfg_options={**_told, 'per_source': 10}),
    round_trips=dict(kind='store', recipe='round_trip_digits', cfg_options={'generator.model': '{model}'}),
    guidance_1=_store(guidance_scales=[1.0]),
    guidance_4=_store(guidance_scales=[4.0]),
    lambda_0=_store(lambdas=[0.0]),
    # The paper's largest, and one beyond: how far it leads depends on how long embeddings are.
    lambda_04=_store(lambdas=[0.4]),
    lambda_1=_store(lambdas=[1.0]),
    alpha_0=_store(alphas=[0.0]),
    alpha_03=_store(alphas=[0.3]),
    alpha_05=_store(alphas=[0.5]),
    few_steps=_store(**{'sampler.num_steps': 5}),
    more_steps=_store(**{'sampler.num_steps': 20}),
    class_mean=_store(unconditional='class'),
    # 20 images to a group, two of each class: with 100 all images would be one.
    group_mean=_store(unconditional='group', group_size=20),
    empty_prompt=_store(unconditional='empty'),
)
curves = dict(steps=dict(axis='steps of sampling', arms={5: 'few_steps', 10: 'inversion', 20: 'more_steps'}))
