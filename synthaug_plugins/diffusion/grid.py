"""Noise levels that a sampler visits."""

from __future__ import annotations

import torch
from torch import Tensor


def edm_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels from sigma_max down to sigma_min, then 0 (EDM, eq. 5 and Table 1).

    sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i < N; sigma_N = 0. The larger rho,
    the more steps lie at low noise; 5 to 10 works. With one step the formula is 0/0; that step starts at sigma_max.

    Returns: (num_steps + 1,) float64 on the CPU.
    """
    i = torch.arange(num_steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + i / max(num_steps - 1, 1) * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def sigma_range(supported_min: float, supported_max: float, sigma_min: float | None = None, sigma_max: float | None = None) -> tuple[float, float]:
    """The (lowest, highest) noise level of a run: EDM's 0.002 and 80 unless told otherwise, cut to what the model supports."""
    return max(0.002 if sigma_min is None else sigma_min, supported_min), min(80.0 if sigma_max is None else sigma_max, supported_max)
