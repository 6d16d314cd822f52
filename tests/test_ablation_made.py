"""Comparisons that make models and trained backbones: from images of their own, from stores, and from the draws; none sees what it is measured on."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from test_ablation import change, files, nouns, recipe, run, write_data  # noqa: F401

from synthaug_plugins.engine.learn_recipe import load_learn_recipe
from synthaug_plugins.errors import SynthAugError
from synthaug_plugins.evaluation.ablation import trained
from synthaug_plugins.evaluation.ablation.trained import load
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.store.card import recipe_differences
from synthaug_plugins.training.backbone_weights import check_start, load_backbone, save_backbone, skeleton
from synthaug_plugins.training.run import load_recipe

RECIPE = """
train = 'digits_resnet'
shots = [1]
seeds = [0]
_small = {'model.backbone.stem_channels': 4, 'model.backbone.base_channels': 4}
_steps = {'train_cfg.max_iters': 2, 'param_scheduler': [], 'train_dataloader.batch_size': 4}
cfg_options = {**_small, **_steps, 'train_cfg.val_interval': 2, 'model.head.in_channels': 32}
_train = {**_small, **_steps, 'model.head.in_channels': 32, 'model.head.num_classes': 2, 'data_preprocessor.num_classes': 2}
made = dict(
    denoiser=dict(
        kind='denoiser',
        recipe='edm_digits',
        cfg_options={
            'data': '{data}/seen', 'training.images_shown': 16, 'training.batch_size': 8, 'model.network.channels': 8,
            'samples.per_class': 1, 'samples.num_steps': 2,
        },
        once=True,
    ),
    store=dict(kind='store', recipe='edm_digits', cfg_options={'generator.model': '{denoiser}', 'generator.sampler.num_steps': 2, 'per_class': 2}, once=True),
    on_store=dict(kind='training', recipe='pretrain_resnet_digits', cfg_options={**_train, 'synthaug.train_on.store': '{store}'}, once=True),
    on_seen=dict(kind='training', recipe='digits_resnet', cfg_options={
        **_train, 'train_dataloader.dataset.data_root': '{data}/seen', 'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None,
        'train_cfg.val_interval': 1000,
    }, once=True),
    on_shots=dict(kind='training', recipe='pretrain_resnet_digits', cfg_options={
        **_train, 'synthaug.train_on': None, 'train_dataloader.dataset.data_root': '{train}',
    }),
)


def _from(name):
    return dict(cfg_options={'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='{' + name + '}', prefix='backbone.')})


arms = dict(scratch=dict(), on_store=_from('on_store'), on_seen=_from('on_seen'), on_shots=_from('on_shots'))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / 'data', train=range(100), test=range(1400, 1440), val=range(1200, 1240), seen=range(100, 160))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / 'study.py'
    path.write_text(RECIPE)
    return path


def test_a_study_of_pre_training_is_one_command_that_goes_on(copied_workers: None, study: Path, data: Path, tmp_path: Path) -> None:
    results = run(study, data)
    made = tmp_path / 'out' / 'made'
    assert json.loads((made / 'denoiser' / 'model' / 'config.json').read_text())['classes'] == ['three', 'two']
    assert {arm['steps'] for arm in results[0]['arms']} == {2}
    # each is the backbone of its own training, not the one that every training starts with
    backbones = {name: load_backbone(made / name / 'backbone.pth') for name in ('on_store', 'on_seen', 'on_shots/1-shot-0')}
    weights = [state['conv1.weight'] for state in backbones.values()]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    runs = [Config.fromfile(path) for path in (tmp_path / 'out' / '1-shot').rglob('*.py')]
    starts = {cfg.model.backbone.get('init_cfg', {}).get('checkpoint') for cfg in runs if isinstance(cfg.model.backbone.get('init_cfg', {}), dict)}
    assert starts >= {str(made / name / 'backbone.pth') for name in backbones}

    # killed in the last arm: all that is finished stays as it is
    lost, *finished = sorted((tmp_path / 'out' / '1-shot' / 'runs').iterdir())
    shutil.rmtree(lost)
    (tmp_path / 'out' / '1-shot' / 'results.json').unlink()
    before = {folder: files(folder) for folder in (made, *finished)}
    assert len(before) == 4
    assert [arm['test'] for arm in run(study, data)[0]['arms']] == [arm['test'] for arm in results[0]['arms']]
    assert {folder: files(folder) for folder in before} == before and lost.exists()


@pytest.mark.parametrize(
    ('old', 'new', 'says'),
    [
        (
            "cfg_options={\n            'data': '{data}/seen',",
            "cfg_options={\n            'data': '{data}/val',",
            'made.denoiser sees 11 validation or test images',
        ),
        ("'data': '{data}/seen', ", '', 'The recipe names no images'),
        ("'train_dataloader.dataset.data_root': '{data}/seen'", "'train_dataloader.dataset.data_root': '{data}/test'", 'made.on_seen sees'),
        ("'{train}',\n", "'{data}/seen',\n", 'is none of the draw.*once=True'),
        ("'synthaug.train_on.store': '{store}'", "'synthaug.train_on.stor': '{store}'", "train_on has no option 'stor'"),
        ("'synthaug.train_on': None, ", "'synthaug.train_on': None, 'randomness.seed': 3, ", 'randomness.seed, which follows from the draw'),
        (
            'scratch=dict(), ',
            "scratch=dict(), lost=dict(cfg_options={'load_from': 'lost.pth'}), ",
            "load_from starts from 'lost.pth', and there is no such file",
        ),
        (
            "on_seen=dict(kind='training', recipe='digits_resnet', cfg_options={\n        **_train,",
            "on_seen=dict(kind='training', recipe='digits_resnet', "
            "cfg_options={\n        **_train, 'model.backbone.base_channels': 8, 'model.head.in_channels': 64,",
            r'layer1\.0\.conv1\.weight is \(8, 4, 3, 3\) in the checkpoint and \(4, 4, 3, 3\)',
        ),
    ],
)
def test_what_it_must_not_see_or_cannot_use_is_said_before_anything_is_made(study: Path, data: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(SynthAugError, match=says):
        run(change(study, old, new), data)
    assert not (study.parent / 'out' / 'made').exists()


def test_validation_images_of_one_draw_may_be_shots_of_another(copied_workers: None, study: Path, data: Path) -> None:
    shutil.rmtree(data / 'val')
    change(study, 'shots = [1]', 'shots = [4]')
    change(study, 'seeds = [0]', 'seeds = [0, 1]')
    change(study, "on_store=_from('on_store'), on_seen=_from('on_seen'), ", '')
    assert [len(arm['runs']) for arm in run(study, data)[0]['arms']] == [2, 2]
    draws = [study.parent / 'out' / 'draws' / f'4-shot-{seed}' for seed in (0, 1)]
    shots, chosen_on = ({path.name for path in (draw / part).rglob('*.png')} for draw, part in zip(draws, ('train', 'val'), strict=True))
    assert shots & chosen_on


def test_a_start_that_mmengine_would_load_in_part_is_refused(tmp_path: Path) -> None:
    cfg = load_recipe(find_recipe('digits_resnet', 'train'))
    save_backbone({'conv1.weight': torch.zeros(16, 3, 3, 3)}, tmp_path / 'half.pth')
    cfg.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'half.pth'), 'prefix': 'backbone.'}
    with pytest.raises(SynthAugError, match=r'bn1\.weight is no such weight in the checkpoint'):
        check_start(cfg)


@pytest.mark.parametrize(('where', 'prefix'), [('model.backbone.init_cfg', None), ('model.backbone.init_cfg', 'backbon.'), ('model.init_cfg', 'backbone.')])
def test_a_start_of_which_mmengine_would_load_nothing_is_refused(tmp_path: Path, where: str, prefix: str | None) -> None:
    cfg = load_recipe(find_recipe('digits_resnet', 'train'))
    save_backbone(skeleton(cfg.model.backbone).state_dict(), tmp_path / 'whole.pth')
    start = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'whole.pth')}
    cfg.merge_from_dict({where: start | ({'prefix': prefix} if prefix else {})})
    with pytest.raises(SynthAugError, match=rf'{re.escape(where)} has prefix={prefix!r}, with which MMEngine takes nothing over'):
        check_start(cfg)


@pytest.mark.parametrize('where', ['model.backbone.init_cfg', 'model.init_cfg', 'load_from'])
def test_a_start_that_does_not_fit_is_refused_wherever_it_is_named(tmp_path: Path, where: str) -> None:
    cfg = load_recipe(find_recipe('digits_resnet', 'train'))
    file = str(tmp_path / 'half.pth')
    save_backbone({'conv1.weight': torch.zeros(16, 3, 3, 3)}, Path(file))
    start = {'type': 'Pretrained', 'checkpoint': file, **({'prefix': 'backbone'} if 'backbone' in where else {})}
    cfg.merge_from_dict({where: file if where == 'load_from' else start})
    with pytest.raises(SynthAugError, match=r'bn1\.weight is no such weight in the checkpoint'):
        check_start(cfg)


def test_a_start_that_is_not_there_is_refused_and_an_address_is_left_to_mmengine(tmp_path: Path) -> None:
    cfg = load_recipe(find_recipe('digits_resnet', 'train'))
    cfg.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'gone.pth'), 'prefix': 'backbone.'}
    with pytest.raises(SynthAugError, match=r"model\.backbone\.init_cfg starts from '.*gone\.pth', and there is no such file"):
        check_start(cfg)
    cfg.model.backbone.init_cfg.checkpoint = 'torchvision://resnet18'
    check_start(cfg)


def test_the_recipes_of_stages_are_part_of_what_was_made(tmp_path: Path) -> None:
    for name, lr in (('one', 0.1), ('two', 0.2)):
        (tmp_path / f'{name}.py').write_text(f'lr = {lr}\n')
    staged = tmp_path / 'staged.py'
    staged.write_text("synthaug = dict(stages=[dict(name='a', recipe='one.py'), dict(name='b', recipe='two.py')])\n")
    before = load(str(staged), {})
    (tmp_path / 'two.py').write_text('lr = 0.3\n')
    assert recipe_differences(before, load(str(staged), {})) == ['recipe._stages.two.py.lr: 0.2 -> 0.3']


def test_what_the_trainer_says_after_a_training_was_made_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def train_stages(stages: object, folder: Path, backbone: bool) -> Path:
        MMLogger.get_instance('a-stage', logger_name='a-stage').warning('while it trains')
        folder.mkdir()
        (folder / 'backbone.pth').write_bytes(b'')
        return folder

    monkeypatch.setattr('synthaug_plugins.training.stage_run.train_stages', train_stages)
    monkeypatch.setattr(trained, '_stages', lambda *_: ())
    trained.make({}, tmp_path / 'made', 'cpu', None, True)
    print_log('afterwards', logger='current', level=logging.WARNING)
    said = capsys.readouterr()
    assert 'afterwards' in said.out and 'while it trains' not in said.out and 'Logging error' not in said.err
    assert 'while it trains' in (tmp_path / 'made' / 'train.log').read_text()


def test_the_small_model_of_the_study_is_small() -> None:
    from synthaug_plugins.diffusion.networks import parameter_count
    from synthaug_plugins.engine.learn_recipe import model_config

    learn = load_learn_recipe(find_recipe('edm_cifar10_small', 'learn'))
    assert 1_000_000 < parameter_count(model_config(learn, [str(i) for i in range(10)], 0.5)) < 1_500_000
