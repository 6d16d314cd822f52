"""Files of folders that were learned, perhaps by a stranger: none is reached through a link."""

from __future__ import annotations

from pathlib import Path

from synthaug_plugins.errors import ModelError, StoreError
from synthaug_plugins.store.place import LocalPlace


def inside(folder: Path, path: Path) -> Path:
    """A path within a folder, which may itself be a link.

    Raises:
        ModelError: a link on the way from the folder to the file, or no ordinary file.
    """
    try:
        return LocalPlace(folder).inside(path.relative_to(folder).as_posix())
    except StoreError as error:
        raise ModelError(error.what, error.cure.replace('in a store', 'there')) from error
