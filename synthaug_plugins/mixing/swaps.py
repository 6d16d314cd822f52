"""Which positions of a run give their place to a synthetic image, and how many have done so before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from synthaug_plugins.mixing import draws

_CHUNK = 1 << 16  # positions looked at together while counting


@dataclass
class Swaps:
    """Swaps with probability alpha, each a hash of (seed, epoch, position): the same for any number of processes.

    Attributes:
        alpha: share of swaps at an epoch.
        seed: decides the draws.
        epoch_length: positions of an epoch, over all processes.
        pass_length: None for a sampler with epochs. One without stays in epoch 0 while positions count on; alpha's epoch is
            then the number of passes, of this many positions each, that lie behind a position.
    """

    alpha: Callable[[int], float]
    seed: int
    epoch_length: int
    pass_length: int | None = None
    _reached: tuple[int, int, int] = field(default=(0, 0, 0), repr=False)

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Whether each position swaps: (N,) int64 to (N,) bool. Positions count the real indices of an epoch over all processes."""
        share: float | np.ndarray
        if self.pass_length is None:
            share = self.alpha(epoch)
            if share in (0, 1):
                return np.full(len(positions), share == 1)
        else:
            passes, where = np.unique(positions // self.pass_length, return_inverse=True)
            share = np.array([self.alpha(p) for p in passes.tolist()])[where]
        return draws.uniform(positions, self.seed, draws.SWAP, epoch) < share

    def slots(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `at` for positions without a gap, and the swaps of the whole run before each one: (N,) bool, (N,) int64."""
        swapped = self.at(epoch, positions)
        return swapped, self._before(epoch, int(positions[0])) + np.cumsum(swapped) - swapped

    def _before(self, epoch: int, position: int) -> int:
        # Counts on from where it was last asked, so a run counts every position once; a resumed run catches up at its first batch.
        if (epoch, position) < self._reached[:2]:
            self._reached = (0, 0, 0)
        at_epoch, start, count = self._reached
        while at_epoch < epoch:
            count += self._count(at_epoch, start, self.epoch_length)
            at_epoch, start = at_epoch + 1, 0
        count += self._count(epoch, start, position)
        self._reached = (epoch, position, count)
        return count

    def _count(self, epoch: int, start: int, stop: int) -> int:
        if self.pass_length is None and (share := self.alpha(epoch)) in (0, 1):
            return int(share) * (stop - start)
        return sum(int(self.at(epoch, np.arange(i, min(i + _CHUNK, stop))).sum()) for i in range(start, stop, _CHUNK))
