"""A store from a stranger is data: whatever stands in it, nothing outside of it is read or written, and nothing is run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import make_store
from watched import untouched

from conftest import REPO, Say
from synthaug_plugins.errors import ModelError, RecipeError, StoreError, SynthAugError
from synthaug_plugins.handover.card import data_card
from synthaug_plugins.handover.export import LAYOUTS, export
from synthaug_plugins.mixing.records import read_records
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.erasure import Erasures
from synthaug_plugins.models.words import Words
from synthaug_plugins.plain_json import MAX_DEPTH, parse_json
from synthaug_plugins.store.cost import RunCost
from synthaug_plugins.store.encode import decode, encode
from synthaug_plugins.store.open_shards import forget_open_files
from synthaug_plugins.store.plan import MAX_TRIES, make_blocks
from synthaug_plugins.store.reader import StoreReader, image_uri, read_uri
from synthaug_plugins.store.reasons import group_reasons
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.shard import archive, index_name, read_index, shard_name
from synthaug_plugins.store.sheet import contact_sheet
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import parquet_bytes, read_parquet
from synthaug_plugins.store.verify import discard, verify


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp('whole') / 'store', keep_rejected=True)
    store.add_scores('later', pa.table({'id': store.index(['id'])['id'], 'rarity': np.linspace(0, 1, len(store.index(['id'])))}))
    store.add_cost(RunCost(images=20, seconds=1.0, batch_size=4))
    return Path(store.folder)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    forget_open_files()
    return Path(shutil.copytree(whole, tmp_path / 'store'))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / 'outside'
    folder.mkdir()
    (folder / 'bystander').write_text('nobody opens this')
    return folder


def use(folder: Path, out: Path) -> list[str]:
    """Do with a store what a command or a trainer does; what was refused. Anything but an error of ours comes through."""
    refused: list[str] = []

    def attempt(call: Callable[[], object]) -> None:
        try:
            call()
        except SynthAugError as error:
            refused.append(str(error))

    def trained_on() -> None:
        records = read_records({'store': str(folder), 'select': {'allow_empty': True}}, prompts=True)
        for row in range(len(records)):
            read_uri(records.uri(row))

    def repaired() -> None:
        opened = Store.open(folder)
        with opened.lock():
            discard(opened, verify(opened))

    attempt(trained_on)
    attempt(lambda: select(Store.open(folder), "params.sigma < 1 and class = 'one'", top_k=1, by='rarity', allow_empty=True))
    attempt(lambda: contact_sheet(Store.open(folder), out / 'sheet.png', select(Store.open(folder), rejected=True, allow_empty=True)))
    for layout in LAYOUTS:
        attempt(lambda to=layout: export(Store.open(folder), out / to, to))
    attempt(lambda: data_card(Store.open(folder)))
    attempt(lambda: verify(Store.open(folder)))
    attempt(repaired)
    attempt(lambda: Store.create(folder, Store.open(folder).plan, {}))
    return refused


@pytest.mark.parametrize(
    'name', ['store.json', 'cost.json', 'shards', 'index', 'scores', 'shards/00001.tar', 'index/00001.parquet', 'scores/later.parquet', 'shards/_info.json']
)
def test_a_link_is_not_followed_out_of_a_store(store: Path, outside: Path, tmp_path: Path, name: str) -> None:
    moved, relative = outside / Path(name).name, len(name) % 2
    (store / name).rename(moved)
    (store / name).symlink_to(os.path.relpath(moved, (store / name).parent) if relative else moved, target_is_directory=moved.is_dir())
    for folder in ('shards', 'index'):
        if (outside / folder).is_dir():
            (outside / folder / '.partial-somebody-elses').write_text('not ours')
    with untouched(outside):
        refused = use(store, tmp_path)
    assert refused or name == 'shards/_info.json'
    # A trainer, which knows what its shards are, calls one that became a link missing.
    assert all('is a link' in said or name == 'shards/_info.json' or (name.endswith('.tar') and 'is missing' in said) for said in refused), refused


def test_verify_names_a_link_and_repair_puts_a_file_in_its_place(store: Path, outside: Path, whole: Path) -> None:
    for name in (index_name(0), shard_name(1), 'shards/_info.json'):
        (store / name).rename(outside / Path(name).name)
        (store / name).symlink_to(outside / Path(name).name)
    with untouched(outside):
        opened = Store.open(store)
        found = {fault.file: fault.what for fault in verify(opened)}
        with opened.lock():
            assert discard(opened, verify(opened)) == [0, 1]
    assert found.keys() == {index_name(0), shard_name(1)}  # what the list of shards must say is not known without all indices
    assert 'is a link' in found[index_name(0)] and 'is a link' in found[shard_name(1)]
    assert not any((store / name).is_symlink() for name in (*found, 'shards/_info.json'))
    assert {p.name for p in outside.iterdir()} == {'bystander', '00000.parquet', '00001.tar', '_info.json'}


def test_the_folder_that_a_user_names_may_be_a_link(store: Path, tmp_path: Path) -> None:
    (tmp_path / 'short').symlink_to(store)
    assert use(tmp_path / 'short', tmp_path) == []


@pytest.mark.parametrize('name', ['store.json', shard_name(1), index_name(1)])
def test_nobody_waits_for_a_pipe(store: Path, tmp_path: Path, name: str) -> None:
    (store / name).unlink()
    os.mkfifo(store / name)
    refused = use(store, tmp_path)
    assert any('no ordinary file' in said or 'is missing' in said for said in refused), refused


def redigested(path: Path, **columns: Any) -> None:
    """Put columns into a table of a store; digest and checksums are right."""
    table = pq.read_table(path)
    for name, values in columns.items():
        at = table.column_names.index(name) if name in table.column_names else table.num_columns
        table = table.remove_column(at) if at < table.num_columns else table
        table = table.add_column(at, name, values)
    path.write_bytes(parquet_bytes(table))


def with_first(path: Path, name: str, value: Any) -> pa.ChunkedArray:
    column = pq.read_table(path).column(name)
    return pa.chunked_array([pa.array([value, *column.to_pylist()[1:]], column.type)])


@pytest.mark.parametrize(
    ('column', 'value', 'said'),
    [
        ('id', '../../x', 'no plain names'),
        ('id', '/etc/passwd', 'no plain names'),
        ('id', 'a.b', 'no plain names'),
        ('id', None, 'no id'),
        ('id', 'x' * 91, 'longer than 90'),
        ('label', -1, 'label is -1'),
        ('label', 3, 'label 3'),
        ('label', None, 'no label'),
        ('prompt', 'x' * 70_000, 'longer than'),
        ('seed', -1, 'seed is -1'),
        ('seed', 2**53, 'seed is'),
        ('params', None, 'no params'),
        ('params', 'x' * 70_000, 'longer than'),
        ('offset', -512, 'offset is -512'),
        ('offset', 0, 'offset is 0'),
        ('offset', 2**62, 'offset is'),
        ('offset', None, 'offset without a size'),
        ('offset', 'of the next', 'lie in one another'),
        ('size', 0, 'size is 0'),
        ('size', -5, 'size is -5'),
        ('size', 2**31, 'size is'),
        ('size', 100_000, 'lie in one another'),
        ('verdict', 'perhaps', 'neither kept nor rejected'),
        ('verdict', None, 'no verdict'),
    ],
)
def test_impossible_rows_are_refused_by_whoever_reads_them(store: Path, column: str, value: Any, said: str) -> None:
    path = store / index_name(0)
    value = pq.read_table(path)['offset'][1].as_py() if value == 'of the next' else value
    redigested(path, **{column: with_first(path, column, value)})
    with pytest.raises(StoreError, match=said):
        Store.open(store).index()
    if column != 'label' or value != 3:  # one table does not know the classes
        with pytest.raises(StoreError, match=r'index/00000\.parquet.*' + said):
            read_index(Store.open(store).place, 0)
    assert {fault.block for fault in verify(Store.open(store))} == {0}


@pytest.mark.parametrize('params', ['', 'null', '[1]', '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', '{"a": ' * 100 + '1' + '}' * 100, '\x00'])
def test_params_that_are_no_plain_object_are_refused_where_they_are_used(store: Path, params: str) -> None:
    path = store / index_name(0)
    redigested(path, params=with_first(path, 'params', params))
    opened = Store.open(store)
    assert [fault.block for fault in verify(opened)] == [0]
    with contextlib.suppress(SynthAugError):
        select(opened, 'params.sigma < 1', allow_empty=True)


def test_ids_that_are_there_twice_are_not_read_as_two_images(store: Path, tmp_path: Path) -> None:
    shutil.copy(store / index_name(0), store / index_name(1))
    with pytest.raises(StoreError, match='ids twice'):
        select(Store.open(store))
    with pytest.raises(StoreError, match='ids twice'):
        export(Store.open(store), tmp_path / 'out')


@pytest.mark.parametrize(
    ('columns', 'said'),
    [
        ({'class': [0.0]}, 'reserved'),
        ({'__row': [0.0]}, 'reserved'),
        ({'CLIP_P': [0.0]}, 'already'),
        ({'a b': [0.0]}, 'plain name'),
        ({'x" from images; --': [0.0]}, 'plain name'),
        ({'odd': [{'a': 1}]}, 'of the type struct'),
        ({'odd': [b'\xff']}, 'of the type binary'),
        ({'odd': [['text']]}, 'of the type list'),
    ],
)
def test_score_columns_of_a_stranger_have_plain_names_and_types(store: Path, columns: dict[str, list[Any]], said: str) -> None:
    path = store / index_name(0)
    table = pq.read_table(path)
    redigested(path, **{name: pa.array(values * len(table)) for name, values in columns.items()})
    with pytest.raises(StoreError, match=said):
        Store.open(store).index()
    scores = store / 'scores' / 'later.parquet'
    added = {name: pa.array(values * len(pq.read_table(scores))) for name, values in columns.items()}
    redigested(scores, **added)
    with pytest.raises(StoreError, match=said):
        Store.open(store).index()


def test_a_column_that_is_of_other_kinds_in_other_blocks_is_refused(store: Path) -> None:
    for number, values in enumerate((pa.array([2**62] * 6), pa.array(['text'] * 6))):
        path = store / index_name(number)
        redigested(path, clip_p=values.slice(0, len(pq.read_table(path))))
    with pytest.raises(StoreError, match='do not fit together'):
        Store.open(store).index()


def test_a_rank_beyond_double_precision_is_rounded(store: Path) -> None:
    path = store / 'scores' / 'later.parquet'
    redigested(path, rarity=pa.array([2**62 + 1] * len(pq.read_table(path))))
    assert select(Store.open(store), top_k=1, by='rarity').counts == {'one': 1, 'two': 1, 'three': 1}


def test_a_folder_in_the_place_of_a_file_is_left_to_the_user(store: Path) -> None:
    (store / index_name(0)).unlink()
    (store / index_name(0)).mkdir()
    opened = Store.open(store)
    with pytest.raises(StoreError, match='cannot be removed'):
        discard(opened, verify(opened))


# --- files that are small on disk and large in memory


def zigzag(number: int) -> bytes:
    """A Thrift integer."""
    number, out = number * 2, []
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_a_list_whose_length_the_summary_hides_is_not_read(store: Path) -> None:
    n = 20_000_000
    ids = pq.read_table(store / 'scores' / 'later.parquet').select(['id', 'sha256']).slice(0, 1)
    sink = pa.BufferOutputStream()
    pq.write_table(
        ids.append_column('logits', pa.ListArray.from_arrays([0, n], pa.array(np.zeros(n, np.float32)))), sink, compression='zstd', write_statistics=False
    )
    data = sink.getvalue().to_pybytes()
    at = len(data) - 8 - int.from_bytes(data[-8:-4], 'little')
    hidden = bytes([10 * 2 | 128, *[128] * (len(zigzag(n)) - 2), 0])  # 10, in as many bytes
    assert zigzag(n) in data[at:]
    for lied in (data, data[:at] + data[at:].replace(zigzag(n), hidden)):
        (store / 'scores' / 'later.parquet').write_bytes(lied)
        before = pa.total_allocated_bytes()
        with pytest.raises(StoreError, match=r'lists of .logits. hold 20000000 values'):
            Store.open(store).index()
        assert pa.total_allocated_bytes() - before < 10_000_000


def test_a_text_that_many_rows_share_is_measured_before_it_is_written_out(store: Path) -> None:
    path = store / index_name(0)
    table = pq.read_table(path)
    prompts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5000, np.int32)), pa.array(['x' * 300_000]))
    long = pa.concat_tables([table.slice(0, 1)] * 5000).set_column(3, 'prompt', prompts).combine_chunks()
    pq.write_table(long.replace_schema_metadata(None), path, compression='zstd', store_schema=False)
    assert path.stat().st_size < 50_000  # 1.5 GB once each row has its own
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(StoreError, match='longer than 65536 bytes'):
        Store.open(store).index()
    assert pa.default_memory_pool().max_memory() - peak < 500_000_000


def test_more_rows_than_a_block_or_a_store_can_have_are_not_read(store: Path) -> None:
    ids = pq.read_table(store / 'scores' / 'later.parquet').slice(0, 1)
    (store / 'scores' / 'later.parquet').write_bytes(parquet_bytes(pa.concat_tables([ids] * 1000).combine_chunks()))
    with pytest.raises(StoreError, match='1000 rows, there can be'):
        Store.open(store).index()
    place = Store.open(store).place
    with pytest.raises(StoreError, match=r'rows, there can be 1'):
        read_parquet(place, index_name(0), rows=1)
    with pytest.raises(RecipeError, match='tries'):
        make_blocks(['one'], MAX_TRIES, None, MAX_TRIES, 2.0)


def test_a_shard_of_a_terabyte_is_not_read_into_memory(store: Path) -> None:
    os.truncate(store / shard_name(0), 2**40)  # with a hole, it takes no disk
    found = [str(fault) for fault in verify(Store.open(store))]
    assert len(found) == 1 and 'shards/00000.tar: damaged' in found[0] and 'more than' in found[0]
    os.truncate(store / 'store.json', 2**40)
    with pytest.raises(StoreError, match='more than'):
        Store.open(store)


def test_pyarrows_pickled_types_are_not_run(store: Path, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / 'pwned'),)

    path = store / index_name(0)
    table = pq.read_table(path)
    marked = pa.field('odd', pa.float64(), metadata={'ARROW:extension:name': 'arrow.py_extension_type', 'ARROW:extension:metadata': pickle.dumps(Evil())})
    pq.write_table(table.append_column(marked, pa.array(np.zeros(len(table)))), path)
    use(store, tmp_path)
    assert not (tmp_path / 'pwned').exists()


# --- images


def put_image(store: Path, image: bytes) -> str:
    """Another file in the place of block 0's first image, with an index and a tar that fit it; returns its id."""
    opened = Store.open(store)
    path = store / index_name(0)
    table = pq.read_table(path)
    records = table.to_pylist()
    tar = (store / shard_name(0)).read_bytes()
    images = {r['id']: tar[r['offset'] : r['offset'] + r['size']] for r in records}
    stand_in = encode(np.zeros((1, 1, 3), np.uint8), 'png', 90) + bytes(len(image))
    images[records[0]['id']] = stand_in[: max(len(image), 8)]
    chunks, offsets = archive(records, images, opened.plan.blocks[0].class_names)
    data = b''.join(chunks)
    at, size = offsets[records[0]['id']]
    (store / shard_name(0)).write_bytes(data[:at] + image.ljust(size, b'\0') + data[at + size :])
    for record in records:
        record['offset'], record['size'] = offsets[record['id']]
    records[0]['sha256'] = hashlib.sha256(image.ljust(size, b'\0')).hexdigest()
    path.write_bytes(parquet_bytes(pa.Table.from_pylist(records, schema=table.schema.remove_metadata())))
    return records[0]['id']


@pytest.mark.parametrize('data', [b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n', b'BM' + bytes(60), b'GIF89a' + bytes(60), b'P6 8 8 255\n' + bytes(192)])
def test_no_decoder_but_those_of_stored_formats_is_asked(store: Path, tmp_path: Path, data: bytes) -> None:
    put_image(store, data)
    row = Store.open(store).index().to_pylist()[0]
    for call in (
        lambda: StoreReader(store).read_image(row),
        lambda: read_uri(image_uri(store, row['shard'], row['offset'], row['size'])),
        lambda: export(Store.open(store), tmp_path / 'export'),
    ):
        with pytest.raises(StoreError, match='no PNG, JPEG or WebP'):
            call()
    with pytest.raises(StoreError, match='cannot be decoded'):
        decode(data, 'It')


def test_an_image_that_does_not_decode_is_refused_by_its_name(store: Path, tmp_path: Path) -> None:
    png = encode(np.zeros((8, 8, 3), np.uint8), 'png', 90)
    bomb = png[:16] + struct.pack('>II', 60_000, 60_000) + png[24:]
    for data in (png[:40], bomb, png[:8] + bytes(64), b'\xff\xd8\xff' + bytes(40), b'RIFF\xff\xff\xff\xffWEBP' + bytes(9)):
        name = put_image(store, data)
        forget_open_files()
        with pytest.raises(StoreError, match=f'{name}.*cannot be decoded'):
            contact_sheet(Store.open(store), tmp_path / 'sheet.png', select(Store.open(store)), columns=99)


# --- JSON


@pytest.mark.parametrize(
    'text',
    [
        '{"a": 1, "a": 2}',
        '[NaN]',
        '[-Infinity]',
        '[1e400]',
        '[' * 10_000,
        '[' * (MAX_DEPTH + 1) + ']' * (MAX_DEPTH + 1),
        '["\\ud800"]',
        f'[{"9" * 5000}]',
        'x',
        '',
    ],
)
def test_json_that_is_not_plain_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('[' * MAX_DEPTH + ']' * MAX_DEPTH)
    assert parse_json('{"a": ["\\ud83d\\ude00", 1.5, -7]}') == {'a': ['😀', 1.5, -7]}


def _set(content: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split('.')
    for key in folders:
        content = content[int(key) if isinstance(content, list) else key]  # type: ignore[assignment]
    content[int(last) if isinstance(content, list) else last] = value  # type: ignore[index]


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        ('classes', 'abc'),
        ('classes', {'one': 1, 'two': 2, 'three': 3}),
        ('classes.0', '../..'),
        ('classes.0', 'a/b'),
        ('classes.0', '\x1b[31mred'),
        ('classes.0', 'x' * 256),
        ('classes.0', ['one']),
        ('classes.0', 'two'),
        ('recipe', [1]),
        ('sources.0', 'one'),
        ('sources.0.0', '../../x.png'),
        ('sources.0.0', '/etc/passwd'),
        ('sources.0.0', 7),
        ('blocks', {}),
        ('blocks.0', {}),
        ('blocks.0.0', [1]),
        ('blocks.0.0.label', -1),
        ('blocks.0.0.label', 1.0),
        ('blocks.0.0.label', True),
        ('blocks.0.0.label', '0'),
        ('blocks.0.0.target', 0),
        ('blocks.0.0.target', 10**30),
        ('blocks.0.0.max_tries', 10**12),
        ('blocks.0.0.first', -1),
        ('blocks.0.0.sources', -1),
        ('blocks.0.0.sources', 99),
        ('blocks.0.0.more', 1),
        ('made_by', []),
        ('made_by.recipe', 'import os'),
        ('made_by.command', ['rm']),
    ],
)
def test_a_card_that_no_plan_writes_is_refused_though_its_fingerprint_fits(store: Path, path: str, value: Any) -> None:
    content = json.loads((store / 'store.json').read_text())
    _set(content, path, value)
    plan = {key: content[key] for key in ('classes', 'recipe', 'sources', 'blocks')}
    content['fingerprint'] = hashlib.sha256(json.dumps(plan, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    (store / 'store.json').write_text(json.dumps(content))
    with pytest.raises(StoreError, match='is damaged'):
        Store.open(store)


@pytest.mark.parametrize(
    'runs',
    [
        '{}',
        '[1]',
        '[{}]',
        '[{"images": -1, "seconds": 1, "batch_size": 1}]',
        '[{"images": 1, "seconds": "x", "batch_size": 1}]',
        '[{"images": 1, "seconds": 1, "batch_size": 1, "device": ["x"]}]',
        '[' * 9999,
    ],
)
def test_a_cost_that_is_no_amount_is_refused(store: Path, runs: str) -> None:
    (store / 'cost.json').write_text(runs)
    with pytest.raises(StoreError, match=r'cost\.json'):
        Store.open(store)


def test_what_generation_took_is_not_believed_from_the_card(store: Path) -> None:
    content = json.loads((store / 'store.json').read_text())
    content['made_by']['cost'] = {'images': 0, 'network_images': 5}
    (store / 'store.json').write_text(json.dumps(content))
    assert Store.open(store).made_by['cost']['images'] == 20
    (store / 'cost.json').unlink()
    assert 'cost' not in Store.open(store).made_by


# --- the whole of it


def test_nothing_outside_a_hostile_store_is_read_and_nothing_in_it_is_run(store: Path, outside: Path, tmp_path: Path, synthaug: Say) -> None:
    """Everything at once, through the command line: a recipe, plugins and pickles beside the shards, links, and names that mean something elsewhere."""
    pwned = tmp_path / 'pwned'
    for name in ('store.py', 'recipe.py', 'sitecustomize.py', 'conftest.py', '__init__.py', 'shards/clip_filter.py'):
        (store / name).write_text(f'open({str(pwned)!r}, "w")\n')
    (store / 'index' / 'weights.pkl').write_bytes(b'cos\nmkdir\n(S' + repr(str(pwned)).encode() + b'\ntR.')
    os.link(outside / 'bystander', store / 'hard-link')
    (store / 'scores' / 'taken.parquet').symlink_to(outside / 'bystander')
    (store / 'scores' / '.scoring-clip').symlink_to(outside)
    (store / 'shards' / '.partial-x').symlink_to(outside / 'bystander')
    (store / 'etc').symlink_to('/etc')
    content = json.loads((store / 'store.json').read_text())
    content['made_by']['recipe'] = {'generator': {'type': 'os.mkdir', 'path': str(pwned)}, 'data': str(outside)}
    (store / 'store.json').write_text(json.dumps(content))
    before = os.getcwd()
    with untouched(outside / 'bystander', outside):
        assert use(store, tmp_path)
        os.chdir(store)  # where Python would find modules
        try:
            for command in (
                ['show', store, '--out', tmp_path / 'kept.png'],
                ['export', store, '--out', tmp_path / 'folder'],
                ['verify', store],
                ['repair', store],
                ['score', store, 'sanity_that_does_not_exist'],
            ):
                said = synthaug(*command)
                assert said.status in (2, 4), said
                assert 'Traceback' not in said.err
        finally:
            os.chdir(before)
    assert not pwned.exists()


def test_what_a_terminal_is_told_of_reasons_holds_no_control_characters() -> None:
    assert list(group_reasons({'\x1b]0;title\x07 bad (x)': 2, 'line\nline': 1})) == ['\\x1b]0;title\\x07 bad', 'line\\nline']


def test_names_prompts_and_reasons_of_a_stranger_are_text_in_a_report(tmp_path: Path) -> None:
    from test_store import MADE_BY

    from synthaug_plugins.evaluation.gallery import counts, gallery
    from synthaug_plugins.evaluation.pages import write_page
    from synthaug_plugins.evaluation.report import Overview
    from synthaug_plugins.store.plan import Plan, Request, request_id
    from synthaug_plugins.store.shard import Row

    evil = '"><script>alert(1)<'
    plan = Plan((evil,), make_blocks((evil,), 2, {evil: ['a.png']}, 4), {'seed': 0})
    store = Store.create(tmp_path / 'store', plan, {**MADE_BY, 'model': evil, 'device': evil, 'recipe': {'data': evil}})
    part = plan.parts[0]
    png = encode(np.zeros((8, 8, 3), np.uint8), 'png', 90)
    rows = [Row(Request(request_id(part, n), 0, evil, n, evil, evil, {'t0': evil, 'sigma': n}), 'kept', None, 'png', png) for n in range(2)]
    rows.append(Row(Request(request_id(part, 2), 0, evil, 2, evil, evil, {'t0': [1]}), 'rejected', evil, 'png', png))
    store.publish(plan.blocks[0], rows, keep_rejected=True)
    shown = {**gallery(store), 'store': evil, 'pixelated': True}
    assert shown['columns'] == [0, 1]
    page = {
        'title': evil, 'notes': [evil], 'comparisons': [], 'galleries': [shown], 'funnels': [{**counts(store, [(evil, None)]), 'store': evil}],
        'costs': [{'store': evil, 'model': evil, 'device': evil, 'images': None, 'seconds': None, 'rate': None}], 'commands': [evil],
        'overview': Overview(), 'sections': [], 'versions': {evil: evil},
    }  # fmt: skip
    write_page(tmp_path / 'page.html', 'report.html.j2', **page)
    text = (tmp_path / 'page.html').read_text()
    assert '<script' not in text and '&lt;script&gt;' in text


# --- what was learned


@pytest.mark.parametrize('what', ['words', 'embeddings', 'erasures'])
def test_links_and_pickles_in_what_was_learned_are_refused(outside: Path, tmp_path: Path, what: str) -> None:
    import pickle

    secret = outside / 'secret'
    secret.write_bytes(pickle.dumps({'a': 1}))
    folder = tmp_path / 'learned'
    folder.mkdir()
    if what == 'words':
        shutil.copy(secret, folder / 'words.safetensors')
        with pytest.raises(ModelError, match='no learned words'):
            Words(folder / 'words.safetensors')
        return
    name, opens = {'embeddings': ('embeddings.json', Embeddings), 'erasures': ('erasures.json', Erasures)}[what]
    (folder / name).symlink_to(secret)
    with untouched(outside), pytest.raises(ModelError, match='is a link'):
        opens(folder)


def test_the_package_runs_nothing_that_it_reads() -> None:
    """No call in the package reads a pickle as code, evaluates text, or lets a model bring its own."""
    import ast

    wrong = []
    unsafe = {('trust_remote_code', True), ('weights_only', False), ('allow_pickle', True), ('shell', True)}
    own = {'executors'}  # what its own processes say to each other
    for path in sorted(p for p in (REPO / 'synthaug_plugins').rglob('*.py') if not own & set(p.parts)):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and (node.arg, node.value.value) in unsafe:
                wrong.append(f'{path.name}:{node.value.lineno} {node.arg}')
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in {'eval', 'exec', 'os.system', 'pickle.load', 'pickle.loads', 'yaml.load', 'joblib.load', 'marshal.loads', 'torch.hub.load'}:
                    wrong.append(f'{path.name}:{node.lineno} {called}')
                if called == 'torch.load' and not any(k.arg == 'weights_only' for k in node.keywords):
                    wrong.append(f'{path.name}:{node.lineno} torch.load without weights_only')
    assert wrong == []
