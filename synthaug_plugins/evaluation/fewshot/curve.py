"""Top-1 against shots as a picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import DataError, MissingExtra
from synthaug_plugins.evaluation.fewshot.table import Result, cells
from synthaug_plugins.evaluation.statistics import plus_minus, spread
from synthaug_plugins.store.files import write_whole

STYLES = (
    *(('#0072b2', 'o', '-'), ('#d55e00', 's', '-'), ('#009e73', '^', '-'), ('#cc79a7', 'D', '-'), ('#e69f00', 'v', '-')),
    *(('#56b4e9', 'p', '--'), ('#7f3c8d', 'X', '--'), ('#7a5230', '<', '--'), ('#8c8c8c', '>', '--'), ('#b5bd00', 'P', '--')),
)
"""Colour, marker and line of ten methods. Okabe and Ito's colours first; what colour may not tell apart, marker and dashes do."""

_INK, _GREY = '#1f2328', '#57606a'

_LEVELS: tuple[dict[str, Any], ...] = (
    {'color': _INK, 'linewidth': 1.2, 'linestyle': (0, (5, 4))},
    {'color': '#0072b2', 'linewidth': 1.2, 'linestyle': (0, (1, 2))},
    {'color': '#d55e00', 'linewidth': 1.2, 'linestyle': (0, (1, 2))},
)
"""Of methods without shots: zero-shot, and heads that were tuned on synthetic images alone."""

_LEFT, _ASIDE = 0.075, 0.035
"""In widths of the picture, where the axes begin; and in doublings, how far apart methods stand side by side at each number of shots, so that
their bars do not hide each other."""


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
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
    except ImportError as error:
        raise MissingExtra('matplotlib', 'report', 'The curve of accuracy against shots') from error
    names = names or {}
    lines: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for (method, shots), runs in cells(results).items():
        if shots > 0:
            lines.setdefault(method, []).append((shots, spread([r.top1 for r in runs])))
    if not lines:
        raise DataError('No result has shots: there is no curve to draw.', 'Run a few-shot method.')
    without = {method for method, shots in cells(results) if shots == 0}
    if len(lines) > len(STYLES) or len(without) > len(_LEVELS):
        raise DataError(
            f'{len(lines)} methods with shots and {len(without)} without are more than one picture can tell apart.',
            f'Draw {len(STYLES)} and {len(_LEVELS)} at the most.',
        )

    figure = Figure(figsize=(9, 5.4), dpi=150)
    FigureCanvasAgg(figure)  # a canvas of its own: the backend that a notebook chose stays
    axes = figure.add_axes((_LEFT, 0.18, 0.6, 0.73))
    all_shots = sorted({shots for line in lines.values() for shots, _ in line})
    ends: list[tuple[float, float, str, dict[str, Any]]] = []
    for i, (method, line) in enumerate(lines.items()):
        colour, marker, dashes = STYLES[i]
        x = [shots * 2 ** (_ASIDE * (i - (len(lines) - 1) / 2)) for shots, _ in line]
        means, deviations = [found['mean'] for _, found in line], [found['sd'] or 0 for _, found in line]
        look: dict[str, Any] = {
            'color': colour,
            'marker': marker,
            'markersize': 8 if marker in 'XPp' else 6,
            'markeredgecolor': 'white',
            'markeredgewidth': 0.6,
        }
        axes.errorbar(x, means, deviations, linestyle=dashes, linewidth=1.7, elinewidth=1.1, zorder=3 + i, **look)
        ends.append((x[-1], means[-1], f'{names.get(method, method)}  {plus_minus(line[-1][1])}', look))
    axes.set_xscale('log', base=2)
    axes.set_xlim(all_shots[0] / 1.25, all_shots[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(all_shots))
    axes.xaxis.set_major_formatter(FixedFormatter([str(shots) for shots in all_shots]))
    axes.xaxis.set_minor_locator(NullLocator())
    levels = [(method, spread([r.top1 for r in runs])) for (method, shots), runs in cells(results).items() if shots == 0]
    for (method, found), look in zip(levels, _LEVELS, strict=False):
        axes.axhline(found['mean'], zorder=2, **look)
        ends.append(
            (axes.get_xlim()[1], found['mean'], f'{names.get(method, method)}  {plus_minus(found)}', {'color': look['color'], 'marker': '_', 'markersize': 9})
        )
    drawn = [found['mean'] + sign * (found['sd'] or 0) for line in lines.values() for _, found in line for sign in (-1, 1)]
    drawn += [found['mean'] for _, found in levels]
    pad = max(1.0, 0.06 * (max(drawn) - min(drawn)))
    low, high = max(min(drawn) - pad, -1), min(max(drawn) + pad, 101)
    axes.set_ylim(low, high)
    axes.set_xlabel('real shots per class')
    axes.set_ylabel('top-1 accuracy on the test images (%)')
    axes.grid(axis='y', color='#d8dee4', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)

    # Names stand beside the ends of their lines, which no box then covers; where lines end close together, names move apart.
    ends.sort(key=lambda end: end[1])
    widest = 0.0
    for (x_end, y_end, label, look), height in zip(ends, spaced([(end[1] - low) / (high - low) for end in ends], 0.052), strict=True):
        pointer = {'arrowstyle': '-', 'color': look['color'], 'linewidth': 0.8, 'alpha': 0.6, 'shrinkA': 0, 'shrinkB': 4}
        axes.annotate('', (x_end, y_end), (1.035, height), textcoords='axes fraction', arrowprops=pointer, annotation_clip=False)
        axes.plot([1.05], [height], transform=axes.transAxes, clip_on=False, linestyle='', **look)
        text = axes.text(1.07, height, label, transform=axes.transAxes, color=_INK, fontsize=9, va='center')
        widest = max(widest, text.get_window_extent().width / figure.bbox.width)
    axes.set_position((_LEFT, 0.18, max(0.35, (0.98 - _LEFT - widest) / 1.07), 0.73))
    counts = sorted({found['n'] for line in lines.values() for _, found in line})
    seeds = f'{counts[0]} seed{"" if counts[-1] == 1 else "s"}' if len(counts) == 1 else f'{counts[0]} to {counts[-1]} seeds'
    what = f'{seeds}, bars: one standard deviation' if counts[-1] > 1 else seeds
    figure.text(0.02, 0.955, f'{data_set}, {model} ({what})', color=_INK, fontsize=11, weight='bold')
    note = textwrap.fill(footnote, 140)
    figure.text(0.02, 0.02, note, color=_GREY, fontsize=8, va='bottom')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', metadata={'Software': None})
    write_whole(path, buffer.getvalue())


def spaced(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights in 0..1, moved as little as possible (in squares) so that neighbours are `gap` apart.

    >>> spaced([0.25, 0.25, 0.75], 0.5)
    [0.0, 0.5, 1.0]
    """
    # With y_i - i * gap for y_i the condition is that values do not fall: isotonic regression, by pooling neighbours that do.
    pools: list[list[float]] = []
    for i, height in enumerate(heights):
        pools.append([height - i * gap])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [_mean(pool) for pool in pools for _ in pool]
    room = 1 - gap * (len(heights) - 1)
    return [min(max(value, 0), room) + i * gap for i, value in enumerate(level)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
