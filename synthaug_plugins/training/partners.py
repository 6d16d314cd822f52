"""Which synthetic records may take a real image's place, and which one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from synthaug_plugins.training import draws
from synthaug_plugins.training.records import Groups

PARTNERS = {
    'source': 'a variant that was made from this very image (DA-Fusion)',
    'class': 'any synthetic image of the same class',
    'any': 'any synthetic image, with its own label, in a random order that gives each its turn before one comes again',
}


@dataclass(frozen=True)
class PartnerTable:
    """For each real image its group (class or source) and, per store, the records of each group.

    Attributes:
        group_of: (n_real,) int64; below 0: no record fits this image.
        groups: one per store.
        weights: (S,) shares of the stores.
        first: (S,) dataset index of each store's first record.
    """

    group_of: np.ndarray
    groups: Sequence[Groups]
    weights: np.ndarray
    first: np.ndarray

    def available(self) -> np.ndarray:
        """Whether any record fits each real image: (n_real,) bool."""
        return self.available_of(np.arange(len(self.group_of)))

    def available_of(self, real: np.ndarray) -> np.ndarray:
        """The same for some real indices: (N,) bool."""
        return np.any([g.count(self.group_of[real]) > 0 for g in self.groups], axis=0)

    def draw(self, real: np.ndarray, u_store: np.ndarray, u_member: np.ndarray) -> np.ndarray:
        """A partner for each real index: the store by its weight among those that have one, then a record, each equally likely.

        Args:
            real: (N,) indices of real images for which `available` holds.
            u_store, u_member: (N,) numbers in [0, 1).

        Returns:
            (N,) dataset indices of synthetic records.
        """
        groups = self.group_of[real]
        share = np.stack([w * (g.count(groups) > 0) for w, g in zip(self.weights, self.groups, strict=True)])
        store = choose(share, u_store)
        drawn = np.empty(len(real), np.int64)
        for s, g in enumerate(self.groups):
            mine = store == s
            if mine.any():
                drawn[mine] = self.first[s] + g.member(groups[mine], u_member[mine])
        return drawn


@dataclass
class Walk:
    """Synthetic records in a random order, each once before any comes again, in every store by itself.

    Slot t of a store of M records is record perm(t // M)[t % M]: a function of t alone, whoever asks.

    Attributes:
        sizes: (S,) records per store.
        weights: (S,) shares of the stores.
        first: (S,) dataset index of each store's first record.
        seed: decides the orders.
    """

    sizes: np.ndarray
    weights: np.ndarray
    first: np.ndarray
    seed: int
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def at(self, slots: np.ndarray, u_store: np.ndarray) -> np.ndarray:
        """Dataset indices of the records at `slots`, (N,) whole numbers; each store chosen by its weight with u_store in [0, 1)."""
        store = choose(np.repeat(self.weights[:, None], len(slots), axis=1), u_store)
        size = self.sizes[store]
        lap, place = np.divmod(slots, size)
        drawn = np.empty(len(slots), np.int64)
        for s, number in {(int(s), int(n)) for s, n in zip(store, lap, strict=True)}:
            mine = (store == s) & (lap == number)
            drawn[mine] = self.first[s] + self._order(s, number)[place[mine]]
        return drawn

    def _order(self, store: int, lap: int) -> np.ndarray:
        if (store, lap) not in self._orders:
            for old in [key for key in self._orders if key[0] == store and key[1] < lap - 1]:
                del self._orders[old]
            self._orders[store, lap] = draws.permutation(int(self.sizes[store]), self.seed, draws.ORDER, store, lap)
        return self._orders[store, lap]


def choose(share: np.ndarray, u: np.ndarray) -> np.ndarray:
    """For each column of `share` (S, N), not all zero, the row that u in [0, 1) points at: (N,) int64."""
    if len(share) == 1:
        return np.zeros(len(u), np.int64)
    below = np.cumsum(share, axis=0)
    chosen = (u * below[-1] >= below).sum(axis=0)
    return np.minimum(chosen, len(share) - 1)  # u just below 1 may round up to the total
