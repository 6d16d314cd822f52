"""Rare faces of 64 pixels from pure noise, by a model of a folder such as CelebA-64 that starts late from louder noise, as published.

synthaug generate minority_celeba64_boost_and_skip --out stores/celeba64-boost-and-skip

Boost-and-Skip (Um, Kim and Ye, ICML 2025): noise four times as loud, the first 3 of 250 steps left out.
"""

_base_ = './minority_celeba64.py'

generator = dict(
    # The published sampler begins at the linear schedule's last step, sigma 157; where the model's range ends earlier, so does this one.
    sampler=dict(sigma_max=152.0),
    guidance=[dict(type='synthaug_plugins.BoostAndSkip', boost=4.0, skip=3)],
)
