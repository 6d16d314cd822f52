"""Whether a store's variants were made from the real training images themselves, not from others of the same names."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow.compute as pc

from synthaug_plugins.errors import DataError
from synthaug_plugins.mixing.records import Records

_LOOKED_AT = 16


def check_made_from(records: Records, real_files: Callable[[str], Iterable[str]]) -> None:
    """Compare some source images with the real ones of the same names, where the store says from which folder it was made.

    `data/train/cat/1.png` and `data/val/cat/1.png` have one name below their folders; variants of the second would leak into
    a training on the first. Up to 16 sources are compared, spread over the store, byte by byte unless they are the same file,
    so a copied folder passes. What is not there any more, or lies on a remote disk, is not compared.

    Args:
        records: with sources that are names of real training images.
        real_files: for a source, the paths of the real training images of that name.

    Raises:
        DataError: an image in the store's folder differs from all real images of its name.
    """
    if records.made_from is None:
        return
    folder = os.path.abspath(os.path.expanduser(records.made_from))
    names = pc.unique(records.sources).drop_null()
    for name in names.take(np.unique(np.linspace(0, len(names) - 1, _LOOKED_AT, dtype=np.int64))).to_pylist():
        theirs = os.path.join(folder, name)
        ours = [path for path in real_files(name) if os.path.isfile(path)]
        if os.path.isfile(theirs) and ours and not any(_same(theirs, path) for path in ours):
            raise DataError(
                f'{records.folder!r} was made from the images in {folder!r}, and {name!r} there is another image than the real {ours[0]!r}.',
                "Train with a store made from the training images; if these are them, changed since, set source_root=... to their folder; or sources='any'.",
            )


def _same(a: str, b: str) -> bool:
    return os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)
