"""The ablation of DA-Fusion (Trabucco et al., ICLR 2024) on handwritten digits: words, intensities, alpha, M, erasure, each against the method as published.

python tools/demo.py --out runs/demo --only-data
synthaug compare dafusion_digits --data runs/demo/data --out runs/ablation

For every number of shots and every seed it draws the shots, learns a word per class from them, makes variants of them and trains all arms with equal steps.
"""

_base_ = './_base_/dafusion.py'

# These names stand in braces below; --set NAME=VALUE changes one.
values = dict(model='embedded:digits_sd_unnamed')
title = 'DA-Fusion on digits, {shots} labelled per class'
notes = [
    'Small real handwriting (scikit-learn digits, 8 x 8 pixels), split by position, since the file is ordered by writer: shots are drawn from 0 to 1,199, '
    'validated on 1,200 to 1,396, tested on 1,397 to 1,796.',
    'What the generator had seen: the images 0 to 1,199 with captions. No caption named a two, a four or a seven: for these three it stands in for a model '
    'that knows what things look like, but not what they are called. Words and variants see the shots of a draw and nothing else.',
]

train = 'dafusion_digits'
shots = [1, 4]
# Each seed draws its own shots; words, variants and classifiers start anew with it.
seeds = [0, 1]

# The setting that the paper's author names, and a fifth of the steps of dafusion_words_digits, whose own setting is slower and better: a minute for a draw.
_words = {
    'model.name': '{model}',
    'training.initialise_from': 'digit',
    'training.vectors': 4,
    'training.learning_rate': 4e-3,
    'training.steps': 50,
}
_variants = {
    'generator.model': '{model}',
    'generator.words': '{words}',
    'per_source': 20,
    'block_size': 1000,
    'batch_size': 100,
    'generator.sampler.num_steps': 20,
}
_named = {**_variants, 'generator.words': None, 'generator.class_names': 'allowed'}
made = dict(
    words=dict(kind='words', recipe='dafusion_words_digits', cfg_options=_words),
    # 20 of each shot; arms that take fewer take the first ones.
    variants=dict(kind='store', recipe='dafusion_digits', cfg_options=_variants),
    # k = 1: every image at the same intensity.
    variants_k1=dict(kind='store', recipe='dafusion_digits', cfg_options={**_variants, 'generator.t0': [0.5], 'per_source': 10}),
    # The prompt says the class's name in place of a learned word.
    variants_named=dict(kind='store', recipe='dafusion_digits', cfg_options={**_named, 'per_source': 10}),
    # A model per class that cannot draw it, for all draws; the words of a draw are then learned on these.
    erasure=dict(
        kind='erasure',
        recipe='esd_digits',
        once=True,
        cfg_options={'model.name': '{model}', 'classes': None, 'training.iterations': 50, 'training.checkpoint_steps': 50},
    ),
    words_erased=dict(kind='words', recipe='dafusion_words_digits', cfg_options={**_words, 'model.erasures': '{erasure}'}),
    variants_erased=dict(
        kind='store',
        recipe='dafusion_digits',
        cfg_options={**_variants, 'generator.words': '{words_erased}', 'generator.erasures': '{erasure}', 'per_source': 10},
    ),
    # Real guidance as the paper runs it for comparison: the name, and one strength.
    guided=dict(kind='store', recipe='dafusion_digits', cfg_options={**_named, 'generator.t0': [0.5], 'per_source': 10}),
)
