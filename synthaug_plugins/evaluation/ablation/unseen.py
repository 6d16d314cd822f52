"""What is made before training may see real images, and none that the figures it serves are chosen on or reported on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from synthaug_plugins.errors import DataError


class HeldOut:
    """The validation or test images of a folder, known by their content.

    Args:
        folder: that holds them. They are read when a file of the same size is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._of_size: dict[int, list[Path]] = {}
        for path in sorted(p for p in folder.rglob('*') if p.is_file()):
            self._of_size.setdefault(path.stat().st_size, []).append(path)
        self._known: dict[int, dict[bytes, Path]] = {}

    def find(self, file: Path) -> Path | None:
        """The held-out file with the same bytes, or None."""
        size = file.stat().st_size
        if size not in self._of_size:
            return None
        if size not in self._known:
            self._known[size] = {_hash(path): path for path in self._of_size[size]}
        return self._known[size].get(_hash(file))


def refuse_seen(name: str, files: Iterable[Path], held_out: Sequence[HeldOut]) -> None:
    """Refuse (DataError) images of which one is a validation or test image, byte for byte.

    Args:
        name: of the entry of `made` that reads them.
        files: that it reads.
    """
    seen = [(file, same) for file in files if (same := next(filter(None, (one.find(file) for one in held_out)), None))]
    if seen:
        what = f'made.{name} sees {len(seen)} validation or test images: {str(seen[0][0])!r} is {str(seen[0][1])!r}, byte for byte.'
        raise DataError(what, 'Give it other images: figures on images that were learned from say nothing.')


def _hash(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
