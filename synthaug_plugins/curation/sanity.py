"""Reject pictures that cannot teach anything: one flat colour, or next to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthaug_plugins.curation.base import Inspector, Verdicts
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.registry import INSPECTORS
from synthaug_plugins.store.plan import Request


@INSPECTORS.register_module()
class ImageSanity(Inspector):
    """Reject an image whose pixels are all equal (`constant`) or whose contrast is too low (`blank`).

    Args:
        min_std: lowest standard deviation over pixels and channels, in 8-bit grey levels (0..127.5). The default of 2
            lets every photograph pass (a foggy one has about 10) and stops safety-checker blanks and dead latents.

    Scores: `contrast_std`, that standard deviation.
    """

    def __init__(self, min_std: float = 2.0) -> None:
        if not 0 <= min_std <= 127.5:
            raise RecipeError(f'ImageSanity min_std = {min_std} is outside [0, 127.5].', 'Give grey levels of an 8-bit image.')
        self.min_std = float(min_std)

    def identity(self) -> Mapping[str, Any]:
        return {'type': 'ImageSanity', 'min_std': self.min_std}

    def inspect(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Verdicts:
        std = np.array([image.std(dtype=np.float64) for image in images])
        reasons = [None if s >= self.min_std and s > 0 else 'constant' if s == 0 else f'blank (contrast {s:.2f} below {self.min_std:g})' for s in std]
        return Verdicts(reasons, {'contrast_std': std})
