"""Which synthetic records may take a real image's place, and which one does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.mixing import draws
from synthaug_plugins.mixing.records import Groups

PARTNERS = {
    'source': 'a variant that was made from this very image (DA-Fusion)',
    'class': 'any synthetic image of the same class',
    'any': 'any synthetic image, with its own label, in a random order that gives each image of a store its turn before one comes again',
}
_LEAST_SHARE = 1e-6


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

    The slots 0, 1, 2, ... of a run go to the stores in turns: runs of slots (1024 of them, more where a share is tiny) are
    dealt out in a random order, to each store its share within one. The n-th slot of a store of M records is record
    perm(n // M)[n % M] of it. All of it is a function of the slot alone, whoever asks.

    Attributes:
        sizes: (S,) records per store.
        weights: (S,) shares of the stores.
        first: (S,) dataset index of each store's first record.
        seed: decides the orders.

    Raises:
        RecipeError: a store's share of the weights is below a millionth.
    """

    sizes: np.ndarray
    weights: np.ndarray
    first: np.ndarray
    seed: int
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)
    _deals: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._below = np.cumsum(self.weights) / self.weights.sum()
        self._below[-1] = 1.0
        least = float(self.weights.min() / self.weights.sum())
        if least < _LEAST_SHARE:
            raise RecipeError(f'stores: the smallest weight, {self.weights.min():g}, is below a millionth of their sum.', 'Leave that store out.')
        # Two slots at least in every run: then rounding never takes a turn away again.
        self._run = max(1024, math.ceil(2 / least))

    def at(self, slots: np.ndarray) -> np.ndarray:
        """Dataset indices of the records at `slots`, (N,) whole numbers."""
        store, number = self._turns(slots)
        lap, place = np.divmod(number, self.sizes[store])
        drawn = np.empty(len(slots), np.int64)
        for s, n in {(int(s), int(n)) for s, n in zip(store, lap, strict=True)}:
            mine = (store == s) & (lap == n)
            drawn[mine] = self._order(s, n)[place[mine]]
            drawn[mine] += self.first[s]  # apart: NumPy 1 would add in the order's narrow type
        return drawn

    def _turns(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The store of each slot, and how many slots that store had before it."""
        if len(self.sizes) == 1:
            return np.zeros(len(slots), np.int64), slots
        run, place = np.divmod(slots, self._run)
        store, number = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
        for r in set(run.tolist()):
            mine = run == r
            stores, numbers = self._deal(r)
            store[mine], number[mine] = stores[place[mine]], numbers[place[mine]]
        return store, number

    def _deal(self, run: int) -> tuple[np.ndarray, np.ndarray]:
        if run not in self._deals:
            for old in [r for r in self._deals if r < run - 1]:
                del self._deals[old]
            before = np.diff(np.floor(self._below * (self._run * run)), prepend=0).astype(np.int64)
            after = np.diff(np.floor(self._below * (self._run * (run + 1))), prepend=0).astype(np.int64)
            stores = np.repeat(np.arange(len(before)), after - before)[draws.permutation(self._run, self.seed, draws.STORE, run)]
            numbers = np.empty(self._run, np.int64)
            for s, start in enumerate(before.tolist()):
                mine = stores == s
                numbers[mine] = start + np.arange(mine.sum())
            self._deals[run] = stores, numbers
        return self._deals[run]

    def _order(self, store: int, lap: int) -> np.ndarray:
        if (store, lap) not in self._orders:
            for old in [key for key in self._orders if key[0] == store and key[1] < lap - 1]:
                del self._orders[old]
            order = draws.permutation(int(self.sizes[store]), self.seed, draws.ORDER, store, lap)
            self._orders[store, lap] = order.astype(np.min_scalar_type(len(order)))
        return self._orders[store, lap]


def choose(share: np.ndarray, u: np.ndarray) -> np.ndarray:
    """For each column of `share` (S, N), not all zero, the row that u in [0, 1) points at: (N,) int64."""
    if len(share) == 1:
        return np.zeros(len(u), np.int64)
    below = np.cumsum(share, axis=0)
    chosen = (u * below[-1] >= below).sum(axis=0)
    return np.minimum(chosen, len(share) - 1)  # u just below 1 may round up to the total
