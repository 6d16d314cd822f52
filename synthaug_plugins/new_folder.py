"""How a folder of images appears: whole, or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthaug_plugins.errors import DataError, SynthAugError


@contextmanager
def new_folder(out: str | Path, refuse: type[SynthAugError] = DataError) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends and is gone when the block fails.

    What a killed run to the same place left behind is removed first.

    Args:
        out: a new or empty folder.
        refuse: the kind of refusal.

    Raises:
        SynthAugError: of the kind `refuse`: `out` is not empty, or the disk is full or cannot be written.
    """
    out = Path(out).expanduser().absolute()
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        what = f'The folder {str(out)!r} is not empty.' if out.is_dir() else f'{str(out)!r} is not a folder.'
        raise refuse(what, 'Give a new or empty folder; nothing was touched.')
    building = out.with_name(f'.partial-folder-{out.name}')
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        yield building
        building.rename(out)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, OSError):
            why = 'the disk is full' if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
            raise refuse(f'The folder {str(out)!r} was not written: {why}.', 'Make room, or give a folder that can be written.') from error
        raise


def copy_image(image: Path, target: Path) -> None:
    """Copy a file, into folders that are made if need be.

    Raises:
        DataError: the file cannot be read; it is named.
        OSError: the copy cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(image, target)
    except OSError as error:
        if error.filename != str(image):  # of the copy, or of neither, as on a full disk
            raise
        raise DataError(f'The image {str(image)!r} cannot be read: {error.strerror}.', 'Replace or remove the file.') from error
