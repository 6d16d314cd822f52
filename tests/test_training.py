"""Frozen statistics, weighted losses, swaps in the pipeline, and the way from a recipe to a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mix import CLASSES, Recorder, epochs, recipe, run, world  # noqa: F401

from new_process import new_python
from synthaug_plugins.errors import DataError, MissingExtra, RecipeError, SynthAugError, TrainingFailed
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.store.store import Store
from synthaug_plugins.training.run import configure, explain, load_recipe, train
from synthaug_plugins.training.run import test as run_test

import mmpretrain  # isort: skip
from mmengine.config import Config  # isort: skip
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope  # isort: skip
from mmengine.runner import Runner  # isort: skip
from mmpretrain.models.heads import LinearClsHead  # isort: skip
from mmpretrain.structures import DataSample  # isort: skip

SWAP = 'synthaug_plugins.SwapWithSynthetic'


# --- frozen BN


def moved(cfg: Config, work_dir: Path, part: str = 'running') -> dict[str, float]:
    """How far each BatchNorm tensor whose name holds `part` moved in training."""
    cfg = configure(cfg, get_plugin_manager())
    cfg.work_dir = cfg.experiment_name = str(work_dir)
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    return {k: (v - before[k]).abs().max().item() for k, v in runner.model.state_dict().items() if part in k}


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_frozen_bn_keeps_every_statistic_where_it_is(world: Path, tmp_path: Path, loop: str) -> None:  # noqa: F811
    free = moved(recipe(world, loop), tmp_path / 'free')
    frozen = moved(recipe(world, loop, frozen_bn={}), tmp_path / 'frozen')
    assert min(free.values()) > 0.01
    assert set(frozen.values()) == {0.0}
    assert len(frozen) == len(free) > 10


def test_frozen_bn_freezes_the_named_layers_only(world: Path, tmp_path: Path) -> None:  # noqa: F811
    change = moved(recipe(world, frozen_bn={'modules': ['layer1.*bn', r'^backbone\.bn1']}), tmp_path / 'run')
    for name, distance in change.items():
        frozen = name.startswith(('backbone.layer1.', 'backbone.bn1.'))
        assert (distance == 0) == frozen, name


def test_freeze_affine_keeps_scale_and_shift_and_without_it_they_train(world: Path, tmp_path: Path) -> None:  # noqa: F811
    decay = {'optimizer': {'type': 'SGD', 'lr': 0.05, 'weight_decay': 0.1}}
    for affine in (False, True):
        cfg = recipe(world, frozen_bn={'freeze_affine': affine})
        cfg.optim_wrapper = decay
        change = moved(cfg, tmp_path / f'run{affine}', 'bn1.weight')
        assert all((distance == 0) == affine for distance in change.values())


def test_frozen_bn_holds_beside_ema(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = recipe(world, frozen_bn={})
    cfg.custom_hooks.append({'type': 'EMAHook', 'momentum': 0.1})
    assert set(moved(cfg, tmp_path / 'run').values()) == {0.0}


@pytest.mark.parametrize(
    ('options', 'text'),
    [({'modules': 'layer9'}, "'layer9' is found in none of the"), ({'modules': '('}, 'not a regular expression'), ({'module': 'x'}, "Did you mean 'modules'")],
)
def test_frozen_bn_refuses_patterns_that_freeze_nothing(world: Path, tmp_path: Path, options: dict[str, Any], text: str) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=text):
        run(recipe(world, frozen_bn=options), tmp_path)


# --- weighted heads and the preprocessor


def weighted(base: Any = 'LinearClsHead', **options: Any) -> Any:
    init_default_scope('mmpretrain')
    return MODELS.build({'type': 'synthaug_plugins.WeightedHead', 'base': base, 'num_classes': 4, 'in_channels': 8, **options})


def samples(weights: list[float]) -> list[DataSample]:
    made = [DataSample().set_gt_label(i % 4) for i in range(len(weights))]
    for sample, weight in zip(made, weights, strict=True):
        sample.set_field(weight, 'sample_weight', field_type='metainfo')
    return made


@pytest.mark.parametrize(
    'loss',
    [{'type': 'CrossEntropyLoss'}, {'type': 'LabelSmoothLoss', 'label_smooth_val': 0.1, 'num_classes': 4}, {'type': 'CrossEntropyLoss', 'use_soft': True}],
)
def test_a_weighted_head_sums_weighted_losses_over_the_batch(loss: dict[str, Any]) -> None:
    head, plain = weighted(loss=loss), MODELS.build({'type': 'LinearClsHead', 'num_classes': 4, 'in_channels': 8, 'loss': loss})
    assert isinstance(head, LinearClsHead)
    plain.load_state_dict(head.state_dict())  # the same names
    features = torch.randn(6, 8)
    weights = [0.5, 2.0, 0.0, 1.0, 1.0, 0.25]
    batch = samples(weights)
    if loss.get('use_soft'):
        for sample in batch:
            sample.set_gt_score(torch.eye(4)[int(sample.gt_label)])
    alone = [plain.loss((features[i : i + 1],), batch[i : i + 1])['loss'].item() for i in range(6)]
    assert head.loss((features,), batch)['loss'].item() == pytest.approx(np.dot(weights, alone) / 6, rel=1e-5)
    for sample in batch:
        sample.set_field(1.0, 'sample_weight', field_type='metainfo')
    assert head.loss((features,), batch)['loss'].item() == plain.loss((features,), batch)['loss'].item()


def test_heads_and_losses_without_room_for_weights_are_refused() -> None:
    with pytest.raises(RecipeError, match='ArcFaceClsHead computes its loss in its own way'):
        weighted('ArcFaceClsHead')
    with pytest.raises(RecipeError, match=r"'LinearClsHaed' is unknown\. Did you mean 'LinearClsHead'"):
        weighted('LinearClsHaed')
    with pytest.raises(RecipeError, match='The loss L1Loss takes no sample weights'):
        weighted(loss=torch.nn.L1Loss())


def test_the_preprocessor_gives_soft_labels_to_all_and_refuses_to_blend_weights() -> None:
    init_default_scope('mmpretrain')
    build = {'type': 'synthaug_plugins.MixDataPreprocessor', 'num_classes': 4}
    for first in (0, 3):
        batch = samples([1.0] * 4)
        batch[first].set_gt_score(torch.tensor([0.7, 0.1, 0.1, 0.1]))
        done = MODELS.build(build)({'inputs': torch.zeros(4, 3, 8, 8), 'data_samples': batch}, training=True)['data_samples']
        assert torch.equal(torch.stack([s.gt_score for i, s in enumerate(done) if i != first]), torch.eye(4)[[i for i in range(4) if i != first]])
    mixup = MODELS.build({**build, 'batch_augments': {'augments': {'type': 'Mixup', 'alpha': 0.5}}})
    mixup({'inputs': torch.zeros(4, 3, 8, 8), 'data_samples': samples([1.0] * 4)}, training=True)
    with pytest.raises(RecipeError, match='different loss weights'):
        mixup({'inputs': torch.zeros(4, 3, 8, 8), 'data_samples': samples([1.0, 1.0, 2.0, 2.0])}, training=True)


# --- swaps in the pipeline


def swap(world: Path, **options: Any) -> Any:  # noqa: F811
    init_default_scope('mmpretrain')
    return TRANSFORMS.build({'type': SWAP, 'store': str(world / 'some'), 'prob': 1.0, **options})


def test_a_swap_takes_a_variant_of_the_very_image_before_and_after_loading(world: Path) -> None:  # noqa: F811
    transform = swap(world, root=str(world / 'train'))
    load = TRANSFORMS.build({'type': 'LoadImageFromFile'})
    sources = {r['id']: r['source'] for r in Store.open(world / 'some').index().to_pylist()}
    for name in CLASSES:
        info = {'img_path': str(world / 'train' / name / '2.png'), 'gt_label': CLASSES.index(name)}
        before = load(transform(dict(info)))
        after = transform(load(dict(info)))
        for result in (before, after):
            assert result['is_synthetic']
            assert result['gt_label'] == info['gt_label']
            assert sources[result['synthetic_id']] == f'{name}/2.png'
            assert result['img'].shape == (16, 16, 3)
            again = load({'img_path': result['img_path']})['img']
            assert np.array_equal(again, result['img'])
        unlucky = transform({'img_path': str(world / 'train' / name / '9.png'), 'gt_label': 0})  # has no variant
        assert not unlucky['is_synthetic']
    with pytest.raises(DataError, match='lies outside root'):
        transform({'img_path': '/elsewhere/one/2.png', 'gt_label': 0})


def test_a_swap_by_class_keeps_the_class(world: Path) -> None:  # noqa: F811
    labels = {r['id']: r['label'] for r in Store.open(world / 'free').index().to_pylist()}
    transform = swap(world, store=str(world / 'free'), partner='class', classes=CLASSES)
    for label in range(4):
        result = transform({'img': np.zeros((16, 16), np.uint8), 'gt_label': label})
        assert labels[result['synthetic_id']] == label
        assert result['img'].shape == (16, 16)
        assert result['img'].any()


def test_a_recipe_with_swaps_trains_and_with_prob_0_equals_the_stock_one(world: Path, tmp_path: Path) -> None:  # noqa: F811
    stock = run(recipe(world), tmp_path / 'stock')
    options = {'store': str(world / 'some'), 'root': str(world / 'train')}
    zero = run(recipe(world, transform={**options, 'prob': 0.0}), tmp_path / 'zero')
    assert zero.losses == stock.losses
    half = configure(recipe(world, workers=2, transform={**options, 'prob': 1.0}), get_plugin_manager())
    assert [step.type for step in half.train_dataloader.dataset.pipeline][:2] == [SWAP, 'LoadImageFromFile']
    built = Runner.build_dataloader(half.train_dataloader, seed=7)
    paths = [s.img_path for batch in built for s in batch['data_samples']]
    assert sum(p.startswith('synthaug://') for p in paths) == 20  # 5 images of each of 4 classes have variants
    mixed = run(recipe(world, transform={**options, 'prob': 1.0}), tmp_path / 'half')
    assert mixed.losses != stock.losses


def test_swaps_leave_images_alone_that_mix_has_drawn(world: Path) -> None:  # noqa: F811
    mix = {'store': str(world / 'some'), 'alpha': 1, 'partner': 'source'}
    cfg = recipe(world, mix=mix, transform={'store': str(world / 'some'), 'root': str(world / 'train'), 'prob': 1.0})
    assert [m[1] for batch in epochs(cfg) for m in batch if m[0]] == [m[1] for batch in epochs(recipe(world, mix=mix)) for m in batch if m[0]]


def test_swaps_that_could_leak_or_mislabel_are_refused(world: Path) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match='needs root'):
        swap(world)
    with pytest.raises(RecipeError, match='needs classes'):
        swap(world, partner='class')
    with pytest.raises(RecipeError, match='cannot tell whether those are held out'):
        swap(world, partner='class', classes=CLASSES)
    with pytest.raises(RecipeError, match='prob = 2'):
        swap(world, root='x', prob=2)
    cfg = recipe(world, transform={'store': str(world / 'some'), 'root': 'x'})
    cfg.custom_hooks.append({'type': 'SwitchRecipeHook', 'schedule': [{'action_epoch': 2, 'train_pipeline': []}]})
    with pytest.raises(RecipeError, match='the swap would be lost'):
        configure(cfg, get_plugin_manager())


# --- from a recipe to a run


def test_mmpretrains_own_recipes_load_by_name_and_configure(world: Path) -> None:  # noqa: F811
    store = str(world / 'variants')
    cfg = load_recipe('mmpretrain::resnet/resnet18_8xb16_cifar10.py', {'train_dataloader.batch_size': 4, 'model.head.num_classes': 4})
    done = configure(cfg, get_plugin_manager(), {'mix': {'store': store, 'alpha': 0.25}, 'frozen_bn': {}})
    assert done.train_dataloader.batch_size == 4
    assert done.train_dataloader.dataset.real.type == 'CIFAR10'
    assert done.train_dataloader.dataset.stores == [{'store': store, 'weight': 1.0}]
    assert done.train_dataloader.batch_sampler.alpha == 0.25
    assert done.train_dataloader.sampler == cfg.train_dataloader.sampler
    assert {h.type for h in done.custom_hooks} == {'synthaug_plugins.MixResumeHook', 'synthaug_plugins.FrozenBNHook'}
    assert 'batch_sampler' not in cfg.train_dataloader  # the recipe itself is left alone
    with pytest.raises(RecipeError, match=r"Did you mean 'resnet/resnet18_8xb16_cifar10\.py'"):
        load_recipe('mmpretrain::resnet/resnet18_8xb16_cifar1.py')
    with pytest.raises(RecipeError, match='does not exist'):
        load_recipe('nowhere.py')


def test_options_from_the_command_line_are_laid_over_the_recipes(world: Path) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'free'), 'alpha': 0.1})
    done = configure(cfg, get_plugin_manager(), {'mix': {'alpha': 0.9}})
    assert done.train_dataloader.batch_sampler.alpha == 0.9
    assert done.train_dataloader.dataset.stores[0].store == str(world / 'free')
    with pytest.raises(RecipeError, match=r"no plugin reads 'mixx'\. Did you mean 'mix'"):
        configure(recipe(world, mixx={}), get_plugin_manager())
    with pytest.raises(RecipeError, match='mix = 3 is not a dict'):
        configure(recipe(world, mix=3), get_plugin_manager())


RECIPE = """
_base_ = ['mmpretrain::_base_/default_runtime.py']
model = {model}
data_preprocessor = {data_preprocessor}
train_dataloader = {train_dataloader}
train_cfg = {train_cfg}
optim_wrapper = {optim_wrapper}
randomness = {randomness}
synthaug = dict(
    mix=dict(store={store!r}, mode='two_stream', ratio=(2, 1), synthetic_weight=0.5),
    frozen_bn=dict(modules='layer1'),
)
"""


def test_the_explained_recipe_trains_under_mmpretrains_own_launcher_with_the_same_losses(world: Path, tmp_path: Path) -> None:  # noqa: F811
    parts = {k: v for k, v in recipe(world, workers=1).to_dict().items() if not k.startswith('_')}
    parts['train_cfg']['max_epochs'] = 1
    (tmp_path / 'recipe.py').write_text(RECIPE.format(**parts, store=str(world / 'variants')))
    cfg = configure(load_recipe(tmp_path / 'recipe.py', {'default_hooks.logger.interval': 1}), get_plugin_manager())
    text = explain(cfg)
    assert Config.fromstring(text, '.py').to_dict() == cfg.to_dict()
    ours = train(cfg, tmp_path / 'ours')
    assert ours.iter == 6
    (tmp_path / 'explained.py').write_text(text)
    tool = Path(mmpretrain.__file__).parent / '.mim/tools/train.py'
    # What it finds registered is what the recipe itself imports. Transformers, which it would only load, is hidden.
    script = "import runpy, sys; sys.modules['transformers'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = new_python('-c', script, tool, tmp_path / 'explained.py', '--work-dir', tmp_path / 'stock', '--no-pin-memory')
    assert done.status == 0, done.err[-2000:]

    def losses(folder: Path) -> list[str]:
        lines = next(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()
        return [line.split('"loss": ')[1].split(',')[0] for line in lines]

    assert len(losses(tmp_path / 'ours')) == 6
    assert losses(tmp_path / 'ours') == losses(tmp_path / 'stock')


def test_train_resumes_from_the_latest_checkpoint(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'variants')})
    cfg.default_hooks = {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}}
    cfg = configure(cfg, get_plugin_manager())
    cfg.train_cfg.max_epochs = 1
    train(cfg, tmp_path)
    cfg.train_cfg.max_epochs = 2
    resumed = train(cfg, tmp_path, resume=True)
    with pytest.raises(RecipeError, match='still holds its synthaug dict'):
        train(recipe(world, mix={}), tmp_path)
    recorder = next(h for h in resumed.hooks if isinstance(h, Recorder))
    assert len(recorder.batches) == 6
    assert recorder.batches == epochs(recipe(world, mix={'store': str(world / 'variants')}), 2)[6:]


def test_no_workers_over_a_recipe_that_keeps_its_workers(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = recipe(world, workers=0, mix={'store': str(world / 'variants')})
    cfg.train_dataloader.persistent_workers = True
    assert train(configure(cfg, get_plugin_manager()), tmp_path / 'none').iter == 12
    cfg.train_dataloader.update(num_workers=1, persistent_workers=False)
    assert not train(configure(cfg, get_plugin_manager()), tmp_path / 'one').train_dataloader.persistent_workers


def test_plugins_import_nothing_heavy() -> None:
    script = (
        'import sys\n'
        'from synthaug_plugins.training import mix_plugin, transform_plugin, frozen_bn_plugin, run\n'
        "print([m for m in ('torch', 'mmengine', 'mmpretrain', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_every_option_of_the_trainer_plugins_is_explained() -> None:
    from synthaug_plugins.training import frozen_bn_plugin, mix_plugin, transform_plugin

    for plugin in (mix_plugin, transform_plugin, frozen_bn_plugin):
        assert plugin.synthaug_option_names() == (plugin.KEY,)
        assert all(text and '\n' not in text for text in plugin.OPTIONS.values())


# --- what goes wrong is said in one sentence


def test_what_the_trainer_raises_is_one_sentence_and_the_trace_is_kept(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = configure(recipe(world), get_plugin_manager())
    cfg.model.backbone.type = 'ResNut'
    with pytest.raises(TrainingFailed, match=r'KeyError.*ResNut.*error\.txt') as failed:
        train(cfg, tmp_path / 'run')
    assert failed.value.exit_code == 1
    assert 'Traceback' in (tmp_path / 'run' / 'error.txt').read_text()


@pytest.mark.parametrize('folder', ['taken', 'taken/run'])
def test_a_file_in_the_place_of_the_work_folder_is_refused_and_stays(world: Path, tmp_path: Path, folder: str) -> None:  # noqa: F811
    (tmp_path / 'taken').write_text('mine')
    cfg = configure(recipe(world), get_plugin_manager())
    for begin in (lambda: train(cfg, tmp_path / folder), lambda: run_test(cfg, tmp_path / 'taken', tmp_path / folder)):
        with pytest.raises(RecipeError, match=r"taken' is not a folder\. Give another folder with --work-dir\."):
            begin()
    assert (tmp_path / 'taken').read_text() == 'mine'


def test_missing_mmcv_is_named_with_its_extra(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'mmcv' else found(name, *a))
    with pytest.raises(MissingExtra, match=r"pip install 'synthaug-plugins\[mmcv\]'"):
        train(configure(recipe(world), get_plugin_manager()), tmp_path / 'run')


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'mode': ['per_batch']}, 'mode'),
        ({'partner': ['class']}, 'partner'),
        ({'source_root': 5}, 'source_root'),
        ({'seed': 'a'}, 'seed'),
        ({'store': None, 'stores': 5}, 'stores'),
        ({'store': 'nowhere'}, 'nowhere'),
    ],
    ids=str,
)
def test_mix_options_of_the_wrong_kind_are_refused_when_the_recipe_is_read(world: Path, change: dict[str, Any], text: str) -> None:  # noqa: F811
    with pytest.raises(SynthAugError, match=text):
        configure(recipe(world, mix={'store': str(world / 'variants'), **change}), get_plugin_manager())
