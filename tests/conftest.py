"""What every test file shares: one thread per process, no plugins from the outside, the reference data if it is there."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['SYNTHAUG_DISABLE_PLUGINS'] = '1'
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pytest

import new_process
from new_process import Said

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / 'shared'


@pytest.fixture(scope='module', autouse=True)
def _nothing_to_collect_in_what_is_loaded() -> None:
    """A million objects of libraries that stay anyway would make a collection of garbage half a second."""
    gc.collect()
    gc.freeze()
    if 'mmengine.runner.runner' in sys.modules:
        _mmengine_saves_what_a_test_has_no_use_for()


@functools.cache
def _mmengine_saves_what_a_test_has_no_use_for() -> None:
    """Each Runner starts a compiler to ask for its version, for the log, and each dataset collects garbage: together a tenth of a second or more."""
    from mmengine.dataset import base_dataset
    from mmengine.runner import runner

    collect = functools.cache(runner.collect_env)
    runner.collect_env = lambda: collect().copy()
    base_dataset.gc = types.SimpleNamespace(collect=lambda: 0)


def pytest_configure(config: pytest.Config) -> None:
    """One server of new processes for all workers of this test run, which the first process of the run starts."""
    # A shell that starts the suite in the background has Ctrl-C ignored, which every process of the tests would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, 'workerinput'):
        with contextlib.ExitStack() as until_the_end:
            until_the_end.enter_context(new_process.server())
            config.add_cleanup(until_the_end.pop_all().close)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """No search for garbage while libraries are imported, which stay: it would take a third of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """The first gradient of a process decides whether those of its forks can have any: on a CPU they can, unless torch.compile came before it."""
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what libraries leave to the interpreter's end can then be collected, else some say that it leaks


@pytest.fixture(scope='session', autouse=True)
def _configs_are_laid_out_once_and_for_readers() -> Iterator[None]:
    """Each of MMEngine's Runners writes its config four times, and lets yapf lay out the text anew each time: most of a short training.

    Here the same text is laid out once, and what MMEngine writes for itself (logs, checkpoints, its copy of the recipe) not at all: that is the same Python.
    """
    from mmengine.config import config

    original, known = getattr(config, 'FormatCode', None), {}
    if original is None:  # the onedl family lays out with another function
        yield
        return

    def lay_out(text: str, **style: Any) -> Any:
        asks = sys._getframe(2)  # for Config.pretty_text
        if asks.f_code.co_name == 'dump' and asks.f_back is not None:
            asks = asks.f_back
        if asks.f_globals['__name__'].startswith(('mmengine.runner.', 'mmengine.hooks.', 'mmengine.visualization.')):
            return text, False
        key = text, repr(style)
        if key not in known:
            known[key] = original(text, **style)
        return known[key]

    config.FormatCode = lay_out
    yield
    config.FormatCode = original


@functools.cache
def digits() -> Any:
    """scikit-learn's digits, which it reads from a compressed text each time. Not to be changed."""
    from sklearn.datasets import load_digits

    return load_digits()


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of reference vectors and real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f'reference data absent: {SHARED} does not exist')
    return SHARED


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does, nobody tries to reach the network."""
    attempts: list[tuple[object, ...]] = []
    for name in ('connect', 'connect_ex'):
        monkeypatch.setattr(socket.socket, name, lambda *a: attempts.append(a))
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *a, **k: attempts.append(a) or [])
    yield
    assert attempts == []


Say = Callable[..., Said]


@pytest.fixture
def synthaug(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command line in this process, which has loaded what the command needs long ago."""
    return lambda *arguments: Said(command_line(*arguments), *capsys.readouterr())


def command_line(*arguments: object) -> int:
    """Exit status of a command line that runs in this process, whose signal handlers stay as they were."""
    from synthaug_plugins.cli import STOPPING, main

    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return int(ended.value.code or 0)


@dataclass(frozen=True)
class Copy:
    """A process that was started as a copy of this one; `out` and `err` are the files that hold what it prints."""

    pid: int
    out: BinaryIO
    err: BinaryIO

    def running(self) -> bool:
        """Whether it has not ended. Not to be asked again after it has."""
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def wait_until(self, so_far: Callable[[], object], seconds: float = 120) -> None:
        """Wait until something is so, which must happen while it runs."""
        deadline = time.monotonic() + seconds
        while not so_far():
            assert self.running(), read(self.err)
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def lines(self) -> list[str]:
        """The lines that it has printed to this moment."""
        return [line for line in read(self.out).splitlines(keepends=True) if line.endswith('\n')]

    def end(self, number: int | None = None) -> Said:
        """Send it a signal, or wait; how it ended (minus the signal that killed it) and what it said."""
        if number is not None:
            os.kill(self.pid, number)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with self.out, self.err:
            return Said(status, read(self.out), read(self.err))


def read(file: BinaryIO) -> str:
    """All of a file that another process writes through the same position, which stays."""
    return os.pread(file.fileno(), 1 << 24, 0).decode()


def copy_of_this_process(call: Callable[[], object]) -> Copy:
    """Let a process of its own make a call, to be killed in it or to be one of several: a copy, because this one has loaded everything long ago.

    Its status is the integer that the call returns, 0 for anything else, 1 if it raises.
    """
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    if (pid := os.fork()) == 0:
        sys.stdout, sys.stderr = (open(file.fileno(), 'w', buffering=1) for file in (out, err))  # noqa: SIM115
        status = 1
        try:
            returned = call()
            status = returned if isinstance(returned, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # without what this process does at its end
    return Copy(pid, out, err)


def kill_in_training(learn: Callable[[], object], step: int) -> None:
    """Let a process of its own learn, and kill it when its progress has come to a number."""
    from synthaug_plugins.engine.progress import TrainingProgress

    def say(self: TrainingProgress, done: int, loss: Any) -> None:
        if done >= step:
            print('there')
            signal.pause()

    def call() -> None:
        TrainingProgress.step = say  # type: ignore[method-assign]
        learn()

    process = copy_of_this_process(call)
    process.wait_until(process.lines)
    assert process.end(signal.SIGKILL).status == -signal.SIGKILL


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch works with one thread: sums keep their order, so a run that goes on can be compared to the bit with one that was never stopped."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of the executor `local` are copies of this process; new ones, which a user's run starts, take seconds to load torch and MMEngine."""
    from synthaug_plugins.executors import local

    monkeypatch.setattr(local, 'START_METHOD', 'fork')


@pytest.fixture
def copied_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a comparison are copies of this process; new ones, which every comparison of a user starts, take seconds to load MMPretrain."""
    from mmengine.runner import runner

    from synthaug_plugins.evaluation import pool

    _mmengine_saves_what_a_test_has_no_use_for()
    runner.collect_env()  # once for all of them

    def start(begin: Callable[..., None], *arguments: Any) -> None:
        # Not where pytest puts what this process prints.
        sys.stdout, sys.stderr = (open(fd, 'w', buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
        begin(*arguments)

    def executor(jobs: int, mp_context: Any, initializer: Any, initargs: tuple[Any, ...]) -> ProcessPoolExecutor:
        assert mp_context.get_start_method() == 'spawn'  # after CUDA has started, no other can use it
        return ProcessPoolExecutor(jobs, get_context('fork'), start, (initializer, *initargs))

    monkeypatch.setattr(pool, 'ProcessPoolExecutor', executor)
