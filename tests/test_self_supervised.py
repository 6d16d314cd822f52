"""Self-supervised recipes on stores: MMPretrain's own MoCo v2, and the mix modes for two views of each image, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_mix import (  # noqa: F401
    CLASSES,
    Recorder,
    epochs,
    loader,
    log,
    make_store,
    run,
    two_ranks,
    world,
)

from synthaug_plugins.errors import DataError, RecipeError, StoreError
from synthaug_plugins.handover.export import export
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.recipes import ROOT
from synthaug_plugins.training.key_queue import check_queue
from synthaug_plugins.training.run import configure, load_recipe, train

from mmengine.config import Config  # isort: skip

PARTS = {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False}


def moco(data: Path, iterations: int = 4, batch_size: int = 8, loop: str = 'iter', **synthaug: Any) -> Config:
    """The shipped recipe for 32 pixels, narrower and shorter, on a folder."""
    cfg = load_recipe(ROOT / 'train' / 'pretrain_mocov2_cifar10.py', {**PARTS, 'train_dataloader.batch_size': batch_size})
    cfg.model.backbone.update(stem_channels=4, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    cfg.model.neck.update(in_channels=8, hid_channels=8, out_channels=8)
    cfg.model.update(queue_len=64, feat_dim=8)
    cfg.train_dataloader.dataset.data_root = str(data)
    cfg.train_dataloader.collate_fn = {'type': 'default_collate'}
    cfg.train_cfg = {'by_epoch': False, 'max_iters': iterations}
    if loop == 'epoch':
        cfg.train_dataloader.update(sampler={'type': 'DefaultSampler', 'shuffle': True}, drop_last=True)
        cfg.train_cfg, cfg.param_scheduler = {'by_epoch': True, 'max_epochs': 2}, None
    cfg.default_hooks.checkpoint = None
    cfg.log_level, cfg.custom_hooks = 'WARNING', [{'type': 'Recorder'}]
    if synthaug:
        cfg.synthaug = synthaug
    return cfg


# --- MoCo v2 on a store


def test_loss_of_moco_on_a_store_equals_the_loss_on_the_exported_folder(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store', per_class=9, sources=None, classes=('two', 'one', 'three', 'four'))  # folders stand in another order
    export(store, tmp_path / 'folder')
    on_folder = run(moco(tmp_path / 'folder'), tmp_path / 'a')
    cfg = moco(tmp_path)
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset = {'type': 'synthaug_plugins.StoreDataset', 'store': str(store.folder), 'pipeline': pipeline}
    on_store = run(cfg, tmp_path / 'b')
    assert on_store.losses == on_folder.losses
    assert len(set(on_store.losses)) == 4
    weights = [r.runner.model.state_dict() for r in (on_store, on_folder)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[1])


def test_the_published_recipe_trains_on_a_store(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = load_recipe(ROOT / 'train' / 'pretrain_mocov2.py', {**PARTS, 'train_dataloader.batch_size': 4})
    assert (cfg.model.queue_len, cfg.model.momentum, cfg.model.head.temperature, cfg.optim_wrapper.optimizer.lr) == (65536, 0.001, 0.2, 0.03)
    cfg.train_dataloader.update(num_batch_per_epoch=2)
    cfg.train_dataloader.dataset.store = str(world / 'free')
    cfg.train_dataloader.dataset.pipeline[1].transforms[0][0].scale = 32
    cfg.model.backbone.update(depth=18)
    cfg.model.neck.in_channels, cfg.model.queue_len = 512, 64
    cfg.train_cfg.max_epochs, cfg.default_hooks.checkpoint, cfg.log_level, cfg.custom_hooks = 1, None, 'WARNING', [{'type': 'Recorder'}]
    runner = train(configure(cfg, get_plugin_manager()), tmp_path / 'run')
    assert np.isfinite(next(h for h in runner.hooks if isinstance(h, Recorder)).losses).all()
    assert runner.optim_wrapper.param_groups[0]['initial_lr'] == pytest.approx(0.03 * 4 / 256)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'batch_size': 24}, r'queue_len = 64 of MoCo is no multiple of 24, the batch of a step\. Set model\.queue_len=48'),
        ({'batch_size': 128}, r'queue_len = 64 .* Set model\.queue_len=128'),
        ({'loop': 'epoch'}, 'MoCo wants batches of one size'),
    ],
)
def test_batches_that_do_not_fill_the_queue_are_refused_before_anything_is_built(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    cfg = moco(tmp_path / 'nowhere', **changes)
    cfg.train_dataloader.drop_last = False
    with pytest.raises(RecipeError, match=message):
        train(cfg, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_the_queue_holds_the_batches_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WORLD_SIZE', '3')
    with pytest.raises(RecipeError, match='queue_len = 64 of MoCo is no multiple of 24, the batch of all 3 processes'):
        train(moco(tmp_path / 'nowhere'), tmp_path / 'run', launcher='pytorch')


def test_epochs_of_a_set_number_of_mixed_batches_need_not_drop_a_last_one(tmp_path: Path) -> None:
    cfg = moco(tmp_path / 'nowhere', loop='epoch')
    cfg.train_dataloader.drop_last = False
    cfg.train_dataloader.batch_sampler = {'type': 'synthaug_plugins.MixBatchSampler', 'epoch_steps': 3}
    check_queue(cfg, 'none')
    del cfg.train_dataloader.batch_sampler['epoch_steps']
    with pytest.raises(RecipeError, match='batches of one size'):
        check_queue(cfg, 'none')


# --- mix, without labels


def test_without_labels_any_synthetic_image_takes_a_real_ones_place(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = moco(world / 'train', mix={'store': str(world / 'free'), 'alpha': 0.5})
    cfg.train_dataloader.dataset.with_label = False
    built = loader(cfg)
    batches = [batch for batch, _ in zip(built, range(22), strict=False)]
    samples = [s for batch in batches for s in batch['data_samples']]
    assert not any('gt_label' in s for s in samples)
    assert 0.35 < np.mean([s.is_synthetic for s in samples]) < 0.65
    for batch in batches:
        first, second = batch['inputs']
        assert first.shape == second.shape == (8, 3, 32, 32)
        assert not torch.equal(first, second)
    made = [s.synthetic_id for s in samples if s.is_synthetic][:36]
    assert len(set(made)) == 36  # each once before one comes again


def test_class_names_of_a_store_do_not_matter_without_labels(world: Path, tmp_path: Path) -> None:  # noqa: F811
    other = make_store(tmp_path / 'other', per_class=4, sources=None, classes=('three', 'one'))
    cfg = moco(world / 'train', mix={'store': str(other.folder)})
    assert len(loader(cfg).dataset.records[0]) == 8
    cfg.synthaug.mix.partner = 'class'
    with pytest.raises(StoreError, match='class'):
        loader(cfg)


@pytest.mark.parametrize('mode', ['per_sample', 'per_batch', 'concat', 'phased'])
def test_every_mode_without_weights_trains_moco(world: Path, tmp_path: Path, mode: str) -> None:  # noqa: F811
    mix = {'store': str(world / 'free'), 'mode': mode, **({'phases': [('synthetic', 1), ('real', 1)]} if mode == 'phased' else {})}
    recorder = run(moco(world / 'train', loop='epoch', mix=mix), tmp_path / 'run')
    shares = [np.mean([m[0] for m in batch]) for batch in recorder.batches]
    assert np.isfinite(recorder.losses).all()
    assert {len(batch) for batch in recorder.batches} == {8}
    expected = {'per_batch': [0.5] * 10, 'phased': [1.0] * 5 + [0.0] * 5}
    assert shares == expected[mode] if mode in expected else 0.2 < np.mean(shares) < 0.8


def test_alpha_0_leaves_the_losses_of_moco_alone(world: Path, tmp_path: Path) -> None:  # noqa: F811
    stock = run(moco(world / 'train'), tmp_path / 'stock')
    assert run(moco(world / 'train', mix={'store': str(world / 'free'), 'alpha': 0}), tmp_path / 'mixed').losses == stock.losses


@pytest.mark.parametrize(
    ('mix', 'message'),
    [
        ({'mode': 'two_stream'}, "mode 'two_stream' weighs the loss of each image, and MoCo has no loss of single images. Use mode 'per_batch'"),
        ({'synthetic_weight': 0.5}, 'synthetic_weight = 0.5 weighs the loss of each image'),
        ({'soft_labels': {'column': 'clip_p'}}, 'soft_labels have no effect: MoCo learns without labels'),
    ],
)
def test_what_needs_labels_is_refused_before_anything_loads(world: Path, mix: dict[str, Any], message: str) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=message):
        configure(moco(world / 'train', mix={'store': str(world / 'free'), **mix}), get_plugin_manager())


def test_synthetic_views_of_another_size_are_refused(world: Path, tmp_path: Path) -> None:  # noqa: F811
    for name in CLASSES:
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / name / '0.png')
    cfg = moco(tmp_path, mix={'store': str(world / 'free')})
    cfg.train_dataloader.dataset.pipeline[1].transforms = [[{'type': 'RandomFlip', 'prob': 0.5}]]
    with pytest.raises(DataError, match=r'leave the pipeline as \(\(3, 16, 16\), \(3, 16, 16\)\), real ones as \(\(3, 8, 8\), \(3, 8, 8\)\)'):
        loader(cfg)
