"""`synthaug audit`: which images of a store are copies of training images, of held-out images, or of each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthaug_plugins.curation.duplicates import hamming
from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.progress import ScoringProgress
from synthaug_plugins.errors import DataError, RecipeError, Stopped
from synthaug_plugins.evaluation.audit.chance import FEWEST, Chance, at_least
from synthaug_plugins.evaluation.audit.looking import VIEWS, look
from synthaug_plugins.evaluation.audit.nearness import K, Nearest, Placed, placed, scaled, to_set, to_train, without_copies
from synthaug_plugins.evaluation.audit.thumbnails import THUMBNAILS, audit_network
from synthaug_plugins.evaluation.metrics.neighbours import on, points
from synthaug_plugins.evaluation.metrics.sets import ImageSet, real_set, refuse_same_files, store_sets
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.store import Store

TRAIN, TEST, STORE = 'train', 'test', 'store'
KINDS = {TRAIN: 'a training image', TEST: 'a held-out image', STORE: 'another image of the store'}
"""Of what an image of the store may be a copy."""
FALSE_ALARMS = 0.005
"""Share of new images that may be called copies by chance."""
SURE = 0.05
"""The chance that a clean store is called contaminated: half of it by the nearest image, half by the number of near ones."""
MOST_MEASURED = 10_000
"""Training images from which chance is learned, evenly spaced; each is compared with all."""


@dataclass(frozen=True)
class Pair:
    """An image of the store and what it is a copy of.

    Attributes:
        kind: one of `KINDS`.
        id, class_name: of the image of the store.
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
    """The store against one set.

    Attributes:
        kind: one of `KINDS`.
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


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        images: of the store; `train`, `test` are the real ones.
        comparisons: by kind.
        memorisation: (n,) 1 - l to the nearest training image: 1 is a copy, near 0 as far from it as from the other training images around.
        stays: (n,) images that are no copy of a real image, and no copy of an earlier one that stays.
        network: identity of the feature network.
        k: neighbours that make the local scale.
        false_alarms: share of new images that may be called copies by chance.
        notes: what a reader must know to trust it.
    """

    images: ImageSet
    train: ImageSet
    test: ImageSet
    comparisons: Mapping[str, Comparison]
    memorisation: np.ndarray
    stays: np.ndarray
    network: Mapping[str, Any]
    features: str
    k: int
    false_alarms: float
    notes: tuple[str, ...]

    @property
    def contaminated(self) -> bool:
        """Whether held-out images are in the store."""
        return self.comparisons[TEST].beyond_chance

    def reason(self, i: int) -> str | None:
        """Why the image at place i does not stay."""
        for kind in (TEST, TRAIN, STORE):
            if self.comparisons[kind].copies[i] and not self.stays[i]:
                return f'copy of {KINDS[kind]}'
        return None


def audit(
    folder: str | Path,
    train: str | Path,
    test: str | Path,
    features: str = THUMBNAILS,
    *,
    where: str | None = None,
    false_alarms: float = FALSE_ALARMS,
    device: str = 'auto',
    quiet: bool = False,
) -> Audit:
    """Look for copies among the kept images of a store, by features and by perceptual hash, of mirror images too. Writes nothing.

    Args:
        folder: the store.
        train: real images that the store was made from or will be mixed with, a folder of class folders. Chance is learned from them.
        test: real images that nobody may have seen.
        features: `thumbnails`, or a network as `metrics.features.feature_network` knows it.
        where: condition, see `store.selection.select`; None for all images.
        false_alarms: the share of new images that may be called a copy by chance, in each comparison; above 0, up to 0.1. Features and hash share it.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quiet: no progress on standard error.

    Raises:
        RecipeError: an unknown network or device, a wrong condition or share; nothing selected; before any weights load.
        DataError: too few real images, one that lies in both folders, an unreadable one, or one too large for 'pixels'.
        ModelError: the network cannot be had, or gives features that are not finite.
        StoreError: no store, an unfinished or a damaged one.
        Stopped: the user stopped it.
    """
    if not 0 < false_alarms <= 0.1:
        raise RecipeError(f'--false-alarms {false_alarms:g} is no share above 0 and up to 0.1.', 'Use 0.005: one new image in 200.')
    network = audit_network(features)
    (images,) = store_sets([folder], [where], [])
    if len(images.ids) < 2:
        raise RecipeError(f'{str(folder)!r} has one such image.', 'An audit compares several.')
    train_images, test_images = RealImages(train), RealImages(test)
    refuse_same_files(train_images, test_images, '--train')
    reals, held_out = real_set(train_images, TRAIN), real_set(test_images, TEST)
    if len(reals.ids) < FEWEST:
        what = f'{str(train)!r} holds {len(reals.ids)} images, of which nobody can tell how near two different images come.'
        raise DataError(what, f'Give {FEWEST} and more training images.')
    network.check()
    torch_device = choose_device(device)
    network.setup(torch_device)
    sets = ((images, VIEWS), (reals, VIEWS), (held_out, VIEWS[:1]))
    progress = None if quiet else ScoringProgress(sum(len(one.ids) for one, _ in sets))
    try:
        with progress or nullcontext():
            made, trained, held = (look(one, network, views, progress.looked_at if progress else lambda n: None) for one, views in sets)
    except KeyboardInterrupt:
        raise Stopped('Stopped: nothing was written.', 'The same command starts again.') from None
    import torch

    origin = points(torch.from_numpy(trained.features[0])).new_tensor(trained.features[0].mean(0)).to(on(torch_device))
    store, real, unseen = (placed(one, origin, on(torch_device)) for one in (made, trained, held))
    k = min(K, len(real) - 1)
    chance = _chance(real, k)
    nearest, scales = to_train(store, real, k)
    sources = _sources(folder, images.ids)
    found = {
        TRAIN: _compared(TRAIN, store, scales, real, nearest, chance, false_alarms, images, reals, sources),
        TEST: _compared(TEST, store, scales, unseen, to_set(store, scales, unseen), chance, false_alarms, images, held_out, sources),
        STORE: _compared(STORE, store, scales, store, to_set(store, scales, store, np.arange(len(store))), chance, false_alarms, images, images, sources),
    }
    twice = found[STORE]
    stays = without_copies(store, scales, np.flatnonzero(twice.copies), twice.distance, twice.bits) & ~found[TRAIN].copies & ~found[TEST].copies
    notes = tuple(_notes(chance, found, len(reals.ids)))
    return Audit(images, reals, held_out, found, 1 - np.minimum(nearest.distance, 1), stays, dict(network.identity()), features, k, false_alarms, notes)


def _chance(real: Placed, k: int) -> Chance:
    """How near training images come to each other."""
    n = min(MOST_MEASURED, len(real))
    own = np.arange(n) * len(real) // n
    nearest, _ = to_train(real.at(own), real, k, own)
    return Chance(np.sort(nearest.distance), np.sort(nearest.bits), len(real) - 1)


def _sources(folder: str | Path, ids: Sequence[str]) -> list[str | None]:
    """The real images that images of a store were made from."""
    table = Store.open(folder).index(['id', 'source'])
    known = dict(zip(table['id'].to_pylist(), table['source'].to_pylist(), strict=True))
    return [known[i] for i in ids]


def _compared(
    kind: str,
    store: Placed,
    scales: Any,
    others: Placed,
    nearest: Nearest,
    chance: Chance,
    false_alarms: float,
    images: ImageSet,
    theirs: ImageSet,
    sources: Sequence[str | None],
) -> Comparison:
    """Which images are copies, and of which."""
    n = len(others) - (kind == STORE)
    distance, bits = chance.distance_at(false_alarms / 2, n), chance.bits_at(false_alarms / 2, n)
    by_features, by_hash = nearest.distance <= distance, nearest.bits <= bits
    of_features, of_hash = chance.of_distances(nearest.distance, n), chance.of_bits(nearest.bits, n)
    # Two looks, so twice the chance.
    p, told_by_features = np.minimum(2 * np.minimum(of_features, of_hash), 1), (of_features <= of_hash) & (by_features | ~by_hash)
    copies = by_features | by_hash

    def pair(i: int) -> Pair:
        told = told_by_features[i]
        at, view = (int((a if told else b)[i]) for a, b in ((nearest.place, nearest.bits_place), (nearest.view, nearest.bits_view)))
        apart = (store.points[view, i] - others.points[0, at]).square().sum().sqrt()
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


def _notes(chance: Chance, found: Mapping[str, Comparison], train: int) -> list[str]:
    """What a reader must know to trust the result, in sentences."""
    notes = []
    if train < 100:
        notes.append(f'With {train} training images, how near new images come by chance is known roughly.')
    twins = int(((chance.of_distances(chance.distances, chance.others) * len(chance.distances)) <= SURE / 2).sum())
    if twins:
        notes.append(f'{twins} of {len(chance.distances)} training images have a copy among the training images themselves.')
    for one in found.values():
        if one.distance < 0 and one.bits < 0:
            notes.append(f'Real images are so alike that not even an exact copy of {KINDS[one.kind]} is told from chance: raise --false-alarms.')
        elif one.bits < 0:
            notes.append(f'The hash does not tell a copy of {KINDS[one.kind]}: too many real images have nearly the same. Features alone decide.')
        elif one.distance < 0:
            notes.append(f'Features do not tell a copy of {KINDS[one.kind]}: too many real images are copies of each other. The hash alone decides.')
    return notes
