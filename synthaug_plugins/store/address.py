"""How a user names a place of files: a folder, or an address that fsspec opens."""

from __future__ import annotations

from pathlib import Path

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store.place import LocalPlace, Place
from synthaug_plugins.store.remote import RemotePlace


def is_url(folder: str | Path) -> bool:
    """Whether a place is named by an address, `protocol://...`; `file://` counts as one too."""
    return isinstance(folder, str) and '://' in folder


def place_of(folder: str | Path) -> Place:
    """The place that a user names: a folder, or an address that fsspec opens.

    Raises:
        StoreError: an address that holds a password or is none for a folder of files; no package knows its protocol.
        MissingExtra: the protocol's package is not installed.
    """
    if isinstance(folder, str) and folder.startswith(('file://', 'local://')):
        folder = folder.partition('://')[2]
    if is_url(folder):
        return RemotePlace(str(folder))
    if isinstance(folder, Path) and len(folder.parts) > 1 and folder.parts[0] == f'{folder.parts[0][:-1]}:' and not folder.exists():
        raise StoreError(f'{str(folder)!r} is an address that was taken for a local path.', 'Give it as text.')
    return LocalPlace(folder)
