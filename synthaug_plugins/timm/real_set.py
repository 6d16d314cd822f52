"""What mixing asks of the images of a timm or torchvision dataset: labels, class names, files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import IterableDataset

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.mixing.records import normal_path, relative_source
from synthaug_plugins.mixing.synthetic import RealImages


def check_real(dataset: Any) -> None:
    """Refuse (RecipeError) what cannot be indexed or gives no image with one class."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, '__getitem__') or not hasattr(dataset, '__len__'):
        raise RecipeError(
            f'{type(dataset).__name__} reads its images as a stream, and mixing asks for images by their number.',
            'Use a folder of images, or a dataset with the prefix torch/ or hfds/.',
        )
    if not hasattr(dataset, 'transform'):
        raise RecipeError(f'{type(dataset).__name__} has no attribute transform, which timm sets.', 'Use a dataset of timm.data or torchvision.')
    if getattr(dataset, 'load_bytes', False):
        raise RecipeError('The real dataset gives undecoded bytes (load_bytes).', 'Create it with load_bytes=False.')


def class_names(dataset: Any) -> list[str]:
    """The class names of a dataset in label order.

    Raises:
        DataError: it names none, or its numbers are not 0, 1, 2, ... with a name each.
    """
    reader = getattr(dataset, 'reader', None)
    for holder in (reader, dataset):
        mapping = getattr(holder, 'class_to_idx', None) or getattr(holder, 'class_name_to_idx', None)
        if mapping:
            by_label = {int(label): str(name) for name, label in mapping.items()}
            if sorted(by_label) != list(range(len(mapping))):
                raise DataError(f'The real dataset numbers its {len(mapping)} classes {sorted(set(mapping.values()))[:8]}.', 'Number them from 0.')
            return [by_label[label] for label in range(len(mapping))]
    names = getattr(dataset, 'classes', None)
    if not names:
        raise DataError('The real dataset does not name its classes, so their order cannot be checked.', 'Name them: classes=[...], or --synthaug-classes.')
    return [str(name) for name in names]


def has_files(dataset: Any) -> bool:
    """Whether each image is a file of its own, in a folder that the dataset names."""
    return _root(dataset) is not None


def real_images(dataset: Any, classes: Sequence[str], source_root: str | None) -> RealImages:
    """Labels and files of all images, from what the dataset lists; no image is opened.

    Args:
        source_root: folder that the stores' sources are relative to; None for the dataset's own.

    Raises:
        DataError: several labels per image, or labels outside of the class names.
    """
    labels = _labels(dataset)
    if len(labels) and (labels.max() >= len(classes) or labels.min() < -1):
        raise DataError(
            f'The real images have labels from {labels.min()} to {labels.max()}, and there are {len(classes)} class names.', 'Correct the class names.'
        )
    root = _root(dataset)
    if root is None:
        return RealImages(labels, pa.nulls(len(labels), pa.string()), lambda source: (), classes, True)
    paths = [path for path, _ in _listed(dataset)]
    roots = [normal_path(source_root or root)]
    sources = pa.array([relative_source(path, roots) for path in paths], pa.string())

    def files(source: str) -> set[str]:
        found = np.flatnonzero(pc.equal(sources, source).fill_null(False).to_numpy(zero_copy_only=False))
        return {paths[i] for i in found}

    return RealImages(labels, sources, files, classes, False)


def _listed(dataset: Any) -> Any:
    """[(file, label), ...] of a folder dataset of timm or torchvision."""
    reader = getattr(dataset, 'reader', None)
    return (dataset if reader is None else reader).samples


def _root(dataset: Any) -> str | None:
    holder = getattr(dataset, 'reader', None) or dataset
    samples, root = getattr(holder, 'samples', None), getattr(holder, 'root', None)
    first = samples[0] if isinstance(samples, list) and samples else None
    plain = isinstance(first, tuple) and len(first) == 2 and isinstance(first[0], str) and root is not None
    return str(root) if plain and os.path.isfile(first[0]) else None  # type: ignore[index]


def _labels(dataset: Any) -> np.ndarray:
    reader = getattr(dataset, 'reader', None)
    found: Any = None
    for holder in (reader, dataset):
        if holder is not None and getattr(holder, 'targets', None) is not None:
            found = holder.targets
        elif holder is not None and getattr(holder, 'samples', None) is not None:
            found = [label for _, label in holder.samples]
        elif holder is not None and hasattr(holder, 'iter_targets'):
            found = list(holder.iter_targets())
        if found is not None:
            break
    if found is None:
        raise RecipeError(f'{type(dataset).__name__} does not list its labels.', "Use partner='any', or a folder of images.")
    labels = np.array([-1 if label is None else label for label in found])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f'The real images have labels like {found[0]!r}.', 'Mixing needs one class per image.')
    return labels.astype(np.int64)
