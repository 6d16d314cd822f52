"""The store keeps what was made: whole blocks, deterministic bytes, and nobody else's files."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from conftest import copy_of_this_process
from synthaug_plugins.errors import RecipeError, StoreError
from synthaug_plugins.store import files
from synthaug_plugins.store.address import place_of
from synthaug_plugins.store.cost import RunCost, read_runs
from synthaug_plugins.store.encode import check_format, encode
from synthaug_plugins.store.plan import Block, Part, Plan, Request, make_blocks, request_id, request_seed
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.reasons import group_reasons
from synthaug_plugins.store.shard import Row, index_name, shard_name, write_block
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import INDEX_SCHEMA
from synthaug_plugins.store.verify import verify

CLASSES = ('one', 'two', 'three')
MADE_BY = {'model': {'name': 'embedded:test', 'sha256': '0' * 64}}


def make_plan(per_class: int | Mapping[str, int] = 6, block_size: int = 4, recipe: Mapping[str, Any] | None = None) -> Plan:
    sources = {name: [f'{name}/{i}.png' for i in range(2)] for name in CLASSES}
    return Plan(CLASSES, make_blocks(CLASSES, per_class, sources, block_size), recipe or {'generator': {'type': 'EDM', 'steps': 18}, 'seed': 0})


def mixed_plan() -> Plan:
    """Five blocks, of which the first and the fourth hold two classes."""
    classes = ('one', 'two', 'three', 'four', 'five')
    sources = {name: [f'{name}/{i}.png' for i in range(2)] for name in classes}
    quotas = {'one': 2, 'two': 1, 'three': 10, 'four': 1, 'five': 3}
    return Plan(classes, make_blocks(classes, quotas, sources, 4), {'seed': 0})


def make_rows(block: Block, format: str = 'png') -> list[Row]:
    """Enough rows for the targets of the block's parts; every third try is rejected."""
    return [row for part in block.parts for row in make_part(part, format)]


def make_part(part: Part, format: str) -> list[Row]:
    rows: list[Row] = []
    number = kept = 0
    while kept < part.target:
        seed = request_seed(0, part, number)
        params = {'sigma': [0.3, 0.6][number % 2], 'sampler': 'heun'}
        request = Request(request_id(part, number), part.label, part.class_name, seed, part.sources[number % 2], f'a {part.class_name}', params)
        image = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        bad = number % 3 == 2
        reason = f'blank (contrast {number:.2f} below 2)' if bad else None
        rows.append(Row(request, 'rejected' if bad else 'kept', reason, format, encode(image, format, 90), {'clip_p': number / 10}))
        number, kept = number + 1, kept + (not bad)
    return rows


def make_store(folder: Path, plan: Plan | None = None, keep_rejected: bool = False, format: str = 'png') -> Store:
    store = Store.create(folder, plan or make_plan(), MADE_BY)
    for block in store.unfinished():
        store.publish(block, make_rows(block, format), keep_rejected)
    return store


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.mark.parametrize('keep_rejected', [False, True])
@pytest.mark.parametrize('format', ['png', 'jpg', 'webp'])
def test_what_is_published_is_read_back(tmp_path: Path, format: str, keep_rejected: bool) -> None:
    store = make_store(tmp_path / 'store', keep_rejected=keep_rejected, format=format)
    again = Store.open(tmp_path / 'store')
    assert (again.classes, again.plan, again.made_by) == (CLASSES, store.plan, MADE_BY)
    assert again.unfinished() == []
    table = again.index()
    assert table.column_names == [*INDEX_SCHEMA.names, 'shard', 'clip_p']
    assert table.schema.types[: len(INDEX_SCHEMA)] == INDEX_SCHEMA.types
    reader = StoreReader(tmp_path / 'store')
    expected = {row.request.id: row for block in store.plan.blocks for row in make_rows(block, format)}
    assert table['id'].to_pylist() == list(expected)
    for record in table.to_pylist():
        row = expected[record['id']]
        assert record['sha256'] == hashlib.sha256(row.image).hexdigest()
        assert json.loads(record['params']) == row.request.params
        assert (record['seed'], record['source'], record['prompt'], record['label']) == (
            row.request.seed,
            row.request.source,
            row.request.prompt,
            row.request.label,
        )
        assert (record['verdict'], record['reason'], record['clip_p']) == (row.verdict, row.reason, row.scores['clip_p'])
        if row.verdict == 'kept' or keep_rejected:
            assert reader.read(record['shard'], record['offset'], record['size']) == row.image
        else:
            assert record['offset'] is None
            assert record['size'] is None


def test_small_classes_share_a_block_in_label_order_and_large_ones_are_cut() -> None:
    plan = mixed_plan()
    shape = [[(part.class_name, part.target, part.first) for part in block.parts] for block in plan.blocks]
    assert shape == [
        [('one', 2, 0), ('two', 1, 0)],
        [('three', 4, 0)],
        [('three', 4, 4)],
        [('three', 2, 8), ('four', 1, 0)],
        [('five', 3, 0)],
    ]
    assert [block.index for block in plan.blocks] == [part.block for part in (b.parts[-1] for b in plan.blocks)] == list(range(5))
    assert Plan.from_content(json.loads(json.dumps(plan.content()))) == plan
    thousand = make_blocks([f'c{i}' for i in range(1000)], 10, None, 256)
    assert [block.target for block in thousand] == [250] * 40
    assert sorted(part.label for block in thousand for part in block.parts) == list(range(1000))


@pytest.mark.parametrize('block_size', [1, 3, 4, 7, 100])
@pytest.mark.parametrize('tries', [1.0, 1.5, 4.0])
def test_every_class_has_its_quota_and_its_tries_whatever_the_block_size(block_size: int, tries: float) -> None:
    classes = [f'c{i}' for i in range(12)]
    quotas = {name: (i * 7) % 11 for i, name in enumerate(classes)}
    blocks = make_blocks(classes, quotas, None, block_size, tries)
    assert all(0 < block.target <= block_size for block in blocks)
    seen: dict[str, int] = {}
    for part in (part for block in blocks for part in block.parts):
        assert part.first == seen.get(part.class_name, 0)
        assert part.max_tries == int(part.target * tries)
        seen[part.class_name] = part.first + part.target
    assert seen == {name: n for name, n in quotas.items() if n}


def test_requests_of_all_parts_have_their_own_ids_and_seeds_and_sort_by_class() -> None:
    asked = [(part, number) for part in mixed_plan().parts for number in range(part.max_tries)]
    ids = [request_id(part, number) for part, number in asked]
    assert len(set(ids)) == len({request_seed(0, part, number) for part, number in asked}) == len(asked)
    assert ids == sorted(ids)


@pytest.mark.parametrize('labels', [[], [1, 0], [0, 0], [-1, 0], [4, 5]])
def test_a_card_with_impossible_blocks_is_refused(tmp_path: Path, labels: list[int]) -> None:
    content = json.loads(json.dumps(mixed_plan().content()))
    content['blocks'][0] = [{**content['blocks'][0][0], 'label': label} for label in labels]
    with pytest.raises(ValueError, match='block 0 has the'):
        Plan.from_content(content)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    make_store(tmp_path / 'a' / 'store')
    time.sleep(1.1)  # a time stamp in a header would show
    make_store(tmp_path / 'b' / 'store')
    assert tree(tmp_path / 'a') == tree(tmp_path / 'b')


def test_any_tar_reader_sees_kept_images_only(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store', keep_rejected=True)
    block = store.plan.blocks[0]
    kept = [r.request.id for r in make_rows(block) if r.verdict == 'kept']
    with tarfile.open(store.folder / shard_name(0)) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f'{i}.{s}' for i in kept for s in ('png', 'cls', 'json')]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, '')}
        assert tar.extractfile(f'{kept[0]}.cls').read() == b'0'
        sidecar = json.loads(tar.extractfile(f'{kept[0]}.json').read())
        assert (sidecar['id'], sidecar['class_name'], sidecar['params']['sampler']) == (kept[0], 'one', 'heun')
    with tarfile.open((store.folder / shard_name(0)), ignore_zeros=True) as tar:
        assert len({n.partition('.')[0] for n in tar.getnames()}) == len(make_rows(block))
    listed = subprocess.run(['tar', 'tf', str(store.folder / shard_name(0))], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [m.name for m in members]
    assert listed.stderr == ''


def test_members_of_a_shared_shard_name_their_own_class(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store', mixed_plan(), keep_rejected=True)
    with tarfile.open(store.folder / shard_name(0)) as tar:
        for name in tar.getnames():
            if name.endswith('.json'):
                sidecar = json.loads(tar.extractfile(name).read())
                label = int(tar.extractfile(name.replace('.json', '.cls')).read())
                assert (sidecar['label'], sidecar['class_name'], sidecar['prompt']) == (label, store.classes[label], f'a {store.classes[label]}')
    assert {row['label'] for row in store.index().to_pylist() if row['shard'] == 0} == {0, 1}
    assert {name: (c['kept'], c['target']) for name, c in store.counts().items()} == {
        **{'one': (2, 2), 'two': (1, 1), 'three': (10, 10)},
        **{'four': (1, 1), 'five': (3, 3)},
    }


def test_the_index_is_the_commit_mark(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    whole = tree(store.folder)
    (store.folder / index_name(1)).unlink()
    assert [b.index for b in store.unfinished()] == [1]
    assert 1 not in store.index()['shard'].to_pylist()
    make_store(tmp_path / 'store')
    assert tree(store.folder) == whole


@pytest.mark.parametrize('moment', [1, 2, 3, 4, 5, 6, 9])
def test_kill_nine_then_the_same_command_gives_the_same_store(tmp_path: Path, moment: int) -> None:
    reference = make_store(tmp_path / 'reference' / 'store')
    folder = tmp_path / 'killed' / 'store'

    def make_and_die() -> None:
        calls, real = itertools.count(1), os.fsync
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == moment else real(fd)
        make_store(folder)

    ended = copy_of_this_process(make_and_die).end()
    assert ended.status == -signal.SIGKILL, ended.err
    left = tree(folder)
    store = Store.create(folder, make_plan(), MADE_BY)
    with store.lock():
        store.clean_partials()
        for block in store.unfinished():
            store.publish(block, make_rows(block), False)
    assert tree(folder) == tree(reference.folder)
    assert moment < 3 or any('.partial-' in name or name.endswith('.tar') for name in left)


def test_a_folder_that_is_not_ours_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / 'thesis'
    (folder / 'shards').mkdir(parents=True)
    (folder / 'shards' / 'chapter.tex').write_text('years of work')
    before = tree(folder)
    with pytest.raises(StoreError, match=r'not empty and not a store: it holds .shards'):
        Store.create(folder, make_plan(), MADE_BY)
    assert tree(folder) == before
    file = tmp_path / 'file'
    file.write_text('x')
    with pytest.raises(StoreError, match='not a folder'):
        Store.create(file, make_plan(), MADE_BY)
    assert file.read_text() == 'x'


def test_a_killed_create_can_be_resumed(tmp_path: Path) -> None:
    for name in ('shards', 'index', 'scores'):
        (tmp_path / name).mkdir()
    (tmp_path / '.partial-store.json-4711').write_text('{"format_ver')
    store = make_store(tmp_path)
    store.clean_partials()
    assert not list(tmp_path.glob('.partial*'))


def test_another_recipe_is_refused_naming_what_differs(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    before = tree(store.folder)
    other = {'generator': {'type': 'EDM', 'steps': 40, 'order': 2}, 'inspectors': [{'type': 'ImageSanity'}], 'seed': 0}
    with pytest.raises(StoreError) as caught:
        Store.create(store.folder, make_plan(recipe=other), MADE_BY)
    message = str(caught.value)
    assert 'generator.steps: 18 -> 40' in message
    assert 'generator.order: absent -> 2' in message
    assert 'inspectors.0.type: absent -> "ImageSanity"' in message
    assert 'seed' not in message
    with pytest.raises(StoreError, match=r'number of blocks: 6 -> 3; block 0 one target: 4 -> 6'):
        Store.create(store.folder, make_plan(block_size=8), MADE_BY)
    plan = make_plan()
    with pytest.raises(StoreError, match=r'classes: \["one", "two", "three"\] -> \["three", "two", "one"\]'):
        Store.create(store.folder, replace(plan, classes=CLASSES[::-1]), MADE_BY)
    with pytest.raises(StoreError, match=r'number of blocks: 6 -> 2; block 0 classes: one -> one, two'):
        Store.create(store.folder, make_plan(block_size=12), MADE_BY)
    one_less = tuple(replace(b, parts=tuple(replace(p, sources=p.sources[:1]) if p.label == 1 else p for p in b.parts)) for b in plan.blocks)
    with pytest.raises(StoreError, match=r"block 2 two sources: 2 images -> 1 images, 'two/1.png' in one only"):
        Store.create(store.folder, replace(plan, blocks=one_less), MADE_BY)
    assert tree(store.folder) == before


@pytest.mark.parametrize(
    ('text', 'what'),
    [
        (None, 'not a store'),
        ('{"format_', 'cannot be read'),
        ('[]', 'format_version None'),
        ('{"format_version": 99}', 'format_version 99'),
        ('{"format_version": 1}', r'format_version 1; this version reads 2\. Generate the store again from its recipe'),
        ('{"format_version": 2}', 'damaged'),
    ],
)
def test_open_refuses_what_is_not_a_store(tmp_path: Path, text: str | None, what: str) -> None:
    if text is not None:
        (tmp_path / 'store.json').write_text(text)
    with pytest.raises(StoreError, match=what) as caught:
        Store.open(tmp_path)
    assert caught.value.cure


def test_an_edited_card_is_noticed(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    card = store.folder / 'store.json'
    card.write_text(card.read_text().replace('"steps": 18', '"steps": 19'))
    with pytest.raises(StoreError, match='fingerprint'):
        Store.open(store.folder)


HOLD = 'import sys, time; from synthaug_plugins.store.store import Store\nwith Store.open(sys.argv[1]).lock():\n print("held", flush=True); time.sleep(60)'


def test_a_second_writer_is_refused_and_a_dead_one_frees_the_lock(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    other = subprocess.Popen([sys.executable, '-c', HOLD, str(store.folder)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b'held\n'
        with pytest.raises(StoreError, match='Another process is writing'), store.lock():
            pass
    finally:
        other.kill()
        other.wait()
    with store.lock(), pytest.raises(StoreError, match='Another process is writing'), store.lock():
        pass


@pytest.mark.parametrize('failing', range(1, 5))
def test_disk_full_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    store = Store.create(tmp_path / 'store', make_plan(), MADE_BY)
    store.publish(store.plan.blocks[0], make_rows(store.plan.blocks[0]), False)
    before = tree(store.folder)
    real, calls = os.fsync, 0

    def fsync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:  # the tar, the index, then the folders after each rename
            raise OSError(errno.ENOSPC, 'No space left on device')
        real(fd)

    block = store.plan.blocks[1]
    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(StoreError, match=r'disk is full.*1 finished blocks are kept.*free some space'):
        store.publish(block, make_rows(block), False)
    assert tree(store.folder) == before
    monkeypatch.undo()
    store.publish(block, make_rows(block), False)
    assert store.finished() == {0, 1}


def test_a_really_full_disk_is_survived(tmp_path: Path) -> None:
    mount = tmp_path / 'small'
    mount.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(mount)], capture_output=True).returncode:
        pytest.skip('mounting a small disk needs root')
    try:
        plan = make_plan(per_class=24, block_size=24)
        store = Store.create(mount / 'store', plan, MADE_BY)
        with pytest.raises(StoreError, match='disk is full'):
            make_store(mount / 'store', plan)
        assert not store.partials()
        assert len(list((store.folder / 'shards').iterdir())) == len(store.finished())
        subprocess.run(['mount', '-o', 'remount,size=1m', str(mount)], check=True)
        make_store(mount / 'store', plan)
        assert tree(store.folder) == tree(make_store(tmp_path / 'store', plan).folder)
    finally:
        subprocess.run(['umount', str(mount)], check=True)


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        (lambda row: replace(row, image=None), 'has no image'),
        (lambda row: replace(row, suffix='jpg'), 'not a jpg file'),
        (lambda row: replace(row, reason='blank'), 'verdict'),
        (lambda row: replace(row, request=replace(row.request, label=2)), 'label is 2'),
        (lambda row: replace(row, request=replace(row.request, id='../../etc/passwd')), 'the id'),
        (lambda row: replace(row, request=replace(row.request, id='00000_000001')), 'repeated'),
        (lambda row: replace(row, request=replace(row.request, params={'sigma': float('nan')})), 'plain JSON'),
        (lambda row: replace(row, scores={'sha256': 1.0}), 'reserved'),
    ],
)
def test_a_row_that_does_not_fit_is_refused(tmp_path: Path, change: Any, what: str) -> None:
    plan = make_plan()
    rows = make_rows(plan.blocks[0])
    with pytest.raises(StoreError, match=what):
        write_block(place_of(tmp_path), plan.blocks[0], [change(rows[0]), *rows[1:]], False)
    assert tree(tmp_path) == {}


def test_a_published_block_is_never_overwritten(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    before = tree(store.folder)
    with pytest.raises(StoreError, match='published already'):
        store.publish(store.plan.blocks[0], make_rows(store.plan.blocks[0])[:4], False)
    with pytest.raises(StoreError, match='not in the plan'):
        store.publish(replace(store.plan.blocks[0], parts=store.plan.blocks[1].parts), [], False)
    assert tree(store.folder) == before


def test_counts_say_what_became_of_every_try(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store', make_plan({'one': 6, 'three': 2}))
    counts = store.counts()
    assert counts['one'] == {'kept': 6, 'rejected': 1, 'target': 6, 'reasons': {'blank': 1}}
    assert counts['two'] == {'kept': 0, 'rejected': 0, 'target': 0, 'reasons': {}}


def test_scores_are_added_without_touching_images(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    before = tree(store.folder)
    ids = store.index()['id'].to_pylist()
    store.add_scores('minority', pa.table({'id': ids[::-1][:-1], 'minority': [float(i) for i in range(len(ids) - 1)]}))
    column = store.index()['minority'].to_pylist()
    assert column == [None, *[float(i) for i in range(len(ids) - 1)][::-1]]
    store.add_scores('minority', pa.table({'id': ids, 'minority': [float('nan')] * len(ids)}))
    assert store.index()['minority'].null_count == len(ids)
    assert {k: v for k, v in tree(store.folder).items() if not k.startswith('scores/')} == before


def test_reasons_with_numbers_are_counted_by_kind() -> None:
    reasons = {f'p 0.{n:02d} not above 0.10': 2 for n in range(9)} | {'blank (contrast 1.20 below 2)': 30, 'blank (contrast 1.30 below 2)': 1}
    reasons |= {'copy of 00000_000001': 1, 'copy of 00012_000777': 1, 'no mp3': 1, 'at -1e-05 or 50%': 1}
    expected = {'blank': 31, 'p ... not above 0.10': 18, 'copy of ...': 2, 'at -1e-05 or 50%': 1, 'no mp3': 1}
    assert list(group_reasons(reasons).items()) == list(expected.items())
    assert group_reasons({}) == {}


def listed(number: int) -> dict[str, Any]:
    """Scores of every kind of one image."""
    return {'clip_p': number / 10, 'logits': np.array([number, 0.5, -number], np.float16), 'labels': np.array([2, 0], np.int16)}


def store_of_lists(folder: Path, keep_rejected: bool = False) -> Store:
    """Like `make_store`, with lists among the scores; every rejected row lacks them, as if its pixels were not finite."""
    store = Store.create(folder, make_plan(), MADE_BY)
    for block in store.unfinished():
        rows = [replace(row, scores={} if row.reason else listed(number)) for number, row in enumerate(make_rows(block))]
        store.publish(block, rows, keep_rejected)
    return store


def test_lists_keep_type_and_values_in_the_index(tmp_path: Path) -> None:
    store = store_of_lists(tmp_path / 'store')
    table = store.index()
    assert table.schema.field('logits').type.value_type == pa.float16()
    assert table.schema.field('labels').type.value_type == pa.int16()
    assert table.schema.field('clip_p').type == pa.float64()
    for row in table.to_pylist():
        number = int(row['id'][-6:])
        assert row['logits'] == (None if row['reason'] else [number, 0.5, -number])
        assert row['labels'] == (None if row['reason'] else [2, 0])
    assert verify(store) == []


def test_a_changed_list_is_damage(tmp_path: Path) -> None:
    from synthaug_plugins.store.table import content_is_whole, parquet_bytes, read_parquet

    path = tmp_path / 'x.parquet'
    values = pa.array([np.array([1, np.nan], np.float16), None], pa.list_(pa.float16()))
    path.write_bytes(parquet_bytes(pa.table({'id': ['a', 'b'], 'logits': values}), {'teacher': 'clip'}))
    table = read_parquet(place_of(path.parent), path.name)
    assert content_is_whole(table)
    for other in ([[1.0, 2.0], None], [[1.0], [float('nan')]], [None, [1.0, float('nan')]]):
        changed = table.set_column(1, table.field(1), pa.array(other, pa.list_(pa.float32())).cast(table.field(1).type))
        assert not content_is_whole(changed)
    renamed = {**table.schema.metadata, b'synthaug.made_by': b'{"teacher": "another"}'}
    assert not content_is_whole(table.replace_schema_metadata(renamed))


def test_tables_without_lists_have_the_digest_that_they_always_had() -> None:
    """The digest was taken with the version before lists: stores of then are whole today."""
    from io import BytesIO

    import pyarrow.parquet as pq

    from synthaug_plugins.store.table import parquet_bytes

    columns = {'id': ['a', 'b'], 'label': pa.array([0, 1], pa.int32()), 'clip_p': [0.5, float('nan')], 'reason': [None, 'blank (contrast 1.00 below 2)']}
    metadata = pq.read_schema(BytesIO(parquet_bytes(pa.table(columns)))).metadata
    assert metadata[b'synthaug.content_sha256'] == b'8b951672c5745fb38bdbabda9d1bb1c64cabdf43a351e95b6acb9f852c3fbd30'


@pytest.mark.parametrize(
    ('second', 'what'),
    [(1.0, 'mixes numbers and lists'), (np.zeros(3, np.float32), 'several kinds'), (np.zeros((2, 2), np.float16), 'several kinds')],
)
def test_score_columns_of_two_kinds_are_refused(tmp_path: Path, second: Any, what: str) -> None:
    store = Store.create(tmp_path / 'store', make_plan(), MADE_BY)
    block = store.unfinished()[0]
    rows = [replace(row, scores={'q': second if number else np.zeros(3, np.float16)}) for number, row in enumerate(make_rows(block))]
    with pytest.raises(StoreError, match=what):
        store.publish(block, rows, False)
    assert not store.finished()


def test_added_scores_say_what_made_them(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    ids = store.index()['id'].to_pylist()
    store.add_scores('teacher', pa.table({'id': ids, 't': [1.0] * len(ids)}), {'model': {'sha256': 'abc'}})
    store.add_scores('plain', pa.table({'id': ids, 'u': [1.0] * len(ids)}))
    assert store.scores_made_by('teacher') == {'model': {'sha256': 'abc'}}
    assert store.scores_made_by('plain') is None
    assert verify(store) == []
    with pytest.raises(StoreError, match='cannot be read'):
        store.scores_made_by('absent')


@pytest.mark.parametrize(
    ('name', 'columns', 'what'),
    [
        ('../x', {'q': [1.0]}, 'plain name'),
        ('x', {'clip_p': [1.0]}, 'already'),
        ('x', {'sha256': [1.0]}, 'reserved'),
        ('x', {'class': [1.0]}, 'reserved'),
        ('x', {'q-1': [1.0]}, 'plain name'),
        ('x', {}, 'one or more'),
        ('x', {'id': ['nobody'], 'q': [1.0]}, "such as 'nobody'"),
        ('x', {'id': ['00000_000000'] * 2, 'q': [1.0, 2.0]}, 'repeated'),
    ],
)
def test_wrong_scores_are_refused(tmp_path: Path, name: str, columns: dict[str, Any], what: str) -> None:
    store = make_store(tmp_path / 'store')
    with pytest.raises(StoreError, match=what):
        store.add_scores(name, pa.table({'id': ['00000_000000'], **columns}))
    assert store.score_files() == []


def test_class_order_is_asserted(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    store.check_classes(['one', 'two', 'three'])
    with pytest.raises(StoreError, match=r"order differs: label 0 is 'one' .* and 'three' here\. .* \"classes=\['three', 'two', 'one'\]\""):
        store.check_classes(['three', 'two', 'one'])
    with pytest.raises(StoreError, match=r"names differ: only in the store .*: \['three'\]; only here: \['four'\]"):
        store.check_classes(['one', 'two', 'four'])


def test_costs_add_up_over_runs_while_the_lock_holds(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    with store.lock():
        store.add_cost(RunCost(images=10, seconds=2.0, batch_size=8, network_images=350))
        again = Store.create(tmp_path / 'store', make_plan(), {})
        with pytest.raises(StoreError, match='Another process'), again.lock():
            pass
        again.add_cost(RunCost(images=20, seconds=3.5, batch_size=4, network_images=700, device='NVIDIA H200', devices=2, wall=1.9))
    assert Store.open(store.folder).made_by == {**MADE_BY, 'cost': {'images': 30, 'seconds': 5.5, 'network_images': 1050, 'batch_size': 4, 'runs': 2}}
    assert verify(store) == []
    assert [(run.images, run.device, run.devices, run.wall, run.network_tflop) for run in read_runs(store.place)] == [
        (10, None, None, None, None),
        (20, 'NVIDIA H200', 2, 1.9, None),
    ]
    (store.folder / 'cost.json').write_text('[{"images": 3, "seconds": 1.5, "batch_size": 2}]')  # as an older version wrote it
    assert Store.open(store.folder).made_by['cost']['network_images'] == 0
    (store.folder / 'cost.json').write_text('[{')
    with pytest.raises(StoreError, match=r'cost\.json.*Remove it'):
        Store.open(store.folder)


def test_wrong_formats_are_refused() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'jpg'"):
        check_format('jpeg', 90)
    with pytest.raises(RecipeError, match='quality 0'):
        check_format('jpg', 0)
    with pytest.raises(ValueError):
        encode(np.zeros((8, 8, 3), np.float32), 'png', 90)


def test_of_two_first_writers_one_wins(tmp_path: Path) -> None:
    path = tmp_path / 'store.json'
    assert files.write_first(path, b'first')
    assert not files.write_first(path, b'second')
    assert path.read_bytes() == b'first'
    assert tree(tmp_path).keys() == {'store.json'}


def _start_and_publish(folder: Path, number: int, barrier: Any) -> None:
    barrier.wait()
    store = Store.create(folder, make_plan(), {'rank': number})
    store.publish(store.plan.blocks[number], make_rows(store.plan.blocks[number]), False)


def test_processes_that_start_one_store_together_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context('fork')
    for attempt in range(3):
        folder = tmp_path / str(attempt) / 'store'
        barrier = context.Barrier(4)
        ranks = [context.Process(target=_start_and_publish, args=(folder, i, barrier)) for i in range(4)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert [rank.exitcode for rank in ranks] == [0] * 4
        store = Store.open(folder)
        assert store.unfinished() == list(store.plan.blocks[4:])
        for block in store.unfinished():
            store.publish(block, make_rows(block), False)
        assert verify(store) == []


def test_a_folder_that_another_process_makes_while_it_is_looked_for_is_no_foreign_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def a_moment_too_early(path: Path) -> None:
        Path(path).mkdir(exist_ok=True)
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'scandir', a_moment_too_early)
        assert place_of(tmp_path / 'store').names() == []
    (tmp_path / 'file').write_text('')
    with pytest.raises(StoreError, match='not a folder'):
        place_of(tmp_path / 'file').names()


def test_a_store_whose_recipe_holds_an_infinity_is_opened_again(tmp_path: Path) -> None:
    """As of `S_max` or the end of an interval: the card of a store that was made must not shut it."""
    plan = make_plan(recipe={'sampler': {'S_max': math.inf}})
    Store.create(tmp_path / 'store', plan, {'recipe': {'sampler': {'S_max': math.inf}}})
    assert Store.open(tmp_path / 'store').plan.fingerprint == plan.fingerprint


def test_unfinished_files_are_not_written_through_links_that_wait_for_them(tmp_path: Path) -> None:
    store = Store.create(tmp_path / 'store', make_plan(), {})
    (tmp_path / 'mine').write_text('mine')
    (store.folder / 'shards').mkdir()
    (store.folder / 'shards' / f'.partial-00000.tar-{os.getpid()}').symlink_to(tmp_path / 'mine')
    store.publish(store.plan.blocks[0], make_rows(store.plan.blocks[0]), keep_rejected=False)
    assert (tmp_path / 'mine').read_text() == 'mine'
