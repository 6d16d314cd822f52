"""Rare faces of 64 pixels from pure noise, by a model of a folder such as CelebA-64 that is guided by itself, as published.

synthaug generate minority_celeba64_self_guided --out stores/celeba64-self-guided

Self-guided minority sampling (Um and Ye, ECCV 2024): scale 0.4, every fifth step, LPIPS with AlexNet, noised again to 0.8 of the linear schedule's steps.
"""

_base_ = './minority_celeba64.py'

generator = dict(
    guidance=[
        dict(
            type='synthaug_plugins.SelfGuided',
            weight=0.4,
            every=5,
            sigma=25.1,  # t = 0.8 of the linear schedule in continuous time (VP); its step 800 of 1000 has 25.7
            distance=dict(type='synthaug_plugins.LPIPS', network='alex'),
        )
    ]
)
