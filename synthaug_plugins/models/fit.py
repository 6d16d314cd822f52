"""How an image of any shape becomes one of the model's shape, and how the result gets its own shape back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthaug_plugins.errors import RecipeError, nearest

FITS = ('pad', 'crop', 'squash')


@dataclass(frozen=True)
class Placed:
    """An image on the model's canvas.

    Attributes:
        pixels: (height, width, 3) uint8 of the canvas.
        box: (top, left, height, width) of the part of the canvas that shows the image; what lies outside was filled in.
    """

    pixels: np.ndarray
    box: tuple[int, int, int, int]

    def cut(self, canvas: np.ndarray) -> np.ndarray:
        """The image's part of what was made of the canvas."""
        top, left, height, width = self.box
        return canvas[top : top + height, left : left + width]


def check_fit(fit: str) -> None:
    """Refuse (RecipeError) a fit that nobody knows."""
    if fit not in FITS:
        raise RecipeError(f'fit = {fit!r} is unknown.', nearest(str(fit), FITS))


def place(image: np.ndarray, height: int, width: int, fit: str) -> Placed:
    """An image on a canvas of that size, enlarged or shrunk (bicubic; with antialiasing where it shrinks).

    Args:
        image: (H, W, 3) uint8, of any size.
        height, width: of the canvas, in pixels.
        fit: 'pad': the whole image in its aspect ratio, as large as the canvas allows and in its middle. The rest is filled with mirror images
            of it, as often as it takes, so that nothing begins or ends there; a side of a single pixel is repeated. 'crop': the largest part of
            the canvas's shape from the middle. 'squash': the whole image, stretched.
    """
    from PIL import Image, ImageOps

    picture, bicubic = Image.fromarray(image), Image.Resampling.BICUBIC
    if fit == 'crop':
        return Placed(np.asarray(ImageOps.fit(picture, (width, height), bicubic)), (0, 0, height, width))
    if fit == 'squash':
        return Placed(np.asarray(picture.resize((width, height), bicubic)), (0, 0, height, width))
    scale = min(height / picture.height, width / picture.width)
    h, w = (min(max(1, round(side * scale)), most) for side, most in ((picture.height, height), (picture.width, width)))
    top, left = (height - h) // 2, (width - w) // 2
    resized = np.asarray(picture.resize((w, h), bicubic))
    # 'symmetric' repeats the pixel at the edge, unlike 'reflect', and so works for any size from 1 on.
    return Placed(np.pad(resized, ((top, height - h - top), (left, width - w - left), (0, 0)), 'symmetric'), (top, left, h, w))
