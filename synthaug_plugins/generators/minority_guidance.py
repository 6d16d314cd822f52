"""What the three ways to the rare end of what a model makes have in common. They are entries of a generator's `guidance`; a recipe names one.

`minority_classifier`, `self_guided` and `boost_and_skip` hold one each. All say of a request in its params how hard it is pushed: `minority_weight`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.guidance import Guidance
from synthaug_plugins.store.plan import Part, Request, request_share

if TYPE_CHECKING:
    import torch

WEIGHT = 'minority_weight'


class MinorityGuidance(Guidance):
    """What the three have in common: a strength, or several of which each request draws one by its seed.

    Args:
        strengths: a number or a list.
        interval: see `Guidance`.
        key: what the entry calls its strength.

    Raises:
        RecipeError: an empty list, or what is no finite number.
    """

    alternative = True

    def __init__(self, strengths: Any, interval: Sequence[float] = (0.0, math.inf), key: str = 'weight') -> None:
        from synthaug_plugins.diffusion.guidance import check_strength

        name = type(self).__name__
        several = list(strengths) if isinstance(strengths, list | tuple) else [strengths]
        if not several:
            raise RecipeError(f'{name}: {key} = {strengths!r} is an empty list.', 'Give a number, or a list of numbers to draw from.')
        for strength in several:
            check_strength(name, strength, interval, key)
        self._key, self.strengths = key, [float(strength) for strength in several]
        super().__init__(self.strengths[0], interval)

    def identity(self) -> dict[str, Any]:
        """See `Guidance.identity`."""
        return {**{k: v for k, v in super().identity().items() if k != 'weight'}, self._key: self.strengths}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> dict[str, Any]:
        """See `Guidance.tell`: `minority_weight`."""
        return {WEIGHT: self.strengths[int(request_share(seed, 'minority weight') * len(self.strengths))]}

    def weights(self, requests: Sequence[Request], device: torch.device) -> float | torch.Tensor | None:
        """The strength of a batch, one number where all are equal; None where it is 0 for all."""
        import torch

        weights = [float(r.params[WEIGHT]) for r in requests]
        if not any(weights):
            return None
        # As exact as the one number: a request's weight must not depend on its batch.
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        return weights[0] if len(set(weights)) == 1 else torch.tensor(weights, dtype=dtype, device=device)

    def check_acts(self, sigmas: Sequence[float]) -> list[float]:
        """Those of the noise levels at which it might act that lie in its interval.

        Raises:
            RecipeError: none of them.
        """
        low, high = self.interval
        inside = [sigma for sigma in sigmas if low <= sigma <= high]
        if not inside:
            what = f'{type(self).__name__}: no step at which it could act has its noise level in interval = ({low:g}, {high:g}).'
            raise RecipeError(what, 'Widen the interval, or leave the entry out.')
        return inside
