"""Any stock recipe trains on a store alone: `synthaug = dict(train_on=...)` and `synthaug train --store`."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_store_dataset import CLASSES, Store, store_of

from conftest import Say, copy_of_this_process
from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.training.run import configure, load_recipe, train

from mmengine.config import Config  # isort: skip
from mmengine.registry import DATASETS, init_default_scope  # isort: skip

MOCO, RESNET50, CIFAR10 = (
    f'mmpretrain::{name}' for name in ('mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py', 'resnet/resnet50_8xb32_in1k.py', 'resnet/resnet18_8xb16_cifar10.py')
)


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """12 grey images of 8 x 8 pixels, of three classes."""
    return store_of(tmp_path_factory.mktemp('train-on') / 's')


def configured(recipe: str | Config, store: Store, **train_on: Any) -> Config:
    cfg = load_recipe(find_recipe(recipe, 'train')) if isinstance(recipe, str) else recipe
    return configure(cfg, get_plugin_manager(), {'train_on': {'store': str(store.folder), **train_on}})


def small(root: Path, epochs: int = 1) -> Config:
    """A recipe on folders of images, of a network for three classes."""
    cfg = load_recipe(find_recipe('digits_resnet', 'train'))
    cfg.model.backbone.update(base_channels=4, stem_channels=4)
    cfg.model.head.update(num_classes=3, in_channels=32)
    cfg.data_preprocessor.num_classes = 3
    cfg.train_dataloader.update(batch_size=3, sampler={'type': 'mmengine.DefaultSampler', 'shuffle': True})
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(root)
    cfg.merge_from_dict({'train_cfg': {'_delete_': True, 'by_epoch': True, 'max_epochs': epochs}, 'log_level': 'WARNING'})
    cfg.default_hooks.checkpoint, cfg.param_scheduler = None, None
    return cfg


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(root / name / '0.png')
    return root


# --- what it does to a recipe


def test_pipeline_sampler_and_wrappers_stay_the_recipes_own(store: Store) -> None:
    stock = load_recipe(RESNET50)
    stock.train_dataloader.dataset = {'type': 'RepeatDataset', 'times': 3, 'dataset': stock.train_dataloader.dataset}
    cfg = configured(stock, store, select='score < 2', num_classes='store', validate=False)
    made = cfg.train_dataloader.dataset.dataset
    assert made.pop('pipeline') == stock.train_dataloader.dataset.dataset.pipeline
    assert made == {'type': 'synthaug_plugins.StoreDataset', 'store': str(store.folder), 'select': 'score < 2'}
    assert cfg.train_dataloader.sampler == stock.train_dataloader.sampler
    init_default_scope('mmpretrain')
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 18


def test_head_loss_and_preprocessor_take_the_stores_number_of_classes(store: Store) -> None:
    stock = load_recipe(RESNET50)
    stock.model.head.loss.num_classes = 1000
    cfg = configured(stock, store, num_classes='store', validate=False)
    assert cfg.model.head.num_classes == cfg.model.head.loss.num_classes == cfg.data_preprocessor.num_classes == 3
    assert [cfg[f'{name}_{part}'] for name in ('val', 'test') for part in ('dataloader', 'cfg', 'evaluator')] == [None] * 6


def test_a_recipe_without_labels_sees_two_views_of_each_image(store: Store) -> None:
    cfg = configured(MOCO, store)
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 12
    assert [tuple(view.shape) for view in dataset[5]['inputs']] == [(3, 224, 224)] * 2


@pytest.mark.parametrize('to_rgb', [False, True])
def test_recipes_with_images_in_memory_get_them_in_the_channel_order_they_expect(tmp_path: Path, to_rgb: bool) -> None:
    red = store_of(tmp_path / 'red', color=(200, 0, 0))
    stock = load_recipe(CIFAR10)
    stock.data_preprocessor.to_rgb = to_rgb
    del stock.train_dataloader.dataset.pipeline[:2]  # RandomCrop of 32 pixels, RandomFlip
    cfg = configured(stock, red, num_classes='store', validate=False)
    init_default_scope('mmpretrain')
    channels = DATASETS.build(cfg.train_dataloader.dataset)[0]['inputs'].amax((1, 2)).tolist()
    assert channels == ([0, 0, 200] if to_rgb else [200, 0, 0])


def test_a_set_that_is_a_store_already_keeps_its_type_and_options(store: Store) -> None:
    cfg = load_recipe(RESNET50)
    cfg.train_dataloader.dataset = {'type': 'mine.OwnStoreDataset', 'store': 'old', 'select': 'old', 'own': 1, 'pipeline': []}
    made = configured(cfg, store, num_classes='store', validate=False).train_dataloader.dataset
    assert made == {'type': 'mine.OwnStoreDataset', 'store': str(store.folder), 'select': 'old', 'own': 1, 'pipeline': []}
    assert configured(cfg, store, select='new', num_classes='store', validate=False).train_dataloader.dataset.select == 'new'


# --- what is refused


@pytest.mark.parametrize(
    ('recipe', 'options', 'text'),
    [
        (RESNET50, ['--store', '{store}'], r"'\S+' has 3 classes, and the recipe has a head for 1000 .*model.head.num_classes=3"),
        (RESNET50, ['--mix', '{store}', '--cfg-options', 'model.head.num_classes=2'], 'has 3 classes, and the recipe has a head for 2'),
        (RESNET50, ['--store', '{store}', '--mix', '{store}'], 'train_on takes the place of the real images that mix needs'),
        (RESNET50, ['--store', '{store}/none'], 'is not a store'),
        (RESNET50, ['--cfg-options', 'synthaug.train_on.select=x'], 'train_on needs store'),
        (RESNET50, ['--store', '{store}', '--cfg-options', 'synthaug.train_on.num_classes=3'], "num_classes = 3 is unknown. Use 'store'"),
        (RESNET50, ['--store', '{store}', '--cfg-options', 'synthaug.train_on.selct=x'], "no option 'selct'.*select"),
        (RESNET50, ['--store', '{store}', '--cfg-options', 'train_dataloader.dataset.pipeline.0.backend_args.backend=petrel', 'synthaug.train_on.num_classes=store'], 'cannot open the images of a store'),
        (MOCO, ['--store', '{store}', '--cfg-options', 'synthaug.train_on.num_classes=store'], 'this recipe has none'),
        (CIFAR10, ['--store', '{store}', '--cfg-options', 'synthaug.train_on.num_classes=store'], 'takes images of 32 x 32 pixels as they are, and those of .* have 8 x 8'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_loads(store: Store, synthaug: Say, recipe: str, options: list[str], text: str) -> None:
    said = synthaug('explain', recipe, *(o.replace('{store}', str(store.folder)) for o in options))
    assert said.status != 0
    assert not said.out
    assert re.search(text, said.err.replace('\n', ' ')), said.err


def test_a_crop_given_as_height_and_width_is_compared_with_the_stores_images(tmp_path: Path, store: Store) -> None:
    cfg = load_recipe(CIFAR10)
    cfg.train_dataloader.dataset.pipeline[0].crop_size = (8, 8)
    assert configured(cfg, store, num_classes='store', validate=False).train_dataloader.dataset.store == str(store.folder)
    cfg.train_dataloader.dataset.pipeline[0].crop_size = (16, 8)
    with pytest.raises(RecipeError, match='takes images of 16 x 8 pixels as they are'):
        configured(cfg, store, num_classes='store', validate=False)


def test_several_parts_of_a_training_set_are_refused(store: Store) -> None:
    cfg = load_recipe(MOCO)
    cfg.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [cfg.train_dataloader.dataset] * 2}
    with pytest.raises(RecipeError, match='has 2 parts'):
        configured(cfg, store)


@pytest.mark.parametrize('classes', [('cat', 'dog'), ('owl', 'dog', 'cat')])
def test_stores_that_recipes_name_themselves_must_fit_their_heads_too(tmp_path: Path, classes: tuple[str, ...]) -> None:
    cfg = small(tmp_path)
    cfg.train_dataloader.dataset = {'type': 'synthaug_plugins.StoreDataset', 'store': str(store_of(tmp_path / 's', classes=classes).folder), 'pipeline': []}
    if len(classes) == 3:
        configure(cfg, get_plugin_manager())
        return
    with pytest.raises(RecipeError, match='has 2 classes, and the recipe has a head for 3'):
        configure(cfg, get_plugin_manager())


# --- training


def test_validation_on_other_classes_or_in_another_order_never_begins(tmp_path: Path, store: Store) -> None:
    two = configured(small(folders(tmp_path / 'two', 'cat', 'dog')), store)
    with pytest.raises(DataError, match=r'The validation set has 2 classes, and the store .* has 3\..*validate=False'):
        train(two, tmp_path / 'a')
    turned = store_of(tmp_path / 'turned', classes=('owl', 'dog', 'cat'))
    with pytest.raises(DataError, match="in another order: 'cat' where the store has 'owl'"):
        train(configured(small(folders(tmp_path / 'three', *CLASSES)), turned), tmp_path / 'b')
    train(configured(small(tmp_path / 'three'), store), tmp_path / 'c')


def test_a_class_in_another_place_is_refused_though_others_have_other_names(tmp_path: Path, store: Store) -> None:
    shifted = configured(small(folders(tmp_path / 'data', 'ape', 'cat', 'dog')), store)  # the store has cat, dog, owl
    with pytest.raises(DataError, match="in another order: 'ape' where the store has 'cat'"):
        train(shifted, tmp_path / 'run')


def train_as(rank: int, folder: Path, cfg: Config) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2')
    torch.distributed.init_process_group('gloo', f'file://{folder}/group', rank=rank, world_size=2)
    runner = train(cfg, folder / f'run{rank}', launcher='pytorch')
    sampler = runner.train_dataloader.sampler
    torch.save({'indices': list(sampler), 'weights': runner.model.module.state_dict()}, folder / f'{rank}.pth')


def test_two_processes_share_a_store_and_end_with_the_same_weights(tmp_path: Path, store: Store) -> None:
    cfg = configured(small(tmp_path), store, validate=False)
    cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', 'device_ids': None}
    cfg.optim_wrapper.optimizer = {'type': 'SGD', 'lr': 0.1}
    processes = [copy_of_this_process(functools.partial(train_as, rank, tmp_path, cfg)) for rank in (0, 1)]
    for process in processes:
        ended = process.end()
        assert ended.status == 0, ended.err[-3000:]
    a, b = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    assert sorted(a['indices'] + b['indices']) == list(range(12))
    learned = {name for name in a['weights'] if 'running' not in name}
    assert all(torch.equal(a['weights'][name], b['weights'][name]) for name in learned)


@pytest.mark.parametrize(
    'name', ['pretrain_resnet50_aware', 'pretrain_resnet50_agnostic', 'pretrain_deit_small', 'pretrain_resnet_cifar10', 'pretrain_resnet_digits']
)
def test_every_recipe_of_pretraining_on_a_store_trains_from_its_file(tmp_path: Path, store: Store, name: str) -> None:
    more = {'pretrain_deit_small': {}, 'pretrain_resnet50_aware': {}, 'pretrain_resnet50_agnostic': {}}.get(name, {'num_classes': 'store'})
    cfg = configured(name, store, **more)
    cfg.merge_from_dict({'train_dataloader': {'batch_size': 2, 'num_workers': 0, 'num_batch_per_epoch': 1}, 'log_level': 'WARNING'})
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform.type.endswith('RandomResizedCrop'):
            transform.scale = 32
    if 'VisionTransformer' in cfg.model.backbone.type:
        cfg.model.backbone.update(img_size=32, arch={'embed_dims': 384, 'num_layers': 1, 'num_heads': 6, 'feedforward_channels': 384})
    length = {'max_epochs': 1} if cfg.train_cfg.by_epoch else {'max_iters': 1}
    cfg.train_cfg.update(length)
    cfg.param_scheduler, cfg.default_hooks.checkpoint = None, None
    runner = train(cfg, tmp_path / 'run')
    assert runner.iter == 1
    assert runner.model.head.num_classes == 3
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())
