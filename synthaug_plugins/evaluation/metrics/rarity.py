"""How rare an image is among real ones: distance to its neighbours, local outlier factor, rarity score. Higher is rarer for all three."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.errors import MissingExtra
from synthaug_plugins.evaluation.metrics.neighbours import Held, check_k

if TYPE_CHECKING:
    from torch import Tensor

_NO_DENSITY = 1e7
"""scikit-learn's own limit: a factor like this comes from a neighbour whose k neighbours are its copies."""


def avg_knn(distances: Tensor) -> np.ndarray:
    """AvgkNN: mean distance of each image to its k nearest real images (Sehwag et al. 2022; Um et al. 2024).

    Args:
        distances: (M, k) to the nearest real images, see `neighbours.nearest`.

    Returns: (M,) float64.
    """
    return distances.mean(1).cpu().numpy()


def rarity(balls: Held) -> np.ndarray:
    """Rarity score (Han et al., ICLR 2023): the smallest radius of the real images' k-nearest-neighbour balls that hold the image.

    r(g) = min of NN_k(x) over real x with ||g - x|| <= NN_k(x), where NN_k(x) is the distance of x to its k-th nearest other real image. An image in no
    ball has no rarity: it lies outside of what the real images span. Report how many do.

    Args:
        balls: of M images among the real balls, see `neighbours.held`.

    Returns: (M,) float64, NaN for images in no ball.
    """
    found = balls.smallest.cpu().numpy()
    return np.where(np.isinf(found), np.nan, found)


class LocalOutlierFactor:
    """Local outlier factor (Breunig et al. 2000) of scikit-learn, fitted to real images: about 1 inside of their density, larger outside.

    Args:
        real: (N, D) features.
        k: neighbours, at most N - 1; 20 is scikit-learn's default.

    Attributes:
        copies: whether some real image has k copies or more: the density there is infinite, and the factors of its neighbours say nothing.

    Raises:
        MissingExtra: scikit-learn is not installed.
        DataError: k is larger than the number of other real images.
    """

    def __init__(self, real: np.ndarray, k: int) -> None:
        check_scikit_learn()
        from sklearn.neighbors import LocalOutlierFactor as Factor

        check_k(k, len(real) - 1, 'other real images')
        self._factor = Factor(n_neighbors=k, novelty=True)
        self._factor.fit(np.asarray(real, np.float64))
        self.copies = bool(self.of_real().max() > _NO_DENSITY)

    def of_real(self) -> np.ndarray:
        """Of each real image among the others: (N,) float64."""
        return -self._factor.negative_outlier_factor_

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Of images that it was not fitted to: (M, D) features -> (M,) float64."""
        return -self._factor.score_samples(np.asarray(queries, np.float64))


def check_scikit_learn() -> None:
    """Refuse (MissingExtra) to go on without it, before any feature is made."""
    try:
        import sklearn.neighbors  # noqa: F401
    except ImportError as error:
        raise MissingExtra('sklearn', 'metrics', 'The local outlier factor') from error
