"""How near each image comes to the nearest of a set, by features in units of the data's own distances there, and by bits of a hash.

A distance means nothing by itself: ones lie closer together than sevens. So the distance d(x, y) of an image x is divided by its local scale, the mean of its
distances to its k nearest training images: l(x, y) = d(x, y) / mean_k d(x, train), the adaptive distance by which Carlini et al. (2023, Extracting
training data from diffusion models) find what a model of CIFAR-10 has memorised, with their k = 50 and without their constant factor 1/2. (Yoon et
al. 2023 divide by the second nearest's alone, which a second copy among the training images would hide.) A copy has l = 0, a new image nearly 1.

The scale is taken from training images in all comparisons, those within a store among them: a store that holds a hundred copies of one image would else be
its own scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.curation.duplicates import BITS, hamming
from synthaug_plugins.evaluation.audit.looking import Seen
from synthaug_plugins.evaluation.metrics.neighbours import TILE, nearest, points

if TYPE_CHECKING:
    from torch import Tensor

K = 50
"""Neighbours that make the local scale, as in Carlini et al.; all but one where there are fewer training images."""

_ROUNDED = 1e-5  # in units of the local scale: no two different images are so near


@dataclass(frozen=True)
class Placed:
    """`Seen`, with an origin (D,) on the device where neighbours are sought."""

    seen: Seen
    origin: Tensor

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def hashes(self) -> np.ndarray:
        """(V, n) uint64."""
        return self.seen.hashes

    def points(self, view: int, places: np.ndarray | None = None) -> Tensor:
        """All images, or some, in one view: (n, D) float64, made when asked for: all views at once would take 24 D bytes of each image."""
        import torch

        features = self.seen.features[view] if places is None else self.seen.features[view, places]
        return points(torch.from_numpy(features).to(self.origin.device), self.origin)

    def at(self, places: np.ndarray) -> Placed:
        """Some of the images."""
        return Placed(Seen(self.seen.features[:, places], self.hashes[:, places]), self.origin)


@dataclass(frozen=True)
class Nearest:
    """The nearest image of a set to each of n images, over all views. All arrays (n,).

    Attributes:
        distance: l of the nearest by features; infinite where its scale is 0 and it is none of the copies.
        place, view: which image it is, and in which view it was found (place in `VIEWS`).
        bits: that differ to the nearest by hash, 64 for none.
        bits_place, bits_view: which that is.
    """

    distance: np.ndarray
    place: np.ndarray
    view: np.ndarray
    bits: np.ndarray
    bits_place: np.ndarray
    bits_view: np.ndarray


def to_train(images: Placed, train: Placed, k: int, own: np.ndarray | None = None) -> tuple[Nearest, Tensor]:
    """The nearest training image of each image, and its local scales.

    Args:
        images: in all views.
        train: N training images, of which the first view counts.
        k: neighbours that make the scale, below N.
        own: (n,) which of the training images each image itself is; None where they are none.

    Returns: the nearest, and (V, n) scales in units of the features.
    """
    import torch

    theirs = train.points(0)
    found = [_others(images.points(view), theirs, k, own) for view in range(len(images.hashes))]
    scales = torch.stack([distances.mean(1) for distances, _ in found])
    return _merged([(distances[:, 0], places[:, 0]) for distances, places in found], scales, images, train, own), scales


def to_set(images: Placed, scales: Tensor, others: Placed, own: np.ndarray | None = None) -> Nearest:
    """The nearest of a set to each image.

    Args:
        images: in all views.
        scales: (V, n), see `to_train`.
        others: of which the first view counts.
        own: (n,) which of them each image itself is; None where they are none.
    """
    theirs = others.points(0)
    found = [_others(images.points(view), theirs, 1, own) for view in range(len(images.hashes))]
    return _merged([(distances[:, 0], places[:, 0]) for distances, places in found], scales, images, others, own)


def _others(queries: Tensor, references: Tensor, k: int, own: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """See `neighbours.nearest`; an image is not its own neighbour, in no view: a symmetric one is near to its own mirror image."""
    import torch

    if own is None:
        return nearest(queries, references, k)
    distances, places = nearest(queries, references, k + 1)
    left_out = places == torch.from_numpy(own).to(places.device)[:, None]
    left_out[~left_out.any(1), -1] = True  # it is not among its nearest: the farthest goes
    return distances[~left_out].view(-1, k), places[~left_out].view(-1, k)


def _merged(found: list[tuple[Tensor, Tensor]], scales: Tensor, images: Placed, others: Placed, own: np.ndarray | None) -> Nearest:
    """The nearest over the views."""
    import torch

    distances = scaled(torch.stack([d for d, _ in found]), scales)
    least, view = distances.min(0)
    place = torch.stack([p for _, p in found]).gather(0, view[None])[0]
    hashed = [nearest_hash(view_hashes, others.hashes[0], own) for view_hashes in images.hashes]
    bits, places = np.stack([b for b, _ in hashed]), np.stack([p for _, p in hashed])
    bits_view, each = bits.argmin(0), np.arange(bits.shape[1])
    return Nearest(least.cpu().numpy(), place.cpu().numpy(), view.cpu().numpy(), bits[bits_view, each], places[bits_view, each], bits_view)


def scaled(distances: Tensor, scales: Tensor) -> Tensor:
    """Distances over scales. Where a scale is 0, an image has k copies: these are at 0, all else is infinitely far."""
    import torch

    return torch.where(distances == 0, 0.0, distances / scales)


def nearest_hash(hashes: np.ndarray, others: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Bits to the nearest of the others, and its place: (n,) and (m,) uint64 -> two of (n,) int64.

    Args:
        own: (n,) which of the others each itself is.
    """
    bits, places = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.int64)
    step = max(1, TILE // len(others))
    for begin in range(0, len(hashes), step):
        different = hamming(hashes[begin : begin + step], others)
        rows = np.arange(len(different))
        if own is not None:
            different[rows, own[begin : begin + step]] = BITS
        places[begin : begin + step] = different.argmin(1)
        bits[begin : begin + step] = different[rows, different.argmin(1)]
    return bits, places


def without_copies(images: Placed, scales: Tensor, duplicates: np.ndarray, distance: float, bits: int) -> np.ndarray:
    """Which images stay so that no two that are copies of each other do; the first of each stays.

    Args:
        images: n images, in all views.
        scales: (V, n), see `to_train`.
        duplicates: places of those that have a copy among the others.
        distance, bits: how near a copy is at the most, as `Nearest` has them.

    Returns: (n,) bool.
    """
    import torch

    stays, all_points = np.ones(len(images), bool), images.points(0)
    backwards, step = np.sort(duplicates)[::-1], max(1, TILE // len(images))
    for begin in range(0, len(backwards), step):
        some = backwards[begin : begin + step].copy()
        near = np.zeros((len(some), len(images)), bool)
        for view, (hashes, scale) in enumerate(zip(images.hashes, scales, strict=True)):
            if distance >= 0:
                # Out of a product, which is fast: an exact copy is a little apart there.
                apart = torch.cdist(images.points(view, some), all_points, compute_mode='use_mm_for_euclid_dist')
                near |= (apart <= max(distance, _ROUNDED) * scale[some][:, None]).cpu().numpy()
            near |= hamming(hashes[some], images.hashes[0]) <= bits
        near[range(len(some)), some] = False
        for place, its in zip(some, near, strict=True):
            stays[place] = not (its & stays).any()
    return stays
