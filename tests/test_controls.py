"""The controls for synthetic images: one comparison of all of them, at equal steps; other real images are looked at for held-out ones first."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from test_ablation import nouns, run, write_data  # noqa: F401

from synthaug_plugins.errors import DataError
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.store.store import Store

RECIPE = """
_base_ = {base!r}
values = dict(found={found!r})
shots = [2]
seeds = [0]
cfg_options = {{
    'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'param_scheduler': [], 'train_dataloader.batch_size': 8,
    'model.backbone.stem_channels': 4, 'model.backbone.base_channels': 4, 'model.head.in_channels': 32,
}}
made = dict(variants=dict(cfg_options={{'per_source': 2, 'generator.sampler.num_steps': 2}}))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set, and beside it other images of its classes."""
    write_data(tmp_path / 'found', train=range(100, 160))
    return write_data(tmp_path / 'data', train=range(60), test=range(1400, 1430), val=range(1200, 1230))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / 'recipe.py'
    path.write_text(RECIPE.format(base=find_recipe('controls_digits', 'compare'), found=str(tmp_path / 'found' / 'train')))
    return path


def test_every_control_trains_at_equal_steps_on_what_it_says(recipe: Path, data: Path, copied_workers: None, tmp_path: Path) -> None:
    (result,) = run(recipe, data)
    arms = {arm['name']: arm for arm in result['arms']}
    assert set(arms) == {'real_only', 'synthetic', 'classic', 'mixup_cutmix', 'duplication', 'round_trip', 'retrieved'}
    assert next(iter(arms)) == 'real_only'
    assert {(arm['steps'], arm['images']) for arm in arms.values()} == {(2, 16)}
    out = tmp_path / 'out'
    shots = {p.relative_to(out / 'draws/2-shot-0/train').as_posix() for p in (out / 'draws/2-shot-0/train').rglob('*.png')}
    for name, each in (('copies', 10), ('round_trips', 1)):
        rows = Store.open(out / 'made' / name / '2-shot-0').index().to_pylist()
        assert Counter(row['source'] for row in rows) == dict.fromkeys(shots, each)
    found = {p.relative_to(tmp_path / 'found/train').as_posix() for p in (tmp_path / 'found/train').rglob('*.png')}
    assert {row['source'] for row in Store.open(out / 'made' / 'retrieved').index().to_pylist()} == found

    # what was retrieved takes part, though it is no variant of a training image; the blends are in the batches
    logs = {name: (Path(arm['runs'][0]) / 'log.txt').read_text() for name, arm in arms.items()}
    assert f'{len(found)} of {len(found)} images' in logs['retrieved'] and 'left out' not in logs['retrieved']
    assert 'CutMix' in logs['mixup_cutmix'] and 'CutMix' not in logs['classic']
    html = (out / 'report.html').read_text()
    assert 'against synthetic' in html


def test_a_test_image_among_those_found_is_refused_before_anything_is_made(recipe: Path, data: Path, tmp_path: Path) -> None:
    copied = next((data / 'test').rglob('*.png'))
    shutil.copy(copied, tmp_path / 'found' / 'train' / copied.parent.name / 'innocent.png')
    with pytest.raises(DataError, match=r'made\.retrieved sees 1 validation or test images: .*innocent\.png'):
        run(recipe, data)
    assert not (tmp_path / 'out' / 'made').exists()
