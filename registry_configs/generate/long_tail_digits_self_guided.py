"""Rare digits for the classes that lack images, without a classifier (Um and Ye, ECCV 2024): as long_tail_digits_edm, guided by the model's own guesses.

synthaug generate long_tail_digits_self_guided --data data/long-tail --out stores/fill-self-guided
"""

_base_ = './long_tail_digits_edm.py'

generator = dict(
    guidance=[
        dict(
            type='synthaug_plugins.SelfGuided',
            # As rare as digits that the model never saw; CLIP still takes 87 of 100 for their class, 93 without guidance.
            weight=0.8,
            every=5,  # four of the 18 steps
            # 6.5 leaves hardly anything of 8 x 8 pixels, see learn/minority_digits.
            sigma=1.0,
            distance=dict(type='synthaug_plugins.MSE'),  # perceptual distances see nothing in 8 pixels
        ),
    ],
)
