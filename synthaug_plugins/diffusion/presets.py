"""Sampler settings with a published score, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Options of `sample` and what they are known to reach.

    Attributes:
        what: one line for people.
        options: the options that differ from the defaults.
        published: rows of (data, model, FID, network calls per image), the paper's figures, not this package's.
        source: where they are published.
    """

    what: str
    options: Mapping[str, Any]
    published: tuple[tuple[str, str, float, int], ...]
    source: str


def _churn(num_steps: int, S_churn: float, S_min: float, S_max: float, S_noise: float) -> dict[str, Any]:
    return {'num_steps': num_steps, 'S_churn': S_churn, 'S_min': S_min, 'S_max': S_max, 'S_noise': S_noise}


_BASELINES = 'Karras et al. 2022 (EDM), Table 2, Algorithm 1 with Euler'
_STOCHASTIC = 'Karras et al. 2022 (EDM), Figure 4 and Table 5'

PRESETS: dict[str, Preset] = {
    'edm': Preset(
        "EDM's deterministic sampler: Heun, 18 steps",
        {'num_steps': 18},
        (
            ('CIFAR-10 class-conditional', 'EDM config F, VP', 1.79, 35),
            ('CIFAR-10 unconditional', 'EDM config F, VP', 1.97, 35),
            ('CIFAR-10 unconditional', 'VP, pre-trained', 2.93, 35),
        ),
        'Karras et al. 2022 (EDM), Tables 2 and 3',
    ),
    'vp': Preset(
        'Euler in the VP schedule and scaling (Song et al. 2021)',
        {'num_steps': 512, 'solver': 'euler', 'discretization': 'vp', 'schedule': 'vp', 'scaling': 'vp'},
        (('CIFAR-10 unconditional', 'VP, pre-trained', 2.79, 512),),
        _BASELINES,
    ),
    've': Preset(
        'Euler in the VE schedule (Song et al. 2021)',
        {'num_steps': 8192, 'solver': 'euler', 'discretization': 've', 'schedule': 've'},
        (('CIFAR-10 unconditional', 'VE, pre-trained', 4.78, 8192),),
        _BASELINES,
    ),
    'iddpm': Preset(
        "DDIM at the model's own noise levels (Nichol and Dhariwal 2021)",
        {'num_steps': 384, 'solver': 'euler', 'discretization': 'iddpm'},
        (('ImageNet-64 class-conditional', 'ADM, pre-trained', 2.73, 384),),
        _BASELINES,
    ),
    'churn_cifar10_vp': Preset(
        'best stochastic setting for the pre-trained VP model of CIFAR-10',
        _churn(192, 30.0, 0.01, 1.0, 1.007),
        (('CIFAR-10 unconditional', 'VP, pre-trained', 2.27, 383),),
        _STOCHASTIC,
    ),
    'churn_cifar10_ve': Preset(
        'best stochastic setting for the pre-trained VE model of CIFAR-10',
        _churn(384, 80.0, 0.05, 1.0, 1.007),
        (('CIFAR-10 unconditional', 'VE, pre-trained', 2.23, 767),),
        _STOCHASTIC,
    ),
    'churn_imagenet64_adm': Preset(
        'best stochastic setting for the pre-trained ADM of ImageNet-64',
        _churn(256, 80.0, 0.05, 50.0, 1.003),
        (('ImageNet-64 class-conditional', 'ADM, pre-trained', 1.55, 511),),
        _STOCHASTIC,
    ),
    'churn_imagenet64_edm': Preset(
        "best stochastic setting for EDM's own ImageNet-64 model",
        _churn(256, 40.0, 0.05, 50.0, 1.003),
        (('ImageNet-64 class-conditional', 'ADM, EDM config E', 1.36, 511),),
        _STOCHASTIC,
    ),
}
