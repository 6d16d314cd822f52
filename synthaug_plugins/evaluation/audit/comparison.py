"""A store against one set of images: which are copies, of which, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.curation.duplicates import hamming
from synthaug_plugins.evaluation.audit.chance import Chance, at_least
from synthaug_plugins.evaluation.audit.looking import VIEWS
from synthaug_plugins.evaluation.audit.nearness import Nearest, Placed, scaled
from synthaug_plugins.evaluation.metrics.sets import ImageSet

if TYPE_CHECKING:
    from torch import Tensor

TRAIN, TEST, STORE, LEAK = 'train', 'test', 'store', 'leak'
KINDS = {TRAIN: 'a training image', TEST: 'a held-out image', STORE: 'another image of the store'}
"""Of what an image of the store may be a copy. A leak is a held-out image that is a copy of a training image: a fault of the split, not of the store."""
SURE = 0.05
"""The chance that a clean store is called contaminated: half of it by the nearest image, half by the number of near ones."""


@dataclass(frozen=True)
class Pair:
    """An image of the store, or a held-out one, and what it is a copy of.

    Attributes:
        kind: one of `KINDS`, or `LEAK`.
        id, class_name: of the image of the store; for a leak, of the held-out image.
        other_id, other_class_name: of what it is a copy of.
        view: how the image is turned to be the copy, one of `VIEWS`.
        by: what told: 'features' or 'hash'.
        distance: between the two in that view, in units of the local scale; 0 is an exact copy.
        bits: by which their hashes differ.
        p: the probability that a new image comes as near to any of the others by chance.
        own_source: whether the image was made from it, as the store says.
    """

    kind: str
    id: str
    class_name: str
    other_id: str
    other_class_name: str
    view: str
    by: str
    distance: float
    bits: int
    p: float
    own_source: bool


@dataclass(frozen=True)
class Comparison:
    """The store, or the held-out images, against one set.

    Attributes:
        kind: one of `KINDS`, or `LEAK`.
        others: images to which each was compared.
        distance, bits: how near a copy is at the most; below 0 where nothing is near enough.
        p: (n,) the probability that a new image comes as near by chance.
        copies: (n,) bool.
        pairs: of every copy, the least probable by chance first; two copies of each other are one pair.
        near: the nearest images that are no copies.
        expected: copies to be found by chance.
    """

    kind: str
    others: int
    distance: float
    bits: int
    p: np.ndarray
    copies: np.ndarray
    pairs: tuple[Pair, ...]
    near: tuple[Pair, ...]
    expected: float

    @property
    def found(self) -> int:
        """Images that are copies."""
        return int(self.copies.sum())

    @property
    def beyond_chance(self) -> bool:
        """Whether a clean store has such copies, or so many, with a probability of `SURE` at the most."""
        nearest = float(self.p.min()) * len(self.p)
        return self.found > 0 and (nearest <= SURE / 2 or at_least(self.found, self.expected) <= SURE / 2)


def near_enough(nearest: Nearest, chance: Chance, others: int, false_alarms: float) -> tuple[np.ndarray, float, int]:
    """Which of n images are copies of one of so many others, (n,) bool, and within which distance and bits: below 0 where none are rare enough.

    Args:
        nearest: of the others to each image.
        chance: how near new images come.
        false_alarms: share of new images that may be called copies by chance; features and hash get half of it each.
    """
    distance, bits = chance.distance_at(false_alarms / 2, others), chance.bits_at(false_alarms / 2, others)
    return (nearest.distance <= distance) | (nearest.bits <= bits), distance, bits


def compare(
    kind: str,
    store: Placed,
    scales: Tensor,
    others: Placed,
    nearest: Nearest,
    chance: Chance,
    false_alarms: float,
    images: ImageSet,
    theirs: ImageSet,
    sources: Sequence[str | None],
) -> Comparison:
    """Which images of a store are copies, and of which.

    Args:
        kind: one of `KINDS`, or `LEAK`: then the held-out images stand in place of a store.
        store: n images in all views, with their (V, n) `scales`.
        others: what they are compared with, with the `nearest` of it to each image.
        chance, false_alarms: see `near_enough`.
        images, theirs: what is known of both beside how they look.
        sources: (n) the real images that they were made from.
    """
    n = len(others) - (kind == STORE)
    copies, distance, bits = near_enough(nearest, chance, n, false_alarms)
    by_features, by_hash = nearest.distance <= distance, nearest.bits <= bits
    of_features, of_hash = chance.of_distances(nearest.distance, n), chance.of_bits(nearest.bits, n)
    # Two looks, so twice the chance.
    p, told_by_features = np.minimum(2 * np.minimum(of_features, of_hash), 1), (of_features <= of_hash) & (by_features | ~by_hash)

    def pair(i: int) -> Pair:
        told = told_by_features[i]
        at, view = (int((a if told else b)[i]) for a, b in ((nearest.place, nearest.bits_place), (nearest.view, nearest.bits_view)))
        apart = (store.points(view, np.array([i])) - others.points(0, np.array([at]))).square().sum().sqrt()
        return Pair(
            kind,
            images.ids[i],
            images.class_names[i],
            theirs.ids[at],
            theirs.class_names[at],
            VIEWS[view],
            'features' if told else 'hash',
            float(scaled(apart, scales[view, i])),
            int(hamming(store.hashes[view, [i]], others.hashes[0, [at]])[0, 0]),
            float(p[i]),
            kind == TRAIN and sources[i] == theirs.ids[at],
        )

    order = np.lexsort((nearest.distance, p))
    pairs = _once([pair(i) for i in order if copies[i]])
    near = _once([pair(i) for i in order[~copies[order]][:12]])[:6]
    return Comparison(kind, n, distance, bits, p, copies, pairs, near, false_alarms * len(p))


def _once(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Without the second of two pairs of the same images."""
    known: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        known.setdefault(frozenset((pair.id, f'{pair.kind if pair.kind != STORE else ""}{pair.other_id}')), pair)
    return tuple(known.values())
