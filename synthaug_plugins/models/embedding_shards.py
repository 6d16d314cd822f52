"""Learned embeddings on disk: a card, and shards of safetensors with an index each. How they are written and opened.

    embeddings.json            format version, model, shape, image size, how they were learned
    shards/00000.safetensors   tokens (n, K, d) float16, and pooled (n, p) float16 where the model has a pooled vector
    index/00000.parquet        id, sha256 of the image's file, and what is known of its learning; rows as in the shard

A shard is published before its index: the index is the commit mark. Shards never change; new images come in new ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from synthaug_plugins.errors import DataError, ModelError, StoreError, first_line
from synthaug_plugins.models.base import EmbeddingShape
from synthaug_plugins.models.inside import inside
from synthaug_plugins.store import files
from synthaug_plugins.store.place import LocalPlace
from synthaug_plugins.store.table import made_by_of, parquet_bytes, read_parquet
from synthaug_plugins.weights import read_json

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = 'embeddings.json'
"""The card of a folder of embeddings."""
FORMAT_VERSION = 1
_FIXED = ('model', 'shape', 'image_size')  # of the card, as long as there are shards
_AGAIN = 'Copy the folder again, or verify it: synthaug verify FOLDER.'


def shard_path(folder: Path, number: int) -> Path:
    """The tensors of a shard."""
    return folder / 'shards' / f'{number:05d}.safetensors'


def index_path(folder: Path, number: int) -> Path:
    """The index of a shard; that it exists means that the shard is finished."""
    return folder / 'index' / f'{number:05d}.parquet'


def published_shards(folder: Path) -> list[int]:
    """Numbers of the finished shards, rising."""
    index = inside(folder, folder / 'index')
    found = ((int(path.stem), path) for path in index.glob('*.parquet') if path.stem.isascii() and path.stem.isdigit())
    return sorted(number for number, path in found if path == index_path(folder, number) and path.is_file())


def next_shard(folder: Path) -> int:
    """The number of the next shard to publish: the lowest that is free."""
    known = published_shards(folder)
    return next(number for number in range(len(known) + 1) if number not in known)


def clean_partials(folder: Path) -> None:
    """Remove temporary files that a killed run left. Only for who has the folder for himself: those of a running writer look the same."""
    for path in (p for name in ('', 'shards', 'index') for p in files.partials(folder / name)):
        path.unlink(missing_ok=True)


def create_embeddings(folder: Path, card: Mapping[str, Any]) -> None:
    """Start a folder of embeddings, or write the card of one anew. Model, shape and image size stay as long as there are shards.

    Args:
        folder: new, or one of embeddings.
        card: plain JSON with at least `model` (see `Model.origin`), `shape` (an `EmbeddingShape`, or its fields) and `image_size` [H, W].

    Raises:
        ModelError: the embeddings that are there are of another model, shape or image size.
        StoreError: the card cannot be written.
    """
    shape = card['shape']
    new = {'format_version': FORMAT_VERSION, **card, 'shape': asdict(shape) if isinstance(shape, EmbeddingShape) else dict(shape)}
    new['image_size'] = list(new['image_size'])
    if (folder / EMBEDDINGS).is_file() and published_shards(folder):
        known, _, _ = read_embeddings_card(folder)
        for key in _FIXED:
            if known[key] != json.loads(json.dumps(new[key])):
                raise ModelError(f'The embeddings in {str(folder)!r} have {key} = {known[key]}, not {new[key]}.', 'Learn into a new folder.')
    folder.mkdir(parents=True, exist_ok=True)
    files.write_whole(folder / EMBEDDINGS, (json.dumps(new, indent=2, ensure_ascii=False) + '\n').encode())


def read_embeddings_card(folder: Path) -> tuple[dict[str, Any], EmbeddingShape, tuple[int, int]]:
    """The card of a folder of embeddings, their shape, and the (H, W) in pixels that they were learned at.

    Raises:
        ModelError: no such folder, no card, one of a newer format, or a damaged one.
    """
    path = folder / EMBEDDINGS
    if not path.is_file():
        inner, out = folder / 'embeddings', folder.parent if folder.name == 'embeddings' else folder
        learn = f'Learn them: synthaug learn embeddings RECIPE --data FOLDER --out {out}; they are in its folder `embeddings` then.'
        what = f'there is no {EMBEDDINGS} in it' if folder.is_dir() else 'there is no such folder'
        raise ModelError(f'embeddings = {str(folder)!r}: {what}.', f'Did you mean {str(inner)!r}?' if (inner / EMBEDDINGS).is_file() else learn)
    card = read_json(inside(folder, path))
    version = card.get('format_version')
    if version != FORMAT_VERSION:
        raise ModelError(f'{str(path)!r} has format_version {version!r}, known is {FORMAT_VERSION}.', 'Learn the embeddings again, or use a newer version.')
    try:
        shape, (height, width) = EmbeddingShape(**card['shape']), card['image_size']
        sizes = [shape.tokens, shape.width, *([] if shape.pooled is None else [shape.pooled]), height, width]
        if not isinstance(card['model'], dict) or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
            raise ValueError(f'sizes {sizes}')
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f'{str(path)!r} is damaged: model, shape or image_size is missing or wrong.', _AGAIN) from error
    return card, shape, (height, width)


def publish_shard(
    folder: Path,
    number: int,
    ids: Sequence[str],
    sha256: Sequence[str],
    tokens: Tensor | np.ndarray,
    pooled: Tensor | np.ndarray | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write a shard and then its index, each whole or not at all. What was published is left alone if it is the same.

    Args:
        folder: see `create_embeddings`.
        number: of the shard, see `next_shard`.
        ids: of the images, in the order of the rows.
        sha256: of each image's file.
        tokens: (n, K, d) of any floating type.
        pooled: (n, p), where the card's shape says so.
        columns: what else is known of each image's learning, a column of the index each.

    Raises:
        DataError: an embedding that is not finite in float16.
        ModelError: arrays of another shape than the card's, repeated ids, or a number that was published with other content.
        StoreError: the disk is full or cannot be written; nothing of the shard counts then.
    """
    from safetensors.numpy import save

    _, shape, _ = read_embeddings_card(folder)
    arrays = {'tokens': _half(tokens)} | ({} if pooled is None else {'pooled': _half(pooled)})
    wanted = _shapes(shape, len(ids))
    if {name: a.shape for name, a in arrays.items()} != wanted or len(sha256) != len(ids) or len(set(ids)) != len(ids) or not len(ids):
        found = ', '.join(f'{name} {a.shape}' for name, a in arrays.items())
        what = f'Shard {number} of {str(folder)!r} was given {len(set(ids))} different ids, {len(sha256)} hashes and {found}'
        raise ModelError(f'{what}; wanted are {", ".join(f"{name} {s}" for name, s in wanted.items())}.', 'Give one row for each image.')
    for name, array in arrays.items():
        if wrong := not_finite_rows(array):
            raise DataError(f'The embedding of {ids[wrong[0]]!r} is not finite ({name}, float16; {len(wrong)} in all).', 'Lower the learning rate.')
    data = save(arrays)
    digest = hashlib.sha256(data).hexdigest()
    table = pa.table({'id': pa.array(ids, pa.string()), 'sha256': pa.array(sha256, pa.string()), **(columns or {})})
    index = index_path(folder, number)
    if index.is_file():
        known = read_parquet(LocalPlace(folder), index.relative_to(folder).as_posix(), _AGAIN)
        if named_hash(known) != digest or known['id'].to_pylist() != list(ids):
            raise ModelError(f'Shard {number} of {str(folder)!r} is published already, with other content.', 'Learn into a new folder.')
        return
    files.write_whole(shard_path(folder, number), data)
    files.write_whole(index, parquet_bytes(table, {'sha256': digest}))


def read_index(folder: Path, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The index of a shard, all columns or those named.

    Raises:
        ModelError: missing, damaged, or no index of embeddings.
    """
    path = index_path(folder, number)
    try:
        table = read_parquet(LocalPlace(folder), path.relative_to(folder).as_posix(), _AGAIN, columns)
    except StoreError as error:
        raise ModelError(error.what, error.cure) from error
    if any(name not in table.column_names or table[name].type != pa.string() or table[name].null_count for name in columns or ('id', 'sha256')):
        raise ModelError(f'{str(path)!r} is no index of embeddings.', _AGAIN)
    return table


def named_hash(index: pa.Table) -> str | None:
    """SHA-256 of its shard as an index names it; None for one that names none."""
    try:
        made_by = made_by_of(index)
    except ValueError:
        return None
    found = made_by.get('sha256') if isinstance(made_by, dict) else None
    return found if isinstance(found, str) else None


def shard_hash(folder: Path, number: int) -> str:
    """SHA-256 of a shard as its index names it.

    Raises:
        ModelError: it names none.
    """
    found = named_hash(read_index(folder, number, ['id']))
    if found is None:
        raise ModelError(f'{str(index_path(folder, number))!r} names no hash of its shard.', _AGAIN)
    return found


def check_shard(folder: Path, number: int, shape: EmbeddingShape, rows: int) -> None:
    """Look at a shard's header and size, not at its embeddings.

    Raises:
        ModelError: missing, no safetensors, cut short, of another type or shape, or with another number of rows than its index.
    """
    path, wanted = shard_path(folder, number), _shapes(shape, rows)
    if not path.is_file():
        raise ModelError(f'{str(path)!r} is missing, its index is there.', _AGAIN)
    with _opened(folder, path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        found = {name: tuple(s.get_shape()) for name, s in slices.items()}
        if found != wanted or any(s.get_dtype() != 'F16' for s in slices.values()):
            said = ', '.join(f'{name} {slices[name].get_dtype()} {s}' for name, s in found.items())
            raise ModelError(f'{str(path)!r} holds {said}; wanted are {", ".join(f"{name} F16 {s}" for name, s in wanted.items())}.', _AGAIN)


def read_rows(folder: Path, number: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of a shard, float16: 'tokens' (n, K, d), and 'pooled' (n, p) where there are such. The file is mapped: no other rows are read.

    Args:
        rows: (n,) whole numbers; runs that rise by one are read at once.

    Raises:
        ModelError: the shard is missing or cut short.
    """
    starts = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
    runs = [(int(rows[a]), int(rows[a]) + int(b - a)) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
    with _opened(folder, shard_path(folder, number)) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        return {name: np.concatenate([s[first:end] for first, end in runs]) for name, s in slices.items()}


def _shapes(shape: EmbeddingShape, rows: int) -> dict[str, tuple[int, ...]]:
    return {'tokens': (rows, shape.tokens, shape.width)} | ({} if shape.pooled is None else {'pooled': (rows, shape.pooled)})


def _half(values: Tensor | np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore'):  # found and named by the caller
        array = values if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()
        return np.ascontiguousarray(array, np.float16)


def not_finite_rows(array: np.ndarray) -> list[int]:
    """Rows of an array (n, ...) that hold NaN or infinity."""
    return [int(row) for row in np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))]


def _opened(folder: Path, path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(inside(folder, path), 'np')
    except (SafetensorError, OSError) as error:
        raise ModelError(f'{str(path)!r} cannot be read as safetensors: {first_line(error)}.', _AGAIN) from error
