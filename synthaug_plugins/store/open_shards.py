"""The shards that this process holds open: read at any place by any number of threads, and let go of when they are replaced.

One `os.pread` per image: no file position is shared, so threads and forked or spawned workers read side by side.
"""

from __future__ import annotations

import os
from functools import lru_cache

from synthaug_plugins.errors import StoreError, first_line
from synthaug_plugins.store.address import place_of
from synthaug_plugins.store.encode import suffix_of
from synthaug_plugins.store.files import open_plain
from synthaug_plugins.store.place import Place, stat_identity

MAX_OPEN_FILES = 256
"""Shards that one process keeps open; the one unused for longest is closed first."""


def forget_open_files() -> None:
    """Close what this process holds open. Needed after a shard was replaced: an open file still shows the old one."""
    _opened.cache_clear()
    remote.cache_clear()


def changed(path: str) -> StoreError:
    """The refusal to read a shard that is another than the one that the index was read for."""
    return StoreError(
        f'The shard {path!r} was replaced or changed since its index was read.', 'Run verify; start the training again once nobody writes to the store.'
    )


@lru_cache(maxsize=16)
def remote(folder: str) -> tuple[Place, dict[str, str]]:
    """The place of a remote store's address, and its shards' identities as they were at the first call."""
    place = place_of(folder)
    return place, place.identities('shards')


def read_at(path: str, offset: int, size: int, identity: str = '', name: str = '') -> bytes:
    """The bytes of an image in a shard of this machine.

    Args:
        path: of the shard.
        offset, size: in bytes.
        identity: that the shard must have at each read (`stat_identity`); '' for any.
        name: of the shard in refusals; default: its path.

    Raises:
        StoreError: the shard is missing, ends too early or is another by now, or no image of ours lies there.
    """
    name = name or path
    try:
        file = _opened(path, identity)  # held here while reading: another thread may drop it from the cache
        if identity and stat_identity(os.stat(path)) != identity:  # by name: an open file outlives its removal
            raise changed(name)
        data = os.pread(file.fd, size, offset)
        while 0 < len(data) < size:  # network disks may return less at once
            more = os.pread(file.fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
    except (OSError, OverflowError) as error:
        raise StoreError(f'The shard {name!r} cannot be read: {first_line(error)}.', 'Run verify, then repair.') from error
    if len(data) != size:
        raise StoreError(f'The shard {name!r} ends at {len(data)} of {size} bytes of the image at {offset}.', 'Run verify, then repair.')
    if suffix_of(data) is None:  # other kinds have decoders that start programs
        raise StoreError(f'The shard {name!r} holds no PNG, JPEG or WebP at {offset}.', 'Run verify, then repair.')
    return data


class _OpenFile:
    """A file descriptor that is closed when nobody uses it any more, so that dropping it from the cache harms no thread that reads."""

    def __init__(self, path: str) -> None:
        self.fd = open_plain(path)

    def __del__(self) -> None:
        if hasattr(self, 'fd'):
            os.close(self.fd)


@lru_cache(maxsize=MAX_OPEN_FILES)
def _opened(path: str, identity: str) -> _OpenFile:
    file = _OpenFile(path)
    if identity and stat_identity(os.fstat(file.fd)) != identity:
        raise changed(path)
    return file
