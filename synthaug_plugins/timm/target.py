"""What a batch says of its samples beside the images: label, soft label, loss weight, and whether they are synthetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch


class SampleTarget(NamedTuple):
    """What `MixedImageDataset` gives beside an image: class, (K,) float32 class probabilities or None, loss weight, origin, dataset index."""

    label: int
    soft: np.ndarray | None
    weight: float
    is_synthetic: bool
    number: int


@dataclass(frozen=True)
class MixedTarget:
    """The targets of a batch. Moves to a device like a tensor, so that timm's loaders and train.py carry it.

    Attributes:
        label: (B,) int64.
        soft: (B, K) float32 class probabilities, one-hot for samples without a soft label; None where no soft labels are used.
        weight: (B,) float32 factors on the samples' losses.
        is_synthetic: (B,) bool.
        index: (B,) int64 indices into the dataset, which knows the ids of synthetic images.
        parts: the batch by weight: [(weight, (n,) int64 places in the batch), ...]; empty where all weights are 1.
    """

    label: torch.Tensor
    soft: torch.Tensor | None
    weight: torch.Tensor
    is_synthetic: torch.Tensor
    index: torch.Tensor
    parts: tuple[tuple[float, torch.Tensor], ...]

    @classmethod
    def of(cls, samples: Sequence[SampleTarget]) -> MixedTarget:
        """Stack the targets of a batch."""
        weights = [s.weight for s in samples]
        # Found here, in the worker: asking a tensor on a device for its values would wait for the device in every step.
        parts = [(w, torch.tensor([i for i, other in enumerate(weights) if other == w])) for w in dict.fromkeys(weights)]
        return cls(
            label=torch.tensor([s.label for s in samples]),
            soft=None if samples[0].soft is None else torch.from_numpy(np.stack([s.soft for s in samples])),  # type: ignore[misc]
            weight=torch.tensor(weights, dtype=torch.float32),
            is_synthetic=torch.tensor([s.is_synthetic for s in samples]),
            index=torch.tensor([s.number for s in samples]),
            parts=() if set(weights) == {1.0} else tuple(parts),
        )

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: Any = None, non_blocking: bool = False, **options: Any) -> MixedTarget:
        """The same on another device. Types stay: a dtype that is meant for images is not taken."""
        return self._each(lambda t: t.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> MixedTarget:
        """The same in page-locked memory, as DataLoader asks for it."""
        return self._each(lambda t: t.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MixedTarget:
        tensors = {name: change(getattr(self, name)) for name in ('label', 'weight', 'is_synthetic', 'index')}
        parts = tuple((weight, change(places)) for weight, places in self.parts)
        return replace(self, soft=None if self.soft is None else change(self.soft), parts=parts, **tensors)


@dataclass(frozen=True)
class MixCollate:
    """Collates images as `images` does (timm's `fast_collate`, torch's `default_collate`), and targets to a `MixedTarget`."""

    images: Callable[[list[tuple[Any, int]]], tuple[Any, Any]]

    def __call__(self, samples: Sequence[tuple[Any, SampleTarget]]) -> tuple[Any, MixedTarget]:
        """A batch: (images, targets)."""
        inputs, _ = self.images([(image, target.label) for image, target in samples])
        return inputs, MixedTarget.of([target for _, target in samples])
