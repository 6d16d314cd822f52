"""Comparisons that draw shots: one command from the images to the table; what is finished is not redone; what is wrong is said before anything is made."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Say, copy_of_this_process, digits
from synthaug_plugins.errors import DataError, RecipeError, StoreError, SynthAugError
from synthaug_plugins.evaluation.ablation.drawn import Drawn
from synthaug_plugins.evaluation.ablation.run import ablate
from synthaug_plugins.evaluation.ablation.table import write_tables
from synthaug_plugins.evaluation.protocol import read_comparison
from synthaug_plugins.evaluation.statistics import spread
from synthaug_plugins.few_shot import draw_shots
from synthaug_plugins.models.words import Words
from synthaug_plugins.plugins import get_plugin_manager, register_nouns
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.store.store import Store
from synthaug_plugins.training.run import load_recipe

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
_few = {'generator.sampler.num_steps': 4, 'per_source': 2}
made = dict(
    words=dict(kind='words', recipe='dafusion_words_digits', cfg_options={'training.steps': 2, 'samples.per_class': 1, 'samples.num_steps': 2}),
    variants=dict(kind='store', recipe='dafusion_digits', cfg_options={**_few, 'generator.words': '{words}'}),
    unused=dict(kind='store', recipe='dafusion_digits', cfg_options={'generator.words': '{words}'}),
    named=dict(kind='store', recipe='he2023_basic_digits', cfg_options={'generator.num_steps': 2, 'per_class': 2, 'classes': None}, once=True),
)
arms = dict(
    real=dict(synthaug=dict(mix=None)),
    variants=dict(synthaug=dict(mix=dict(store='{variants}'))),
    one_each=dict(synthaug=dict(mix=dict(store='{variants}', select='row_number() over (partition by source order by id) <= 1'))),
    named=dict(synthaug=dict(mix=dict(store='{named}', partner='class'))),
)
reference = 'variants'
curves = dict(copies=dict(axis='variants of each shot', arms={2: 'variants', 1: 'one_each'}))
"""


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


def test_one_command_killed_in_between_goes_on_to_table_and_report(synthaug: Say, copied_workers: None, recipe: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    command = ['compare', recipe, '--data', data, '--out', out]
    process = copy_of_this_process(lambda: run(recipe, data))
    process.wait_until(lambda: (out / 'made.json').exists() and json.loads((out / 'made.json').read_text())['finished'])  # the words are learned
    assert process.end(signal.SIGKILL).status == -signal.SIGKILL
    finished = json.loads((out / 'made.json').read_text())['finished']
    assert 'words/1-shot-0' in finished and 'named' not in finished
    before = {p: t for key in finished for p, t in files(out / 'made' / key).items()}
    assert before and not (out / 'table.csv').exists()

    said = synthaug(*command)
    assert said.status == 0, said.err
    assert files(out).items() >= before.items()
    assert not list(out.rglob('.partial-*'))

    # the generator saw the shots of the draw and nothing else
    ids = {name: sorted(p.relative_to(data / 'train').as_posix() for p in (data / 'train' / name).iterdir()) for name in NAMES}
    shots = {i for chosen in draw_shots(ids, 1, 0, 0).train.values() for i in chosen}
    train = out / 'draws' / '1-shot-0' / 'train'
    assert {p.relative_to(train).as_posix() for p in train.rglob('*.png')} == shots
    variants = Store.open(out / 'made' / 'variants' / '1-shot-0')
    assert {row['source'] for row in variants.index().to_pylist()} == shots
    assert variants.made_by['recipe']['data'] == str(train)
    assert {row['prompt'] for row in variants.index().to_pylist()} == {'a photo of a <two>', 'a photo of a <three>'}
    assert Words(out / 'made' / 'words' / '1-shot-0' / 'words.safetensors').classes == ('three', 'two')
    # one store for all draws, from names alone
    named = Store.open(out / 'made' / 'named')
    assert named.classes == variants.classes == ('three', 'two')
    assert named.made_by['recipe']['data'] is None

    results = json.loads((out / '1-shot' / 'results.json').read_text())
    assert [arm['name'] for arm in results['arms']] == ['real', 'variants', 'one_each', 'named']
    assert {arm['steps'] for arm in results['arms']} == {4}
    rows = list(csv.DictReader((out / 'table.csv').open()))
    assert [(row['arm'], row['shots']) for row in rows] == [(arm, k) for arm in ('real', 'variants', 'one_each', 'named') for k in ('1', 'all')]
    for arm, row in zip(results['arms'], rows[::2], strict=True):
        assert float(row['mean_recall']) == pytest.approx(np.mean([r['mean'] for r in arm['recall']]), abs=1e-3)
        assert float(row['top1']) == pytest.approx(arm['test']['mean'], abs=1e-3)
    assert (out / 'table.md').read_text() in said.out
    html = (out / 'report.html').read_text()
    assert 'mean over shots' in html and 'against variants' in html
    assert html.count(f'compare {recipe}') == 1
    points = list(csv.DictReader((out / 'curves.csv').open()))
    assert [(p['curve'], p['value'], p['arm'], p['baseline']) for p in points] == [('copies', '1', 'one_each', 'real'), ('copies', '2', 'variants', 'real')]
    assert 'accuracy over variants of each shot' in html
    assert (out / 'curves.png').exists() == (importlib.util.find_spec('matplotlib') is not None)

    # once more: nothing is done, all that lies there stays as it is
    made = files(out / 'made') | files(out / '1-shot' / 'runs')
    assert synthaug(*command).status == 0
    assert files(out / 'made') | files(out / '1-shot' / 'runs') == made

    # another recipe for what is there is refused, and so are other images
    with pytest.raises(RecipeError, match=r"holds 'variants' made by another recipe; these differ: per_source: 2 -> 3"):
        run(change(recipe, "'per_source': 2", "'per_source': 3"), data)
    change(recipe, "'per_source': 3", "'per_source': 2")
    image = train / min(shots)
    (data / 'train' / min(shots)).write_bytes((data / 'train' / max(shots)).read_bytes())
    with pytest.raises(DataError, match=f'holds other images than are drawn now.*{min(shots)}'):
        run(recipe, data)
    assert image.exists()
    assert files(out / 'made') | files(out / '1-shot' / 'runs') == made

    # words that are learned anew are not mixed with variants that were made by the old ones
    (data / 'train' / min(shots)).write_bytes(image.read_bytes())
    shutil.rmtree(out / 'made' / 'words')
    with pytest.raises(StoreError, match='words'):
        run(change(recipe, "'training.steps': 2", "'training.steps': 3"), data)


# --- refusals, before anything is made


@pytest.mark.parametrize(
    ('old', 'new', 'says'),
    [
        ('shots = [1]', 'shots = [30]', "'three' has .* images, too few for 30 shots"),
        ('shots = [1]', 'shots = [1, 1]', 'repeats a shot'),
        ('shots = [1]', '', 'The compare recipe has data, but no shots'),
        ("reference = 'variants'", "reference = 'variant'", "Did you mean 'variants'"),
        ("kind='store', recipe='he2023_basic", "kind='stor', recipe='he2023_basic", "Did you mean 'store'"),
        ('he2023_basic_digits', 'he2023_basics_digits', "Did you mean 'he2023_basic_digits'"),
        ('once=True', 'one=True', "Did you mean 'once'"),
        ("store='{variants}'", "store='{variant}'", "Did you mean 'variants'"),
        ("'generator.words': '{words}'", "'generator.words': '{words}', 'generator.fitt': 'pad'", "no option 'fitt'"),
        ("'per_source': 2}", "'per_source': 2, 'generator.t0': 1.5}", r't0 = 1\.5'),
        ("'training.steps': 2", "'training.steps': 2, 'training.initialise_from': None", "class_names = 'never'"),
        ("'generator.words': '{words}'", "'seed': 3", 'follows from the draw'),
        ("'generator.words': '{words}'", "'generator.words': '{word}'", "Did you mean 'words'"),
        ("'training.steps': 2", "'training.step': 2", "Did you mean 'steps'"),
        ("'training.steps': 2", "'model.name': 'embedded:digits_edm'", 'digits_edm'),
        ("'generator.num_steps': 2", "'generator.words': '{variants}'", "is made once, but names .'variants'."),
        ("'generator.words': '{words}'", "'generator.words': '{named}'", 'not made before it'),
        ("'classes': None", "'classes': ['three', 'tow']", 'tow'),
        ("'classes': None}, once", "'classes': None, 'data': '{data}/test'}, once", 'made.named sees 9 validation or test images: .*test.* byte for byte'),
        ("title = 'digits'", 'values = dict(data=3)', "'data', which has a meaning of its own"),
        ("store='{named}'", "stor='{named}'", "no option 'stor'"),
        ("store='{named}', partner='class'", "store='{named}', partner='clas'", "partner = 'clas'"),
        (
            "mix=dict(store='{named}', partner='class'))",
            "mix=dict(store='{named}')), cfg_options={'train_cfg.max_iters': 8}",
            r'equal optimiser steps: 4 .*; 8',
        ),
        ("arms={2: 'variants', 1: 'one_each'}", "arms={2: 'variants', 1: 'one_eech'}", "'one_eech', which is none of the arms.*Did you mean 'one_each'"),
        ("arms={2: 'variants', 1: 'one_each'}", "arms={2: 'variants', 'one': 'one_each'}", "the values .2, 'one'., which no axis holds"),
        ("arms={2: 'variants', 1: 'one_each'}", "arms={2: 'variants'}", 'fewer than two values'),
        ("axis='variants of each shot'", "axes='variants of each shot'", "Did you mean 'axis'"),
        ('curves = dict(copies=', 'curves = dict(shots=', 'curves.shots is always drawn'),
        ("train = 'dafusion_digits'", "train = 'dafusion_digit'", "Did you mean 'dafusion_digits'"),
        ("title = 'digits'", 'values = dict(shots=3)', "'shots', which has a meaning of its own"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(recipe: Path, data: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(SynthAugError, match=says):
        run(change(recipe, old, new), data)
    assert not (recipe.parent / 'out' / 'made').exists()


def test_data_that_do_not_fit_are_refused(recipe: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / 'few', train=range(60), test=range(1400, 1440))
    fewest = min((len(list((data / 'train' / name).iterdir())), name) for name in NAMES)
    with pytest.raises(DataError, match=f'No image of {fewest[1]!r} is left to validate on'):
        run(change(recipe, 'shots = [1]', f'shots = [{fewest[0]}]'), data)
    (data / 'test' / 'two').rename(data / 'test' / 'four')
    with pytest.raises(DataError, match=r"not those of train: \['four', 'two'\]"):
        run(recipe, data)
    with pytest.raises(RecipeError, match='names no data'):
        ablate(recipe, tmp_path / 'out', get_plugin_manager())
    with pytest.raises(RecipeError, match='lies in'):
        ablate(recipe, tmp_path / 'ok' / 'train' / 'out', get_plugin_manager(), str(write_data(tmp_path / 'ok', train=range(50), test=range(1400, 1440))))


def test_a_device_is_refused_where_nothing_is_made(synthaug: Say, tmp_path: Path) -> None:
    path = tmp_path / 'plain.py'
    path.write_text("train = 'digits_resnet'\nseeds = [0]\narms = dict(a=dict(), b=dict())\n")
    said = synthaug('compare', path, '--out', tmp_path / 'out', '--device', 'cpu')
    assert said.status != 0 and 'and this one makes none' in said.err
    assert not (tmp_path / 'out').exists()


# --- the parts


def test_only_what_an_arm_needs_is_made(recipe: Path) -> None:
    named = [entry.name for entry in read_comparison(recipe, data='x').made]
    assert named == ['words', 'variants', 'named']
    change(recipe, "    named=dict(synthaug=dict(mix=dict(store='{named}', partner='class'))),\n", '')
    assert [entry.name for entry in read_comparison(recipe, data='x').made] == ['words', 'variants']


def test_a_trainer_recipe_is_set_to_the_draw_whatever_it_read_before(tmp_path: Path) -> None:
    cfg = load_recipe(find_recipe('dafusion_resnet50', 'train'))
    pipeline = cfg.train_dataloader.dataset.pipeline
    Drawn(2, 5, ('a', 'b', 'c'), tmp_path / 'x', tmp_path / 'y', tmp_path / 'z').set_folders(cfg)
    for part, folder in (('train', 'x'), ('val', 'y'), ('test', 'z')):
        dataset = cfg[f'{part}_dataloader'].dataset
        assert (dataset.type, dataset.data_root) == ('mmpretrain.CustomDataset', str(tmp_path / folder))
        assert '.webp' in dataset.extensions and not {'shots', 'seed', 'part'} & set(dataset)
    assert cfg.train_dataloader.dataset.pipeline == pipeline
    assert cfg.model.head.num_classes == 3
    cfg.train_dataloader.dataset.type = 'mmpretrain.CIFAR10'
    with pytest.raises(RecipeError, match='train_dataloader reads a CIFAR10'):
        Drawn(2, 5, ('a', 'b'), tmp_path, tmp_path, tmp_path).set_folders(cfg)


def result_of(**recalls: list[list[float]]) -> dict[str, Any]:
    """What a comparison gives: per arm, for each class the recall of every seed."""
    arms = [{'name': name, 'recall': [spread(c) for c in classes], 'test': spread(list(np.mean(classes, 0)))} for name, classes in recalls.items()]
    return {'arms': arms, 'classes': ['cat', 'dog'], 'seeds': [0, 1]}


def test_the_table_holds_means_over_shots_and_paired_differences(tmp_path: Path) -> None:
    one = result_of(real=[[50, 60], [70, 60]], base=[[60, 60], [70, 80]], other=[[50, 50], [90, 90]])
    four = result_of(real=[[70, 80], [80, 80]], base=[[80, 80], [80, 100]], other=[[70, 70], [90, 90]])
    main = write_tables(tmp_path, [one, four], [1, 4], 'base')
    assert main[0] == ['arm', '1 shot', '4 shots', 'mean over shots', 'against real', 'against base']
    # real: seed means 60, 60 at one shot; 75, 80 at four. base: 65, 70 and 80, 90.
    assert main[1] == ['real', '60.0 ± 0.0', '77.5 ± 3.5', '68.8 ± 1.8', '', '−7.5 ± 2.5']
    assert main[2] == ['base', '67.5 ± 3.5', '85.0 ± 7.1', '76.2 ± 5.3', '+7.5 ± 2.5', '']
    rows = {(row['arm'], row['shots']): row for row in csv.DictReader((tmp_path / 'table.csv').open())}
    assert set(rows) == {(arm, k) for arm in ('real', 'base', 'other') for k in ('1', '4', 'all')}
    # other at 1 shot against real: cat 50 - 55 = -5, dog 90 - 65 = +25; in points of the mean of two classes, halves of that
    row = rows['other', '1']
    assert (float(row['difference_vs_real']), float(row['gain_vs_real']), float(row['harm_vs_real'])) == (10, 12.5, -2.5)
    assert (row['helped_vs_real'], row['harmed_vs_real'], row['most_harmed_vs_real'], row['by_vs_real']) == ('1', '1', 'cat', '-5.0')
    assert rows['real', '1']['difference_vs_real'] == ''
    assert '| other |' in (tmp_path / 'table.md').read_text().replace('  ', '')
