"""Variants of a few digits against all that could explain their gain: classic augmentation, Mixup and CutMix, copies, a round trip, other real images.

python tools/demo.py --out runs/demo --only-data
synthaug compare controls_digits --data runs/demo/data --out runs/controls --jobs 2 --set found=runs/demo/data/train

`found` is a folder of other real images, a folder per class.
"""

_base_ = './_base_/controls.py'

# These names stand in braces below; --set NAME=VALUE changes one.
values = dict(model='embedded:digits_sd', found='runs/demo/data/train')
title = 'Controls for synthetic digits, {shots} labelled per class'
notes = [
    'Small real handwriting (scikit-learn digits, 8 x 8 pixels), split by position, since the file is ordered by writer: shots are drawn from 0 to 1,199, '
    'validated on 1,200 to 1,396, tested on 1,397 to 1,796.',
    'What the generator had seen: the images 0 to 1,199 with captions. retrieved trains on images of {found}: where these are the same 1,200, it is the bound '
    'that no generator that learned from them should be expected to pass.',
]

train = 'digits_resnet'
shots = [5]
# Each seed draws its own shots; stores and classifiers start anew with it.
seeds = [0, 1, 2]

_told = {'generator.model': '{model}'}
_variants = {**_told, 'per_class': None, 'per_source': 10, 'generator.sampler.num_steps': 20}
made = dict(
    variants=dict(kind='store', recipe='he2023_fewshot_rg_digits', cfg_options=_variants),
    copies=dict(kind='store', recipe='oversampling', cfg_options={'fill_to': None, 'per_source': 10}),
    round_trips=dict(kind='store', recipe='round_trip_digits', cfg_options=_told),
    retrieved=dict(kind='store', recipe='retrieved', once=True, cfg_options={'data': '{found}'}),
)
arms = dict(
    # Rotations on top of the recipe's shifts. No flips, since they make other digits.
    classic=dict(
        cfg_options={
            'train_dataloader.dataset.pipeline': [
                dict(type='mmpretrain.LoadImageFromFile'),
                dict(type='mmpretrain.Rotate', angle=10.0, prob=0.5, pad_val=0, interpolation='bilinear'),
                dict(type='mmpretrain.RandomCrop', crop_size=8, padding=1),
                dict(type='mmpretrain.PackInputs'),
            ]
        },
        synthaug=dict(mix=None),
    ),
)
