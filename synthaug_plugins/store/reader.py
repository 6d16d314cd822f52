"""Random access to the images of a store, by position in their shard.

One `os.pread` per image: no file position is shared, so threads and forked or spawned workers read side by side. A shard on a remote disk is read from a
copy on this machine, see `cache`.

An address may name the identity of its shard (size, time of the last change and inode; remotely size and ETag). A read then refuses a shard that is not
the one whose index was read, so that a training gets no other image in the place of one that is gone.
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
from synthaug_plugins.store.place import Place, is_url, place_of, stat_identity
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
        name = SHARD_NAME.format(shard)
        folder = os.fspath(self.folder)
        if not is_url(folder):
            return _pread(f'{folder}/shards/{name}', offset, size)
        place, identities = _remote(folder)
        if name not in identities:
            raise StoreError(f'The shard {place.path("shards/" + name)!r} is missing.', 'Run verify, then repair.')
        return _pread(place.path(f'shards/{name}'), offset, size, identities[name])

    def read_image(self, row: Mapping[str, Any]) -> bytes:
        """The bytes of an index row's image, compared with the row's sha256. Training reads without: run `verify` before it.

        Raises:
            StoreError: as `read`; or the bytes have changed.
        """
        data = self.read(row['shard'], row['offset'], row['size'])
        if hashlib.sha256(data).hexdigest() != row['sha256']:
            raise StoreError(f'The image {row["id"]!r} in shard {row["shard"]} of {str(self.folder)!r} is damaged.', 'Run verify, then repair.')
        return data


def image_uri(folder: str | Path, shard: int, offset: int, size: int, identity: str = '') -> str:
    """The address of one image: `synthaug:///abs/path/shards/00000.tar#offset+size@identity`, special characters %-escaped.

    Args:
        folder: the store's; of a remote one the address, which stands escaped behind `synthaug://`.
        identity: of the shard (`Place.identities`); '' for no comparison, which a remote shard cannot do without.
    """
    return f'{SCHEME}{_shards_folder(os.fspath(folder))}/{SHARD_NAME.format(shard)}#{offset}+{size}' + (f'@{identity}' if identity else '')


def read_uri(uri: str) -> bytes:
    """The bytes of the image at an `image_uri`.

    Raises:
        StoreError: not such an address; the shard is missing, ends too early, or is another than the address names.
    """
    path, mark, place = uri.removeprefix(SCHEME).rpartition('#')
    place, _, identity = place.partition('@')
    offset, plus, size = place.partition('+')
    if not (uri.startswith(SCHEME) and mark and plus and offset.isdecimal() and size.isdecimal()):
        raise StoreError(f'{uri!r} is not the address of a stored image.', f'It looks like {SCHEME}/folder/shards/00000.tar#512+4711.')
    return _pread(unquote(path), int(offset), int(size), identity)


def forget_open_files() -> None:
    """Close what this process holds open. Needed after a shard was replaced: an open file still shows the old one."""
    _opened.cache_clear()
    _remote.cache_clear()


class _OpenFile:
    """A file descriptor that is closed when nobody uses it any more, so that dropping it from the cache harms no thread that reads."""

    def __init__(self, path: str, identity: str = '') -> None:
        self.fd = open_plain(path)
        self.identity = identity  # that the file of this name must have at each read; '' for any

    def __del__(self) -> None:
        if hasattr(self, 'fd'):
            os.close(self.fd)


@lru_cache(maxsize=MAX_OPEN_FILES)
def _opened(path: str, identity: str) -> _OpenFile:
    if is_url(path):
        from synthaug_plugins.store.cache import cached_shard

        return _OpenFile(cached_shard(path, identity))
    file = _OpenFile(path, identity)
    if identity and stat_identity(os.fstat(file.fd)) != identity:
        raise changed(path)
    return file


@lru_cache(maxsize=16)
def _remote(folder: str) -> tuple[Place, dict[str, str]]:
    """A remote store's place and its shards' identities."""
    place = place_of(folder)
    return place, place.identities('shards')


@lru_cache(maxsize=64)
def _shards_folder(folder: str) -> str:
    return quote(f'{folder}/shards' if is_url(folder) else os.path.join(os.path.abspath(folder), 'shards'))


def changed(path: str) -> StoreError:
    """The refusal to read a shard that is another than the one that the index was read for."""
    return StoreError(
        f'The shard {path!r} was replaced or changed since its index was read.', 'Run verify; start the training again once nobody writes to the store.'
    )


def _pread(path: str, offset: int, size: int, identity: str = '') -> bytes:
    try:
        file = _opened(path, identity)  # held here while reading: another thread may drop it from the cache
        if file.identity and stat_identity(os.stat(path)) != file.identity:  # by name: an open file outlives its removal
            raise changed(path)
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
