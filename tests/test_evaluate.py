"""`synthaug evaluate`: from stores and a folder of real images to a table, files, curves and a page."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import check_readable, drawn_texts
from PIL import Image
from test_evaluation_report import Elements

from conftest import Say, digits
from synthaug_plugins.errors import MissingExtra
from synthaug_plugins.evaluation import charts
from synthaug_plugins.evaluation.metrics.measure import Measures, Value
from synthaug_plugins.evaluation.metrics.table import HELD_OUT, REAL, Row, panels, trends
from synthaug_plugins.evaluation.panels import Line, Panel
from synthaug_plugins.evaluation.picture import draw_panels
from synthaug_plugins.handover.figures import read_figures
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id
from synthaug_plugins.store.shard import Row as Record
from synthaug_plugins.store.store import Store

NAMES = ('zero', 'one', 'two')
CLIP = 'embedded:digits_clip'
LEVELS = (0, 4, 9)


def pixels(i: int, spoil: float = 0.0) -> np.ndarray:
    """A digit, with some noise on it."""
    noise = np.random.default_rng(i).normal(size=(8, 8)) * 80 * spoil
    return np.clip(digits().images[i] * 15.9 + noise, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)


def of_class(label: int) -> list[int]:
    return [int(i) for i in np.flatnonzero(digits().target == label)]


def make_store(folder: Path, levels: tuple[int | None, ...], per_level: int = 12, names: tuple[str, ...] = NAMES, turned: int = 0) -> Path:
    """Digits that are the more spoilt the higher their level; `turned`: they are those of the class so many places further."""
    blocks = make_blocks(names, per_level * len(levels), {}, 16)
    store = Store.create(folder, Plan(names, blocks, {'a': 1}), {'recipe': {}, 'model': {'name': 'none'}})
    for block in blocks:
        rows = []
        for part in block.parts:
            for i in range(part.target):
                number = part.first + i
                level = levels[number % len(levels)]
                buffer = io.BytesIO()
                Image.fromarray(pixels(of_class(NAMES.index(names[(part.label + turned) % len(names)]))[-1 - number], (level or 0) / 9)).save(buffer, 'PNG')
                params = {} if level is None else {'minority_level': level}
                rows.append(Record(Request(request_id(part, i), part.label, part.class_name, i, None, None, params), 'kept', None, 'png', buffer.getvalue()))
        store.publish(block, rows, False)
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of real and of held-out digits, and two stores: one of levels, one without."""
    root = tmp_path_factory.mktemp('evaluate')
    for part, chosen in (('real', slice(0, 60)), ('held', slice(60, 100))):
        for label, name in enumerate(NAMES):
            (root / part / name).mkdir(parents=True)
            for i in of_class(label)[chosen]:
                Image.fromarray(pixels(i)).save(root / part / name / f'{i}.png')
    make_store(root / 'guided', LEVELS)
    make_store(root / 'plain', (None,), 12)
    return root


def test_from_stores_to_a_table_and_a_page(data: Path, tmp_path: Path, synthaug: Say) -> None:
    out = tmp_path / 'out'
    options = ('--real', data / 'real', '--held-out', data / 'held', '--features', CLIP, '--by', 'params.minority_level', '--out', out)
    said = synthaug('evaluate', data / 'plain', data / 'guided', *options)
    assert said.status == 0, said.err
    assert {p.name for p in out.iterdir()} == {'.lock', 'metrics.csv', 'metrics.json', 'report.html', 'curves.png'}
    rows = list(csv.DictReader((out / 'metrics.csv').open()))
    assert [(r['set'], r['value'], r['images']) for r in rows] == [
        (REAL, '', '180'),
        (HELD_OUT, '', '120'),
        ('plain', '', '36'),
        ('guided', '', '108'),
        *(('guided', str(level), '36') for level in LEVELS),
    ]
    assert {(r['features'], r['k'], r['lof_k'], r['real_images']) for r in rows} == {(CLIP, '5', '20', '180')}
    guided = rows[-3:]
    for name in ('avg_knn', 'lof', 'excluded', 'fid'):
        assert float(guided[0][name]) < float(guided[1][name]) < float(guided[2][name]), name
    for name in ('agreement', 'zero_shot', 'precision', 'coverage'):
        assert float(guided[0][name]) > float(guided[2][name]), name
    assert rows[0]['fid'] == '' and 90 < float(rows[0]['agreement']) <= 100
    assert re.search(r'guided, minority level = 9 +36 ', said.out) and f'Features: {CLIP} (sha256 ' in said.out and 'k = 5, of LOF 20' in said.out
    assert re.search(r'AvgkNN of guided over minority level: rises at every value, 0\.\d+ to 0\.\d+\.', said.out)
    assert 'note: Fewer than 50 images' in said.err and 'note: FID compares covariances of 64 features' in said.err

    found = json.loads((out / 'metrics.json').read_text())
    assert [one.title for one in read_figures(out, Store.open(data / 'guided'))] == ['Measured: guided']  # a data card has it without its parts
    assert len(found['features']['identity']['sha256']) == 64 and found['versions']['torchmetrics']
    assert found['rows'][-1]['values']['avg_knn']['mean'] == pytest.approx(float(guided[2]['avg_knn']))

    html = (out / 'report.html').read_text()
    page = Elements(html)
    assert not page.tags & {'script', 'iframe', 'form'} and not re.search(r'url\(|@import|https?:', html)
    assert html.count('class="card"') == 15 and 'prefers-color-scheme: dark' in html
    assert html.count('<img ') == 12 * (3 + 1 + 3)  # real, rarest, held out; plain; a line for each level
    assert html.count('Over minority level') == 1 and 'AvgkNN over minority level' in html
    for note in found['notes']:
        assert note in html.replace('&gt;', '>')
    assert found['command'] in html.replace('&#39;', "'")

    again = synthaug(
        'evaluate', data / 'plain', '--real', data / 'real', '--features', CLIP, '--out', out
    )  # replaces the files, takes a picture of nothing away
    assert again.status == 0 and not (out / 'curves.png').exists()


def test_one_store_under_several_conditions(data: Path, synthaug: Say) -> None:
    long = 'params.minority_level < 9 and params.minority_level >= 0'
    where = ('--where', 'params.minority_level = 9', '--where', long)
    said = synthaug('evaluate', data / 'guided', data / 'guided', *where, '--by', 'class', '--real', data / 'real', '--features', 'pixels')
    assert said.status == 0, said.err
    assert 'guided: params.minority_level = 9, class = two' in said.out
    assert 'guided (2), class = one' in said.out and f'\nguided (2): {long}\n' in said.out
    assert 'CLIP' not in said.out  # pixels know no text


def refusals(data: Path, tmp_path: Path) -> list[tuple[tuple[Any, ...], str]]:
    """Command lines that must be refused, and what is said."""
    guided, real = data / 'guided', ('--real', data / 'real')
    few = tmp_path / 'few' / 'zero'
    few.mkdir(parents=True)
    for i in range(21):
        Image.fromarray(pixels(i)).save(few / f'{i}.png')
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.jpg').touch()
    pixels_ = ('--features', 'pixels')
    cas = ('--held-out', data / 'held', '--out', tmp_path / 'cas', '--cas', 'digits_resnet')
    return [
        ((guided, *real, *pixels_, '--by', 'params.minorty_level'), "no 'params.minorty_level' in the store.*Did you mean 'params.minority_level'"),
        ((guided, *real, *pixels_, '--by', "'a'"), 'takes one value in every store'),
        ((guided, *real, *pixels_, '--by', 'id'), 'takes 108 values'),
        ((guided, *real, *pixels_, '--by', 'class +'), 'not one SQL expression'),
        ((guided, *real, *pixels_, '--where', 'false'), 'selects no image'),
        ((guided, *real, *pixels_, '--where', 'true', '--where', 'true'), '2 conditions are given for 1 stores'),
        ((guided, guided, *real, *pixels_), 'are given twice'),
        ((guided, *real, '--features', 'dino'), "'dino' names no feature network.*timm:NAME"),
        ((guided, *real, '--features', 'timm:nothing'), 'none of the networks of timm'),
        ((guided, '--real', few.parent, *pixels_), "class 'one' of 'guided' has no real images"),
        ((guided, '--real', few.parent, *pixels_, '--lof-k', 21), 'k = 21 neighbours are asked for, but there are only 20 other real images'),
        ((guided, *real, *pixels_, '--k', 108), "only 107 other images in 'guided'"),
        ((guided, *real, *pixels_, '--held-out', data / 'real'), 'lies in .* and in '),
        ((guided, *real, *pixels_, '--out', tmp_path / 'photos'), "not a folder of measurements: it holds 'a.jpg'"),
        ((guided, *real, *pixels_, '--out', data / 'real' / 'out'), 'would become a class'),
        ((guided, *real, *pixels_, '--held-out', data / 'held', '--out', data / 'held' / 'out'), 'would become a class'),
        ((guided, *real, *pixels_, '--device', 'abacus'), '--device abacus'),
        ((data / 'real', *real, *pixels_), 'store'),
        ((guided, *real, *pixels_, '--probe'), 'The probe tests on real images.*--held-out'),
        ((guided, *real, *pixels_, '--clip', 'pixels'), "--clip 'pixels' is no CLIP"),
        ((guided, *real, *pixels_, '--templates', 'a {}'), "templates tells a CLIP the classes, and 'pixels' is none"),
        ((guided, *real, '--features', CLIP, '--templates', 'a digit'), "The template 'a digit' lacks the placeholder"),
        ((guided, *real, '--features', 'inception:none.pth'), "no weights of Inception at 'none.pth'"),
        ((guided, *real, '--features', 'inception'), "'inception' names no feature network: it lacks its weight file"),
        ((guided, *real, *pixels_, '--cfg-options', 'a=1'), '--cfg-options a=1 changes the recipe of --cas, and none is given'),
        ((guided, *real, *pixels_, '--cas', 'digits_resnet'), 'need a folder.*--out'),
        ((guided, *real, *pixels_, '--cas', 'digits_resnet', '--out', tmp_path / 'cas'), 'CAS tests on real images.*--held-out'),
        (
            (guided, *real, *pixels_, *cas),
            r"store 'guided' has the classes in another order .*: 'zero' where those have 'one'.*classes=\['one', 'two', 'zero'\]",
        ),
    ]


def test_bad_input_is_refused_with_a_cure(data: Path, tmp_path: Path, synthaug: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('synthaug_plugins.evaluation.metrics.sets.ImageSet.encode', lambda *a: pytest.fail('images were read'))
    for arguments, said in refusals(data, tmp_path):
        refused = synthaug('evaluate', *arguments)
        assert refused.status == 2 and re.search(said, refused.err), (arguments, refused.err)


def test_without_torchmetrics_it_says_what_to_install(data: Path, synthaug: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingExtra('torchmetrics', 'metrics', 'FID and KID')

    monkeypatch.setattr('synthaug_plugins.evaluation.evaluate.check_torchmetrics', missing)
    refused = synthaug('evaluate', data / 'plain', '--real', data / 'real', '--features', 'pixels')
    assert refused.status == 2 and "pip install 'synthaug-plugins[metrics]'" in refused.err


# --- curves


def row(name: str, n: int, value: float | None = None, **values: float) -> Row:
    measures = Measures('pixels', 5, 20, n, 100, {metric: Value(mean, 0.01) for metric, mean in values.items()})
    return Row(name, measures, None if value is None else 'params.w', value)


def test_a_metric_of_the_number_of_images_has_levels_of_sets_alike_in_it_only() -> None:
    rows = [
        row(REAL, 300, avg_knn=1.0),
        row('plain', 40, avg_knn=1.1, fid=3.0),
        row('large', 400, avg_knn=1.2, fid=1.0),
        row('guided', 80, avg_knn=1.5, fid=2.0),
        *(row('guided', 40, w, avg_knn=1.5 + w, fid=4.0 + w) for w in (2.0, 0.5)),
    ]
    knn, fid = panels(rows, 'params.w')
    assert [(line.name, line.level is not None) for line in knn.lines] == [('guided', False), (REAL, True), ('plain', True), ('large', True)]
    assert [line.name for line in fid.lines] == ['guided', 'plain']
    assert [(place, found['mean']) for place, found in knn.lines[0].points] == [(-1.0, 2.0), (1.0, 3.5)]  # in doublings
    # What both panels show looks alike in both, though one lacks the real images.
    assert charts.key(knn, 0) == charts.key(fid, 0) and charts.key(knn, 2) == charts.key(fid, 1) != charts.key(knn, 1)
    assert (knn.axis, knn.unit, knn.joined) == ('w', '', True)


def test_where_rarity_does_not_rise_is_said() -> None:
    rows = [row('guided', 40, w, avg_knn=knn, lof=knn) for w, knn in ((0, 1.0), (2, 1.5), (4, 1.25), (8, 1.25))]
    first, second = trends(rows, 'params.w')
    assert first == 'AvgkNN of guided over w: 1 to 1.25, not rising from 2 to 4 and from 4 to 8.' and second.startswith('LOF of guided')
    assert trends([row('guided', 40, w, avg_knn=w + 1) for w in (4, 0.5)], 'params.w') == ['AvgkNN of guided over w: rises at every value, 1.5 to 5.']
    (doubtful,) = trends([row('guided', 40, w, avg_knn=1 + w / 1000) for w in (0, 9)], 'params.w')  # the standard error of each is 0.01
    assert doubtful.endswith('1 to 1.009, less than two standard errors.')


def test_axes_of_any_size_have_round_numbers_around_all_values(tmp_path: Path) -> None:
    shown = []
    for least, most in ((-0.0002, 0.00036), (0.29, 0.4), (1.0, 1.0), (0.0, 0.0), (12.0, 31000.0)):
        points = [(0.0, {'mean': least, 'sd': None}), (1.0, {'mean': most, 'sd': None})]
        panel = Panel('t', 'a', [(0.0, '0'), (1.0, '1')], True, [Line('x', points), Line('real', level={'mean': most, 'sd': None})], measure='KID', unit='')
        heights = panel.heights
        assert heights[0] <= least <= most <= heights[-1] and 2 <= len(heights) <= 9
        assert all(len(f'{height:g}') <= 8 for height in heights)
        assert ' %' not in charts.panel(panel) and 'stroke-dasharray' in charts.key(panel, 1)
        shown.append(panel)
    with drawn_texts() as drawn:
        draw_panels(tmp_path / 'curves.png', shown, 'title', None)
    with Image.open(tmp_path / 'curves.png') as picture:
        check_readable(drawn, *picture.size)
    assert 'KID' in {text for text, _ in drawn}
