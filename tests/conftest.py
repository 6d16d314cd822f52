"""What every test file shares: one thread per process, no plugins from the outside, the reference data if it is there."""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['SYNTHAUG_DISABLE_PLUGINS'] = '1'
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pytest

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / 'shared'


@pytest.fixture(scope='module', autouse=True)
def _nothing_to_collect_in_what_is_loaded() -> None:
    """MMEngine collects garbage whenever a dataset is built; a million objects of libraries that stay anyway would make that half a second each."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what libraries leave to the interpreter's end can then be collected, else some say that it leaks


@pytest.fixture(scope='session', autouse=True)
def _equal_configs_are_laid_out_once() -> Iterator[None]:
    """Each of MMEngine's Runners writes its config four times, and lets yapf lay out the same text anew each time: most of a short training."""
    from mmengine.config import config

    original, known = getattr(config, 'FormatCode', None), {}
    if original is None:  # the onedl family lays out with another function
        yield
        return

    def lay_out(text: str, **style: Any) -> Any:
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


class Said(NamedTuple):
    """How a command line ended."""

    status: int
    out: str
    err: str


Say = Callable[..., Said]


@pytest.fixture
def synthaug(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command line in this process, which has loaded what the command needs long ago."""
    return lambda *arguments: Said(command_line(*arguments), *capsys.readouterr())


def command_line(*arguments: object) -> int:
    """Exit status of a command line that runs in this process, whose signal handlers stay as they were."""
    from synthaug_plugins.cli import main

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return int(ended.value.code or 0)


def synthaug_process(*arguments: object, cwd: Path | None = None) -> Said:
    """Run a command line as a user does, in a process of its own; it takes seconds where torch or MMPretrain load."""
    done = subprocess.run([sys.executable, '-m', 'synthaug_plugins.cli', *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    return Said(done.returncode, done.stdout, done.stderr)
