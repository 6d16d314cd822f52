"""How near new images come to real ones by chance: what a nearness has to beat before it means a copy.

Measured on the user's own data, without a constant to believe in: each training image is looked at as if it were a new one beside the others. The share of
them that come as near as l to another is P(l), and a new image of the same kind does so with that probability. Beyond the tail, where a few hundred images
say no more, P is continued as a power law, since the number of neighbours in a small ball grows like a power of its radius, the local dimension of the data
(Levina & Bickel 2004). The exponent is Hill's (1975), from the distances between tail and body, not from the nearest: some real images *are* copies of each
other, and must not teach that copies are common.

Few images tell tail and exponent roughly, and a promise must hold for those who were unlucky with theirs. So both are bounded: the share in the tail from
above and the exponent from below, each with 95 %. With many images the bounds close in on the estimates.

For a set that is n times as large it is 1 - (1 - P)^n: so many more chances to be near.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TAIL, BODY = 0.01, 0.1
"""Shares of the real images between which the line is drawn that is continued below the first."""
ENOUGH = 5
"""Real images that must lie below the tail's end: with few images the tail is thicker."""
FEWEST = 20
"""Real images without which nothing can be said."""
_Z = 1.645  # the 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Chance:
    """What nearness to others the training images have.

    Attributes:
        distances: (n,) l of training images to the nearest other, ascending.
        bits: (n,) bits to the nearest other, ascending.
        others: to how many others each was compared.
    """

    distances: np.ndarray
    bits: np.ndarray
    others: int

    @property
    def _ends(self) -> tuple[int, int]:
        """How many images lie in the tail, and how many up to the body's end."""
        n = len(self.distances)
        tail = max(math.ceil(TAIL * n), ENOUGH)
        return tail, min(round(BODY / TAIL) * tail, n // 2)

    @property
    def _line(self) -> tuple[float, float, float]:
        """l at the tail's end, a bound of its share, and one of the exponent of the power law below; 0, share and infinity where so many are copies."""
        tail, body = self._ends
        low, share = float(self.distances[tail - 1]), _bounded(tail, _Z) / len(self.distances)
        if low <= 0:
            return 0.0, share, math.inf
        # Under a power law i log(l_i+1 / l_i) is exponential with mean 1 / exponent, each independent of the others (Renyi 1953).
        steps = float((np.arange(tail, body) * np.diff(np.log(self.distances[tail - 1 : body]))).sum())
        return low, share, _bounded(body - tail, -_Z) / steps if steps > 0 else math.inf

    @property
    def _bits_line(self) -> tuple[int, float, float]:
        """Bits at the tail's end, a bound of the share of images within them, and one of the logarithm of the factor from bit to bit below.

        The number of hashes within t bits grows faster at small t, so the line lies above what it stands for.
        """
        within = [int(np.searchsorted(self.bits, t, 'right')) for t in range(65)]
        tail, body = self._ends
        low = int(self.bits[tail - 1])
        high = min(max(low + 2, int(self.bits[body - 1])), 64)  # hashes differ by even numbers, mostly
        between = within[high] - within[low]
        slope = math.log(within[high] / within[low]) / (high - low) * _bounded(between, -_Z) / between if between else 0.0
        return low, min(_bounded(within[low], _Z) / len(self.bits), 1.0), slope

    def of_distances(self, distances: np.ndarray, others: int) -> np.ndarray:
        """With which probability, at the most, a new image comes as near as each of the distances to one of so many others: (m,) -> (m,)."""
        low, tail, power = self._line
        shares = np.maximum(np.searchsorted(self.distances, distances, 'right') / len(self.distances), tail)
        below = distances < low
        with np.errstate(divide='ignore'):
            shares[below] = tail * np.exp(power * np.log(distances[below] / low)) if power < math.inf else 0.0
        return self._of_others(shares, others)

    def of_bits(self, bits: np.ndarray, others: int) -> np.ndarray:
        """The same for bits: (m,) -> (m,)."""
        low, share, slope = self._bits_line
        shares = np.maximum(np.searchsorted(self.bits, bits, 'right') / len(self.bits), share)
        below = bits < low
        shares[below] = share * np.exp(-slope * (low - bits[below]))
        return self._of_others(shares, others)

    def _of_others(self, shares: np.ndarray, others: int) -> np.ndarray:
        with np.errstate(divide='ignore'):
            return -np.expm1(np.log1p(-np.minimum(shares, 1)) * others / self.others)

    def distance_at(self, probability: float, others: int) -> float:
        """The largest l that a new image comes to with at most this probability; below 0 if none, an exact copy's being not rare enough."""
        known = np.append(self.distances, 0.0)
        low, tail, power = self._line
        share = -math.expm1(math.log1p(-probability) * self.others / others)  # of one with as many others as the training images have
        if share < tail and low > 0 and power < math.inf:
            return low * (share / tail) ** (1 / power)
        fits = known[self.of_distances(known, others) <= probability]
        return float(fits.max()) if len(fits) else -1.0

    def bits_at(self, probability: float, others: int) -> int:
        """The most bits that a new image comes to with at most this probability; -1 if none."""
        bits = np.arange(64)
        return int((self.of_bits(bits, others) <= probability).sum()) - 1


def _bounded(n: int, z: float) -> float:
    """Where a gamma variable of shape n has its quantile of the normal deviate z, as Wilson and Hilferty (1931) approach it: a bound of what n events tell."""
    return n * max(1 - 1 / (9 * n) + z / (3 * math.sqrt(n)), 0.0) ** 3


def at_least(n: int, expected: float) -> float:
    """The probability that so many or more come by chance where so many are expected (Poisson)."""
    below, term = 0.0, math.exp(-expected)
    for i in range(n):
        below += term
        term *= expected / (i + 1)
    return max(0.0, 1 - below)
