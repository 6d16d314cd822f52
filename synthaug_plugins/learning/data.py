"""From the user's images to one array at the model's resolution, decoded once and memory-mapped ever after."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthaug_plugins.errors import DataError
from synthaug_plugins.real_images import RealImages, in_threads

PIXELS, CARD = 'images.npy', 'images.json'


@dataclass(frozen=True)
class DecodedImages:
    """All images of a folder.

    Attributes:
        pixels: (N, C, H, W) uint8, memory-mapped, in the order of the classes, then of the ids.
        labels: (N,) int64, places in `classes`.
        classes: names in label order.
        sha256: over names and contents of the files.
        enlarged: how many images were smaller than the resolution.
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    sha256: str
    enlarged: int


def decode(
    real_images: RealImages,
    classes: Sequence[str],
    resolution: int,
    channels: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> DecodedImages:
    """Decode every image once into `folder`; a second call maps what is there. A changed image folder is decoded again.

    The largest centred square is cropped and resized (bicubic, antialiased), as `RealGuidance` does it. Whether the image
    folder changed is told by its files' names, sizes and times of change; the contents are hashed when decoding.

    Args:
        real_images: the folder of class folders.
        classes: its class names in label order.
        resolution: pixels per side.
        channels: 1 (grey) or 3 (RGB).
        folder: receives images.npy and images.json; the latter is written last.
        progress: called with (images done, images in all).

    Raises:
        DataError: the classes are not those of the folder, or an image cannot be read; it is named.
        OSError: disk full, no permission.
    """
    check_classes(real_images, classes)
    ids = [i for name in classes for i in real_images.ids(name)]
    labels = np.repeat(np.arange(len(classes)), [len(real_images.ids(name)) for name in classes])
    wanted = {'files': _listing(real_images, ids), 'classes': list(classes), 'resolution': resolution, 'channels': channels}
    card, path = folder / CARD, folder / PIXELS
    known = json.loads(card.read_text(encoding='utf-8')) if card.is_file() else {}
    if {k: known.get(k) for k in wanted} != wanted or not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        card.unlink(missing_ok=True)
        unfinished = folder / '.images.partial'
        enlarged = 0
        with open(unfinished, 'wb') as file:  # not through a memory map: a full disk would kill the process without a word
            shape = (len(ids), channels, resolution, resolution)
            np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
            for k, (image, small) in enumerate(in_threads(lambda i: square(real_images.load(i), resolution, channels), ids)):
                file.write(image.tobytes())
                enlarged += small
                if progress is not None:
                    progress(k + 1, len(ids))
        os.replace(unfinished, path)
        known = {**wanted, 'sha256': real_images.content_hash(), 'enlarged': enlarged}
        unfinished.write_text(json.dumps(known, indent=1) + '\n', encoding='utf-8')
        os.replace(unfinished, card)
    return DecodedImages(np.load(path, mmap_mode='r'), labels, tuple(classes), known['sha256'], known['enlarged'])


def some_images(real_images: RealImages, resolution: int, channels: int, count: int, seed: int = 0) -> np.ndarray:
    """At most `count` images of a folder, chosen at random: (N, C, H, W) uint8, see `decode`.

    Raises:
        DataError: an image cannot be read; it is named.
    """
    ids = [i for name in real_images.classes for i in real_images.ids(name)]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(ids))[:count])
    return np.stack([image for image, _ in in_threads(lambda i: square(real_images.load(i), resolution, channels), [ids[k] for k in chosen])])


def square(image: np.ndarray, resolution: int, channels: int) -> tuple[np.ndarray, bool]:
    """The centred square of an image (H, W, 3) as (C, resolution, resolution) uint8, and whether it had to be enlarged."""
    from PIL import Image, ImageOps

    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    if (width, height) != (resolution, resolution):
        picture = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.BICUBIC)
    pixels = np.atleast_3d(np.asarray(picture.convert('L') if channels == 1 else picture))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), min(width, height) < resolution


def check_classes(real_images: RealImages, classes: Sequence[str]) -> None:
    """Refuse (DataError) class names that are not those of the folder; the names that differ are said."""
    found = set(real_images.classes)
    if found != set(classes):
        only_recipe, only_data = sorted(set(classes) - found), sorted(found - set(classes))
        what = f'The classes of the recipe and of {str(real_images.root)!r} differ: only in the recipe {only_recipe}, only in the folder {only_data}.'
        raise DataError(what, 'Make the names equal.')


def _listing(real_images: RealImages, ids: Sequence[str]) -> str:
    """SHA-256 over names, sizes and times of change: tells whether to read the files again, without reading them."""
    digest = hashlib.sha256()
    for image_id in ids:
        status = (real_images.root / image_id).stat()
        digest.update(f'{image_id} {status.st_size} {status.st_mtime_ns}\n'.encode())
    return digest.hexdigest()
