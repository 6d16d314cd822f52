"""Rare handwritten digits from pure noise: the embedded model, guided by a classifier of levels of rarity. A minute on one CPU core.

synthaug learn minority minority_digits --data my/digits --out models/digits-levels

synthaug generate minority_digits --out stores/digits-minority

Minority guidance (Um, Lee and Ye, ICLR 2024). minority_digits_self_guided.py and minority_digits_boost_and_skip.py need no classifier.
"""

_base_ = './_base_/minority_digits_generate.py'

generator = dict(
    # Every option: the docstring of synthaug_plugins.generators.minority_classifier.MinorityClassifier.
    guidance=[
        dict(
            type='synthaug_plugins.MinorityClassifier',
            classifier='models/digits-levels/model',  # what the first command above writes
            # 0 is the most common, 9 the rarest. level=list(range(10)) makes some of each, which their rows say as params.minority_level; 'lacking' fills up
            # what each class has few training images of.
            level=9,
            # 1 is weaker, 5 stronger: at 5 four labels in a hundred are lost. weight=[0, 1, 2, 5] makes some of each, see params.minority_weight.
            weight=2.0,
            # interval=(0.2, 5),  # between which noise levels it acts; by default at all
            normalise=None,
        )
    ]
)
