"""What was measured, as a table, as files of numbers and as curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from synthaug_plugins.columns import aligned
from synthaug_plugins.evaluation.metrics.measure import METRICS, Measures, Value
from synthaug_plugins.evaluation.panels import Line, Panel, places

REAL, HELD_OUT = 'real, against the others', 'real, held out'
MOST_LEVELS = 3
"""Dashed levels in a panel: more cannot be told apart."""
BY_SIZE = frozenset({'recall', 'coverage', 'fid', 'vendi'})
"""Metrics of whole sets that depend on how many images there are."""
_WITH_ERROR = ('avg_knn', 'lof', 'rarity')


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the set: a store, or the real images.
        measures: what was found.
        by, value: which of its images: those where a column has a value; None for all.
        of_class: the class whose images alone stand on both sides; None for all classes.
    """

    name: str
    measures: Measures
    by: str | None = None
    value: float | str | None = None
    of_class: str | None = None

    @property
    def label(self) -> str:
        """At the head of the line."""
        if self.of_class is not None:
            return f'{self.name}: {self.of_class}'
        return self.name if self.by is None else f'{self.name}, {spoken(self.by)} = {value_text(self.value)}'


def spoken(by: str) -> str:
    """A column in words.

    >>> spoken('params.minority_level')
    'minority level'
    """
    return by.removeprefix('params.').replace('_', ' ')


def value_text(value: float | str | None) -> str:
    """A value of a column."""
    return value if isinstance(value, str) else f'{value:g}'


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The metrics that some row has, in the order of the table."""
    return [name for name in METRICS if any(name in row.measures.values for row in rows)]


def cell(name: str, value: Value | None) -> str:
    """A value as the table shows it; a dash for none."""
    if value is None:
        return '-'
    if METRICS[name].percent:
        return f'{value.mean:.1f}'
    error = f' ± {value.se:#.2g}' if name in _WITH_ERROR and value.se is not None else ''
    return f'{value.mean:#.4g}'.rstrip('.') + error


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text, its head first."""
    names = metrics_of(rows)
    head = ['', 'images', 'real images', 'features', *(METRICS[name].title + (' %' if METRICS[name].percent else '') for name in names)]
    lines = []
    for row in rows:
        decided = [str(row.measures.n), str(row.measures.n_real), row.measures.features]
        lines.append([row.label, *decided, *(cell(name, row.measures.values.get(name)) for name in names)])
    return [head, *lines]


def table_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    return aligned(table(rows))


def about(rows: Sequence[Row], network: Mapping[str, Any]) -> str:
    """What decides every number of the table, in a sentence.

    Args:
        network: identity of the feature network.
    """
    one = rows[0].measures
    content = f' (sha256 {str(network["sha256"])[:12]})' if 'sha256' in network else ''
    clip = f' Labels are asked of {one.clip}.' if one.clip else ''
    tested = next((row.measures.n_test for row in rows if row.measures.n_test), 0)
    held_out = f' Classifiers are tested on {tested} held-out images.' if tested else ''
    return f'Features: {one.features}{content}; k = {one.k}, of LOF {one.lof_k}; against {one.n_real} real images.{clip}{held_out}'


def csv_rows(rows: Sequence[Row]) -> list[list[Any]]:
    """Every number in full, with what decides it in each line; an empty cell is a number that does not exist."""
    names = metrics_of(rows)
    decides = ['set', 'by', 'value', 'class', 'images', 'real_images', 'test_images', 'features', 'clip', 'k', 'lof_k']
    head = [*decides, *(part for name in names for part in (name, f'{name}_se'))]
    found: list[list[Any]] = [head]
    for row in rows:
        m = row.measures
        numbers = [part for name in names for v in (m.values.get(name),) for part in ((None, None) if v is None else (v.mean, v.se))]
        sizes = [m.n, m.n_real, m.n_test or None]
        found.append([row.name, row.by, row.value, row.of_class, *sizes, m.features, m.clip, m.k, m.lof_k, *numbers])
    return found


def panels(rows: Sequence[Row], by: str) -> list[Panel]:
    """A panel for each metric over the values of one column.

    A line for each set that was split by it, with bars of one standard error; the sets that were not, and the real images, as dashed levels: held-out
    ones where there are any, else each against the others. A level of another number of images is left out where the metric depends on that number.
    """
    values = sorted({row.value for row in rows if row.by == by and row.value is not None})  # type: ignore[type-var]
    if not values:
        return []
    at, joined = places(values)
    place = dict(zip(values, at, strict=True))
    split = list(dict.fromkeys(row.name for row in rows if row.by == by))
    whole = {row.name: row for row in rows if row.by is None}
    real = HELD_OUT if HELD_OUT in whole else REAL
    levels = [name for name in whole if name == real or name not in (*split, REAL, HELD_OUT)]
    levels.sort(key=lambda name: name != real)
    drawn = []
    for metric in metrics_of([row for row in rows if row.by == by]):
        lines = []
        for style, name in enumerate(split):
            of_it = [row for row in rows if row.by == by and row.name == name and row.value is not None and metric in row.measures.values]
            points = [(place[row.value], _bar(row.measures.values[metric])) for row in of_it if row.value is not None]
            lines.append(Line(name, sorted(points, key=lambda point: point[0]), _short(name), style=style))
        lines = [line for line in lines if line.points]
        sizes = [row.measures.n for row in rows if row.by == by]
        alike = [name for name in levels[:MOST_LEVELS] if metric not in BY_SIZE or all(0.8 <= n / whole[name].measures.n <= 1.25 for n in sizes)]
        known = [(name, whole[name].measures.values.get(metric)) for name in alike]
        lines += [Line(name, (), _short(name), _bar(found), levels.index(name)) for name, found in known if found is not None]
        kind = METRICS[metric]
        title = f'{kind.title}, %' if kind.percent else kind.title
        ticks = [(x, value_text(value)) for x, value in zip(at, values, strict=True)]
        drawn.append(Panel(title, spoken(by), ticks, joined, lines, measure=kind.title, unit='%' if kind.percent else ''))
    return drawn


def trends(rows: Sequence[Row], by: str) -> list[str]:
    """Whether rarity grows with a column of numbers, and whether by more than chance, in a sentence for each set and metric."""
    said = []
    for name in dict.fromkeys(row.name for row in rows if row.by == by):
        of_it = [row for row in rows if row.by == by and row.name == name]
        if any(isinstance(row.value, str) for row in of_it):
            continue
        for metric in _WITH_ERROR:
            known = [(row.value, row.measures.values[metric]) for row in sorted(of_it, key=_number) if metric in row.measures.values]
            if len(known) < 2:
                continue
            falls = [f'from {value_text(a)} to {value_text(b)}' for (a, low), (b, high) in pairwise(known) if high.mean <= low.mean]
            first, last = known[0][1], known[-1][1]
            ends = f'{first.mean:.4g} to {last.mean:.4g}'
            kind = f'{ends}, not rising {" and ".join(falls)}' if falls else f'rises at every value, {ends}'
            if abs(last.mean - first.mean) < 2 * math.hypot(first.se or 0, last.se or 0):
                kind += ', less than two standard errors'
            said.append(f'{METRICS[metric].title} of {name} over {spoken(by)}: {kind}.')
    return said


def _number(row: Row) -> float:
    return float(row.value or 0)


def _bar(value: Value) -> dict[str, Any]:
    """As panels draw it: a mean, and half a bar's length."""
    return {'mean': value.mean, 'sd': value.se}


def _short(name: str) -> str:
    """A name beside the end of a line in a picture, which has little room."""
    return name if len(name) <= 32 else f'{name[:31]}…'
