"""What a diffusers scheduler says about noise: which level belongs to which timestep of the model, and which it visits.

A scheduler is two things: the noise that the model was trained with, which an adapter must honour, and a solver, which this
package replaces by its own. Only the first is read here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.errors import RecipeError, nearest

_BETA_SCHEDULERS = (
    *('DDIM', 'DDPM', 'PNDM', 'EulerDiscrete', 'EulerAncestralDiscrete', 'HeunDiscrete', 'LMSDiscrete', 'KDPM2Discrete'),
    *('DPMSolverMultistep', 'DPMSolverSinglestep', 'UniPCMultistep', 'DEISMultistep', 'SASolver', 'LCM'),
)
_FLOW_SCHEDULERS = ('FlowMatchEulerDiscrete', 'FlowMatchHeunDiscrete')
_LEVELS_GIVEN = ('karras', 'exponential', 'beta', 'lu')
_KNOWN = tuple(f'{name}Scheduler' for name in (*_BETA_SCHEDULERS, *_FLOW_SCHEDULERS))


class Timesteps(ABC):
    """Noise levels of a model that counts timesteps.

    Args:
        scheduler: a diffusers scheduler.

    Attributes:
        kind: 'beta' (variance preserving: x_t = sqrt(alpha_bar) image + sqrt(1 - alpha_bar) noise) or 'flow'
            (x_t = (1 - a) image + a noise).
        sigma_min, sigma_max: noise levels of the first and the last timestep, in EDM coordinates.
    """

    kind: str
    sigma_min: float
    sigma_max: float

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.count = int(scheduler.config.num_train_timesteps)

    @abstractmethod
    def sigma_of(self, timestep: Tensor) -> Tensor:
        """The noise level of a timestep, whole or not, of any shape: float64."""

    @abstractmethod
    def timestep_of(self, sigma: Tensor, rounded: bool = False) -> Tensor:
        """The timestep of a noise level of any shape, float64; the nearest whole one if asked. Levels outside are cut to the range."""

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """x_t = c_in x: from EDM coordinates to what the model was trained on."""

    @abstractmethod
    def _levels(self, scheduler: Any) -> Tensor:
        """Noise levels from a scheduler after `set_timesteps`."""

    def sigmas_of(self, num_inference_steps: int, mu: float | None = None, shares: Sequence[float] | None = None) -> Tensor:
        """The noise levels that the scheduler visits, without a final 0.

        Where a config ends the pipeline above 0 (set_alpha_to_one=False, final_sigmas_type='sigma_min'), that level is the last
        one: a sampler takes one step more from there, to the image, where the pipeline returns the slightly noisy state.

        Args:
            num_inference_steps: as in `scheduler.set_timesteps`.
            mu: of dynamic shifting, which depends on the resolution; required by a scheduler that shifts so.
            shares: of noise at each step, before any shift, where the pipeline gives them to the scheduler (FLUX: 1, 1 - 1/n, ... 1/n).

        Returns: (n,) float64 on the CPU, falling. n is num_inference_steps, except with such a last level, for schedulers with
        extra stages (PNDM), and where two levels are equal.

        Raises:
            RecipeError: a number of steps that the scheduler cannot take, mu missing or not wanted, or levels that do not fall.
        """
        if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= self.count:
            raise RecipeError(f'num_steps = {num_inference_steps!r} is no number of steps.', f'The scheduler takes 1 to {self.count}.')
        name, dynamic = type(self._scheduler).__name__, bool(self._scheduler.config.get('use_dynamic_shifting', False))
        if dynamic != (mu is not None):
            cure = 'Pass the mu that the pipeline works out for the resolution.' if dynamic else 'Leave mu out.'
            raise RecipeError(f'{name} has use_dynamic_shifting = {dynamic} and got mu = {mu}.', cure)
        scheduler = copy.deepcopy(self._scheduler)
        given = {} if shares is None else {'sigmas': list(shares)}
        scheduler.set_timesteps(num_inference_steps, **given, **({'mu': mu} if dynamic else {}))
        # Solvers of second order list a level twice.
        sigmas = torch.unique_consecutive(self._levels(scheduler).clamp(max=self.sigma_max))
        sigmas = sigmas[:-1] if sigmas[-1] == 0 else sigmas
        if not bool((sigmas.diff() < 0).all()):
            raise RecipeError(f'The noise levels of {name} with {num_inference_steps} steps do not fall.', 'Use a scheduler that goes from noise to image.')
        return sigmas


class BetaTimesteps(Timesteps):
    """sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t), t = 0 ... T - 1, in between by interpolation.

    Interpolated is what the scheduler interpolates: sigma where it visits fractions of timesteps (timestep_spacing='linspace'),
    ln sigma where it looks up the timestep of a given level (use_karras_sigmas and the like), and ln sigma for the others, which
    visit whole timesteps only.

    alpha_bar is the scheduler's own float32 table, with which models are trained and pipelines run. A last alpha_bar of zero
    (rescale_betas_zero_snr) has no noise level; it becomes 2^-34, sigma 131072, where the clean image is 1e-5 of the noise. diffusers'
    EulerDiscreteScheduler itself puts 2^-24, sigma 4096, and that is kept.

    Args:
        scheduler: one with `alphas_cumprod`.

    Raises:
        RecipeError: the table does not fall, or the model is told ln(sigma) / 4 in place of a timestep.
    """

    kind = 'beta'

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        name, config = type(scheduler).__name__, scheduler.config
        if config.get('timestep_type', 'discrete') != 'discrete' and config.get('prediction_type') == 'v_prediction':
            raise RecipeError(f'{name} has timestep_type = {config["timestep_type"]!r}.', "Only 'discrete' is known here.")
        alpha_bar = scheduler.alphas_cumprod.to('cpu', torch.float64)
        alpha_bar = torch.where(alpha_bar > 0, alpha_bar, 2**-34)
        table = ((1 - alpha_bar) / alpha_bar).sqrt()
        if not (len(table) > 1 and table[0] > 0 and bool((table.diff() > 0).all())):
            raise RecipeError(f'The noise levels of {name} do not rise from timestep to timestep.', 'Every beta must lie between 0 and 1.')
        self._in_sigma = config.get('timestep_spacing') == 'linspace' and not any(config.get(f'use_{name}_sigmas') for name in _LEVELS_GIVEN)
        self._table = {torch.device('cpu'): table if self._in_sigma else table.log()}
        self.sigma_min, self.sigma_max = float(table[0]), float(table[-1])

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """See `Timesteps.sigma_of`."""
        table = self._on(timestep.device)
        low = timestep.floor().long().clamp(0, self.count - 2)
        w = (timestep.to(table.dtype) - low).clamp(0, 1)
        level = torch.lerp(table[low], table[low + 1], w)
        return level if self._in_sigma else level.exp()

    def timestep_of(self, sigma: Tensor, rounded: bool = False) -> Tensor:
        """See `Timesteps.timestep_of`; nearest in what is interpolated."""
        table = self._on(sigma.device)
        level = sigma.to(table.dtype)
        level = level if self._in_sigma else level.log()
        high = torch.searchsorted(table, level.contiguous()).clamp(1, self.count - 1)
        below, above = table[high - 1], table[high]
        w = ((level - below) / (above - below)).clamp(0, 1)
        return high - 1 + (w.round() if rounded else w)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(1 + sigma^2) = sqrt(alpha_bar)."""
        return (1 + sigma**2).rsqrt()

    def _levels(self, scheduler: Any) -> Tensor:
        sigmas = getattr(scheduler, 'sigmas', None)
        if sigmas is not None:
            return sigmas.to('cpu', torch.float64)
        visited = self.sigma_of(scheduler.timesteps.cpu())
        final = 0.0 if scheduler.config.get('set_alpha_to_one', True) else self.sigma_min
        return torch.cat([visited, visited.new_tensor([final])])

    def _on(self, device: torch.device) -> Tensor:
        """The table on a device, copied there once; devices without float64 get float32."""
        if device not in self._table:
            self._table[device] = self._table[torch.device('cpu')].to(device, torch.float32 if device.type == 'mps' else torch.float64)
        return self._table[device]


class FlowTimesteps(Timesteps):
    """sigma = a / (1 - a) with the timestep a T, 0 < a < 1 (rectified flow; Liu et al. 2023, Esser et al. 2024).

    Shifting moves the levels that a pipeline visits, not what a timestep means. a = 1, pure noise, has no noise level: a is cut to
    1 - 1e-6, sigma 999999. The lowest is a = 1 / T.

    Args:
        scheduler: one of flow matching.

    Raises:
        RecipeError: a scheduler that counts time from noise to image.
    """

    kind = 'flow'
    _A_MAX = 1 - 1e-6

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        if scheduler.config.get('invert_sigmas', False):
            raise RecipeError(f'{type(scheduler).__name__} has invert_sigmas = True.', 'Only flows whose time is the share of noise are known here.')
        self.sigma_min, self.sigma_max = 1 / (self.count - 1), self._A_MAX / (1 - self._A_MAX)

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """See `Timesteps.sigma_of`."""
        a = (_double(timestep) / self.count).clamp(max=self._A_MAX)
        return a / (1 - a)

    def timestep_of(self, sigma: Tensor, rounded: bool = False) -> Tensor:
        """See `Timesteps.timestep_of`; nearest in a."""
        sigma = _double(sigma).clamp(self.sigma_min, self.sigma_max)
        # Where the noise levels are cut off, the network is told all noise, as pipelines tell it: sigma_of cuts it to the same level.
        timestep = torch.where(sigma < self.sigma_max * (1 - 1e-9), self.count * (sigma / (1 + sigma)), float(self.count))
        return timestep.round() if rounded else timestep

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / (1 + sigma) = 1 - a."""
        return 1 / (1 + sigma)

    def _levels(self, scheduler: Any) -> Tensor:
        a = scheduler.sigmas.to('cpu', torch.float64).clamp(max=self._A_MAX)
        return a / (1 - a)


def read_timesteps(scheduler: Any) -> tuple[Timesteps, Mapping[str, Any]]:
    """Timesteps and noise levels of a diffusers scheduler, and its config with the defaults of its class filled in.

    Args:
        scheduler: an object, or its config with the key `_class_name` (what scheduler_config.json holds).

    Raises:
        RecipeError: the class is unknown, or is neither of the alpha_bar kind nor of flow matching.
    """
    if isinstance(scheduler, Mapping):
        import diffusers

        name = str(scheduler.get('_class_name', ''))
        if not name:
            raise RecipeError('The scheduler config has no _class_name.', f'Pass the scheduler itself, or add the key; for example {_KNOWN[0]!r}.')
        cls = getattr(diffusers, name, None) if name.endswith('Scheduler') else None
        if cls is None:
            raise RecipeError(f'diffusers has no scheduler {name!r}.', nearest(name, _KNOWN))
        scheduler = cls.from_config(dict(scheduler))
    name, config = type(scheduler).__name__, getattr(scheduler, 'config', {})
    if any(base.__name__.startswith('FlowMatch') for base in type(scheduler).__mro__) or config.get('use_flow_sigmas', False):
        return FlowTimesteps(scheduler), config
    if isinstance(getattr(scheduler, 'alphas_cumprod', None), Tensor):
        return BetaTimesteps(scheduler), config
    raise RecipeError(f'The scheduler {name} has no table of alpha_bar and is not one of flow matching.', nearest(name, _KNOWN))


def _double(values: Tensor) -> Tensor:
    """float64, float32 where the device has none."""
    return values.to(torch.float32 if values.device.type == 'mps' else torch.float64)
