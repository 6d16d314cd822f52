"""The minority score: how much of an image a denoiser loses (Um, Lee and Ye, ICLR 2024, arXiv 2301.12334).

A denoiser rebuilds what it has seen often. What it rebuilds badly from noise is rare, or broken: a high score alone does not tell which.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion.denoiser import Denoiser
from synthaug_plugins.errors import RecipeError

TIMESTEPS = 1000
"""Steps of the discrete schedules that published settings count in."""
SCHEDULES = ('linear', 'cosine')


@torch.no_grad()
def minority_scores(
    denoiser: Denoiser,
    x0: Tensor,
    sigma: float,
    noise: Callable[[int], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    draws: int,
    cond: Any = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """d(x0, D(x0 + sigma n_i; sigma)) for draws i = 0, 1, ... (equation 5 of the paper before the mean). One network call per draw.

    Rebuilt images are clamped to [-1, 1], as published; those that a decoder makes of x0 are, too.

    Args:
        x0: (B, C, H, W) in the denoiser's space: pixels in [-1, 1], or latents.
        sigma: noise level, above 0. For images in [-1, 1] about 6.5.
        noise: the unit normal noise (B, C, H, W) of a draw.
        distance: of pairs of images, (B, C, H, W) twice -> (B,). One that has a method `seen_from` is asked for the distance from x0 once for all draws.
        draws: how many, at least 1.
        cond: see `Denoiser.__call__`.
        decode: images in about [-1, 1] of what the denoiser makes, where it works in latents. x0 is decoded as well, so that what the autoencoder
            loses by itself is in no score.

    Returns: (B, draws) in the dtype of the distance, float32 for x0 in float32.
    """
    level = torch.tensor(sigma, dtype=torch.float64)  # on the CPU: no call waits for the device
    original = x0 if decode is None else decode(x0).clamp(-1, 1)
    from_original = distance.seen_from(original) if hasattr(distance, 'seen_from') else partial(distance, original)
    found = []
    for i in range(draws):
        D = denoiser(x0 + sigma * noise(i).to(x0.dtype), level, cond).to(x0.dtype)
        found.append(from_original((D if decode is None else decode(D)).clamp(-1, 1)))
    return torch.stack(found, 1)


def timestep_sigmas(schedule: str) -> Tensor:
    """Noise levels sqrt((1 - abar_t) / abar_t) of a process of 1000 steps, t = 0, 1, ... (DDPM; improved DDPM).

    Args:
        schedule: 'linear': beta from 1e-4 to 0.02 (Ho et al. 2020). 'cosine' (Nichol and Dhariwal 2021), betas up to 0.999.

    Returns: (1000,) float64 on the CPU, rising.

    Raises:
        RecipeError: an unknown schedule.
    """
    if schedule == 'linear':
        betas = torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64, device='cpu')
    elif schedule == 'cosine':
        share = torch.arange(TIMESTEPS + 1, dtype=torch.float64, device='cpu') / TIMESTEPS
        abar = ((share + 0.008) / 1.008 * torch.pi / 2).cos().square()
        betas = (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    else:
        raise RecipeError(f'schedule = {schedule!r} is unknown.', "Use 'linear' or 'cosine'.")
    log_abar = (-betas).log1p().cumsum(0)
    return (-log_abar).expm1().sqrt()


def timestep_sigma(index: int, of: int, schedule: str) -> float:
    """The noise level of a step of a respaced process: place i of n is step round(999 i / (n - 1)) of 1000.

    The published score uses place 60 of 100 of the linear schedule: step 605, sigma 6.37.

    Args:
        index: 0 <= index < of; 0 has the lowest noise.
        of: steps that the process was respaced to, 2 to 1000.
        schedule: see `timestep_sigmas`.

    Raises:
        RecipeError: out of range, or an unknown schedule.
    """
    numbers = all(isinstance(n, int) and not isinstance(n, bool) for n in (index, of))
    if not numbers or not 2 <= of <= TIMESTEPS or not 0 <= index < of:
        raise RecipeError(f'timestep = {(index, of)!r} is out of range.', f'Give (index, of) with 0 <= index < of <= {TIMESTEPS}, such as (60, 100).')
    return float(timestep_sigmas(schedule)[round((TIMESTEPS - 1) / (of - 1) * index)])
