"""The table and the curve of a few-shot study say what the runs found, gain and harm alike."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pictures import check_readable, drawn_texts
from PIL import Image

from synthaug_plugins.errors import DataError, MissingExtra
from synthaug_plugins.evaluation.fewshot.curve import draw_curve
from synthaug_plugins.evaluation.fewshot.table import Result, against, table_text, write_tables
from synthaug_plugins.evaluation.picture import STYLES, spaced
from synthaug_plugins.evaluation.statistics import class_gains, gain_and_harm

CLASSES = ('Annual Crop', 'River, "wide"')


def run(method: str, shots: int, seed: int, *recalls: float, **chosen: float) -> Result:
    return Result(method, shots, seed, statistics.fmean(recalls), recalls, chosen, 50.0)


RESULTS = [
    run('zero_shot', 0, 0, 40, 60),
    *(run('tuned_real', 16, seed, 60 + seed, 60 - seed) for seed in (1, 2)),
    *(run('tuned_mix', 16, seed, 70 + seed, 54 - seed, lr=1 / 3) for seed in (1, 2)),
    run('tuned_mix', 1, 1, 50, 50, lr=0.1),
]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_tables(tmp_path, RESULTS, CLASSES, real='tuned_real')
    return tmp_path


def test_results_are_written_bit_by_bit(written: Path) -> None:
    found = []
    for row in rows(written / 'results.csv'):
        recalls = tuple(float(row[f'recall {name}']) for name in CLASSES)
        numbers = int(row['shots']), int(row['seed']), float(row['top1']), recalls, json.loads(row['chosen']), float(row['val_top1'])
        found.append(Result(row['method'], *numbers))
    assert found == RESULTS


def test_the_summary_is_mean_and_sample_deviation_over_seeds(tmp_path: Path) -> None:
    points = (61.0, 64.0, 70.0)
    write_tables(tmp_path, [run('tip_adapter', 4, seed, p, p) for seed, p in enumerate(points)], CLASSES)
    (row,) = rows(tmp_path / 'summary.csv')
    assert (row['method'], row['shots'], row['seeds']) == ('tip_adapter', '4', '3')
    assert float(row['top1_mean']) == 65 and float(row['top1_sd']) == pytest.approx(statistics.stdev(points), abs=1e-4)


def test_the_summary_has_one_line_per_method_and_shots_and_leaves_unknown_cells_empty(written: Path) -> None:
    summary = rows(written / 'summary.csv')
    assert [(row['method'], row['shots']) for row in summary] == [('zero_shot', '0'), ('tuned_real', '16'), ('tuned_mix', '1'), ('tuned_mix', '16')]
    assert summary[0]['top1_sd'] == summary[2]['top1_sd'] == ''  # one run each
    assert summary[0]['difference_zero_shot'] == summary[1]['difference_tuned_real'] == ''  # nothing is compared with itself
    assert summary[2]['difference_tuned_real'] == ''  # tuned_real did not run at 1 shot
    assert float(summary[3]['difference_tuned_real']) == 2 and float(summary[3]['difference_zero_shot']) == 12


def test_differences_are_paired_by_seed(written: Path) -> None:
    # Both arms move by 2 points from seed to seed; the difference does not.
    mix = rows(written / 'summary.csv')[3]
    assert float(mix['se_tuned_real']) == 0


def test_a_seed_that_the_base_lacks_is_not_compared() -> None:
    extra = [*RESULTS, run('tuned_mix', 16, 3, 100, 100)]
    found = against(extra, 'tuned_real')['tuned_mix', 16]
    assert found['top1']['n'] == 2 and found['top1']['mean'] == 2
    assert against(extra, 'zero_shot')['tuned_mix', 16]['top1']['n'] == 3


def test_gain_and_harm_of_the_classes_add_up_to_the_difference_of_mean_recall() -> None:
    mine, base = [[50.0, 70.0, 30.0, 10.0], [60.0, 72.0, 20.0, 10.0]], [[40.0, 75.0, 40.0, 10.0], [44.0, 75.0, 30.0, 10.0]]
    found = gain_and_harm(class_gains(mine, base))
    difference = statistics.fmean(statistics.fmean(m) - statistics.fmean(b) for m, b in zip(mine, base, strict=True))
    assert found['gain'] + found['harm'] == pytest.approx(difference)
    assert found == {'gain': 13 / 4, 'harm': -14 / 4, 'helped': 1, 'harmed': 2}


def test_per_class_differences_show_gain_and_harm_against_both_bases(written: Path) -> None:
    found = {(row['class'], row['method'], row['shots'], row['against']): float(row['difference']) for row in rows(written / 'per_class.csv')}
    assert found['Annual Crop', 'tuned_mix', '16', 'tuned_real'] == 10
    assert found['River, "wide"', 'tuned_mix', '16', 'tuned_real'] == -6
    assert found['Annual Crop', 'tuned_mix', '16', 'zero_shot'] == 31.5
    assert found['River, "wide"', 'tuned_mix', '16', 'zero_shot'] == -7.5
    assert len(found) == 2 * (3 + 1)
    mix = rows(written / 'summary.csv')[3]
    for base in ('zero_shot', 'tuned_real'):
        mean = statistics.fmean(found[name, 'tuned_mix', '16', base] for name in CLASSES)
        assert float(mix[f'gain_{base}']) + float(mix[f'harm_{base}']) == pytest.approx(mean)
        assert (mix[f'helped_{base}'], mix[f'harmed_{base}']) == ('1', '1')


def test_the_table_for_the_terminal_shows_harm_beside_gain() -> None:
    text = table_text(RESULTS, CLASSES, real='tuned_real')
    assert 'of 1 to 2 seeds' in text
    lines = [line.split() for line in text.splitlines()]
    assert ['zero_shot', '50.0'] in lines
    assert ['tuned_mix', '50.0', '62.0', '±', '0.0'] in lines
    assert ['tuned_mix', '+2.0', '+5.0', '−3.0', '1', '1', 'River,', '"wide"', '(−6.0)'] in lines
    table = text.splitlines()[1:5]
    assert len({len(line) for line in table if not line.startswith('zero_shot')}) == 1  # aligned


@pytest.mark.parametrize(
    ('results', 'message'),
    [
        ([], 'no results'),
        ([RESULTS[1], RESULTS[1]], 'given twice'),
        ([RESULTS[0], dataclasses.replace(RESULTS[0], seed=1)], 'given twice'),
        ([dataclasses.replace(RESULTS[0], shots=4)], 'wrong number of shots'),
        ([dataclasses.replace(RESULTS[0], shots=1)], 'wrong number of shots'),
        ([dataclasses.replace(RESULTS[1], shots=-1)], 'wrong number of shots'),
        ([run('tip_adapter', 1, 1, 50)], 'recalls of 1 classes'),
        ([run('tip_adapter', 1, 1, 50, float('nan'))], 'no percentages'),
        ([run('tip_adapter', 1, 1, 50, 101)], 'no percentages'),
    ],
)
def test_results_that_no_table_can_compare_are_refused(tmp_path: Path, results: list[Result], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_tables(tmp_path, results, CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_base_that_did_not_run_is_refused_with_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No result is of 'tuned_rael'.*'tuned_real'"):
        write_tables(tmp_path, RESULTS, CLASSES, real='tuned_rael')
    assert not list(tmp_path.iterdir())


# The curve


def many(methods: int) -> list[Result]:
    levels = {1: 40, 2: 50, 4: 60, 8: 68, 16: 75}
    return [RESULTS[0], *(run(f'method_{m}', k, seed, v + m, v - seed) for m in range(methods) for k, v in levels.items() for seed in (1, 2, 3))]


@pytest.mark.parametrize('methods', [1, len(STYLES)])
def test_the_curve_is_a_whole_picture(tmp_path: Path, methods: int) -> None:
    pytest.importorskip('matplotlib')
    draw_curve(tmp_path / 'a' / 'curve.png', many(methods), 'EuroSAT', 'CLIP RN50', 'What the methods had seen.')
    with Image.open(tmp_path / 'a' / 'curve.png') as picture:
        assert picture.format == 'PNG' and picture.size == (1350, 810)
        colours = {pixel for _, pixel in picture.convert('RGB').getcolors(1 << 24) or []}
    for style in STYLES[:methods]:
        assert tuple(bytes.fromhex(style[0][1:])) in colours


def test_every_name_stands_within_the_picture_beside_the_others(tmp_path: Path) -> None:
    with drawn_texts() as drawn:
        note = 'All methods saw the same shots, and the same four validation images per class. ' * 3
        draw_curve(tmp_path / 'curve.png', many(len(STYLES)), 'EuroSAT', 'CLIP RN50', note, names={'method_3': 'Tip-Adapter-F, keys tuned'})
    words = [name for name, _ in drawn]
    assert {'1', '2', '4', '8', '16', 'real shots per class', 'zero_shot  50.0'} <= set(words)
    assert 'EuroSAT, CLIP RN50 (3 seeds, bars: one standard deviation)' in words
    assert any(name.startswith('Tip-Adapter-F, keys tuned  ') for name in words) and not any('method_3' in name for name in words)
    check_readable(drawn, 1350, 810)


def test_the_curve_leaves_the_backend_of_others_alone() -> None:
    pytest.importorskip('matplotlib')
    script = (
        'import sys, matplotlib; matplotlib.use("svg"); from test_fewshot_table import *; import tempfile;'
        'draw_curve(Path(tempfile.mkdtemp()) / "c.png", many(2), "a", "b");'
        'assert matplotlib.get_backend() == "svg" and "matplotlib.pyplot" not in sys.modules; assert "torch" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', script], check=True, cwd=Path(__file__).parent, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})


def test_without_matplotlib_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, '__import__', missing)
    with pytest.raises(MissingExtra, match=r'synthaug-plugins\[report\]'):
        draw_curve(tmp_path / 'curve.png', many(1), 'a', 'b')


def test_a_curve_of_nothing_or_of_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='No result has shots'):
        draw_curve(tmp_path / 'curve.png', RESULTS[:1], 'a', 'b')
    with pytest.raises(DataError, match='11 methods'):
        draw_curve(tmp_path / 'curve.png', many(11), 'a', 'b')
    assert not list(tmp_path.iterdir())


def test_names_that_would_overlap_move_apart_as_little_as_possible() -> None:
    assert spaced([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spaced([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spaced([0.97, 0.98, 0.99], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert spaced([0.2, 0.5, 0.5, 0.52], 0.1) == pytest.approx([0.2, 0.4067, 0.5067, 0.6067], abs=1e-3)
