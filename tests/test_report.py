"""`synthaug report`: one page on a store, from what the commands left behind, of that very store, and of no other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from test_audit import SPOILT, make_folder, make_store, pixels
from test_evaluation_report import Elements, open_in_browser, results_of

from conftest import Say, command_line, digits
from synthaug_plugins.errors import DataError, RecipeError, StoreError
from synthaug_plugins.evaluation.onepage.cost import cost_of
from synthaug_plugins.evaluation.onepage.report import Given, report
from synthaug_plugins.store.cost import RunCost
from synthaug_plugins.store.identity import identity
from synthaug_plugins.store.plan import Plan, make_blocks
from synthaug_plugins.store.store import Store


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of digits and of copies of training images, measured, audited and compared."""
    root = tmp_path_factory.mktemp('report')
    make_folder(root / 'train', range(100))
    make_folder(root / 'test', range(300, 360))
    new = [(int(digits().target[i]), pixels(i), None) for i in range(1000, 1050)]
    copies = [(int(digits().target[i]), SPOILT['mirrored'](pixels(i)), None) for i in range(20, 28)]
    store = make_store(root / 'store', [*new, *copies])
    store.add_cost(RunCost(60, 8.0, 16, 2100, 4.0, 'NVIDIA H200', 2, 2))
    audited = command_line('audit', store.folder, '--train', root / 'train', '--test', root / 'test', '--out', root / 'audit', '--drop', 'clean')
    assert audited == 0
    assert command_line('evaluate', store.folder, '--real', root / 'train', '--features', 'pixels', '--out', root / 'measured', '--per-class') == 0
    compared(root / 'compared', store, results_of(store))
    return root


def compared(folder: Path, store: Store, results: dict[str, Any]) -> Path:
    """What `synthaug compare` writes of an arm on a store."""
    for arm in results['arms']:
        arm['stores'] = [[{**entry, 'select': None, **identity(store)._asdict()} for entry in per_seed] for per_seed in arm['stores']]
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps(results))
    return folder


def text_of(html: str) -> str:
    return re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', html))


def test_everything_that_is_known_of_a_store_is_on_one_page(made: Path, tmp_path: Path, synthaug: Say) -> None:
    given = ('--evaluation', made / 'measured', '--audit', made / 'audit', '--comparison', made / 'compared', '--where', 'clean_kept')
    done = synthaug('report', made / 'store', *given, '--out', tmp_path / 'r')
    assert (done.status, done.out) == (0, f'{tmp_path / "r" / "report.html"}\n'), done.err
    html = (tmp_path / 'r' / 'report.html').read_text()
    text = text_of(html)
    store, audit = Store.open(made / 'store'), json.loads((made / 'audit' / 'audit.json').read_text())
    measured = json.loads((made / 'measured' / 'metrics.json').read_text())
    left = store.index(['clean_kept'])['clean_kept'].to_pylist().count(True)
    assert left < 58 and f'asked for 58 made 58 every try counts accepted 58 selected {left} clean_kept' in text
    assert f'clean 58 {left} {58 - left} {58 - left} copy of a training image' in text
    row = next(row for row in measured['rows'] if row['set'] == 'store' and row['class'] is None)
    assert f'store 58 100 pixels {row["values"]["avg_knn"]["mean"]:#.4g} ± ' in text  # as it was written
    found = audit['comparisons']['train']
    assert f'training images {found["copies"]} 100 ' in text and found['pairs'][0]['other_id'] in text
    assert 'nearest to a training image' in text and 'memorisation 0.' in text
    assert f'Trained on this store: {results_of(store)["arms"][1]["name"]}' in text.replace('&lt;', '<').replace('&gt;', '>')
    assert html.count('class="bars"') == 1
    for what in ('images/s 15 ', 'GPU-hours 0.00222', 'device 2 of NVIDIA H200', 'network evaluations per image 35', 'MFU not known'):
        assert what in text, what
    for command in (measured['command'], audit['command'], results_of(store)['command'], f'--where clean_kept --out {tmp_path / "r"}'):
        assert command in unescape(html)
    # A picture for every place: both images of a pair, though one is a real one.
    page = Elements(html)
    assert not page.tags & {'script', 'iframe', 'form'} and not re.search(r'url\(|@import|https?:', html)
    assert html.count('<img ') > 2 * min(4, len(found['pairs'])) + 6 and 'are not all shown' not in html

    # It takes the place of its own kind only, and opens without a fault, on a phone too.
    assert synthaug('report', made / 'store', '--out', tmp_path / 'r').status == 0
    outer = f"""<title></title><iframe style="width: 390px; height: 800px; border: 0" srcdoc="{escape(html)}" onload="
        let d = this.contentDocument.documentElement; document.title = d.scrollWidth + ' of ' + d.clientWidth + ' ' + d.querySelectorAll('h2').length
    "></iframe>"""
    (tmp_path / 'phone.html').write_text(outer)
    opened, console = open_in_browser(tmp_path / 'phone.html', tmp_path)
    said = re.search(r'<title>(\d+) of (\d+) (\d+)</title>', opened)
    assert console == [] and said and int(said[1]) <= int(said[2]) <= 390 and int(said[3]) == html.count('<h2>')  # nothing to scroll sideways
    assert 'prefers-color-scheme: dark' in html and 'width=device-width' in html


def test_figures_of_another_store_kind_or_time_are_refused(made: Path, tmp_path: Path) -> None:
    out, store = tmp_path / 'r.html', made / 'store'
    other = make_store(tmp_path / 'store', [(int(digits().target[i]), pixels(i), None) for i in range(40)])
    for given in ({'evaluations': [made / 'measured']}, {'audits': [made / 'audit']}, {'comparisons': [made / 'compared']}):
        with pytest.raises(DataError) as refused:
            report(Given(other.folder, **given), out)
        assert str(identity(other)) in refused.value.what and str(identity(Store.open(store))) in refused.value.what
    for given, why in (
        ({'evaluations': [made / 'audit']}, 'holds no figures'),
        ({'audits': [made / 'measured' / 'metrics.json']}, 'of another kind than --audit'),
        ({'comparisons': [made / 'audit']}, 'holds no results of a comparison'),
        ({'comparisons': [made / 'audit' / 'audit.json']}, "holds no results: 'arms'"),
    ):
        with pytest.raises(DataError, match=why):
            report(Given(store, **given), out)
    with pytest.raises(RecipeError, match=r"there is no 'clip_pp'"):
        report(Given(store, worst=['-clip_pp']), out)
    with pytest.raises(RecipeError, match=r'gives .*, not a number'):
        report(Given(store, worst=['clean_reason']), out)
    with pytest.raises(StoreError, match='is not a store'):
        report(Given(made / 'train'), out)
    with pytest.raises(StoreError, match='lies inside the store'):
        report(Given(store), store / 'r.html')
    out.write_text('mine')
    with pytest.raises(StoreError, match='is no report of a store'):
        report(Given(store), out)
    assert out.read_text() == 'mine'


def test_cost_is_what_was_noted_and_never_a_guess(tmp_path: Path) -> None:
    def cost(name: str, precision: str, *runs: RunCost) -> tuple[dict[str, str], str]:
        plan = Plan(('a',), make_blocks(('a',), 1, {}, 4), {'generator': {'type': 'EDM', 'precision': precision}})
        store = Store.create(tmp_path / name, plan, {})
        for run in runs:
            store.add_cost(run)
        found = cost_of(store)
        return dict(found['facts']), ' '.join(found['notes'])

    # 2 GPUs for 100 s, at 989.5 TFLOP/s each: 197,900 TFLOP would be all of it.
    run = RunCost(1000, 190.0, 8, 25_000, 100.0, 'NVIDIA H200', 2, 2, 19_790.0)
    facts, notes = cost('known', 'bf16', run, run)
    assert (facts['MFU'], facts['images/s'], facts['GPU-hours'], facts['TFLOP per network evaluation']) == ('10 %', '10', '0.111', '0.792')
    assert 'dense' in notes
    for name, precision, one, why in (
        ('card', 'bf16', RunCost(1000, 190.0, 8, 25_000, 100.0, 'Card 9', 2, 2, 19_790.0), 'peak of Card 9 in bf16 is not in our table'),
        ('uncounted', 'bf16', RunCost(1000, 190.0, 8, 25_000, 100.0, 'NVIDIA H200', 2, 2), 'operations of the network were not counted'),
        ('precision', 'int4', run, 'peak of NVIDIA H200 in int4 is not in our table'),
        ('old', 'bf16', RunCost(1000, 190.0, 8, 25_000), 'noted neither wall time nor devices'),
    ):
        facts, notes = cost(name, precision, one)
        assert facts['MFU'] == 'not known' and why in notes, name
    assert facts['GPU-hours'] == 'not known' and facts['images/s of a worker'] == '5.26'
    facts, notes = cost('none', 'bf16')
    assert facts == {'images/s': 'not known'} and 'No completed run is noted' in notes


def test_a_report_loads_no_library_that_computes() -> None:
    code = (
        'import sys, synthaug_plugins.evaluation.onepage.report; print(sorted({"torch", "mmengine", "mmpretrain", "sklearn", "diffusers"} & set(sys.modules)))'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'
