"""A training set that is a store, whose images know which of them were told the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from synthaug_plugins.registry import DATASETS
from synthaug_plugins.training.store_dataset import StoreDataset


@DATASETS.register_module()
class PromptDataset(StoreDataset):
    """`StoreDataset` for multi-positive learning: every sample carries `prompt_group`, an integer that images of one prompt share.

    Args:
        **options: those of `StoreDataset`.

    Raises:
        RecipeError: an image without a prompt; further as `StoreDataset`.
    """

    def __init__(self, **options: Any) -> None:
        self._group_of: np.ndarray | None = None
        super().__init__(**options)
        self.prompt_groups()  # refused here, and read before there are workers

    def prompt_groups(self) -> np.ndarray:
        """As `StoreDataset.prompt_groups`, read once."""
        if self._group_of is None:
            self._group_of = super().prompt_groups()
        return self._group_of

    def get_subset_(self, indices: int | Sequence[int]) -> None:
        """As `StoreDataset.get_subset_`."""
        super().get_subset_(indices)
        self._group_of = None

    def prepare_data(self, idx: int) -> Any:
        """A packed sample with its group."""
        item = super().prepare_data(idx)
        if item is not None:  # a random transform may refuse an image
            item['data_samples'].set_field(int(self.prompt_groups()[idx]), 'prompt_group', field_type='metainfo')
        return item
