"""Draws images with replacement, as published few-shot protocols do."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.mixing import draws
from synthaug_plugins.registry import DATA_SAMPLERS

_AT_ONCE = 4096


@DATA_SAMPLERS.register_module()
class ReplacementSampler(Sampler[int]):
    """Indices i ~ U{0, ..., N - 1} without end, each drawn independently of all others: an image may come twice in a batch.

    It is the i of DA-Fusion's batch rule (Trabucco et al., ICLR 2024, eqs. 7-8); `mix` with mode 'per_sample' adds the rest. MMEngine's
    InfiniteSampler shows every image once before one comes again. Training must be counted in iterations (`by_epoch=False`).

    The n-th index of a run is a hash of (seed, n): equal for any number of processes, and after any resume.

    Args:
        dataset: anything with a length.
        seed: default: that of the run.

    Raises:
        RecipeError: a data set without images.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset, self.size = dataset, len(dataset)
        self.seed = sync_random_seed() if seed is None else seed
        if self.size == 0:
            raise RecipeError('ReplacementSampler cannot draw from a data set without images.', 'Check data_root.')

    def __iter__(self) -> Iterator[int]:
        """This process's indices, from the first of the run."""
        start = self.rank
        while True:
            positions = start + self.world_size * np.arange(_AT_ONCE)
            yield from (draws.uniform(positions, self.seed, draws.REAL) * self.size).astype(np.int64).tolist()
            start += self.world_size * _AT_ONCE

    def __len__(self) -> int:
        """Images of the data set, as MMEngine's InfiniteSampler says it."""
        return self.size
