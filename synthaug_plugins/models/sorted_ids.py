"""Which row an id has, for a million ids: little memory, and fast for one and for all of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class SortedIds:
    """Ids of rows, found by bisection among sorted numbers of 64 bits, one for each id: 16 bytes a row beside the ids themselves.

    Args:
        ids: of the rows, in order.
    """

    def __init__(self, ids: pa.Array) -> None:
        self.ids = ids
        keys = _keys(ids)
        self._order = np.argsort(keys, kind='stable')
        self._keys = keys[self._order]

    def rows(self, asked: list[str]) -> np.ndarray:
        """The rows of ids, (n,) int64; -1 for an id that is not there, the first row of one that is there twice."""
        wanted = pa.array(asked, pa.string())
        keys = _keys(wanted)
        places, rows, left = np.searchsorted(self._keys, keys), np.full(len(asked), -1, np.int64), np.arange(len(asked))
        while True:  # once, but for different ids with equal keys
            left = left[places[left] < len(self._keys)]
            left = left[self._keys[places[left]] == keys[left]]
            if not len(left):
                return rows
            candidates = self._order[places[left]]
            same = pc.equal(self.ids.take(pa.array(candidates)), wanted.take(pa.array(left))).to_numpy(zero_copy_only=False)
            rows[left[same]] = candidates[same]
            left = left[~same]
            places[left] += 1

    def repeated(self) -> list[tuple[str, list[int]]]:
        """Ids that are there more than once, each with its rows."""
        places = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        found: dict[str, list[int]] = {}
        for row in self._order[np.union1d(places, places + 1)]:
            found.setdefault(self.ids[int(row)].as_py(), []).append(int(row))
        return [(name, sorted(rows)) for name, rows in found.items() if len(rows) > 1]


def _keys(ids: pa.Array) -> np.ndarray:
    """A number for each id, (n,) uint64."""
    digests = (hashlib.blake2b(name.as_py().encode(), digest_size=8).digest() for name in ids)
    return np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64, len(ids))
