"""Where a store lies: a local folder, or the address of one on a remote disk (`s3://bucket/stores/pets`, anything that fsspec opens).

A store's code names its files relative to the store (`index/00000.parquet`) and asks its place for them, so it is the same code for both.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import files

if TYPE_CHECKING:
    import pyarrow as pa


class Unreachable(StoreError):
    """A remote disk did not answer, or refused: nothing is known of the file. Never to be taken for damage, which would be removed and made again."""


class Foreign(StoreError):
    """A link, or something else that is no ordinary file: a store is never followed out of its folder, and never waited for."""


class TooLong(StoreError):
    """A file that is longer than what it can hold, so that it is not read into memory."""

    def __init__(self, path: str, most: int) -> None:
        super().__init__(f'{path!r} has more than {most} bytes.', 'Restore it from a copy.')


class Place(ABC):
    """A store's folder. Names of files are relative to it, with forward slashes.

    Attributes:
        given: the folder or address, as messages say it and records keep it; holds no credentials.
        threads: how many files are best asked for side by side.
    """

    given: str
    threads: int

    def path(self, name: str = '') -> str:
        """How messages call a file: the folder's path or address, and its name."""
        return f'{self.given}/{name}' if name else self.given

    @property
    def label(self) -> str:
        """The last part of the folder's name."""
        return self.given.rstrip('/').rpartition('/')[2]

    @property
    def absolute(self) -> str:
        """The folder's name wherever the process stands."""
        return self.given

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    @abstractmethod
    def names(self, folder: str = '') -> list[str]:
        """What one folder holds, sorted; names of folders end in '/'. Empty where there is no such folder; StoreError where it is none."""

    @abstractmethod
    def read(self, name: str, most: int | None = None) -> bytes:
        """All of a file. Raises FileNotFoundError where there is none, OSError or Unreachable where it cannot be read, TooLong beyond `most` bytes."""

    @abstractmethod
    def parquet(self, name: str) -> str | pa.NativeFile | Any:
        """A file as pyarrow reads it, which may read a part of it only; raises as `read`."""

    @abstractmethod
    def identities(self, folder: str) -> dict[str, str]:
        """What tells each file of a folder from any other that may come to lie at its name, by name without the folder: short hexadecimal text."""

    @abstractmethod
    def identity(self, name: str) -> str:
        """The identity of one file, see `identities`; raises as `read`."""

    @abstractmethod
    def publish(self, *contents: tuple[str, Iterable[bytes]]) -> None:
        """Write files of one unit, each whole or not at all, in this order: the last is the commit mark.

        Raises:
            OSError, StoreError: a failed write. Then no commit mark is there without all the rest.
        """

    def write_whole(self, name: str, data: bytes) -> None:
        """Write one file, whole or not at all; one that is there is replaced.

        Raises:
            StoreError: the write failed; what was there before still stands.
        """
        try:
            self.publish((name, [data]))
        except OSError as error:
            raise files.refusal(error, f'The file {self.path(name)!r} was not written') from error

    @abstractmethod
    def write_first(self, name: str, data: bytes) -> bool:
        """Write a file, whole or not at all, unless it is there already; whether it was written. Of two processes that race, one wins.

        Raises:
            StoreError: the write failed.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""

    @abstractmethod
    def remove_folder(self, name: str) -> None:
        """Remove a folder of ours and all in it, as far as that can be done."""

    def partials(self, folder: str = '') -> list[str]:
        """Names of the temporary files that killed runs left in one folder; a remote disk shows none."""
        return []

    def sync(self, folder: str) -> None:  # noqa: B027 (a remote disk does so by itself)
        """Force a folder's entries to disk."""


class LocalPlace(Place):
    """A folder of this machine. It may itself be a link, since the user named it; nothing in it is one, see `inside`.

    Attributes:
        folder: its path.
    """

    threads = 8  # a file takes half a millisecond, most of it outside of Python; more at once help where disks are slow

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.given = str(self.folder)

    def path(self, name: str = '') -> str:
        """As in the base class."""
        return str(self.folder / name)

    @property
    def label(self) -> str:
        """As in the base class; of the folder that a link or `.` leads to."""
        return self.folder.resolve().name

    @property
    def absolute(self) -> str:
        """As in the base class."""
        return os.path.abspath(self.folder)

    def inside(self, name: str) -> Path:
        """The path of a file, or of a folder (a name that ends in '/'), that is there or not.

        Raises:
            Foreign: a link on the way or at its end, or no ordinary file: reading a pipe would wait for ever.
        """
        path = self.folder
        for part in name.rstrip('/').split('/'):
            path = path / part
            try:
                mode = os.lstat(path).st_mode
            except OSError:  # nothing there: whoever opens it says so
                break
            if stat.S_ISLNK(mode):
                raise Foreign(
                    f'{str(path)!r} is a link.', f'Nothing in a store is followed elsewhere; if you trust it, copy it without links: cp -rL {self.given} COPY'
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Foreign(f'{str(path)!r} is no ordinary file.', 'Remove it, then run repair.')
        return self.folder / name

    def _folder(self, name: str) -> Path:
        """The path of a file whose folder is inside; the file itself may be anything, since it is not opened."""
        return self.inside(name.rpartition('/')[0] + '/') / name.rpartition('/')[2] if '/' in name else self.folder / name

    def exists(self, name: str) -> bool:
        """As in the base class. Raises Foreign for a link, StoreError for a folder that may not be looked into."""
        try:
            return self.inside(name).is_file()
        except PermissionError as error:
            raise self._closed(error) from error

    def names(self, folder: str = '') -> list[str]:
        """As in the base class."""
        try:
            with os.scandir(self.inside(f'{folder}/') if folder else self.folder) as entries:
                return sorted(f'{entry.name}/' if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError) as error:
            there = self.folder / folder
            if os.path.lexists(there) and not there.is_dir():  # another process may have made the folder just now
                raise StoreError(f'{self.path(folder)!r} is not a folder.', 'Give another folder with --out.') from error
            return []
        except PermissionError as error:
            raise self._closed(error) from error

    def _closed(self, error: PermissionError) -> StoreError:
        return StoreError(f'{str(error.filename or self.given)!r} cannot be looked at: {error.strerror}.', 'Give a folder that you may read.')

    def read(self, name: str, most: int | None = None) -> bytes:
        """As in the base class."""
        path = self.inside(name)
        if most is not None and path.stat().st_size > most:
            raise TooLong(str(path), most)
        return path.read_bytes()

    def parquet(self, name: str) -> str:
        """As in the base class."""
        return str(self.inside(name))

    def identities(self, folder: str) -> dict[str, str]:
        """As in the base class: size, time of the last change and inode."""
        try:
            with os.scandir(self.inside(f'{folder}/')) as entries:
                return {entry.name: stat_identity(entry.stat()) for entry in entries if entry.is_file(follow_symlinks=False)}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def identity(self, name: str) -> str:
        """As in the base class."""
        return stat_identity((self.folder / name).stat())

    def publish(self, *contents: tuple[str, Iterable[bytes]]) -> None:
        """As in the base class: all are written beside their names and forced to disk before the first gets its name; a failure leaves none of them."""
        made: list[Path] = []
        staged: list[Path] = []
        try:
            for name, chunks in contents:
                staged.append(files.stage(self._folder(name), chunks))
                made.append(staged[-1])
            for (name, _), path in zip(contents, staged, strict=True):
                if len(contents) > 1:
                    made.append(self.folder / name)
                files.commit(path, self.folder / name)
        except BaseException:
            for path in reversed(made):  # the commit mark first: without it the rest counts for nothing
                path.unlink(missing_ok=True)
            raise

    def write_first(self, name: str, data: bytes) -> bool:
        """As in the base class."""
        return files.write_first(self._folder(name), data)

    def remove(self, name: str) -> None:
        """As in the base class. Raises StoreError where it cannot be removed, as a folder in its place."""
        try:
            self._folder(name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f'{self.path(name)!r} cannot be removed: {error.strerror}.', 'Remove it yourself, then go on.') from error

    def remove_folder(self, name: str) -> None:
        """As in the base class."""
        import shutil

        shutil.rmtree(self._folder(name), ignore_errors=True)

    def partials(self, folder: str = '') -> list[str]:
        """As in the base class."""
        return [path.relative_to(self.folder).as_posix() for path in files.partials(self.inside(f'{folder}/') if folder else self.folder)]

    def sync(self, folder: str) -> None:
        """As in the base class."""
        if (self.folder / folder).is_dir():
            files.sync_folder(self.folder / folder)


def stat_identity(found: os.stat_result) -> str:
    """What tells a local file from one that was put in its place or was written to: size, time of the last change, inode."""
    return f'{found.st_size:x}.{found.st_mtime_ns:x}.{found.st_ino:x}'


def partial_names(place: Place, folders: Sequence[str]) -> list[str]:
    """Names of the temporary files that killed runs left in some folders of a place."""
    return [name for folder in folders for name in place.partials(folder)]
