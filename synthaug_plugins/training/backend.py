"""Records of a store as ordinary image paths: `LoadImageFromFile` reads a `synthaug://` address like any file."""

from __future__ import annotations

from mmengine.fileio import BaseStorageBackend, register_backend

from synthaug_plugins.store.reader import read_uri

PREFIX = 'synthaug'


class StoreBackend(BaseStorageBackend):
    """Read-only MMEngine file backend for addresses made by `store.reader.image_uri`."""

    def get(self, filepath: str) -> bytes:
        """The encoded image behind an address. Raises StoreError if its shard is missing or cut short."""
        return read_uri(filepath)

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """The same as text, since MMEngine asks every backend for it."""
        return read_uri(filepath).decode(encoding)


# `force`: a second import (a reloaded module, a spawned worker) must not fail.
register_backend(PREFIX, StoreBackend, force=True, prefixes=PREFIX)
