"""Curves as data: what `picture` draws into a PNG and `charts` into the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthaug_plugins.evaluation.statistics import plus_minus


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        name: what it is.
        points: place on the axis, and a spread over seeds (`statistics.spread`) in the panel's unit, or any `mean` with a half bar `sd`; none for a
            level alone.
        label: what is written beside its end, in place of its name.
        level: a spread whose mean is drawn as a dashed line all through, such as the baseline's.
        style: which of the styles of lines with points, or of levels alone, it has; default: by its place. Said where several panels show the same
            lines, not each of them all.
    """

    name: str
    points: Sequence[tuple[float, Mapping[str, Any]]] = ()
    label: str | None = None
    level: Mapping[str, Any] | None = None
    style: int | None = None


@dataclass(frozen=True)
class Panel:
    """One small picture: a few lines over one quantity.

    Attributes:
        title: what is varied.
        axis: the same in words, with its unit.
        ticks: place and text of each value.
        joined: whether a line joins the points; values without an order have none.
        lines: at least one.
        dashed: what the dashed levels of lines with points are; '' without any.
        measure: what is drawn.
        unit: of what is drawn; percentages end at 0 and 100, anything else has no ends.
    """

    title: str
    axis: str
    ticks: Sequence[tuple[float, str]]
    joined: bool
    lines: Sequence[Line]
    dashed: str = ''
    measure: str = 'accuracy'
    unit: str = '%'

    @property
    def extent(self) -> tuple[float, float]:
        """Left and right end of the axis: the ticks, with a margin; texts have equal room, so that the outer ones are not cut off."""
        places = [place for place, _ in self.ticks]
        if not self.joined:
            return min(places) - 0.5, max(places) + 0.5
        margin = 0.08 * ((max(places) - min(places)) or 4)
        return min(places) - margin, max(places) + margin

    @property
    def written(self) -> list[tuple[float, str]]:
        """The ticks whose texts are written: all of them, but for those that would run into the one before.

        >>> axis = Panel('', '', [(0.0, '0'), (1.0, '1'), (1.1, '1.1'), (1.2, '1.2'), (5.0, '5')], True, [])
        >>> [text for _, text in axis.written]
        ['0', '1', '5']
        """
        first, last = self.extent
        kept: list[tuple[float, str]] = []
        for place, text in sorted(self.ticks):
            # A digit is about a fiftieth of a panel wide.
            if not self.joined or not kept or place - kept[-1][0] >= (len(text) + len(kept[-1][1]) + 1) / 100 * (last - first):
                kept.append((place, text))
        return kept

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value that is drawn, bars included."""
        drawn = [found['mean'] + sign * (found['sd'] or 0) for line in self.lines for _, found in line.points for sign in (-1, 1)]
        drawn += [line.level['mean'] for line in self.lines if line.level is not None]
        return min(drawn), max(drawn)

    @property
    def heights(self) -> list[float]:
        """Round numbers for the upright axis, from below the lowest to above the highest value that is drawn."""
        least, most = self.range
        if self.unit == '%':
            stride: float = next(s for s in (1, 2, 5, 10, 20) if most - least <= 6 * s or s == 20)
        else:
            span = (most - least) or 0.1 * abs(most) or 1
            power = 10.0 ** math.floor(math.log10(span / 6))
            stride = next(s * power for s in (1, 2, 5, 10) if span <= 6 * s * power * (1 + 1e-9))
        first, last = math.floor(least / stride + 1e-9), math.ceil(most / stride - 1e-9)
        return [float(f'{i * stride:.12g}') for i in range(first, max(last, first + 1) + 1)]

    def said(self, found: Mapping[str, Any]) -> str:
        """A value of the panel with its bar and unit, for a sentence."""
        if self.unit == '%':
            return f'{plus_minus(found)} %'
        unit = f' {self.unit}' if self.unit else ''
        return f'{found["mean"]:.4g}' + ('' if found['sd'] is None else f' ± {found["sd"]:.2g}') + unit


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
