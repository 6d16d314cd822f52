"""Noise levels that a sampler visits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synthaug_plugins.diffusion.schedules import VPSchedule, iddpm_table
from synthaug_plugins.errors import RecipeError

DISCRETIZATIONS = ('edm', 'vp', 've', 'iddpm')


def edm_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's noise levels from sigma_max down to sigma_min, then 0 (EDM, eq. 5 and Table 1).

    sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i < N; sigma_N = 0. The larger rho,
    the more steps lie at low noise; 5 to 10 works. With one step the formula is 0/0; that step starts at sigma_max.

    Returns: (num_steps + 1,) float64 on the CPU.
    """
    sigmas = noise_levels('edm', num_steps, sigma_min, sigma_max, rho=rho)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def noise_levels(
    discretization: str,
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    *,
    rho: float = 7.0,
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
) -> Tensor:
    """Noise levels of a discretization, falling, without the final 0 (EDM, Table 1, "Time steps").

    'edm': see `edm_sigmas`. 'vp': equal steps of t from 1 to epsilon_s in the `VPSchedule` through both ends of the range.
    've': equal ratios. 'iddpm': equal steps, rounded half to even, through those entries of `iddpm_table` that lie in the range.
    A single step starts at the highest level.

    Returns: (num_steps,) float64 on the CPU.

    Raises:
        RecipeError: 'iddpm' has fewer entries in the range than steps; 'vp' would have to rise and fall.
    """
    share = torch.arange(num_steps, dtype=torch.float64, device='cpu') / max(num_steps - 1, 1)
    if discretization == 'vp':
        vp = VPSchedule.through(sigma_min, sigma_max, epsilon_s)
        if not vp.beta_min + vp.beta_d > 0:
            what = f'No VP schedule rises from sigma_min = {sigma_min:g} at epsilon_s = {epsilon_s:g} to sigma_max = {sigma_max:g}.'
            raise RecipeError(what, "Use a larger epsilon_s, or discretization = 'edm'.")
        return vp.sigma(1 + share * (epsilon_s - 1))
    if discretization == 've':
        return sigma_max * (share * math.log(sigma_min / sigma_max)).exp()
    if discretization == 'iddpm':
        table = iddpm_table(M, C_1, C_2)
        table = table[(table >= sigma_min) & (table <= sigma_max)]
        if len(table) < num_steps:
            what = f'num_steps = {num_steps}, but the model has {len(table)} noise levels between sigma_min = {sigma_min:g} and sigma_max = {sigma_max:g}.'
            raise RecipeError(what, 'Use fewer steps, a wider range or a larger M.')
        return table[(share * (len(table) - 1)).round().long()]
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + share * (low - high)) ** rho


def sigma_range(
    supported_min: float,
    supported_max: float,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    discretization: str = 'edm',
    epsilon_s: float = 1e-3,
) -> tuple[float, float]:
    """The (lowest, highest) noise level of a run, cut to what the model supports.

    Unless told otherwise 0.002 to 80 for 'edm', 0.002 to 81 for 'iddpm' (so that it starts at u_8 = 80.2), 0.02 to 100 for
    've', sigma(epsilon_s) to sigma(1) of the `VPSchedule` for 'vp'.

    Raises:
        RecipeError: the range that was given is empty, not positive, or has no part in what the model supports.
    """
    for name, value in (('sigma_min', sigma_min), ('sigma_max', sigma_max)):
        if value is not None and not 0 < value < math.inf:
            raise RecipeError(f'{name} = {value:g} is not a positive number.', 'They must fulfil 0 < sigma_min < sigma_max.')
    if sigma_min is not None and sigma_min >= supported_max:
        raise RecipeError(f'sigma_min = {sigma_min:g} is above all that the model supports.', f'Its highest noise level is {supported_max:g}.')
    if sigma_max is not None and sigma_max <= supported_min:
        raise RecipeError(f'sigma_max = {sigma_max:g} is below all that the model supports.', f'Its lowest noise level is {supported_min:g}.')
    defaults = {'edm': (0.002, 80.0), 'iddpm': (0.002, 81.0), 've': (0.02, 100.0)}
    if discretization == 'vp':
        low, high = VPSchedule().sigma(torch.tensor([epsilon_s, 1.0], dtype=torch.float64, device='cpu')).tolist()
    else:
        low, high = defaults[discretization]
    low, high = max(low if sigma_min is None else sigma_min, supported_min), min(high if sigma_max is None else sigma_max, supported_max)
    if not 0 < low < high < math.inf:
        raise RecipeError(f'sigma_min = {low:g} and sigma_max = {high:g} do not make a range.', 'They must fulfil 0 < sigma_min < sigma_max.')
    return low, high
