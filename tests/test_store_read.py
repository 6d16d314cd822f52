"""Every way to read a store: by position in any process, by address, and with other people's readers."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_store import make_plan, make_store, mixed_plan

from synthaug_plugins.errors import StoreError
from synthaug_plugins.mixing import records as mixing_records
from synthaug_plugins.mixing.records import read_records
from synthaug_plugins.store import open_shards, selection
from synthaug_plugins.store.reader import StoreReader, image_uri, read_uri
from synthaug_plugins.store.shard import shard_name
from synthaug_plugins.store.store import Store


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp('my #1 50% stores') / 'store +2', keep_rejected=True)


def records(store: Store) -> list[dict[str, Any]]:
    return store.index().select(['id', 'label', 'verdict', 'shard', 'offset', 'size', 'sha256']).to_pylist()


def _read_all(reader: StoreReader, places: list[tuple[int, int, int]], out: Any) -> None:
    out.put([reader.read(*place) for place in places])


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_forked_and_spawned_workers_read_the_same_bytes(store: Store, method: str) -> None:
    reader = StoreReader(store.folder)
    places = [(r['shard'], r['offset'], r['size']) for r in records(store)]
    expected = [reader.read(*place) for place in places]  # opens the files before the fork
    context = multiprocessing.get_context(method)
    out = context.Queue()
    workers = [context.Process(target=_read_all, args=(reader, places[::step], out)) for step in (1, -1)]
    for worker in workers:
        worker.start()
    results = [out.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(map(sorted, results)) == [sorted(expected)] * 2
    assert pickle.loads(pickle.dumps(reader)) == reader


def test_threads_read_while_files_are_closed_and_opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import lru_cache

    monkeypatch.setattr(open_shards, '_opened', lru_cache(maxsize=2)(open_shards._opened.__wrapped__))
    reader = StoreReader(store.folder)
    places = [(r['shard'], r['offset'], r['size']) for r in records(store)]
    expected = [(store.folder / shard_name(s)).read_bytes()[o : o + n] for s, o, n in places]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(len(places), size=500):
            if reader.read(*places[i]) != expected[i]:
                wrong.append(int(i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_open_files_stay_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import lru_cache

    monkeypatch.setattr(open_shards, '_opened', lru_cache(maxsize=2)(open_shards._opened.__wrapped__))
    before = len(os.listdir('/proc/self/fd'))
    for r in records(store):
        read_uri(image_uri(store.folder, r['shard'], r['offset'], r['size']))
    assert len(os.listdir('/proc/self/fd')) <= before + 2


def test_addresses_survive_spaces_hashes_and_percents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    r = records(store)[3]
    uri = image_uri(store.folder, r['shard'], r['offset'], r['size'])
    assert uri.startswith('synthaug:///')
    assert uri.count('#') == 1
    assert ' ' not in uri
    expected = StoreReader(store.folder).read(r['shard'], r['offset'], r['size'])
    assert read_uri(uri) == expected
    monkeypatch.chdir(store.folder.parent)
    assert image_uri(Path(store.folder.name), r['shard'], r['offset'], r['size']) == uri


@pytest.mark.parametrize('uri', ['synthaug:///x/00000.tar', '/plain/path.png', 'synthaug:///x.tar#12', 'synthaug:///x.tar#a+b', 'synthaug:///x.tar#1+-2'])
def test_a_wrong_address_is_refused(uri: str) -> None:
    with pytest.raises(StoreError, match='not the address'):
        read_uri(uri)


def test_a_missing_or_short_shard_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r'00077\.tar.*No such file'):
        StoreReader(store.folder).read(77, 512, 10)
    size = (store.folder / shard_name(0)).stat().st_size
    with pytest.raises(StoreError, match=r'00000\.tar.*ends at 12 of 100 bytes'):
        StoreReader(store.folder).read(0, size - 12, 100)


def replaced(path: Path) -> None:
    copy = path.with_name('other')
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def written_to(path: Path) -> None:
    with path.open('r+b') as file:
        file.write(b'x')
    os.utime(path)


@pytest.mark.parametrize('change', [replaced, written_to, Path.unlink, lambda path: path.rename(path.with_name('elsewhere'))])
@pytest.mark.parametrize('opened', [True, False])
def test_a_shard_that_changes_under_a_training_is_refused_by_name(tmp_path: Path, change: Callable[[Path], object], opened: bool) -> None:
    """Whether this process has it open or not: an open file outlives its name."""
    store = make_store(tmp_path / 'store')
    trained_on = read_records({'store': str(store.folder)})
    row = int(np.flatnonzero(trained_on.places['shard'] == 2)[0])
    if opened:
        read_uri(trained_on.uri(row))
    change(store.folder / shard_name(2))
    for _ in range(2):  # and it stays refused
        with pytest.raises(StoreError, match=r'00002\.tar'):
            read_uri(trained_on.uri(row))
    assert read_uri(trained_on.uri(int(np.flatnonzero(trained_on.places['shard'] == 1)[0])))


def test_a_shard_that_is_replaced_while_its_index_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offsets of the old one would lead to other images in the new one."""
    store = make_store(tmp_path / 'store')

    def select_and_replace(*args: Any, **options: Any) -> selection.Selection:
        found = selection.select(*args, **options)
        replaced(store.folder / shard_name(0))
        return found

    monkeypatch.setattr(mixing_records, 'select', select_and_replace)
    trained_on = read_records({'store': str(store.folder)})
    with pytest.raises(StoreError, match=r'00000\.tar.*replaced or changed'):
        read_uri(trained_on.uri(int(np.flatnonzero(trained_on.places['shard'] == 0)[0])))


def test_a_training_does_not_begin_without_one_of_its_shards(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    (store.folder / shard_name(2)).unlink()
    with pytest.raises(StoreError, match=r'00002\.tar.*missing'):
        read_records({'store': str(store.folder)})


def kept(store: Store) -> list[tuple[str, int]]:
    return sorted((r['id'], r['label']) for r in records(store) if r['verdict'] == 'kept')


def test_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    wds = pytest.importorskip('webdataset')
    store = make_store(tmp_path / 'store', mixed_plan(), keep_rejected=True)
    shards = [str(store.folder / shard_name(b.index)) for b in store.plan.blocks]
    dataset = wds.WebDataset(shards, shardshuffle=False).decode('pil').to_tuple('__key__', 'png', 'cls', 'json')
    samples = list(dataset)
    assert sorted((key, label) for key, _, label, _ in samples) == kept(store)
    assert all(image.size == (8, 8) and sidecar['id'] == key for key, image, _, sidecar in samples)


@pytest.mark.parametrize('format', ['png', 'jpg', 'webp'])
def test_timm_reads_the_store_as_wds(tmp_path: Path, format: str) -> None:
    pytest.importorskip('webdataset')
    timm_data = pytest.importorskip('timm.data')
    store = make_store(tmp_path / 'store', mixed_plan(), keep_rejected=True, format=format)
    dataset = timm_data.create_dataset('wds/store', root=str(store.folder / 'shards'), split='train', is_training=False, batch_size=1)
    assert len(dataset) == len(kept(store))
    assert sorted(label for _, label in dataset) == sorted(label for _, label in kept(store))


def test_a_block_without_kept_images_is_not_announced(tmp_path: Path) -> None:
    from dataclasses import replace

    from test_store import MADE_BY, make_rows

    store = Store.create(tmp_path / 'store', make_plan(), MADE_BY)
    for block in store.plan.blocks:
        rows = make_rows(block)
        if block.index == 0:
            rows = [replace(r, verdict='rejected', reason='blank') for r in rows]
        store.publish(block, rows, False)
    info = json.loads((store.folder / 'shards' / '_info.json').read_text())['splits']['train']
    assert '00000.tar' not in info['filenames']
    assert info['num_samples'] == sum(info['shard_lengths']) == len(kept(store))


def test_images_decode(store: Store) -> None:
    for r in records(store):
        data = read_uri(image_uri(store.folder, r['shard'], r['offset'], r['size']))
        assert Image.open(io.BytesIO(data)).size == (8, 8)
