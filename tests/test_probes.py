"""Probes: a backbone is measured as it is, and only the one that was given."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from test_ablation import write_data

from conftest import copy_of_this_process
from synthaug_plugins import compat
from synthaug_plugins.errors import SynthAugError
from synthaug_plugins.plugins import get_plugin_manager, register_nouns
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.training.backbone_weights import load_backbone, save_backbone, skeleton
from synthaug_plugins.training.probes import neighbour_votes
from synthaug_plugins.training.run import configure, load_recipe, train
from synthaug_plugins.training.run import test as evaluate

SMALL = {
    'model.backbone.stem_channels': 4,
    'model.backbone.base_channels': 4,
    'model.head.in_channels': 32,
    'model.head.num_classes': 2,
    'data_preprocessor.num_classes': 2,
}


@pytest.fixture(autouse=True, scope='module')
def nouns() -> None:
    register_nouns()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / 'data', train=range(100), test=range(1400, 1440), val=range(1200, 1240))


def random_backbone(path: Path, options: dict[str, Any] = SMALL) -> Path:
    """A checkpoint of the recipe's backbone with weights by chance."""
    compat.apply()
    import mmpretrain.models  # noqa: F401
    from mmengine.registry import MODELS, DefaultScope

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(load_recipe(find_recipe('finetune_resnet_cifar10', 'train'), options).model.backbone)
    backbone.init_weights()
    save_backbone(backbone.state_dict(), path)
    return path


def linear(data: Path, checkpoint: Path, **options: Any) -> Config:
    folders = {f'{part}_dataloader.dataset.data_root': str(data / part) for part in ('train', 'val', 'test')}
    short = {
        'train_cfg.max_iters': 3,
        'train_cfg.val_interval': 2,
        'param_scheduler': [],
        'train_dataloader.batch_size': 4,
        **{f'{part}_dataloader.num_workers': 0 for part in ('train', 'val', 'test')},
    }
    cfg = load_recipe(
        find_recipe('linear_probe_resnet_cifar10', 'train'), {**SMALL, **folders, **short, 'custom_hooks.0.checkpoint': str(checkpoint), **options}
    )
    return configure(cfg, get_plugin_manager())


def nearest(data: Path, **options: Any) -> Config:
    places = {
        'test_cfg.bank_dataloader.dataset.data_root': str(data / 'train'),
        'test_dataloader.dataset.data_root': str(data / 'test'),
        'test_cfg.bank_dataloader.num_workers': 0,
        'test_cfg.bank_dataloader.persistent_workers': False,
        'test_dataloader.num_workers': 0,
        'test_cfg.k': 3,
    }
    return configure(load_recipe(find_recipe('knn_probe_resnet_cifar10', 'train'), {**SMALL, **places, **options}), get_plugin_manager())


def test_a_linear_probe_trains_its_head_and_nothing_else(data: Path, tmp_path: Path) -> None:
    checkpoint = random_backbone(tmp_path / 'backbone.pth')
    runner = train(linear(data, checkpoint), tmp_path / 'run')
    given, now = load_backbone(checkpoint), runner.model.backbone.state_dict()
    assert all(torch.equal(now[key], value) for key, value in given.items())  # statistics of BatchNorm, too
    assert runner.model.head.fc.bias.abs().sum() > 0  # it starts at zero


def test_a_linear_probe_of_another_backbone_or_one_that_trains_is_refused(data: Path, tmp_path: Path) -> None:
    other = random_backbone(tmp_path / 'other.pth', {**SMALL, 'model.backbone.base_channels': 8})
    with pytest.raises(SynthAugError, match=r'layer1\.0\.conv1\.weight is \(8, 4, 3, 3\) in the checkpoint and \(4, 4, 3, 3\)'):
        train(linear(data, other), tmp_path / 'a')
    with pytest.raises(SynthAugError, match=r'would train.*frozen_stages'):
        train(linear(data, random_backbone(tmp_path / 'b.pth'), **{'model.backbone.frozen_stages': -1}), tmp_path / 'b')


def test_votes_are_those_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    features, bank = (torch.nn.functional.normalize(torch.randn(n, 5), dim=1) for n in (4, 30))
    labels = torch.arange(30) % 3
    votes = neighbour_votes(features, bank, labels, 3, 7, 0.07)
    for row, feature in zip(votes, features, strict=True):
        cosines = sorted(((float(feature @ other), int(label)) for other, label in zip(bank, labels, strict=True)), reverse=True)[:7]
        expected = [sum(math.exp(s / 0.07) for s, label in cosines if label == c) for c in range(3)]
        torch.testing.assert_close(row, torch.tensor(expected) / sum(expected), rtol=1e-4, atol=1e-5)


def test_the_nearest_of_the_training_images_themselves_are_themselves(data: Path, tmp_path: Path) -> None:
    checkpoint = random_backbone(tmp_path / 'backbone.pth')
    metrics = evaluate(nearest(data, **{'test_cfg.k': 1, 'test_dataloader.dataset.data_root': str(data / 'train')}), checkpoint, tmp_path / 'run')
    assert metrics == {'accuracy/top1': 100.0}


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'test_cfg.k': 1000}, 'training images, fewer than k = 1000'),
        ({'test_cfg.k': 0}, 'no number of neighbours'),
        ({'test_cfg.temperature': -1}, 'not positive'),
        ({'model.backbone.base_channels': 8}, r'\(4, 4, 3, 3\) in the checkpoint and \(8, 4, 3, 3\)'),
    ],
)
def test_a_nearest_neighbour_probe_that_cannot_be_is_refused(data: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SynthAugError, match=says):
        evaluate(nearest(data, **options), random_backbone(tmp_path / 'backbone.pth'), tmp_path / 'run')


def test_training_and_test_images_of_other_classes_are_refused_since_labels_are_numbers(data: Path, tmp_path: Path) -> None:
    first = sorted((data / 'test').iterdir())[0]
    first.rename(first.with_name(f'z{first.name}'))  # it was label 0 and is the last one
    with pytest.raises(SynthAugError, match='The classes differ'):
        evaluate(nearest(data), random_backbone(tmp_path / 'backbone.pth'), tmp_path / 'run')


def test_two_processes_find_what_one_finds_and_train_one_head(data: Path, tmp_path: Path) -> None:
    checkpoint = random_backbone(tmp_path / 'backbone.pth')
    alone = evaluate(nearest(data), checkpoint, tmp_path / 'alone')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])

    def as_rank(rank: int) -> None:
        os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
        found = evaluate(nearest(data), checkpoint, tmp_path / 'two', 'pytorch')
        runner = train(linear(data, checkpoint), tmp_path / 'trained', launcher='pytorch')
        torch.save((found, runner.model.module.head.state_dict()), tmp_path / f'{rank}.pt')

    processes = [copy_of_this_process(lambda rank=rank: as_rank(rank)) for rank in (0, 1)]
    for process in processes:
        ended = process.end()
        assert ended.status == 0, ended.err[-3000:]
    (first, head), (second, other) = (torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in (0, 1))
    assert first == alone and second in (alone, {})
    assert all(torch.equal(head[key], other[key]) for key in head)


def test_the_shipped_probes_of_cifar100_build() -> None:
    for name in ('linear_probe_cifar100', 'knn_probe_cifar100'):
        cfg = configure(load_recipe(find_recipe(name, 'train')), get_plugin_manager())
        assert not any(p.requires_grad for p in skeleton(cfg.model.backbone).parameters())
