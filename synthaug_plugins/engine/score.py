"""Inspectors on a finished store: score columns and verdicts beside images that stay as they are. No generator, no GPU needed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins import __version__
from synthaug_plugins.curation.base import Inspector
from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.progress import say_to_user
from synthaug_plugins.engine.recipe import read_recipe
from synthaug_plugins.engine.recipe_checks import check_texts
from synthaug_plugins.engine.score_run import Columns, ScoreParts, Shown, show
from synthaug_plugins.engine.scored import Scored, scored
from synthaug_plugins.errors import RecipeError, StoreError, nearest
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import INSPECTORS, build_strict
from synthaug_plugins.store.encode import decode
from synthaug_plugins.store.index import STORED, sorted_by_id
from synthaug_plugins.store.place import Place
from synthaug_plugins.store.plan import Request
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.rows import params_of
from synthaug_plugins.store.scores import scores_name
from synthaug_plugins.store.shard import KEPT
from synthaug_plugins.store.store import Store

if TYPE_CHECKING:
    import torch

KEYS = {
    'inspectors': "registry entries that look at every image, [dict(type='synthaug_plugins.ClipFilter', ...)]",
    'data': 'folder of real images, one folder per class, for inspectors that compare with them; --data sets it',
    'batch_size': 'images per call of an inspector',
}
DEFAULTS: dict[str, Any] = {'data': None, 'batch_size': 64}
_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')


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
    check_texts(done, 'data')
    return done


def check_columns(columns: Columns) -> None:
    """Refuse (RecipeError) a name or prefix that cannot begin the name of a column."""
    for what, text in (('name', columns.name), ('prefix', columns.prefix or 'x')):
        if not _NAME.fullmatch(text):
            raise RecipeError(f'The {what} of the scores, {text!r}, cannot begin the name of a column.', 'Use letters, digits and underscores: --name clip.')


def build_inspectors(recipe: Mapping[str, Any]) -> tuple[Inspector, ...]:
    """The inspectors of a score recipe.

    Raises:
        RecipeError: an entry that is unknown or wrong, or one that compares with real images where the recipe names none.
    """
    inspectors = tuple(build_strict(i, INSPECTORS) for i in recipe['inspectors'])
    for inspector in inspectors:
        if inspector.needs_real_images and not recipe['data']:
            raise RecipeError(f'{type(inspector).__name__} compares with real images, but none are named.', 'Add --data FOLDER with one folder per class.')
    return inspectors


def inspected_by(inspectors: Sequence[Inspector], real_images: RealImages | None) -> dict[str, Any]:
    """Plain JSON that says what made scores, as a scores file keeps it. real_images: of the recipe's `data`."""
    made_by: dict[str, Any] = {'synthaug_plugins': __version__, 'inspectors': [dict(i.identity()) for i in inspectors]}
    if real_images and any(i.needs_real_images for i in inspectors):
        made_by['data_sha256'] = real_images.content_hash()
    return json.loads(json.dumps(made_by))


def score_parts(
    place: Place,
    file: str,
    columns: Columns,
    recipe: Mapping[str, Any],
    inspectors: Sequence[Inspector],
    made_by: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> ScoreParts:
    """The parts of a scoring, those of an earlier run of equal recipe, models, images and kind of device among them.

    Args:
        place, file: where the scores are to be.
        rows: of all images in order; all that they hold must be equal.
    """
    told = hashlib.sha256()
    for row in rows:
        told.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    decides = {
        **made_by,
        'rows_sha256': told.hexdigest(),
        'name': columns.name,
        'prefix': columns.prefix,
        'batch_size': recipe['batch_size'],
        'device': device.type,
    }
    # An inspector that compares with earlier images would have forgotten them.
    return ScoreParts(place, file, columns, decides, [row['id'] for row in rows], not any(i.remembers for i in inspectors))


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

    A run that was killed goes on: what it scored, up to a minute before its end, lies in a hidden folder in `scores`, for a run of equal recipe, models,
    images and kind of device. With an inspector that compares with earlier images all starts again.

    Args:
        folder: the store.
        recipe: as `load_score_recipe` returns it.
        name: of the scores: letters, digits, underscores.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        prefix: put before the names of the score columns, where the store has columns of these names already.
        rejected: look at rejected images too, where the store holds them.
        overwrite: replace scores of that name.
        quiet: no progress on standard error.

    Returns: counts, reasons and means by class.

    Raises:
        RecipeError, ModelError, DataError: what cannot work; before any weights load as far as that can be known.
        StoreError: not a store, not finished, no images, scores of that name, columns that it has already, or being written by another process.
        Stopped: the user stopped it; no scores file was written.
    """
    store = Store.open(folder)
    columns = Columns(name, prefix)
    check_columns(columns)
    _check_store(store, name, overwrite)
    inspectors = build_inspectors(recipe)
    real_images = _real_images(recipe, store)
    for inspector in inspectors:
        inspector.check(store.classes, real_images)
    torch_device = choose_device(device)
    made_by = inspected_by(inspectors, real_images)
    with store.lock('score', say_to_user(quiet)):  # nobody may make blocks again meanwhile
        _check_store(store, name, overwrite)  # again: hashing models takes a while, and somebody may have been here
        store.clean_partials()
        rows = _rows(store, rejected)
        for inspector in inspectors:
            inspector.setup(torch_device, store.classes, real_images)
        taken = {column.lower() for column in store.score_column_names(besides=name)}

        def check(names: Sequence[str]) -> None:
            for column in names:
                if column.lower() in taken or names.count(column) > 1:
                    cure = 'Give the new ones other names: --prefix second_ --name second.'
                    raise StoreError(f'The store has a column {column!r} already.', cure)

        parts = score_parts(store.place, scores_name(name), columns, recipe, inspectors, made_by, rows, torch_device)
        table = show(_shown(store, rows), inspectors, recipe['batch_size'], parts, check, quiet)
        store.add_scores(name, table, made_by)
        parts.remove()
    return scored(columns, store.classes, [row['label'] for row in rows], table)


def _check_store(store: Store, name: str, overwrite: bool) -> None:
    """Refuse (StoreError) a store that has scores of that name, or is not finished."""
    folder = str(store.folder)
    if store.place.exists(scores_name(name)) and not overwrite:
        raise StoreError(f'The store {folder!r} has scores {name!r} already.', 'Give another name with --name, or replace them with --overwrite.')
    if missing := store.unfinished():
        raise StoreError(f'The store {folder!r} is not finished: {len(missing)} blocks are missing.', 'Finish it with synthaug generate first.')


def _real_images(recipe: Mapping[str, Any], store: Store) -> RealImages | None:
    if not recipe['data']:
        return None
    real_images = RealImages(recipe['data'])
    if set(real_images.classes) != set(store.classes):
        store.check_classes(real_images.classes)  # says which names differ; their order in the folder does not matter here
    return real_images


def _rows(store: Store, rejected: bool) -> list[dict[str, Any]]:
    columns = ['id', 'label', 'source', 'prompt', 'seed', 'params', 'shard', 'offset', 'size', 'sha256']
    rows = sorted_by_id(store.index(columns, STORED if rejected else KEPT)).to_pylist()
    if not rows:
        raise StoreError(f'The store {str(store.folder)!r} has no image to score.', 'Generate some, or look at rejected ones with --rejected.')
    return rows


def _shown(store: Store, rows: Sequence[dict[str, Any]]) -> Shown:
    reader = StoreReader(store.folder)

    def pixels(row: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(decode(reader.read_image(row), f'The image {row["id"]!r} of {store.place.given!r}').convert('RGB'))

    def request(row: Mapping[str, Any]) -> Request:
        own = {key: row[key] for key in ('id', 'label', 'seed', 'source', 'prompt')}
        return Request(class_name=store.classes[row['label']], params=params_of(row['params'], row['id']), **own)

    return Shown(rows, request, pixels)
