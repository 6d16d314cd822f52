"""The index of a whole store, made of its blocks' indices: read side by side, and of every row only what is asked for.

A store of five million images has thousands of index files and 2 GB of them in memory as a whole; a training needs a tenth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.store.place import Place
from synthaug_plugins.store.shard import KEPT, read_index
from synthaug_plugins.store.table import INDEX_SCHEMA

STORED = 'stored'
"""Rows whose image lies in the store, rejected ones included; `KEPT`: those of them that were kept."""
SHARD = pa.field('shard', pa.int32())


def read_blocks(place: Place, numbers: Iterable[int], columns: Collection[str] | None = None, only: str | None = None, encoded: Sequence[str] = ()) -> pa.Table:
    """The indices of some blocks, one after the other: index columns, `shard`, then score columns, null where a block has none.

    Args:
        columns: those to read, in any case of letters; of names that no block has there is no column. Default: all.
        only: 'stored' or 'kept': the rows to read. Default: all.
        encoded: columns of text to give as dictionaries: what many rows share is held once.

    Raises:
        StoreError: a damaged index.
    """
    read = partial(_read_block, place, None if columns is None else {c.lower() for c in columns}, only, encoded)
    # One without rows: columns of the index are there in a store without blocks too.
    tables = [_chosen(INDEX_SCHEMA.empty_table().append_column(SHARD, pa.array([], pa.int32())), columns, encoded)]
    with ThreadPoolExecutor(place.threads) as threads:
        tables += threads.map(read, sorted(numbers))
    table = pa.concat_tables(tables, promote_options='permissive')
    return (table.unify_dictionaries() if encoded else table).combine_chunks()


def _read_block(place: Place, columns: Collection[str] | None, only: str | None, encoded: Sequence[str], number: int) -> pa.Table:
    tested = {None: set(), STORED: {'offset'}, KEPT: {'offset', 'verdict'}}[only]
    table = read_index(place, number, None if columns is None else {*columns, *tested})
    n = min(len(INDEX_SCHEMA), sum(name in INDEX_SCHEMA.names for name in table.column_names))
    table = table.add_column(n, SHARD, pa.repeat(pa.scalar(number, SHARD.type), len(table)))
    if only is not None:
        usable = pc.is_valid(table['offset'])
        table = table.filter(usable if only == STORED else pc.and_(usable, pc.equal(table['verdict'], KEPT)))
    return _chosen(table, columns, encoded)


def _chosen(table: pa.Table, columns: Collection[str] | None, encoded: Sequence[str]) -> pa.Table:
    if columns is not None:
        wanted = {c.lower() for c in columns}
        table = table.select([name for name in table.column_names if name.lower() in wanted])
    for name in set(encoded) & set(table.column_names):
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    return table


def sorted_by_id(table: pa.Table) -> pa.Table:
    """Rows in the order of their ids, in which most stores have them already."""
    ids = table['id'].combine_chunks()
    return table if pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py() else table.sort_by('id')
