"""The index of a whole store, made of its blocks' indices: read side by side, and of every row only what is asked for.

A store of five million images has thousands of index files and 2 GB of them in memory as a whole; a training needs a tenth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import StoreError, first_line
from synthaug_plugins.store.place import Place
from synthaug_plugins.store.rows import wrong_rows
from synthaug_plugins.store.shard import KEPT, read_index
from synthaug_plugins.store.table import INDEX_SCHEMA, plain_texts

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
    numbers = sorted(numbers)
    read = partial(_read_block, place, None if columns is None else {c.lower() for c in columns}, only)
    # One without rows: columns of the index are there in a store without blocks too.
    tables = [_chosen(_no_rows(), columns)]
    with ThreadPoolExecutor(place.threads) as threads:
        tables += threads.map(read, numbers)
    try:
        table = pa.concat_tables(tables, promote_options='permissive')
    except pa.ArrowException as error:
        raise StoreError(f'The blocks of {place.given!r} do not fit together: {first_line(error)}.', 'Run verify, then repair.') from error
    table = plain_texts(table, but=encoded)
    table = (table.unify_dictionaries() if encoded else table).combine_chunks()
    if what := wrong_rows(table):
        for number in numbers:
            read_index(place, number, columns)  # refuses, and names the file
        raise StoreError(f'The index of {place.given!r} is damaged: {what}.', 'Run verify, then repair.')
    return table


def _read_block(place: Place, columns: Collection[str] | None, only: str | None, number: int) -> pa.Table:
    tested = {None: set(), STORED: {'offset'}, KEPT: {'offset', 'verdict'}}[only]
    table = read_index(place, number, None if columns is None else {*columns, *tested}, raw=True)
    n = min(len(INDEX_SCHEMA), sum(name in INDEX_SCHEMA.names for name in table.column_names))
    table = table.add_column(n, SHARD, pa.repeat(pa.scalar(number, SHARD.type), len(table)))
    if only is not None:
        usable = pc.is_valid(table['offset'])
        table = table.filter(usable if only == STORED else pc.and_(usable, pc.equal(table['verdict'], KEPT)))
    return _chosen(table, columns)


def _no_rows() -> pa.Table:
    """What a block without rows would give, texts in dictionaries as they come from a file."""
    table = INDEX_SCHEMA.empty_table()
    for i, field in enumerate(INDEX_SCHEMA):
        if pa.types.is_string(field.type):
            table = table.set_column(i, field.name, table.column(i).dictionary_encode())
    return table.append_column(SHARD, pa.array([], SHARD.type))


def _chosen(table: pa.Table, columns: Collection[str] | None) -> pa.Table:
    if columns is not None:
        wanted = {c.lower() for c in columns}
        table = table.select([name for name in table.column_names if name.lower() in wanted])
    return table


def sorted_by_id(table: pa.Table) -> pa.Table:
    """Rows in the order of their ids, in which most stores have them already.

    Raises:
        StoreError: an id that is there twice; only a damaged store has such.
    """
    if _rising(table):
        return table
    table = table.sort_by('id')
    if not _rising(table):
        ids = table['id'].combine_chunks()
        twice = ids[1:].filter(pc.equal(ids[:-1], ids[1:]))
        raise StoreError(f'The store has {len(twice)} ids twice, the first is {twice[0].as_py()!r}.', 'Run verify, then repair.')
    return table


def _rising(table: pa.Table) -> bool:
    ids = table['id'].combine_chunks()
    return bool(pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py())
