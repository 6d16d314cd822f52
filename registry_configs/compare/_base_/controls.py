"""The controls for synthetic images: what else could have brought the gain. Recipes that inherit it say in `made` how the stores that are named here are made,
and add `classic`, whose transforms depend on what may be done to an image of theirs.

All arms take equal steps with batches of equal size. Where an arm has a store, half of its images come from there.
"""


def _mix(store, **options):
    return dict(synthaug=dict(mix={'store': '{' + store + '}', 'alpha': 0.5, 'partner': 'class', **options}))


arms = dict(
    real_only=dict(synthaug=dict(mix=None)),
    synthetic=_mix('variants'),
    # Blends of real images: Mixup (Zhang et al., ICLR 2018; alpha = 0.2 as for their ImageNet) or CutMix (Yun et al., ICCV 2019; alpha = 1) for each batch.
    mixup_cutmix=dict(
        cfg_options={'model.train_cfg': dict(augments=[dict(type='mmpretrain.Mixup', alpha=0.2), dict(type='mmpretrain.CutMix', alpha=1.0)])},
        synthaug=dict(mix=None),
    ),
    # The same real images again, by the same way as synthetic ones: what the mixing alone does, which should be nothing.
    duplication=_mix('copies'),
    # The real images through the generator's autoencoder and back: what latents alone cost or bring.
    round_trip=_mix('round_trips', partner='source'),
    # Other real images of the classes: what a generator that learned from such images has to beat.
    retrieved=_mix('retrieved', sources='any'),
)
reference = 'synthetic'
