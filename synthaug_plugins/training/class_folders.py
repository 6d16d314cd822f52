"""Labels that come from class folders are positions in their sorted names, whatever a config calls the classes."""

from __future__ import annotations

from typing import Any

from synthaug_plugins.errors import DataError


def refuse_turned_folders(dataset: Any) -> None:
    """Refuse (DataError) a CustomDataset whose `classes` are the names of its folders in another order: it labels by the sorted folders all the same,
    and every image would train as another class."""
    folders = getattr(dataset, 'folder_to_idx', None)
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if not folders or not classes or set(folders) != set(classes):
        return
    turned = next((name for i, name in enumerate(classes) if folders[name] != i), None)
    if turned is not None:
        raise DataError(
            f'{type(dataset).__name__} labels the folder {turned!r} {folders[turned]}, its place in the sorted folder names, and classes puts it at '
            f'{list(classes).index(turned)}.',
            'Leave classes out; a store in that order comes from synthaug generate --cfg-options "classes=[...]".',
        )
