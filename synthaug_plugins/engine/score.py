"""Inspectors on a finished store: score columns and verdicts beside images that stay as they are. No generator, no GPU needed."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from synthaug_plugins import __version__
from synthaug_plugins.curation.base import Inspector
from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.judge import Verdict, judge
from synthaug_plugins.engine.progress import ScoringProgress
from synthaug_plugins.engine.recipe import read_recipe
from synthaug_plugins.errors import RecipeError, Stopped, StoreError, nearest
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import INSPECTORS, build_strict
from synthaug_plugins.store.plan import Request
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.reasons import group_reasons
from synthaug_plugins.store.scores import scores_path
from synthaug_plugins.store.shard import KEPT
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import score_columns

KEYS = {
    'inspectors': "registry entries that look at every image, [dict(type='synthaug_plugins.ClipFilter', ...)]",
    'data': 'folder of real images, one folder per class, for inspectors that compare with them; --data sets it',
    'batch_size': 'images per call of an inspector',
}
DEFAULTS: dict[str, Any] = {'data': None, 'batch_size': 64}
_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
_AHEAD = 2  # batches that are read while one is looked at


@dataclass
class ClassScores:
    """What became of one class.

    Attributes:
        kept, rejected: images.
        reasons: rejected images by kind of reason.
        means: mean of every score column of numbers that are no labels; NaN where no image has one.
    """

    kept: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """A finished scoring.

    Attributes:
        name: of the scores.
        columns: the new columns of the store's index.
        per_class: by class name, classes without images included.
    """

    name: str
    columns: tuple[str, ...]
    per_class: Mapping[str, ClassScores]

    @property
    def select(self) -> str:
        """The condition that takes the images that were kept."""
        return f'{self.name}_kept'

    def table(self) -> str:
        """Counts and means per class, as plain text."""
        means = list(dict.fromkeys(name for one in self.per_class.values() for name in one.means))
        lines = [['class', 'kept', 'rejected', *(f'mean {name}' for name in means), 'why']]
        for name, one in self.per_class.items():
            values = [f'{one.means[m]:.4g}' if m in one.means else '-' for m in means]
            lines.append([name, str(one.kept), str(one.rejected), *values, ', '.join(f'{n} {why}' for why, n in one.reasons.items())])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        cells = [[cell.rjust(w) if 0 < i < len(line) - 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))] for line in lines]
        return '\n'.join('  '.join(line).rstrip() for line in cells)


def load_score_recipe(path: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A score recipe (an MMEngine config with `inspectors = [...]`), complete and checked as far as that needs no other file.

    Raises:
        RecipeError: it cannot be read, is a recipe of another kind, or holds an unknown key or a wrong value.
    """
    recipe = read_recipe(path, options)
    for key in recipe:
        if key not in KEYS:
            if key in ('generator', 'train_dataloader', 'arms'):
                raise RecipeError(f'{path!r} is no score recipe: it has {key}.', 'Write its inspectors into a file of their own: inspectors = [...].')
            raise RecipeError(f'The score recipe has an unknown key {key!r}.', nearest(key, KEYS))
    done = {**DEFAULTS, **recipe}
    if not isinstance(done.get('inspectors'), list | tuple) or not done['inspectors']:
        raise RecipeError(f'inspectors = {done.get("inspectors")!r} names none.', "Write inspectors = [dict(type='synthaug_plugins.ClipFilter')].")
    size = done['batch_size']
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise RecipeError(f'batch_size = {size!r} is out of range.', 'Use a whole number of at least 1.')
    if done['data'] is not None and not isinstance(done['data'], str):
        raise RecipeError(f'data = {done["data"]!r} is not a folder name.', "Write data='my/images'.")
    return done


def score(
    folder: str | Path,
    recipe: Mapping[str, Any],
    name: str,
    device: str = 'auto',
    *,
    prefix: str = '',
    rejected: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Scored:
    """Show every image of a finished store to inspectors, in the order of the ids, as if it were one block.

    Writes `scores/<name>.parquet`: the inspectors' score columns, `<name>_kept` (bool) and `<name>_reason`, whole or not at
    all. Inspectors see the pixels of the stored files, which a lossy format has changed a little since they were made.

    Args:
        folder: the store.
        recipe: as `load_score_recipe` returns it.
        name: of the scores: letters, digits, underscores.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        prefix: put before the names of the score columns, where the store has columns of these names already.
        rejected: look at rejected images too, where the store holds them.
        overwrite: replace scores of that name.
        quiet: no progress on standard error.

    Raises:
        RecipeError, ModelError, DataError: what cannot work; before any weights load as far as that can be known.
        StoreError: not a store, not finished, no images, scores of that name, columns that it has already, or being written by another process.
        Stopped: the user stopped it; nothing was written.
    """
    store = Store.open(folder)
    for what, text in (('name', name), ('prefix', prefix or 'x')):
        if not _NAME.fullmatch(text):
            raise RecipeError(f'The {what} of the scores, {text!r}, cannot begin the name of a column.', 'Use letters, digits and underscores: --name clip.')
    _check_store(store, name, overwrite)
    inspectors = tuple(build_strict(i, INSPECTORS) for i in recipe['inspectors'])
    real_images = _real_images(recipe, inspectors, store)
    for inspector in inspectors:
        inspector.check(store.classes, real_images)
    torch_device = choose_device(device)
    made_by = {'synthaug_plugins': __version__, 'inspectors': [dict(i.identity()) for i in inspectors]}
    if real_images and any(i.needs_real_images for i in inspectors):
        made_by['data_sha256'] = real_images.content_hash()
    with store.lock():  # nobody may make blocks again meanwhile
        _check_store(store, name, overwrite)  # again: hashing models takes a while, and somebody may have been here
        store.clean_partials()
        rows = _rows(store, rejected)
        for inspector in inspectors:
            inspector.setup(torch_device, store.classes, real_images)
            inspector.begin_block()
        taken = {column.lower() for column in store.score_column_names(besides=name)}
        try:
            verdicts = _verdicts(store, rows, inspectors, recipe['batch_size'], lambda first: _check_columns(first, name, prefix, taken), quiet)
        except KeyboardInterrupt:
            raise Stopped('Stopped: no scores were written.', 'The same command starts again.') from None
        columns = score_columns([{prefix + column: value for column, value in verdict.scores.items()} for verdict in verdicts])
        columns[f'{name}_kept'] = pa.array([verdict.reason is None for verdict in verdicts], pa.bool_())
        columns[f'{name}_reason'] = pa.array([verdict.reason for verdict in verdicts], pa.string())
        store.add_scores(name, pa.table({'id': [row['id'] for row in rows], **columns}), json.loads(json.dumps(made_by)))
    return Scored(name, tuple(columns), _per_class(store.classes, rows, verdicts, prefix))


def _check_store(store: Store, name: str, overwrite: bool) -> None:
    """Refuse (StoreError) a store that has scores of that name, or is not finished."""
    folder = str(store.folder)
    if scores_path(store.folder, name).exists() and not overwrite:
        raise StoreError(f'The store {folder!r} has scores {name!r} already.', 'Give another name with --name, or replace them with --overwrite.')
    if missing := store.unfinished():
        raise StoreError(f'The store {folder!r} is not finished: {len(missing)} blocks are missing.', 'Finish it with synthaug generate first.')


def _real_images(recipe: Mapping[str, Any], inspectors: Sequence[Inspector], store: Store) -> RealImages | None:
    for inspector in inspectors:
        if inspector.needs_real_images and not recipe['data']:
            raise RecipeError(f'{type(inspector).__name__} compares with real images, but none are named.', 'Add --data FOLDER with one folder per class.')
    if not recipe['data']:
        return None
    real_images = RealImages(recipe['data'])
    if set(real_images.classes) != set(store.classes):
        store.check_classes(real_images.classes)  # says which names differ; their order in the folder does not matter here
    return real_images


def _rows(store: Store, rejected: bool) -> list[dict[str, Any]]:
    table = store.index()
    usable = pc.is_valid(table['offset'])
    if not rejected:
        usable = pc.and_(usable, pc.equal(table['verdict'], KEPT))
    columns = ['id', 'label', 'source', 'prompt', 'seed', 'params', 'shard', 'offset', 'size', 'sha256']
    rows = table.select(columns).filter(usable).sort_by('id').to_pylist()
    if not rows:
        raise StoreError(f'The store {str(store.folder)!r} has no image to score.', 'Generate some, or look at rejected ones with --rejected.')
    return rows


def _verdicts(
    store: Store, rows: Sequence[dict[str, Any]], inspectors: Sequence[Inspector], size: int, check: Callable[[Verdict], None], quiet: bool
) -> list[Verdict]:
    verdicts: list[Verdict] = []
    progress = None if quiet else ScoringProgress(len(rows))
    with progress or nullcontext():
        for requests, images in _read(store, rows, size):
            judged = judge(inspectors, requests, images)
            if not verdicts:
                check(judged[0])
            verdicts += judged
            if progress:
                progress.looked_at(len(images))
    return verdicts


def _check_columns(first: Verdict, name: str, prefix: str, taken: set[str]) -> None:
    """Refuse columns that the store has, after the first batch and not after the last."""
    columns = [*(prefix + column for column in first.scores), f'{name}_kept', f'{name}_reason']
    for column in columns:
        if column.lower() in taken or columns.count(column) > 1:
            raise StoreError(f'The store has a column {column!r} already.', 'Give the new ones other names: --prefix second_ --name second.')


def _read(store: Store, rows: Sequence[dict[str, Any]], size: int) -> Iterator[tuple[list[Request], list[np.ndarray]]]:
    """Batches of requests and (H, W, 3) uint8 pixels; the next ones are read meanwhile."""
    reader = StoreReader(store.folder)

    def pixels(row: dict[str, Any]) -> np.ndarray:
        with Image.open(BytesIO(reader.read_image(row))) as image:
            return np.asarray(image.convert('RGB'))

    waiting: deque[tuple[list[Request], list[Future[np.ndarray]]]] = deque()
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            waiting.append(([_request(store, row) for row in part], [pool.submit(pixels, row) for row in part]))
            if len(waiting) > _AHEAD:
                requests, futures = waiting.popleft()
                yield requests, [future.result() for future in futures]
        for requests, futures in waiting:
            yield requests, [future.result() for future in futures]


def _request(store: Store, row: Mapping[str, Any]) -> Request:
    own = {key: row[key] for key in ('id', 'label', 'seed', 'source', 'prompt')}
    return Request(class_name=store.classes[row['label']], params=json.loads(row['params']), **own)


def _per_class(classes: Sequence[str], rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict], prefix: str) -> dict[str, ClassScores]:
    found = {name: ClassScores() for name in classes}
    reasons: dict[str, Counter[str]] = {name: Counter() for name in classes}
    values: dict[str, dict[str, list[float]]] = {name: {} for name in classes}
    for row, verdict in zip(rows, verdicts, strict=True):
        name = classes[row['label']]
        if verdict.reason is None:
            found[name].kept += 1
        else:
            found[name].rejected += 1
            reasons[name][verdict.reason] += 1
        for column, value in verdict.scores.items():
            if not isinstance(value, np.ndarray) and not column.endswith('argmax'):  # the mean of labels says nothing
                values[name].setdefault(prefix + column, []).append(value)
    for name, one in found.items():
        one.reasons = group_reasons(reasons[name])
        for column, numbers in values[name].items():
            finite = [n for n in numbers if not math.isnan(n)]
            one.means[column] = sum(finite) / len(finite) if finite else math.nan
    return found
