"""How right logits are, and which of several candidates validation chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from synthaug_plugins.errors import DataError


def top1(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent of logits (n, N) on labels (n,)."""
    return float(_top1(logits, labels))


def recalls(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> tuple[float, ...]:
    """For each class, the percentage of its images that are recognised.

    Args:
        logits: (n, N).
        labels: (n,) int64.
        classes: N names.

    Raises:
        DataError: a class has no image, so that nothing can be said of it.
    """
    support = torch.bincount(labels, minlength=len(classes))
    if (support == 0).any():
        missing = ', '.join(repr(name) for name, n in zip(classes, support.tolist(), strict=True) if n == 0)
        raise DataError(f'No images of {missing}: their recall is undefined.', 'Test with images of every class.')
    right = torch.bincount(labels[logits.argmax(1) == labels], minlength=len(classes))
    return tuple((100 * right.double() / support).tolist())


def merits(logits: Tensor, labels: Tensor, zero_shot: Tensor) -> list[tuple[float, float]]:
    """What validation says of candidates; the largest tuple wins.

    A few validation images leave many ties. The first of equals would depend on the order of a grid, so the tie goes to the candidate that
    changes zero-shot least: the root mean square, over images and classes, of the difference of the logits. The mean over the classes is taken
    off first, because what is added to all classes decides nothing.

    Args:
        logits: (c, n, N) of c candidates.
        labels: (n,) int64.
        zero_shot: (n, N), the logits before any tuning.

    Returns: for each candidate, (top-1 in percent, minus its change).
    """
    change = logits - zero_shot
    change = (change - change.mean(-1, keepdim=True)).square().mean((-2, -1)).sqrt()
    return list(zip(_top1(logits, labels).tolist(), (-change).tolist(), strict=True))


def _top1(logits: Tensor, labels: Tensor) -> Tensor:
    return 100 * (logits.argmax(-1) == labels).double().mean(-1)
