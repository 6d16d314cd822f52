"""`synthaug audit`: which images of a store are copies of training images, of held-out images, or of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.progress import ScoringProgress
from synthaug_plugins.errors import DataError, RecipeError, Stopped
from synthaug_plugins.evaluation.audit.chance import FEWEST, Chance
from synthaug_plugins.evaluation.audit.comparison import KINDS, LEAK, STORE, SURE, TEST, TRAIN, Comparison, compare
from synthaug_plugins.evaluation.audit.looking import VIEWS, look
from synthaug_plugins.evaluation.audit.nearness import K, Placed, to_set, to_train, without_copies
from synthaug_plugins.evaluation.audit.thumbnails import THUMBNAILS, audit_network
from synthaug_plugins.evaluation.metrics.neighbours import on
from synthaug_plugins.evaluation.metrics.sets import ImageSet, real_set, refuse_same_files, store_sets
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.store import Store

FALSE_ALARMS = 0.005
"""Share of new images that may be called copies by chance."""
MOST_MEASURED = 10_000
"""Training images from which chance is learned, evenly spaced; each is compared with all."""
SUPPORT = 500
"""Training images with which the promise held, as a mean over images, for all data, as tools/benchmarks/bench_audit.py measured it."""
UNSUPPORTED = 4
"""How many times the promised share fewer images may raise, by the same measurement."""


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        images: of the store; `train`, `test` are the real ones.
        comparisons: by kind.
        leaks: held-out images that are copies of training images.
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
    leaks: Comparison
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
    sets = ((images, VIEWS), (reals, VIEWS), (held_out, VIEWS))
    progress = None if quiet else ScoringProgress(sum(len(one.ids) for one, _ in sets))
    try:
        with progress or nullcontext():
            made, trained, held = (look(one, network, views, progress.looked_at if progress else lambda n: None) for one, views in sets)
    except KeyboardInterrupt:
        raise Stopped('Stopped: nothing was written.', 'The same command starts again.') from None
    import torch

    origin = torch.from_numpy(trained.features[0]).double().mean(0).to(on(torch_device))
    store, real, unseen = (Placed(one, origin) for one in (made, trained, held))
    k = min(K, len(real) - 1)
    chance = learned(real, k)
    nearest, scales = to_train(store, real, k)
    sources = _sources(folder, images.ids)
    found = {
        TRAIN: compare(TRAIN, store, scales, real, nearest, chance, false_alarms, images, reals, sources),
        TEST: compare(TEST, store, scales, unseen, to_set(store, scales, unseen), chance, false_alarms, images, held_out, sources),
        STORE: compare(STORE, store, scales, store, to_set(store, scales, store, np.arange(len(store))), chance, false_alarms, images, images, sources),
    }
    to_real, their_scales = to_train(unseen, real, k)
    leaks = compare(LEAK, unseen, their_scales, real, to_real, chance, false_alarms, held_out, reals, [None] * len(unseen))
    twice = found[STORE]
    stays = without_copies(store, scales, np.flatnonzero(twice.copies), twice.distance, twice.bits) & ~found[TRAIN].copies & ~found[TEST].copies
    notes = tuple(_notes(chance, found, leaks, len(reals.ids), false_alarms))
    return Audit(images, reals, held_out, found, leaks, 1 - np.minimum(nearest.distance, 1), stays, dict(network.identity()), features, k, false_alarms, notes)


def learned(real: Placed, k: int) -> Chance:
    """How near training images come to each other. Neither the store nor held-out images count, so no copy among those moves a threshold."""
    n = min(MOST_MEASURED, len(real))
    own = np.arange(n) * len(real) // n
    nearest, _ = to_train(real.at(own), real, k, own)
    return Chance(np.sort(nearest.distance), np.sort(nearest.bits), len(real) - 1)


def _sources(folder: str | Path, ids: Sequence[str]) -> list[str | None]:
    """The real images that images of a store were made from."""
    table = Store.open(folder).index(['id', 'source'])
    known = dict(zip(table['id'].to_pylist(), table['source'].to_pylist(), strict=True))
    return [known[i] for i in ids]


def _notes(chance: Chance, found: Mapping[str, Comparison], leaks: Comparison, train: int, false_alarms: float) -> list[str]:
    """What a reader must know to trust the result, in sentences, the gravest first."""
    notes = []
    if leaks.beyond_chance:
        what = 'held-out image looks like a copy of a training image' if leaks.found == 1 else 'held-out images look like copies of training images'
        notes.append(f'The split leaks: {leaks.found} of {len(leaks.p)} {what}, and figures on them are too good. Copies of both in the store count as both.')
    if train < SUPPORT:
        what = f'{train} training images cannot support {100 * false_alarms:g} % false alarms where real images are nearly alike'
        notes.append(f'{what}: count on up to {100 * UNSUPPORTED * false_alarms:g} %, or give {SUPPORT} and more.')
    twins = int(((chance.of_distances(chance.distances, chance.others) * len(chance.distances)) <= SURE / 2).sum())
    if twins:
        notes.append(f'{twins} of {len(chance.distances)} training images have a copy among the training images themselves.')
    blind: dict[tuple[bool, bool], list[str]] = {(True, True): [], (True, False): [], (False, True): []}
    for kind, one in found.items():
        blind.get((one.distance < 0, one.bits < 0), []).append(KINDS[kind])
    for (features, bits), kinds in blind.items():
        of = ' or '.join(kinds)
        if not kinds:
            continue
        if features and bits:
            notes.append(f'Real images are so alike that not even an exact copy of {of} is told from chance: raise --false-alarms.')
        elif bits:
            notes.append(f'The hash does not tell a copy of {of}: too many real images have nearly the same. Features alone decide.')
        else:
            notes.append(f'Features do not tell a copy of {of}: too many real images are copies of each other. The hash alone decides.')
    return notes
