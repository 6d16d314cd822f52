"""`synthaug evaluate`: how rare, true, complete and rightly labelled the images of stores are, beside real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.progress import ScoringProgress
from synthaug_plugins.errors import RecipeError, Stopped
from synthaug_plugins.evaluation.metrics.features import Clip, FeatureNetwork, feature_network
from synthaug_plugins.evaluation.metrics.frechet import check_torchmetrics
from synthaug_plugins.evaluation.metrics.held_out import RightAnswers, linear_probe
from synthaug_plugins.evaluation.metrics.labels import clip_agreement
from synthaug_plugins.evaluation.metrics.measure import Reference, Seen
from synthaug_plugins.evaluation.metrics.neighbours import check_k
from synthaug_plugins.evaluation.metrics.per_class import ClassReferences
from synthaug_plugins.evaluation.metrics.rarity import check_scikit_learn
from synthaug_plugins.evaluation.metrics.sets import ImageSet, real_set, refuse_same_files, store_sets
from synthaug_plugins.evaluation.metrics.table import HELD_OUT, REAL, Row, about, spoken, trends
from synthaug_plugins.evaluation.picture import STYLES
from synthaug_plugins.real_images import RealImages

if TYPE_CHECKING:
    from synthaug_plugins.evaluation.classifiers import Classifiers

FEW = 50
"""Sets of fewer images are warned of."""
SHOWN = 12
"""Images in a line of the report."""


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        rows: of the table: the real images, then each store and its parts.
        by: the columns that stores were split by.
        notes: what a reader must know to trust the numbers.
        network: identity of the feature network.
        real: the folder of real images.
        sets: what was measured, the real images first.
        rarest: ids of the real images with the largest AvgkNN, largest first.
        by_class: the same sets class by class.
        also: plain JSON on what else decides numbers: the CLIP that labels were asked of, the recipe of classifiers.
    """

    rows: tuple[Row, ...]
    by: tuple[str, ...]
    notes: tuple[str, ...]
    network: Mapping[str, Any]
    real: str
    sets: tuple[ImageSet, ...]
    rarest: tuple[str, ...]
    by_class: tuple[Row, ...] = ()
    also: Mapping[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """What decides every number, in a sentence."""
        return about(self.rows, self.network)

    @property
    def trends(self) -> list[str]:
        """Whether rarity grows with the columns that stores were split by, in sentences."""
        return [sentence for text in self.by for sentence in trends(self.rows, text)]

    @property
    def selections(self) -> dict[str, str]:
        """What was selected of each store, in words."""
        return {one.name: one.chosen for one in self.sets if one.chosen is not None}


def evaluate(
    stores: Sequence[str | Path],
    real: str | Path,
    features: str,
    *,
    by: Sequence[str] = (),
    where: Sequence[str | None] = (),
    k: int = 5,
    lof_k: int = 20,
    held_out: str | Path | None = None,
    per_class: bool = False,
    clip: str | None = None,
    prompts: Mapping[str, Any] | None = None,
    probe: bool = False,
    classifiers: Classifiers | None = None,
    device: str = 'auto',
    quiet: bool = False,
) -> Evaluation:
    """Measure the kept images of stores against real ones.

    Args:
        stores: folders, ten at the most.
        real: a folder of class folders, whose classes include those of the stores.
        features: the network, see `metrics.features.feature_network`.
        by: columns, `params.NAME` or expressions; a store is also measured at each value of those that vary in it.
        where: conditions, see `store.selection.select`: none, one for all stores, or one for each (None: all its images). A store may be named
            several times, with other conditions.
        k: neighbours of AvgkNN, rarity, precision, recall, density, coverage and labels.
        lof_k: neighbours of the local outlier factor.
        held_out: other real images, measured as a store is: what new real images of the same kind would have.
        per_class: also measure each class against its own real images, see `ClassReferences`.
        clip: the CLIP that labels are asked of, a text as for `features`; by default the feature network, where it is a CLIP.
        prompts: what the CLIP is told of classes, arguments of `curation.class_prompts.ClassPrompts`.
        probe: also train a linear probe on each set and test it on `held_out`.
        classifiers: also train a classifier on each set and test it on `held_out`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quiet: no progress on standard error.

    Raises:
        RecipeError: an unknown network, column or device; nothing selected; before any weights load.
        DataError: unknown classes, k larger than the number of other images, an unreadable image, or one too large for 'pixels'.
        ModelError: the network cannot be had, or gives features that are not finite.
        MissingExtra: torchmetrics or scikit-learn is not installed.
        StoreError: no store, or a damaged one.
    """
    if not 1 <= len(stores) <= len(STYLES):
        raise RecipeError(f'{len(stores)} stores cannot be compared in one picture.', f'Give 1 to {len(STYLES)}.')
    network = feature_network(features, prompts)
    asked = _asked(network, clip, prompts)
    real_images = RealImages(real)
    classes = real_images.classes
    reals = real_set(real_images, REAL)
    by = tuple(dict.fromkeys(by))
    made = store_sets(stores, _of_each(where, len(stores)), by)
    others = None
    if held_out is not None:
        others = RealImages(held_out)
        refuse_same_files(real_images, others)
    elif probe or classifiers:
        what = f'{"CAS" if classifiers else "The probe"} tests on real images that nothing was trained on or made from, and none are given.'
        raise RecipeError(what, 'Add --held-out FOLDER.')
    for neighbours in (k, lof_k):
        check_k(neighbours, len(reals.ids) - 1, f'other real images in {str(real)!r}')
    measured = [*([real_set(others, HELD_OUT)] if others else []), *made]
    for one in measured:
        one.labels(classes)  # refuses classes without real images
        check_k(k, len(one.ids) - 1, f'other images in {one.name!r}')
    check_torchmetrics()  # takes seconds, which no typing mistake should
    check_scikit_learn()
    networks = [network, *([asked] if asked and asked is not network else [])]
    for one_network in networks:
        one_network.check()
        one_network.check_classes(classes)
    trainings = classifiers.prepare(real_images, REAL, others, made) if classifiers and others else None
    torch_device = choose_device(device)
    for one_network in networks:
        one_network.setup(torch_device)
    sets = (reals, *measured)
    labels = {one.name: one.labels(classes) for one in sets}
    encoded = _encode(sets, networks, quiet)
    told = {name: clip_agreement(asked.cosines(found, classes), labels[name]) if asked else {} for name, found in encoded.items()}
    decides = (features, k, lof_k, torch_device, asked.text if asked else None)
    reference = Reference(reals.features, labels[REAL], *decides)
    rows = [Row(REAL, reference.of_itself(told[REAL]))]
    seen = {one.name: reference.see(one.features, labels[one.name], told[one.name]) for one in measured}
    for one in measured:
        rows += _rows(one, seen[one.name], reference)
    by_class, left_out = [], []
    if per_class:
        references = ClassReferences(reals.features, labels[REAL], classes, *decides)
        by_class = _by_class(references, {**reference.of_real, **told[REAL]}, labels[REAL], seen, classes)
        left_out = references.left_out
    tested: dict[str, dict[str, RightAnswers]] = {}
    if probe:
        tested['probe'] = _probes([reals, *made], measured[0], labels, len(classes))
    if trainings:
        tested['cas'] = trainings.run()
    rows, by_class = ([_with_tests(row, tested, classes) for row in some] for some in (rows, by_class))
    rarest = tuple(reals.ids[i] for i in reference.rarest(SHOWN))
    notes = (*_notes(rows, by_class, measured, reference, reals.features.shape[1], len(classes)), *left_out, *network.notes())
    varied = tuple(text for text in by if any(split.by == text for one in made for split in one.splits))
    also: dict[str, Any] = {}
    if asked:
        also['clip'] = {'text': asked.text, 'identity': dict(asked.identity()), 'prompts': dict(asked.told())}
    if trainings:
        also['classifiers'] = trainings.plain()
    return Evaluation(tuple(rows), varied, notes, dict(network.identity()), str(real), sets, rarest, tuple(by_class), also)


def _asked(network: FeatureNetwork, clip: str | None, prompts: Mapping[str, Any] | None) -> Clip | None:
    """The CLIP that labels are asked of."""
    asked = network if clip in (None, network.text) else feature_network(clip or '', prompts)
    if isinstance(asked, Clip):
        return asked
    if clip is not None:
        raise RecipeError(f'--clip {clip!r} is no CLIP.', 'Use clip:NAME (such as clip:ViT-B-16/openai), clip:FOLDER or embedded:digits_clip.')
    if prompts:
        raise RecipeError(f'{", ".join(prompts)} tells a CLIP the classes, and {network.text!r} is none.', 'Add --clip, or leave it out.')
    return None


def _encode(sets: Sequence[ImageSet], networks: Sequence[FeatureNetwork], quiet: bool) -> dict[str, np.ndarray]:
    """Have the features of all sets by the first network, and return those by the last, by name of the set."""
    progress = None if quiet else ScoringProgress(sum(len(one.ids) for one in sets))
    try:
        with progress or nullcontext():
            return {one.name: one.encode(networks, progress.looked_at if progress else lambda n: None)[-1] for one in sets}
    except KeyboardInterrupt:
        raise Stopped('Stopped: nothing was written.', 'The same command starts again.') from None


def _of_each(where: Sequence[str | None], n: int) -> list[str | None]:
    """The condition of each of n stores."""
    if len(where) not in (0, 1, n):
        raise RecipeError(f'{len(where)} conditions are given for {n} stores.', "Give one --where for all, or one for each, '' for all its images.")
    return [text or None for text in where] * (1 if len(where) == n else n) or [None] * n


def _rows(one: ImageSet, seen: Seen, reference: Reference) -> list[Row]:
    """A set as a whole, then its parts."""
    parts = [Row(one.name, reference.measure(seen, at), split.by, value) for split in one.splits for value, at in split.groups.items()]
    return [Row(one.name, reference.measure(seen)), *parts]


def _by_class(
    references: ClassReferences, of_real: Mapping[str, np.ndarray], real_labels: np.ndarray, seen: Mapping[str, Seen], classes: Sequence[str]
) -> list[Row]:
    """Lines of every class, the real images first in each."""
    found = {REAL: references.of_real(of_real, real_labels), **{name: references.measure(name, one) for name, one in seen.items()}}
    return [
        Row(name, measures[label], of_class=class_name) for label, class_name in enumerate(classes) for name, measures in found.items() if label in measures
    ]


def _probes(trained: Sequence[ImageSet], held_out: ImageSet, labels: Mapping[str, np.ndarray], classes: int) -> dict[str, RightAnswers]:
    """A linear probe on each set, the real images first."""
    origin = trained[0].features.mean(0, dtype=np.float64)
    test = held_out.features, labels[held_out.name]
    return {one.name: linear_probe(one.features, labels[one.name], *test, origin, classes) for one in trained}


def _with_tests(row: Row, tested: Mapping[str, Mapping[str, RightAnswers]], classes: Sequence[str]) -> Row:
    """A line with what classifiers that trained on its set know of the held-out images; parts of a set train none."""
    if row.by is not None:
        return row
    label = None if row.of_class is None else classes.index(row.of_class)
    of_set = {metric: found[row.name] for metric, found in tested.items() if row.name in found}
    known = {metric: one for metric, one in of_set.items() if label is None or one.images[label]}
    n = max((int(one.images.sum() if label is None else one.images[label]) for one in known.values()), default=0)
    return replace(row, measures=row.measures.with_values({metric: one.value(label) for metric, one in known.items()}, n))


def _notes(rows: Sequence[Row], by_class: Sequence[Row], made: Sequence[ImageSet], reference: Reference, width: int, classes: int) -> list[str]:
    """What a reader must know to trust the numbers, in sentences."""
    notes = []
    measured = [row for row in rows if 'fid' in row.measures.values]
    sizes = [row.measures.n for row in measured]
    if few := [row for row in (*rows, *by_class) if row.measures.n < FEW]:
        notes.append(f'Fewer than {FEW} images, so that every number is rough: {_named(few)}.')
    if small := [row for row in rows if row.measures.n <= reference.k]:
        notes.append(f'Without recall, since it needs more images than k = {reference.k}: {_named(small)}.')
    if min([*sizes, rows[0].measures.n]) <= width:
        notes.append(
            f'FID compares covariances of {width} features, which {min(sizes)} to {max(sizes)} images against {rows[0].measures.n} do not settle: '
            'compare it between lines of equally many images only. KID has no such bias.'
        )
    if max(sizes) > 1.2 * min(sizes):
        notes.append(
            f'The lines are of {min(sizes)} to {max(sizes)} images. FID, recall, coverage and Vendi depend on that number: compare lines that are alike in it.'
        )
    if out := [row for row in rows if row.measures.values['excluded'].mean > 50]:
        notes.append(f'Most images lie in no real ball, so that rarity is of a minority of them: {_named(out)}.')
    if reference.has_copies:
        notes.append(f'Some real images have {reference.lof_k} copies and more: LOF says nothing around them. Remove copies, or raise its k.')
    for one in made:
        if (held := len(set(one.class_names))) < classes:
            notes.append(f'{one.name} holds {held} of {classes} classes; recall, coverage, FID and KID are against the real images of all.')
        notes += [f'{split.without} images of {one.name} have no {spoken(split.by)}.' for split in one.splits if split.without]
    return notes


def _named(rows: Sequence[Row]) -> str:
    return '; '.join(f'{row.label} ({row.measures.n})' for row in rows[:6]) + (f' and {len(rows) - 6} more' if len(rows) > 6 else '')
