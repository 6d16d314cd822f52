"""Pixels to the bytes of an image file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from synthaug_plugins.errors import RecipeError, StoreError, first_line, nearest

_PILLOW = {'png': 'PNG', 'jpg': 'JPEG', 'webp': 'WEBP'}
FORMATS = tuple(_PILLOW)


def check_format(format: str, quality: int) -> None:
    """Refuse an unknown image format or a quality outside 1..100.

    Raises:
        RecipeError
    """
    if format not in FORMATS:
        raise RecipeError(f'The image format {format!r} is unknown.', nearest(str(format), FORMATS))
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise RecipeError(f'The image quality {quality!r} is not a whole number from 1 to 100.', 'Use 90 or more for training images.')


def encode(image: np.ndarray, format: str, quality: int) -> bytes:
    """Encode one image.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 grey.
        format: 'png' (lossless; quality is not used), 'jpg' or 'webp'. It is also the file's suffix in the store.
        quality: 1..100 of the lossy formats.

    Returns: the file's bytes; equal for equal pixels and equal versions of Pillow and its codecs.

    Raises:
        RecipeError: unknown format, or quality out of range.
        ValueError: pixels of another type or shape.
    """
    check_format(format, quality)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise ValueError(f'An image must be (H, W, 3) or (H, W) uint8, not {image.shape} {image.dtype}.')
    options = {} if format == 'png' else {'quality': quality}
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, _PILLOW[format], **options)
    return buffer.getvalue()


def decode(data: bytes, what: str) -> Image.Image:
    """An image of a store, decoded: (W, H) in the mode that the file has.

    Only decoders of the formats that a store has are asked: that of PostScript, for one, starts a program.

    Args:
        data: the file.
        what: it is, for the message.

    Raises:
        StoreError: no PNG, JPEG or WebP, damaged, or larger than Pillow's limit.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=list(_PILLOW.values()))
        image.load()
        return image
    except Exception as error:  # Pillow raises many kinds
        raise StoreError(f'{what} cannot be decoded: {first_line(error)}.', 'Run verify, then repair.') from error


def suffix_of(data: bytes) -> str | None:
    """The format of an image file by its first bytes: 'png', 'jpg', 'webp' or None."""
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        return 'png'
    if data[:3] == b'\xff\xd8\xff':
        return 'jpg'
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        return 'webp'
    return None
