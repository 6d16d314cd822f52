"""One dataset of real images and synthetic records, behind one pipeline."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from mmengine.registry import DATASETS as ALL_DATASETS
from torch.utils.data import Dataset

from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.mixing.records import normal_path, read_records, relative_source
from synthaug_plugins.mixing.soft_labels import check_soft_labels
from synthaug_plugins.mixing.synthetic import SOURCES, HoldsSynthetic, RealImages, Synthetic, admit
from synthaug_plugins.registry import DATASETS
from synthaug_plugins.store.reader import read_uri
from synthaug_plugins.training import backend  # noqa: F401  (registers synthaug:// in every process that unpickles this dataset)
from synthaug_plugins.training.class_folders import refuse_turned_folders
from synthaug_plugins.training.decode import CHANNEL_ORDERS, decode_like
from synthaug_plugins.training.recipe_edit import FILE_BACKEND_OPTIONS, leaf_datasets

_MAX_ATTEMPTS = 20


@DATASETS.register_module()
class MixedDataset(HoldsSynthetic, Dataset):
    """A recipe's real dataset, and beside it the synthetic records of one or more stores.

    Indices below `len(real)` are real images, exactly as the real dataset gives them; those from there on are synthetic
    records, store after store. `len()` counts the real images only (or both, with `concat`), so the recipe's own sampler
    works unchanged; `MixBatchSampler` puts synthetic indices into its batches. Synthetic records run through the real
    dataset's own pipeline object, so a pipeline that is switched during training switches for both.

    Every sample carries `is_synthetic` (bool) and `sample_weight` (float) in its DataSample, a synthetic one also
    `synthetic_id` and `source`; with soft labels every sample carries `gt_score`.

    Args:
        real: config of the real dataset, unchanged; wrappers (RepeatDataset, KFoldDataset, ...) are fine.
        stores: `[dict(store=folder, weight=1.0, select=None), ...]`, see `records.check_store_spec`.
        concat: let `len()` count synthetic records too.
        sources: 'in_real_set' or 'any' (see `SOURCES`). Default: 'in_real_set' wherever it can be checked.
        source_root: folder that the stores' sources (`<class>/<file>`) are relative to. Default: the real dataset's own; some
            files are then compared with those that the store was made from, where it names a folder that exists.
        soft_labels: `dict(column=..., blend=1.0, temperature=None)`: synthetic samples get (1 - blend) * one-hot + blend * the
            column's class probabilities, real ones their one-hot label. With a temperature T the column holds logits z, and
            the probabilities are softmax(z / T).
        labels: whether labels are used. False, for learning without labels: class names need not agree, and synthetic images carry no label.
        channel_order: of real images that are kept in memory ('rgb' or 'bgr'); files are loaded by the pipeline instead.

    Raises:
        RecipeError, StoreError, DataError: a wrong option; class names that differ; no record left to draw.
    """

    def __init__(
        self,
        real: Any,
        stores: Sequence[Mapping[str, Any]],
        concat: bool = False,
        sources: str | None = None,
        source_root: str | None = None,
        soft_labels: Mapping[str, Any] | None = None,
        labels: bool = True,
        channel_order: str = 'rgb',
    ) -> None:
        if sources is not None and sources not in SOURCES:
            raise RecipeError(f'sources = {sources!r} is unknown.', nearest(sources, SOURCES))
        if channel_order not in CHANNEL_ORDERS:
            raise RecipeError(f'channel_order = {channel_order!r} is unknown.', nearest(channel_order, CHANNEL_ORDERS))
        if not stores:
            raise RecipeError('stores is empty.', "Name at least one: stores=[dict(store='stores/name')].")
        self._soft = check_soft_labels(soft_labels)
        self.dataset = ALL_DATASETS.build(real) if isinstance(real, Mapping) else real
        self.dataset.full_init()
        self.offset = len(self.dataset)
        self._leaves = list(inner_datasets(self.dataset))
        if len({repr(leaf.pipeline) for leaf in self._leaves}) > 1 and not _equal_pipelines(real):
            raise RecipeError('The parts of the real dataset have different pipelines.', 'Give them the same one; synthetic images run through it too.')
        _refuse_file_backends(self._leaves)
        for leaf in self._leaves if labels else ():
            refuse_turned_folders(leaf)
        self._vouched = source_root is not None
        self._source_roots = [normal_path(source_root)] if source_root else _image_roots(self._leaves)
        first = self.dataset.get_data_info(0)
        if not isinstance(first.get('gt_label', 0), int | np.integer):
            raise RecipeError(f'The real images have labels like {first["gt_label"]!r}.', 'Mixing needs one class per image, or none.')
        self._labels = labels and 'gt_label' in first
        self._in_memory: np.ndarray | None = None if 'img_path' in first else np.empty_like(first['img'])
        self._channel_order = channel_order
        self._real: RealImages | None = None
        classes = self.metainfo.get('classes')
        if classes is None and self._labels:
            raise DataError('The real dataset does not name its classes, so their order cannot be checked.', 'Set metainfo=dict(classes=[...]) in its config.')
        self._n_classes = len(classes) if classes else 0
        in_memory = self._in_memory is not None
        found = [read_records(spec, classes if self._labels else None, self._soft) for spec in stores]
        self.synthetic = Synthetic([admit(r, sources, self._scan, in_memory, self._vouched) for r in found], self.offset)
        self._length = self.synthetic.end if concat else self.offset
        self._check_sizes()

    # --- what the trainer asks of a dataset

    @property
    def metainfo(self) -> dict[str, Any]:
        """The real dataset's."""
        return copy.deepcopy(getattr(self.dataset, 'metainfo', {}))

    def full_init(self) -> None:
        """Nothing is left to do: a mixed dataset is complete once it is built."""

    def __len__(self) -> int:
        return self._length

    def get_data_info(self, index: int) -> dict[str, Any]:
        """What the pipeline starts from, for a real or a synthetic index."""
        if index < self.offset:
            return self.dataset.get_data_info(index)
        records, row = self.synthetic.locate(index)
        info: dict[str, Any] = {'sample_idx': index}
        if self._labels:
            info['gt_label'] = int(records.labels[row])
        if self._in_memory is None:
            info['img_path'] = records.uri(row)
        else:
            info['img'] = decode_like(read_uri(records.uri(row)), self._in_memory, self._channel_order)
        return info

    def get_cat_ids(self, index: int) -> list[int]:
        """The class of an image, as class-balancing wrappers ask for it."""
        return [int(self.get_data_info(index)['gt_label'])]

    def __getitem__(self, index: int | tuple[int, float]) -> dict[str, Any]:
        """A packed sample. `index` may come with its loss weight, `(index, weight)`; alone it weighs 1."""
        number, weight = index if isinstance(index, tuple) else (index, 1.0)
        if number < self.offset:
            item = self.dataset[number]
            sample = _data_sample(item)
            sample.set_field(False, 'is_synthetic', field_type='metainfo')
            if self._soft is not None and 'gt_score' not in sample:
                sample.set_gt_score(self._one_hot(int(sample.gt_label)))
        else:
            records, row = self.synthetic.locate(number)
            item = self._through_pipeline(number)
            sample = _data_sample(item)
            sample.set_field(True, 'is_synthetic', field_type='metainfo')
            sample.set_field(records.ids[row].as_py(), 'synthetic_id', field_type='metainfo')
            sample.set_field(records.sources[row].as_py(), 'source', field_type='metainfo')
            if self._soft is not None and records.soft_labels is not None:
                sample.set_gt_score(self._soft.target(int(records.labels[row]), records.soft_labels.of(row)))
        sample.set_field(weight, 'sample_weight', field_type='metainfo')
        return item

    # --- within

    def _through_pipeline(self, index: int) -> dict[str, Any]:
        records, row = self.synthetic.locate(index)
        return through_pipeline(self._leaves[0].pipeline, lambda: self.get_data_info(index), records.uri(row))

    def _check_sizes(self) -> None:
        """Refuse synthetic images that leave the pipeline in another size than real ones: no batch could hold both."""
        with _random_streams_untouched():
            real, other = (_input_shape(self.dataset[i]) for i in (0, self.offset - 1))
            if real is None or real != other:
                return  # sizes that vary among real images too
            for number, records in enumerate(self.records):
                made = _input_shape(self._through_pipeline(int(self.synthetic.first[number])))
                if made != real:
                    raise DataError(
                        f'Images of {records.folder!r} leave the pipeline as {made}, real ones as {real}.',
                        "Generate them in the real images' size (image=dict(size='source') or a number), or add a Resize to the pipeline.",
                    )

    def _one_hot(self, label: int) -> np.ndarray:
        hot = np.zeros(self._n_classes, np.float32)
        hot[label] = 1.0
        return hot

    def _scan(self) -> RealImages:
        """What mixing asks of the real images, read once."""
        if self._real is None:
            infos = (self.dataset.get_data_info(i) for i in range(self.offset))
            pairs = [(int(i.get('gt_label', -1)), relative_source(i['img_path'], self._source_roots) if 'img_path' in i else None) for i in infos]
            labels, sources = np.array([p[0] for p in pairs], np.int64), pa.array([p[1] for p in pairs], pa.string())
            self._real = RealImages(labels, sources, self._real_files, self.metainfo.get('classes'), self._in_memory is not None)
        return self._real

    def _real_files(self, source: str) -> set[str]:
        found = np.flatnonzero(pc.equal(self._scan().sources, source).fill_null(False).to_numpy(zero_copy_only=False))
        return {self.dataset.get_data_info(int(i))['img_path'] for i in found}


@contextmanager
def _random_streams_untouched() -> Iterator[None]:
    """Whatever the transforms draw within, training draws as if it had not been: with alpha=0 it equals the stock recipe."""
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.set_rng_state(torch_state)


def _input_shape(item: Any) -> tuple[Any, ...] | None:
    """Shape of a packed sample's image, with several views those of all; None if it is no tensor."""
    inputs = item.get('inputs') if isinstance(item, dict) else None
    if isinstance(inputs, list) and inputs and all(isinstance(view, torch.Tensor) for view in inputs):
        return tuple(tuple(view.shape) for view in inputs)
    return tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else None


def inner_datasets(dataset: Any) -> Iterator[Any]:
    """The datasets that hold a pipeline, found as MMPretrain's SwitchRecipeHook finds them."""
    if hasattr(dataset, 'pipeline'):
        yield dataset
    elif hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from inner_datasets(part)
    elif hasattr(dataset, 'dataset'):
        yield from inner_datasets(dataset.dataset)
    else:
        raise RecipeError(f'The real dataset {type(dataset).__name__} has no pipeline.', 'Use one that is built on mmengine.dataset.BaseDataset.')


def _equal_pipelines(real: Any) -> bool:
    """Whether a config gives all its parts the same pipeline; built transforms without a repr of their own always look different."""
    pipelines = [leaf.get('pipeline') for leaf in leaf_datasets(real)] if isinstance(real, Mapping) else []
    return bool(pipelines) and all(p == pipelines[0] for p in pipelines)


def _refuse_file_backends(leaves: Sequence[Any]) -> None:
    for transform in (t for leaf in leaves for t in getattr(leaf.pipeline, 'transforms', ())):
        for option in FILE_BACKEND_OPTIONS:
            if getattr(transform, option, None):
                raise RecipeError(
                    f'{type(transform).__name__} reads through {option} = {getattr(transform, option)}, which cannot open the images of a store.',
                    f'Remove {option}: a path finds its backend by itself.',
                )


def _image_roots(leaves: Sequence[Any]) -> list[str]:
    roots = [str(p) for leaf in leaves for p in (*getattr(leaf, 'data_prefix', {}).values(), getattr(leaf, 'data_root', ''))]
    return sorted({normal_path(r) for r in roots if r}, key=len, reverse=True)


def _data_sample(item: Any) -> Any:
    if not isinstance(item, dict) or not hasattr(item.get('data_samples'), 'set_field'):
        raise RecipeError('The pipeline of the real dataset gives no data_samples.', "End it with dict(type='PackInputs').")
    return item['data_samples']


def through_pipeline(pipeline: Callable[[dict[str, Any]], Any], info: Callable[[], dict[str, Any]], address: str) -> Any:
    """What a pipeline makes of one synthetic image, and of no other: MMEngine itself takes a random one where a pipeline gives None.

    Args:
        info: what the pipeline starts from, made anew for each attempt.
        address: of the image, for the refusal.

    Raises:
        DataError: it gave None again and again; a random transform may refuse an image now and then.
    """
    for _ in range(_MAX_ATTEMPTS):
        item = pipeline(info())
        if item is not None:
            return item
    raise DataError(
        f'The pipeline refused the synthetic image {address} {_MAX_ATTEMPTS} times.',
        'Remove ignore_empty to hear why it cannot be read; else leave it out with select, or correct the transform that returns None.',
    )
