"""A timm dataset, and beside it the synthetic records of one or more stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.mixing.records import Records, check_store_spec, read_records
from synthaug_plugins.mixing.soft_labels import check_soft_labels
from synthaug_plugins.mixing.synthetic import SOURCES, HoldsSynthetic, RealImages, Synthetic, admit
from synthaug_plugins.store.encode import decode
from synthaug_plugins.store.reader import read_uri
from synthaug_plugins.store.store import Store
from synthaug_plugins.timm.real_set import check_real, class_names, has_files, real_images
from synthaug_plugins.timm.target import SampleTarget
from synthaug_plugins.timm.version import check_timm_version


class MixedImageDataset(HoldsSynthetic, Dataset):
    """Real images as a timm or torchvision dataset gives them; from index `len(real)` on synthetic records, store after store.

    `len()` counts the real images (or both, with `concat`). Both run through one transform, which timm's `create_loader` sets. A sample is
    (image, `SampleTarget`), or (image, label) while `labels_only` is true, as timm's own collate functions and Mixup take it.

    Args:
        real: a map-style dataset of timm.data or torchvision.
        stores: a store's folder, or `[dict(store=folder, weight=1.0, select=None), ...]`, see `records.check_store_spec`.
        classes: class names in label order, which the stores' must equal. Default: those of the real dataset.
        concat: let `len()` count synthetic records too (mode 'concat').
        sources: 'in_real_set' or 'any'. Default: the former wherever it can be checked, that is for folders of images.
        source_root: folder that the stores' sources (`<class>/<file>`) are relative to. Default: the real dataset's own.
        soft_labels: `dict(column=..., blend=1.0, temperature=None)`, see `mixing.soft_labels`.

    Raises:
        RecipeError, StoreError, DataError: a wrong option; class names that differ; no record left to draw; a timm of another version.
    """

    def __init__(
        self,
        real: Any,
        stores: str | Sequence[str | Mapping[str, Any]],
        classes: Sequence[str] | None = None,
        concat: bool = False,
        sources: str | None = None,
        source_root: str | None = None,
        soft_labels: Mapping[str, Any] | None = None,
    ) -> None:
        check_timm_version()
        check_real(real)
        if sources is not None and sources not in SOURCES:
            raise RecipeError(f'sources = {sources!r} is unknown.', nearest(sources, SOURCES))
        specs = [stores] if isinstance(stores, str) else list(stores)
        if not specs:
            raise RecipeError('stores is empty.', "Name at least one: stores='stores/name'.")
        self.soft = check_soft_labels(soft_labels)
        self.real, self.labels_only = real, False
        self.offset = len(real)
        self.classes = class_names(real) if classes is None else list(classes)
        self._source_root = source_root
        self._found: RealImages | None = None
        self.image_mode: str | None = getattr(real, 'input_img_mode', None)
        if self.image_mode is None:
            self.image_mode = getattr(_untransformed(real), 'mode', 'RGB')
        files = has_files(real)
        found = [self._read(spec if isinstance(spec, Mapping) else {'store': spec}) for spec in specs]
        self.synthetic = Synthetic([admit(r, sources, self._scan, not files, source_root is not None) for r in found], self.offset)
        self._length = self.synthetic.end if concat else self.offset
        self.concat = concat

    # --- what timm asks of a dataset

    @property
    def transform(self) -> Callable[[Image.Image], Any] | None:
        """What images run through: the real dataset's, for both kinds."""
        return self.real.transform

    @transform.setter
    def transform(self, transform: Callable[[Image.Image], Any] | None) -> None:
        self.real.transform = transform

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, entry: int | tuple[int, float]) -> tuple[Any, Any]:
        """A sample. `entry` may come with its loss weight, `(index, weight)`; alone it weighs 1."""
        index, weight = entry if isinstance(entry, tuple) else (entry, 1.0)
        soft: np.ndarray | None = None
        if index < self.offset:
            image, label = self.real[index][:2]
            label = -1 if label is None else int(label)
            if self.soft is not None:
                soft = self._one_hot(label)
        else:
            records, row = self.synthetic.locate(index)
            image, label = self._image(records, row), int(records.labels[row])
            if self.soft is not None and records.soft_labels is not None:
                soft = self.soft.target(label, records.soft_labels.of(row))
        if self.labels_only:
            return image, label
        return image, SampleTarget(label, soft, weight, index >= self.offset, index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_found': None}  # a spawned worker reads images alone

    def synthetic_id(self, index: int) -> str | None:
        """The id of a synthetic image in its store; None for a real one."""
        if index < self.offset:
            return None
        records, row = self.synthetic.locate(index)
        return records.ids[row].as_py()

    # --- within

    def _read(self, spec: Mapping[str, Any]) -> Records:
        checked = check_store_spec(spec)
        theirs = list(Store.open(checked['store']).classes)
        if sorted(theirs) == sorted(self.classes) and theirs != self.classes:
            at = next(i for i, (a, b) in enumerate(zip(theirs, self.classes, strict=True)) if a != b)
            raise DataError(
                f'The class order differs: label {at} is {theirs[at]!r} in the store {checked["store"]!r} and {self.classes[at]!r} in the real dataset.',
                "timm numbers folders in natural order. Write the store's classes into a file classes.txt, one per line in its order (store.json has "
                'them), and give it as class_map, or --class-map.',
            )
        return read_records(checked, self.classes, self.soft)

    def _image(self, records: Records, row: int) -> Any:
        uri = records.uri(row)
        image = decode(read_uri(uri), f'The image {uri!r}')
        image = image.convert(self.image_mode) if self.image_mode else image
        return image if self.transform is None else self.transform(image)

    def _one_hot(self, label: int) -> np.ndarray:
        hot = np.zeros(len(self.classes), np.float32)
        hot[label] = 1.0
        return hot

    def _scan(self) -> RealImages:
        if self._found is None:
            self._found = real_images(self.real, self.classes, self._source_root)
        return self._found


def create_mixed_dataset(
    real: Any,
    stores: str | Sequence[str | Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    concat: bool = False,
    sources: str | None = None,
    source_root: str | None = None,
    soft_labels: Mapping[str, Any] | None = None,
    **options: Any,
) -> MixedImageDataset:
    """Real images and the records of stores as one dataset, for `create_mixed_loader`.

    >>> dataset = create_mixed_dataset('', 'stores/pets', root='data/pets', split='train')                           # doctest: +SKIP
    >>> loader = create_mixed_loader(dataset, input_size=(3, 224, 224), batch_size=64, mode='per_sample', alpha=0.5)  # doctest: +SKIP

    Args:
        real: a map-style dataset, or a name as `timm.data.create_dataset` takes it ('' for a folder, 'torch/cifar10', 'hfds/...').
        stores, classes, concat, sources, source_root, soft_labels: see `MixedImageDataset`.
        **options: with a name: options of `create_dataset` (root, split, class_map, ...).

    Raises:
        RecipeError, StoreError, DataError: as `MixedImageDataset`; options beside a dataset that exists.
    """
    if isinstance(real, str):
        from timm.data import create_dataset

        real = create_dataset(real, is_training=True, **options)
    elif options:
        raise RecipeError(f'create_mixed_dataset: {sorted(options)} have no meaning beside a dataset that exists.', "Give a name, such as '', with root=...")
    return MixedImageDataset(real, stores, classes, concat, sources, source_root, soft_labels)


def _untransformed(real: Any) -> Any:
    """The first image as it is before any transform, of a dataset that does not say its mode."""
    transform, real.transform = real.transform, None
    try:
        return real[0][0]
    finally:
        real.transform = transform
