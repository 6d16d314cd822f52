"""A store on S3 is a store like any other: made, checked, looked at and trained on over the network, by a real server on this machine."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_store import MADE_BY, make_plan, make_rows, make_store
from test_train_on import folders

from conftest import Say, copy_of_this_process
from synthaug_plugins.errors import MissingExtra, StoreError
from synthaug_plugins.mixing.records import read_records
from synthaug_plugins.store import cache, open_shards, reader, remote
from synthaug_plugins.store.address import place_of
from synthaug_plugins.store.place import Unreachable
from synthaug_plugins.store.reader import StoreReader, read_uri
from synthaug_plugins.store.shard import index_name, shard_name
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import discard, verify

SECRET = 'not-to-be-told'
DIGITS = ('generator.sampler.num_steps=2', 'generator.sampler.solver=euler', "classes=['one', 'zero']", 'per_class=4', 'block_size=3', 'batch_size=2')


@pytest.fixture(scope='module')
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(('127.0.0.1', port)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope='module')
def bucket(server: str) -> Iterator[str]:
    settings = {'AWS_ACCESS_KEY_ID': 'key', 'AWS_SECRET_ACCESS_KEY': SECRET, 'AWS_DEFAULT_REGION': 'us-east-1', 'AWS_ENDPOINT_URL': server}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        forget()
        remote._filesystem('s3', os.getpid()).mkdir('synthaug')
        yield 's3://synthaug'
    forget()


def forget() -> None:
    """What this process knows of servers and stores; another process would know none of it."""
    remote._filesystem.cache_clear()
    cache._store.cache_clear()
    reader._copy.cache_clear()
    open_shards.forget_open_files()


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.CACHE, str(tmp_path / 'cache'))
    forget()
    return tmp_path / 'cache'


@pytest.fixture(scope='module')
def whole(bucket: str) -> Store:
    return make_store(f'{bucket}/whole', keep_rejected=True)


@pytest.fixture
def store(whole: Store, request: pytest.FixtureRequest) -> Store:
    """A copy of the store, to be damaged."""
    url = f'{whole.folder.rpartition("/")[0]}/{abs(hash(request.node.name))}/whole'  # _info.json says the last name
    for folder in ('', 'shards', 'index'):
        for name in whole.place.names(folder):
            if not name.endswith('/'):
                name = f'{folder}/{name}' if folder else name
                place_of(url).write_whole(name, whole.place.read(name))
    return Store.open(url)


def contents(store: Store) -> list[dict[str, Any]]:
    return store.index().to_pylist()


def flip(store: Store, name: str, at: int) -> None:
    data = bytearray(store.place.read(name))
    data[at] ^= 1
    store.place.write_whole(name, bytes(data))


def test_a_store_on_s3_holds_what_one_on_disk_holds(whole: Store, tmp_path: Path) -> None:
    local = make_store(tmp_path / 'local', keep_rejected=True)
    assert contents(Store.open(whole.folder)) == contents(local)
    assert verify(whole) == []
    names = [f'{folder}/{name}' for folder in ('shards', 'index') for name in local.place.names(folder) if name != '_info.json']
    assert all(whole.place.read(name) == local.place.read(name) for name in names)
    on_s3, on_disk = StoreReader(whole.folder), StoreReader(local.folder)
    for row in contents(local):
        assert on_s3.read_image(row) == on_disk.read_image(row)


def test_made_checked_shown_and_trained_on_by_the_commands(bucket: str, synthaug: Say, tmp_path: Path) -> None:
    """Generate, verify, show, export, an epoch in MMEngine's Runner with two forked loader processes; a shard that changes stops the next one, and is repaired."""
    url = f'{bucket}/digits'
    for out in (url, tmp_path / 'local'):
        assert synthaug('generate', 'edm_digits', '--out', out, '--device', 'cpu', '--cfg-options', *DIGITS).status == 0
    assert contents(Store.open(url)) == contents(Store.open(tmp_path / 'local'))
    assert synthaug('verify', url).out == f'{url}: no fault\n'
    assert synthaug('score', url, 'near_duplicates', '--device', 'cpu').status == 0
    assert synthaug('show', url, '--out', tmp_path / 'sheet.png').status == 0
    assert synthaug('export', url, '--out', tmp_path / 'folder', '--where', 'near_duplicates_kept is not null').out.startswith('8 images')
    data = folders(tmp_path / 'data', 'zero', 'one')
    (tmp_path / 'recipe.py').write_text(
        "_base_ = 'digits_resnet.py'\n"
        'model = dict(backbone=dict(base_channels=4, stem_channels=4), head=dict(num_classes=2, in_channels=32, topk=(1,)))\n'
        'data_preprocessor = dict(num_classes=2)\n'
        "train_dataloader = dict(batch_size=2, num_workers=2, persistent_workers=False, sampler=dict(_delete_=True, type='mmengine.DefaultSampler', shuffle=True))\n"
        "train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=1)\nparam_scheduler = None\nlog_level = 'WARNING'\n"
    )
    shutil.copy(Path(__file__).parents[1] / 'registry_configs/train/digits_resnet.py', tmp_path)
    synthetic = {str(path) for path in (tmp_path / 'cache').glob('*.tar')}
    shutil.rmtree(tmp_path / 'cache')
    forget()
    options = [f'{loader}_dataloader.dataset.data_root={data}' for loader in ('val', 'test')]
    done = synthaug('train', tmp_path / 'recipe.py', '--work-dir', tmp_path / 'run', '--store', url, '--cfg-options', *options)
    assert done.status == 0, done.err
    assert {str(path) for path in (tmp_path / 'cache').glob('*.tar')} == synthetic
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file() or list((tmp_path / 'run').rglob('*.pth'))
    assert not [path for path in (tmp_path / 'run').rglob('*') if path.is_file() and SECRET.encode() in path.read_bytes()]

    before = contents(Store.open(url))
    flip(Store.open(url), shard_name(0), 700)  # on the server, after it was read
    shutil.rmtree(tmp_path / 'cache')
    forget()
    stopped = synthaug('train', tmp_path / 'recipe.py', '--work-dir', tmp_path / 'stopped', '--store', url, '--cfg-options', *options)
    assert stopped.status == 2
    assert f'{url}/{shard_name(0)}' in stopped.err
    assert not list((tmp_path / 'stopped').rglob('*.pth'))
    assert synthaug('verify', url).status == 4
    assert synthaug('repair', url, '--device', 'cpu').status == 0
    assert synthaug('verify', url).status == 0
    assert contents(Store.open(url)) == before


def test_timm_trains_on_it(whole: Store, tmp_path: Path) -> None:
    """In a loader process that is forked while this one is connected."""
    from synthaug_plugins.timm import create_mixed_dataset, create_mixed_loader

    (tmp_path / 'classes.txt').write_text(''.join(f'{name}\n' for name in whole.classes))
    data = create_mixed_dataset('', whole.folder, root=str(folders(tmp_path / 'data', *whole.classes)), class_map=str(tmp_path / 'classes.txt'), sources='any')
    loader = create_mixed_loader(
        data,
        input_size=(3, 8, 8),
        batch_size=3,
        alpha=1,
        partner='class',
        num_workers=1,
        use_prefetcher=False,
        device=torch.device('cpu'),
        persistent_workers=False,
    )
    images, target = next(iter(loader))
    assert images.shape == (3, 3, 8, 8)
    assert target.is_synthetic.all()


def test_a_killed_run_goes_on_to_the_same_images(bucket: str, tmp_path: Path) -> None:
    url = f'{bucket}/killed'
    process = copy_of_this_process(lambda: make_slowly(url))
    process.wait_until(lambda: len(place_of(url).names('index')) == 2)
    process.end(signal.SIGKILL)
    before = place_of(url).identities('index')
    store = Store.create(url, make_plan(), MADE_BY)
    with store.lock():
        for block in store.unfinished():
            store.publish(block, make_rows(block), False)
    assert before.items() <= place_of(url).identities('index').items()
    assert contents(store) == contents(make_store(tmp_path / 'local'))
    assert verify(store) == []


def make_slowly(url: str) -> None:
    store = Store.create(url, make_plan(), MADE_BY)
    with store.lock():
        for block in store.unfinished():
            store.publish(block, make_rows(block), False)
            time.sleep(0.3)


def test_damage_is_found_refused_by_the_reader_and_made_again(store: Store, cached: Path) -> None:
    row = next(r for r in contents(store) if r['shard'] == 2)
    flip(store, shard_name(2), row['offset'] + 40)
    store.place.remove(shard_name(3))
    store.place.write_whole(index_name(4), store.place.read(index_name(4))[:-100])
    faults = verify(store)
    assert {(f.block, f.file) for f in faults} >= {(2, shard_name(2)), (3, shard_name(3)), (4, index_name(4))}
    with pytest.raises(StoreError, match=r'00002\.tar.*sha256'):
        StoreReader(store.folder).read_image(row)
    assert list(cached.glob('*.tar')) == []
    with store.lock():
        assert discard(store, faults) == [2, 3, 4]
        for block in store.unfinished():
            store.publish(block, make_rows(block), True)
    assert verify(Store.create(store.folder, store.plan, MADE_BY)) == []
    assert StoreReader(store.folder).read_image(row)


def test_a_shard_that_is_replaced_or_gone_stops_a_training_by_name(store: Store, cached: Path) -> None:
    """Even by the same images under another address, since nobody asked for these; a copy that is here already stays what it was."""
    trained_on = read_records({'store': store.folder})
    uri = {shard: trained_on.uri(int((trained_on.places['shard'] == shard).argmax())) for shard in (0, 1, 2)}
    first = read_uri(uri[0])
    flip(store, shard_name(0), 600)
    flip(store, shard_name(1), 600)
    store.place.remove(shard_name(2))
    assert read_uri(uri[0]) == first
    with pytest.raises(StoreError, match=r'00001\.tar.*replaced or changed'):
        read_uri(uri[1])
    with pytest.raises(StoreError, match=r'00002\.tar.*missing'):
        read_uri(uri[2])
    with pytest.raises(StoreError, match=r'00002\.tar.*missing'):
        read_records({'store': store.folder})


def test_another_store_at_the_same_address_is_not_mixed_up_with_the_copies_of_the_first(bucket: str) -> None:
    url = f'{bucket}/twice'
    make_store(url)
    old = [read_uri(records.uri(0)) for records in [read_records({'store': url})]]
    for name in [f'{folder}/{name}' for folder in ('shards', 'index') for name in place_of(url).names(folder)] + ['store.json']:
        place_of(url).remove(name)
    forget()
    make_store(url, make_plan(3))
    new = read_records({'store': url})
    assert len(new) == 9
    assert [read_uri(new.uri(i)) for i in range(9)] == [StoreReader(url).read_image(row) for row in contents(Store.open(url)) if row['verdict'] == 'kept']
    assert read_uri(new.uri(0)) == old[0]  # which the plan makes equal: it comes from another file


def test_many_processes_fetch_a_shard_once(whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = remote.RemotePlace.read

    def noted(self: remote.RemotePlace, name: str, most: int | None = None) -> bytes:
        if name.startswith('shards/'):
            with open(tmp_path / 'asked', 'a') as file:
                file.write(f'{name}\n')
            time.sleep(0.3)
        return read(self, name, most)

    monkeypatch.setattr(remote.RemotePlace, 'read', noted)
    records = pickle.loads(pickle.dumps(read_records({'store': whole.folder})))  # as a spawned worker gets them
    forget()
    processes = [copy_of_this_process(lambda: read_uri(records.uri(0)) and 0) for _ in range(4)]
    assert [process.end().status for process in processes] == [0] * 4
    assert (tmp_path / 'asked').read_text() == f'{shard_name(int(records.places["shard"][0]))}\n'


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_that_is_used(whole: Store, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = read_records({'store': whole.folder}).uri(0)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', lambda *paths: (print('there'), time.sleep(60)))  # the copy is written, and has no name yet
        process = copy_of_this_process(lambda: read_uri(uri))
        process.wait_until(process.lines)
        process.end(signal.SIGKILL)
    assert [path.name[:9] for path in cached.iterdir() if not path.name.startswith('lock')] == ['.partial-']
    assert read_uri(uri)
    assert [path.suffix for path in cached.iterdir() if not path.name.startswith('lock')] == ['.tar']


def test_a_server_that_is_gone_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that cannot be read for a while must not be removed and made again."""
    trouble = ConnectionError('Connection reset by peer')
    monkeypatch.setattr(store.place._fs(), 'cat_file', lambda *a, **k: (_ for _ in ()).throw(trouble))
    with pytest.raises(Unreachable, match='Connection reset'):
        verify(store)
    monkeypatch.undo()
    assert verify(Store.open(store.folder)) == []


def test_of_two_runs_that_start_a_store_at_once_one_writes_its_card(bucket: str) -> None:
    place = place_of(f'{bucket}/race')
    processes = [copy_of_this_process(lambda n=n: 10 + place.write_first('store.json', f'{n}'.encode())) for n in range(4)]
    assert sorted(process.end().status for process in processes) == [10, 10, 10, 11]
    assert not place.write_first('store.json', b'late') and place.read('store.json') != b'late'


def test_a_prefix_that_holds_something_else_is_not_touched(bucket: str) -> None:
    place_of(f'{bucket}/mine').write_whole('thesis.txt', b'years')
    with pytest.raises(StoreError, match=r"not empty and not a store: it holds 'thesis\.txt'"):
        Store.create(f'{bucket}/mine', make_plan(), MADE_BY)
    assert place_of(f'{bucket}/mine').names() == ['thesis.txt']


REFUSED: dict[str, tuple[str, type[Exception], str]] = {
    'no store': ('s3://synthaug/nothing', StoreError, 'is not a store'),
    'no bucket': ('s3://nobody/x', Unreachable, r'bucket does not exist\. Create the bucket'),
    'unknown protocol': ('s4://synthaug/x', StoreError, r"No file system has the protocol 's4'\. Did you mean 's3'"),
    'package missing': ('gs://synthaug/x', MissingExtra, r'gcsfs.*synthaug-plugins\[gcs\]'),
    'a password': (f's3://me:{SECRET}@synthaug/x', StoreError, r's3://\*\*\*@synthaug'),
    'a query': (f's3://synthaug/x?sig={SECRET}', StoreError, 'without a query'),
    'no folder': ('s3://', StoreError, 'no address of a folder'),
}


@pytest.mark.parametrize(('url', 'kind', 'said'), REFUSED.values(), ids=REFUSED)
def test_an_address_that_leads_nowhere_is_refused_with_its_cure(bucket: str, url: str, kind: type[Exception], said: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, 'gcsfs', None)
    with pytest.raises(kind, match=said) as refused:
        Store.open(url)
    assert SECRET not in str(refused.value)


def test_without_credentials_it_is_said_where_they_belong(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.delenv(name)
    for name in ('AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE'):
        monkeypatch.setenv(name, str(tmp_path / 'none'))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    fresh()
    with pytest.raises(Unreachable, match=r'credentials.*AWS_ACCESS_KEY_ID'):
        place_of(f'{bucket}/x').write_whole('a', b'1')
    monkeypatch.undo()
    fresh()


def fresh() -> None:
    forget()
    type(remote._filesystem('s3', os.getpid())).clear_instance_cache()
    forget()


def test_a_local_address_is_a_local_folder(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    assert Store.open(f'file://{tmp_path}/store').folder == store.folder
    with pytest.raises(StoreError, match='Give it as text'):
        Store.open(Path('s3://synthaug/whole'))


def test_one_run_writes_at_a_time_and_a_killed_one_is_taken_over_at_once(bucket: str) -> None:
    """On a disk without locks: by an object that is created exclusively, counts up, and says which process of which host it is."""
    held = make_store(f'{bucket}/held')

    def hold() -> None:
        with Store.open(held.folder).lock():
            print('held', flush=True)
            signal.pause()

    holder = copy_of_this_process(hold)
    holder.wait_until(holder.lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('synthaug_plugins.store.lease.STALE_AFTER_S', 0.5)  # its next sign of life comes after ten seconds, but its process can be seen
        holder.end(signal.SIGKILL)
        said: list[str] = []
        with held.lock('generate', said.append) as run:
            assert f'process {holder.pid} on host' in said[-1]
            with pytest.raises(StoreError, match='taken over'), Store.open(held.folder).join('another'):
                pass
            with Store.open(held.folder).join(run):
                pass
    assert not held.place.exists('lease.json')


def test_a_file_system_that_tells_of_a_file_but_its_size_is_refused_before_a_training_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(f'memory://sizes-{time.monotonic_ns()}/s')
    assert len(read_records({'store': store.folder})) > 0
    monkeypatch.setattr(remote, '_TELLING', ())
    with pytest.raises(StoreError, match=r"memory:// does not tell when '0000\d\.tar' was changed") as refused:
        read_records({'store': store.folder})
    assert 'local disk' in refused.value.cure
