"""Comparisons that draw shots: one command from the images to the table; what is finished is not redone; what is wrong is said before anything is made."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Say, digits
from synthaug_plugins.evaluation.ablation.run import ablate
from synthaug_plugins.few_shot import draw_shots
from synthaug_plugins.plugins import get_plugin_manager, register_nouns
from synthaug_plugins.store.store import Store

NAMES = {'three': 3, 'two': 2}
RECIPE = """
title = 'digits'
train = 'dafusion_digits'
shots = [1]
seeds = [0]
cfg_options = {
    'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2, 'param_scheduler': [], 'train_dataloader.batch_size': 8,
    'model.backbone.stem_channels': 4, 'model.backbone.base_channels': 4, 'model.head.in_channels': 32,
}
_guided = {'generator.shots': None, 'generator.strength_map': None, 'generator.strength': 0.5, 'generator.sampler.num_steps': 4, 'per_class': 2}
made = dict(
    variants=dict(kind='store', recipe='he2023_fewshot_rg_digits', cfg_options=_guided),
    named=dict(kind='store', recipe='he2023_basic_digits', cfg_options={'generator.num_steps': 2, 'per_class': 2, 'classes': None}, once=True),
)
arms = dict(
    real=dict(synthaug=dict(mix=None)),
    variants=dict(synthaug=dict(mix=dict(store='{variants}'))),
)
"""
NAMED = "named=dict(synthaug=dict(mix=dict(store='{named}', partner='class'))),\n)\nreference = 'variants'\n"


def write_data(root: Path, **positions: range) -> Path:
    data = digits()
    for part, chosen in positions.items():
        for name, label in NAMES.items():
            (root / part / name).mkdir(parents=True)
            for i in np.flatnonzero(data.target[chosen.start : chosen.stop] == label) + chosen.start:
                Image.fromarray((data.images[i] * 15).astype(np.uint8)).save(root / part / name / f'{i}.png')
    return root


@pytest.fixture(autouse=True, scope='module')
def nouns() -> None:
    register_nouns()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / 'data', train=range(100), test=range(1400, 1440), val=range(1200, 1240))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / 'recipe.py'
    path.write_text(RECIPE)
    return path


def change(recipe: Path, old: str, new: str) -> Path:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    return recipe


def run(recipe: Path, data: Path, **options: Any) -> list[dict[str, Any]]:
    return ablate(recipe, recipe.parent / 'out', get_plugin_manager(), str(data), device='cpu', **options)


def files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob('*')) if p.is_file()}


# --- one command


def test_one_command_draws_makes_trains_and_tabulates(synthaug: Say, recipe: Path, data: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().rstrip().removesuffix(')') + '    ' + NAMED)
    out = tmp_path / 'out'
    said = synthaug('compare', recipe, '--data', data, '--out', out)
    assert said.status == 0, said.err

    # the generator saw the shots of the draw and nothing else
    drawn = draw_shots({name: sorted(p.relative_to(data / 'train').as_posix() for p in (data / 'train' / name).iterdir()) for name in NAMES}, 1, 0, 0).train
    shots = {i for ids in drawn.values() for i in ids}
    train = out / 'draws' / '1-shot-0' / 'train'
    assert {p.relative_to(train).as_posix() for p in train.rglob('*.png')} == shots
    variants = Store.open(out / 'made' / 'variants' / '1-shot-0')
    assert {row['source'] for row in variants.index().to_pylist()} == shots
    assert variants.made_by['recipe']['data'] == str(train)
    # one store for all draws, from names alone
    named = Store.open(out / 'made' / 'named')
    assert named.classes == variants.classes == ('three', 'two')
    assert named.made_by['recipe']['data'] is None

    results = json.loads((out / '1-shot' / 'results.json').read_text())
    assert [arm['name'] for arm in results['arms']] == ['real', 'variants', 'named']
    assert {arm['steps'] for arm in results['arms']} == {4}
    rows = list(csv.DictReader((out / 'table.csv').open()))
    assert [(row['arm'], row['shots']) for row in rows] == [(arm, k) for arm in ('real', 'variants', 'named') for k in ('1', 'all')]
    for arm, row in zip(results['arms'], rows[::2], strict=True):
        assert float(row['mean_recall']) == pytest.approx(np.mean([r['mean'] for r in arm['recall']]), abs=1e-3)
        assert float(row['top1']) == pytest.approx(arm['test']['mean'], abs=1e-3)
    assert (out / 'table.md').read_text() in said.out
    html = (out / 'report.html').read_text()
    assert 'mean over shots' in html and 'against variants' in html
    assert html.count(f'compare {recipe}') == 1

    # once more: nothing is done, all that lies there stays as it is
    made = files(out / 'made') | files(out / '1-shot' / 'runs')
    assert synthaug('compare', recipe, '--data', data, '--out', out).status == 0
    assert files(out / 'made') | files(out / '1-shot' / 'runs') == made
