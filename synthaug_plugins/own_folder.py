"""A folder that one comparison, study or training has for itself, and the lock that says so."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from synthaug_plugins.errors import RecipeError

WORKERS_GO_S = 2.0
"""Workers of a run that was killed a moment ago hold its lock until the kernel has ended them too."""


def lock_within(fd: int, seconds: float) -> None:
    """Lock an open file or folder for this process, exclusively; the kernel frees it with the process.

    Raises:
        BlockingIOError: another process holds it, still so many seconds later.
        OSError: the file system has no locks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            if time.monotonic() >= deadline:
                raise BlockingIOError(*error.args) from error
        time.sleep(0.02)


def refuse_file(out: str | Path, option: str = '--out') -> None:
    """Refuse (RecipeError) a place for a folder where a file is, or that lies below one.

    Args:
        option: of the command line, which names another folder.
    """
    for place in (Path(out), *Path(out).parents):
        if place.exists() and not place.is_dir():
            raise RecipeError(f'{str(place)!r} is not a folder.', f'Give another folder with {option}.')


def refuse_foreign(out: Path, own: Collection[str], kind: str, option: str = '--out') -> None:
    """Refuse (RecipeError) a folder that holds anything but files of the names `own`: runs written into a folder of images would become a class.

    Args:
        kind: what the folder should be, such as 'comparison'.
        option: of the command line, which names another folder.
    """
    refuse_file(out, option)
    foreign = sorted(p.name for p in out.iterdir() if p.name not in own and not p.name.startswith('.partial-')) if out.exists() else []
    if foreign:
        raise RecipeError(f'The folder {str(out)!r} is not empty and not a {kind}: it holds {foreign[0]!r}.', 'Give a new folder; nothing was touched.')


def refuse_among_images(out: str | Path, *images: str | Path, option: str = '--out') -> None:
    """Refuse (RecipeError) a folder for results that lies in a folder of class folders, where it would become a class."""
    for folder in images:
        if Path(out).expanduser().resolve().is_relative_to(Path(folder).expanduser().resolve()):
            raise RecipeError(f'{option} {str(out)!r} lies in {str(folder)!r}, where it would become a class.', 'Give a folder outside of it.')


@contextmanager
def alone(out: Path, kind: str, option: str = '--out') -> Iterator[None]:
    """Refuse (RecipeError) a second process in the same folder: both would train into the same run. The system frees the lock on death.

    Args:
        kind: what runs there, such as 'comparison'.
        option: of the command line, which names another folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / '.lock', 'w') as file:
        try:
            lock_within(file.fileno(), WORKERS_GO_S)
        except BlockingIOError:
            raise RecipeError(f'Another {kind} is running in {str(out)!r}.', f'Wait for it, or give another folder with {option}.') from None
        yield
