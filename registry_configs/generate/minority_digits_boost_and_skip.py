"""Rare handwritten digits from pure noise: the embedded model, started late from louder noise. Under a minute on one CPU core.

synthaug generate minority_digits_boost_and_skip --out stores/digits-boost-and-skip

Boost-and-Skip (Um, Kim and Ye, ICML 2025). Nothing is learned before, and nothing is called more often.
"""

_base_ = './_base_/minority_digits_generate.py'

generator = dict(
    # Every option: the docstring of synthaug_plugins.generators.boost_and_skip.BoostAndSkip.
    guidance=[
        dict(
            type='synthaug_plugins.BoostAndSkip',
            # Far below the published 4: these steps are deterministic and keep all of it, as specks in the image from about 1.4 on. Ancestral steps
            # (sampler=dict(solver='euler', eta=1)) take a boost away again where they are many.
            boost=1.2,
            skip=2,  # of 18 steps
        )
    ]
)
