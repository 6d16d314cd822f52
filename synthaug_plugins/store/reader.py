"""Random access to the images of a store, by position in their shard.

A shard on a remote disk is read from a copy on this machine, see `cache`.

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

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import open_shards
from synthaug_plugins.store.address import is_url
from synthaug_plugins.store.cache import cached_shard
from synthaug_plugins.store.shard import SHARD_NAME

SCHEME = 'synthaug://'


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
            return _read(f'{folder}/shards/{name}', offset, size)
        place, identities = open_shards.remote(folder)
        if name not in identities:
            raise StoreError(f'The shard {place.path("shards/" + name)!r} is missing.', 'Run verify, then repair.')
        return _read(place.path(f'shards/{name}'), offset, size, identities[name])

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
    return _read(unquote(path), int(offset), int(size), identity)


def _read(path: str, offset: int, size: int, identity: str = '') -> bytes:
    """As `open_shards.read_at`; `path` may be the address of a remote shard, which is read from this machine's copy."""
    if is_url(path):
        return open_shards.read_at(_copy(path, identity), offset, size, name=path)
    return open_shards.read_at(path, offset, size, identity)


@lru_cache(maxsize=open_shards.MAX_OPEN_FILES)
def _copy(url: str, identity: str) -> str:
    return cached_shard(url, identity)


@lru_cache(maxsize=64)
def _shards_folder(folder: str) -> str:
    return quote(f'{folder}/shards' if is_url(folder) else os.path.join(os.path.abspath(folder), 'shards'))
