"""What every test file shares: one thread per process, no plugins from the outside, the reference data if it is there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['SYNTHAUG_DISABLE_PLUGINS'] = '1'
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pytest

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / 'shared'


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
