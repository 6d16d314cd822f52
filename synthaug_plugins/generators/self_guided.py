"""Towards rare images without a classifier: away from the model's own second guess."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.guidance import GuidedBatch
from synthaug_plugins.generators.minority_guidance import MinorityGuidance
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.registry import DISTANCES, GUIDANCE
from synthaug_plugins.store.plan import purpose_seed

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.diffusion.guidance import Term


@GUIDANCE.register_module()
class SelfGuided(MinorityGuidance):
    """Self-guided minority sampling (Um and Ye, ECCV 2024): away from what the model makes of its own guess. Nothing is trained.

    At every `every`-th step the guess D(x) is noised again and denoised; x moves to where both differ more. See `diffusion.SelfGuided` for what that costs.

    Args:
        weight: a number, or a list of which each request draws one. The paper takes 0.4 on CelebA, 0.2 on ImageNet.
        every: it acts at steps 0, every, 2 every, ... of the sampler's grid. The paper takes 5, and 2 on ImageNet.
        sigma: the noise level to which the guess is noised again, in units of images in [-1, 1]. The paper takes timestep 0.8 T, sigma = 25 of the linear
            schedule, where small and simple images are lost altogether.
        distance: an entry of the distances, for example dict(type='synthaug_plugins.MSE'); LPIPS with AlexNet by default, as in the paper.
        interval: (lowest, highest) sigma at which it acts.

    Raises:
        RecipeError: an option out of range; in `check`, see the distance, or a sampler of which it would reach but one of Heun's slopes.
    """

    def __init__(
        self,
        weight: Any,
        every: int = 5,
        sigma: float = 6.5,
        distance: Mapping[str, Any] | None = None,
        interval: Sequence[float] = (0.0, math.inf),
    ) -> None:
        super().__init__(weight, interval)
        if isinstance(every, bool) or every < 1:
            raise RecipeError(f'SelfGuided: every = {every!r} is no number of steps.', 'Use 5.')
        if not 0 < sigma < math.inf:
            raise RecipeError(f'SelfGuided: sigma = {sigma!r} is no noise level.', 'Use 6.5.')
        self.every, self.sigma = every, float(sigma)
        self.distance = DISTANCES.build(dict(distance or {'type': 'synthaug_plugins.LPIPS', 'network': 'alex'}))
        self._ready: set[torch.device] = set()

    def check(self, model: DenoiserModel, use_labels: bool, classes: Sequence[str] = ()) -> None:
        """See `Guidance.check`."""
        low, high = model.sigma_range
        if not low <= self.sigma <= high:
            raise RecipeError(f'SelfGuided: sigma = {self.sigma:g}, but {model.name!r} knows noise levels from {low:g} to {high:g}.', 'Use one of these.')
        self.distance.check(model.image_size)

    def check_sampling(self, model: DenoiserModel, grids: Sequence[Mapping[str, Any]], from_noise: bool) -> None:
        """See `Guidance.check_sampling`. Heun's second slope must lie where the next step begins: else it is unguided, and half of the weight, or all, lost."""
        for grid in grids:
            if grid['solver'] == 'heun' and (grid['alpha'] != 1 or grid['S_churn'] > 0):
                key = 'alpha' if grid['alpha'] != 1 else 'S_churn'
                what = f"SelfGuided does not go with {key} = {grid[key]:g} of solver = 'heun': the second slope of a step would have no part of it."
                raise RecipeError(what, f"Leave {key} out, or use solver = 'euler'.")
            self.check_acts(list(self._levels(model, grid).values()))

    def identity(self) -> dict[str, Any]:
        """See `Guidance.identity`."""
        return {**super().identity(), 'every': self.every, 'sigma': self.sigma, 'distance': self.distance.identity()}

    def _levels(self, model: DenoiserModel, options: Mapping[str, Any]) -> dict[int, float]:
        """Step -> the noise level of its first call, for the steps at which it may act."""
        from synthaug_plugins.diffusion.steps import plan_steps

        steps = plan_steps(options, model.round_sigma)
        return {i: step.hat.sigma for i, step in enumerate(steps) if i % self.every == 0 and i >= options['first_step']}

    def term(self, batch: GuidedBatch) -> Term | None:
        """See `Guidance.term`."""
        import torch

        from synthaug_plugins.diffusion import SampleNoise
        from synthaug_plugins.diffusion import SelfGuided as SelfGuidedTerm

        device = batch.device
        weights = self.weights(batch.requests, device)
        if weights is None:
            return None
        if device not in self._ready:
            self.distance.setup(device)
            self._ready.add(device)
        # Not the noise of the sampler's own steps.
        noise = SampleNoise([purpose_seed(r.seed, 'self-guided') for r in batch.requests], batch.model.size, device)
        sigma = float(batch.model.round_sigma(torch.tensor(self.sigma, dtype=torch.float64, device='cpu')))
        return SelfGuidedTerm(weights, self.distance, noise.step, self._levels(batch.model, batch.options), sigma, interval=self.interval)
