"""Whether made images look like what they are labelled, asked of their real neighbours."""

from __future__ import annotations

import numpy as np


def neighbours_label(votes: np.ndarray) -> np.ndarray:
    """The label that most neighbours have; among equals, the one whose image is nearest.

    Args:
        votes: (M, k) labels of the nearest real images, the nearest first, from 0.

    Returns: (M,) labels.
    """
    rows = np.arange(len(votes))
    counts = np.zeros((len(votes), int(votes.max()) + 1), int)
    for column in votes.T:
        counts[rows, column] += 1
    best = counts == counts.max(1, keepdims=True)
    return votes[rows, best[rows[:, None], votes].argmax(1)]
