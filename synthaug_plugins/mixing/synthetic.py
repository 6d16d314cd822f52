"""The synthetic side of a mixed training set: records of one store or several, numbered after the real images."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from mmengine.logging import print_log

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.mixing.partners import PartnerTable, Walk
from synthaug_plugins.mixing.records import Groups, Records, source_numbers
from synthaug_plugins.mixing.source_check import check_made_from

SOURCES = {
    'in_real_set': 'drop synthetic images whose source image is not in the real training set',
    'any': 'keep them all; the sources may then include images held out for validation',
}


@dataclass(frozen=True)
class RealImages:
    """What mixing asks of the real images of a training set.

    Attributes:
        labels: (N,) int64, -1 for an image without a label.
        sources: (N,) Arrow text: `<class>/<file>` below the dataset's root, null where it lies in memory or elsewhere.
        files: for a source, the paths of the real images of that name.
        classes: class names in label order, or None.
        in_memory: whether the images are arrays, without file paths.
    """

    labels: np.ndarray
    sources: pa.Array
    files: Callable[[str], Iterable[str]]
    classes: Sequence[str] | None
    in_memory: bool


class Synthetic:
    """Records of stores, numbered store after store from `offset` on, the number of real images.

    Args:
        records: one per store.
        offset: index of the first record.
    """

    def __init__(self, records: Sequence[Records], offset: int) -> None:
        self.records = list(records)
        self._first = offset + np.concatenate([[0], np.cumsum([len(r) for r in self.records])])

    @property
    def first(self) -> np.ndarray:
        """(S,) index of each store's first record."""
        return self._first[:-1]

    @property
    def end(self) -> int:
        """Number of real and synthetic images together."""
        return int(self._first[-1])

    def locate(self, index: int) -> tuple[Records, int]:
        """The store and the row of a synthetic index. Raises IndexError if it is none."""
        if not self._first[0] <= index < self._first[-1]:
            raise IndexError(f'index {index} is outside the {self._first[-1]} real and synthetic images')
        store = int(np.searchsorted(self._first, index, side='right')) - 1
        return self.records[store], index - int(self._first[store])

    def walk(self, seed: int) -> Walk:
        """All records in a random order, for partner 'any'."""
        return Walk(np.array([len(r) for r in self.records]), self._weights(), self.first, seed)

    def partner_table(self, partner: str, real: RealImages) -> PartnerTable:
        """For partner 'source' or 'class': which records may take each real image's place. A class without real images is logged.

        Raises:
            RecipeError: real images without paths or labels.
        """
        without = [name for label, name in enumerate(real.classes or ()) if not (real.labels == label).any()]
        if without:
            print_log(f'No real image of the classes {without}: no synthetic one takes its place either.', logger='current', level=logging.WARNING)
        if partner == 'source':
            if real.in_memory:
                raise RecipeError("partner='source' needs real images with file paths; this dataset keeps its images in memory.", "Use partner='class'.")
            unique = real.sources.unique().drop_null()
            group_of = source_numbers(real.sources, unique)
            groups = [Groups.of(source_numbers(r.sources, unique), len(unique)) for r in self.records]
        else:
            if (real.labels < 0).any():
                raise RecipeError("partner='class' needs real images with labels.", "Use partner='any'.")
            group_of, groups = real.labels, [Groups.of(r.labels, len(real.classes or ())) for r in self.records]
        return PartnerTable(group_of, groups, self._weights(), self.first)

    def _weights(self) -> np.ndarray:
        return np.array([r.weight for r in self.records])


class HoldsSynthetic(ABC):
    """What `MixBatchSampler` asks of a data set that has `synthetic` behind its real images, and `_scan()`, which gives these."""

    synthetic: Synthetic

    @property
    def records(self) -> list[Records]:
        """The synthetic records, one entry per store."""
        return self.synthetic.records

    def partner_table(self, partner: str) -> PartnerTable:
        """See `Synthetic.partner_table`."""
        return self.synthetic.partner_table(partner, self._scan())

    def walk(self, seed: int) -> Walk:
        """See `Synthetic.walk`."""
        return self.synthetic.walk(seed)

    @abstractmethod
    def _scan(self) -> RealImages:
        """What mixing asks of the real images."""


def admit(records: Records, sources: str | None, real: Callable[[], RealImages], in_memory: bool, vouched: bool) -> Records:
    """The records that may be trained on: those made from images outside the real training set leave, and the log says so.

    Args:
        records: of one store.
        sources: 'in_real_set', 'any', or None: the former wherever it can be checked.
        real: gives the real images; asked only where sources have to be compared with them.
        in_memory: whether the real images have no file paths.
        vouched: the user has said where the sources lie: file contents are not compared.

    Raises:
        RecipeError: 'in_real_set' cannot be checked.
        DataError: nothing is left, or the store was made from other images of the same names.
    """
    print_log(records.description, logger='current')
    if records.sources.null_count == len(records):
        return records
    if in_memory:
        if sources == 'in_real_set':
            raise RecipeError("sources='in_real_set' cannot be checked: the real dataset keeps its images in memory.", "Use sources='any'.")
        print_log(f'{records.folder}: made from real images that cannot be compared with this dataset, since it has no file paths.', logger='current')
        return records
    if sources == 'any':
        return records
    known = source_numbers(records.sources, real().sources.unique().drop_null()) >= 0
    kept = records.keep(known | ~records.sources.is_valid().to_numpy(zero_copy_only=False))
    if len(kept) == 0:
        raise DataError(
            f'None of the {len(records)} selected records of {records.folder!r} has a source image in the real training set.',
            "Set source_root to the folder that the store's sources are relative to, or sources='any' to train on them all the same.",
        )
    if not vouched:
        check_made_from(kept, real().files)
    if len(kept) < len(records):
        print_log(f'{records.folder}: {len(records) - len(kept)} of {len(records)} records left out: source not in the real set.', logger='current')
    return kept
