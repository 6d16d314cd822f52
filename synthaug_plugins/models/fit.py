"""How an image of any shape becomes one of the model's shape, and how the result gets its own shape back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from synthaug_plugins.errors import RecipeError, nearest

FITS = ('pad', 'crop', 'squash')
Box = tuple[float, float, float, float]
"""(top, left, height, width)."""
_ROUNDING = 1e-6  # of a pixel; below it a border lies between two pixels


@dataclass(frozen=True)
class Frame:
    """Where an image lies on the model's canvas. Made by `frame`.

    Attributes:
        size: (H, W) of the image.
        canvas: (height, width) of the canvas.
        shown: the part of the image that is on the canvas, in pixels of the image, and fractions of them.
        box: (top, left, height, width) of the part of the canvas that it takes, in whole pixels; what lies outside is filled in.
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    shown: Box
    box: tuple[int, int, int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the canvas per pixel of the image, vertically and horizontally."""
        return self.box[2] / self.shown[2], self.box[3] / self.shown[3]

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the image's pixels that are wholly on the canvas."""
        top, left, height, width = self.shown
        return _within(top, height), _within(left, width)

    def lay(self, image: np.ndarray) -> np.ndarray:
        """The canvas (height, width, 3) uint8 with an image (H, W, 3) uint8 on it."""
        from PIL import Image

        top, left, height, width = self.shown
        part = (left, top, left + width, top + height)
        resized = Image.fromarray(image).resize((self.box[3], self.box[2]), Image.Resampling.BICUBIC, box=part)
        return self._fill_in(np.asarray(resized))

    def cover(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) bool of the image on the canvas, (height, width) bool: a pixel is in it when it meets any of the mask's."""
        top, left, height, width = self.shown
        rows = _any_of(mask, top, height / self.box[2], self.box[2])
        return self._fill_in(_any_of(rows.T, left, width / self.box[3], self.box[3]).T)

    def _fill_in(self, part: np.ndarray) -> np.ndarray:
        (height, width), (top, left, h, w) = self.canvas, self.box
        if (h, w) == (height, width):
            return part
        # 'symmetric' repeats the pixel at the edge, unlike 'reflect', and so works for any size from 1 on.
        return np.pad(part, ((top, height - h - top), (left, width - w - left), *[(0, 0)] * (part.ndim - 2)), 'symmetric')

    def cut(self, canvas: np.ndarray) -> np.ndarray:
        """The image's part of what was made of the canvas, at the canvas's scale."""
        top, left, height, width = self.box
        return canvas[top : top + height, left : left + width]

    def back(self, canvas: np.ndarray) -> np.ndarray:
        """What was made of the canvas, (height, width, 3) uint8, at the image's scale (bicubic): the pixels `inner` of the image."""
        from PIL import Image

        rows, columns = self.inner
        (y, x), (top, left, _, _), (box_top, box_left, _, _) = self.scale, self.shown, self.box
        upper, lower = (min(max(box_top + (at - top) * y, 0), self.canvas[0]) for at in (rows.start, rows.stop))
        west, east = (min(max(box_left + (at - left) * x, 0), self.canvas[1]) for at in (columns.start, columns.stop))
        size = columns.stop - columns.start, rows.stop - rows.start
        return np.asarray(Image.fromarray(canvas).resize(size, Image.Resampling.BICUBIC, box=(west, upper, east, lower)))


@dataclass(frozen=True)
class Placed:
    """An image on the model's canvas.

    Attributes:
        pixels: (height, width, 3) uint8 of the canvas.
        frame: where the image lies.
    """

    pixels: np.ndarray
    frame: Frame


def check_fit(fit: str) -> None:
    """Refuse (RecipeError) a fit that nobody knows."""
    if fit not in FITS:
        raise RecipeError(f'fit = {fit!r} is unknown.', nearest(str(fit), FITS))


def frame(size: tuple[int, int], canvas: tuple[int, int], fit: str) -> Frame:
    """Where an image lies on a canvas.

    Args:
        size: (H, W) of the image.
        canvas: (height, width) of the canvas, in pixels.
        fit: 'pad': the whole image in its aspect ratio, as large as the canvas allows and in its middle. The rest is filled with mirror images
            of it, as often as it takes, so that nothing begins or ends there; a side of a single pixel is repeated. 'crop': the largest part of
            the canvas's shape from the middle. 'squash': the whole image, stretched.
    """
    (H, W), (height, width) = size, canvas
    if fit == 'crop':
        h, w = (H, H * width / height) if W * height >= H * width else (W * height / width, W)
        return Frame(size, canvas, ((H - h) / 2, (W - w) / 2, h, w), (0, 0, height, width))
    if fit == 'squash':
        return Frame(size, canvas, (0, 0, H, W), (0, 0, height, width))
    scale = min(height / H, width / W)
    box_h, box_w = (min(max(1, round(side * scale)), most) for side, most in ((H, height), (W, width)))
    return Frame(size, canvas, (0, 0, H, W), ((height - box_h) // 2, (width - box_w) // 2, box_h, box_w))


def place(image: np.ndarray, height: int, width: int, fit: str) -> Placed:
    """An image (H, W, 3) uint8 of any size on a canvas, see `frame`; enlarged or shrunk (bicubic; with antialiasing where it shrinks)."""
    where = frame((image.shape[0], image.shape[1]), (height, width), fit)
    return Placed(where.lay(image), where)


def channels_first(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels (H, W, 3) uint8 as a model takes them: (channels, H, W), grey where it has one channel."""
    from PIL import Image

    if channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert('L'))
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def place_all(images: Sequence[np.ndarray], height: int, width: int, fit: str) -> list[Placed]:
    """Images of a batch, each asked for once, see `place`."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda k: place(images[k], height, width, fit), range(len(images))))


def _within(start: float, length: float) -> slice:
    """The whole pixels of a part; of one that holds none, the pixel in its middle."""
    first, last = ceil(start - _ROUNDING), floor(start + length + _ROUNDING)
    return slice(first, last) if first < last else slice(floor(start + length / 2), floor(start + length / 2) + 1)


def _any_of(mask: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """Whether any row of a mask lies in [start + k step, start + (k + 1) step), for each column and k < count: (count, columns)."""
    edges = start + step * np.arange(count + 1)
    first = np.clip(np.floor(edges[:-1] + _ROUNDING).astype(int), 0, len(mask) - 1)
    last = np.clip(np.ceil(edges[1:] - _ROUNDING).astype(int), first + 1, len(mask))
    total = np.concatenate([np.zeros((1, mask.shape[1]), np.int64), mask.cumsum(axis=0)])
    return total[last] > total[first]
