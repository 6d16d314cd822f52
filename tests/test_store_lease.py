"""One run writes to a store at a time: the second is told who the first is, a dead one is known as dead, and nobody writes for a run that is over."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from conftest import copy_of_this_process
from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import lease
from synthaug_plugins.store.address import place_of
from synthaug_plugins.store.card import CARD
from synthaug_plugins.store.lease import LEASE, read_holder, this_process
from synthaug_plugins.store.plan import Plan, make_blocks
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import discard

PLAN = Plan(('a',), make_blocks(('a',), 1), {})


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store.create(tmp_path / 's', PLAN, {})


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """On a disk without locks, where times are a hundredth of the real ones."""
    monkeypatch.setattr(lease, 'BEAT_EVERY_S', 0.1)
    monkeypatch.setattr(lease, 'STALE_AFTER_S', 0.6)
    monkeypatch.setattr(lease, 'SETTLE_S', 0.05)
    url = f'memory://lease-{time.monotonic_ns()}/s'
    yield Store.create(url, PLAN, {})
    place_of(url).remove(LEASE)


@pytest.fixture(params=['local', 'remote'])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


def test_the_holder_is_named_and_gone_afterwards(store: Store) -> None:
    with store.lock('score'):
        with (
            pytest.raises(StoreError, match=rf'Another process is writing .*: process {os.getpid()} on host \S+ \(synthaug score\), since 2\d\d\d-') as refused,
            Store.open(store.folder).lock(),
        ):
            pass
        assert 'Wait until it ends' in refused.value.cure
    assert not store.place.exists(LEASE)
    with store.lock():
        pass


def test_who_joins_must_belong_to_the_run(store: Store) -> None:
    with store.lock() as run:
        with store.join(run):
            pass
        with pytest.raises(StoreError, match='taken over by process'), store.join('another'):
            pass
    with pytest.raises(StoreError, match='is not at work'), store.join(run):
        pass


def test_a_member_publishes_nothing_once_the_run_is_over(store: Store) -> None:
    with ExitStack() as stack:
        run = stack.enter_context(store.lock())
        member = Store.open(store.folder)
        stack.enter_context(member.join(run))
        store.place.write_whole(LEASE, replace(this_process('repair'), run='another', host='elsewhere').text())
        with pytest.raises(StoreError, match=r'taken over by process .* on host elsewhere'):
            member.publish(PLAN.blocks[0], [], False)
        assert not member.finished()


def test_a_dead_run_is_recognised_and_said(store: Store) -> None:
    """Its process is no more, as far as this machine can tell: nobody waits for signs of life."""
    dead = copy_of_this_process(lambda: 0)
    assert dead.end().status == 0
    store.place.write_whole(LEASE, replace(this_process('generate'), process=dead.pid).text())
    said: list[str] = []
    begun = time.monotonic()
    with store.lock('generate', said.append):
        pass
    assert time.monotonic() - begun < lease.STALE_AFTER_S
    assert f'taken over: process {dead.pid} on host' in said[-1]


def test_another_process_of_the_same_id_is_not_the_one_that_died() -> None:
    me = this_process('generate')
    assert not me.is_dead()
    assert replace(me, started='1').is_dead()
    assert not replace(me, started='1', machine='another').is_dead(), 'what happens elsewhere is not known here'


def test_a_killed_run_leaves_no_lock(local: Store) -> None:
    def hold() -> None:
        with local.lock():
            print('held', flush=True)
            signal.pause()

    holder = copy_of_this_process(hold)
    holder.wait_until(holder.lines)
    with pytest.raises(StoreError, match=f'process {holder.pid} '), local.lock():
        pass
    holder.end(signal.SIGKILL)
    said: list[str] = []
    with local.lock('generate', said.append):
        assert f'process {holder.pid} ' in said[0]


def test_no_run_begins_beside_a_worker_that_outlived_its_driver(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with local.lock() as run:
        kept = (local.folder / LEASE).read_bytes()

    def work() -> None:
        with local.join(run):
            print('joined', flush=True)
            signal.pause()

    (local.folder / LEASE).write_bytes(kept)  # as a driver leaves it that was killed
    worker = copy_of_this_process(work)
    worker.wait_until(worker.lines)
    monkeypatch.setattr(lease, 'WORKERS_END_S', 0.3)
    with pytest.raises(StoreError, match='Workers of a run that is over are still writing'), local.lock():
        pass
    monkeypatch.setattr(lease, 'WORKERS_END_S', 10)
    threading.Timer(0.3, lambda: os.kill(worker.pid, signal.SIGKILL)).start()
    with local.lock():
        worker.end()
        with pytest.raises(StoreError, match='taken over'), local.join(run):
            pass


def test_a_full_disk_is_said_where_the_holder_cannot_be_noted(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, 'pwrite', full)
        with pytest.raises(StoreError, match=r'the disk is full\. .*free some space'), local.lock('generate'):
            pass
    with local.lock('generate'):  # nothing is left locked
        assert read_holder(local.place) is not None


def test_what_a_dead_driver_forked_is_waited_for(local: Store) -> None:
    """It inherited the lock, and may need a moment to end."""
    dead = copy_of_this_process(lambda: 0)
    assert dead.end().status == 0
    local.place.write_whole(LEASE, replace(this_process('generate'), process=dead.pid).text())
    inherited = os.open(local.folder / CARD, os.O_RDWR)
    fcntl.flock(inherited, fcntl.LOCK_EX)
    threading.Timer(0.3, os.close, [inherited]).start()
    with local.lock():
        pass


def test_a_run_that_fails_keeps_its_lease_for_a_worker_that_is_still_at_work(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the ranks of torchrun are when the first one fails: the next run has to meet them."""
    monkeypatch.setattr(lease, 'STOPPED_END_S', 0.1)
    monkeypatch.setattr(lease, 'WORKERS_END_S', 0.3)
    with ExitStack() as worker:
        driver = ExitStack()
        worker.enter_context(Store.open(local.folder).join(driver.enter_context(local.lock())))
        assert not driver.__exit__(RuntimeError, RuntimeError(), None)
        with pytest.raises(StoreError, match='Workers of a run that is over are still writing'), local.lock():
            pass
    with local.lock():
        pass
    assert not local.place.exists(LEASE)


def test_a_run_that_lost_its_lease_removes_no_block_and_writes_no_scores(remote: Store) -> None:
    with remote.lock('repair'):
        elsewhere(remote)
        with pytest.raises(StoreError, match='taken over'):
            discard(remote, [])
        with pytest.raises(StoreError, match='taken over'):
            remote.add_scores('x', pa.table({'id': pa.array([], pa.string()), 'x': pa.array([], pa.float64())}))


def test_a_lease_that_is_a_link_is_not_followed(local: Store, tmp_path: Path) -> None:
    (tmp_path / 'mine').write_text('mine')
    (local.folder / LEASE).symlink_to(tmp_path / 'mine')
    with pytest.raises(StoreError), local.lock():
        pass
    assert (tmp_path / 'mine').read_text() == 'mine'


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{"run": 1}', b'[' * 5000, b'x' * 20_000], ids=['empty', 'cut', 'list', 'keys', 'deep', 'long'])
def test_a_damaged_lease_belongs_to_nobody(content: bytes, store: Store) -> None:
    store.place.write_whole(LEASE, content)
    with store.lock() as run:
        holder = read_holder(store.place)
        assert holder is not None
        assert holder.run == run


def elsewhere(store: Store, **changes: object) -> lease.Holder:
    holder = replace(this_process('generate'), run='theirs', host='elsewhere', machine='another', **changes)
    store.place.write_whole(LEASE, holder.text())
    return holder


def beating(store: Store, holder: lease.Holder, over: threading.Event) -> None:
    beat = 0
    while not over.wait(0.1):
        beat += 1
        store.place.write_whole(LEASE, replace(holder, beat=beat).text())


@pytest.mark.parametrize('clock', [lambda: 0.0, lambda: 4e9], ids=['set back', 'set forward'])
def test_a_run_on_another_machine_lives_as_long_as_it_counts_whatever_the_clocks_say(
    clock: Callable[[], float], remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, 'time', clock)
    over = threading.Event()
    theirs = threading.Thread(target=beating, args=(remote, elsewhere(remote), over))
    theirs.start()
    try:
        with pytest.raises(StoreError, match=r'on host elsewhere \(synthaug generate\)'), remote.lock():
            pass
    finally:
        over.set()
        theirs.join()
    said: list[str] = []
    with remote.lock('generate', said.append):
        assert 'waiting up to' in said[0]
        assert 'taken over' in said[1]


def test_a_holder_counts_and_does_not_win_back_what_was_taken_over(remote: Store) -> None:
    with remote.lock():
        first = read_holder(remote.place)
        deadline = time.monotonic() + 5
        while (now := read_holder(remote.place)) == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert now is not None
        assert now.beat > 0
        taken = elsewhere(remote)
        time.sleep(0.4)
        assert read_holder(remote.place) == taken
        with pytest.raises(StoreError, match='taken over'):
            remote.publish(PLAN.blocks[0], [], False)
    assert read_holder(remote.place) == taken, 'the lease of another run was removed'


def test_of_two_that_take_over_at_once_one_remains(remote: Store) -> None:
    elsewhere(remote)
    won, lost = [], []

    def take() -> None:
        try:
            with Store.open(remote.folder).lock() as run:
                time.sleep(1.5)
                store_run = read_holder(remote.place)
                (won if store_run and store_run.run == run else lost).append(run)
        except StoreError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1, lost


def test_the_lease_says_nothing_but_who_and_when(local: Store) -> None:
    with local.lock():
        assert set(json.loads((local.folder / LEASE).read_bytes())) == {'run', 'what', 'host', 'process', 'since', 'machine', 'started', 'beat'}
