"""The tables of a store: columns of the index, score columns, and Parquet files that know whether they are whole.

A score is a number per image, or a list of numbers per image, such as a teacher's logits. Lists keep their type (half
precision, small integers): a thousand logits of a million images take 2 GB, not 8.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthaug_plugins.errors import StoreError, first_line
from synthaug_plugins.store.place import Place

Score = float | np.ndarray
"""What an image has in a score column: a number, or a (k,) array."""
INDEX_SCHEMA = pa.schema(
    [
        ('id', pa.string()),
        ('label', pa.int32()),
        ('source', pa.string()),
        ('prompt', pa.string()),
        ('seed', pa.int64()),
        ('params', pa.string()),
        ('offset', pa.int64()),
        ('size', pa.int64()),
        ('sha256', pa.string()),
        ('verdict', pa.string()),
        ('reason', pa.string()),
    ]
)
RESERVED = frozenset([*INDEX_SCHEMA.names, 'shard', 'class', 'class_name', '__row'])
"""Names that a score column cannot have."""
_DIGEST, _MADE_BY = b'synthaug.content_sha256', b'synthaug.made_by'
_COLUMN = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')


def read_parquet(
    place: Place, name: str, cure: str = 'Run verify, then repair.', columns: Sequence[str] | Callable[[pa.Schema], Sequence[str] | None] | None = None
) -> pa.Table:
    """A Parquet file of the store, page checksums verified; all columns, those named, or those that `columns` chooses of the file's schema.

    Raises:
        StoreError: missing or damaged; or what `columns` raises.
    """
    try:
        with pq.ParquetFile(place.parquet(name), page_checksum_verification=True) as file:
            chosen = columns(file.schema_arrow) if callable(columns) else columns
            # A file is small; where many are read, that is done side by side (`index.read_blocks`).
            return file.read(columns=None if chosen is None else list(chosen), use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(place.path(name), error, cure) from error


def column_names(place: Place, name: str) -> list[str]:
    """The columns of a Parquet file of the store; reads its footer only. Raises StoreError as `read_parquet`."""
    try:
        return pq.read_schema(place.parquet(name)).names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(place.path(name), error) from error


def _unreadable(path: str, error: Exception, cure: str = 'Run verify, then repair.') -> StoreError:
    return StoreError(f'The file {path!r} cannot be read: {first_line(error)}.', cure)


def parquet_bytes(table: pa.Table, made_by: Mapping[str, Any] | None = None) -> bytes:
    """A table as a Parquet file of the store.

    NaN in columns of floats becomes null, so that no condition is true of it; lists stay as they are. Pages carry
    checksums; column names and types, which Parquet leaves unguarded, are covered by a digest in the file's metadata.

    Args:
        made_by: plain JSON that says where the values come from; it stands in the metadata and is covered too.
    """
    for i, column in enumerate(table.columns):
        if pa.types.is_floating(column.type):
            table = table.set_column(i, table.field(i), pa.array(column.to_numpy(), column.type, from_pandas=True))
    metadata = {} if made_by is None else {_MADE_BY: json.dumps(made_by, sort_keys=True, ensure_ascii=False).encode()}
    table = table.replace_schema_metadata(metadata)
    table = table.replace_schema_metadata({**metadata, _DIGEST: _digest(table)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression='zstd', write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def made_by_of(table: pa.Table) -> dict[str, Any] | None:
    """What `parquet_bytes` was told of a table's origin, or None."""
    text = (table.schema.metadata or {}).get(_MADE_BY)
    return None if text is None else json.loads(text)


def content_is_whole(table: pa.Table) -> bool:
    """Whether a table that was read from the store is what was written there: names, types and every value."""
    return (table.schema.metadata or {}).get(_DIGEST) == _digest(table)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def _digest(table: pa.Table) -> bytes:
    # Parquet renames the field inside a list, so a list's type is spelt here.
    types = [f'list<{t.value_type}>' if is_list(t) else str(t) for t in table.schema.types]
    content = [table.column_names, types, [_list_digest(c) if is_list(c.type) else c.to_pylist() for c in table.columns]]
    made_by = (table.schema.metadata or {}).get(_MADE_BY)
    content += [] if made_by is None else [made_by.decode()]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, default=str).encode()).hexdigest().encode()


def _list_digest(column: pa.ChunkedArray) -> Any:
    """SHA-256 of a list column's lengths and values: as Python objects a thousand logits of a million images would take 30 GB."""
    parts = [(pc.list_value_length(chunk), chunk.flatten()) for chunk in column.chunks]
    numeric = pa.types.is_integer(column.type.value_type) or pa.types.is_floating(column.type.value_type)
    if not numeric or any(values.null_count for _, values in parts):
        return column.to_pylist()
    digest = hashlib.sha256()
    for lengths, _ in parts:
        digest.update(lengths.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))
    for _, values in parts:
        digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).data)
    return digest.hexdigest()


def check_column(name: str) -> None:
    """Refuse a score column's name that clashes with the index or cannot be written in a condition (StoreError)."""
    if name.lower() in RESERVED or not _COLUMN.fullmatch(name):
        raise StoreError(f'The score column {name!r} is reserved or not a plain name.', 'Use letters, digits and underscores.')


def check_distinct(names: Sequence[str], taken: Iterable[str] = ()) -> None:
    """Refuse (StoreError) score columns that a condition could not tell apart: names that differ in case only are equal there."""
    seen = {name.lower() for name in taken}
    for name in names:
        if name.lower() in seen:
            raise StoreError(f'The store has a score column {name!r} already (upper and lower case count as equal).', 'Give the new column another name.')
        seen.add(name.lower())


def score_columns(scores: Sequence[Mapping[str, Score]]) -> dict[str, pa.Array]:
    """One column per name: float64 for numbers (NaN where an image has none), lists of the arrays' own type for arrays (null there).

    Args:
        scores: per image, its scores by name.

    Raises:
        StoreError: a name that cannot be a column, numbers and arrays in one column, arrays of several types or with more than one axis.
    """
    names = list(dict.fromkeys(name for row in scores for name in row))
    check_distinct(names)
    columns = {}
    for name in names:
        check_column(name)
        values = [row.get(name) for row in scores]
        arrays = [v for v in values if isinstance(v, np.ndarray)]
        if not arrays:
            columns[name] = pa.array([math.nan if v is None else float(v) for v in values], pa.float64())
            continue
        if len(arrays) < sum(v is not None for v in values) or len({(a.dtype, a.ndim) for a in arrays}) > 1 or arrays[0].ndim != 1:
            raise StoreError(f'The score column {name!r} mixes numbers and lists, or lists of several kinds.', 'Correct the inspector that made it.')
        columns[name] = _lists([v if isinstance(v, np.ndarray) else None for v in values], arrays[0].dtype)
    return columns


def _lists(values: Sequence[np.ndarray | None], dtype: np.dtype) -> pa.Array:
    lengths = np.array([0 if v is None else len(v) for v in values], np.int64)
    flat = pa.array(np.concatenate([v for v in values if v is not None]), pa.from_numpy_dtype(dtype))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32(), mask=np.array([v is None for v in values] + [False]))
    return pa.ListArray.from_arrays(offsets, flat)
