"""COCO's annotation files: instances as polygons or run lengths."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from synthaug_plugins.annotations.instance import NO_INSTANCE, Labelled, LeftOut, check_present, check_size
from synthaug_plugins.annotations.segmentation import decode
from synthaug_plugins.errors import DataError, first_line
from synthaug_plugins.real_images import SUFFIXES
from synthaug_plugins.store.plan import check_class_names

_CURE = 'Give a file of COCO instances: images, annotations and categories.'


class COCO:
    """The images of an instances file.

    An image's largest instance is the one whose mask covers most pixels; groups (iscrowd) do not count; of equal ones the one with the lowest id.

    Args:
        images: the folder that the file names in the annotations are relative to.
        annotations: `instances_train2017.json` or the like.

    Attributes: see `Reader`.

    Raises:
        DataError: a file is missing or is no instances file; or entries contradict each other, with the first.
    """

    def __init__(self, images: str | Path, annotations: str | Path) -> None:
        self.file, self.root = Path(annotations).expanduser(), Path(images).expanduser()
        if not self.root.is_dir():
            raise DataError(f'The folder of images {str(images)!r} does not exist.', 'Give the folder that holds the files named in the annotations.')
        content = self._read()
        self.source = {'format': 'coco', 'images': str(images), 'annotations': str(annotations)}
        try:
            names = {entry['id']: str(entry['name']) for entry in content['categories']}
            self._entries = {_id(entry['file_name']): entry for entry in content['images']}
            self._check_distinct(content['images'])
            of_image: dict[Any, list[dict[str, Any]]] = {entry['id']: [] for entry in content['images']}
            for annotation in content['annotations']:
                if annotation['category_id'] not in names:
                    raise self._wrong(f'annotation {annotation["id"]} has the category {annotation["category_id"]}, which is none of the categories')
                if annotation['image_id'] not in of_image:
                    raise self._wrong(f'annotation {annotation["id"]} belongs to the image {annotation["image_id"]}, which is none of the images')
                if not annotation.get('iscrowd'):
                    of_image[annotation['image_id']].append(annotation)
            self._instances = {id: sorted(of_image[entry['id']], key=lambda a: a['id']) for id, entry in self._entries.items()}
            sizes = {id: (int(entry['width']), int(entry['height'])) for id, entry in self._entries.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f'The annotations {str(annotations)!r} are no instances of COCO: {type(error).__name__}: {error}.', _CURE) from error
        check_class_names(list(names.values()))
        self._names, self._sizes = names, sizes
        self.classes, self.ids = tuple(names.values()), tuple(self._entries)
        check_present([self._image(id) for id in self.ids if self._instances[id]], 'images that the annotations name', 'Give the folder that holds them all.')

    def _read(self) -> Mapping[str, Any]:
        try:
            content = json.loads(self.file.read_text(encoding='utf-8'))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f'The annotations {str(self.file)!r} cannot be read: {error}.', _CURE) from error
        lists = ('images', 'annotations', 'categories')
        if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
            lacking = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
            raise DataError(f'The annotations {str(self.file)!r} have no list {lacking[0]!r}.', _CURE)
        return content

    def _check_distinct(self, images: list[dict[str, Any]]) -> None:
        for what, values in (('the id', [entry['id'] for entry in images]), ('the name', [_id(entry['file_name']) for entry in images])):
            value, count = Counter(values).most_common(1)[0] if values else (None, 0)
            if count > 1:
                raise self._wrong(f'{count} images have {what} {value!r}' + (' (folders are part of it, suffixes are not)' if what == 'the name' else ''))

    def _wrong(self, what: str) -> DataError:
        return DataError(f'The annotations {str(self.file)!r} contradict themselves: {what}.', 'Correct the file.')

    def _image(self, id: str) -> Path:
        name = PurePosixPath(self._entries[id]['file_name'])
        if name.is_absolute() or '..' in name.parts:
            raise DataError(f'The annotations {str(self.file)!r} name the image {str(name)!r}, outside of {str(self.root)!r}.', 'Correct the file.')
        if name.suffix.lower() not in SUFFIXES:
            what = f'The annotations {str(self.file)!r} name the image {str(name)!r}, which would be passed over in a class folder.'
            raise DataError(what, f'Convert it to one of {", ".join(sorted(SUFFIXES))}.')
        return self.root / name

    def read(self, id: str) -> Labelled | LeftOut:
        """See `Reader.read`."""
        largest, area, mask = None, 0, None
        for annotation in self._instances[id]:
            found = self._mask(id, annotation)
            if (pixels := int(found.sum())) > area:
                largest, area, mask = annotation, pixels, found
        if largest is None or mask is None:
            return LeftOut(id, NO_INSTANCE)
        check_size(f'The annotation {largest["id"]} of {str(self.file)!r}', self._sizes[id], self._image(id))
        return Labelled(id, self._image(id), self._names[largest['category_id']], mask)

    def _mask(self, id: str, annotation: Mapping[str, Any]) -> np.ndarray:
        segmentation, (width, height) = annotation.get('segmentation'), self._sizes[id]
        if not segmentation:
            cure = 'Boxes alone give no masks: give a file whose instances all have polygons or run lengths.'
            raise DataError(f'The annotation {annotation["id"]} of {str(self.file)!r} has no segmentation.', cure)
        try:
            return decode(segmentation, height, width)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            what = f'The segmentation of annotation {annotation["id"]} of {str(self.file)!r} is wrong: {first_line(error)}.'
            raise DataError(what, 'Correct the file.') from error


def _id(file_name: Any) -> str:
    """The name of an image in class folders: without suffix, its folders as part of it."""
    return str(PurePosixPath(str(file_name)).with_suffix('')).replace('/', '_')
