"""Who opens what, as the kernel sees it: also what libraries open that are not Python."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_EVENTS = 0x20 | 0x2 | 0x100 | 0x200 | 0x1  # IN_OPEN, IN_MODIFY, IN_CREATE, IN_DELETE, IN_ACCESS
_HEAD = struct.Struct('iIII')


@contextmanager
def untouched(*paths: Path) -> Iterator[None]:
    """Nobody opens, lists or changes these files, or anything in these folders, meanwhile (inotify; Linux only)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(libc, 'inotify_init1') else -1
    if fd < 0:
        pytest.skip('inotify is not to be had')
    names = {libc.inotify_add_watch(fd, os.fsencode(path), _EVENTS): path for top in paths for path in (top, *(top.rglob('*') if top.is_dir() else ()))}
    assert min(names) > 0
    try:
        yield
        assert touched(fd, names) == []
    finally:
        os.close(fd)


def touched(fd: int, names: dict[int, Path]) -> list[str]:
    """The files of which an event came."""
    found, at = [], 0
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return []
    while at < len(data):
        which, mask, _, length = _HEAD.unpack_from(data, at)
        name = data[at + _HEAD.size : at + _HEAD.size + length].rstrip(b'\0').decode()
        found.append(f'{names.get(which)}/{name} {mask:#x}')
        at += _HEAD.size + length
    return found
