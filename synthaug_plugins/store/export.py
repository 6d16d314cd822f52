"""A store as a plain folder of class folders."""

from __future__ import annotations

from pathlib import Path

from synthaug_plugins.errors import StoreError
from synthaug_plugins.new_folder import new_folder
from synthaug_plugins.store.card import CARD
from synthaug_plugins.store.encode import suffix_of
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.selection import Selection, select
from synthaug_plugins.store.store import Store


def export_imagefolder(store: Store, out: str | Path, selection: Selection | None = None) -> dict[str, int]:
    """Write `out/<class>/<id>.<suffix>` for every selected image (default: all kept ones).

    A folder is made for every class, also for one without images: readers such as torchvision's `ImageFolder` number the
    folders they find, by name. The export appears whole or not at all.

    Returns: images per class name.

    Raises:
        StoreError: `out` exists and is not an empty folder; a shard is damaged; the disk is full.
    """
    out = Path(out).expanduser().absolute()
    inside = next((p for p in out.parents if (p / CARD).exists()), None)
    if inside is not None:
        raise StoreError(f'The export folder {str(out)!r} lies inside the store {str(inside)!r}.', 'Give a folder elsewhere.')
    selection = selection or select(store, allow_empty=True)
    reader = StoreReader(store.folder)
    with new_folder(out, StoreError) as building:
        for name in store.classes:
            (building / name).mkdir()
        rows = selection.table.select(['id', 'label', 'shard', 'offset', 'size', 'sha256']).to_pylist()
        for row in sorted(rows, key=lambda r: (r['shard'], r['offset'])):
            data = reader.read_image(row)
            (building / store.classes[row['label']] / f'{row["id"]}.{suffix_of(data)}').write_bytes(data)
    return dict(selection.counts)
