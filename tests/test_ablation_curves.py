"""The curves of a comparison show what its table says: every point, every baseline, in the picture, the report and the file of points."""

from __future__ import annotations

import csv
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import check_readable, drawn_texts
from PIL import Image
from test_ablation import result_of

from synthaug_plugins.errors import MissingExtra, RecipeError
from synthaug_plugins.evaluation import charts
from synthaug_plugins.evaluation.ablation.curves import Curve, panels, read_curves, write_curves
from synthaug_plugins.evaluation.panels import Line, Panel, places
from synthaug_plugins.evaluation.picture import draw_panels
from synthaug_plugins.evaluation.statistics import spread

ARMS = ['real', 'base', 'less', 'more', 'other', 'alone']
CURVES = (
    Curve('strength', 'strength of it', (0.0, 0.1, 0.4), ('less', 'base', 'more'), 'real'),
    Curve('kind', 'kind of it', ('this', 'that'), ('base', 'other'), 'alone'),
)


def results(shots: int) -> dict[str, Any]:
    """Two classes, two seeds; every arm with values of its own."""
    return result_of(**{arm: [[10 * i + shots, 10 * i + 4 + shots], [10 * i + shots, 10 * i + 8 + shots]] for i, arm in enumerate(ARMS)})


def mean_of(arm: str, shots: int) -> float:
    return 10 * ARMS.index(arm) + 3 + shots


def test_every_value_is_drawn_with_its_baseline_at_each_number_of_shots() -> None:
    shots, strength, kind = panels(CURVES, [results(1), results(16)], [1, 16], 'base')
    # what no curve varies, and what the others vary, over the shots
    assert [line.name for line in shots.lines] == ['real', 'base', 'alone']
    assert [(place, found['mean']) for place, found in shots.lines[1].points] == [(0, mean_of('base', 1)), (4, mean_of('base', 16))]
    assert not shots.dashed and shots.ticks == [(0, '1'), (4, '16')]

    assert strength.ticks == [(0, '0'), (0.1, '0.1'), (0.4, '0.4')] and strength.joined
    assert [line.name for line in strength.lines] == ['1 shot', '16 shots']
    for line, k in zip(strength.lines, (1, 16), strict=True):
        assert [found['mean'] for _, found in line.points] == [mean_of(arm, k) for arm in ('less', 'base', 'more')]
        assert line.level is not None and line.level['mean'] == mean_of('real', k)
    assert strength.lines[0].points[0][1]['points'] == [mean_of('less', 1) - 3, mean_of('less', 1) + 3]  # per seed

    assert not kind.joined and kind.ticks == [(0, 'this'), (1, 'that')]
    assert kind.lines[0].level is not None and kind.lines[0].level['mean'] == mean_of('alone', 1)


def test_one_number_of_shots_is_no_curve_and_nothing_is_written_where_nothing_varies(tmp_path: Path) -> None:
    assert [panel.title for panel in panels(CURVES, [results(4)], [4], 'base')] == ['strength', 'kind']
    assert write_curves(tmp_path, (), [results(4)], [4], None, 'title', print) == []
    assert not list(tmp_path.iterdir())


def test_more_arms_than_can_be_told_apart_over_shots_leave_the_first_ten() -> None:
    many = [result_of(**{f'arm_{i}': [[i, i], [i, i]] for i in range(14)}) for _ in range(2)]
    (shots,) = panels((), many, [1, 2], 'arm_3')
    assert [line.name for line in shots.lines] == [f'arm_{i}' for i in range(10)]


def test_the_file_of_points_holds_every_seed(tmp_path: Path) -> None:
    write_curves(tmp_path, CURVES, [results(1), results(16)], [1, 16], 'base', 'title', print)
    rows = list(csv.DictReader((tmp_path / 'curves.csv').open()))
    assert len(rows) == 2 * (3 * 2 + 2 * 3 + 2 * 2)
    (row,) = (r for r in rows if (r['curve'], r['value'], r['shots'], r['seed']) == ('strength', '0.4', '16', '1'))
    assert (row['arm'], row['axis'], row['baseline']) == ('more', 'strength of it', 'real')
    assert (float(row['mean_recall']), float(row['baseline_mean_recall'])) == (mean_of('more', 16) + 3, mean_of('real', 16) + 3)


def test_numbers_are_put_in_order_and_the_baseline_is_the_first_arm() -> None:
    (curve,) = read_curves({'steps': {'arms': {100: 'more', 25: 'less', 50: 'base'}}}, ARMS, [1])
    assert curve == Curve('steps', 'steps', (25, 50, 100), ('less', 'base', 'more'), 'real')


def test_more_numbers_of_shots_than_lines_can_be_told_apart_are_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match='11 cannot be told apart'):
        read_curves({'steps': {'arms': {1: 'more', 2: 'less'}}}, ARMS, range(1, 12))


def test_numbers_that_grow_by_factors_stand_in_doublings() -> None:
    assert places([1, 2, 4, 8]) == ([0, 1, 2, 3], True)
    assert places([1, 2, 3]) == ([1, 2, 3], True)
    assert places([0, 10, 100]) == ([0, 10, 100], True)


# --- the picture


def many_panels() -> list[Panel]:
    rng = np.random.default_rng(0)

    def line(name: str, n: int, level: bool) -> Line:
        points = [(float(i), spread([float(v) for v in rng.uniform(70, 90, 3)])) for i in range(n)]
        return Line(name, points, level=spread([float(v) for v in rng.uniform(70, 90, 3)]) if level else None)

    over = Panel('shots', 'real shots per class', [(float(i), str(2**i)) for i in range(4)], True, [line(f'arm number {i}', 4, False) for i in range(8)])
    others = [
        Panel(f'panel {p}', f'axis {p}', [(float(i), f'value {i}') for i in range(4)], bool(p % 2), [line(f'{k} shots', 4, True) for k in (1, 2, 4, 8)], 'real')
        for p in range(4)
    ]
    return [over, *others]


def test_no_word_of_the_picture_is_cut_off_or_lies_on_another(tmp_path: Path) -> None:
    with drawn_texts() as drawn:
        draw_panels(tmp_path / 'curves.png', many_panels(), 'Many things, one title', 'accuracy (%)', 'What is seen here. ' * 12)
    with Image.open(tmp_path / 'curves.png') as picture:
        width, height = picture.size
    words = {word for word, _ in drawn}
    assert {'shots', 'panel 2 (dashed: real)', 'axis 3', 'value 2', '8 shots', 'arm number 7', 'Many things, one title'} <= words
    check_readable(drawn, width, height)


def test_names_with_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    name = r'$ \neverheardof $'
    panel = Panel(name, name, [(0.0, name), (1.0, name)], True, [Line(name, [(0.0, spread([60.0])), (1.0, spread([80.0]))], name, spread([70.0]))], name)
    draw_panels(tmp_path / 'curves.png', [panel, panel], name, 'accuracy (%)', name)
    assert (tmp_path / 'curves.png').stat().st_size > 0


def test_without_matplotlib_the_points_and_the_report_have_the_curves_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **options: Any) -> None:
        raise MissingExtra('matplotlib', 'report', 'A picture of curves')

    monkeypatch.setattr('synthaug_plugins.evaluation.ablation.curves.draw_panels', missing)
    said: list[str] = []
    drawn = write_curves(tmp_path, CURVES, [results(1), results(16)], [1, 16], 'base', 'title', said.append)
    assert len(drawn) == 3
    assert [p.name for p in tmp_path.iterdir()] == ['curves.csv']
    assert 'curves.png is not drawn' in said[0] and 'synthaug-plugins[report]' in said[0]


# --- the report


def test_the_chart_puts_points_and_dashed_levels_where_their_values_are() -> None:
    panel = Panel('p', 'axis', [(0.0, 'a'), (1.0, 'b')], True, [Line('k', [(0.0, spread([60.0])), (1.0, spread([80.0]))], level=spread([70.0]))], 'real')
    svg = str(charts.panel(panel))
    low, high = (float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', svg))
    (level,) = re.findall(r'y1="([\d.]+)" y2="[\d.]+" stroke="[^"]+" stroke-dasharray="2 3"><title>real, k: 70.0 %', svg)
    assert high < float(level) < low and float(level) == pytest.approx((low + high) / 2, abs=0.1)
    assert ('<polyline' in svg) and '<polyline' not in str(charts.panel(Panel('p', 'axis', panel.ticks, False, panel.lines, 'real')))


def test_long_texts_on_an_axis_are_not_cut_off() -> None:
    texts = ['quite a long name', 'short', 'another long name']
    at, joined = places(texts)
    svg = str(charts.panel(Panel('p', 'axis', list(zip(at, texts, strict=True)), joined, [Line('k', [(place, spread([60.0])) for place in at])])))
    width = float(re.findall(r'viewBox="0 0 (\d+)', svg)[0])
    for text in texts:
        (x,) = re.findall(rf'<text x="([\d.]+)"[^>]*>{text}<', svg)
        assert min(float(x), width - float(x)) > 3 * len(text), 'half of 6 pixels a letter'


@pytest.mark.parametrize('dashed', ['', 'real'])
def test_ten_lines_of_a_chart_look_different_to_who_sees_no_colours_and_as_their_legend_says(dashed: str) -> None:
    lines = [Line(str(i), [(0.0, spread([50.0 + i]))], level=spread([40.0]) if dashed else None) for i in range(10)]
    shown = Panel('p', 'axis', [(0.0, 'a')], False, lines, dashed)

    def looks(svg: str) -> list[tuple[str, bool]]:
        """Shape and whether it is filled, of every mark."""
        found = re.findall(r'<(?:circle|path d="M[-\d.]+,[-\d.]+(\w[^"]*)")[^>]*fill="([^"]+)" stroke="([^"]+)"', svg)
        return [(shape, fill == stroke) for shape, fill, stroke in found]

    drawn = looks(str(charts.panel(shown)))
    assert len(set(drawn)) == len(drawn) == 10
    assert [look for i in range(10) for look in looks(str(charts.key(shown, i)))] == drawn


def test_names_in_a_chart_stay_text() -> None:
    bad = '<script>"x'
    svg = str(charts.panel(Panel(bad, bad, [(0.0, bad)], True, [Line(bad, [(0.0, spread([50.0, 60.0]))], level=spread([40.0]))], bad)))
    assert bad not in svg and unescape(svg).count(bad) >= 5


def test_texts_below_an_axis_do_not_run_into_each_other() -> None:
    crowded = [(0.0, '0'), (0.8, '0.8'), (1.0, '1'), (1.1, '1.1'), (1.2, '1.2'), (5.0, '5')]
    assert [text for _, text in Panel('w', 'w', crowded, True, []).written] == ['0', '0.8', '5']
    assert Panel('w', 'w', [(0.0, 'a long name'), (1.0, 'another one')], False, []).written == [(0.0, 'a long name'), (1.0, 'another one')]
