"""A sampler's steps as host numbers, worked out before the first one runs: no step reads the device back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion.grid import noise_levels
from synthaug_plugins.diffusion.schedules import FlowSchedule, LinearSchedule, Schedule, VESchedule, VPSchedule, scale
from synthaug_plugins.errors import RecipeError


@dataclass(frozen=True)
class Point:
    """Where a slope is taken: dx/dt = P (x - s D(x/s; sigma)) + Q x, with P = sigma'/sigma and Q = s'/s (EDM, eq. 4)."""

    sigma: float
    s: float
    P: float
    Q: float


@dataclass(frozen=True)
class Step:
    """One step: churn from the noise level to `hat`, then from there to the next level.

    Attributes:
        sigma, s: noise level and scale at the beginning.
        rescale, noise_std: churn: x_hat = rescale x + noise_std eps.
        hat: the point of the first slope.
        h: t_next - t_hat; with eta t_next is below the next level by what `up` adds again.
        probe: the point of the second slope, at t_hat + alpha h; None in the last step and for Euler.
        s_next: scale at the end.
        up: standard deviation of the noise that is added at the end.
    """

    sigma: float
    s: float
    rescale: float
    noise_std: float
    hat: Point
    h: float
    probe: Point | None
    s_next: float
    up: float


def round_levels(levels: Tensor, round_sigma: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The levels that the model knows, float64 on the CPU."""
    return levels if round_sigma is None else round_sigma(levels).to('cpu', torch.float64)


def option_levels(options: Mapping[str, Any], round_sigma: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The noise levels of completed options of `sample`: (num_steps,) float64 on the CPU, falling, without the final 0."""
    if options['sigmas'] is not None:
        levels = torch.tensor(options['sigmas'], dtype=torch.float64, device='cpu')
    else:
        shape = {key: options[key] for key in ('rho', 'epsilon_s', 'C_1', 'C_2', 'M')}
        levels = noise_levels(options['discretization'], options['num_steps'], options['sigma_min'], options['sigma_max'], **shape)
    return round_levels(levels, round_sigma)


def plan_steps(options: Mapping[str, Any], round_sigma: Callable[[Tensor], Tensor] | None = None) -> list[Step]:
    """All steps of completed options of `sample`, for a model that rounds noise levels as told.

    The generalised stochastic step for any sigma(t) and s(t): gamma = min(S_churn / N, sqrt(2) - 1) where
    S_min <= sigma_i <= S_max, t_hat = sigma^-1(round((1 + gamma) sigma_i)), noise_std = sqrt(sigma_hat^2 - sigma_i^2) s_hat S_noise.

    With eta (sigma = t, s = 1) a step from sigma to sigma' goes down to sqrt(sigma'^2 - up^2) and adds noise of up^2 = eta^2 sigma'^2 (sigma^2 -
    sigma'^2) / sigma^2: DDIM's sigma_t (Song et al. 2021, arXiv 2010.02502, eq. 16) divided by sqrt(alpha_bar'), the posterior's variance for eta = 1.

    Raises:
        RecipeError: a step that cannot be taken, by its number; a churn window without noise levels.
    """
    schedule = _schedule(options)
    levels = option_levels(options, round_sigma)
    gamma_max = min(options['S_churn'] / len(levels), math.sqrt(2) - 1)
    churned = (levels >= options['S_min']) & (levels <= options['S_max'])
    if gamma_max > 0 and not churned.any():
        window = f'S_min = {options["S_min"]:g} and S_max = {options["S_max"]:g}'
        raise RecipeError(f'No noise level lies between {window}, so that S_churn has no effect.', 'Widen the window, or set S_churn = 0.')
    hats = torch.where(churned & (gamma_max > 0), round_levels(levels * (1 + gamma_max), round_sigma), levels)
    s, s_hat = scale(options['scaling'], levels)[0], scale(options['scaling'], hats)[0]
    noise_std = (hats**2 - levels**2).clamp(min=0).sqrt() * s_hat * options['S_noise']
    t_hat, t_next = schedule.time(hats), torch.cat([schedule.time(levels[1:]), levels.new_zeros(1)])
    up = options['eta'] * t_next * (1 - (t_next / levels) ** 2).clamp(min=0).sqrt() if options['eta'] else torch.zeros_like(levels)
    if options['eta']:
        t_next = (t_next**2 - up**2).clamp(min=0).sqrt()
    h = t_next - t_hat
    hat_points = _points(schedule, options['scaling'], t_hat, hats)
    probes: list[Point | None] = [None] * len(levels)
    if options['solver'] == 'heun':
        t_probe = (t_hat + options['alpha'] * h)[:-1]
        for i in (t_probe <= 0).nonzero().flatten().tolist():
            what = f'alpha = {options["alpha"]:g} takes step {i} of {len(levels)} (sigma = {float(levels[i]):g}) beyond noise level 0.'
            raise RecipeError(what, 'Use a smaller alpha, or more steps.')
        # Heun's probe is the next level itself, to the last bit.
        sigma_probe = levels[1:] if options['alpha'] == 1 else schedule.sigma(t_probe)
        probes[:-1] = _points(schedule, options['scaling'], t_probe, sigma_probe)
    ends = [*s[1:].tolist(), 1.0], up.tolist()
    columns = zip(levels.tolist(), s.tolist(), (s_hat / s).tolist(), noise_std.tolist(), hat_points, h.tolist(), probes, *ends, strict=True)
    steps = [Step(*column) for column in columns]
    for i, step in enumerate(steps):
        _check_step(i, step, options)
    return steps


def _schedule(options: Mapping[str, Any]) -> Schedule:
    schedules: dict[str, Schedule] = {'linear': LinearSchedule(), 've': VESchedule(), 'flow': FlowSchedule()}
    if options['schedule'] in schedules:
        return schedules[options['schedule']]
    return VPSchedule.through(options['sigma_min'], options['sigma_max'], options['epsilon_s'])


def _points(schedule: Schedule, scaling: str, t: Tensor, sigma: Tensor) -> list[Point]:
    derivative = schedule.derivative(t)
    s, d_ln_s = scale(scaling, sigma)
    return [Point(*values) for values in zip(*(v.tolist() for v in (sigma, s, derivative / sigma, derivative * d_ln_s)), strict=True)]


def _check_step(i: int, step: Step, options: Mapping[str, Any]) -> None:
    """Whatever the options, no step brings NaN: a schedule that does not reach a level shows here."""
    points = [step.hat] if step.probe is None else [step.hat, step.probe]
    numbers = [step.rescale, step.noise_std, step.h, *(v for p in points for v in (p.sigma, p.s, p.P, p.Q))]
    if not all(map(math.isfinite, numbers)) or step.h > 0 or any(not (p.sigma > 0 and p.P > 0) for p in points):
        asked = ', '.join(f'{key} = {options[key]!r}' for key in ('discretization', 'schedule', 'scaling', 'alpha', 'epsilon_s'))
        raise RecipeError(f'Step {i} (sigma = {step.sigma:g}) cannot be taken with {asked}.', "Use schedule = 'linear', another range of sigma, or alpha = 1.")
