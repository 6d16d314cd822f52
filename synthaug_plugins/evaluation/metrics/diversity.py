"""How much images of one class differ from each other: mean distance of two of them, and how many different ones there seem to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.evaluation.metrics.neighbours import TILE, tiles

if TYPE_CHECKING:
    from torch import Tensor


def pair_distance(points: Tensor, tile: int = TILE) -> float:
    """Mean Euclidean distance of two different images of a set.

    The diversity that Zhu et al. (2017, BicycleGAN) measure by LPIPS, here on given features. Its expectation does not depend on the number of images.

    Args:
        points: (n, D) float64, n at least 2.
        tile: distances in memory at once.
    """
    total = 0.0
    for begin, squared in tiles(points, points, True, tile):
        squared[range(len(squared)), range(begin, begin + len(squared))] = 0
        total += float(squared.clamp_(min=0).sqrt_().sum())
    return total / (len(points) * (len(points) - 1))


def vendi_score(features: Tensor) -> float:
    """Vendi score (Friedman and Dieng, TMLR 2023, definition 3.1): exp of the Shannon entropy of the eigenvalues of K / n, K the cosines of the features.

    The effective number of different images: 1 where all point the same way, n where each is orthogonal to all others. It grows with the number of images,
    so compare it between sets of equal size; features whose cosines are all high (CLIP's) give low scores, so compare it on equal features only.

    Args:
        features: (n, D) float64 as the network gives them, not centred. A feature of length 0 has no direction and is left out.

    Returns: between 1 and n; 0 where no feature has a direction.
    """
    import torch

    unit = torch.nn.functional.normalize(features[features.square().sum(1) > 0], dim=1)
    if not len(unit):
        return 0.0
    # The n x n and the D x D matrix have the same eigenvalues but for zeros, which add nothing.
    gram = (unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit) / len(unit)
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    return float(torch.exp(-torch.special.xlogy(eigenvalues, eigenvalues).sum()))


def within_classes(raw: Tensor, points: Tensor, labels: np.ndarray) -> dict[str, float]:
    """Diversity within a class, the mean over the classes of which there are two images or more, each class counted once.

    Args:
        raw: (n, D) float64 features as the network gives them.
        points: (n, D) float64, the same moved towards the origin (see `neighbours.points`): distances of these round less.
        labels: (n,).

    Returns: `spread` (mean `pair_distance`) and `vendi` (mean `vendi_score`); empty where no class has two images.
    """
    found = []
    for label in np.unique(labels):
        at = np.flatnonzero(labels == label)
        if len(at) > 1:
            found.append((pair_distance(points[at]), vendi_score(raw[at])))
    return dict(zip(('spread', 'vendi'), np.mean(found, axis=0).tolist(), strict=True)) if found else {}
