"""The tables of a store: columns of the index, score columns, and Parquet files that know whether they are whole.

A score is a number per image, or a list of numbers per image, such as a teacher's logits. Lists keep their type (half
precision, small integers): a thousand logits of a million images take 2 GB, not 8.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthaug_plugins.errors import StoreError, first_line
from synthaug_plugins.plain_json import parse_json
from synthaug_plugins.store import file_digest
from synthaug_plugins.store.parquet_pages import values_in_pages
from synthaug_plugins.store.place import Place, Unreachable
from synthaug_plugins.store.plan import MAX_TRIES

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
MAX_TEXT = 2**16
"""Bytes of a text."""
MAX_LIST = 2**20
"""Bytes of a list: a hundred thousand logits in double precision."""
INDEX_TEXTS = [field.name for field in INDEX_SCHEMA if pa.types.is_string(field.type)]
_SLACK = 2**26  # bytes that a column may take whatever its rows
_DIGEST, _MADE_BY = b'synthaug.content_sha256', b'synthaug.made_by'
_COLUMN = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')


def read_parquet(
    place: Place,
    name: str,
    cure: str = 'Run verify, then repair.',
    columns: Sequence[str] | Callable[[pa.Schema], Sequence[str] | None] | None = None,
    rows: int = MAX_TRIES,
    texts: Sequence[str] = (),
    raw: bool = False,
) -> pa.Table:
    """A Parquet file of the store, page checksums verified; all columns, those named, or those that `columns` chooses of the file's schema.

    Whoever wrote it: what is read takes no more memory than so many rows with texts of `MAX_TEXT` and lists of `MAX_LIST` bytes.

    Args:
        rows: most that it can have.
        texts: columns of text that it must have; a file of others is opened twice.
        raw: leave texts in dictionaries, where they stand in the file.

    Raises:
        StoreError: missing, damaged, too large, or with columns of a type that no table of a store has; or what `columns` raises.
    """
    try:
        source = place.parquet(name)
        # A text that a million rows share is held once until it is known that they fit.
        with pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=list(texts)) as file:
            schema = _undone(file.schema_arrow)
            if len(set(schema.names)) < len(schema.names):
                raise ValueError('two columns have one name')
            chosen = columns(schema) if callable(columns) else columns
            fields = [field for field in schema if chosen is None or field.name in chosen]
            check_kinds(fields)
            if not 0 <= file.metadata.num_rows <= rows:
                raise ValueError(f'{file.metadata.num_rows} rows, there can be {rows}')
            _check_lists(source, fields, file.metadata.num_rows)
            held = [field.name for field in fields if _is_text(field.type)]
            known = set(held) <= set(texts)
            if known:
                # A file is small; where many are read, that is done side by side (`index.read_blocks`).
                table = file.read(columns=[field.name for field in fields], use_threads=False)
        if not known:
            with pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=held) as file:
                table = file.read(columns=[field.name for field in fields], use_threads=False)
        table.validate(full=True)
        for text in held:
            if not _fits(table[text]):
                raise ValueError(f'the texts of {text!r} are longer than {MAX_TEXT} bytes')
        if raw:
            return table
        table = plain_texts(table)
        for i, field in enumerate(table.schema):  # pandas and Polars give texts of another width, and it counts in the digest
            if (kind := schema.field(field.name).type) != field.type and _is_text(kind):
                table = table.set_column(i, field.name, table.column(i).cast(kind))
        return table
    except KeyError as error:  # of pyarrow's map of names
        raise _unreadable(place.path(name), ValueError(f'it has no column {error}'), cure) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(place.path(name), error, cure) from error


def plain_texts(table: pa.Table, but: Collection[str] = ()) -> pa.Table:
    """A table with texts that are held in dictionaries written out, in all columns but some."""
    for i, (name, kind) in enumerate(zip(table.column_names, table.schema.types, strict=True)):
        if pa.types.is_dictionary(kind) and name not in but:
            table = table.set_column(i, name, table.column(i).cast(kind.value_type))
    return table


def check_kinds(fields: Iterable[pa.Field]) -> None:
    """Refuse (ValueError) columns of another type than a table of a store can have: text, numbers and what is stored like numbers, lists of these."""
    for field in fields:
        inner = field.type.value_type if is_list(field.type) else field.type
        if not pa.types.is_primitive(inner) and (is_list(field.type) or not (_is_text(inner) or pa.types.is_null(inner))):
            raise ValueError(f'the column {field.name[:100]!r} is of the type {str(field.type)[:100]}')


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _undone(schema: pa.Schema) -> pa.Schema:
    """What a file's schema is without dictionaries of texts."""
    return pa.schema([f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema])


def _check_lists(source: Any, fields: Sequence[pa.Field], rows: int) -> None:
    """Refuse (ValueError) lists that are too long. Numbers take what their rows take."""
    width = {field.name: field.type.value_type.bit_width for field in fields if is_list(field.type)}
    for name, values in values_in_pages(source, width).items() if width else ():
        if values * width[name] // 8 > _SLACK + rows * MAX_LIST:
            raise ValueError(f'the lists of {name!r} hold {values} values')


def _fits(column: pa.ChunkedArray) -> bool:
    """Whether the texts of a column are short enough once they are written out."""
    most = _SLACK + len(column) * MAX_TEXT
    held = [chunk for chunk in column.chunks if pa.types.is_dictionary(chunk.type)]
    if sum(chunk.dictionary.nbytes * len(chunk) for chunk in held) <= most:
        return True
    return sum(pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0 for chunk in held) <= most


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
    checksums; column names and types, which Parquet leaves unguarded, are covered by a digest in the file's metadata, and every bit by another one.

    Args:
        made_by: plain JSON that says where the values come from; it stands in the metadata and is covered too.
    """
    for i, column in enumerate(table.columns):
        if pa.types.is_floating(column.type):
            table = table.set_column(i, table.field(i), pa.array(column.to_numpy(), column.type, from_pandas=True))
    metadata = {} if made_by is None else {_MADE_BY: json.dumps(made_by, sort_keys=True, ensure_ascii=False).encode()}
    table = table.replace_schema_metadata(metadata)
    table = table.replace_schema_metadata({**metadata, _DIGEST: _digest(table), file_digest.KEY: file_digest.BLANK})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression='zstd', write_page_checksum=True)
    return file_digest.seal(sink.getvalue().to_pybytes())


def made_by_of(table: pa.Table) -> dict[str, Any] | None:
    """What `parquet_bytes` was told of a table's origin, or None; ValueError where a file from elsewhere says something else there."""
    text = (table.schema.metadata or {}).get(_MADE_BY)
    if text is None:
        return None
    if not isinstance(found := parse_json(text), dict):
        raise ValueError('no object')
    return found


def content_is_whole(table: pa.Table) -> bool:
    """Whether a table that was read from the store is what was written there: names, types and every value."""
    return (table.schema.metadata or {}).get(_DIGEST) == _digest(table)


def damage(place: Place, name: str, table: pa.Table) -> str | None:
    """What is wrong with a file of the store that `table` was read from, the whole of it; None if every bit is as it was written.

    Raises:
        Unreachable: a remote disk did not answer.
    """
    if not content_is_whole(table):
        return 'its content differs from its own digest'
    try:
        data = place.read(name, 2**20 + 2 * table.nbytes)  # compressed it is smaller
    except Unreachable:
        raise
    except (StoreError, OSError) as error:
        return first_line(error)
    return None if file_digest.is_sealed(data) else 'some of its bytes changed, though what it says did not'


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def _digest(table: pa.Table) -> bytes:
    # Parquet renames the field inside a list, so a list's type is spelt here.
    types = [f'list<{t.value_type}>' if is_list(t) else str(t) for t in table.schema.types]
    content = [table.column_names, types, [_list_digest(c) if is_list(c.type) else c.to_pylist() for c in table.columns]]
    made_by = (table.schema.metadata or {}).get(_MADE_BY)
    content += [] if made_by is None else [made_by.decode(errors='backslashreplace')]
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


def check_names(names: Sequence[str]) -> None:
    """Refuse (StoreError) score columns that clash with the index or with each other, or cannot be written in a condition."""
    check_distinct(names)
    for name in names:
        check_column(name)


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
    check_names(names)
    columns = {}
    for name in names:
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
