"""The index of a store with many blocks: of its columns and rows only those that are asked for, and the same ones as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store_dataset import store_of

from synthaug_plugins.errors import RecipeError, StoreError
from synthaug_plugins.mixing.records import read_records
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.shard import index_name
from synthaug_plugins.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Several blocks, rejected rows among them, a score column in the index, and one added later, for some images."""
    store = store_of(tmp_path / 's', ['a', 'b', None], per_class=9)
    ids = store.index(['id'])['id'].to_pylist()
    assert len(store.finished()) == 6
    store.add_scores('later', pa.table({'id': ids[::2], 'Late': np.arange(len(ids[::2]), dtype=float)}))
    return store


@pytest.mark.parametrize('columns', [['id'], ['score', 'shard'], ['LATE', 'offset'], ['prompt', 'label', 'score', 'Late'], ['sha256', 'nothing']])
def test_columns_are_those_of_the_whole_index(store: Store, columns: list[str]) -> None:
    whole = store.index()
    wanted = [name for name in whole.column_names if name.lower() in {c.lower() for c in columns}]
    assert store.index(columns).equals(whole.select(wanted))
    kept = [row for row in whole.to_pylist() if row['verdict'] == 'kept']
    assert store.index(columns, 'kept').to_pylist() == [{name: row[name] for name in wanted} for row in kept]


def test_text_that_many_rows_share_is_held_once(store: Store) -> None:
    column = store.index(['prompt'], encoded=['prompt'])['prompt'].combine_chunks()
    assert sorted(column.dictionary.to_pylist()) == ['a', 'b']
    assert column.to_pylist() == store.index()['prompt'].to_pylist()


def test_a_column_that_is_not_asked_for_is_not_read(store: Store) -> None:
    path = store.folder / index_name(2)
    group = pq.read_metadata(path).row_group(0)
    params = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == 'params')
    data = bytearray(path.read_bytes())
    for i in range(params.dictionary_page_offset or params.data_page_offset, params.data_page_offset + 30):
        data[i] ^= 255
    path.write_bytes(data)
    assert len(store.index(['id', 'label'], 'kept')) == len(read_records({'store': str(store.folder)})) == 27
    with pytest.raises(StoreError, match=r'00002\.parquet'):
        store.index()


@pytest.mark.parametrize('spoil', [lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.write_bytes(b'')])
def test_a_damaged_block_is_named_among_many(store: Store, spoil: Any) -> None:
    spoil(store.folder / index_name(4))
    with pytest.raises(StoreError, match=r'00004\.parquet'):
        store.index(['id'])


@pytest.mark.parametrize(
    'choice',
    [
        {'where': 'score >= 2'},
        {'where': "class = 'dog' and Late is null", 'allow_empty': True},
        {'top_k': 2, 'by': 'score'},
        {'top_k': 0.5, 'by': '-score', 'where': 'prompt is not null'},
        {'sample': 3, 'seed': 5},
        {'where': "list_min([columns('score')]) < 4"},
        {'rejected': True, 'where': "verdict = 'rejected'"},
    ],
)
def test_a_selection_of_few_columns_is_the_same_selection(store: Store, choice: dict[str, Any]) -> None:
    whole, few = select(store, **choice), select(store, **choice, columns=['id', 'prompt'], encoded=['prompt'])
    assert few.table.column_names == ['id', 'prompt']
    assert few.table.to_pylist() == whole.table.select(['id', 'prompt']).to_pylist()
    assert len(few.table) > 0
    assert (few.counts, few.considered, few.undecided) == (whole.counts, whole.considered, whole.undecided)


def test_the_best_of_each_class_are_the_best(store: Store) -> None:
    rows = select(store).table.to_pylist()
    best = [i for label in range(3) for i in sorted((-r['score'], r['id']) for r in rows if r['label'] == label)[:4]]
    assert select(store, top_k=4, by='score', columns=['id']).table['id'].to_pylist() == sorted(i for _, i in best)


def test_an_unknown_name_is_offered_columns_that_were_not_read(store: Store) -> None:
    for text, near in (('scor > 1', 'score'), ('lat > 1', 'Late'), ('ofset > 1', 'offset')):
        with pytest.raises(RecipeError, match=near):
            select(store, text, columns=['id'])


def test_a_store_of_many_classes_is_told_in_one_line(tmp_path: Path) -> None:
    names = [f'c{i:02d}' for i in range(41)]
    assert select(store_of(tmp_path / 'm', classes=names, per_class=2)).describe() == 'all: 82 of 82 images (41 classes, 2 to 2 each)'
