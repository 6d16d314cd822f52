"""Levels of rarity: from minority scores to the classes that a level classifier learns (Um, Lee and Ye, ICLR 2024, arXiv 2301.12334, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from synthaug_plugins.errors import DataError, ModelError, RecipeError

RANKS = ('all', 'class')
_IMAGES_PER_LEVEL, _MOST = 50, 100
_TO_JSON = ('count', 'rank', 'thresholds')


@dataclass(frozen=True)
class Levels:
    """Which scores belong to which level: 0 the most common, count - 1 the rarest.

    Attributes:
        count: L.
        rank: 'all': one scale for all images; 'class': one for each class.
        thresholds: L - 1 inner limits, not falling; a score s has the level j where thresholds[j - 1] < s <= thresholds[j]. For the rank 'class':
            class name -> these.

    Raises:
        RecipeError: fewer than two levels, an unknown rank, or limits that are not of this form.
    """

    count: int
    rank: str
    thresholds: tuple[float, ...] | Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        _check_count(self.count)
        check_rank(self.rank)
        if isinstance(self.thresholds, Mapping) != (self.rank == 'class'):
            raise RecipeError(f'Levels of the rank {self.rank!r} have the limits {self.thresholds!r}.', 'Give them by class for the rank class only.')
        for limits in self.thresholds.values() if isinstance(self.thresholds, Mapping) else (self.thresholds,):
            rising = all(a <= b for a, b in pairwise(limits))
            if len(limits) != self.count - 1 or not rising or not all(map(math.isfinite, limits)):
                raise RecipeError(f'{self.count} levels have the limits {limits!r}.', f'Give {self.count - 1} finite numbers that do not fall.')

    def of(self, scores: np.ndarray, class_names: Sequence[str] | None = None) -> np.ndarray:
        """The level of each score, also of images that the limits were not made from.

        Unlike `assign_levels` this gives equal scores equal levels. Scores above all limits get L - 1: the published code leaves 0 where rounding
        puts a score above its last quantile.

        Args:
            scores: (N,) finite.
            class_names: of each image, for the rank 'class'.

        Returns: (N,) int64.

        Raises:
            DataError: scores that are not finite, no class names where they are needed, or a class without limits.
        """
        values = _finite(scores)
        if not isinstance(self.thresholds, Mapping):
            return np.searchsorted(self.thresholds, values, side='left').astype(np.int64)
        if class_names is None or len(class_names) != len(values):
            raise DataError('These levels rank within each class, but the class of each image was not given.', 'Give a class name per score.')
        names = np.asarray(class_names, dtype=object)
        found = np.zeros(len(values), np.int64)
        for name in dict.fromkeys(class_names):
            if name not in self.thresholds:
                raise DataError(f'The class {name!r} has no levels.', f'Known: {", ".join(self.thresholds)}.')
            mine = names == name
            found[mine] = np.searchsorted(self.thresholds[name], values[mine], side='left')
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, see `from_json`."""
        limits = self.thresholds
        plain = {name: list(own) for name, own in limits.items()} if isinstance(limits, Mapping) else list(limits)
        return {'count': self.count, 'rank': self.rank, 'thresholds': plain}

    @classmethod
    def from_json(cls, known: Any) -> Levels:
        """What `to_json` gave.

        Raises:
            ModelError: something else.
        """
        try:
            if not isinstance(known, Mapping) or set(known) != set(_TO_JSON):
                raise TypeError(f'the keys are not {", ".join(_TO_JSON)}')
            limits = known['thresholds']
            if isinstance(limits, Mapping):
                return cls(known['count'], known['rank'], {str(name): tuple(map(float, own)) for name, own in limits.items()})
            return cls(known['count'], known['rank'], tuple(map(float, limits)))
        except (TypeError, ValueError, OverflowError, RecipeError) as error:
            raise ModelError(f'The levels {str(known)[:200]} cannot be read: {error}.', 'Learn the level classifier again.') from error


def assign_levels(scores: np.ndarray, count: int, seed: int, labels: Sequence[str] | None = None) -> tuple[np.ndarray, Levels]:
    """Levels of a data set with exact shares: the sizes of two levels differ by 1 at most, also where many scores are equal.

    Images are ranked by score, equal ones in an order that the seed draws; rank r of n gets the level floor(r L / n).

    Args:
        scores: (N,) finite.
        count: L, at least 2.
        seed: of the order of equal scores.
        labels: class name of each image: ranked within its class, whatever the other classes hold. None: one ranking of all.

    Returns: levels (N,) int64, and the limits between them, which lie halfway between neighbours of two levels.

    Raises:
        RecipeError: fewer than two levels.
        DataError: scores that are not finite or all equal, or fewer images than levels (of a class, which is named).
    """
    _check_count(count)
    values = _finite(scores)
    if labels is None:
        levels, limits = _ranked(values, count, np.random.default_rng(seed), 'the data')
        return levels, Levels(count, 'all', limits)
    if len(labels) != len(values):
        raise DataError(f'{len(labels)} class names were given for {len(values)} scores.', 'Give one per score.')
    names = np.asarray([str(name) for name in labels], dtype=object)
    found, by_class = np.zeros(len(values), np.int64), {}
    for name in sorted(set(names)):
        mine = names == name
        rng = np.random.default_rng([seed, *name.encode()])
        found[mine], by_class[name] = _ranked(values[mine], count, rng, f'the class {name!r}')
    return found, Levels(count, 'class', by_class)


def propose_level_count(n: int) -> int:
    """A number of levels for so many images, of the smallest class where each class is ranked by itself: about 50 images a level, 2 to 100 levels.

    Raises:
        DataError: fewer than two images.
    """
    if n < 2:
        raise DataError(f'{n} images cannot be ranked.', 'Give more images.')
    return min(max(n // _IMAGES_PER_LEVEL, 2), _MOST)


def check_rank(rank: str) -> None:
    """Refuse (RecipeError) a rank that is none of `RANKS`."""
    if rank not in RANKS:
        raise RecipeError(f'rank = {rank!r} is unknown.', "Use 'all' or 'class'.")


def _check_count(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise RecipeError(f'{count!r} is no number of levels.', 'Use a whole number of at least 2.')


def _finite(scores: np.ndarray) -> np.ndarray:
    """Scores as (N,) float64; what is not finite is refused (DataError)."""
    values = np.asarray(scores, np.float64)
    if values.ndim != 1:
        raise DataError(f'Scores of the shape {values.shape} were given.', 'Give one number per image.')
    if bad := int((~np.isfinite(values)).sum()):
        raise DataError(f'{bad} of {len(values)} scores are not finite.', 'Score again; look at the images whose score is empty.')
    return values


def _ranked(values: np.ndarray, count: int, rng: np.random.Generator, whose: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Levels (n,) and the count - 1 limits between them."""
    n = len(values)
    if n < count:
        raise DataError(f'{count} levels were asked for, but {whose} has {n} images.', f'Use {max(n, 2)} levels or fewer, or give more images.')
    if values.min() == values.max():
        raise DataError(f'All {n} scores of {whose} are {values[0]:g}: nothing is rarer than anything else.', 'Use another sigma or distance.')
    order = np.lexsort((rng.permutation(n), values))
    ranks = np.arange(n) * count // n
    levels = np.empty(n, np.int64)
    levels[order] = ranks
    first = np.searchsorted(ranks, np.arange(1, count))  # places of the lowest score of levels 1 to L - 1
    below, above = values[order][first - 1], values[order][first]
    middle = below + (above - below) / 2
    return levels, tuple(np.where(middle < above, middle, below).tolist())
