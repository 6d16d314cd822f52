"""Curves of accuracy as data: what `picture` draws into a PNG and `charts` into the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        name: what it is.
        points: place on the axis, and a spread over seeds (`statistics.spread`) in percent; none for a level alone.
        label: what is written beside its end, in place of its name.
        level: a spread whose mean is drawn as a dashed line all through, such as the baseline's.
    """

    name: str
    points: Sequence[tuple[float, Mapping[str, Any]]] = ()
    label: str | None = None
    level: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Panel:
    """One small picture: a few lines over one quantity.

    Attributes:
        title: what is varied.
        axis: the same in words, with its unit.
        ticks: place and text of each value.
        joined: whether a line joins the points; values without an order have none.
        lines: at least one.
        dashed: what the dashed levels are; '' without any.
    """

    title: str
    axis: str
    ticks: Sequence[tuple[float, str]]
    joined: bool
    lines: Sequence[Line]
    dashed: str = ''

    @property
    def extent(self) -> tuple[float, float]:
        """Left and right end of the axis: the ticks, with a margin; texts have equal room, so that the outer ones are not cut off."""
        places = [place for place, _ in self.ticks]
        if not self.joined:
            return min(places) - 0.5, max(places) + 0.5
        margin = 0.08 * ((max(places) - min(places)) or 4)
        return min(places) - margin, max(places) + margin

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value that is drawn, bars of one standard deviation included, percent."""
        drawn = [found['mean'] + sign * (found['sd'] or 0) for line in self.lines for _, found in line.points for sign in (-1, 1)]
        drawn += [line.level['mean'] for line in self.lines if line.level is not None]
        return min(drawn), max(drawn)


def places(values: Sequence[float | str]) -> tuple[list[float], bool]:
    """Where values stand on an axis, and whether they have an order that a line may join.

    Texts stand side by side. Numbers that grow by factors stand in doublings, others as they are.

    >>> places([1, 4, 16])
    ([0.0, 2.0, 4.0], True)
    >>> places([0, 0.1, 0.3])
    ([0.0, 0.1, 0.3], True)
    >>> places(['all', 'class'])
    ([0.0, 1.0], False)
    """
    numbers = [float(v) for v in values if not isinstance(v, str)]
    if len(numbers) < len(values):
        return [float(i) for i in range(len(values))], False
    if min(numbers) > 0 and max(numbers) >= 4 * min(numbers):
        return [math.log2(v) for v in numbers], True
    return numbers, True
