"""What an audit knows of each image: features and perceptual hashes, of its mirror images too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from synthaug_plugins.curation.duplicates import flipped_phashes
from synthaug_plugins.evaluation.metrics.features import FeatureNetwork
from synthaug_plugins.evaluation.metrics.sets import ImageSet

VIEWS = ('as it is', 'mirrored', 'upside down')
"""How an image is looked at. Its copy in another set is looked at as it is, so a flipped copy is found whichever of the two was flipped."""


@dataclass(frozen=True)
class Seen:
    """What is known of n images in V views.

    Attributes:
        features: (V, n, D) float32.
        hashes: (V, n) uint64, see `curation.duplicates.phash`.
    """

    features: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return self.hashes.shape[1]


def turned(image: np.ndarray, view: str) -> np.ndarray:
    """An image (H, W, 3) in one of the `VIEWS`."""
    flipped = {'as it is': image, 'mirrored': image[:, ::-1], 'upside down': image[::-1]}[view]
    return np.ascontiguousarray(flipped)


def look(images: ImageSet, network: FeatureNetwork, views: Sequence[str], done: Callable[[int], None]) -> Seen:
    """Look at every image of a set once; 4 V D bytes of each are kept.

    Args:
        network: whose weights are loaded.
        views: the first of `VIEWS`, or all.
        done: told how many more images were looked at.

    Raises:
        DataError, StoreError: an image cannot be read.
        ModelError: features that are not finite.
    """
    features, hashes = [], []
    for some in images.images():
        features.append(np.stack([images.encoded(network, [turned(image, view) for image in some]) for view in views]))
        hashes.append(np.stack([flipped_phashes(image)[: len(views)] for image in some], axis=1))
        done(len(some))
    return Seen(np.concatenate(features, axis=1), np.concatenate(hashes, axis=1))
