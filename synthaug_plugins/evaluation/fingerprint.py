"""What decides a run, as a hash: its resolved config and the images that its loaders read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config


def run_key(cfg: Config, listings: dict[str, str] | None = None) -> str:
    """Hash of a resolved config and of the folders and files that its loaders read (names, sizes, times of change).

    Args:
        listings: remembers folders that were already listed, so that a large one is walked once.
    """
    listings = {} if listings is None else listings
    digest = hashlib.sha256(_plain(cfg.to_dict()).encode())
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for path in sorted(_paths(cfg.get(loader))):
            if path not in listings:
                listings[path] = _listing(Path(path))
            digest.update(f'\n{path} {listings[path]}'.encode())
    return digest.hexdigest()[:16]


def _plain(tree: Any) -> str:
    def name(value: Any) -> str:
        return f'{value.__module__}.{value.__qualname__}' if hasattr(value, '__qualname__') else repr(value)

    return json.dumps(tree, sort_keys=True, default=name)


def _paths(tree: Any) -> set[str]:
    """Every string in a loader's config that names a file or folder."""
    if isinstance(tree, Mapping):
        return set().union(*map(_paths, tree.values()))
    if isinstance(tree, list | tuple):
        return set().union(*map(_paths, tree))
    return {tree} if isinstance(tree, str) and tree.strip('./') and len(tree) < 4096 and '\0' not in tree and os.path.exists(tree) else set()


def _listing(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob('*') if p.is_file())
    lines = []
    for file in files:
        stat = file.stat()
        lines.append(f'{file.relative_to(path).as_posix()} {stat.st_size} {stat.st_mtime_ns}')
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def data_of(loader: Mapping[str, Any]) -> str:
    """What a loader reads, as text: its dataset config without the pipeline."""
    dataset = {k: v for k, v in loader['dataset'].items() if k not in ('pipeline', '_scope_', 'test_mode', 'type')}
    return _plain(dataset)
