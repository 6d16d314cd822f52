"""The user's real training images: a folder of class folders, nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np

from synthaug_plugins.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar('T')
_FUTURES = 4096  # held at once
_EXIF_ORIENTATION = 0x0112  # values 5 to 8 turn the image by a quarter
SUFFIXES = frozenset({'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm'})


class RealImages:
    """Images under `root/<class>/<file>`; an image's id is its path `<class>/<file>` (deeper files keep their sub-folders).

    Class order is the sorted order of the folder names, as MMPretrain's `CustomDataset` and torchvision's `ImageFolder`
    have it.

    Raises:
        DataError: no such folder, one that cannot be read, no class folder, or a class without images.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            what = f'The data folder {str(root)!r} {"is a file" if self.root.exists() else "does not exist"}.'
            raise DataError(what, 'Give a folder that holds one folder per class.')
        try:
            self.classes = tuple(sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith('.')))
        except OSError as error:
            raise DataError(f'The data folder {str(root)!r} cannot be read: {error.strerror}.', 'Give a folder that you may read.') from error
        if not self.classes:
            raise DataError(f'The data folder {str(root)!r} holds no class folders.', 'Put the images of each class in a folder named after it.')
        self._ids = {name: self._scan(name) for name in self.classes}
        for name, ids in self._ids.items():
            if not ids and not os.access(self.root / name, os.R_OK | os.X_OK):
                raise DataError(f'The class folder {str(self.root / name)!r} cannot be read.', 'Give folders that you may read.')
            if not ids:
                raise DataError(
                    f'The class {name!r} has no images in {str(self.root / name)!r}.', f'Add images ({", ".join(sorted(SUFFIXES))}) or remove the folder.'
                )

        self._known = frozenset(i for ids in self._ids.values() for i in ids)

    def _scan(self, name: str) -> tuple[str, ...]:
        files = (p for p in (self.root / name).rglob('*') if p.suffix.lower() in SUFFIXES and not p.name.startswith('.'))
        return tuple(sorted(p.relative_to(self.root).as_posix() for p in files if p.is_file()))

    def ids(self, class_name: str) -> tuple[str, ...]:
        """Ids of the images of one class, sorted."""
        return self._ids[class_name]

    def _path(self, image_id: str) -> Path:
        """Where an image lies; ids may come from a stranger's store, so only those found in the folder are opened."""
        if image_id not in self._known:
            raise DataError(f'{image_id!r} is not an image of {str(self.root)!r}.', 'Give the folder that the images were made from.')
        return self.root / image_id

    def load(self, image_id: str) -> np.ndarray:
        """Pixels of an image: (H, W, 3) uint8 RGB, EXIF rotation applied, transparency laid on white.

        Raises:
            DataError: the file is missing, unreadable, cut short, or larger than memory allows; it is named.
        """
        from PIL import Image

        path = self._path(image_id)
        try:
            return decode_rgb(path)
        except (MemoryError, Image.DecompressionBombError) as error:
            raise _too_large(path, error) from error
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from error

    def size(self, image_id: str) -> tuple[int, int]:
        """Width and height in pixels as `load` gives them; reads the file's header only.

        Raises:
            DataError: the file is missing or unreadable.
        """
        return image_size(self._path(image_id))

    def file_hash(self, image_id: str) -> str:
        """SHA-256 of an image's file.

        Raises:
            DataError: the file is missing or unreadable.
        """
        path = self._path(image_id)
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error

    def file_hashes(self, ids: Sequence[str]) -> Iterator[str]:
        """`file_hash` of each of these images, in order."""
        return in_threads(self.file_hash, ids)

    def content_hash(self, ids: Sequence[str] | None = None) -> str:
        """SHA-256 over ids and file contents, of all images or of these: the part of a plan's fingerprint that real images decide."""
        ids = [i for name in self.classes for i in self._ids[name]] if ids is None else ids
        digest = hashlib.sha256()
        for image_id, content in zip(ids, self.file_hashes(ids), strict=True):
            digest.update(f'{image_id} {content}\n'.encode())
        return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f'The image {str(path)!r} cannot be read: {error}.', 'Replace or remove the file.')


def _too_large(path: Path, error: Exception) -> DataError:
    return DataError(f'The image {str(path)!r} is too large for memory: {first_line(error)}.', 'Shrink it, or remove the file.')


def decode_rgb(file: Path | IO[bytes]) -> np.ndarray:
    """Pixels of an encoded image: (H, W, 3) uint8 RGB, EXIF rotation applied, transparency laid on white.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: it cannot be read.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        image = _eight_bit(ImageOps.exif_transpose(opened))
        if image.has_transparency_data:
            rgba = image.convert('RGBA')
            image = Image.alpha_composite(Image.new('RGBA', rgba.size, 'white'), rgba)
        return np.asarray(image.convert('RGB'))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file as `decode_rgb` gives them; reads its header only.

    Raises:
        DataError: the file is missing or unreadable.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
            return (height, width) if turned else (width, height)
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error


def in_threads(function: Callable[[str], T], items: Sequence[str], threads: int = 4) -> Iterator[T]:
    """Results of `function` in order. A plain `Executor.map` would hold a future for every item at once: 2 GB for ImageNet."""
    with ThreadPoolExecutor(threads) as pool:
        for i in range(0, len(items), _FUTURES):
            yield from pool.map(function, items[i : i + _FUTURES])


def _eight_bit(image: Image) -> Image:
    """Grey levels of 16 bits as 8 bits; Pillow itself would cut them off at 255."""
    from PIL import Image as PIL

    if not image.mode.startswith('I'):
        if image.mode == 'F':
            raise ValueError('floating-point pixels have no known range')
        return image
    levels = np.asarray(image)
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise ValueError(f'grey levels from {low} to {high} have no known range')
    return PIL.fromarray((levels // 257 if image.mode.startswith('I;16') or high > 255 else levels).astype(np.uint8))
