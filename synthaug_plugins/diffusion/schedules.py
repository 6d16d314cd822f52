"""How noise and signal change with time: sigma(t), s(t), and the noise levels of discrete models.

A schedule says which noise level belongs to which time; a scaling says by which factor the samplers' state differs from
EDM's coordinates x = image + sigma * noise. They are independent (EDM, Table 1), so any solver runs in any of them. All
arithmetic is on float64 CPU tensors of any shape; log1p and expm1 keep the digits that small sigmas would lose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

SCHEDULES = ('linear', 've', 'vp', 'flow')
SCALINGS = ('none', 'vp', 'flow')


class Schedule(Protocol):
    """sigma(t) for t >= 0: sigma(0) = 0, rising."""

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at a time."""
        ...

    def derivative(self, t: Tensor) -> Tensor:
        """d sigma / d t."""
        ...

    def time(self, sigma: Tensor) -> Tensor:
        """The time of a noise level: the inverse of `sigma`."""
        ...


@dataclass(frozen=True)
class VPSchedule:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) (Song et al. 2021, VP; EDM, Table 1)."""

    beta_d: float = 19.9
    beta_min: float = 0.1

    @classmethod
    def through(cls, sigma_min: float, sigma_max: float, epsilon_s: float) -> VPSchedule:
        """The schedule with sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max.

        Where sigma_min is high for so small an epsilon_s, sigma(t) rises beyond sigma_max and falls again before t = 1;
        `time` stays on the rising part.
        """
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
        return cls(beta_d, high - beta_d / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return (self.beta_d * t**2 / 2 + self.beta_min * t).expm1().sqrt()

    def derivative(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        sigma = self.sigma(t)
        return (self.beta_min + self.beta_d * t) / 2 * (sigma + 1 / sigma)

    def time(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        log = (sigma**2).log1p()
        root = (self.beta_min**2 + 2 * self.beta_d * log).sqrt()
        # Two forms of the same root: each is the one without cancellation.
        return 2 * log / (root + self.beta_min) if self.beta_min >= 0 else (root - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class VESchedule:
    """sigma(t) = sqrt(t) (Song et al. 2021, VE; EDM, Table 1)."""

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return t.sqrt()

    def derivative(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return 0.5 / t.sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return sigma**2


@dataclass(frozen=True)
class LinearSchedule:
    """sigma(t) = t (DDIM and EDM)."""

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return t

    def derivative(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return sigma


@dataclass(frozen=True)
class FlowSchedule:
    """sigma(t) = t / (1 - t), 0 <= t < 1: with s(t) = 1 - t the state is (1 - t) image + t noise (Lipman et al. 2023).

    Euler's step in these coordinates is the Euler step of flow matching.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return t / (1 - t)

    def derivative(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return (1 - t) ** -2

    def time(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return sigma / (1 + sigma)


def scale(scaling: str, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """s and d ln s / d sigma of a scaling at a noise level; s is a function of sigma in all of them, and 1 at sigma = 0.

    'none': s = 1. 'vp': s = 1 / sqrt(1 + sigma^2), which keeps the variance of unit-variance data at 1. 'flow':
    s = 1 / (1 + sigma), which is 1 - t under `FlowSchedule`.
    """
    if scaling == 'vp':
        return (1 + sigma**2).rsqrt(), -sigma / (1 + sigma**2)
    if scaling == 'flow':
        return 1 / (1 + sigma), -1 / (1 + sigma)
    return torch.ones_like(sigma), torch.zeros_like(sigma)


def iddpm_table(M: int = 1000, C_1: float = 0.001, C_2: float = 0.008) -> Tensor:
    """Noise levels u_0 > u_1 > ... > u_M = 0 of a discrete model with the cosine schedule (EDM, Table 1).

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, C_1) - 1), abar_j = sin^2(pi/2 j / (M (C_2 + 1))). The recursion
    telescopes to a sum of logarithms, so that every entry is exact to float64 (the official code rounds abar to float32,
    which moves entries by up to 5e-4).

    Returns: (M + 1,) float64 on the CPU.
    """
    j = torch.arange(M + 1, dtype=torch.float64, device='cpu')
    log_abar = 2 * (math.pi / 2 * j / (M * (C_2 + 1))).sin().log()
    log_ratio = (log_abar[:-1] - log_abar[1:]).clamp(min=math.log(C_1))
    u = (-log_ratio.flip(0).cumsum(0).flip(0)).expm1().sqrt()
    return torch.cat([u, u.new_zeros(1)])


@lru_cache(maxsize=16)
def model_sigmas(M: int, C_1: float, C_2: float, device: torch.device) -> Tensor:
    """u_0 ... u_{M-1} of `iddpm_table` on a device: the levels that a discrete model was trained at. Shared: not to be written to."""
    return iddpm_table(M, C_1, C_2)[:-1].to(device)


def nearest_sigma(table: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of a falling table that are nearest to `sigma`, and their indices; of two equally near ones the larger sigma.

    Args:
        table: (n,) float64, falling.
        sigma: any shape, on the table's device.

    Returns: values (float64) and indices (int64), both like sigma.
    """
    rising = table.flip(0)
    above = torch.searchsorted(rising, sigma.to(table.dtype).contiguous()).clamp(0, len(table) - 1)
    below = (above - 1).clamp(min=0)
    index = torch.where(sigma - rising[below] < rising[above] - sigma, below, above)
    return rising[index], len(table) - 1 - index
