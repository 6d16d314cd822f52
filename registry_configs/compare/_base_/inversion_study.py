"""The arms of the study of Diffusion Inversion (Zhou et al., 2023), and the curves through them. Recipes that inherit it say in `made` how the stores
that are named here are made.

Every arm changes one thing about `inversion`: 5 synthetic images of each real one, lambda = 0.1, alpha = 0.1, guidance scale 2 away from the mean of all
embeddings, and batches of which half is real.
"""


def _arm(store='variants', n=5, **mix):
    """Train on the first n images of each real one that a store holds: a store of 10 holds those of 5."""
    chosen = f'row_number() over (partition by source order by id) <= {n}'
    return dict(synthaug=dict(mix=dict(store='{' + store + '}', select=chosen, **mix)))


_alone = (0, 1)
arms = dict(
    real_only=dict(synthaug=dict(mix=None)),
    inversion=_arm(),
    # No real image in any batch.
    synthetic_only=_arm(ratio=_alone),
    # The control: real images through the model's autoencoder and back, and nothing else. What it falls short of real_only is the autoencoder's; what
    # synthetic_only falls short of it, or gains on it, is the generator's.
    round_trip=_arm('round_trips', 1, ratio=_alone),
    n1=_arm(n=1),
    n3=_arm(n=3),
    n10=_arm(n=10),
    guidance_1=_arm('guidance_1'),
    guidance_4=_arm('guidance_4'),
    lambda_0=_arm('lambda_0'),
    lambda_04=_arm('lambda_04'),
    lambda_1=_arm('lambda_1'),
    alpha_0=_arm('alpha_0'),
    alpha_03=_arm('alpha_03'),
    alpha_05=_arm('alpha_05'),
    few_steps=_arm('few_steps'),
    more_steps=_arm('more_steps'),
    # What guidance leads away from.
    class_mean=_arm('class_mean'),
    group_mean=_arm('group_mean'),
    empty_prompt=_arm('empty_prompt'),
)
reference = 'inversion'
curves = dict(
    synthetic_per_real=dict(axis='synthetic images of each real one', arms={1: 'n1', 3: 'n3', 5: 'inversion', 10: 'n10'}),
    guidance=dict(axis='guidance scale', arms={1: 'guidance_1', 2: 'inversion', 4: 'guidance_4'}),
    noise=dict(axis='lambda, noise on the embedding', arms={0: 'lambda_0', 0.1: 'inversion', 0.4: 'lambda_04', 1: 'lambda_1'}),
    interpolation=dict(axis='alpha, share of another image of the class', arms={0: 'alpha_0', 0.1: 'inversion', 0.3: 'alpha_03', 0.5: 'alpha_05'}),
    unconditional=dict(
        axis='guidance leads away from', arms={'all': 'inversion', 'class': 'class_mean', 'group': 'group_mean', 'empty prompt': 'empty_prompt'}
    ),
)
