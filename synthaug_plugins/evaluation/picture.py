"""Panels of curves as a PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import DataError, MissingExtra
from synthaug_plugins.evaluation.panels import Panel
from synthaug_plugins.store.files import write_whole

STYLES = (
    *(('#0072b2', 'o', '-'), ('#d55e00', 's', '-'), ('#009e73', '^', '-'), ('#cc79a7', 'D', '-'), ('#e69f00', 'v', '-')),
    *(('#56b4e9', 'p', '--'), ('#7f3c8d', 'X', '--'), ('#7a5230', '<', '--'), ('#8c8c8c', '>', '--'), ('#b5bd00', 'P', '--')),
)
"""Colour, marker and line of ten lines. Okabe and Ito's colours first; what colour may not tell apart, marker and dashes do."""

_INK, _GREY = '#1f2328', '#57606a'

_LEVELS: tuple[dict[str, Any], ...] = (
    {'color': _INK, 'linewidth': 1.2, 'linestyle': (0, (5, 4))},
    {'color': '#0072b2', 'linewidth': 1.2, 'linestyle': (0, (1, 2))},
    {'color': '#d55e00', 'linewidth': 1.2, 'linestyle': (0, (1, 2))},
)
"""Of levels that belong to no line."""

_LEFT, _BOTTOM, _HEAD, _FOOT = 0.675, 0.62, 0.486, 0.35
"""Inches: room for an axis's numbers and its name, for the picture's title, and for what stands below it."""
_DIGIT = 0.09
"""Inches: more room for each character beyond five of an axis's numbers."""
_ASIDE = 0.009
"""In widths of the axis, how far apart lines stand side by side at each value, so that their bars do not hide each other."""


def draw_panels(path: Path, panels: Sequence[Panel], title: str, measure: str | None, footnote: str = '') -> None:
    """Write a PNG: in each panel lines through means with bars, and dashed levels.

    Args:
        path: the file; an old one is replaced.
        panels: one, or several in two columns under their titles.
        title: over all.
        measure: what is drawn in every panel, with its unit; None: what each says itself.
        footnote: one or two sentences under the picture.

    Raises:
        MissingExtra: matplotlib is not installed.
        DataError: more lines in a panel than can be told apart.
        StoreError: disk full, no permission.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra('matplotlib', 'report', 'A picture of curves') from error
    for panel in panels:
        lines, levels = ([line for line in panel.lines if bool(line.points) is joined] for joined in (True, False))
        if len(lines) > len(STYLES) or len(levels) > len(_LEVELS):
            what = f'{len(lines)} methods with shots and {len(levels)} without are more than one picture can tell apart.'
            raise DataError(what, f'Draw {len(STYLES)} and {len(_LEVELS)} at the most.')
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width, plot, over = (9.0, 3.944, 0.0) if len(panels) == 1 else (6.9, 2.7, 0.45)
    left = _LEFT + _DIGIT * max(0, max(len(text) for panel in panels for text in _height_texts(panel)) - 5)
    size = columns * width, _HEAD + _FOOT + rows * (over + plot + _BOTTOM)
    with rc_context({'text.parse_math': False}):  # a name with two dollar signs is no formula
        figure = Figure(figsize=size, dpi=150)
        FigureCanvasAgg(figure)  # a canvas of its own: the backend that a notebook chose stays
        for i, panel in enumerate(panels):
            row, column = divmod(i, columns)
            bottom = _FOOT + (rows - 1 - row) * (over + plot + _BOTTOM) + _BOTTOM
            _draw(figure, panel, measure or f'{panel.measure} ({panel.unit})'.removesuffix(' ()'), (column * width, bottom, width, plot), left)
            if over:
                text = f'{panel.title} (dashed: {panel.dashed})' if panel.dashed else panel.title
                figure.text((column * width + left) / size[0], (bottom + plot + 0.12) / size[1], text, color=_INK, fontsize=10, weight='bold')
        figure.text(0.18 / size[0], 1 - 0.243 / size[1], title, color=_INK, fontsize=11, weight='bold')
        figure.text(0.18 / size[0], 0.108 / size[1], textwrap.fill(footnote, round(15.5 * size[0])), color=_GREY, fontsize=8, va='bottom')
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', metadata={'Software': None})
    write_whole(path, buffer.getvalue())


def _height_texts(panel: Panel) -> list[str]:
    """The numbers beside the upright axis, where they are not matplotlib's own."""
    return [''] if panel.unit == '%' else [f'{height:g}' for height in panel.heights]


def _draw(figure: Any, panel: Panel, measure: str, box: tuple[float, float, float, float], room: float) -> None:
    """One panel; `box`: left end and width of its column, bottom and height of its axes; `room`: for numbers and name of an axis; all in inches."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    left, bottom, width, plot = box
    across, high = figure.get_size_inches()
    place = ((left + room) / across, bottom / high, 0.6 * width / across, plot / high)
    axes = figure.add_axes(place)
    axes.set_xlim(*panel.extent)
    lines = [line for line in panel.lines if line.points]
    levels = [line for line in panel.lines if not line.points]
    aside = _ASIDE * (panel.extent[1] - panel.extent[0])
    ends: list[tuple[float, float, str, dict[str, Any]]] = []
    for i, line in enumerate(lines):
        colour, marker, dashes = STYLES[i if line.style is None else line.style]
        x = [place + aside * (i - (len(lines) - 1) / 2) for place, _ in line.points]
        means, deviations = [found['mean'] for _, found in line.points], [found['sd'] or 0 for _, found in line.points]
        look: dict[str, Any] = {
            'color': colour,
            'marker': marker,
            'markersize': 8 if marker in 'XPp' else 6,
            'markeredgecolor': 'white',
            'markeredgewidth': 0.6,
        }
        axes.errorbar(x, means, deviations, linestyle=dashes if panel.joined else '', linewidth=1.7, elinewidth=1.1, zorder=3 + i, **look)
        if line.level is not None:
            axes.axhline(line.level['mean'], zorder=2, **{**_LEVELS[0], 'color': colour})
        ends.append((x[-1], means[-1], line.label or line.name, look))
    for i, line in enumerate(levels):
        assert line.level is not None
        look = _LEVELS[i if line.style is None else line.style]
        axes.axhline(line.level['mean'], zorder=2, **look)
        ends.append((axes.get_xlim()[1], line.level['mean'], line.label or line.name, {'color': look['color'], 'marker': '_', 'markersize': 9}))
    axes.xaxis.set_major_locator(FixedLocator([place for place, _ in panel.written]))
    axes.xaxis.set_major_formatter(FixedFormatter([text for _, text in panel.written]))
    least, most = panel.range
    if panel.unit == '%':
        pad = max(1.0, 0.06 * (most - least))
        low, top = max(least - pad, -1), min(most + pad, 101)
    else:
        heights = panel.heights
        pad = 0.04 * (heights[-1] - heights[0])
        low, top = heights[0] - pad, heights[-1] + pad
        axes.yaxis.set_major_locator(FixedLocator(heights))
        axes.yaxis.set_major_formatter(FixedFormatter(_height_texts(panel)))
    axes.set_ylim(low, top)
    axes.set_xlabel(panel.axis)
    axes.set_ylabel(measure)
    axes.grid(axis='y', color='#d8dee4', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)

    # Names stand beside the ends of their lines, which no box then covers; where lines end close together, names move apart.
    ends.sort(key=lambda end: end[1])
    widest = 0.0
    for (x_end, y_end, label, look), height in zip(ends, spaced([(end[1] - low) / (top - low) for end in ends], 0.205 / plot), strict=True):
        pointer = {'arrowstyle': '-', 'color': look['color'], 'linewidth': 0.8, 'alpha': 0.6, 'shrinkA': 0, 'shrinkB': 4}
        axes.annotate('', (x_end, y_end), (1.035, height), textcoords='axes fraction', arrowprops=pointer, annotation_clip=False)
        axes.plot([1.05], [height], transform=axes.transAxes, clip_on=False, linestyle='', **look)
        text = axes.text(1.07, height, label, transform=axes.transAxes, color=_INK, fontsize=9, va='center')
        widest = max(widest, text.get_window_extent().width / figure.dpi)
    axes.set_position((place[0], place[1], max(0.35 * width, (0.98 * width - room - widest) / 1.07) / across, place[3]))


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
