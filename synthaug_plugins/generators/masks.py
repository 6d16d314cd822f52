"""Which part of a real image an edit may change, from a folder of masks, and how an edit is laid over its image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.models.fit import Frame, frame
from synthaug_plugins.real_images import RealImages, in_threads

EDITS = ('object', 'background')
CANVAS = 512
"""Side of the published canvas: widths are counted in its pixels."""
VOID = 255
"""Index of a palette mask that says nothing: VOC's border of objects."""


@dataclass(frozen=True)
class Masks:
    """Masks of the objects in real images, and which part of an image is edited.

    The mask of the image `<class>/<stem>.<suffix>` is `<folder>/<class>/<stem>.png`, of the image's size: one channel in which 0 is background and
    one other value the object, as `synthaug import` writes it; or a palette, in which 0 and 255 (void) are background and all else is object.

    The edited region is the object, or all but the object, grown by a maximum filter (Trabucco et al., ICLR 2024). Widths are counted in pixels of a
    canvas of 512, whatever the model's own: with image_size = 1024 a width of 16 is 32 pixels there. They grow and shrink with the image.

    Args:
        folder: of the masks.
        edit: 'object' or 'background'.
        dilate: width of the maximum filter: the region grows by half of it on each side. The paper's is 16.
        soft: width of the linear ramp at the region's edge, at most dilate / 2: it lies in what the filter added, so that the object itself is
            replaced in full, and outside of the region nothing is.

    Raises:
        RecipeError: a value of the wrong kind or out of range.
        DataError: no such folder.
    """

    folder: str
    edit: str = 'object'
    dilate: float = 16
    soft: float = 0

    def __post_init__(self) -> None:
        if self.edit not in EDITS:
            raise RecipeError(f'masks.edit = {self.edit!r} is unknown.', nearest(str(self.edit), EDITS))
        for name, most in (('dilate', CANVAS), ('soft', CANVAS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise RecipeError(f'masks.{name} = {value!r} is out of range.', f'It is a width in pixels of a canvas of {CANVAS}, 0 to {most}.')
        if self.soft > self.dilate / 2:
            cure = f'At most {self.dilate / 2:g}, half of dilate, so that the object itself is replaced in full.'
            raise RecipeError(f'masks.soft = {self.soft:g} is wider than what dilate = {self.dilate:g} adds to the region.', cure)
        if not isinstance(self.folder, str) or not self._root.is_dir():
            raise DataError(f'The folder of masks {self.folder!r} does not exist.', 'Give a folder like that of the images, with a PNG for each.')

    @property
    def _root(self) -> Path:
        return Path(self.folder).expanduser()

    def path(self, source: str) -> Path:
        """Where the mask of a real image lies."""
        return self._root / PurePosixPath(source).with_suffix('.png')

    def object(self, source: str) -> np.ndarray:
        """The mask of a real image: (H, W) bool, True where the object is.

        Raises:
            DataError: it is missing, cannot be read, or is none (colours, more than two levels).
        """
        from PIL import Image

        path = self.path(source)
        try:
            with Image.open(path) as image:
                mode, values = image.mode, np.asarray(image)
        except FileNotFoundError as error:
            raise DataError(f'The image {source!r} has no mask: {str(path)!r} does not exist.', 'Add it, or remove the image.') from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f'The mask {str(path)!r} cannot be read: {error}.', 'Replace the file.') from error
        if mode == 'P':
            return (values != 0) & (values != VOID)
        if mode not in ('1', 'L') and not mode.startswith('I'):
            raise DataError(
                f'The mask {str(path)!r} has the mode {mode}: colours, no mask.', 'Save one channel, with 0 for the background and 255 for the object.'
            )
        levels = np.unique(values)
        if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
            what = f'holds the levels {", ".join(map(str, levels[:4].tolist()))}{", ..." if len(levels) > 4 else ""}'
            raise DataError(f'The mask {str(path)!r} {what}: grey levels or numbers of objects, no mask.', 'Save 0 for the background and 255 for the object.')
        return values != 0

    def check(self, images: RealImages, sources: Sequence[str], canvas: tuple[int, int], fit: str) -> None:
        """Look at the masks of all sources, before any weights load.

        Args:
            images: the real images.
            sources: ids of those that are edited.
            canvas: (height, width) of the model's images.
            fit: how they are laid on it, see `fit.frame`.

        Raises:
            DataError: the first mask that is missing, is none, has another size than its image, or leaves nothing to edit.
        """

        def one(source: str) -> None:
            mask, (width, height) = self.object(source), images.size(source)
            if mask.shape != (height, width):
                found = f'{mask.shape[1]} x {mask.shape[0]} pixels, the image {source!r} {width} x {height}'
                raise DataError(
                    f'The mask {str(self.path(source))!r} has {found}.', 'Masks and images must have one size (an EXIF rotation of the image counts).'
                )
            chosen = self._chosen(mask)
            if not chosen.any():
                what = 'covers the whole image: there is no background' if self.edit == 'background' else 'is empty: there is no object'
                cure = 'Remove the image, or correct its mask (of a palette, 255 counts as background).'
                raise DataError(f'The mask {str(self.path(source))!r} {what} to edit.', cure)
            if not self.region(mask, frame(mask.shape, canvas, fit)).any():
                cure = "Use fit='pad', or remove the image."
                raise DataError(f'The {self.edit} of {source!r} lies in what fit = {fit!r} cuts away, so that there is nothing to edit.', cure)

        for _ in in_threads(one, sources):
            pass

    def _chosen(self, mask: np.ndarray) -> np.ndarray:
        return mask if self.edit == 'object' else ~mask

    def region(self, mask: np.ndarray, where: Frame) -> np.ndarray:
        """What is edited of an image, (H, W) bool: the object or the rest, grown; what is not wholly on the canvas counts as neither.

        Args:
            mask: (H, W) bool, the object.
            where: how the image lies on the model's canvas.
        """
        return self.alpha(mask, where) > 0

    def alpha(self, mask: np.ndarray, where: Frame) -> np.ndarray:
        """How much of each pixel is the edit's: (H, W) float32 in [0, 1], exactly 0 outside of `region`, exactly 1 on what was chosen. See `region`."""
        unit = min(where.canvas) / CANVAS
        alpha = np.zeros(mask.shape, np.int64)
        alpha[where.inner] = self._chosen(mask)[where.inner]
        whole = 1
        reach = [round(self.dilate / 2 * unit / scale) for scale in where.scale]
        half = [min(round(self.soft / 2 * unit / scale), r // 2) for r, scale in zip(reach, where.scale, strict=True)]
        for axis in (0, 1):
            alpha = (_window_sums(alpha, reach[axis] - half[axis], axis) > 0).astype(np.int64)
        for axis in (0, 1):  # in whole numbers, so that 0 and 1 are exact
            alpha, whole = _window_sums(alpha, half[axis], axis), whole * (2 * half[axis] + 1)
        shown = np.zeros(mask.shape, np.float32)
        shown[where.inner] = alpha[where.inner] / whole
        return shown

    def identity(self, sources: Sequence[str]) -> dict[str, Any]:
        """Plain JSON: the options, and the SHA-256 over the masks of these sources.

        Raises:
            DataError: a mask is missing.
        """

        def one(source: str) -> str:
            mask = self.object(source)
            return f'{source} {mask.shape} {hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()}\n'

        digest = hashlib.sha256()
        for line in in_threads(one, sources):
            digest.update(line.encode())
        return {'edit': self.edit, 'dilate': self.dilate, 'soft': self.soft, 'sha256': digest.hexdigest()}


def build_masks(options: Mapping[str, Any] | None) -> Masks | None:
    """The masks of a recipe, dict(folder=..., edit=..., dilate=..., soft=...).

    Raises:
        RecipeError: an unknown option, or no folder; and see `Masks`.
    """
    if options is None:
        return None
    known = [f.name for f in fields(Masks)]
    if not isinstance(options, Mapping) or 'folder' not in options:
        raise RecipeError(f'masks = {options!r} names no folder.', "Write masks=dict(folder='data/voc/masks').")
    for key in options:
        if key not in known:
            raise RecipeError(f'masks has no option {key!r}.', nearest(str(key), known))
    return Masks(**options)


def lay_over(image: np.ndarray, edited: np.ndarray, alpha: np.ndarray, where: Frame) -> np.ndarray:
    """An edit over its image: alpha edited + (1 - alpha) image, and the image's own bytes where alpha is 0.

    Args:
        image: (H, W, 3) uint8.
        edited: (height, width, 3) uint8, what was made of the canvas.
        alpha: (H, W), see `Masks.alpha`.
        where: how the image lies on the canvas.

    Returns: (H, W, 3) uint8.
    """
    laid = image.copy()
    a, below = alpha[where.inner][..., None], image[where.inner]
    blend = np.rint(a * where.back(edited) + (1 - a) * below).astype(np.uint8)
    laid[where.inner] = np.where(a > 0, blend, below)
    return laid


def _window_sums(values: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """Sums of int64 over windows of 2 reach + 1 along an axis; beyond its ends the values go on as at the ends."""
    if reach == 0:
        return values
    along = np.moveaxis(values, axis, 0)
    padded = np.concatenate([np.repeat(along[:1], reach, 0), along, np.repeat(along[-1:], reach, 0)])
    total = np.concatenate([np.zeros_like(along[:1]), padded.cumsum(axis=0)])
    return np.moveaxis(total[2 * reach + 1 :] - total[: -(2 * reach + 1)], 0, axis)
