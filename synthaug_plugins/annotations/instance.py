"""What a reader says of an image: its class and the mask of the instance that gave it the class, or why it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from synthaug_plugins.errors import DataError
from synthaug_plugins.real_images import image_size

RULE = 'the class of an image is that of its largest instance by mask area; its mask is that instance'
"""Trabucco et al., ICLR 2024, for PASCAL VOC and COCO."""
NO_INSTANCE = 'without an instance'


@dataclass(frozen=True)
class Labelled:
    """An image with its class.

    Attributes:
        id: name of the image in its data set, without folders and suffix.
        image: the file.
        class_name: of the largest instance.
        mask: (H, W) bool, that instance. Never empty, of the image's size.
        note: what is odd about it, or ''.
    """

    id: str
    image: Path
    class_name: str
    mask: np.ndarray
    note: str = ''


@dataclass(frozen=True)
class LeftOut:
    """An image that has no class.

    Attributes:
        id: as in `Labelled`.
        reason: why, in words that stand after a number of images.
    """

    id: str
    reason: str


class Reader(Protocol):
    """A data set whose images are read one by one, in any thread."""

    @property
    def ids(self) -> Sequence[str]:
        """Of all images, in the data set's order, distinct."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """All class names that it knows, in its order."""
        ...

    @property
    def source(self) -> dict[str, Any]:
        """Plain JSON for import.json: which data set, which part."""
        ...

    def read(self, id: str) -> Labelled | LeftOut:
        """One image.

        Raises:
            DataError: a file is missing or does not fit; it is named.
        """
        ...


def check_size(what: str, size: tuple[int, int], image: Path) -> None:
    """Refuse (DataError) a mask of another size than its image. size: (width, height) of the mask, which `what` names."""
    wanted = image_size(image)
    if size != wanted:
        found = f'{size[0]} x {size[1]} pixels, the image {str(image)!r} {wanted[0]} x {wanted[1]}'
        raise DataError(f'{what} has {found}.', 'Masks and images must have one size (an EXIF rotation of the image counts).')


def check_present(files: Sequence[Path], what: str, cure: str) -> None:
    """Refuse (DataError) when files are missing, with their number and the first."""
    missing = [f for f in files if not f.is_file()]
    if missing:
        raise DataError(f'{len(missing)} of {len(files)} {what} are missing, first {str(missing[0])!r}.', cure)
