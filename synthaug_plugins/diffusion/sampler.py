"""From noise to images: EDM's Algorithm 2 and its parts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from synthaug_plugins.diffusion.denoiser import Denoiser
from synthaug_plugins.diffusion.grid import edm_sigmas, sigma_range
from synthaug_plugins.errors import RecipeError, nearest

SOLVERS = ('euler', 'heun')


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    latents: Tensor,
    *,
    noise: Tensor | Callable[[int], Tensor] | None = None,
    cond: Tensor | None = None,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    solver: str = 'heun',
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    start: Tensor | None = None,
    first_step: int = 0,
    dtype: torch.dtype = torch.float64,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Solve the probability-flow ODE, or with churn the SDE, from noise to images (EDM, Algorithms 1 and 2, sigma(t) = t).

    Heun costs 2 (num_steps - first_step) - 1 calls of the denoiser and is of order 2; Euler costs one call per step and is
    of order 1.

    Args:
        denoiser: D(x; sigma).
        latents: (B, C, H, W) unit normal noise; it is scaled here.
        noise: fresh unit normal noise of the steps, (num_steps, B, C, H, W) or a function of the step number; used with
            S_churn only. Entry i belongs to step i, whether or not step i uses it: moving the churn window never shifts it.
        cond: class indices (B,) int64, or None.
        num_steps: steps of the whole grid.
        sigma_min, sigma_max: ends of the grid; 0.002 and 80 unless given; cut to what the denoiser supports.
        rho: spacing of the grid, see `edm_sigmas`.
        solver: 'heun' or 'euler'.
        S_churn, S_min, S_max, S_noise: how much fresh noise is added, in which range of sigma, and its standard deviation.
            The share per step is min(S_churn / num_steps, sqrt(2) - 1), num_steps counting skipped steps too.
        start: clean images (B, C, H, W) to begin from: x = start + sigma[first_step] * latents (SDEdit, Meng et al. 2022).
            Without it x = sigma[first_step] * latents.
        first_step: the step at which to begin; earlier ones are skipped.
        dtype: of the state. float64 is EDM's choice; devices without it (MPS) need float32.
        callback: called after step i as `callback(i, x, denoised)`: the state and D at the beginning of the step.

    Returns: (B, C, H, W) of `dtype`, about [-1, 1], not clamped. Each sample's non-finite values stay its own.

    Raises:
        RecipeError: an option is out of range, or churn without noise.
    """
    low, high = sigma_range(denoiser.sigma_min, denoiser.sigma_max, sigma_min, sigma_max)
    check_sampler(num_steps, low, high, rho, solver, S_churn, S_min, S_max, S_noise)
    if not 0 <= first_step < num_steps:
        raise RecipeError(f'first_step = {first_step} is outside [0, {num_steps - 1}].', 'At least one step must run.')
    if start is not None and start.shape != latents.shape:
        raise RecipeError(f'start has the shape {tuple(start.shape)}, latents {tuple(latents.shape)}.', 'Give one start per sample.')
    if S_churn > 0 and noise is None:
        raise RecipeError(f'S_churn = {S_churn:g} needs noise.', 'Pass noise=SampleNoise(...).step.')

    # The grid is a few host numbers: no step reads the device back.
    grid = denoiser.round_sigma(edm_sigmas(num_steps, low, high, rho)[:-1]).to('cpu', torch.float64)
    gamma_max = min(S_churn / num_steps, math.sqrt(2) - 1)
    gammas = gamma_max * ((grid >= S_min) & (grid <= S_max)).to(grid.dtype)
    churned = denoiser.round_sigma(grid * (1 + gammas)).to('cpu', torch.float64)
    sigmas, hats = [*grid.tolist(), 0.0], churned.tolist()

    x = sigmas[first_step] * latents.to(dtype)
    if start is not None:
        x = start.to(dtype) + x

    for i in range(first_step, num_steps):
        sigma, sigma_hat, sigma_next = sigmas[i], hats[i], sigmas[i + 1]
        if gammas[i] > 0:
            eps = noise(i) if callable(noise) else noise[i]  # type: ignore[index]
            x = x + math.sqrt(max(sigma_hat**2 - sigma**2, 0.0)) * S_noise * eps.to(dtype)
        denoised = _denoise(denoiser, x, sigma_hat, cond)
        d = (x - denoised) / sigma_hat
        x_next = x + (sigma_next - sigma_hat) * d
        if solver == 'heun' and sigma_next > 0:
            d_next = (x_next - _denoise(denoiser, x_next, sigma_next, cond)) / sigma_next
            x_next = x + (sigma_next - sigma_hat) * (d + d_next) / 2
        x = x_next
        if callback is not None:
            callback(i, x, denoised)
    return x


def _denoise(denoiser: Denoiser, x: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
    return denoiser(x, x.new_full((), sigma), cond).to(x.dtype)


def check_sampler(
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
    solver: str = 'heun',
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> None:
    """Refuse (RecipeError) sampler options that cannot work, naming the key. sigma_min, sigma_max: as resolved by `sigma_range`."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise RecipeError(f'num_steps = {num_steps!r} is not a positive whole number.', 'EDM uses 18 for 32-pixel images.')
    if not 0 < sigma_min < sigma_max < math.inf:
        raise RecipeError(f'sigma_min = {sigma_min:g} and sigma_max = {sigma_max:g} do not make a range.', 'They must fulfil 0 < sigma_min < sigma_max.')
    if not rho > 0:
        raise RecipeError(f'rho = {rho:g} is not positive.', 'Use 7; 5 to 10 works.')
    if solver not in SOLVERS:
        raise RecipeError(f'solver = {solver!r} is unknown.', nearest(str(solver), SOLVERS))
    for name, value in (('S_churn', S_churn), ('S_min', S_min), ('S_max', S_max), ('S_noise', S_noise)):
        if not value >= 0:
            raise RecipeError(f'{name} = {value:g} is negative.', 'Use 0 or more.')
