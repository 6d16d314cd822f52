"""How strongly a text-to-image pipeline is guided: one scale for all requests, one per class, or one drawn for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.store.plan import request_share

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class GuidanceScale:
    """The guidance scale of each request: one for all, one per class, or drawn from a range.

    Args:
        given: a number; a dict from class name to number; a pair [lowest, highest], from which each request draws uniformly by its
            seed; or None for the model's default.
        model: says whether it can be guided at all.

    Raises:
        RecipeError: not of this form, not finite, negative, or not 1 for a few-step model.
    """

    def __init__(self, given: Any, model: TextModel) -> None:
        self.given: Any = given
        values: list[Any] = [given]
        drawn = False
        if given is None:
            self.given, values = model.default_guidance_scale, [model.default_guidance_scale]
        elif isinstance(given, Mapping):
            self.given, values = dict(given), list(given.values())
        elif drawn := isinstance(given, list | tuple):
            self.given, values = list(given), list(given)
        wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v < math.inf]
        if wrong or not values or (drawn and (len(values) != 2 or values[0] > values[1])):
            cure = 'Give a number of 0 or more (1: no guidance), a dict from class to number, or [lowest, highest] to draw from.'
            raise RecipeError(f'guidance_scale = {given!r} is no guidance scale.', cure)
        if model.guidance == 'none' and any(v != 1 for v in values):
            cure = 'Set guidance_scale=1, which means none (what diffusers calls 0.0 for such models), or leave it out.'
            raise RecipeError(f'guidance_scale = {given!r}: {model.name!r} is a few-step model, which was distilled to run without guidance.', cure)
        self.guides = any(v != 1 for v in values)

    def check(self, classes: Sequence[str]) -> None:
        """Refuse (RecipeError) scales per class that leave out a class or name an unknown one."""
        if isinstance(self.given, dict):
            for name in self.given:
                if name not in classes:
                    raise RecipeError(f'guidance_scale names the class {name!r}, which the recipe has not.', nearest(str(name), classes))
            if missing := [name for name in classes if name not in self.given]:
                raise RecipeError(f'guidance_scale says nothing for the class {missing[0]!r} ({len(missing)} in all).', 'Give every class a number.')

    def of(self, class_name: str, seed: int) -> float:
        """The scale of a request; a drawn one has four decimals."""
        if isinstance(self.given, dict):
            return float(self.given[class_name])
        if not isinstance(self.given, list):
            return float(self.given)
        low, high = self.given
        return round(low + request_share(seed, 'guidance_scale') * (high - low), 4)


def guidance_weights(scales: Sequence[float], device: torch.device) -> float | Tensor:
    """The weights of a term of `diffusion.Guided` for guidance scales of a batch: scale - 1, one number where all are equal, else (B,) on the device."""
    import torch

    weights = torch.tensor(scales, dtype=torch.float32 if device.type == 'mps' else torch.float64) - 1
    return float(weights[0]) if len(set(scales)) == 1 else weights.to(device)
