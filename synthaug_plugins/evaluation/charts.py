"""Small charts as inline SVG. Colours are CSS variables of the report, so they follow light and dark; every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from synthaug_plugins.evaluation.panels import Panel
from synthaug_plugins.evaluation.statistics import signed

COLOURS = 6
"""The template defines --arm-0 (the baseline) to --arm-5; later arms start again at 1."""


def colour(arm: int) -> str:
    """The CSS colour of an arm."""
    return f'var(--arm-{arm if arm == 0 else 1 + (arm - 1) % (COLOURS - 1)})'


def value_range(points: Sequence[float]) -> tuple[float, float]:
    """Whole numbers around the points, at least 4 apart, so that a tiny spread does not look like a large one."""
    lo, hi = min(points), max(points)
    middle, half = (lo + hi) / 2, max((hi - lo) * 0.58, 2.0)
    return math.floor(middle - half), math.ceil(middle + half)


def dots(points: Sequence[float], span: tuple[float, float], mark: str, line: float | None = None, seeds: Sequence[int] = ()) -> Markup:
    """One row of a dot plot: every point, the mean as a bar, a dashed line at the baseline's mean.

    Args:
        points: one per seed, percent.
        span: left and right end of the scale, shared by the rows of a table.
        mark: CSS colour.
        line: where the baseline stands.
        seeds: for the tooltips.
    """
    width, height, pad = 200, 22, 6

    def x(value: float) -> str:
        return f'{pad + (width - 2 * pad) * (value - span[0]) / (span[1] - span[0]):.1f}'

    parts = [f'<line x1="{pad}" x2="{width - pad}" y1="11" y2="11" class="rail"/>']
    if line is not None:
        parts.append(f'<line x1="{x(line)}" x2="{x(line)}" y1="1" y2="21" class="reference"/>')
    mean = sum(points) / len(points)
    parts.append(f'<line x1="{x(mean)}" x2="{x(mean)}" y1="4" y2="18" stroke="{mark}" stroke-width="2.5"/>')
    for i, point in enumerate(points):
        label = f'seed {seeds[i]}: {point:.1f} %' if seeds else f'{point:.1f} %'
        parts.append(f'<circle cx="{x(point)}" cy="11" r="4" fill="{mark}" fill-opacity=".55"><title>{escape(label)}</title></circle>')
    text = ', '.join(f'{p:.1f}' for p in points)
    return _svg(width, height, parts, f'{text} percent', 'dots')


def scale(span: tuple[float, float]) -> Markup:
    """The ends of a dot plot's scale, for the head of its column."""
    parts = [f'<text x="6" y="11">{span[0]:g}</text>', f'<text x="194" y="11" text-anchor="end">{span[1]:g} %</text>']
    return _svg(200, 14, parts, f'scale from {span[0]:g} to {span[1]:g} percent', 'dots')


def class_bars(classes: Sequence[str], gains: Sequence[Mapping[str, Any]], before: Sequence[float], limit: int = 24) -> Markup:
    """Gain and harm per class: a bar to the right (helped) or left (harmed) with its sign, and every seed as a tick.

    Args:
        classes: names.
        gains: per class, `mean` and `points` of the difference to the baseline in points.
        before: the baseline's mean recall per class, percent.
        limit: with more classes, only the largest gains and harms are drawn, half each; the text says so.
    """
    order = list(range(len(classes)))
    note = ''
    if len(order) > limit:
        ranked = sorted(order, key=lambda i: -gains[i]['mean'])
        order = ranked[: limit // 2] + ranked[-(limit // 2) :]
        note = f'<p class="hint">The {limit // 2} largest gains and the {limit // 2} largest harms of {len(classes)} classes; results.json holds all.</p>'
    extent = max([5.0, *(abs(p) for g in gains for p in g['points'])])
    rows = []
    for i in order:
        mean, points = gains[i]['mean'], gains[i]['points']
        kind = 'same' if signed(mean).startswith('±') else 'gain' if mean > 0 else 'harm'
        width = abs(96 * mean / extent)
        left = 100 - width if mean < 0 else 100.0
        ticks = ''.join(f'<line x1="{100 + 96 * p / extent:.1f}" x2="{100 + 96 * p / extent:.1f}" y1="2" y2="12" class="tick"/>' for p in points)
        bar = (
            '<svg viewBox="0 0 200 14" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect x="{left:.1f}" y="3" width="{width:.1f}" height="8" class="{kind}"/>'
            f'{ticks}<line x1="100" x2="100" y1="0" y2="14" class="zero"/></svg>'
        )
        each = ', '.join(signed(p) for p in points)
        rows.append(
            f'<div class="row" title="{escape(each)}"><span class="name">{escape(classes[i])}</span>{bar}'
            f'<span class="value {kind}">{signed(mean)}</span><span class="hint">{before[i]:.0f} → {before[i] + mean:.0f}</span></div>'
        )
    return Markup(f'<div class="bars">{"".join(rows)}</div>{note}')


def curves(arms: Sequence[Mapping[str, Any]]) -> Markup:
    """Validation accuracy over optimiser iterations: a thin line per seed, a thick one for the mean of each arm.

    Args:
        arms: each with `curves`, per seed [[iteration, percent], ...].
    """
    width, height, left, right, top, bottom = 460, 240, 34, 8, 8, 26
    every = [point for arm in arms for curve in arm['curves'] for point in curve]
    last = max(step for step, _ in every)
    lo = 10 * math.floor(min(value for _, value in every) / 10)
    hi = min(100, 10 * math.ceil(max(value for _, value in every) / 10))
    hi = hi if hi > lo else lo + 10

    def path(points: Sequence[Sequence[float]]) -> str:
        return ' '.join(f'{left + (width - left - right) * s / last:.1f},{top + (height - top - bottom) * (hi - v) / (hi - lo):.1f}' for s, v in points)

    parts = []
    stride = 10 if hi - lo <= 60 else 20
    for value in range(lo, hi + 1, stride):
        y = top + (height - top - bottom) * (hi - value) / (hi - lo)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" class="rail"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for share in (0, 0.5, 1):
        anchor = ('start', 'middle', 'end')[round(2 * share)]
        parts.append(f'<text x="{left + (width - left - right) * share:.1f}" y="{height - 8}" text-anchor="{anchor}">{last * share:g}</text>')
    for i, arm in enumerate(arms):
        parts += [f'<polyline points="{path(curve)}" fill="none" stroke="{colour(i)}" stroke-opacity=".3"/>' for curve in arm['curves']]
        steps = [[s for s, _ in curve] for curve in arm['curves']]
        if all(s == steps[0] for s in steps):
            mean = [(s, sum(curve[k][1] for curve in arm['curves']) / len(steps)) for k, s in enumerate(steps[0])]
            parts.append(f'<polyline points="{path(mean)}" fill="none" stroke="{colour(i)}" stroke-width="2.2"/>')
    return _svg(width, height, parts, 'validation accuracy over training', 'curves')


_MARKS = (
    '<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
    '<path d="M{x:.1f},{y:.1f}m-3.6,-3.6h7.2v7.2h-7.2z"',
    '<path d="M{x:.1f},{y:.1f}m0,-4.8l4.6,8h-9.2z"',
    '<path d="M{x:.1f},{y:.1f}m0,-5l5,5l-5,5l-5,-5z"',
    '<path d="M{x:.1f},{y:.1f}m0,4.8l4.6,-8h-9.2z"',
)


def _style(shown: Panel, line: int) -> int:
    """Which style a line has among those with points, or among the levels that stand alone."""
    one = shown.lines[line]
    return sum(bool(other.points) == bool(one.points) for other in shown.lines[:line]) if one.style is None else one.style


def _line_colour(shown: Panel, line: int) -> str:
    """The CSS colour of a panel's line. Where the baseline is dashed, or levels stand alone, none with points has the baseline's."""
    style = _style(shown, line)
    if not shown.lines[line].points:
        return colour(0 if style == 0 else COLOURS - style)
    kept = shown.dashed or shown.lines[line].style is not None or not all(other.points for other in shown.lines)
    return colour(style + bool(kept))


def _mark(shown: Panel, line: int, x: float, y: float, tip: str = '') -> str:
    """A point of a panel's line: each line has a shape of its own, for who cannot tell its colour; those of the second five are hollow."""
    style = _style(shown, line)
    shape, stroke = _MARKS[style % len(_MARKS)].format(x=x, y=y), _line_colour(shown, line)
    fill = stroke if style < len(_MARKS) else 'var(--card)'
    return f'{shape} fill="{fill}" stroke="{stroke}" stroke-width="1.5">{tip}</{shape[1:].partition(" ")[0]}>'


def _dashes(shown: Panel, line: int) -> str:
    """Of a level: of those that stand alone, the first has longer ones than the next."""
    return '2 3' if shown.lines[line].points else ('5 3', '2 3', '8 2 2 2')[_style(shown, line) % 3]


def key(shown: Panel, line: int) -> Markup:
    """What a panel's legend shows beside the name of a line: its mark, or dashes for a level alone."""
    if not shown.lines[line].points:
        dashes = f'<line x1="0" x2="12" y1="6" y2="6" stroke="{_line_colour(shown, line)}" stroke-width="2" stroke-dasharray="{_dashes(shown, line)}"/>'
        return Markup(f'<svg class="key" viewBox="0 0 12 12" aria-hidden="true">{dashes}</svg>')
    return Markup(f'<svg class="key" viewBox="0 0 12 12" aria-hidden="true">{_mark(shown, line, 6, 6)}</svg>')


def panel(shown: Panel) -> Markup:
    """Lines through means with bars, and dashed levels."""
    heights = shown.heights
    texts_left = [f'{value:g}' for value in heights]
    width, height, left, right, top, bottom = 460, 260, max(34, 10 + 6.4 * max(map(len, texts_left))), 10, 8, 42
    (first, last), (lo, hi) = shown.extent, (heights[0], heights[-1])

    def x(place: float) -> float:
        return left + (width - left - right) * (place - first) / (last - first)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (hi - value) / (hi - lo)

    parts = []
    for value, text in zip(heights, texts_left, strict=True):
        parts.append(f'<line x1="{left:g}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="rail"/>')
        parts.append(f'<text x="{left - 6:g}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    parts += [f'<text x="{x(place):.1f}" y="{height - bottom + 17}" text-anchor="middle">{escape(text)}</text>' for place, text in shown.written]
    parts.append(f'<text x="{(left + width - right) / 2:.1f}" y="{height - 6}" text-anchor="middle">{escape(shown.axis)}</text>')
    texts, pointed = dict(shown.ticks), [line for line in shown.lines if line.points]
    for i, line in enumerate(shown.lines):
        stroke = f'stroke="{_line_colour(shown, i)}"'
        if line.level is not None:
            level = y(line.level['mean'])
            said = f'{shown.dashed}, {line.name}' if line.points else line.name
            tip = f'<title>{escape(said)}: {escape(shown.said(line.level))}</title>'
            look = f'{stroke} stroke-dasharray="{_dashes(shown, i)}"' + ('' if line.points else ' stroke-width="1.5"')
            parts.append(f'<line x1="{left:g}" x2="{width - right}" y1="{level:.1f}" y2="{level:.1f}" {look}>{tip}</line>')
        if not line.points:
            continue
        shift = 4 * (pointed.index(line) - (len(pointed) - 1) / 2)
        dashes = ' stroke-dasharray="7 3"' if _style(shown, i) >= len(_MARKS) else ''
        if shown.joined:
            path = ' '.join(f'{x(place) + shift:.1f},{y(found["mean"]):.1f}' for place, found in line.points)
            parts.append(f'<polyline points="{path}" fill="none" {stroke} stroke-width="2"{dashes}/>')
        for place, found in line.points:
            at, sd = x(place) + shift, found['sd'] or 0
            tip = f'<title>{escape(shown.axis)} {escape(texts[place])}, {escape(line.name)}: {escape(shown.said(found))}</title>'
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(found["mean"] - sd):.1f}" y2="{y(found["mean"] + sd):.1f}" {stroke} stroke-opacity=".6"/>')
            parts.append(_mark(shown, i, at, y(found['mean']), tip))
    return _svg(width, height, parts, f'{shown.measure} over {shown.axis}', 'curves')


def funnel(kept: int, rejected: int, selected: int) -> Markup:
    """How many images were made, kept and selected, as one bar."""
    total = max(1, kept + rejected)
    parts = [
        '<rect x="0" y="2" width="200" height="10" class="made"/>',
        f'<rect x="0" y="2" width="{200 * kept / total:.1f}" height="10" class="kept"/>',
        f'<rect x="0" y="2" width="{200 * selected / total:.1f}" height="10" class="selected"/>',
    ]
    return _svg(200, 14, parts, f'{total} made, {kept} kept, {selected} selected', 'dots')


def _svg(width: int, height: int, parts: Sequence[str], label: str, kind: str) -> Markup:
    return Markup(f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>')
