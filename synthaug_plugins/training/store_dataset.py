"""A training set that is a store: synthetic images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from synthaug_plugins.registry import DATASETS
from synthaug_plugins.training import backend  # noqa: F401  (registers synthaug:// in every process that unpickles this dataset)
from synthaug_plugins.training.records import read_records
from synthaug_plugins.training.soft_labels import check_soft_labels


@DATASETS.register_module()
class StoreDataset(BaseDataset):
    """The selected records of a store as an ordinary MMPretrain data set; beside real images, use `mix` instead.

    Args:
        store: folder of the store.
        select: a condition such as 'clip_p > 1/10', or a dict, see `records.check_store_spec`. Default: every image that was kept.
        classes: class names in label order, which the store's must equal. Default: the store's own.
        soft_labels: `dict(column=..., blend=1.0, temperature=None)`: every sample gets (1 - blend) * one-hot + blend * the column's probabilities
            as `gt_score`, see `training.soft_labels`.
        **options: options of BaseDataset (pipeline, lazy_init, ...).

    Raises:
        StoreError, RecipeError: as `records.read_records`.
    """

    def __init__(
        self,
        store: str,
        select: str | Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        soft_labels: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._soft = check_soft_labels(soft_labels)
        records = read_records({'store': store, 'select': select}, classes, self._soft)
        print_log(records.description, logger='current')
        self._records: Any = records
        super().__init__(metainfo={**(options.pop('metainfo', None) or {}), 'classes': records.classes}, **options)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Addresses and labels of the records."""
        records, self._records = self._records, None
        infos: list[dict[str, Any]] = []
        for row, label in enumerate(records.labels.tolist()):
            info: dict[str, Any] = {'img_path': records.uri(row), 'gt_label': label}
            if self._soft is not None and records.soft_labels is not None:
                target = self._soft.blend * records.soft_labels.of(row)
                target[label] += 1 - self._soft.blend
                info['gt_score'] = target.astype(np.float32)
            infos.append(info)
        return infos
