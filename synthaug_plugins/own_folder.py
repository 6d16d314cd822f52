"""A folder that one comparison, study or training has for itself."""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from synthaug_plugins.errors import RecipeError


def refuse_foreign(out: Path, own: Collection[str], kind: str, option: str = '--out') -> None:
    """Refuse (RecipeError) a folder that holds anything but files of the names `own`: runs written into a folder of images would become a class.

    Args:
        kind: what the folder should be, such as 'comparison'.
        option: of the command line, which names another folder.
    """
    if out.exists() and not out.is_dir():
        raise RecipeError(f'{str(out)!r} is not a folder.', f'Give another folder with {option}.')
    foreign = sorted(p.name for p in out.iterdir() if p.name not in own and not p.name.startswith('.partial-')) if out.exists() else []
    if foreign:
        raise RecipeError(f'The folder {str(out)!r} is not empty and not a {kind}: it holds {foreign[0]!r}.', 'Give a new folder; nothing was touched.')


def refuse_among_images(out: str | Path, *images: str | Path, option: str = '--out') -> None:
    """Refuse (RecipeError) a folder for results that lies in a folder of class folders, where it would become a class."""
    for folder in images:
        if Path(out).resolve().is_relative_to(Path(folder).expanduser().resolve()):
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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f'Another {kind} is running in {str(out)!r}.', f'Wait for it, or give another folder with {option}.') from None
        yield
