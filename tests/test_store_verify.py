"""`verify` finds every planted fault, `discard` clears just the damaged blocks, and the same command heals the store."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import make_plan, make_rows, make_store, mixed_plan, tree

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import file_digest
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.shard import index_name, read_index, shard_name
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import parquet_bytes
from synthaug_plugins.store.verify import Fault, block_faults, discard, verify


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp('whole') / 'store', keep_rejected=True)


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Store:
    shutil.copytree(whole.folder, tmp_path / 'store')
    return Store.open(tmp_path / 'store')


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def heal(store: Store, whole: Store) -> list[int]:
    """Discard what is damaged, make it again as the engine does, and see that the store is as it was."""
    with store.lock():
        redo = discard(store, verify(store))
        assert [b.index for b in store.unfinished()] == redo
        for block in store.unfinished():
            store.publish(block, make_rows(block), True)
    store = Store.create(store.folder, store.plan, store.made_by)
    assert verify(store) == []
    assert tree(store.folder) == tree(whole.folder)
    return redo


def test_a_whole_store_has_no_faults(whole: Store) -> None:
    assert verify(whole) == []


def test_every_flipped_byte_of_a_shard_is_found(store: Store) -> None:
    path = store.folder / shard_name(1)
    size = path.stat().st_size
    places = {*range(0, size, 211), *range(0, 515, 2), size - 1, size - 1024, size - 512}
    for at in sorted(places):
        flip(path, at)
        faults = verify_block_one(store)
        assert faults, f'byte {at} of {size}'
        flip(path, at)
    assert verify_block_one(store) == []


def verify_block_one(store: Store) -> list[str]:
    return [str(f) for f in block_faults(store, store.plan.blocks[1])]


def test_truncation_anywhere_is_found_and_repaired(store: Store, whole: Store) -> None:
    path = store.folder / shard_name(2)
    data = path.read_bytes()
    for size in (0, 100, 512, 700, len(data) // 2, len(data) - 1024, len(data) - 512, len(data) - 1):
        path.write_bytes(data[:size])
        faults = verify(store)
        assert [(f.block, f.file) for f in faults] == [(2, 'shards/00002.tar')]
        assert 'cut short' in faults[0].what
    assert heal(store, whole) == [2]


def test_flipped_bytes_are_named_by_what_they_hit(store: Store, whole: Store) -> None:
    record = read_index(store.place, 0).to_pylist()[1]
    flip((store.folder / shard_name(0)), record['offset'] + 30)
    flip((store.folder / shard_name(1)), 0)
    third = store.folder / shard_name(2)
    flip(third, third.read_bytes().index(b'"sampler"'))
    words = {f.block: f.what for f in verify(store)}
    assert words.keys() == {0, 1, 2}
    assert "the first is '00000_000001'" in words[0]
    assert 'at 00001_000000.png' in words[1]
    assert '.json' in words[2]
    assert heal(store, whole) == [0, 1, 2]


def test_no_flipped_byte_of_an_index_changes_what_is_read(store: Store) -> None:
    path = store.folder / index_name(3)
    before = read_index(store.place, 3).replace_schema_metadata(None)
    size = path.stat().st_size
    found = 0
    for at in range(0, size, 7):
        flip(path, at)
        faults = list(block_faults(store, store.plan.blocks[3]))
        found += bool(faults)
        # The bytes that nothing guards are Parquet's statistics and the name of its writer.
        assert faults or read_index(store.place, 3).replace_schema_metadata(None).equals(before), at
        flip(path, at)
    assert found > size / 7 / 2
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    assert [f.block for f in verify(store)] == [3]


def test_a_renamed_score_column_is_found(store: Store) -> None:
    path = store.folder / index_name(3)
    data = path.read_bytes()
    assert data.count(b'clip_p') > 1
    path.write_bytes(data.replace(b'clip_p', b'clip_q'))
    assert [f.block for f in verify(store)] == [3]


Damage = Callable[[Store], object]


def drop_member(store: Store) -> None:
    path = store.folder / shard_name(4)
    record = read_index(store.place, 4).to_pylist()[0]
    data = path.read_bytes()
    cut = record['offset'] + -(-record['size'] // 512) * 512
    path.write_bytes(data[:cut] + data[cut + 1024 :])  # without the .cls of the first image


def rewrite_index(change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(store: Store) -> None:
        path = store.folder / index_name(4)
        path.write_bytes(parquet_bytes(change(read_index(store.place, 4))))

    return damage


def column(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, table.field(at), pa.array([value] * len(table), table.field(at).type))

    return change


@pytest.mark.parametrize(
    ('damage', 'file', 'what'),
    [
        (drop_member, 'shards/00004.tar', 'missing or changed'),
        (lambda s: (s.folder / shard_name(4)).unlink(), 'shards/00004.tar', 'missing'),
        (lambda s: (s.folder / index_name(4)).unlink(), 'index/00004.parquet', 'counts as not finished'),
        (lambda s: ((s.folder / index_name(4)).unlink(), (s.folder / shard_name(4)).unlink()), 'index/00004.parquet', 'not made yet'),
        (lambda s: shutil.copy((s.folder / shard_name(3)), (s.folder / shard_name(4))), 'shards/00004.tar', 'bytes'),
        (rewrite_index(column('label', 0)), 'index/00004.parquet', 'another label'),
        (rewrite_index(column('id', '00004_000000')), 'index/00004.parquet', 'repeated'),
        (rewrite_index(column('prompt', 'a dog')), 'shards/00004.tar', 'different from the index'),
        (rewrite_index(lambda t: t.slice(0, 2)), 'index/00004.parquet', 'three: 2 of 4 images after 2 of 16 tries'),
        (rewrite_index(lambda t: t.drop_columns(['seed'])), 'index/00004.parquet', 'unexpected columns'),
        (lambda s: (s.folder / 'shards' / '.partial-00004.tar-99').write_bytes(b'x'), 'shards/.partial-00004.tar-99', 'killed run'),
        (lambda s: (s.folder / 'shards' / '_info.json').write_text('{}'), 'shards/_info.json', 'different from the shards'),
    ],
)
def test_planted_faults_are_found_and_repaired(store: Store, whole: Store, damage: Damage, file: str, what: str) -> None:
    damage(store)
    faults = verify(store)
    assert any(f.file == file and what in f.what for f in faults), [str(f) for f in faults]
    assert {f.block for f in faults} <= {4, None}
    assert heal(store, whole) in ([4], [])


def relabel(old: int, new: int) -> Callable[[pa.Table], pa.Table]:
    """The first row of the class `old` as if it were of the class `new`."""

    def change(table: pa.Table) -> pa.Table:
        labels = table['label'].to_pylist()
        labels[labels.index(old)] = new
        at = table.column_names.index('label')
        return table.set_column(at, table.field(at), pa.array(labels, table.field(at).type))

    return change


@pytest.mark.parametrize(
    ('change', 'file', 'what'),
    [
        (relabel(3, 2), 'index', 'four: 0 of 1 images after 0 of 4 tries: the block was not finished'),
        (relabel(3, 2), 'shards', 'different from the index'),
        (relabel(3, 1), 'index', 'rows have another label than those of the block: 1'),
        (relabel(3, 1), 'shards', 'cannot be compared with its index'),
        (lambda table: table.slice(0, 2), 'index', 'four: 0 of 1 images'),
        (lambda table: table.slice(1), 'index', 'three: 1 of 2 images after 1 of 8 tries'),
    ],
)
def test_faults_of_one_class_in_a_shared_block_are_found_and_repaired(tmp_path: Path, change: Callable[[pa.Table], pa.Table], file: str, what: str) -> None:
    whole = make_store(tmp_path / 'whole' / 'store', mixed_plan(), keep_rejected=True)
    shutil.copytree(whole.folder, tmp_path / 'store')
    store = Store.open(tmp_path / 'store')
    path = store.folder / index_name(3)
    path.write_bytes(parquet_bytes(change(read_index(store.place, 3))))
    faults = verify(store)
    assert any(f.file.startswith(file) and what in f.what for f in faults), [str(f) for f in faults]
    assert heal(store, whole) == [3]


def test_every_flipped_bit_of_an_index_is_found(store: Store) -> None:
    """Also where it changes nothing that is read: statistics, page headers, the name of what wrote the file, the digests themselves."""
    block, path = store.plan.blocks[3], store.folder / index_name(3)
    data = path.read_bytes()
    rng = random.Random(0)
    digests = [data.rindex(key) for key in (b'synthaug.content_sha256', b'synthaug.file_sha256')]
    places = [rng.randrange(len(data)) for _ in range(150)] + [at + k for at in digests for k in (0, 5, 30, 60)] + [len(data) - k for k in range(1, 9)]
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        assert list(block_faults(store, block)), f'a bit of byte {at} of {len(data)} was flipped'
    path.write_bytes(data)
    assert not list(block_faults(store, block))


def test_an_index_that_was_written_without_a_digest_of_the_file_is_read_as_before(store: Store) -> None:
    path = store.folder / index_name(3)
    table = pq.read_table(path)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != file_digest.KEY}
    pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True)
    assert not verify(store)


def test_an_id_in_two_blocks_is_found(store: Store) -> None:
    store = make_store(store.folder.parent / 'twins', make_plan({'one': 4, 'two': 4}, block_size=2))
    for name in (shard_name, index_name):
        shutil.copy(store.folder / name(2), store.folder / name(3))
    faults = verify(store)
    assert [(f.block, f.what) for f in faults] == [(3, "the id '00002_000000' is in block 2 too")]


def test_orphans_are_reported_and_never_removed(store: Store) -> None:
    orphans = ['shards/99999.tar', 'index/99999.parquet', 'notes.txt', 'scores/draft.csv']
    for name in orphans:
        (store.folder / name).parent.mkdir(exist_ok=True)
        (store.folder / name).write_text('mine')
    faults = verify(store)
    assert sorted(f.file for f in faults) == sorted(orphans)
    assert all(f.block is None and 'not part of the store' in f.what for f in faults)
    assert discard(store, faults) == []
    assert all((store.folder / name).read_text() == 'mine' for name in orphans)
    assert store.unfinished() == []


def test_faulty_scores_are_reported_and_left_alone(store: Store) -> None:
    ids = store.index()['id']
    store.add_scores('good', pa.table({'id': ids, 'quality': np.arange(len(ids), dtype=float)}))
    assert verify(store) == []
    hashes = store.index()['sha256'].to_pylist()
    scores = store.folder / 'scores'
    (scores / 'cut.parquet').write_bytes((scores / 'good.parquet').read_bytes()[:-9])
    (scores / 'strange.parquet').write_bytes(parquet_bytes(pa.table({'id': ['stranger'], 'other': [1.0], 'sha256': ['']})))
    (scores / 'twice.parquet').write_bytes(parquet_bytes(pa.table({'id': ids, 'CLIP_P': [1.0] * len(ids), 'sha256': hashes})))
    words = {f.file: f.what for f in verify(store)}
    assert words.keys() == {'scores/cut.parquet', 'scores/strange.parquet', 'scores/twice.parquet'}
    assert 'damaged' in words['scores/cut.parquet']
    assert "'stranger'" in words['scores/strange.parquet']
    assert "'CLIP_P' is in the index too" in words['scores/twice.parquet']
    before = tree(scores)
    discard(store, verify(store))
    assert tree(scores) == before
    with pytest.raises(StoreError, match=r'cut\.parquet'):
        store.index()


def test_reading_after_a_repair_sees_the_new_shard(store: Store, whole: Store) -> None:
    record = store.index().to_pylist()[0]
    reader = StoreReader(store.folder)
    data = reader.read(record['shard'], record['offset'], record['size'])
    path = store.folder / shard_name(0)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(StoreError, match=r'00000\.tar'):
        reader.read(record['shard'], record['offset'], record['size'])
    heal(store, whole)
    assert reader.read(record['shard'], record['offset'], record['size']) == data


def test_scores_do_not_stick_to_images_that_were_made_again(tmp_path: Path) -> None:
    """The ids of a redone block stay; if its pixels differ (another GPU), the old scores count as missing and verify says so."""
    store = make_store(tmp_path / 'store')
    ids = store.index()['id'].to_pylist()
    store.add_scores('late', pa.table({'id': ids, 'late': [1.0] * len(ids)}))
    block = store.plan.blocks[1]
    for row in store.index().to_pylist():
        assert row['late'] == 1.0
    discard(store, [Fault(block.index, 'index', 'damaged')])
    Store.open(store.folder).publish(block, make_rows(block, 'webp'), keep_rejected=False)
    rows = Store.open(store.folder).index().to_pylist()
    assert {row['shard'] for row in rows if row['late'] is None} == {block.index}
    assert any('made again' in f.what for f in verify(Store.open(store.folder)))


def test_scores_of_pandas_and_polars_are_texts_too(tmp_path: Path) -> None:
    """Their texts are of another width than ours."""
    store = make_store(tmp_path / 'store')
    ids = store.index(['id'])['id'].cast(pa.large_string())
    store.add_scores('x', pa.table({'id': ids, 'note': pa.array([f'note {i}' for i in range(len(ids))], pa.large_string())}))
    assert not verify(store)
    assert store.index(['note'])['note'].to_pylist() == [f'note {i}' for i in range(len(ids))]


def test_score_columns_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    ids = store.index()['id'].to_pylist()
    store.add_scores('a', pa.table({'id': ids, 'Late': [1.0] * len(ids)}))
    for columns in ({'late': 0.0}, {'x': 0.0, 'X': 0.0}):
        with pytest.raises(StoreError, match='already'):
            store.add_scores('b', pa.table({'id': ids, **{k: [v] * len(ids) for k, v in columns.items()}}))
