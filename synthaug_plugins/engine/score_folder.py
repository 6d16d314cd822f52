"""Inspectors on real images: a folder of class folders gets a Parquet file of score columns beside it. No image is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.score import build_inspectors, check_columns, inspected_by, score_parts
from synthaug_plugins.engine.score_run import Columns, Shown, show
from synthaug_plugins.engine.scored import Scored, scored
from synthaug_plugins.errors import DataError, RecipeError, StoreError
from synthaug_plugins.learning.data import check_classes
from synthaug_plugins.own_folder import lock_within
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.files import refusal, write_whole
from synthaug_plugins.store.place import LocalPlace
from synthaug_plugins.store.plan import Request, purpose_seed
from synthaug_plugins.store.scores import parts_folder
from synthaug_plugins.store.table import content_is_whole, made_by_of, parquet_bytes, read_parquet

_KIND = 'scores of a folder'


def score_folder(
    folder: str | Path,
    recipe: Mapping[str, Any],
    out: str | Path,
    device: str = 'auto',
    *,
    name: str = 'scores',
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Scored:
    """Show every image of a folder of class folders to inspectors, by class and then by id.

    Writes a Parquet file, whole or not at all: `id` (see `RealImages`), `label`, `class_name`, the inspectors' score columns, `<name>_kept` (bool) and
    `<name>_reason`. A run that was killed goes on, see `engine.score.score`.

    Args:
        folder: one folder per class.
        recipe: as `engine.score.load_score_recipe` returns it; its `data` is for inspectors that compare with real images.
        out: FILE.parquet.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        name: of the scores: letters, digits, underscores.
        classes: the folder's class names in label order; sorted unless given.
        overwrite: replace a file that is there.
        quiet: no progress on standard error.

    Returns: counts, reasons and means by class.

    Raises:
        RecipeError, ModelError, DataError: what cannot work; before any weights load as far as that can be known. Another process writes this file.
        StoreError: columns that cannot stand in one table, or a full disk.
        Stopped: the user stopped it; no file was written.
    """
    out, real, columns = Path(out).expanduser(), RealImages(folder), Columns(name)
    check_columns(columns)
    if out.suffix != '.parquet':
        raise RecipeError(f'The scores cannot be written to {str(out)!r}.', 'Name a file that ends with .parquet.')
    if real.root.resolve() in out.resolve().parent.parents:
        raise RecipeError(f'{str(out)!r} lies within the images: its folder would count as a class.', 'Name a file elsewhere.')
    _check_free(out, overwrite)
    names = tuple(classes or real.classes)
    check_classes(real, names)
    inspectors = build_inspectors(recipe)
    compared = RealImages(recipe['data']) if recipe['data'] else None
    if compared is not None:
        check_classes(compared, names)
    for inspector in inspectors:
        inspector.check(names, compared)
    torch_device = choose_device(device)
    # Which folder it was is no matter: its images are known by their content.
    made_by = {**inspected_by(inspectors, compared), 'kind': _KIND, 'name': name, 'classes': list(names), 'images_sha256': real.content_hash()}
    rows: list[dict[str, Any]] = [{'id': image_id, 'label': label, 'class_name': own} for label, own in enumerate(names) for image_id in real.ids(own)]
    try:
        with _locked(out):
            _check_free(out, overwrite)  # again: hashing takes a while, and somebody may have been here
            for inspector in inspectors:
                inspector.setup(torch_device, names, compared)
            parts = score_parts(LocalPlace(out.parent), out.name, columns, recipe, inspectors, made_by, rows, torch_device)
            table = show(Shown(rows, _request, lambda row: real.load(row['id'])), inspectors, recipe['batch_size'], parts, quiet=quiet)
            table = table.add_column(1, 'label', pa.array([row['label'] for row in rows], pa.int32()))
            table = table.add_column(2, 'class_name', pa.array([row['class_name'] for row in rows], pa.string()))
            write_whole(out, parquet_bytes(table, made_by))
            parts.remove()
    except OSError as error:
        raise refusal(error, f'The scores {str(out)!r} were not written') from error
    return scored(columns, names, [row['label'] for row in rows], table.drop_columns(['label', 'class_name']))


def read_folder_scores(file: str | Path, real_images: RealImages | None = None) -> pa.Table:
    """What `score_folder` wrote; `store.table.made_by_of` says what made it.

    Args:
        real_images: the images that the scores must be of.

    Raises:
        DataError: no such file, another kind of file, a damaged one, or scores of other images.
    """
    cure = 'Give what `synthaug score FOLDER RECIPE --out FILE.parquet` writes.'
    try:
        path = Path(file).expanduser().resolve()  # the user's own, which may be a link
        table = read_parquet(LocalPlace(path.parent), path.name, cure, rows=2**31)
    except StoreError as error:
        raise DataError(error.what, error.cure) from error
    try:
        made_by = made_by_of(table)
    except ValueError:  # a file from elsewhere
        made_by = None
    ours = isinstance(made_by, dict) and made_by.get('kind') == _KIND and all(isinstance(made_by.get(key), list) for key in ('classes', 'inspectors'))
    if made_by is None or not ours or not {'id', 'label', 'class_name'} <= set(table.column_names):
        raise DataError(f'{str(file)!r} holds no scores of a folder of images.', cure)
    if not content_is_whole(table):
        raise DataError(f'{str(file)!r} is damaged or was changed by hand.', 'Score the folder again.')
    if real_images is not None and sorted(map(str, made_by['classes'])) != sorted(real_images.classes):
        what = f'{str(file)!r} has scores of the classes {made_by["classes"]}, {str(real_images.root)!r} holds {list(real_images.classes)}.'
        raise DataError(what, 'Score this folder.')
    if real_images is None:
        return table
    ids = sorted(i for own in real_images.classes for i in real_images.ids(own))
    if sorted(map(str, table['id'].to_pylist())) != ids or made_by.get('images_sha256') != real_images.content_hash():
        raise DataError(f'{str(file)!r} has scores of other images than those in {str(real_images.root)!r}.', 'Score this folder again.')
    return table


def _check_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not (overwrite and out.is_file()):
        raise RecipeError(f'{str(out)!r} exists already.', 'Give another file with --out, or replace it with --overwrite.')


def _request(row: Mapping[str, Any]) -> Request:
    return Request(id=row['id'], label=row['label'], class_name=row['class_name'], seed=purpose_seed(0, row['id']))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The right to write scores to a file: held on the folder of their parts, which is there meanwhile."""
    folder = out.parent / parts_folder(out.name)
    fd = -1
    try:
        while fd < 0:
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                lock_within(fd, 0.0)
            except BlockingIOError as error:
                raise RecipeError(f'Another process is writing {str(out)!r}.', 'Wait until it ends, or stop it.') from error
            if not folder.is_dir() or folder.stat().st_ino != os.fstat(fd).st_ino:  # whoever held it removed it just now
                os.close(fd)
                fd = -1
        try:
            yield
        finally:  # by nobody but the holder: it is the lock
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        if fd >= 0:
            os.close(fd)
