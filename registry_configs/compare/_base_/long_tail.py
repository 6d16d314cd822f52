"""The arms of a comparison of long tails: what fills the classes up that have few images. Recipes that inherit it say in `made` how the stores that are named
here are made.

Every arm but the first trains on the real images and, in one bowl with them, on a store that makes all classes as large as the largest. They differ in what
the store holds, and in nothing else: not in steps, images per batch or balance.
"""


def _fill(store):
    return dict(synthaug=dict(mix=dict(store='{' + store + '}', mode='concat')))


arms = dict(
    real_only=dict(synthaug=dict(mix=None)),
    # The control: real images again and again. What another arm gains on it, its images gained, and not the balance.
    oversampling=_fill('copies'),
    # New images of the class by the model as it is: mostly typical ones.
    edm=_fill('edm'),
    # Images of the levels of rarity that a class lacks, by a classifier of levels (Um et al., ICLR 2024).
    minority=_fill('minority'),
    # Without a classifier (Um and Ye, ECCV 2024).
    self_guided=_fill('self_guided'),
    # Without any cost (Um et al., ICML 2025).
    boost_and_skip=_fill('boost_and_skip'),
    # As minority, but nobody looks whether an image still shows its class.
    minority_unchecked=_fill('unchecked'),
)
reference = 'oversampling'
