"""Towards rare images at no cost: a louder start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.guidance import finite_json
from synthaug_plugins.generators.minority_guidance import WEIGHT, MinorityGuidance
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.registry import GUIDANCE
from synthaug_plugins.store.plan import Request


@GUIDANCE.register_module()
class BoostAndSkip(MinorityGuidance):
    """Boost-and-Skip (Um, Kim and Ye, ICML 2025): start from louder noise, and later. Costs less than nothing: the first steps are left out.

    Noise that is too far out for its level stays far out where the steps that would have pulled it back are missing.

    Args:
        boost: by what the noise at the start is multiplied, a number or a list of which each request draws one (`minority_weight` in its params). The paper
            takes 4 on CelebA, 2.5 on ImageNet. 1 boosts nothing.
        skip: how many of the first steps are left out. The paper leaves out 3 of 250.

    Raises:
        RecipeError: an option out of range; in `check`, no step left, or a generator that starts from images.
    """

    def __init__(self, boost: Any = 4.0, skip: int = 3) -> None:
        super().__init__(boost, key='boost')
        if min(self.strengths) <= 0:
            raise RecipeError(f'BoostAndSkip: boost = {boost!r} is not positive.', 'Use 4.')
        if isinstance(skip, bool) or skip < 0:
            raise RecipeError(f'BoostAndSkip: skip = {skip!r} is no number of steps.', 'Use 3 of 250 steps.')
        self.skip = skip

    def check(self, model: DenoiserModel, use_labels: bool, classes: Sequence[str] = ()) -> None:
        """See `Guidance.check`: any model."""

    def check_sampling(self, model: DenoiserModel, grids: Sequence[Mapping[str, Any]], from_noise: bool) -> None:
        """See `Guidance.check_sampling`."""
        if not from_noise:
            raise RecipeError('BoostAndSkip changes the noise at the start, but this generator starts from images.', 'Use it with EDM.')
        for grid in grids:
            left = grid['num_steps'] - grid['first_step']
            if self.skip >= left:
                raise RecipeError(f'BoostAndSkip: skip = {self.skip} leaves nothing of {left} steps.', 'Skip fewer, or take more steps.')

    def identity(self) -> dict[str, Any]:
        """See `Guidance.identity`."""
        return {**finite_json(super().identity()), 'skip': self.skip}

    def start(self, requests: Sequence[Request]) -> tuple[list[float], int]:
        """See `Guidance.start`."""
        return [float(r.params[WEIGHT]) for r in requests], self.skip
