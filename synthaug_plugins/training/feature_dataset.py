"""Train a head on features that the encoder made once: a dataset whose samples are vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.fileio import get
from mmengine.logging import print_log
from mmengine.registry import DATASETS as ALL_DATASETS
from torch.utils.data import Dataset

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.feature_cache import DEFAULT_FOLDER, FeatureCache
from synthaug_plugins.device import choose_device
from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.registry import DATASETS, MODELS
from synthaug_plugins.training.data_preprocessor import MixDataPreprocessor, fill_scores
from synthaug_plugins.training.mixed_dataset import inner_datasets


@DATASETS.register_module()
class FeatureDataset(Dataset):
    """Another dataset, its images replaced by their CLIP features.

    Every image is encoded once, with the CLIP's own preprocessing and no augmentation, and kept in a cache on disk (`FeatureCache`). Samples are
    those of the inner dataset, with their labels, soft labels, weights and flags; they are made when they are first asked for and kept, so an epoch
    costs no decoding, no network and little Python.

    Args:
        dataset: config of the inner dataset, such as a CustomDataset or a `MixedDataset`. Its pipeline packs labels only:
            `[dict(type='PackInputs')]`.
        model, pretrained, revision, quick_gelu: the CLIP, see `ClipModel`.
        cache: folder of the cache.
        native_px: see `FeatureCache`.
        device: where missing features are made: 'auto' is the first CUDA device, else the CPU.

    Raises:
        RecipeError: the inner pipeline does more than packing; a device that is not here.
        DataError, ModelError: see `FeatureCache`.
    """

    def __init__(
        self,
        dataset: Any,
        model: str,
        pretrained: str | None = None,
        revision: str | None = None,
        quick_gelu: bool | None = None,
        cache: str = DEFAULT_FOLDER,
        native_px: int | None = None,
        device: str = 'auto',
    ) -> None:
        self.dataset = ALL_DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.dataset.full_init()
        _refuse_transforms(self.dataset)
        store = FeatureCache(ClipModel(model, pretrained, revision, quick_gelu), cache, native_px)
        where = choose_device(device, 'FeatureDataset: device =')
        self._count = self._images()
        self.features = torch.from_numpy(store.features(self._contents(), where))
        print_log(f'{self._count} features of {store.clip.name!r}, {store.encoded} of them made now; cache {store.path}.', logger='current')
        self._items: dict[Any, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        """What batch samplers and wrappers ask of the inner dataset (metainfo, partner_table, walk, offset, get_cat_ids, ...)."""
        # While being unpickled it has nothing yet; and whoever looks for a pipeline shall find the dataset inside.
        if name.startswith('__') or name == 'pipeline' or 'dataset' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def full_init(self) -> None:
        """Nothing is left to do."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, float]) -> dict[str, Any]:
        """A packed sample, `inputs` (d,) float32; `index` as the inner dataset takes it."""
        item = self._items.get(index)
        if item is None:
            item = dict(self.dataset[index])
            if not hasattr(item.get('data_samples'), 'set_field'):
                raise RecipeError('The pipeline of the inner dataset gives no data_samples.', "Use pipeline=[dict(type='PackInputs')].")
            number = index[0] if isinstance(index, tuple) else index
            item['inputs'] = self.features[number]
            self._items[index] = item
        return item

    def _images(self) -> int:
        """Images of the inner dataset; of a mixed one, synthetic ones included, which `len()` need not count."""
        synthetic = sum(map(len, getattr(self.dataset, 'records', ())))
        return self.dataset.offset + synthetic if synthetic else len(self.dataset)

    def _contents(self) -> Iterator[tuple[str, bytes | np.ndarray]]:
        for index in range(self._count):
            info = self.dataset.get_data_info(index)
            if 'img_path' in info:
                try:
                    yield info['img_path'], get(info['img_path'])
                except OSError as error:
                    raise DataError(f'The image {info["img_path"]!r} cannot be read: {error.strerror or error}.', 'Replace or remove the file.') from error
            else:
                image = np.asarray(info['img'])
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                    raise DataError(f'Image {index} in memory is {image.dtype} {image.shape}, no (H, W, 3) uint8 RGB.', 'Use a dataset of image files.')
                yield f'image {index}', image


def _refuse_transforms(dataset: Any) -> None:
    """Refuse (RecipeError) transforms that would have no effect."""
    for inner in inner_datasets(dataset):
        for transform in getattr(inner.pipeline, 'transforms', ()):
            if type(transform).__name__ != 'PackInputs':
                raise RecipeError(
                    f'The transform {type(transform).__name__} would do nothing: features are made once, of whole images.',
                    "Leave pipeline=[dict(type='PackInputs')], or train through the frozen tower (clip=dict(train='head')).",
                )


@MODELS.register_module()
class FeaturePreprocessor(MixDataPreprocessor):
    """For batches of features (B, d): moves them to the device; on a CPU the samples stay as they are, which is most of a step's time.

    Takes the options of ClsDataPreprocessor, of which normalisation means nothing here.
    """

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """As the stock class."""
        if self.device.type != 'cpu' or self.batch_augments is not None:
            return super().forward(data, training)
        samples = data.get('data_samples')
        if samples:
            fill_scores(samples)
        inputs = data['inputs']
        return {'inputs': torch.stack(inputs) if isinstance(inputs, list) else inputs, 'data_samples': samples}
