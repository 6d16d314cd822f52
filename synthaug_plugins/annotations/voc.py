"""PASCAL VOC's layout: JPEGImages, SegmentationClass, SegmentationObject, Annotations, ImageSets."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from synthaug_plugins.annotations.instance import NO_INSTANCE, Labelled, LeftOut, check_present, check_size
from synthaug_plugins.errors import DataError, nearest

VOC_CLASSES = (
    *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow'),
    *('diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)
"""In the order of the indices 1 to 20 of SegmentationClass."""
VOID = 255
"""Index of what is not labelled: borders, and objects too hard to tell. Like 0, the background, it is never an instance."""
SUFFIXES = ('.jpg', '.jpeg', '.png')


class VOC:
    """One split of a data set in VOC's layout with VOC's 20 classes.

    An image's largest instance is the index of SegmentationObject that covers most pixels, 0 (background) and 255 (void) not counted; of equal
    ones the first. Its class is the index of SegmentationClass that most of these pixels have, 0 and 255 not counted.

    Args:
        root: the folder that holds JPEGImages (VOCdevkit/VOC2012).
        split: a file `ImageSets/Segmentation/<split>.txt`, or the same in `ImageSets/Main`, with an id per line.

    Attributes: see `Reader`.

    Raises:
        DataError: no such folder or split, or files are missing.
    """

    classes = VOC_CLASSES

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root).expanduser()
        if not (self.root / 'JPEGImages').is_dir():
            inside = sorted(p.parent for p in self.root.glob('**/JPEGImages')) if self.root.is_dir() else []
            cure = f'Give {str(inside[0])!r}.' if inside else 'Give the folder that holds JPEGImages, SegmentationClass, SegmentationObject and ImageSets.'
            raise DataError(f'The folder {str(root)!r} holds no JPEGImages.', cure)
        self.ids = self._read_split(split)
        self.source = {'format': 'voc', 'root': str(root), 'split': split}
        self._images = {id: self._image(id) for id in self.ids}
        check_present(list(self._images.values()), 'images of the split', 'Unpack all of JPEGImages.')
        for folder in ('SegmentationClass', 'SegmentationObject'):
            masks = [self.root / folder / f'{id}.png' for id in self.ids]
            check_present(masks, f'masks of {folder}', 'Only the splits in ImageSets/Segmentation have masks for all of their images.')

    def _read_split(self, split: str) -> tuple[str, ...]:
        sets = self.root / 'ImageSets'
        file = next((f for f in (sets / part / f'{split}.txt' for part in ('Segmentation', 'Main')) if f.is_file()), None)
        if file is None:
            known = {p.stem for part in ('Segmentation', 'Main') for p in (sets / part).glob('*.txt')}
            raise DataError(f'The split {split!r} is not in {str(sets)!r}.', nearest(split, known))
        try:
            lines = [line.strip() for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f'The split file {str(file)!r} cannot be read: {error}.', 'Replace it.') from error
        for id in lines:
            if len(id.split()) > 1 or any(c in id for c in '/\\') or id.startswith('.'):
                cure = 'Give a split that lists ids only (train, val, trainval), not that of one class.'
                raise DataError(f'The split file {str(file)!r} has the line {id!r}, which is no id.', cure)
        if not lines or len(set(lines)) < len(lines):
            raise DataError(f'The split file {str(file)!r} is empty or names an image twice.', 'Name every image once.')
        return tuple(lines)

    def _image(self, id: str) -> Path:
        files = [self.root / 'JPEGImages' / f'{id}{suffix}' for suffix in SUFFIXES]
        return next((f for f in files if f.is_file()), files[0])

    def read(self, id: str) -> Labelled | LeftOut:
        """See `Reader.read`."""
        names = self._named_objects(id)
        objects, classes = (self._indices(folder, id) for folder in ('SegmentationObject', 'SegmentationClass'))
        areas = np.bincount(objects.ravel(), minlength=256)
        areas[[0, VOID]] = 0
        if not areas.any():
            return LeftOut(id, NO_INSTANCE)
        mask = objects == areas.argmax()
        votes = np.bincount(classes[mask], minlength=256)
        votes[[0, VOID]] = 0
        label = int(votes.argmax())
        if not 1 <= label <= len(VOC_CLASSES):
            found = f'has no class in SegmentationClass/{id}.png' if label == 0 else f'has the class {label} in SegmentationClass/{id}.png'
            raise DataError(
                f'The largest instance of {id!r} (index {areas.argmax()} of SegmentationObject) {found}.', 'Classes are 1 to 20; correct the masks.'
            )
        name = VOC_CLASSES[label - 1]
        note = 'whose XML names no object of their class' if names is not None and name not in names else ''
        return Labelled(id, self._images[id], name, mask, note)

    def _indices(self, folder: str, id: str) -> np.ndarray:
        """(H, W) uint8 indices of a mask: a PNG with VOC's palette, or of one 8-bit channel."""
        from PIL import Image

        path = self.root / folder / f'{id}.png'
        try:
            with Image.open(path) as image:
                indices, mode, colours = np.asarray(image), image.mode, image.getpalette()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f'The mask {str(path)!r} cannot be read: {error}.', 'Replace the file.') from error
        if mode not in ('P', 'L'):
            raise DataError(f'The mask {str(path)!r} has the mode {mode}: colours, no indices.', 'Masks in VOC layout are PNGs with a palette.')
        if mode == 'P':
            palette = np.array((colours or []) + [0] * (768 - len(colours or []))).reshape(256, 3)
            wrong = [int(k) for k in np.unique(indices) if tuple(palette[k]) != voc_colour(int(k))]
            if wrong:
                what = f'has the colour {tuple(palette[wrong[0]].tolist())} for the index {wrong[0]}, VOC has {voc_colour(wrong[0])}'
                raise DataError(f'The mask {str(path)!r} {what}.', 'A palette that a program made anew says nothing of classes: save indices with VOC colours.')
        check_size(f'The mask {str(path)!r}', (indices.shape[1], indices.shape[0]), self._images[id])
        return indices

    def _named_objects(self, id: str) -> set[str] | None:
        """Names of the objects in the image's XML file; None where there is no such file."""
        path = self.root / 'Annotations' / f'{id}.xml'
        if not path.is_file():
            return None
        try:
            names = {str(o.findtext('name')).strip() for o in ElementTree.parse(path).getroot().findall('object')}
        except (OSError, ElementTree.ParseError, UnicodeError) as error:
            raise DataError(f'The annotation {str(path)!r} cannot be read: {error}.', 'Replace the file.') from error
        unknown: list[Any] = sorted(names - set(VOC_CLASSES))
        if unknown:
            cure = f'Indices of SegmentationClass have names only for the 20 classes of VOC: {", ".join(VOC_CLASSES)}.'
            raise DataError(f'The annotation {str(path)!r} names an object {unknown[0]!r}.', cure)
        return names


@cache
def voc_colour(index: int) -> tuple[int, int, int]:
    """The colour of an index in VOC's palette: bits 0, 3, 6 of the index are the highest bits of red from above, 1, 4, 7 of green, 2, 5 of blue.

    >>> voc_colour(1), voc_colour(15), voc_colour(255)
    ((128, 0, 0), (192, 128, 128), (224, 224, 192))
    """
    red, green, blue = (sum((index >> (3 * k + channel) & 1) << (7 - k) for k in range(3)) for channel in range(3))
    return red, green, blue
