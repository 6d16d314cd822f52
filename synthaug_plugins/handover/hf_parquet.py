"""Parquet shards with the images in them, as Hugging Face datasets and its hub's viewer read them.

```
data/train-00000-of-00002.parquet
```
`image` is a struct of the file's bytes and name, `label` an integer; the key `huggingface` of the file's metadata says that they are the features Image and
ClassLabel (with the class names in order), so `datasets.load_dataset(folder)` decodes them without being told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthaug_plugins.errors import StoreError
from synthaug_plugins.handover.images import DESCRIBING, images_of, in_order, score_names
from synthaug_plugins.store.selection import Selection
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import is_list

DATA = 'data'
SHARD_NAME = 'train-{:05d}-of-{:05d}.parquet'
MAX_SHARD = 512 * 2**20
"""Bytes of images in a shard, which `datasets` itself keeps at about so many."""
_GROUP_BYTES, _GROUP_ROWS = 64 * 2**20, 1000  # of images in memory; a reader reads a whole row group for one image
_IMAGE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
_DTYPES = {'halffloat': 'float16', 'float': 'float32', 'double': 'float64', 'date32[day]': 'date32', 'date64[ms]': 'date64'}


class Shard(NamedTuple):
    """One file to write: its path in the data set, and the rows of the index, in order."""

    name: str
    rows: pa.Table


def write_hf(folder: Path, store: Store, selection: Selection) -> None:
    """Write the shards. One row group's images are in memory at a time.

    Raises:
        StoreError: a score column is called 'image'.
    """
    (folder / DATA).mkdir()
    for shard in shards(selection):
        write_shard(folder / shard.name, shard, store)


def shards(selection: Selection) -> Iterator[Shard]:
    """How a selection is cut: into parts that are about equally large, of about `MAX_SHARD` bytes of images at most."""
    if (clash := next((name for name in score_names(selection.table) if name.lower() == 'image'), None)) is not None:
        what = f'The score column {clash!r} has the name of the column that holds the images.'
        raise StoreError(what, 'Score again under another name (--prefix), remove the file of that column from scores/, and export.')
    table = in_order(selection.table)
    ends = np.cumsum(table['size'].to_numpy())
    total = int(ends[-1]) if len(ends) else 0
    n = max(1, -(-total // MAX_SHARD))
    cuts = sorted({0, *np.searchsorted(ends, np.arange(1, n) * total // n, 'right').tolist(), len(table)})
    for i, (first, end) in enumerate(pairwise(cuts)):
        yield Shard(f'{DATA}/{SHARD_NAME.format(i, len(cuts) - 1)}', table.slice(first, end - first))


def write_shard(path: Path, shard: Shard, store: Store) -> None:
    """Write one shard.

    Raises:
        StoreError: an image is damaged or missing; it is named.
        OSError: the disk is full.
    """
    names = [name for name in ('id', *DESCRIBING, *score_names(shard.rows)) if name in shard.rows.column_names]
    described = [(name, _as_list(shard.rows.schema.field(name).type)) for name in names]
    schema = pa.schema([('image', _IMAGE), ('label', pa.int64()), *described])
    schema = schema.with_metadata({'huggingface': json.dumps({'info': {'features': features(schema, store)}})})
    # Images are compressed already.
    compression = {path: 'none' if path == 'image.bytes' else 'zstd' for path in _leaves(schema)}
    with pq.ParquetWriter(path, schema, compression=compression, use_dictionary=['prompt', 'source', 'params'], write_page_index=True) as writer:
        for first, files in _groups(store, shard.rows):
            rows = shard.rows.slice(first, len(files))
            image = pa.array([{'bytes': data, 'path': name} for name, data in files], _IMAGE)
            columns = [rows[name].combine_chunks().cast(kind) for name, kind in described]
            writer.write_table(pa.Table.from_arrays([image, rows['label'].combine_chunks().cast(pa.int64()), *columns], schema=schema))


def _groups(store: Store, rows: pa.Table) -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """Row groups: the number of the first row, and name and bytes of each image."""
    first, files, size = 0, [], 0
    for image in images_of(store, rows):
        files.append((f'{image.row["id"]}.{image.suffix}', image.data))
        size += len(image.data)
        if len(files) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield first, files
            first, files, size = first + len(files), [], 0
    if files:
        yield first, files


def features(schema: pa.Schema, store: Store) -> dict[str, Any]:
    """What `datasets.Features.to_dict` would say of the columns, plain JSON.

    Lists are called 'Sequence', which every version of `datasets` reads; from version 4 on it writes 'List'.
    """

    def value(kind: pa.DataType) -> dict[str, Any]:
        return {'dtype': _DTYPES.get(str(kind), str(kind)), '_type': 'Value'}

    found = {f.name: {'feature': value(f.type.value_type), '_type': 'Sequence'} if is_list(f.type) else value(f.type) for f in schema}
    return found | {'image': {'_type': 'Image'}, 'label': {'names': list(store.classes), '_type': 'ClassLabel'}}


def _as_list(kind: pa.DataType) -> pa.DataType:
    """Lists of any kind as lists, long texts as texts: what `datasets` makes of its features."""
    if is_list(kind):
        return pa.list_(kind.value_type)
    return pa.string() if pa.types.is_large_string(kind) else kind


def _leaves(schema: pa.Schema) -> list[str]:
    """Dotted names of the columns as Parquet has them."""
    inner = {f.name: ['list.element'] for f in schema if is_list(f.type)} | {'image': ['bytes', 'path']}
    return ['.'.join([f.name, *([part] if part else [])]) for f in schema for part in inner.get(f.name, [''])]
