"""The images of a selection, one after the other: what every layout is written from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store.card import CARD
from synthaug_plugins.store.encode import suffix_of
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.selection import Selection
from synthaug_plugins.store.store import Store

PLACES = ('id', 'label', 'shard', 'offset', 'size', 'sha256')
"""Columns that say where an image lies and what it must be."""
DESCRIBING = ('source', 'prompt', 'seed', 'params')
"""Columns of every store that say how an image was made."""
_ROWS = 1024  # of the index that are Python objects at once


class Image(NamedTuple):
    """One image: its row of the index as Python objects, its file, and the file's format ('png', 'jpg' or 'webp')."""

    row: dict[str, Any]
    data: bytes
    suffix: str


def refuse_inside(out: Path) -> None:
    """Refuse (StoreError) to write into a store, which `verify` would call damaged."""
    inside = next((folder for folder in out.absolute().parents if (folder / CARD).exists()), None)
    if inside is not None:
        raise StoreError(f'{str(out)!r} lies inside the store {str(inside)!r}.', 'Give a place elsewhere.')


def in_order(table: pa.Table) -> pa.Table:
    """Rows in the order in which their images lie on disk, by shard and offset: each shard is read once, from its beginning to its end."""
    return table.take(pc.sort_indices(table.select(['shard', 'offset']), [('shard', 'ascending'), ('offset', 'ascending')]))


def images(store: Store, selection: Selection) -> Iterator[Image]:
    """Every image of a selection, with all columns that the selection has. One image is in memory at a time, and the rows of the index.

    Raises:
        StoreError: a damaged or missing shard; the image is named.
    """
    yield from images_of(store, in_order(selection.table))


def images_of(store: Store, table: pa.Table) -> Iterator[Image]:
    """The images of rows of the index, in their order."""
    reader = StoreReader(store.folder)
    for first in range(0, len(table), _ROWS):
        for row in table.slice(first, _ROWS).to_pylist():
            data = reader.read_image(row)
            yield Image(row, data, str(suffix_of(data)))


def score_names(table: pa.Table) -> list[str]:
    """The score columns of a selection's table, in its order."""
    return [name for name in table.column_names if name not in {*PLACES, *DESCRIBING, 'verdict', 'reason'}]
