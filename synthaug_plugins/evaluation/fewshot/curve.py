"""Top-1 against shots as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import DataError
from synthaug_plugins.evaluation.fewshot.table import Result, cells
from synthaug_plugins.evaluation.panels import Line, Panel, places
from synthaug_plugins.evaluation.picture import draw_panels
from synthaug_plugins.evaluation.statistics import plus_minus, spread


def draw_curve(path: Path, results: Sequence[Result], data_set: str, model: str, footnote: str = '', names: Mapping[str, str] | None = None) -> None:
    """Write a PNG: for each method a line through its means over seeds, bars of one standard deviation; those without shots as dashed levels.

    Args:
        path: the file; an old one is replaced.
        results: with one or more runs of few-shot methods, ten methods at the most.
        data_set: for the title.
        model: for the title.
        footnote: one or two sentences under the picture: what the methods had seen.
        names: how to write methods; default: as they are called.

    Raises:
        MissingExtra: matplotlib is not installed.
        DataError: no result with shots, or more than ten methods.
        StoreError: disk full, no permission.
    """
    names = names or {}
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    levels = []
    for (method, shots), runs in cells(results).items():
        of_runs, name = spread([r.top1 for r in runs]), names.get(method, method)
        if shots > 0:
            found.setdefault(name, []).append((shots, of_runs))
        else:
            levels.append(Line(name, label=f'{name}  {plus_minus(of_runs)}', level=of_runs))
    if not found:
        raise DataError('No result has shots: there is no curve to draw.', 'Run a few-shot method.')
    all_shots = sorted({shots for line in found.values() for shots, _ in line})
    at = dict(zip(all_shots, places(all_shots)[0], strict=True))
    lines = [Line(name, [(at[k], s) for k, s in line], f'{name}  {plus_minus(line[-1][1])}') for name, line in found.items()]
    counts = sorted({s['n'] for line in found.values() for _, s in line})
    seeds = f'{counts[0]} seed{"" if counts[-1] == 1 else "s"}' if len(counts) == 1 else f'{counts[0]} to {counts[-1]} seeds'
    what = f'{seeds}, bars: one standard deviation' if counts[-1] > 1 else seeds
    panel = Panel('shots', 'real shots per class', [(at[k], str(k)) for k in all_shots], True, [*lines, *levels])
    draw_panels(path, [panel], f'{data_set}, {model} ({what})', 'top-1 accuracy on the test images (%)', footnote)
