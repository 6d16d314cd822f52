"""How a file appears in a store: whole and on disk, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from synthaug_plugins.errors import StoreError

PARTIAL = '.partial-'
"""Every unfinished file of ours carries this prefix, so that a later run knows it may remove it."""


def stage(path: Path, chunks: Iterable[bytes]) -> Path:
    """Write `chunks` to a temporary file beside `path`, force it to disk and return its path; `commit` publishes it.

    Raises:
        OSError: disk full, no permission; the temporary file is gone then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that nobody can guess, and a file that was not there: a stranger's store may hold links that lead out of it, and on a network disk another host
    # may have a process of this number.
    staged = path.with_name(f'{PARTIAL}{path.name}-{os.getpid()}-{secrets.token_hex(4)}')
    try:
        with open(staged, 'xb') as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def commit(staged: Path, path: Path) -> None:
    """Give a staged file its name. The rename is atomic; the folder is forced to disk so that it survives a power cut."""
    os.replace(staged, path)
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        StoreError: disk full, no permission; what stood at `path` before still stands.
    """
    try:
        commit(stage(path, [data]), path)
    except OSError as error:
        raise refusal(error, f'The file {str(path)!r} was not written') from error


def write_first(path: Path, data: bytes) -> bool:
    """Write a file atomically unless it is there already; whether it was written. Of two processes that race, one wins.

    Raises:
        StoreError: disk full, no permission.
    """
    try:
        staged = stage(path, [data])
        try:
            os.link(staged, path)  # unlike a rename, a link never replaces
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            commit(staged, path)
        finally:
            staged.unlink(missing_ok=True)
        sync_folder(path.parent)
        return True
    except OSError as error:
        raise refusal(error, f'The file {str(path)!r} was not written') from error


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (new names, removed names) to disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def refusal(error: OSError, what: str, kept: str = 'Nothing else was touched') -> StoreError:
    """The StoreError for a failed write: what failed, why, what is kept and how to go on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f'{what}: the disk is full.', f'{kept}; free some space and run the same command again.')
    return StoreError(f'{what}: {error.strerror or error}.', f'{kept}; make the folder writable and run the same command again.')


def open_plain(path: str) -> int:
    """A descriptor of an ordinary file that is not reached through a link, as far as its own folder goes, to read.

    Raises:
        OSError: missing, a link (ELOOP), or a pipe or a device, for which a reader might wait for ever (EINVAL).
    """
    if stat.S_ISLNK(os.lstat(os.path.dirname(path)).st_mode):
        raise OSError(errno.ELOOP, 'its folder is a link', path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(error.errno, 'it is a link' if error.errno == errno.ELOOP else error.strerror, path) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, 'no ordinary file', path)
    return fd


def partials(folder: Path) -> list[Path]:
    """Temporary files that a killed run left in `folder` (one level)."""
    return sorted(p for p in folder.glob(f'{PARTIAL}*') if p.is_file()) if folder.is_dir() else []
