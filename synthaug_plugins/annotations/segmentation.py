"""COCO's ways to write a mask down: polygons, run lengths, and run lengths as text.

In NumPy: beside the package pycocotools, MMPretrain 1.2.0 cannot be imported with transformers 5 (see `compat`), so it is not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask of a segmentation.

    Args:
        segmentation: a list of polygons, [x0, y0, x1, y1, ...] in pixels from the upper left corner of the image, whose union is meant; or
            dict(size=[height, width], counts=...), the lengths of runs of 0 and 1 in turn, column by column, as a list or as COCO's text.
        height, width: of the image.

    Returns: (height, width) bool.

    Raises:
        ValueError, TypeError, KeyError, IndexError: it is none, or does not fit the image.
    """
    if isinstance(segmentation, Mapping):
        size, counts = list(segmentation['size']), segmentation['counts']
        if size != [height, width]:
            raise ValueError(f'its mask has {size[1]} x {size[0]} pixels, the image {width} x {height}')
        return from_runs(runs_of_text(counts) if isinstance(counts, str) else counts, height, width)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        fill(mask, np.asarray(polygon, float))
    return mask


def from_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """(height, width) bool of run lengths, see `decode`; ValueError unless they are whole numbers of 0 or more that add up to height * width."""
    runs = np.asarray(counts)
    if runs.ndim != 1 or not np.issubdtype(runs.dtype, np.integer) or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f'its run lengths are no whole numbers that add up to the {height * width} pixels of the image')
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def runs_of_text(text: str) -> list[int]:
    """Run lengths of COCO's text. From the fourth on, a number is the difference to the one two places before.

    A number is cut into groups of five bits, the lowest first, each a character: 48 and the bits, and 32 if more follow. The highest bit of
    the last group is the sign.

    Raises:
        ValueError: another character, or a text that is cut short.

    >>> runs_of_text('611120<')
    [6, 1, 1, 2, 3, 2, 15]
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f'its text of run lengths holds {character!r}')
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError('its text of run lengths is cut short')
    return runs


def fill(mask: np.ndarray, polygon: np.ndarray) -> None:
    """Set the pixels of `mask` (H, W) bool whose centres lie in a polygon, by the even-odd rule.

    Args:
        polygon: [x0, y0, x1, y1, ...] in pixels from the upper left corner, three points at least.

    Raises:
        ValueError: fewer points, or one that lies farther outside than the image is large.
    """
    (height, width), numbers = mask.shape, polygon.size
    if polygon.ndim != 1 or numbers < 6 or numbers % 2:
        raise ValueError(f'a polygon has {numbers} numbers, which are no three points or more')
    points = polygon.reshape(-1, 2)
    sides = np.array([width, height])
    if not ((points >= -sides) & (points <= 2 * sides)).all():
        raise ValueError('a polygon lies far outside of the image')
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    top, bottom = (min(max(int(y), 0), height) for y in (y0.min(), y0.max() + 1))
    y = np.arange(top, bottom) + 0.5
    # Where each edge crosses the line of centres of each row; edges as rows of the table. A horizontal edge crosses none.
    crosses = (np.minimum(y0, y1)[:, None] <= y) & (y < np.maximum(y0, y1)[:, None])
    edge, row = crosses.nonzero()
    at = x0[edge] + (y[row] - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    toggles = np.zeros((bottom - top, width + 1), np.int32)  # the first pixel to the right of each crossing
    np.add.at(toggles, (row, np.clip(np.ceil(at - 0.5), 0, width).astype(int)), 1)
    mask[top:bottom] |= toggles[:, :width].cumsum(axis=1) % 2 == 1
