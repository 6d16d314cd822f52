"""Rare digits for the classes that lack images, at no extra cost (Um, Kim and Ye, ICML 2025): as long_tail_digits_edm, from louder noise and with fewer steps.

synthaug generate long_tail_digits_boost_and_skip --data data/long-tail --out stores/fill-boost-and-skip
"""

_base_ = './long_tail_digits_edm.py'

# The paper boosts by 4, but already 2 leaves digits that CLIP takes for their class in 43 of 100 cases; with 1.2 it does in 88, without guidance in 93.
generator = dict(guidance=[dict(type='synthaug_plugins.BoostAndSkip', boost=1.2, skip=2)])
