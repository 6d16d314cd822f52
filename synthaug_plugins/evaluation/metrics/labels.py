"""Whether made images look like what they are labelled, asked of their real neighbours and of a CLIP."""

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


def clip_agreement(cosines: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What a CLIP says of each image's label.

    Args:
        cosines: (M, N) of images and classes.
        labels: (M,) places of the images' own classes.

    Returns: by metric, (M,): `zero_shot`, whether its own class is the nearest of all (Radford et al. 2021); `clip_score`, 100 max(cos, 0) of image and
        own class (Hessel et al. 2021, scaled as torchmetrics does). Told by the class and not by the image's prompt, so that real images have one too.
    """
    own = cosines[np.arange(len(labels)), labels]
    return {'zero_shot': cosines.argmax(1) == labels, 'clip_score': 100.0 * own.clip(0).astype(np.float64)}
