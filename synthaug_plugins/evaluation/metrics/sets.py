"""Sets of images that are measured: a selection of a store with the values that it is split by, or a folder of real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from synthaug_plugins.errors import DataError, ModelError, RecipeError, nearest
from synthaug_plugins.evaluation.metrics.features import FeatureNetwork
from synthaug_plugins.real_images import RealImages, in_threads
from synthaug_plugins.store.encode import decode
from synthaug_plugins.store.identity import Identity, identity
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.selection import UnknownColumn, select, values_of
from synthaug_plugins.store.store import Store

MOST_VALUES = 40
"""Values of a column that a set is split by: more are no table."""
_SHORT = 32  # characters of a condition that still stands in a name
_CHUNK = 64  # images in memory at once


@dataclass(frozen=True)
class Split:
    """The images of a set by the values of one column.

    Attributes:
        by: the column or expression.
        groups: value -> places of its images, values ascending.
        without: images that have no value.
    """

    by: str
    groups: dict[float | str, np.ndarray]
    without: int


@dataclass
class ImageSet:
    """Images that are measured together.

    Attributes:
        name: what the table calls it.
        ids: of the images.
        class_names: of each image.
        pixels: id -> (H, W, 3) uint8 RGB.
        splits: by the columns that vary in it.
        store: name of the store's folder; None for real images.
        chosen: the selection in words; None for real images.
        features: (n, D), once made.
        classes: of the store in the order of its labels; none for real images.
        folder: of the store as it was given, or of the real images.
        where: the condition as it was given.
        identity: of the store as it was measured; None for real images.
    """

    name: str
    ids: Sequence[str]
    class_names: Sequence[str]
    pixels: Callable[[str], np.ndarray]
    splits: tuple[Split, ...] = ()
    store: str | None = None
    chosen: str | None = None
    features: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    classes: tuple[str, ...] = ()
    folder: str | None = None
    where: str | None = None
    identity: Identity | None = None

    def images(self) -> Iterator[list[np.ndarray]]:
        """All images, some at a time."""
        for i in range(0, len(self.ids), _CHUNK):
            yield list(in_threads(self.pixels, self.ids[i : i + _CHUNK]))

    def encode(self, networks: Sequence[FeatureNetwork], done: Callable[[int], None]) -> list[np.ndarray]:
        """Features (n, D) of all images by each network, every image read once; those of the first stay as `features`.

        Args:
            done: is told how many more images were encoded.

        Raises:
            DataError, StoreError: an image cannot be read.
            ModelError: features that are not finite.
        """
        parts: list[list[np.ndarray]] = [[] for _ in networks]
        for some in self.images():
            for network, found in zip(networks, parts, strict=True):
                found.append(self.encoded(network, some))
            done(len(some))
        features = [np.concatenate(found) for found in parts]
        self.features = features[0]
        return features

    def encoded(self, network: FeatureNetwork, some: Sequence[np.ndarray]) -> np.ndarray:
        """Features (m, D) of some of the images. Raises ModelError for features that are not finite."""
        features = network.encode(some)
        if not np.isfinite(features).all():
            raise ModelError(f'{network.text!r} gives features that are not finite for images of {self.name!r}.', 'Use other weights.')
        return features

    def labels(self, classes: Sequence[str]) -> np.ndarray:
        """(n,) places of the images' classes among `classes`.

        Raises:
            DataError: a class is not among them.
        """
        place = {name: i for i, name in enumerate(classes)}
        for name in dict.fromkeys(self.class_names):
            if name not in place:
                raise DataError(f'The class {name!r} of {self.name!r} has no real images.', nearest(name, classes))
        return np.array([place[name] for name in self.class_names])


def real_set(images: RealImages, name: str) -> ImageSet:
    """All images of a folder."""
    named = [(i, class_name) for class_name in images.classes for i in images.ids(class_name)]
    return ImageSet(name, [i for i, _ in named], [class_name for _, class_name in named], images.load, folder=str(images.root))


def store_sets(folders: Sequence[str | Path], where: Sequence[str | None], by: Sequence[str]) -> list[ImageSet]:
    """What a condition selects of each store, split by those of the columns that take several values in it.

    Args:
        folders: of the stores. One may be there several times, with other conditions.
        where: condition for each, see `store.selection.select`.
        by: columns, `params.NAME` or expressions of one value per image.

    Raises:
        RecipeError: a wrong expression, a column that no store has or that varies in none, too many values; the same images twice, or none selected.
        StoreError: no store, or a damaged one.
    """
    named = _names(folders, where)
    sets = []
    refusals: dict[str, list[UnknownColumn]] = {text: [] for text in by}
    for folder, name, condition in zip(folders, named, where, strict=True):
        store = Store.open(folder)
        selection = select(store, condition, allow_empty=True)
        if not len(selection.table):
            raise RecipeError(f'{selection.text!r} selects no image of {str(folder)!r}.', 'Loosen the condition (--where), or generate first.')
        splits = []
        for text in by:
            try:
                splits.append(_split(text, values_of(store, selection.table, text, '--by').to_pylist(), str(folder)))
            except UnknownColumn as error:  # another store may have it
                refusals[text].append(error)
        rows = {row['id']: row for row in selection.table.select(['id', 'shard', 'offset', 'size', 'sha256']).to_pylist()}
        class_names = [store.classes[label] for label in selection.table['label'].to_pylist()]
        varied = tuple(split for split in splits if len(split.groups) > 1)
        images = ImageSet(name, list(rows), class_names, _reads(store, rows), varied, store.place.label, selection.text)
        sets.append(replace(images, classes=tuple(store.classes), folder=str(folder), where=condition, identity=identity(store)))
    for text in by:
        if len(refusals[text]) == len(sets):
            raise refusals[text][0]
        if not any(split.by == text for found in sets for split in found.splits):
            raise RecipeError(f'--by {text} takes one value in every store: there is nothing to compare.', 'Leave it out, or name a column that varies.')
    return sets


def _names(folders: Sequence[str | Path], where: Sequence[str | None]) -> list[str]:
    """What the table calls each selection: the store's name; of one store's several, with the condition, or numbered where it is long."""
    paths = [Path(folder).expanduser().resolve() for folder in folders]
    names: list[str] = []
    for i, (path, condition) in enumerate(zip(paths, where, strict=True)):
        if (path, condition) in zip(paths[:i], where, strict=False):
            raise RecipeError(f'The same images of {str(folders[i])!r} are given twice.', 'Name each store once, or with another condition.')
        name = path.name if len({other for other in paths if other.name == path.name}) == 1 else str(path)
        if paths.count(path) > 1:
            name += f': {condition or "all"}' if len(condition or '') <= _SHORT else f' ({paths[: i + 1].count(path)})'
        names.append(name)
    return names


def _reads(store: Store, rows: dict[str, dict[str, Any]]) -> Callable[[str], np.ndarray]:
    reader = StoreReader(store.folder)

    def pixels(image_id: str) -> np.ndarray:
        return np.asarray(decode(reader.read_image(rows[image_id]), f'The image {image_id!r} of {str(store.folder)!r}').convert('RGB'))

    return pixels


def _split(by: str, values: Sequence[Any], folder: str) -> Split:
    groups: dict[float | str, list[int]] = {}
    for i, value in enumerate(map(_plain, values)):
        if value is not None:
            groups.setdefault(value, []).append(i)
    if len(groups) > MOST_VALUES:
        what = f'--by {by} takes {len(groups)} values in {folder!r}, more than {MOST_VALUES}.'
        raise RecipeError(what, f'Put them together by an expression, such as round({by}, 1).')
    if len({isinstance(value, str) for value in groups}) > 1:
        raise RecipeError(f'--by {by} gives numbers and texts in {folder!r}.', 'Use a column of one kind.')
    without = len(values) - sum(map(len, groups.values()))
    return Split(by, {value: np.array(groups[value]) for value in sorted(groups)}, without)  # type: ignore[type-var]


def _plain(value: Any) -> float | str | None:
    """A value as number or text; NaN is none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, int | float | Decimal):
        number = float(value)
        return None if number != number else int(number) if number.is_integer() else number
    return str(value)


def refuse_same_files(real: RealImages, held_out: RealImages, option: str = '--real') -> None:
    """Refuse (DataError) an image that lies in both folders, links resolved. option: of the command line, which names the first."""
    paths = {(real.root / i).resolve() for name in real.classes for i in real.ids(name)}
    for name in held_out.classes:
        for i in held_out.ids(name):
            if (held_out.root / i).resolve() in paths:
                raise DataError(f'{i!r} lies in {str(real.root)!r} and in {str(held_out.root)!r}.', f'Hold out other images than {option}.')
