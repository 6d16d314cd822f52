"""Whether made images look like what they are labelled: asked of their real neighbours, and of a CLIP told the classes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.evaluation.metrics.neighbours import nearest

if TYPE_CHECKING:
    from torch import Tensor


def neighbours_label(queries: Tensor, real: Tensor, labels: np.ndarray, k: int, same: bool = False) -> np.ndarray:
    """The label that most of the k nearest real images have; among equals, the one whose image is nearest.

    Args:
        queries: (M, D) float64 points.
        real: (N, D) float64 points.
        labels: (N,) of the real images, from 0.
        k: at most N; N - 1 with `same`.
        same: queries are the real images themselves, which do not vote for themselves.

    Returns: (M,) int64.

    Raises:
        DataError: k is larger than the number of real images.
    """
    _, places = nearest(queries, real, k, same)
    votes = labels[places.cpu().numpy()]
    counts = np.zeros((len(votes), int(labels.max()) + 1))
    rows = np.arange(len(votes))
    for i in range(k):
        counts[rows, votes[:, i]] += 1
    best = counts == counts.max(1, keepdims=True)
    return votes[rows, best[rows[:, None], votes].argmax(1)]
