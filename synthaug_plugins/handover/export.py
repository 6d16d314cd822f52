"""A store as a folder in the layout of another library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from synthaug_plugins.errors import RecipeError, StoreError, nearest
from synthaug_plugins.handover.fiftyone_folder import write_fiftyone
from synthaug_plugins.handover.hf_parquet import write_hf
from synthaug_plugins.handover.imagefolder import write_imagefolder
from synthaug_plugins.handover.images import PLACES, refuse_inside
from synthaug_plugins.new_folder import new_folder
from synthaug_plugins.store.selection import Selection, select
from synthaug_plugins.store.store import Store


class Layout(NamedTuple):
    """A layout: what writes it into an empty folder, the columns of the index that it needs (None: all), and a line that reads it."""

    write: Callable[[Path, Store, Selection], None]
    columns: tuple[str, ...] | None
    reads: str


LAYOUTS = {
    'imagefolder': Layout(write_imagefolder, PLACES, 'torchvision.datasets.ImageFolder({0!r})'),
    'hf': Layout(write_hf, None, "datasets.load_dataset({0!r}, split='train')"),
    'fiftyone': Layout(write_fiftyone, None, 'fiftyone.Dataset.from_dir({0!r}, dataset_type=fiftyone.types.FiftyOneImageClassificationDataset)'),
}


def layout(name: str) -> Layout:
    """The layout of that name. Raises RecipeError for an unknown one."""
    if name not in LAYOUTS:
        raise RecipeError(f'--to {name}: unknown layout.', nearest(name, LAYOUTS))
    return LAYOUTS[name]


def export(store: Store, out: str | Path, to: str = 'imagefolder', selection: Selection | None = None) -> dict[str, int]:
    """Write the selected images (default: all kept ones) into a new folder, which appears whole or not at all.

    Args:
        out: a new or empty folder outside of the store.
        to: 'imagefolder', 'hf' (Hugging Face datasets) or 'fiftyone'.
        selection: with the columns that are to be handed over.

    Returns: images per class name.

    Raises:
        RecipeError: an unknown layout.
        StoreError: `out` exists and is not an empty folder, or lies in a store; a shard is damaged; the disk is full; a score column of a name that the
            layout has for something else; no image at all.
    """
    found, out = layout(to), Path(out).expanduser().absolute()
    refuse_inside(out)
    selection = selection or select(store, allow_empty=True, columns=found.columns)
    if not len(selection.table):
        raise StoreError(f'The selection {selection.text!r} from {str(store.folder)!r} holds no image to export.', 'Generate first, or loosen the condition.')
    with new_folder(out, StoreError) as building:
        found.write(building, store, selection)
    return dict(selection.counts)
