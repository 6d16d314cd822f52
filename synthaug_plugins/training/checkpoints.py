"""Which checkpoint of a work folder a training goes on from."""

from __future__ import annotations

import zipfile
from pathlib import Path

NOTE = 'last_checkpoint'
"""MMEngine writes the path of the newest checkpoint into this file."""
_BEST = 'best_'


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a work folder, or None. The folder may have been moved.

    MMEngine notes the newest one after it has written it, removes older ones before, and a kill in between leaves a file that is cut off, or a note of
    one that is gone.
    """
    folder = Path(folder)
    noted = []
    if (folder / NOTE).is_file():
        named = Path((folder / NOTE).read_text(encoding='utf-8', errors='replace').strip())
        noted = [folder / named.name, named]
    found = [path for path in folder.glob('*.pth') if not path.name.startswith(_BEST) and ('epoch_' in path.name or 'iter_' in path.name)]
    candidates = [*noted, *sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)]
    return next((path for path in candidates if path.is_file() and zipfile.is_zipfile(path)), None)
