"""The noise levels of a text-to-image pipeline: which it knows, which its own scheduler visits, and how it is sampled unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.models.families import Family

if TYPE_CHECKING:
    from torch import Tensor

    from synthaug_plugins.diffusion.adapters_timesteps import Timesteps

# Options of a sampler that say where its noise levels lie; without them it visits those of the pipeline.
_GRID = ('preset', 'sigmas', 'discretization', 'sigma_min', 'sigma_max', 'rho', 'epsilon_s', 'C_1', 'C_2', 'M')


class PipelineNoise:
    """What a `TextPipeline` says of noise, from its scheduler's config."""

    name: str
    size: tuple[int, int, int]
    family: str
    flow: bool
    default_steps: int
    _family: Family
    _network_config: dict[str, Any]
    _scheduler_config: dict[str, Any]
    _timesteps: Timesteps

    def _read_noise(self) -> Timesteps:
        from synthaug_plugins.diffusion.adapters_timesteps import read_timesteps

        try:
            return read_timesteps(self._scheduler_config)[0]
        except RecipeError as error:
            raise ModelError(f'model = {self.name!r}: {error.what}', error.cure) from error

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that it supports."""
        return self._timesteps.sigma_min, self._timesteps.sigma_max

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """See `diffusion.Denoiser.round_sigma`: any level within the range, as it is."""
        return sigma

    def visited_sigmas(self, num_steps: int) -> list[float]:
        """The noise levels that the pipeline visits in that many steps: falling, without the final 0. See `Timesteps.sigmas_of`.

        Where the pipeline returns a state at the model's lowest level (set_alpha_to_one=False, as Stable Diffusion says), that level is left
        out: the last step goes on to the image, and n steps stay n.

        Raises:
            RecipeError: a number of steps that its scheduler cannot take.
        """
        mu = self._family.mu(self._scheduler_config, self._network_config, *self.size[1:])
        shares = None
        if self.family == 'flux' and not self._scheduler_config.get('use_flow_sigmas'):
            shares = [1 - k / num_steps for k in range(num_steps)] if isinstance(num_steps, int) and num_steps > 0 else None
        sigmas = [float(s) for s in self._timesteps.sigmas_of(num_steps, mu, shares)]
        return sigmas[:-1] if len(sigmas) == num_steps + 1 and sigmas[-1] == self._timesteps.sigma_min else sigmas

    def sigma_of(self, timestep: float) -> float:
        """The noise level of a timestep, whole or not."""
        import torch

        return float(self._timesteps.sigma_of(torch.tensor(timestep, dtype=torch.float64)))

    def timestep_of(self, sigma: float) -> float:
        """The timestep of a noise level."""
        import torch

        return float(self._timesteps.timestep_of(torch.tensor(sigma, dtype=torch.float64)))

    def sampler_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `Model.sampler_options`. Unless told otherwise: the noise levels that the pipeline's own scheduler visits, by Euler's method.

        That is DDIM and Euler for Stable Diffusion, flow Euler for flows. `num_steps` without more is the pipeline's number of steps.

        Raises:
            RecipeError: an option is unknown or out of range.
        """
        from synthaug_plugins.diffusion import sampler_options

        if not isinstance(options, Mapping):
            raise RecipeError(f'The sampler options are {options!r}.', 'Write them as dict(num_steps=30, ...).')
        done = dict(options)
        if 'preset' not in options:
            done.setdefault('solver', 'euler')
            if 'sigmas' not in options:
                done.setdefault('num_steps', self.default_steps)
            if done['solver'] == 'euler' and self.flow and not {'schedule', 'scaling'} & set(options):
                done |= {'schedule': 'flow', 'scaling': 'flow'}
        if not any(key in options for key in _GRID):
            done['sigmas'] = self.visited_sigmas(done.pop('num_steps'))
        return sampler_options(done, *self.sigma_range, self.round_sigma)

    def start_scale(self, sigma: float) -> float:
        """See `Model.start_scale`: pipelines start from unit noise in the model's own coordinates, x = noise / c_in(sigma)."""
        return (1 + sigma) / sigma if self.flow else math.sqrt(1 + sigma**2) / sigma
