"""Which images a training step sees, and how they come to the device. Everything follows from the seed and a position."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.diffusion.pixels import from_uint8

ON_DEVICE_BYTES = 2 * 2**30
"""Images up to this size are copied to the device once; larger ones (memory-mapped, say) batch by batch."""


def mix_seed(*parts: object) -> int:
    """A 63-bit seed from any values."""
    return int.from_bytes(hashlib.sha256('/'.join(map(str, parts)).encode()).digest()[:8], 'big') >> 1


class Order:
    """An endless order of images: epochs follow each other without a gap, each a permutation of its own.

    Args:
        seed: decides the permutations.
        labels: (N,) int64 class of each image.
        class_balance: place p holds an image of class p mod K (K classes that have images), each class in epochs of its own:
            every class comes equally often, and a rare class's images return more often.
    """

    def __init__(self, seed: int, labels: np.ndarray, class_balance: bool) -> None:
        self.seed = seed
        groups = [np.flatnonzero(labels == c) for c in np.unique(labels)] if class_balance else [np.arange(len(labels))]
        self._groups = [torch.from_numpy(g) for g in groups]
        self._permutations: dict[int, tuple[int, Tensor]] = {}

    def indices(self, start: int, count: int) -> Tensor:
        """(count,) int64 indices of the images at places start to start + count - 1."""
        k = len(self._groups)
        found = torch.empty(count, dtype=torch.int64)
        for c in range(k):
            first = (c - start) % k  # the first place of this group within the request
            n = len(range(first, count, k))
            if n:
                found[first::k] = self._groups[c][self._members(c, (start + first) // k, n)]
        return found

    def _members(self, group: int, start: int, count: int) -> Tensor:
        """Places start, start + 1, ... of one group's own endless order."""
        parts, position, end = [], start, start + count
        while position < end:
            epoch, offset = divmod(position, len(self._groups[group]))
            parts.append(self._permutation(group, epoch)[offset : offset + end - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, group: int, epoch: int) -> Tensor:
        known = self._permutations.get(group)
        if known is None or known[0] != epoch:
            parts = (self.seed, 'order', epoch, group) if len(self._groups) > 1 else (self.seed, 'order', epoch)
            generator = torch.Generator().manual_seed(mix_seed(*parts))
            known = self._permutations[group] = (epoch, torch.randperm(len(self._groups[group]), generator=generator))
        return known[1]


class Pixels:
    """Training images (N, C, H, W) uint8, a tensor or an array (memory-mapped ones may be larger than memory), for a device."""

    def __init__(self, images: Tensor | np.ndarray, device: torch.device) -> None:
        self.device = device
        size = images.numel() * images.element_size() if isinstance(images, Tensor) else images.nbytes
        self._there: Tensor | None = None
        if isinstance(images, Tensor) or size <= ON_DEVICE_BYTES:
            whole = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
            self._there = whole.to(device) if size <= ON_DEVICE_BYTES else whole
        self._images = images

    def fetch(self, index: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [-1, 1] on the device. index: (B,) int64 on the CPU."""
        if self._there is not None:
            batch = self._there[index.to(self._there.device)]
        else:
            batch = torch.from_numpy(np.asarray(self._images[index.numpy()]))
        return from_uint8(batch.to(self.device))


def data_hash(images: Tensor | np.ndarray, labels: Tensor | np.ndarray | None) -> str:
    """SHA-256 over the pixels and labels; reads a memory-mapped array piece by piece."""
    digest = hashlib.sha256()
    rows = max(1, 2**24 // max(1, int(np.prod(images.shape[1:]))))
    for i in range(0, len(images), rows):
        digest.update(np.ascontiguousarray(images[i : i + rows].cpu() if isinstance(images, Tensor) else images[i : i + rows]).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels.cpu() if isinstance(labels, Tensor) else labels).data)
    return digest.hexdigest()
