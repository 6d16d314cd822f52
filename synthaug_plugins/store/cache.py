"""Shards of remote stores as files of this machine: fetched once, compared with their index, and never changed.

They lie in the folder that the environment variable SYNTHAUG_CACHE names, by default `~/.cache/synthaug/shards`, under names that are hashes of address and
identity: a shard that is replaced remotely is another file here. Nothing is removed by itself, and there is no limit: the folder grows to the size of the
stores that were read, and may be removed whenever nobody reads. Who can write to it can change what is trained on, so it is made for its owner alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import files
from synthaug_plugins.store.open_shards import changed
from synthaug_plugins.store.shard import SHARD_NAME
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import block_faults

CACHE = 'SYNTHAUG_CACHE'
"""The environment variable that names the folder."""
_LOCKS = 256  # files; shards that share one wait for each other


def cache_folder() -> Path:
    """Where fetched shards lie."""
    return Path(os.environ.get(CACHE) or '~/.cache/synthaug/shards').expanduser().resolve()


def cached_shard(url: str, identity: str) -> str:
    """The path of this machine's copy of a remote shard. Of processes that ask at once, one fetches it and the others wait.

    Args:
        url: of the shard.
        identity: as `Place.identities` gave it.

    Raises:
        StoreError: the shard is missing, is another one by now, or differs from its index; the remote disk does not answer; the cache cannot be written.
    """
    key = hashlib.sha256(f'{url}\n{identity}'.encode()).hexdigest()
    path = cache_folder() / f'{key[:40]}.tar'
    if path.is_file():
        return str(path)
    with _locked(path.parent, int(key[:8], 16) % _LOCKS):
        if not path.is_file():
            for left in files.partials(path.parent):  # of a killed process: who writes one holds its lock
                if path.name in left.name:
                    left.unlink(missing_ok=True)
            files.write_whole(path, _checked(url, identity))
            path.chmod(0o444)
    return str(path)


def _checked(url: str, identity: str) -> bytes:
    """A shard's bytes, which are those of its identity and what its index says."""
    folder, _, file = url.rpartition('/shards/')
    store = _store(folder)
    block = next((b for b in store.plan.blocks if SHARD_NAME.format(b.index) == file), None)
    if block is None:
        raise StoreError(f'{url!r} is not a shard of the store {folder!r}.', 'Run verify.')
    place, found = store.place, []

    def read(name: str, most: int) -> bytes:
        before, data, after = place.identity(name), place.read(name, most), place.identity(name)
        if {before, after} != {identity}:
            raise changed(url)
        found.append(data)
        return data

    fault = next(iter(block_faults(store, block, read)), None)
    if fault is not None:
        raise StoreError(f'The shard {url!r} cannot be used: {fault}.', 'Run verify, then repair.')
    return found[0]


@lru_cache(maxsize=4)
def _store(folder: str) -> Store:
    """A remote store, opened once by each process; a card that changes with its shards is noticed by their identities."""
    return Store.open(folder)


@contextmanager
def _locked(folder: Path, number: int) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / f'lock-{number:03d}', os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise files.refusal(error, f'The cache of remote shards {str(folder)!r} ({CACHE}) cannot be used') from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise files.refusal(error, f'The cache of remote shards {str(folder)!r} ({CACHE}) cannot be used') from error
    finally:
        os.close(fd)
