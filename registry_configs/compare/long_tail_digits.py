"""Digits of which some classes have few images: filled up by copies, by a generator, and by the same generator guided to rare images.

python tools/demo.py --out runs/demo --only-data
synthaug compare long_tail_digits --data runs/demo/data --out runs/long-tail --jobs 2

For every seed it draws a long tail, learns how rare each of its images is, makes five generated stores and trains all arms with equal steps. table.md,
classes.csv and report.html hold what each class gained and lost, against plain oversampling. A quarter of an hour of one CPU core, ten minutes of two.
"""

_base_ = './_base_/long_tail.py'

# This name stands in braces below; --set NAME=VALUE changes it.
values = dict(model='embedded:digits_edm')
title = 'Long-tailed digits, {shots} labelled of the largest class'
notes = [
    'Small real handwriting (scikit-learn digits, 8 x 8 pixels), split by position, since the file is ordered by writer: long tails are drawn from 0 to 1,199, '
    'validated on 1,200 to 1,396, tested on 1,397 to 1,796.',
    'What the generator and the CLIP that checks labels had seen: the images 0 to 1,199 with their labels, far more of the small classes than the classifier '
    'may use. They stand in for web-scale models. So edm against oversampling says what such a model knows; the three kinds of guidance against edm say what '
    'rare images add.',
    'Images that guidance made rare are kept where the CLIP takes them for their class; minority_unchecked keeps them all.',
]

train = 'long_tail_digits'
# Images of the largest class; the smallest has a twentieth.
shots = [60]
imbalance = 20
# Each seed draws its own images; classifiers of levels, stores and classifiers start anew with it.
seeds = [0, 1, 2]

_told = {'generator.model': '{model}'}
_levels = {
    'model': '{model}',
    # 204 images in all: some 40 to a level. They are ranked over all classes, so that a small class lacks levels.
    'levels.count': 5,
    'levels.rank': 'all',
    'training.images_shown': 64_000,
}
_guided = {**_told, 'generator.guidance.0.classifier': '{levels}'}
made = dict(
    copies=dict(kind='store', recipe='oversampling'),
    edm=dict(kind='store', recipe='long_tail_digits_edm', cfg_options=_told),
    levels=dict(kind='minority', recipe='minority_digits', cfg_options=_levels),
    minority=dict(kind='store', recipe='long_tail_digits_minority', cfg_options=_guided),
    self_guided=dict(kind='store', recipe='long_tail_digits_self_guided', cfg_options=_told),
    boost_and_skip=dict(kind='store', recipe='long_tail_digits_boost_and_skip', cfg_options=_told),
    unchecked=dict(kind='store', recipe='long_tail_digits_minority', cfg_options={**_guided, 'inspectors': [dict(type='synthaug_plugins.ImageSanity')]}),
)
