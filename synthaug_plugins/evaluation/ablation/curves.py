"""The key `curves` of a compare recipe: accuracy over the number of shots, and over whatever else the arms vary. No tensors here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import MissingExtra, RecipeError, nearest
from synthaug_plugins.evaluation.ablation.table import Cell, table_cells
from synthaug_plugins.evaluation.csv_text import csv_bytes, rounded
from synthaug_plugins.evaluation.panels import Line, Panel, places
from synthaug_plugins.evaluation.picture import STYLES, draw_panels
from synthaug_plugins.evaluation.recipe_text import check_keys
from synthaug_plugins.evaluation.statistics import plus_minus, spread
from synthaug_plugins.store.files import write_whole

CURVES_CSV, PICTURE = 'curves.csv', 'curves.png'
CURVE_KEYS = {
    'axis': 'what is varied, in words and with its unit; default: the name of the curve',
    'arms': 'value -> name of the arm that has it. Numbers make an axis, texts stand side by side',
    'baseline': 'the arm that is drawn as a dashed line; default: the first of all arms',
}
SHOTS = 'shots'
"""The curve that every comparison with several numbers of shots has: of the arms that no other curve names, and the arm that others vary."""
PER_CLASS, OF_LARGEST = 'real shots per class', 'real images of the largest class'
"""The axis of that curve, without and with a long tail."""
_MEASURE = 'mean of per-class accuracies (%)'
_HEAD = ('curve', 'axis', 'value', 'shots', 'arm', 'seed', 'mean_recall', 'baseline', 'baseline_mean_recall')


@dataclass(frozen=True)
class Curve:
    """One quantity that some arms vary.

    Attributes:
        name: its heading.
        axis: the same in words.
        values: on the axis, ascending if they are numbers.
        arms: that have these values.
        baseline: an arm to compare with.
    """

    name: str
    axis: str
    values: tuple[float | str, ...]
    arms: tuple[str, ...]
    baseline: str


def read_curves(curves: Any, arms: Sequence[str], shots: Sequence[int]) -> tuple[Curve, ...]:
    """The entries of `curves`, checked, in order.

    Args:
        curves: the key of the compare recipe.
        arms: names of all arms.
        shots: numbers of real images per class: each is a line of every curve.

    Raises:
        RecipeError: an unknown key or arm, fewer than two values, numbers beside texts; more numbers of shots than lines can be told apart.
    """
    if curves and len(shots) > len(STYLES):
        raise RecipeError(f'curves have a line for each number of shots, and {len(shots)} cannot be told apart.', f'Use {len(STYLES)} at the most.')
    if not isinstance(curves, Mapping):
        raise RecipeError(f'curves = {curves!r} is not a dict.', "Write curves=dict(guidance=dict(axis='guidance scale', arms={1: 'name', 2: 'another'})).")
    found = []
    for name, entry in curves.items():
        where = f'curves.{name}'
        if name == SHOTS or not isinstance(entry, Mapping):
            what = 'is always drawn' if name == SHOTS else f'= {entry!r} is not a dict'
            raise RecipeError(f'{where} {what}.', 'Remove it.' if name == SHOTS else f'Its keys are {", ".join(CURVE_KEYS)}.')
        check_keys(entry, CURVE_KEYS, where)
        axis, of_values, baseline = entry.get('axis', name), entry.get('arms'), entry.get('baseline', arms[0])
        if not isinstance(of_values, Mapping) or len(of_values) < 2:
            raise RecipeError(f'{where}.arms = {of_values!r} has fewer than two values.', f'arms: {CURVE_KEYS["arms"]}.')
        for arm in (*of_values.values(), baseline):
            if arm not in arms:
                raise RecipeError(f'{where} names {arm!r}, which is none of the arms.', nearest(str(arm), arms))
        found.append(Curve(name, str(axis), *_ordered(of_values, where), baseline))
    return tuple(found)


def _ordered(of_values: Mapping[Any, str], where: str) -> tuple[tuple[float | str, ...], tuple[str, ...]]:
    texts = [isinstance(value, str) for value in of_values]
    numbers = [value for value in of_values if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)]
    if not (all(texts) or len(numbers) == len(of_values)):
        raise RecipeError(f'{where}.arms has the values {list(of_values)}, which no axis holds.', 'Use numbers, or texts, for all of them.')
    values = list(of_values) if all(texts) else sorted(of_values)
    return tuple(values), tuple(of_values[value] for value in values)


def panels(
    curves: Sequence[Curve], results: Sequence[Mapping[str, Any]], shots: Sequence[int], reference: str | None, axis_of_shots: str = PER_CLASS
) -> list[Panel]:
    """What is drawn: the shots, where there are several, then every curve with a line for each number of shots.

    Args:
        curves: of the recipe.
        results: of the comparison at each of `shots`.
        reference: the arm that others vary, or None.
        axis_of_shots: what a number of shots counts.
    """
    cells, arms = table_cells(results, shots), [arm['name'] for arm in results[0]['arms']]
    drawn = []
    if len(shots) > 1:
        at, _ = places(sorted(shots))
        found = {arm: [(place, _spread(cells[arm, k])) for place, k in zip(at, sorted(shots), strict=True)] for arm in _of_shots(curves, arms, reference)}
        lines = [Line(arm, points, f'{arm}  {plus_minus(points[-1][1])}') for arm, points in found.items()]
        drawn.append(Panel(SHOTS, axis_of_shots, [(place, str(k)) for place, k in zip(at, sorted(shots), strict=True)], True, lines))
    for curve in curves:
        at, joined = places(curve.values)
        lines = [
            Line(
                f'{k} shot{"" if k == 1 else "s"}',
                [(place, _spread(cells[arm, k])) for place, arm in zip(at, curve.arms, strict=True)],
                level=_spread(cells[curve.baseline, k]),
            )
            for k in shots
        ]
        ticks = [(place, value if isinstance(value, str) else f'{value:g}') for place, value in zip(at, curve.values, strict=True)]
        drawn.append(Panel(curve.name.replace('_', ' '), curve.axis, ticks, joined, lines, curve.baseline))
    return drawn


def _of_shots(curves: Sequence[Curve], arms: Sequence[str], reference: str | None) -> list[str]:
    """The arms of the curve of shots, as many as can be told apart."""
    elsewhere = {arm for curve in curves for arm in curve.arms} - {arms[0], reference}
    return [arm for arm in arms if arm not in elsewhere][: len(STYLES)]


def _spread(cell: Cell) -> dict[str, Any]:
    return spread(cell.points)


def write_curves(
    out: Path,
    curves: Sequence[Curve],
    results: Sequence[Mapping[str, Any]],
    shots: Sequence[int],
    reference: str | None,
    title: str,
    progress: Callable[[str], None],
    axis_of_shots: str = PER_CLASS,
) -> list[Panel]:
    """Write `curves.csv` (every point of every seed) and, where matplotlib is installed, `curves.png`; nothing where nothing is varied.

    Args:
        out: folder.
        curves, results, shots, reference, axis_of_shots: as for `panels`.
        title: of the picture.
        progress: is told if there is no picture.

    Returns: the panels, for the report.
    """
    drawn = panels(curves, results, shots, reference, axis_of_shots)
    if not drawn:
        return []
    cells, arms, seeds = table_cells(results, shots), [arm['name'] for arm in results[0]['arms']], results[0]['seeds']
    rows: list[Sequence[Any]] = [_HEAD]

    def add(name: str, axis: str, value: float | str, k: int, arm: str, baseline: str) -> None:
        """A row for each seed."""
        points = zip(seeds, cells[arm, k].points, cells[baseline, k].points, strict=True)
        rows.extend([name, axis, value, k, arm, seed, rounded(mine), baseline, rounded(base)] for seed, mine, base in points)

    if len(shots) > 1:
        for arm in _of_shots(curves, arms, reference):
            for k in shots:
                add(SHOTS, axis_of_shots, k, k, arm, arms[0])
    for curve in curves:
        for k in shots:
            for value, arm in zip(curve.values, curve.arms, strict=True):
                add(curve.name, curve.axis, value, k, arm, curve.baseline)
    write_whole(out / CURVES_CSV, csv_bytes(rows))
    try:
        draw_panels(out / PICTURE, drawn, title, _MEASURE, about_curves(len(seeds)))
    except MissingExtra as error:
        progress(f'{PICTURE} is not drawn, the report has the same curves. {error.what} {error.cure}')
    return drawn


def about_curves(seeds: int) -> str:
    """What the lines are, in a sentence."""
    spread_of = 'one seed' if seeds == 1 else f'means over {seeds} seeds, bars: one standard deviation'
    return f'Mean of per-class accuracies on the test images; {spread_of}. Dashed levels are of as many shots as the line of their colour.'
