"""How true made images are to the real ones, and how much of these they cover: precision, recall, density, coverage.

All four ask who lies in whose balls: the closed ball around an image whose radius is the distance to its k-th nearest other image of its own set.
They depend on the numbers of images: compare sets of equal size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.evaluation.metrics.neighbours import EDGE, Held, nearest

if TYPE_CHECKING:
    from torch import Tensor


def in_any(balls: Held) -> np.ndarray:
    """Whether each image lies in a ball: (M,) bool.

    Of made images among real balls its mean is improved precision, of real images among made balls improved recall (Kynkaanniemi et al. 2019).

    Args:
        balls: see `neighbours.held`.
    """
    return (balls.counts > 0).cpu().numpy()


def density(balls: Held, k: int) -> np.ndarray:
    """In how many real balls each made image lies, over k: its mean is the density of Naeem et al. (2020), about 1 for images like the real ones.

    Args:
        balls: of M made images among the real balls, see `neighbours.held`.
        k: that of the balls.

    Returns: (M,) float64, unbounded above.
    """
    return balls.counts.double().cpu().numpy() / k


def covered(made: Tensor, real: Tensor, radii: Tensor) -> np.ndarray:
    """Whether each real image has a made one in its ball: its mean is the coverage of Naeem et al. (2020).

    Args:
        made: (M, D) float64 points.
        real: (N, D) float64 points.
        radii: (N,) distances of real images to their k-th nearest other real image.

    Returns: (N,) bool.
    """
    # Its nearest made image decides.
    return (nearest(real, made, 1)[0][:, 0] <= radii * (1 + EDGE)).cpu().numpy()
