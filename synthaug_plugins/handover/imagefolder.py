"""A plain folder of class folders, as torchvision's `ImageFolder`, timm and MMPretrain's `CustomDataset` read it."""

from __future__ import annotations

from pathlib import Path

from synthaug_plugins.handover.images import images
from synthaug_plugins.store.selection import Selection
from synthaug_plugins.store.store import Store


def write_imagefolder(folder: Path, store: Store, selection: Selection) -> None:
    """Write `<class>/<id>.<suffix>` for every image.

    A folder is made for every class, also for one without images: readers such as torchvision's `ImageFolder` number the
    folders they find, by name.
    """
    for name in store.classes:
        (folder / name).mkdir()
    for image in images(store, selection):
        (folder / store.classes[image.row['label']] / f'{image.row["id"]}.{image.suffix}').write_bytes(image.data)
