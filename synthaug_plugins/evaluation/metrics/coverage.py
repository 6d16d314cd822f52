"""How true made images are to the real ones, and how much of these they cover: precision, recall, density, coverage.

All four ask who lies in whose balls: the closed ball around an image whose radius is the distance to its k-th nearest other image of its own set.
They depend on the numbers of images: compare sets of equal size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.evaluation.metrics.neighbours import TILE, inside, nearest

if TYPE_CHECKING:
    from torch import Tensor


def in_any_ball(queries: Tensor, centres: Tensor, radii: Tensor, same: bool = False, tile: int = TILE) -> np.ndarray:
    """Whether each query lies in a ball: its mean is improved precision with real centres, improved recall with made ones (Kynkaanniemi et al. 2019).

    Args:
        queries: (M, D) float64 points.
        centres: (N, D) float64 points.
        radii: (N,) distances of the centres to their k-th nearest other centre.
        same: queries are the centres, none of which is in its own ball.

    Returns: (M,) bool.
    """
    found = np.empty(len(queries), bool)
    for begin, held in inside(queries, centres, radii, same, tile):
        found[begin : begin + len(held)] = held.any(1).cpu().numpy()
    return found


def density(made: Tensor, real: Tensor, radii: Tensor, k: int, same: bool = False, tile: int = TILE) -> np.ndarray:
    """In how many real balls each made image lies, over k: its mean is the density of Naeem et al. (2020), about 1 for images like the real ones.

    Args:
        made: (M, D) float64 points.
        real: (N, D) float64 points.
        radii: (N,) distances of real images to their k-th nearest other real image.
        k: the same k.
        same: the made images are the real ones, none of which is in its own ball.

    Returns: (M,) float64, unbounded above.
    """
    found = np.empty(len(made))
    for begin, held in inside(made, real, radii, same, tile):
        found[begin : begin + len(held)] = held.sum(1).double().cpu().numpy() / k
    return found


def covered(made: Tensor, real: Tensor, radii: Tensor, tile: int = TILE) -> np.ndarray:
    """Whether each real image has a made one in its ball: its mean is the coverage of Naeem et al. (2020).

    Args:
        made: (M, D) float64 points.
        real: (N, D) float64 points.
        radii: (N,) distances of real images to their k-th nearest other real image.

    Returns: (N,) bool.
    """
    # Its nearest made image decides: one search, in place of a pass over all balls. `nearest` computes as the radii were computed.
    return (nearest(real, made, 1, tile=tile)[0][:, 0] <= radii * (1 + 1e-12)).cpu().numpy()
