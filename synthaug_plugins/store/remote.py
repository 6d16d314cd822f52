"""A store's folder on a remote disk, by fsspec: S3, Google's and Azure's object stores, and whatever else it opens.

An object appears whole or not at all, so files are put as they are, without a temporary name. Nothing is remembered of a listing: another machine may
write. Credentials come from where the protocol's package finds them (environment, files in the home folder, fsspec's config), never from a recipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

from synthaug_plugins.errors import MissingExtra, StoreError, first_line, nearest
from synthaug_plugins.store.place import Place, TooLong, Unreachable

T = TypeVar('T')
_EXTRAS = {'s3': ('s3fs', 's3'), 's3a': ('s3fs', 's3'), 'gs': ('gcsfs', 'gcs'), 'gcs': ('gcsfs', 'gcs')}
_TAIL = 1 << 20
"""A Parquet file is asked for by its last MiB, which is all of it for a block of images without lists of scores: one request."""
_TELLING = (
    *('ETag', 'etag', 'e_tag', 'generation', 'md5Hash', 'content_md5', 'crc32c', 'checksum', 'blob_id', 'sha'),
    *('mtime', 'LastModified', 'last_modified', 'modified', 'modify', 'created'),
)
"""What file systems say of an object that changes with it; the first counts, since a listing gives times more exactly than a look at one object."""
_TRIES = 3  # to create an object while somebody else does, where the server answers "try again"


class RemotePlace(Place):
    """A folder named by an address. Picklable, and safe in forked and spawned processes: each opens connections of its own.

    Raises:
        StoreError: an address with a password, a query or several protocols; a protocol that nobody knows.
        MissingExtra: the protocol's package is not installed.
    """

    threads = 32  # a request takes tens of milliseconds, nearly all of them spent waiting

    def __init__(self, url: str) -> None:
        protocol, _, rest = url.partition('://')
        user = rest.partition('/')[0].rpartition('@')[0]
        if ':' in user:
            raise StoreError(
                f'The address {protocol}://***@{rest.partition("/")[0].rpartition("@")[2]}/... holds a password.',
                "Leave it out, it would stand in logs and configs; set it in the environment or in fsspec's config, as the protocol's package reads it.",
            )
        if '::' in url or '?' in rest or '#' in rest or not rest.strip('/'):
            raise StoreError(f'{protocol}://{rest.partition("?")[0]} is no address of a folder.', 'Write protocol://bucket/folder, without a query.')
        self.protocol, self.given = protocol, f'{protocol}://{rest.strip("/") if protocol != "memory" else rest.rstrip("/")}'
        self._base = self._fs()._strip_protocol(self.given).rstrip('/')

    def _fs(self) -> Any:
        return _filesystem(self.protocol, os.getpid())

    def _object(self, name: str) -> str:
        return f'{self._base}/{name}' if name else self._base

    def _ask(self, name: str, does: str, call: Callable[[], T]) -> T:
        """The answer of a file system; FileNotFoundError and FileExistsError as they are, everything else as a refusal that says what to do."""
        try:
            return call()
        except (FileNotFoundError, FileExistsError) as error:
            if 'bucket does not exist' in str(error):
                raise Unreachable(f'{self.path(name)!r} cannot be {does}: {first_line(error)}.', 'Create the bucket, or correct its name.') from error
            raise
        except Exception as error:
            self._refuse(name, does, error)

    def _refuse(self, name: str, does: str, error: Exception) -> NoReturn:
        kinds = ' '.join(type(e).__name__ for e in (error, error.__cause__) if e is not None)
        cure = 'See that the network and the server work, and run the same command again; what is published stays.'
        if 'Credential' in kinds or 'DefaultCredentials' in kinds or 'Token' in kinds:
            cure = "Set your credentials where the protocol's package looks for them, for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile."
        elif isinstance(error, PermissionError):
            cure = 'Ask for the right to list, read and write there, or set the credentials of somebody who has it.'
        elif 'ParamValidation' in kinds:
            cure = 'Correct the address.'
        raise Unreachable(f'{self.path(name)!r} cannot be {does}: {first_line(error)}.', cure) from error

    def exists(self, name: str) -> bool:
        """As in the base class."""
        try:
            return self._ask(name, 'looked at', lambda: self._fs().info(self._object(name)))['type'] == 'file'
        except FileNotFoundError:
            return False

    def names(self, folder: str = '') -> list[str]:
        """As in the base class."""
        entries = self._list(folder)
        return sorted(f'{name}/' if entry['type'] == 'directory' else name for name, entry in entries.items())

    def _list(self, folder: str) -> dict[str, dict[str, Any]]:
        path = self._object(folder.rstrip('/'))
        try:
            found = self._ask(folder, 'listed', lambda: self._fs().ls(path, detail=True))
        except (FileNotFoundError, FileExistsError):
            return {}
        # An object of the folder's own name marks an empty one; a file is listed as itself.
        inside = {entry['name'].rstrip('/')[len(path.rstrip('/')) + 1 :]: entry for entry in found}
        return {name: entry for name, entry in inside.items() if name}

    def read(self, name: str, most: int | None = None) -> bytes:
        """As in the base class."""
        data = self._ask(name, 'read', lambda: self._fs().cat_file(self._object(name), start=None, end=None if most is None else most + 1))
        if most is not None and len(data) > most:
            raise TooLong(self.path(name), most)
        return data

    def parquet(self, name: str) -> Any:
        """As in the base class: in memory where the file is small, else read as needed."""
        path = self._object(name)
        tail = self._ask(name, 'read', lambda: self._fs().cat_file(path, start=-_TAIL))
        if len(tail) < _TAIL:
            return io.BytesIO(tail)
        size = int(self._ask(name, 'looked at', lambda: self._fs().info(path))['size'])
        return _Ranges(lambda start, end: self._ask(name, 'read', lambda: self._fs().cat_file(path, start=start, end=end)), size, tail)

    def identities(self, folder: str) -> dict[str, str]:
        """As in the base class: size and what the file system says of its content (ETag, checksum, time)."""
        return {name: self._identity(name, entry) for name, entry in self._list(folder).items() if entry['type'] == 'file'}

    def identity(self, name: str) -> str:
        """As in the base class."""
        return self._identity(name, self._ask(name, 'looked at', lambda: self._fs().info(self._object(name))))

    def _identity(self, name: str, entry: dict[str, Any]) -> str:
        """Raises StoreError where only the size is told: another shard of the same size would pass for this one."""
        telling = next((str(entry[key]).strip('"') for key in _TELLING if entry.get(key) is not None), None)
        if telling is None:
            what = f'The file system of {self.protocol}:// does not tell when {name!r} was changed, so another file could be read in its place unnoticed.'
            raise StoreError(what, 'Copy the store to a local disk and use the copy.')
        return hashlib.sha256(f'{entry["size"]} {telling}'.encode()).hexdigest()[:32]

    def publish(self, *contents: tuple[str, Iterable[bytes]]) -> None:
        """As in the base class. A failed put removes nothing: it may have arrived all the same, and a mark must not outlive what it marks."""
        for name, chunks in contents:
            self._put(name, b''.join(chunks), 'overwrite')

    def write_first(self, name: str, data: bytes) -> bool:
        """As in the base class, by a conditional put.

        False may also mean that this very write arrived, its answer did not, and the file system tried once more.
        """
        for left in reversed(range(_TRIES)):
            try:
                self._put(name, data, 'create')
                return True
            except FileExistsError:
                return False
            except Unreachable as error:
                if not left or 'ConditionalRequestConflict' not in str(error.__cause__):
                    raise
        raise AssertionError

    def _put(self, name: str, data: bytes, mode: str) -> None:
        try:
            self._ask(name, 'written', lambda: self._fs().pipe_file(self._object(name), data, mode=mode))
        except FileNotFoundError as error:
            raise Unreachable(f'{self.path(name)!r} cannot be written: {first_line(error)}.', 'Create the folder, or correct the address.') from error

    def remove(self, name: str) -> None:
        """As in the base class."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, 'removed', lambda: self._fs().rm_file(self._object(name)))

    def remove_folder(self, name: str) -> None:
        """As in the base class."""
        try:
            for entry in self._list(name):
                self.remove(f'{name}/{entry}')
        except Unreachable:
            pass


class _Ranges(io.RawIOBase):
    """A file of which parts are asked for; its end is known. fsspec's own would let pyarrow take a network error for damage."""

    def __init__(self, ask: Callable[[int, int], bytes], size: int, tail: bytes) -> None:
        self._ask, self._size, self._tail, self._at = ask, size, tail, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        start, end = self._at, self._size if size < 0 else min(self._size, self._at + size)
        first = self._size - len(self._tail)
        data = b'' if end <= start else self._tail[start - first : end - first] if start >= first else self._ask(start, end)
        self._at = start + len(data)
        return data


@lru_cache(maxsize=16)
def _filesystem(protocol: str, process: int) -> Any:
    """The file system of a protocol, one per process: connections do not survive a fork."""
    import fsspec
    from fsspec.registry import known_implementations

    if protocol not in known_implementations and protocol not in fsspec.registry:
        raise StoreError(f'No file system has the protocol {protocol!r}.', nearest(protocol, known_implementations))
    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        if protocol in _EXTRAS:
            raise MissingExtra(*_EXTRAS[protocol], f'A store on {protocol}://') from error
        raise StoreError(f'A store on {protocol}:// needs a package that is not installed: {first_line(error)}.', 'Install it with pip.') from error
    except Exception as error:
        raise StoreError(f'The file system of {protocol}:// cannot be opened: {first_line(error)}.', "Correct fsspec's config or the environment.") from error
