"""A training set that is a store, whose images know which of them were told the same prompt."""

from __future__ import annotations

from typing import Any

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
        super().__init__(**options)
        self._group_of = self.prompt_groups()

    def prepare_data(self, idx: int) -> Any:
        """A packed sample with its group."""
        item = super().prepare_data(idx)
        if item is not None:  # a random transform may refuse an image
            item['data_samples'].set_field(int(self._group_of[idx]), 'prompt_group', field_type='metainfo')
        return item
