"""What decides a run, as a hash: its resolved config, the files that it names, the images that its loaders read, the versions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# A cache is keyed by content: what it holds does not decide a run, and a run fills it.
_DECIDES_NOTHING = frozenset({'cache'})
# Each package under the names by which it is distributed.
_PACKAGES = (('synthaug-plugins',), ('torch',), ('mmengine', 'onedl-mmengine'), ('mmpretrain', 'onedl-mmpretrain'), ('numpy',))


def run_key(cfg: Config, listings: dict[str, str] | None = None) -> str:
    """Hash of all that decides a run: 16 hex digits.

    Of the folders that a loader or the model names, the names, sizes and times of change of the files in them, links
    followed. Of the files that are named anywhere (`load_from`, `init_cfg.checkpoint`), the content. And `versions`.

    Args:
        listings: remembers folders and files that were already read, so that a large one is read once.
    """
    listings = {} if listings is None else listings
    tree = cfg.to_dict()
    digest = hashlib.sha256(plain([tree, versions()]).encode())
    paths = _paths([tree.get(key) for key in (*LOADERS, 'model')], os.path.exists) | _paths(tree, os.path.isfile)
    for path in sorted(paths):
        if path not in listings:
            listings[path] = _file_hash(path) if os.path.isfile(path) else _listing(path)
        digest.update(f'\n{path} {listings[path]}'.encode())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers, each by the name under which it is installed."""
    return dict(_version(names) for names in _PACKAGES)


def _version(names: tuple[str, ...]) -> tuple[str, str]:
    for name in names[:-1]:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return names[-1], metadata.version(names[-1])


def plain(tree: Any) -> str:
    """A config as text that is equal for equal configs."""

    def name(value: Any) -> str:
        return f'{value.__module__}.{value.__qualname__}' if hasattr(value, '__qualname__') else repr(value)

    return json.dumps(tree, sort_keys=True, default=name)


def _paths(tree: Any, wanted: Callable[[str], bool]) -> set[str]:
    """Every string in a config that names a file or folder that is `wanted`."""
    if isinstance(tree, Mapping):
        tree = [branch for key, branch in tree.items() if key not in _DECIDES_NOTHING]
    if isinstance(tree, list | tuple):
        return set().union(*(_paths(branch, wanted) for branch in tree))
    if not isinstance(tree, str) or not tree.strip('./~') or len(tree) > 4096 or '\0' in tree:
        return set()
    path = os.path.expanduser(tree)
    return {path} if wanted(path) else set()


def _file_hash(path: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _listing(folder: str) -> str:
    lines = []
    for entry in _files(folder, frozenset()):
        try:
            stat = entry.stat()
        except FileNotFoundError:  # a link that leads nowhere
            lines.append(f'{entry.path} nowhere')
        else:
            lines.append(f'{entry.path} {stat.st_size} {stat.st_mtime_ns}')
    return hashlib.sha256('\n'.join(lines).encode(errors='surrogateescape')).hexdigest()


def _files(folder: str, above: frozenset[str]) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder that is no folder, by name. Links are followed, but not in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            entries_by_name = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:  # such as lost+found: no loader reads it either
        return
    for entry in entries_by_name:
        if entry.is_dir():
            yield from _files(entry.path, above | {real})
        else:
            yield entry
