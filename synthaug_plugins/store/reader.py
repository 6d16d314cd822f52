"""Random access to the images of a store, by position in their shard.

One `os.pread` per image: no file position is shared, so threads and forked or spawned workers read side by side.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from synthaug_plugins.errors import StoreError, first_line
from synthaug_plugins.store.encode import suffix_of
from synthaug_plugins.store.files import open_plain
from synthaug_plugins.store.shard import SHARD_NAME

SCHEME = 'synthaug://'
MAX_OPEN_FILES = 256
"""Shards that one process keeps open; the one unused for longest is closed first."""


@dataclass(frozen=True)
class StoreReader:
    """Reads images of the store in `folder`. Holds no open file itself: picklable, and safe in any worker.

    >>> reader = StoreReader('stores/flowers')                      # doctest: +SKIP
    >>> data = reader.read(shard=0, offset=512, size=4711)          # doctest: +SKIP
    """

    folder: str | Path

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """The bytes of one image file; the three numbers come from the index.

        Raises:
            StoreError: the shard is missing or ends too early; it is named.
        """
        return _pread(f'{os.fspath(self.folder)}/shards/{SHARD_NAME.format(shard)}', offset, size)

    def read_image(self, row: Mapping[str, Any]) -> bytes:
        """The bytes of an index row's image, compared with the row's sha256. Training reads without: run `verify` before it.

        Raises:
            StoreError: as `read`; or the bytes have changed.
        """
        data = self.read(row['shard'], row['offset'], row['size'])
        if hashlib.sha256(data).hexdigest() != row['sha256']:
            raise StoreError(f'The image {row["id"]!r} in shard {row["shard"]} of {str(self.folder)!r} is damaged.', 'Run verify, then repair.')
        return data


def image_uri(folder: str | Path, shard: int, offset: int, size: int) -> str:
    """The address of one image: `synthaug:///abs/path/shards/00000.tar#offset+size`, special characters %-escaped."""
    return f'{SCHEME}{_shards_folder(os.path.abspath(folder))}/{SHARD_NAME.format(shard)}#{offset}+{size}'


def read_uri(uri: str) -> bytes:
    """The bytes of the image at an `image_uri`.

    Raises:
        StoreError: not such an address, or the shard is missing or ends too early.
    """
    path, mark, place = uri.removeprefix(SCHEME).rpartition('#')
    offset, plus, size = place.partition('+')
    if not (uri.startswith(SCHEME) and mark and plus and offset.isdecimal() and size.isdecimal()):
        raise StoreError(f'{uri!r} is not the address of a stored image.', f'It looks like {SCHEME}/folder/shards/00000.tar#512+4711.')
    return _pread(unquote(path), int(offset), int(size))


def forget_open_files() -> None:
    """Close what this process holds open. Needed after a shard was replaced: an open file still shows the old one."""
    _opened.cache_clear()


class _OpenFile:
    """A file descriptor that is closed when nobody uses it any more, so that dropping it from the cache harms no thread that reads."""

    def __init__(self, path: str) -> None:
        self.fd = open_plain(path)

    def __del__(self) -> None:
        if hasattr(self, 'fd'):
            os.close(self.fd)


@lru_cache(maxsize=MAX_OPEN_FILES)
def _opened(path: str) -> _OpenFile:
    return _OpenFile(path)


@lru_cache(maxsize=64)
def _shards_folder(folder: str) -> str:
    return quote(os.path.join(folder, 'shards'))


def _pread(path: str, offset: int, size: int) -> bytes:
    try:
        file = _opened(path)  # held here while reading: another thread may drop it from the cache
        data = os.pread(file.fd, size, offset)
        while 0 < len(data) < size:  # network disks may return less at once
            more = os.pread(file.fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
    except (OSError, OverflowError) as error:
        raise StoreError(f'The shard {path!r} cannot be read: {first_line(error)}.', 'Run verify, then repair.') from error
    if len(data) != size:
        raise StoreError(f'The shard {path!r} ends at {len(data)} of {size} bytes of the image at {offset}.', 'Run verify, then repair.')
    if suffix_of(data) is None:  # other kinds have decoders that start programs
        raise StoreError(f'The shard {path!r} holds no PNG, JPEG or WebP at {offset}.', 'Run verify, then repair.')
    return data
