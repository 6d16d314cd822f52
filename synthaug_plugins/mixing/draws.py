"""Random draws without a random stream: every decision is a hash of what it is about.

A decision keyed by (seed, epoch, position) is the same for any number of workers and processes and after any resume,
and leaves the random state of the trainer untouched.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

# What a draw decides; two draws about the same position must not share a stream.
SWAP, STORE, MEMBER, ORDER, REAL = 1, 2, 3, 4, 5
SAMPLE, STEP = 11, 12


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): uint64 in, well mixed uint64 out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashes(positions: np.ndarray, *key: int) -> np.ndarray:
    """One 64-bit hash per position for an integer key such as (seed, stream, epoch).

    Args:
        positions: (N,) whole numbers >= 0.
        *key: whole numbers.

    Returns:
        (N,) uint64.
    """
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix((state ^ np.uint64(part & _MASK)) + np.uint64(_GOLDEN))
    return _mix(_mix(positions.astype(np.uint64) * np.uint64(_GOLDEN) + state) ^ state)


def uniform(positions: np.ndarray, *key: int) -> np.ndarray:
    """One number in [0, 1) per position: (N,) float64, 53 random bits each."""
    return (hashes(positions, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, *key: int) -> np.ndarray:
    """A random order of range(n) that depends on the key alone: (n,) int64."""
    return np.argsort(hashes(np.arange(n), *key), kind='stable')
