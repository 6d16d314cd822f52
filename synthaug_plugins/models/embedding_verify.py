"""Find damage in a folder of learned embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from synthaug_plugins.errors import ModelError
from synthaug_plugins.models.base import EmbeddingShape
from synthaug_plugins.models.embedding_shards import (
    check_shard,
    index_path,
    named_hash,
    not_finite_rows,
    published_shards,
    read_embeddings_card,
    read_index,
    read_rows,
    shard_path,
)
from synthaug_plugins.models.inside import inside
from synthaug_plugins.models.sorted_ids import SortedIds
from synthaug_plugins.store import files
from synthaug_plugins.store.place import LocalPlace
from synthaug_plugins.store.table import damage
from synthaug_plugins.store.verify import Fault
from synthaug_plugins.weights import file_hash


def verify_embeddings(folder: str | Path) -> list[Fault]:
    """Read every byte of a folder of embeddings and compare it with its indexes. Changes nothing.

    Finds: shards cut short, changed anywhere, of another shape or with numbers that are not finite, lost shards and indexes, unreadable indexes, ids
    that are there twice, files that are not part of the folder, and temporary files of a killed run.

    Raises:
        ModelError: no folder of embeddings.
    """
    folder = Path(folder).expanduser()
    _, shape, _ = read_embeddings_card(folder)
    numbers = published_shards(folder)
    faults = list(_gaps(folder, numbers))
    ids: list[pa.ChunkedArray] = []
    shard_of_row: list[int] = []
    for number in numbers:
        table, what = _index(folder, number)
        if table is None:
            faults.append(Fault(number, _name(folder, index_path(folder, number)), what))
            continue
        ids.append(table['id'])
        shard_of_row += [number] * len(table)
        faults += [Fault(number, _name(folder, shard_path(folder, number)), what) for what in _shard_faults(folder, number, shape, table)]
    twice = SortedIds(pa.chunked_array(ids, pa.string()).combine_chunks()).repeated()
    for name, rows in twice:
        shards = ', '.join(map(str, sorted({shard_of_row[row] for row in rows})))
        faults.append(Fault(None, 'index', f'the id {name!r} is there {len(rows)} times, in the shards {shards}'))
    return faults + list(_left_over(folder, numbers))


def _gaps(folder: Path, numbers: Sequence[int]) -> Iterator[Fault]:
    """Shards that are lost, one fault for as many as follow each other: a stranger's number may be any."""
    for before, after in pairwise([-1, *numbers]):
        if after > before + 1:
            to = '' if after == before + 2 else f' (up to {index_path(folder, after - 1).name})'
            yield Fault(before + 1, _name(folder, index_path(folder, before + 1)), f'missing{to}, later ones are there')


def _index(folder: Path, number: int) -> tuple[pa.Table | None, str]:
    """An index; None for a damaged one, and what is wrong with it."""
    try:
        table = read_index(folder, number)
    except ModelError as error:
        return None, f'damaged ({error.what})'
    if named_hash(table) is None:
        return None, 'damaged (it names no hash of its shard)'
    what = damage(LocalPlace(folder), _name(folder, index_path(folder, number)), table)
    return (None, f'damaged ({what})') if what else (table, '')


def _shard_faults(folder: Path, number: int, shape: EmbeddingShape, table: pa.Table) -> Iterator[str]:
    try:
        check_shard(folder, number, shape, len(table))
    except ModelError as error:
        yield error.what
        return
    if file_hash(inside(folder, shard_path(folder, number))) != named_hash(table):
        yield 'damaged (its hash is not the one that its index names)'
    for name, array in read_rows(folder, number, np.arange(len(table))).items():
        if wrong := not_finite_rows(array):
            yield f'{name} of {table["id"][wrong[0]].as_py()!r} is not finite ({len(wrong)} in all)'


def _left_over(folder: Path, numbers: Sequence[int]) -> Iterator[Fault]:
    """Files that do not count."""
    known = {path(folder, n) for n in numbers for path in (shard_path, index_path)}
    for path in sorted(p for name in ('shards', 'index') if (folder / name).is_dir() for p in (folder / name).iterdir()):
        if path not in known:
            unfinished = path.name.startswith(files.PARTIAL) or path.suffix == '.safetensors'
            yield Fault(
                None, _name(folder, path), 'of a run that was killed; the next one removes or replaces it' if unfinished else 'not part of the embeddings'
            )


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
