"""Encoded bytes to pixels, in the shape that a real image in memory has."""

from __future__ import annotations

import mmcv
import numpy as np

from synthaug_plugins.errors import RecipeError, StoreError

CHANNEL_ORDERS = ('rgb', 'bgr')


def decode_like(data: bytes, like: np.ndarray, channel_order: str) -> np.ndarray:
    """Decode an image so that it can stand where `like` stands.

    Args:
        data: an encoded image (PNG, JPEG, WebP).
        like: (H, W, 3), (H, W, 1) or (H, W) uint8.
        channel_order: 'rgb' or 'bgr', for three channels.

    Returns:
        The image in the shape of `like`, scaled if its size differs (area average down, bicubic up), uint8.

    Raises:
        RecipeError: `like` has another shape or type.
        StoreError: the bytes are no image.
    """
    if like.dtype != np.uint8 or like.ndim not in (2, 3) or (like.ndim == 3 and like.shape[2] not in (1, 3)):
        raise RecipeError(
            f'The real images are {like.dtype} arrays of shape {like.shape}; synthetic ones cannot be put beside them.',
            'Use uint8 images of shape (H, W, 3), (H, W, 1) or (H, W).',
        )
    gray = like.ndim == 2 or like.shape[2] == 1
    image = mmcv.imfrombytes(data, flag='grayscale' if gray else 'color', channel_order=channel_order)
    if image is None:
        raise StoreError('An image of a store cannot be decoded.', 'Run verify, then repair.')
    height, width = like.shape[:2]
    if image.shape[:2] != (height, width):
        shrinks = image.shape[0] * image.shape[1] > height * width
        image = mmcv.imresize(image, (width, height), interpolation='area' if shrinks else 'bicubic')
    return image.reshape(like.shape)
