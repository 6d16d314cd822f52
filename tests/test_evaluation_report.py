"""The report: one file that asks for nothing, runs no script and says what the results say."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pluggy
import pytest
from markupsafe import escape
from PIL import Image

from synthaug_plugins import hookspecs
from synthaug_plugins.errors import DataError, StoreError
from synthaug_plugins.evaluation.gallery import counts, data_uri, gallery
from synthaug_plugins.evaluation.onepage.report import Given, report
from synthaug_plugins.evaluation.panels import Line, Panel
from synthaug_plugins.evaluation.report import Overview, write_report
from synthaug_plugins.evaluation.statistics import class_gains, paired, spread
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store

HOSTILE = '<script>alert(1)'
CLASSES = [HOSTILE, 'a" onerror="alert(2)', 'plain']


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two sources per class, two strengths; every fifth image rejected."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for i in range(2):
            path = tmp_path / 'real' / name / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    real = RealImages(tmp_path / 'real')
    blocks = make_blocks(real.classes, 8, {c: real.ids(c) for c in real.classes}, 16)
    store = Store.create(tmp_path / 'store', Plan(real.classes, blocks, {'a': 1}), {'recipe': {'data': str(real.root)}, 'model': {'name': HOSTILE}})
    for block in blocks:
        rows = []
        for part, i in product(block.parts, range(10)):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, 'PNG')
            bad = i % 5 == 4
            request = Request(request_id(part, i), part.label, part.class_name, i, part.sources[i % 2], None, {'sigma': (0.3, 1.0)[i // 5]})
            rows.append(Row(request, 'rejected' if bad else 'kept', 'blank (contrast 1 below 2)' if bad else None, 'png', buffer.getvalue()))
        store.publish(block, rows, False)
    return store


def results_of(store: Store, seeds: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    classes = list(store.classes)
    recalls = [[[float(v) for v in rng.uniform(50, 100, len(classes))] for _ in range(seeds)] for _ in range(2)]
    tops = [[float(np.mean(r)) for r in arm] for arm in recalls]
    arms = []
    for i, name in enumerate(['real only', HOSTILE]):
        arms.append(
            {
                'name': name,
                'options': {'mix.select': 'params.sigma < 0.5', 'mix.alpha': 0.3} if i else {},
                'steps': 200,
                'images': 6400.0,
                'seconds': spread([2.0] * seeds),
                'images_per_second': spread([3200.0] * seeds),
                'val': spread(tops[i]),
                'test': spread(tops[i]),
                'difference': paired(tops[i], tops[0]) if i else None,
                'recall': [spread(list(r)) for r in zip(*recalls[i], strict=True)],
                'class_gains': class_gains(recalls[i], recalls[0]) if i else None,
                'curves': [[[s, 50 + s / 10] for s in (50, 100, 150, 200)] for _ in range(seeds)],
                'stores': [[{'store': str(store.folder), 'select': 'params.sigma < 0.5'}]] * seeds if i else [[]] * seeds,
                'runs': ['x'] * seeds,
            }
        )
    candidates = [{'options': {'mix.select': f'params.sigma < {s}', 'mix.alpha': 0.3}, 'val': spread([70.0 - 30 * s] * seeds)} for s in (0.5, 1.5)]
    return {
        'format_version': 1,
        'title': f'Title {HOSTILE}',
        'notes': [f'The generator had seen {HOSTILE}.'],
        'seeds': list(range(seeds)),
        'classes': classes,
        'support': [40] * len(classes),
        'arms': arms,
        'search': [{'arm': HOSTILE, 'candidates': candidates, 'chosen': 0}],
        'command': f"synthaug compare '{HOSTILE}'",
        'versions': {'torch': '2'},
    }


class Elements(HTMLParser):
    """Tags and attributes of a page, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs


def test_hostile_names_stay_text_and_nothing_is_requested(store: Store, tmp_path: Path) -> None:
    write_report([results_of(store)], tmp_path / 'r.html')
    html = (tmp_path / 'r.html').read_text()
    page = Elements(html)
    assert '&lt;script&gt;alert(1)' in html
    assert not page.tags & {'script', 'iframe', 'object', 'form', 'base'}
    assert not [name for name, _ in page.attributes if name.startswith('on')]
    links = [value or '' for name, value in page.attributes if name in ('src', 'href', 'srcset', 'action')]
    assert all(link.startswith('data:') for link in links)
    assert sum(link.startswith('data:image/png') for link in links) == 3 + 3 * 2 * 2  # a source per class, two variants at each of two strengths
    assert not re.search(r'url\(|@import|https?:', html)
    assert "default-src 'none'" in html


def test_a_hostile_store_stays_text_in_the_report_of_the_store_too(store: Store, tmp_path: Path) -> None:
    hostile = Store.create(tmp_path / HOSTILE.replace('/', '_'), Plan(store.classes, store.plan.blocks, {'generator': {'type': HOSTILE}}), {'command': HOSTILE})
    html = report(Given(hostile.folder, command=HOSTILE), tmp_path / 'empty.html').read_text()  # without an image, too
    html += report(Given(store.folder, worst=['-params.sigma'], where="class <> 'plain'", command=HOSTILE), tmp_path / 'r.html').read_text()
    page = Elements(html)
    assert html.count('&lt;script&gt;alert(1)') > 8 and 'blank' in html and '−6' in html
    assert not page.tags & {'script', 'iframe', 'object', 'form', 'base'} and not [name for name, _ in page.attributes if name.startswith('on')]
    assert all((value or '').startswith('data:') for name, value in page.attributes if name in ('src', 'href', 'srcset', 'action'))


def open_in_browser(page: Path, tmp_path: Path) -> tuple[str, list[str]]:
    """The page as headless Chromium built it, and what it wrote to the console (script errors, requests refused by the policy)."""
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('NO BROWSER: chromium is not installed, so the report was not opened')
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update']
    flags += ['--disable-sync', f'--user-data-dir={tmp_path / "profile"}', '--enable-logging=stderr', '--dump-dom']
    done = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def test_headless_browser_reports_no_error_and_no_request(store: Store, tmp_path: Path) -> None:
    points = [(0.0, spread([50.0, 60.0])), (1.0, spread([70.0, 80.0]))]
    panel = Panel(HOSTILE, HOSTILE, [(0.0, HOSTILE), (1.0, '2')], True, [Line(HOSTILE, points, level=spread([55.0]))], HOSTILE)
    write_report([results_of(store)], tmp_path / 'r.html', overview=Overview([['arm', '1 shot'], [HOSTILE, '50.0']], HOSTILE, [panel], HOSTILE))
    page, console = open_in_browser(tmp_path / 'r.html', tmp_path)
    assert 'Make it again' in page and page.count('<h2>Curves</h2>') == 1
    assert '<script' not in page
    assert console == []
    # the console would show both kinds of fault
    text = (tmp_path / 'r.html').read_text()
    for fault in ('<img src="http://127.0.0.1:9/x.png">', '<script>throw new Error("x")</script>'):
        (tmp_path / 'bad.html').write_text(text.replace('<footer>', f'{fault}<footer>'))
        assert open_in_browser(tmp_path / 'bad.html', tmp_path)[1]


def test_gain_and_harm_have_signs_and_colours(store: Store, tmp_path: Path) -> None:
    results = results_of(store)
    results['arms'][1]['class_gains'] = class_gains([[60.0, 50.0, 50.0]] * 3, [[50.0, 60.0, 50.0]] * 3)
    write_report([results], tmp_path / 'r.html')
    html = (tmp_path / 'r.html').read_text()
    assert 'class="value gain">+10.0' in html
    assert 'class="value harm">−10.0' in html
    assert 'class="value same">±0.0' in html


def test_unequal_numbers_of_images_are_said(store: Store, tmp_path: Path) -> None:
    results = results_of(store)
    write_report([results], tmp_path / 'r.html')
    assert 'saw unequal numbers of images' not in (tmp_path / 'r.html').read_text()
    results['arms'][1]['images'] = 12800.0
    write_report([results], tmp_path / 'r.html')
    assert 'saw unequal numbers of images' in (tmp_path / 'r.html').read_text()


def test_one_seed_and_no_store_still_make_a_report(store: Store, tmp_path: Path) -> None:
    results = results_of(store, seeds=1)
    results['arms'][1]['stores'] = [[]]
    results['search'] = []
    write_report([results], tmp_path / 'r.html')
    assert 'one seed only' in (tmp_path / 'r.html').read_text()


def test_plugins_add_sections(store: Store, tmp_path: Path) -> None:
    class Plugin:
        @hookspecs.hookimpl
        def synthaug_report_section(self, run: dict[str, Any]) -> str:
            return f'<h2>Extra on {len(run["arms"])} arms</h2>'

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Plugin())
    write_report([results_of(store)], tmp_path / 'r.html', manager)
    assert '<section><h2>Extra on 2 arms</h2></section>' in (tmp_path / 'r.html').read_text()


def test_funnel_counts_are_those_of_the_store(store: Store) -> None:
    n = counts(store, [('arm', 'params.sigma < 0.5'), ('other', {'sample': 1})])
    assert (n['made'], n['kept'], n['rejected'], n['reasons']) == (30, 24, 6, {'blank': 6})
    assert [use['n'] for use in n['uses']] == [12, 3]


def test_gallery_goes_without_sources_that_are_gone(store: Store, tmp_path: Path) -> None:
    assert gallery(store)['has_sources']
    assert gallery(store)['not_shown'] is None
    shutil.rmtree(tmp_path / 'real')
    shown = gallery(store)
    assert not shown['has_sources']
    assert 'does not exist' in shown['not_shown']
    assert shown['columns'] == [0.3, 1.0]
    assert all(cell for row in shown['rows'] for cell in row['cells'])


def test_source_that_leads_out_of_the_data_folder_is_not_read_and_the_caption_says_so(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / 'secret.png'
    Image.new('RGB', (8, 8), (1, 2, 3)).save(secret)
    for name, source in (('up', '../secret.png'), ('absolute', str(secret))):
        foreign = store_from(tmp_path / name, tmp_path / 'real', source)
        shown = gallery(foreign)
        assert [row['source'] for row in shown['rows']] == [None]
        assert source in shown['not_shown']
        results = results_of(foreign)
        write_report([results], tmp_path / 'r.html')
        html = (tmp_path / 'r.html').read_text()
        assert data_uri(Image.open(secret)) not in html
        assert f'Real images are not shown. {escape(repr(source))} is not an image of' in html
    # a store that names no folder, or no text where the folder should stand, is shown without sources too
    for data in ({}, {'data': ['x']}, {'data': str(tmp_path / 'gone')}):
        path = foreign.folder / 'store.json'
        content = json.loads(path.read_text())
        content['made_by']['recipe'] = data
        path.write_text(json.dumps(content))
        assert gallery(Store.open(foreign.folder))['not_shown']


def store_from(folder: Path, data: Path, source: str) -> Store:
    """A store of one image that claims to be made from `source` in `data`."""
    plan = Plan(('plain',), make_blocks(('plain',), 1, {'plain': ('x/0.png',)}), {'a': 1})
    store = Store.create(folder, plan, {'recipe': {'data': str(data)}})
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8)).save(buffer, 'PNG')
    store.publish(plan.blocks[0], [Row(Request('00000_000000', 0, 'plain', 0, source, None, {'sigma': 0.3}), 'kept', None, 'png', buffer.getvalue())], False)
    return store


def test_results_of_another_version_and_missing_stores_are_refused(store: Store, tmp_path: Path) -> None:
    results = json.loads(json.dumps(results_of(store)))
    with pytest.raises(DataError, match='format_version 2'):
        write_report([{**results, 'format_version': 2}], tmp_path / 'r.html')
    shutil.rmtree(store.folder)
    with pytest.raises(StoreError, match='which cannot be opened'):
        write_report([results], tmp_path / 'r.html')
    assert not (tmp_path / 'r.html').exists()
