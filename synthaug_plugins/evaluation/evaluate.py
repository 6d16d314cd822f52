"""`synthaug evaluate`: how rare, true, complete and rightly labelled the images of stores are, beside real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.progress import ScoringProgress
from synthaug_plugins.errors import MissingExtra, RecipeError, Stopped
from synthaug_plugins.evaluation.csv_text import csv_bytes
from synthaug_plugins.evaluation.fingerprint import versions
from synthaug_plugins.evaluation.gallery import data_uri
from synthaug_plugins.evaluation.metrics.features import FeatureNetwork, feature_network
from synthaug_plugins.evaluation.metrics.frechet import check_torchmetrics
from synthaug_plugins.evaluation.metrics.measure import METRICS, Reference
from synthaug_plugins.evaluation.metrics.neighbours import check_k
from synthaug_plugins.evaluation.metrics.rarity import check_scikit_learn
from synthaug_plugins.evaluation.metrics.sets import ImageSet, real_set, refuse_same_files, store_sets
from synthaug_plugins.evaluation.metrics.table import HELD_OUT, REAL, Row, about, csv_rows, metrics_of, panels, spoken, table, trends
from synthaug_plugins.evaluation.pages import write_page
from synthaug_plugins.evaluation.picture import STYLES, draw_panels
from synthaug_plugins.own_folder import alone, refuse_among_images, refuse_foreign
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.files import write_whole

CSV, JSON, REPORT, PICTURE = 'metrics.csv', 'metrics.json', 'report.html', 'curves.png'
OWN_FILES = frozenset({'.lock', CSV, JSON, REPORT, PICTURE})
"""What a folder of results may hold."""

FEW = 50
"""Sets of fewer images are warned of."""
_SHOWN = 12  # images in a line of the report
_CURVES = (
    'Bars: one standard error over the images; recall, coverage and distances of whole sets have none. Dashed: sets that the column does not vary in, and '
    'the real images; where a metric depends on the number of images, only sets alike in it.'
)


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
    """

    rows: tuple[Row, ...]
    by: tuple[str, ...]
    notes: tuple[str, ...]
    network: Mapping[str, Any]
    real: str
    sets: tuple[ImageSet, ...]
    rarest: tuple[str, ...]

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
    network = feature_network(features)
    real_images = RealImages(real)
    classes = real_images.classes
    reals = real_set(real_images, REAL)
    by = tuple(dict.fromkeys(by))
    made = store_sets(stores, _of_each(where, len(stores)), by)
    if held_out is not None:
        others = RealImages(held_out)
        refuse_same_files(real_images, others)
        made = [real_set(others, HELD_OUT), *made]
    for neighbours in (k, lof_k):
        check_k(neighbours, len(reals.ids) - 1, f'other real images in {str(real)!r}')
    for one in made:
        one.labels(classes)  # refuses classes without real images
        check_k(k, len(one.ids) - 1, f'other images in {one.name!r}')
    check_torchmetrics()  # takes seconds, which no typing mistake should
    check_scikit_learn()
    network.check()
    network.check_classes(classes)
    torch_device = choose_device(device)
    network.setup(torch_device)
    sets = (reals, *made)
    progress = None if quiet else ScoringProgress(sum(len(one.ids) for one in sets))
    try:
        with progress or nullcontext():
            for one in sets:
                one.encode(network, progress.looked_at if progress else lambda n: None)
    except KeyboardInterrupt:
        raise Stopped('Stopped: nothing was written.', 'The same command starts again.') from None
    reference = Reference(reals.features, reals.labels(classes), features, k, lof_k, torch_device)
    rows = [Row(REAL, reference.of_itself(network.zero_shot(reals.features, classes)))]
    for one in made:
        rows += _rows(one, reference, network, classes)
    rarest = tuple(reals.ids[i] for i in reference.rarest(_SHOWN))
    notes = tuple(_notes(rows, made, reference, reals.features.shape[1], len(classes)))
    varied = tuple(text for text in by if any(split.by == text for one in made for split in one.splits))
    return Evaluation(tuple(rows), varied, notes, dict(network.identity()), str(real), sets, rarest)


def _of_each(where: Sequence[str | None], n: int) -> list[str | None]:
    """The condition of each of n stores."""
    if len(where) not in (0, 1, n):
        raise RecipeError(f'{len(where)} conditions are given for {n} stores.', "Give one --where for all, or one for each, '' for all its images.")
    return [text or None for text in where] * (1 if len(where) == n else n) or [None] * n


def _rows(one: ImageSet, reference: Reference, network: FeatureNetwork, classes: Sequence[str]) -> list[Row]:
    """A set as a whole, then its parts."""
    seen = reference.see(one.features, one.labels(classes), network.zero_shot(one.features, classes))
    parts = [Row(one.name, reference.measure(seen, at), split.by, value) for split in one.splits for value, at in split.groups.items()]
    return [Row(one.name, reference.measure(seen)), *parts]


def _notes(rows: Sequence[Row], made: Sequence[ImageSet], reference: Reference, width: int, classes: int) -> list[str]:
    """What a reader must know to trust the numbers, in sentences."""
    notes = []
    measured = [row for row in rows if 'fid' in row.measures.values]
    sizes = [row.measures.n for row in measured]
    if few := [row for row in rows if row.measures.n < FEW]:
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
            f'The lines are of {min(sizes)} to {max(sizes)} images. FID, recall and coverage depend on that number: compare lines that are alike in it.'
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


def check_out(out: str | Path, *real: str | Path) -> None:
    """Refuse a folder for results before anything is measured.

    Args:
        real: folders of real images.

    Raises:
        RecipeError: it holds something else, or lies among the real images, where it would become a class.
    """
    refuse_among_images(out, *real)
    refuse_foreign(Path(out), OWN_FILES, 'folder of measurements')


def write_evaluation(found: Evaluation, out: str | Path, command: str, progress: Callable[[str], None] = print) -> None:
    """Write metrics.csv, metrics.json, report.html and, where something varies and matplotlib is installed, curves.png. Old ones are replaced.

    Args:
        out: a folder, new, empty or of an earlier evaluation.
        command: shell command that makes it again.
        progress: is told if there is no picture.

    Raises:
        RecipeError: see `check_out`; another evaluation writes into the folder.
        DataError, StoreError: an image to show is gone; disk full, no permission.
    """
    folder = Path(out)
    check_out(folder, found.real)
    used = {**versions(), **{name: metadata.version(name) for name in ('torchmetrics', 'scikit-learn')}}
    curves = [(text, panels(found.rows, text)) for text in found.by]
    with alone(folder, 'evaluation'):
        write_whole(folder / CSV, csv_bytes(csv_rows(found.rows)))
        write_whole(folder / JSON, (json.dumps(_plain(found, command, used), indent=1) + '\n').encode())
        write_page(
            folder / REPORT,
            'evaluation.html.j2',
            title=_title(found),
            about=found.about,
            notes=found.notes,
            table=table(found.rows),
            about_table='± is one standard error over the images. Each real image of the first line is measured against all others, itself left out.',
            curves=[{'axis': spoken(text), 'panels': drawn, 'trends': trends(found.rows, text)} for text, drawn in curves],
            about_curves=_CURVES,
            sheets=list(_sheets(found)),
            pixelated=max(found.sets[0].pixels(found.sets[0].ids[0]).shape[:2]) <= 64,
            selections=found.selections,
            metrics=[METRICS[name] for name in metrics_of(found.rows)],
            command=command,
            versions=used,
        )
        (folder / PICTURE).unlink(missing_ok=True)
        if curves:
            try:
                draw_panels(folder / PICTURE, [panel for _, drawn in curves for panel in drawn], _title(found), None, f'{found.about} {_CURVES}')
            except MissingExtra as error:
                progress(f'{PICTURE} is not drawn, the report has the same curves. {error.what} {error.cure}')


def _title(found: Evaluation) -> str:
    stores = dict.fromkeys(one.store for one in found.sets if one.store is not None)
    return f'{", ".join(stores)} beside {Path(found.real).expanduser().resolve().name}'


def _plain(found: Evaluation, command: str, used: Mapping[str, str]) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        'format_version': 1,
        'features': {'text': found.rows[0].measures.features, 'identity': dict(found.network)},
        'real': {'folder': found.real, 'images': found.rows[0].measures.n},
        'sets': [{'name': one.name, 'images': len(one.ids), 'selection': one.chosen} for one in found.sets],
        'rows': [{'set': row.name, 'by': row.by, 'value': row.value, **row.measures.plain()} for row in found.rows],
        'trends': found.trends,
        'notes': list(found.notes),
        'command': command,
        'versions': dict(used),
    }


def _sheets(found: Evaluation) -> list[dict[str, Any]]:
    """Some images of every line: real ones, the rarest of these, and those of each store or of its parts."""
    sheets = []

    def add(name: str, one: ImageSet, ids: Sequence[str], n: int) -> None:
        sheets.append({'name': name, 'n': n, 'images': [data_uri(Image.fromarray(one.pixels(i))) for i in ids]})

    real = found.sets[0]
    add('real', real, _spaced(real.ids), len(real.ids))
    add('real, the rarest', real, found.rarest, len(found.rarest))
    for one in found.sets[1:]:
        if not one.splits:
            add(one.name, one, _spaced(one.ids), len(one.ids))
        for split in one.splits:
            for value, at in split.groups.items():
                label = Row(one.name, found.rows[0].measures, split.by, value).label
                add(label, one, _spaced([one.ids[i] for i in at]), len(at))
    return sheets


def _spaced(ids: Sequence[str]) -> list[str]:
    """A few of them, evenly spaced."""
    n = min(_SHOWN, len(ids))
    return [ids[i * len(ids) // n] for i in range(n)]
