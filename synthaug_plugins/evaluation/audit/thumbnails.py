"""The features that an audit compares where no network is named: small pictures, each at its own contrast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from synthaug_plugins.evaluation.metrics.features import FeatureNetwork, feature_network

if TYPE_CHECKING:
    import torch

THUMBNAILS = 'thumbnails'


class Thumbnails(FeatureNetwork):
    """Images of any size at 16 x 16 pixels, less their mean, over their contrast.

    What copies keep when they are resized, encoded anew or made brighter, and all that images of a few pixels hold. A mean colour says little: lakes
    share it. Without a network there is nothing to fetch, and nothing that a network would overlook; what a picture shows, though, only a network sees.
    """

    size_px = 16
    floor = 0.02
    """Least contrast (standard deviation of values in [0, 1]): five grey levels, so that what JPEG adds to a flat image is not its pattern."""

    def check(self) -> None:
        pass

    def setup(self, device: torch.device) -> None:
        pass

    def identity(self) -> Mapping[str, Any]:
        return {'name': THUMBNAILS, 'size_px': self.size_px, 'floor': self.floor}

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        small = np.stack([self._small(image) for image in images]).reshape(len(images), -1).astype(np.float32) / 255
        small -= small.mean(1, keepdims=True)
        return small / (small.std(1, keepdims=True) + self.floor)

    def _small(self, image: np.ndarray) -> np.ndarray:
        # Pillow's filter widens where it shrinks, so every pixel counts.
        return np.asarray(Image.fromarray(image).resize((self.size_px, self.size_px), Image.Resampling.BICUBIC))


def audit_network(text: str) -> FeatureNetwork:
    """'thumbnails', or a network as `metrics.features.feature_network` knows it. Nothing is loaded.

    Raises:
        RecipeError: the text names none.
    """
    return Thumbnails(text) if text == THUMBNAILS else feature_network(text)
