"""The arms of DA-Fusion's ablation (Trabucco et al., ICLR 2024). Recipes that inherit it say in `made` how the stores that are named here are made."""


def _first(m, store='variants'):
    """The first m variants of each shot that a store holds: a store of 20 holds those of 5."""
    return dict(store='{' + store + '}', select=f'row_number() over (partition by source order by id) <= {m}')


def _arm(**mix):
    return dict(synthaug=dict(mix={**_first(10), 'alpha': 0.5, **mix}))


arms = dict(
    real_only=dict(synthaug=dict(mix=None)),
    # The method as published: learned words, k = 4, alpha = 0.5, M = 10. Every arm below changes one thing.
    dafusion=_arm(),
    # One intensity, t0 = 0.5, for all.
    k1=_arm(**_first(10, 'variants_k1')),
    alpha_03=_arm(alpha=0.3),
    alpha_07=_arm(alpha=0.7),
    m5=_arm(**_first(5)),
    m20=_arm(**_first(20)),
    # The prompt says the class's name in place of a learned word.
    class_names=_arm(**_first(10, 'variants_named')),
    # The defence against leakage: each word is learned, and each variant made, by the model that has its class erased.
    erased=_arm(**_first(10, 'variants_erased')),
    # The paper's baseline, real guidance: the name, and one intensity.
    real_guidance=_arm(**_first(10, 'guided')),
)
reference = 'dafusion'
