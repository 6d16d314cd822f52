"""From noise to images: EDM's stochastic sampler for any schedule and scaling, and its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion.denoiser import Denoiser
from synthaug_plugins.diffusion.multistep import Multistep
from synthaug_plugins.diffusion.options import DEFAULTS, MULTISTEP, sampler_options
from synthaug_plugins.diffusion.steps import Point, Step, option_levels, plan_steps
from synthaug_plugins.errors import RecipeError

Noise = Tensor | Callable[[int], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    latents: Tensor,
    *,
    noise: Noise | None = None,
    cond: Any = None,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    solver: str = 'heun',
    discretization: str = 'edm',
    schedule: str = 'linear',
    scaling: str = 'none',
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
    alpha: float = 1.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    eta: float = 0.0,
    sigmas: Sequence[float] | Tensor | None = None,
    start: Tensor | None = None,
    first_step: int = 0,
    dtype: torch.dtype = torch.float64,
    callback: Callback | None = None,
) -> Tensor:
    """Solve the probability-flow ODE, or with churn the SDE, from noise to images (EDM, Algorithms 1 and 2, generalised).

    The defaults are EDM's deterministic sampler. `nfe` says what options cost. `sampler_options` checks them beforehand.

    Args:
        denoiser: D(x; sigma).
        latents: (B, C, H, W) unit normal noise; it is scaled here.
        noise: fresh unit normal noise of the steps, (num_steps or more, B, C, H, W) or a function of the step number; used with
            S_churn or eta only. Entry i belongs to step i, whether or not step i uses it: moving the churn window never shifts it.
        cond: what the model is conditioned on, see `Denoiser.__call__`.
        num_steps: steps of the whole grid.
        sigma_min, sigma_max: ends of the grid; see `sigma_range` for the defaults; cut to what the denoiser supports.
        rho: spacing of the 'edm' grid, see `edm_sigmas`.
        solver: 'heun' (order 2, two calls a step), 'euler' (order 1), 'dpmpp_2m' or 'unipc' (multistep, one call a step; without
            churn, in EDM's coordinates only).
        discretization: how noise levels are spaced: 'edm', 'vp', 've', 'iddpm', see `noise_levels`.
        schedule: sigma(t): 'linear', 'vp', 've', 'flow'. 'vp' is fitted to the range of the grid.
        scaling: s(t): 'none', 'vp', 'flow'. schedule='flow', scaling='flow', solver='euler' is Euler's method of flow matching.
        epsilon_s, C_1, C_2, M: of the 'vp' and 'iddpm' grids.
        alpha: where Heun's second slope is taken: 1 Heun, 2/3 Ralston, 1/2 midpoint. The last step is Euler's in full.
        S_churn, S_min, S_max, S_noise: how much fresh noise is added, in which range of sigma, and its standard deviation.
            The share per step is min(S_churn / num_steps, sqrt(2) - 1), num_steps counting skipped steps too.
        eta: ancestral sampling, with solver='euler' in EDM's coordinates and without churn: the share of a step's noise that is drawn anew, from 0
            (DDIM) to 1, the posterior's variance of DDPM (Song et al. 2021, arXiv 2010.02502). See `plan_steps`.
        sigmas: explicit noise levels, falling, without the final 0, in place of discretization, num_steps, rho and range.
        start: clean images (B, C, H, W) to begin from: x = start + sigma[first_step] * latents (SDEdit, Meng et al. 2022).
            Without it x = sigma[first_step] * latents.
        first_step: the step at which to begin; earlier ones are skipped.
        dtype: of the state. float64 is EDM's choice; devices without it (MPS) need float32.
        callback: called after step i as `callback(i, x, denoised)`: the state x/s(t), in EDM's coordinates, and D at the
            beginning of the step.

    Returns: (B, C, H, W) of `dtype`, about [-1, 1], not clamped. Each sample's non-finite values stay its own.

    Raises:
        RecipeError: an option is out of range or does not go with another, or churn or eta without noise.
    """
    arguments = locals()
    # Defaults stay out, so that explicit `sigmas` do not contradict the default num_steps.
    given = {key: arguments[key] for key, default in DEFAULTS.items() if key == 'sigmas' or arguments[key] != default}
    options = sampler_options(given, denoiser.sigma_min, denoiser.sigma_max, denoiser.round_sigma)
    if start is not None and start.shape != latents.shape:
        raise RecipeError(f'start has the shape {tuple(start.shape)}, latents {tuple(latents.shape)}.', 'Give one start per sample.')
    if options['S_churn'] > 0 or options['eta'] > 0:
        _check_noise(noise, options, latents)
    levels = option_levels(options, denoiser.round_sigma)
    x = float(levels[first_step]) * latents.to(dtype)
    if start is not None:
        x = start.to(dtype) + x
    if solver in MULTISTEP:
        return _run_multistep(denoiser, x, cond, solver, levels.tolist()[first_step:], first_step, callback)
    return _run_steps(denoiser, x, cond, plan_steps(options, denoiser.round_sigma), first_step, options['alpha'], noise, callback)


def _run_steps(
    denoiser: Denoiser, x: Tensor, cond: Any, steps: list[Step], first_step: int, alpha: float, noise: Noise | None, callback: Callback | None
) -> Tensor:
    x = _scaled(x, steps[first_step].s)
    for i, step in enumerate(steps[first_step:], first_step):
        if step.noise_std > 0:
            x = _scaled(x, step.rescale) + step.noise_std * _fresh(noise, i, x)
        else:
            x = _scaled(x, step.rescale)
        denoised = _denoise(denoiser, x, step.hat, cond)
        d = _slope(x, denoised, step.hat)
        if step.probe is None:
            x = x + step.h * d
        else:
            x_probe = x + alpha * step.h * d
            d_probe = _slope(x_probe, _denoise(denoiser, x_probe, step.probe, cond), step.probe)
            x = x + step.h * ((1 - 0.5 / alpha) * d + (0.5 / alpha) * d_probe)
        if step.up > 0:
            x = x + step.up * _fresh(noise, i, x)
        if callback is not None:
            callback(i, _scaled(x, 1 / step.s_next), denoised)
    return x


def _fresh(noise: Noise | None, i: int, x: Tensor) -> Tensor:
    """Step i's noise, of the shape and dtype of x."""
    eps = noise(i) if callable(noise) else noise[i]  # type: ignore[index]
    if eps.shape != x.shape:
        raise RecipeError(f'noise of step {i} has the shape {tuple(eps.shape)}, latents {tuple(x.shape)}.', 'Give noise like the latents.')
    return eps.to(x.dtype)


def _run_multistep(denoiser: Denoiser, x: Tensor, cond: Any, solver: str, levels: list[float], first_step: int, callback: Callback | None) -> Tensor:
    multistep = Multistep(solver, levels, x.device, x.dtype)
    for i, sigma in enumerate(levels, first_step):
        denoised = denoiser(x, torch.tensor(sigma, dtype=torch.float64, device='cpu'), cond).to(x.dtype)
        x = multistep.step(x, denoised)
        if callback is not None:
            callback(i, x, denoised)
    return x


def _denoise(denoiser: Denoiser, x: Tensor, at: Point, cond: Any) -> Tensor:
    return denoiser(_scaled(x, 1 / at.s), torch.tensor(at.sigma, dtype=torch.float64, device='cpu'), cond).to(x.dtype)


def _slope(x: Tensor, denoised: Tensor, at: Point) -> Tensor:
    """dx/dt at a point, see `Point`."""
    d = at.P * (x - _scaled(denoised, at.s))
    return d + at.Q * x if at.Q else d


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else factor * x


def _check_noise(noise: Noise | None, options: dict[str, Any], latents: Tensor) -> None:
    if noise is None:
        key = 'S_churn' if options['S_churn'] > 0 else 'eta'
        raise RecipeError(f'{key} = {options[key]:g} needs noise.', 'Pass noise=SampleNoise(...).step.')
    if isinstance(noise, Tensor) and (len(noise) < options['num_steps'] or noise.shape[1:] != latents.shape):
        what = f'noise has the shape {tuple(noise.shape)}, latents {tuple(latents.shape)} and num_steps = {options["num_steps"]}.'
        raise RecipeError(what, 'Give noise like the latents for every step.')
