"""Workers: each task is done once, whoever dies, hangs or refuses on the way; nobody outlives the driver."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import copy_of_this_process
from synthaug_plugins.errors import ExecutorError, MissingExtra, RecipeError, SynthAugError
from synthaug_plugins.executors.base import DEATHS_ALLOWED, Executor, beat, signals_wait
from synthaug_plugins.executors.local import Local


@dataclass
class Script:
    """Tasks are what the worker does: 'die 1' kills itself the first time, 'die 9' up to nine times; each task leaves its process's id in a folder."""

    folder: Path
    name: str = 'task'

    def start(self, device: str) -> Callable[[str], tuple[str, int]]:
        (self.folder / f'started {os.getpid()}').touch()
        if (self.folder / 'cannot start').exists():
            os._exit(7)
        return lambda task: self._work(task, device)

    def _work(self, task: str, device: str) -> tuple[str, int]:
        what, _, times = task.partition(' ')
        before = len(list(self.folder.glob(f'{task} *')))
        (self.folder / f'{task} {before}').write_text(str(os.getpid()))
        if what == 'die' and before < int(times):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == 'hang' and before < int(times):
            time.sleep(60)
        if what == 'slow':
            for _ in range(12):
                time.sleep(0.1)
                beat()
        if what == 'refuse':
            raise MissingExtra('ray', 'ray', 'This')
        if what == 'disconnect':
            raise ConnectionResetError('the bucket hung up')
        if what == 'raise':
            raise KeyError('odd')
        return device, os.getpid()


def run(executor: Executor, folder: Path, *tasks: str) -> dict[str, tuple[str, int]]:
    with closing(executor.run(Script(folder), tasks)) as results:
        return dict(results)


def running(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def started(folder: Path) -> set[int]:
    return {int(p.name.split()[1]) for p in folder.glob('started *')}


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    assert run(Local('cpu'), tmp_path, 'a', 'b') == {'a': ('cpu', os.getpid()), 'b': ('cpu', os.getpid())}
    assert started(tmp_path) == {os.getpid()}


def test_several_workers_share_the_tasks_and_start_once_each(tmp_path: Path, forked_workers: None) -> None:
    done = run(Local('cpu', workers=3), tmp_path, *(f'slow {i}' for i in range(6)))
    assert list(done) and set(done) == {f'slow {i}' for i in range(6)}
    workers = {pid for _, pid in done.values()}
    assert len(workers) == 3
    assert started(tmp_path) == workers
    assert os.getpid() not in workers
    assert not any(map(running, workers))


def test_new_processes_have_one_thread_each_and_the_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method that users get, without forking."""
    monkeypatch.delenv('OMP_NUM_THREADS')
    with closing(Local('cpu', workers=2).run(Threads(), [1, 2])) as results:
        assert [threads for _, threads in results] == ['1', '1']
    assert 'OMP_NUM_THREADS' not in os.environ


class Threads:
    name = 'task'

    def start(self, device: str) -> Callable[[int], str | None]:
        return lambda task: os.environ.get('OMP_NUM_THREADS')


def test_a_killed_worker_is_replaced_and_its_task_done_again(tmp_path: Path, forked_workers: None) -> None:
    assert DEATHS_ALLOWED == 3
    done = run(Local('cpu', workers=2), tmp_path, 'die 2', *'abcd')
    assert set(done) == {'die 2', *'abcd'}
    assert [len(list(tmp_path.glob(f'{task} *'))) for task in ('die 2', *'abcd')] == [3, 1, 1, 1, 1]


def test_a_task_that_kills_three_workers_is_named_with_the_signal(tmp_path: Path, forked_workers: None) -> None:
    with pytest.raises(ExecutorError, match=r'at task die 9, 3 in a row; the last one was killed by SIGKILL') as ended:
        run(Local('cpu', workers=2), tmp_path, 'a', 'die 9')
    assert ended.value.exit_code == 1
    assert not any(map(running, started(tmp_path)))


def test_workers_that_cannot_start_end_the_run(tmp_path: Path, forked_workers: None) -> None:
    (tmp_path / 'cannot start').touch()
    with pytest.raises(ExecutorError, match='before they could start, 3 in a row; the last one ended with status 7'):
        run(Local('cpu', workers=2), tmp_path, 'a', 'b')


def test_a_worker_that_hangs_is_killed_and_a_slow_one_that_beats_is_not(tmp_path: Path, forked_workers: None) -> None:
    begun = time.monotonic()
    done = run(Local('cpu', workers=2, stall_timeout=0.6), tmp_path, 'hang 1', 'slow 1')
    assert time.monotonic() - begun < 10
    assert set(done) == {'hang 1', 'slow 1'}
    assert len(list(tmp_path.glob('hang 1 *'))) == 2
    assert len(list(tmp_path.glob('slow 1 *'))) == 1


def test_a_single_worker_is_watched_where_a_time_is_given(tmp_path: Path, forked_workers: None) -> None:
    assert os.getpid() != run(Local('cpu', stall_timeout=0.5), tmp_path, 'hang 1')['hang 1'][1]


def test_a_refusal_in_a_worker_is_the_drivers_own(tmp_path: Path, forked_workers: None) -> None:
    with pytest.raises(MissingExtra) as refused:
        run(Local('cpu', workers=2), tmp_path, 'refuse', 'hang 9')
    assert refused.value.args == MissingExtra('ray', 'ray', 'This').args
    assert refused.value.cure == "Run: pip install 'synthaug-plugins[ray]'"
    assert not any(map(running, started(tmp_path)))


def test_another_error_keeps_its_class_and_the_workers_trace(tmp_path: Path, forked_workers: None) -> None:
    with pytest.raises(KeyError, match='odd') as raised:
        run(Local('cpu', workers=2), tmp_path, 'raise')
    assert 'in _work' in str(raised.value.__cause__)


def test_a_lost_connection_in_a_workers_task_is_no_lost_worker(tmp_path: Path, forked_workers: None) -> None:
    with pytest.raises(ConnectionResetError, match='the bucket hung up'):
        run(Local('cpu', workers=2), tmp_path, 'disconnect')
    assert len(list(tmp_path.glob('disconnect *'))) == 1


class Flaky(Script):
    """Every other start fails."""

    def start(self, device: str) -> Callable[[str], tuple[str, int]]:
        before = len(started(self.folder))
        work = super().start(device)
        if before % 2 == 0:
            os._exit(7)
        return work


def test_only_starts_that_fail_in_a_row_end_the_run(tmp_path: Path, forked_workers: None) -> None:
    tasks = ['die 1', 'die 01', 'die 001']
    with closing(Local('cpu', workers=1, stall_timeout=60).run(Flaky(tmp_path), tasks)) as results:
        assert {task for task, _ in results} == set(tasks)
    assert len(started(tmp_path)) == 2 * (len(tasks) + 1)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT], ids=['killed', 'Ctrl-C'])
def test_workers_end_with_their_driver(number: int, tmp_path: Path, forked_workers: None) -> None:
    driver = copy_of_this_process(lambda: run(Local('cpu', workers=2), tmp_path, 'hang 9', 'hang 99'))
    driver.wait_until(lambda: len(list(tmp_path.glob('hang *'))) == 2)
    assert driver.end(number).status == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    deadline = time.monotonic() + 5
    while any(map(running, started(tmp_path))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(started(tmp_path)) == 2


def test_leaving_early_ends_the_workers(tmp_path: Path, forked_workers: None) -> None:
    with closing(Local('cpu', workers=2).run(Script(tmp_path), ['a', 'hang 9', 'hang 99'])) as results:
        next(iter(results))
    assert not any(map(running, started(tmp_path)))
    assert not multiprocessing.active_children()


def test_a_job_that_cannot_travel_is_refused(tmp_path: Path) -> None:
    job = Script(tmp_path)
    job.start = lambda device: None  # type: ignore[method-assign]
    with pytest.raises(ExecutorError, match=r'cannot be sent .* Use --workers 1'):
        list(Local('cpu', workers=2).run(job, ['a']))


@pytest.mark.parametrize(
    ('options', 'text'), [({'workers': 0}, '--workers 0'), ({'stall_timeout': 0}, '--stall-timeout 0'), ({'device': 'gpu'}, '--device gpu')]
)
def test_numbers_out_of_range_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        Local(**options)  # type: ignore[arg-type]


def test_a_signal_waits_for_what_should_not_be_cut(tmp_path: Path) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), signals_wait():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append('whole')
    assert done == ['whole']


def test_an_ignored_signal_takes_no_other_ones_place() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with pytest.raises(KeyboardInterrupt), signals_wait():  # noqa: PT012
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_every_refusal_survives_the_way_to_another_process() -> None:
    import pickle

    kinds = [SynthAugError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    for kind in kinds:
        error = kind('a', 'b', 'c') if kind is MissingExtra else kind('What.', 'Cure.')
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.what, again.cure) == (kind, str(error), error.what, error.cure)
