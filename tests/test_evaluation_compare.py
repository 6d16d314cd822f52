"""Comparisons: equal steps, test images untouched until the end, kills that cost little, refusals that say what is wrong."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from conftest import copy_of_this_process, digits
from synthaug_plugins import compat
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.compare import check_arms, compare, format_table
from synthaug_plugins.evaluation.fingerprint import run_key
from synthaug_plugins.evaluation.pool import RunFailed
from synthaug_plugins.evaluation.protocol import Arm, Search, fill, read_comparison
from synthaug_plugins.evaluation.runs import planned_steps, settle, train_run, training_part
from synthaug_plugins.evaluation.statistics import class_gains, paired, sentences, signed, spread
from synthaug_plugins.plugins import get_plugin_manager, register_nouns
from synthaug_plugins.training.backbone_weights import save_backbone
from synthaug_plugins.training.run import load_recipe

TRAIN = Path(__file__).parents[1] / 'registry_configs' / 'train' / 'digits_resnet.py'
RECIPE = """
train = {train!r}
title = 'digits at {{shots}} shots'
notes = 'the generator had seen nothing'
seeds = [0, 1]
values = dict(root={root!r}, shots=2)
cfg_options = {{
    'train_dataloader.dataset.data_root': '{{root}}/train-{{seed}}',
    'val_dataloader.dataset.data_root': '{{root}}/val',
    'test_dataloader.dataset.data_root': '{{root}}/test',
    'train_cfg.max_iters': 6, 'train_cfg.val_interval': 3, 'param_scheduler': [], 'model.backbone.stem_channels': 4, 'model.backbone.base_channels': 4,
    'model.head.in_channels': 32, 'train_dataloader.batch_size': 8,
}}
arms = dict(real_only=dict(), searched=dict(cfg_options={{'optim_wrapper.optimizer.lr': 1e-3}}))
search = dict(arm='searched', grid={{'cfg_options.optim_wrapper.optimizer.lr': [1e-3, 2e-3]}})
"""


def write_images(folder: Path, positions: range) -> None:
    data = digits()
    for i in positions:
        path = folder / f'c{data.target[i]}' / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[i] * 15).astype(np.uint8)).save(path)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A tiny comparison of two arms, one of them searched; its test folder does not exist."""
    root = tmp_path / 'data'
    for name, positions in (('train-0', range(30)), ('train-1', range(30, 60)), ('val', range(1200, 1240))):
        write_images(root / name, positions)
    path = tmp_path / 'recipe.py'
    path.write_text(RECIPE.format(train=str(TRAIN), root=str(root)))
    return path


def change(recipe: Path, old: str, new: str) -> Path:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    return recipe


def settled(recipe: Path, seed: int = 0) -> Config:
    """The baseline's config of one seed."""
    compat.apply()
    comparison = read_comparison(recipe)
    return settle(load_recipe(comparison.train, fill(comparison.cfg_options, {'seed': seed})), seed)


def run(recipe: Path, jobs: int = 2, progress: Callable[[str], None] = print, **values: Any) -> dict[str, Any]:
    return compare(recipe, recipe.parent / 'out', get_plugin_manager(), jobs, values, register_nouns, progress)


def test_search_never_reads_test_images_and_a_second_call_only_does_what_is_missing(recipe: Path, copied_workers: None) -> None:
    with pytest.raises(RunFailed, match='test failed') as failure:  # the test folder does not exist, yet everything before came to its end
        run(recipe)
    assert 'log.txt' in failure.value.cure
    trained = sorted((recipe.parent / 'out' / 'runs').glob('*/result.json'))
    # 2 seeds of the baseline, 2 of each candidate; they are different runs
    assert len(trained) == 6
    before = {p: p.stat().st_mtime_ns for p in trained}

    write_images(recipe.parent / 'data' / 'test', range(1400, 1460))
    lines: list[str] = []
    results = run(recipe, jobs=1, progress=lines.append)
    assert len(lines) == 4
    assert all(', test: ' in line for line in lines)
    assert {p: p.stat().st_mtime_ns for p in trained} == before
    assert results == json.loads((recipe.parent / 'out' / 'results.json').read_text())
    # once more: nothing is done, the same is said
    again: list[str] = []
    assert run(recipe, jobs=1, progress=again.append) == results
    assert again == []

    base, searched = results['arms']
    assert base['steps'] == searched['steps'] == 6
    assert base['images'] == searched['images'] == 48
    assert base['difference'] is None
    assert searched['difference']['points'] == pytest.approx([a - b for a, b in zip(searched['test']['points'], base['test']['points'], strict=True)])
    # top-1 is the support-weighted recall, so both came from the same predictions
    recall = [sum(r['points'][0] * n for r, n in zip(base['recall'], results['support'], strict=True)) / sum(results['support'])]
    assert recall == pytest.approx([base['test']['points'][0]], abs=1e-3)
    candidates = results['search'][0]['candidates']
    assert results['search'][0]['chosen'] == max(range(2), key=lambda i: (candidates[i]['val']['mean'], -i))
    assert searched['val'] == candidates[results['search'][0]['chosen']]['val']
    assert [step for step, _ in base['curves'][0]] == [3, 6]
    assert 'real_only' in format_table(results)
    assert results['title'] == 'digits at 2 shots'
    # what other runs the worker made before, and how many workers there were, decides nothing
    alone = train_run(training_part(settled(recipe, seed=1)), recipe.parent / 'alone', 6)
    assert [tuple(point) for point in base['curves'][1]] == alone['curve']


def test_killed_comparison_leaves_no_process_and_goes_on(recipe: Path, request: pytest.FixtureRequest) -> None:
    write_images(recipe.parent / 'data' / 'test', range(1400, 1460))
    out = recipe.parent / 'out'
    process = copy_of_this_process(lambda: run(recipe, jobs=1))  # its worker is a new process, as always
    process.wait_until(lambda: list(out.glob('runs/*/result.json')))
    workers = children(process.pid)
    assert workers
    assert process.end(signal.SIGKILL).status == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in workers):
        assert time.monotonic() < deadline, 'a worker outlived its comparison'
        time.sleep(0.1)
    kept = {p: p.stat().st_mtime_ns for p in out.glob('runs/*/result.json')}
    lines: list[str] = []
    request.getfixturevalue('copied_workers')
    run(recipe, jobs=1, progress=lines.append)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert sum(', test: ' not in line for line in lines) < 6
    assert not list(out.rglob('.partial-*'))


def children(pid: int) -> list[int]:
    found = []
    for status in Path('/proc').glob('[0-9]*/stat'):
        try:
            parent = int(status.read_text().rpartition(')')[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(status.parent.name))
    return found


def test_unequal_steps_are_refused_with_the_numbers_before_any_training(recipe: Path) -> None:
    change(recipe, "{'optim_wrapper.optimizer.lr': 1e-3}", "{'train_cfg.max_iters': 12}")
    with pytest.raises(RecipeError, match=r'equal optimiser steps: 6 \(real_only, seed 0\); 12 \(searched'):
        run(recipe)
    assert not (recipe.parent / 'out').exists()


def test_epochs_are_counted_in_steps(recipe: Path) -> None:
    # 30 images in batches of 8: 4 iterations per epoch. Accumulating two gradients halves the optimiser's steps.
    epochs = "'train_cfg': dict(by_epoch=True, max_epochs=3, val_interval=1, _delete_=True), 'train_dataloader.sampler.type': 'mmengine.DefaultSampler',"
    change(recipe, "'train_cfg.max_iters': 6, 'train_cfg.val_interval': 3,", epochs)
    change(recipe, "cfg_options={'optim_wrapper.optimizer.lr': 1e-3}", "cfg_options={'optim_wrapper.accumulative_counts': 2}")
    with pytest.raises(RecipeError, match=r'equal optimiser steps: 6 \(searched.*; 12 \(real_only'):
        run(recipe)


def test_training_that_ends_early_is_an_error_not_a_result(recipe: Path) -> None:
    cfg = settled(recipe)
    cfg.custom_hooks.append({'type': 'mmengine.EarlyStoppingHook', 'monitor': 'accuracy/top1', 'min_delta': 200, 'patience': 1})
    cfg.train_cfg.val_interval = 1
    with pytest.raises(RecipeError, match='optimiser steps instead of 6'):
        train_run(training_part(cfg), recipe.parent / 'run', planned_steps(cfg))
    assert not (recipe.parent / 'run' / 'result.json').exists()


def test_changed_training_image_makes_another_run(recipe: Path) -> None:
    cfg = training_part(settled(recipe))
    key = run_key(cfg)
    assert run_key(cfg) == key
    write_images(recipe.parent / 'data' / 'test', range(1400, 1410))  # test images decide no training
    assert run_key(cfg) == key
    write_images(recipe.parent / 'data' / 'train-0', range(60, 61))
    assert run_key(cfg) != key


@pytest.mark.parametrize(
    ('old', 'new', 'says'),
    [
        (
            "'val_dataloader.dataset.data_root': '{root}/val'",
            "'val_dataloader.dataset.data_root': '{root}/test'",
            'val_dataloader and test_dataloader read the same',
        ),
        ("'{root}/val'", "'{root}/train-{seed}'", 'train_dataloader and val_dataloader read the same'),
        ("{'optim_wrapper.optimizer.lr': 1e-3}", "{'val_dataloader.dataset.data_root': '{root}/other'}", 'different images in val_dataloader'),
        ("'{root}/val'", "'{rot}/val'", "Did you mean 'root'"),
        ("search = dict(arm='searched'", "search = dict(arm='serched'", "Did you mean 'searched'"),
        ('seeds = [0, 1]', 'seeds = [0, 0]', 'repeats a seed'),
        ('seeds = [0, 1]', 'sedes = [0, 1]', "Did you mean 'seeds'"),
        ('real_only=dict()', 'real_only=dict(synthug=dict())', "Did you mean 'synthaug'"),
        ('real_only=dict()', 'real_only=dict(synthaug=dict(mixx=dict()))', "Did you mean 'mix'"),
        ('real_only=dict()', "real_only=dict(cfg_options={'load_from': 'lost.pth'})", "load_from starts from 'lost.pth', and there is no such file"),
        ("{'cfg_options.optim_wrapper.optimizer.lr'", "{'mix.alpha'", "no synthaug option 'mix'"),
        ('arms = dict(real_only=dict(), ', 'arms = dict(', 'fewer than two arms'),
        ("grid={'cfg_options.optim_wrapper.optimizer.lr': [1e-3, 2e-3]}", "grid=[{'a': [1]}, {'b': [1]}]", 'a list of such with the same keys'),
    ],
)
def test_wrong_recipes_are_refused(recipe: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        run(change(recipe, old, new))
    assert not (recipe.parent / 'out').exists()


def test_a_start_that_fits_in_part_is_left_to_mmengine_unless_the_comparison_made_it(recipe: Path, tmp_path: Path) -> None:
    save_backbone({'conv1.weight': torch.zeros(4, 3, 3, 3)}, tmp_path / 'half.pth')
    start = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'half.pth'), 'prefix': 'backbone.'}
    change(recipe, 'real_only=dict()', f"real_only=dict(cfg_options={{'model.backbone.init_cfg': {start}}})")
    fixed, searches = check_arms(read_comparison(recipe), get_plugin_manager())
    assert list(fixed) == ['real_only'] and list(searches) == ['searched']


def test_unknown_value_is_refused(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'shots'"):
        run(recipe, shot=3)


def test_searched_options_reach_into_lists_and_leave_the_arm_as_it_was() -> None:
    arm = Arm('a', {'pipeline': [{'type': 'x'}, {'angle': 1}]}, {'mix': {'alpha': 0.5}})
    new = arm.with_options({'cfg_options.pipeline.1.angle': 9, 'mix.alpha': 0.1, 'cfg_options.lr': 2})
    assert new.cfg_options == {'pipeline': [{'type': 'x'}, {'angle': 9}], 'lr': 2}
    assert new.synthaug == {'mix': {'alpha': 0.1}}
    assert arm.cfg_options['pipeline'][1] == {'angle': 1}
    with pytest.raises(RecipeError, match="no '7'"):
        arm.with_options({'cfg_options.pipeline.7.angle': 9})


def test_several_grids_are_tried_one_after_the_other_and_what_they_share_once() -> None:
    search = Search('a', [{'alpha': [0.5], 'select': [None]}, {'select': [None, 'x'], 'alpha': [0.1, 0.5]}])
    assert [tuple(c.items()) for c in search.candidates()] == [
        (('alpha', alpha), ('select', select)) for alpha, select in ((0.5, None), (0.1, None), (0.1, 'x'), (0.5, 'x'))
    ]


def test_statistics_are_the_textbook_ones() -> None:
    assert spread([1.0, 2.0, 3.0]) == {'mean': 2.0, 'sd': 1.0, 'n': 3, 'points': [1.0, 2.0, 3.0]}
    assert spread([5.0])['sd'] is None
    # paired: what all arms share by seed falls out; sd 1, n 4, standard error 1/2
    d = paired([11.0, 22.0, 33.0, 42.0], [10.0, 20.0, 30.0, 40.0])
    assert d['mean'] == 2.0
    assert d['se'] == pytest.approx((2 / 3) ** 0.5 / 2)
    gains = class_gains([[50.0, 100.0], [70.0, 90.0]], [[40.0, 100.0], [60.0, 100.0]])
    assert [g['mean'] for g in gains] == [10.0, -5.0]
    assert (signed(-0.04), signed(0.06), signed(-3.0)) == ('±0.0', '+0.1', '−3.0')


def test_sentences_name_harm_as_well_as_gain() -> None:
    arms = [
        {'name': 'real', 'test': spread([80.0, 82.0])},
        {
            'name': 'made',
            'test': spread([81.0, 85.0]),
            'difference': paired([81.0, 85.0], [80.0, 82.0]),
            'class_gains': class_gains([[90.0, 70.0]] * 2, [[80.0, 75.0]] * 2),
        },
    ]
    text = ' '.join(sentences({'arms': arms, 'classes': ['cat', 'dog']}))
    assert '+2.0 points against real, above the baseline over 2 seeds (+1.0, +3.0)' in text
    assert 'Helped 1 of 2 classes, most cat (+10.0). Harmed 1, most dog (−5.0).' in text
