"""Real images as they are: plain oversampling, the control for whatever a generator adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthaug_plugins.generators.base import Images, Made
from synthaug_plugins.generators.source_generator import SourceGenerator
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Part, Request


@GENERATORS.register_module()
class Copies(SourceGenerator):
    """Return every real image unchanged, (H, W, 3) uint8 each. No model, no noise, no options.

    With `fill_to='largest'` the store holds what random oversampling of the smaller classes would repeat: the images of a class in turn, until it is as
    large as the largest. Trained on it in the same way as on a generator's store, a classifier shows what balance alone gives, and what is left is the
    generator's.
    """

    keeps_pixels = True
    keeps_shape = True

    def identity(self) -> Mapping[str, Any]:
        return {'type': type(self).__name__}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[None, dict[str, Any]]:
        return None, {}

    def whole_source(self, request: Request) -> bool:
        return True

    def edit(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Images | Made:
        return [np.array(image) for image in images]
