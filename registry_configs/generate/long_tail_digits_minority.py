"""Rare digits for the classes that lack images (Um, Lee and Ye, ICLR 2024): as long_tail_digits_edm, guided to the levels of rarity that a class lacks.

synthaug learn minority minority_digits --data data/long-tail --out models/long-tail-levels --cfg-options levels.count=5
synthaug generate long_tail_digits_minority --data data/long-tail --out stores/fill-rare

Levels are ranked over all images (rank='all'): a class of few images has none of most levels.
"""

_base_ = './long_tail_digits_edm.py'

generator = dict(
    guidance=[
        dict(
            type='synthaug_plugins.MinorityClassifier',
            classifier='models/long-tail-levels/model',  # the folder that `synthaug learn minority` made
            # Each request draws a level of its class in proportion to what that lacks of the fullest one.
            level='lacking',
            # At 2 digits of the highest level are rarer than those that the model never saw, and CLIP takes 82 of 100 for their class (93 without guidance).
            weight=2.0,
        ),
    ],
)
