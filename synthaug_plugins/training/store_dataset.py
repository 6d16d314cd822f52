"""A training set that is a store: synthetic images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS as ALL_DATASETS

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.mixing.records import Records, normal_path, read_records, relative_source, source_numbers
from synthaug_plugins.mixing.soft_labels import check_soft_labels
from synthaug_plugins.mixing.source_check import check_made_from
from synthaug_plugins.registry import DATASETS
from synthaug_plugins.training import backend  # noqa: F401  (registers synthaug:// in every process that unpickles this dataset)
from synthaug_plugins.training.mixed_dataset import through_pipeline


@DATASETS.register_module()
class StoreDataset(BaseDataset):
    """The selected records of a store as an ordinary MMPretrain data set; beside real images, use `mix` instead.

    A record costs 14 bytes (up to 32,767 classes and shards of 4 GiB; soft labels aside): there is no list of dicts, and what a pipeline starts from is
    made when it is asked for. Copies and subsets share what they can, workers that are forked all of it. Images are numbered as those of the exported
    folder would be: by class name, then by id.

    Args:
        store: folder of the store.
        select: a condition such as 'clip_p > 1/10', or a dict, see `records.check_store_spec`. Default: every image that was kept.
        classes: class names in label order, which the store's must equal. Default: the store's own.
        variants_of: config of a data set of image files, such as the shots: variants of images that are not in it (validation images, say) are left
            out. Default: all are used.
        soft_labels: `dict(column=..., blend=1.0, temperature=None)`: every sample gets (1 - blend) * one-hot + blend * the column's probabilities
            as `gt_score`, see `mixing.soft_labels`.
        **options: options of BaseDataset (pipeline, indices, ...).

    Raises:
        StoreError, RecipeError: as `records.read_records`.
        DataError: nothing is left, or the store was made from other images of the same names.
    """

    _fully_initialized: bool

    def __init__(
        self,
        store: str,
        select: str | Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        soft_labels: Mapping[str, Any] | None = None,
        variants_of: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if unread := options.get('filter_cfg'):
            raise RecipeError(f'StoreDataset: filter_cfg = {unread!r} would choose nothing.', "Choose with select, such as select='clip_p > 1/10'.")
        self._soft = check_soft_labels(soft_labels)
        records = read_records({'store': store, 'select': select}, classes, self._soft)
        print_log(records.description, logger='current')
        if variants_of is not None and records.sources.null_count < len(records):
            records = _variants(records, variants_of)
        self._records = _in_order_of_folders(records.nameless())
        del records
        pa.default_memory_pool().release_unused()  # the names of millions of images, before workers are forked
        super().__init__(metainfo={**(options.pop('metainfo', None) or {}), 'classes': self._records.classes}, **options)

    def full_init(self) -> None:
        """Nothing is read here: a store is known once the data set is built. `indices` are taken."""
        if not self._fully_initialized:
            self._fully_initialized = True
            if self._indices is not None:
                self.get_subset_(self._indices)

    def __len__(self) -> int:
        self.full_init()
        return len(self._records)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """What the pipeline starts from: `img_path`, `gt_label`, with soft labels `gt_score` (K,) float32, and `sample_idx`. Raises IndexError."""
        self.full_init()
        records = self._records
        label = int(records.labels[idx])
        info: dict[str, Any] = {'img_path': records.uri(idx), 'gt_label': label, 'sample_idx': int(idx) % len(records)}
        if self._soft is not None and records.soft_labels is not None:
            info['gt_score'] = self._soft.target(label, records.soft_labels.of(idx))
        return info

    def prepare_data(self, idx: int) -> Any:
        """The sample that the pipeline makes of an image, see `through_pipeline`."""
        return through_pipeline(self.pipeline, lambda: self.get_data_info(idx), self._records.uri(idx))

    def get_cat_ids(self, idx: int) -> list[int]:
        """The class of an image, as class-balancing wrappers ask for it."""
        self.full_init()
        return [int(self._records.labels[idx])]

    def get_gt_labels(self) -> np.ndarray:
        """The labels of all images: (N,) int64."""
        self.full_init()
        return self._records.labels.astype(np.int64)

    def get_subset_(self, indices: int | Sequence[int]) -> None:
        """Keep the first (below 0: the last) `indices` images, or those of these numbers."""
        self.full_init()
        every = np.arange(len(self._records))
        if isinstance(indices, int):
            self._records = self._records.take(every[:indices] if indices >= 0 else every[indices:])
        else:
            self._records = self._records.take(every[np.asarray(indices, np.int64)])

    def get_subset(self, indices: int | Sequence[int]) -> StoreDataset:
        """A data set of some of the images, as `get_subset_` chooses them."""
        self.full_init()
        other = self._copy_without_annotation()
        other.get_subset_(indices)
        return other

    def prompt_groups(self) -> np.ndarray:
        """The number of each image's prompt: (N,) int64, equal for equal texts; prompts are read now. Raises RecipeError where an image has none."""
        self.full_init()
        return self._records.prompt_groups()


def _in_order_of_folders(records: Records) -> Records:
    """Class by class in the order of their names, as data sets of class folders number their images: so a store trains as its exported folder does."""
    place = np.argsort(np.argsort(records.classes))[records.labels]
    return records if (np.diff(place) >= 0).all() else records.take(np.argsort(place, kind='stable'))


def _variants(records: Records, real: Mapping[str, Any]) -> Records:
    """The records that started from an image of the data set `real`, or from none."""
    dataset = ALL_DATASETS.build(dict(real))
    dataset.full_init()
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    path_of = {relative_source(path, [normal_path(dataset.img_prefix)]): path for path in paths}
    known = source_numbers(records.sources, sorted(i for i in path_of if i is not None)) >= 0
    kept = records.keep(known | ~records.sources.is_valid().to_numpy(zero_copy_only=False))
    missing = sorted(set(range(len(records.classes))) - set(kept.labels.tolist()))
    if missing:
        raise DataError(
            f'{records.folder!r} holds no variant of the images in {dataset.img_prefix!r} that are used, for {records.classes[missing[0]]!r} and '
            f'{len(missing) - 1} more classes.',
            'Make a store from these images (`synthaug shots` copies the shots), or from nothing.',
        )
    check_made_from(kept, lambda source: [path_of[source]] if source in path_of else [])
    print_log(f'{records.folder}: {len(records) - len(kept)} of {len(records)} records left out: no variants of the images used.', logger='current')
    return kept
