"""FID and KID on given features, by torchmetrics. The formula for known moments, which torchmetrics has not, is `evaluation.frechet`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from synthaug_plugins.errors import MissingExtra

SUBSETS, SUBSET_SIZE = 20, 1000
"""KID's subsets, and the most images in each."""


class Distances:
    """Distances of sets of made images to one set of real ones.

    Args:
        real: (N, D) features, N at least 2.

    Raises:
        MissingExtra: torchmetrics is not installed.
    """

    def __init__(self, real: np.ndarray) -> None:
        self._fid_class, self._kid_class = _torchmetrics()
        self._real = real
        self._fid = self._fid_class(feature=_as_given(real.shape[1]), reset_real_features=False)
        self._fid.update(_tensor(real), real=True)

    def fid(self, made: np.ndarray) -> float:
        """Frechet distance of two normal distributions with the sets' moments (Heusel et al. 2017): lower is nearer; biased upwards by few images.

        Args:
            made: (M, D) features, M at least 2.
        """
        self._fid.reset()
        self._fid.update(_tensor(made), real=False)
        return float(self._fid.compute())

    def kid(self, made: np.ndarray) -> float:
        """Kernel distance (Binkowski et al. 2018): unbiased squared MMD with the kernel (x.y / D + 1)^3, so that it may be a little below 0.

        A mean over `SUBSETS` drawn subsets of each set, as large as the smaller of both and at most `SUBSET_SIZE`; of two sets of one such size, over all.
        The same sets draw the same subsets.

        Args:
            made: (M, D) features, M at least 2.
        """
        import torch

        size = min(SUBSET_SIZE, len(made), len(self._real))
        subsets = 1 if size == len(made) == len(self._real) else SUBSETS
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Metric `Kernel Inception Distance` will save all')  # they are in memory anyhow
            kid = self._kid_class(feature=_as_given(made.shape[1]), subsets=subsets, subset_size=size)
        kid.update(_tensor(self._real), real=True)
        kid.update(_tensor(made), real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return float(kid.compute()[0])


def check_torchmetrics() -> None:
    """Refuse (MissingExtra) to go on without it, before any feature is made."""
    _torchmetrics()


def _torchmetrics() -> tuple[Any, Any]:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise MissingExtra('torchmetrics', 'metrics', 'FID and KID') from error
    return FrechetInceptionDistance, KernelInceptionDistance


def _tensor(features: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(features)).double()


def _as_given(width: int) -> Any:
    """What torchmetrics calls a network: gives features as they are."""
    import torch

    module = torch.nn.Identity()
    module.num_features = width  # type: ignore[assignment]
    return module
