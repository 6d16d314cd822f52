"""Real and synthetic images meet in a batch as the recipe says, whatever the number of workers, processes and resumes."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import copy_of_this_process, digits
from synthaug_plugins import compat
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id, request_seed
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store

compat.apply()

from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.registry import HOOKS, init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from synthaug_plugins.mixing.batch_sampler import MixBatchSampler  # noqa: E402
from synthaug_plugins.mixing.partners import Walk  # noqa: E402
from synthaug_plugins.mixing.records import Groups  # noqa: E402
from synthaug_plugins.training.run import configure, stop_workers  # noqa: E402

CLASSES = ('four', 'one', 'three', 'two')
DIGITS = {'four': 4, 'one': 1, 'three': 3, 'two': 2}
PER_CLASS = 11  # 44 real images: the last batch of 8 is short


# --- a small world: folders of digits, stores made from them, recipes


def digit_images(name: str, n: int, first: int = 0) -> np.ndarray:
    """(n, 16, 16, 3) uint8, real handwriting."""
    data = digits()
    chosen = data.images[data.target == DIGITS[name]][first : first + n]
    gray = np.kron((chosen * 15.9).astype(np.uint8), np.ones((2, 2), np.uint8))
    return np.repeat(gray[..., None], 3, axis=-1)


def make_real(folder: Path, per_class: int = PER_CLASS, first: int = 0) -> Path:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(digit_images(name, per_class, first)):
            Image.fromarray(pixels).save(folder / name / f'{i}.png')
    return folder


def make_store(folder: Path, per_class: int = 2 * PER_CLASS, sources: int | None = PER_CLASS, seed: int = 0, classes: Sequence[str] = CLASSES) -> Store:
    """Noisy copies, cycling through the first `sources` real images of each class (None: from nothing)."""
    ids = {name: [f'{name}/{i}.png' for i in range(sources or 0)] for name in classes}
    store = Store.create(folder, Plan(tuple(classes), make_blocks(classes, per_class, ids, 16), {'seed': seed}), {'model': 'test'})
    for block in store.unfinished():
        rows = []
        for part, number in ((p, n) for p in block.parts for n in range(p.target)):
            key = request_seed(seed, part, number)
            which = (part.first + number) % (sources or PER_CLASS)
            source = part.sources[which] if sources else None
            noise = np.random.default_rng(key).integers(-30, 31, (16, 16, 1))
            pixels = np.clip(digit_images(part.class_name, 1, which)[0].astype(int) + noise, 0, 255).astype(np.uint8)
            request = Request(request_id(part, number), part.label, part.class_name, key, source, params={'number': number})
            rows.append(Row(request, 'kept', None, 'png', encode(pixels, 'png', 90), {'clip_p': number / part.target}))
        store.publish(block, rows, keep_rejected=False)
    return store


@pytest.fixture(scope='session')
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ (real), variants/ (two per real image), free/ (from nothing), some/ (variants of 5 images per class)."""
    root = tmp_path_factory.mktemp('world')
    make_real(root / 'train')
    make_store(root / 'variants')
    make_store(root / 'free', per_class=9, sources=None, seed=1)
    make_store(root / 'some', per_class=10, sources=5, seed=2)
    return root


def recipe(world: Path, loop: str = 'epoch', workers: int = 0, batch_size: int = 8, **synthaug: Any) -> Config:
    """A small MMPretrain recipe on world/train; the augmentation draws from the global random state."""
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'RandomCrop', 'crop_size': 16, 'padding': 2},
        {'type': 'RandomFlip', 'prob': 0.5, 'direction': 'horizontal'},
        {'type': 'PackInputs'},
    ]
    by_epoch = loop == 'epoch'
    return Config(
        {
            'default_scope': 'mmpretrain',
            'model': {
                'type': 'ImageClassifier',
                'backbone': {'type': 'ResNet_CIFAR', 'depth': 18, 'base_channels': 4, 'stem_channels': 4, 'num_stages': 2, 'out_indices': (1,),
                             'strides': (1, 2), 'dilations': (1, 1)},
                'neck': {'type': 'GlobalAveragePooling'},
                'head': {'type': 'LinearClsHead', 'num_classes': 4, 'in_channels': 8, 'loss': {'type': 'CrossEntropyLoss', 'loss_weight': 1.0}},
            },
            'data_preprocessor': {'num_classes': 4, 'mean': [60.0] * 3, 'std': [80.0] * 3, 'to_rgb': True},
            'train_dataloader': {
                'batch_size': batch_size,
                'num_workers': workers,
                'persistent_workers': workers > 0,
                'collate_fn': {'type': 'default_collate'},
                'sampler': {'type': 'DefaultSampler' if by_epoch else 'InfiniteSampler', 'shuffle': True},
                'dataset': {'type': 'CustomDataset', 'data_root': str(world / 'train'), 'pipeline': pipeline},
            },
            'train_cfg': {'by_epoch': True, 'max_epochs': 2} if by_epoch else {'by_epoch': False, 'max_iters': 12},
            'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}},
            'randomness': {'seed': 7},
            'log_level': 'WARNING',
            'default_hooks': {'checkpoint': None},
            'custom_hooks': [{'type': 'Recorder'}],
            **({'synthaug': synthaug} if synthaug else {}),
        }
    )  # fmt: skip


@HOOKS.register_module(force=True)
class Recorder(Hook):
    """Notes what each batch held and what it cost."""

    runner: Runner

    def __init__(self) -> None:
        self.batches: list[list[tuple[Any, ...]]] = []
        self.losses: list[float] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.batches.append([describe(s) for s in data_batch['data_samples']])

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(outputs['loss'].item())


@HOOKS.register_module(force=True)
class ShapeRecorder(Hook):
    """Notes the image size of each batch."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.shapes.append(tuple(data_batch['inputs'].shape[2:]))


def describe(sample: Any) -> tuple[Any, ...]:
    """(synthetic?, what, label, weight) of a sample; `what` is the file of a real image or the id of a synthetic one."""
    synthetic = sample.get('is_synthetic', False)
    what = sample.synthetic_id if synthetic else '/'.join(sample.img_path.split('/')[-2:])
    return synthetic, what, int(sample.get('gt_label', -1)), sample.get('sample_weight', 1.0)


def run(cfg: Config, work_dir: Path, **changes: Any) -> Recorder:
    cfg = configure(cfg, get_plugin_manager())
    for key, value in changes.items():
        cfg[key] = value
    cfg.work_dir, cfg.experiment_name = str(work_dir), str(work_dir).replace('/', '_')
    runner = Runner.from_cfg(cfg)
    runner.train()
    stop_workers(runner)
    recorder = next(h for h in runner.hooks if isinstance(h, Recorder))
    recorder.runner = runner
    return recorder


def loader(cfg: Config) -> Any:
    """The configured train loader alone."""
    init_default_scope('mmpretrain')
    return Runner.build_dataloader(configure(cfg, get_plugin_manager()).train_dataloader, seed=7)


def epochs(cfg: Config, n: int = 1) -> list[list[tuple[Any, ...]]]:
    """What `n` epochs of the loader hold, without a model."""
    built = loader(cfg)
    batches = []
    for epoch in range(n):
        built.batch_sampler.sampler.set_epoch(epoch)
        batches += [[describe(s) for s in batch['data_samples']] for batch in built]
    return batches


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Lines that go to MMEngine's logger during a test."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = MMLogger.get_current_instance()
    logger.setLevel('INFO')
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


# --- alpha = 0 is the stock recipe


@pytest.mark.parametrize(('loop', 'workers'), [('epoch', 0), ('epoch', 2), ('iter', 0), ('iter', 2)])
def test_with_alpha_0_every_loss_equals_the_stock_recipe(world: Path, tmp_path: Path, loop: str, workers: int) -> None:
    stock = run(recipe(world, loop, workers), tmp_path / 'stock')
    mixed = run(recipe(world, loop, workers, mix={'store': str(world / 'variants'), 'alpha': 0}), tmp_path / 'mixed')
    assert len(stock.losses) == 12
    assert mixed.losses == stock.losses
    assert [[b[1] for b in batch] for batch in mixed.batches] == [[b[1] for b in batch] for batch in stock.batches]
    half = run(recipe(world, loop, workers, mix={'store': str(world / 'variants'), 'alpha': 0.5}), tmp_path / 'half')
    assert half.losses != stock.losses


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_head_and_preprocessor_of_ours_leave_the_stock_losses_alone(world: Path, tmp_path: Path, loop: str) -> None:
    stock = run(recipe(world, loop), tmp_path / 'stock')
    cfg = recipe(world, loop, mix={'store': str(world / 'variants'), 'alpha': 0, 'synthetic_weight': 0.3})
    assert configure(cfg, get_plugin_manager()).model.head.type == 'synthaug_plugins.WeightedHead'
    assert configure(cfg, get_plugin_manager()).data_preprocessor.type == 'synthaug_plugins.MixDataPreprocessor'
    assert run(cfg, tmp_path / 'mixed').losses == stock.losses


# --- per_sample


def test_per_sample_swaps_positions_for_their_partners_and_nothing_else(world: Path) -> None:
    store = str(world / 'variants')
    stock = epochs(recipe(world, mix={'store': store, 'alpha': 0}), 4)
    sources = {r['id']: r['source'] for r in Store.open(store).index().to_pylist()}
    for partner in ('source', 'class', 'any'):
        mixed = epochs(recipe(world, mix={'store': store, 'alpha': 0.5, 'partner': partner}), 4)
        pairs = [(m, s) for batch_m, batch_s in zip(mixed, stock, strict=True) for m, s in zip(batch_m, batch_s, strict=True)]
        swapped = [(m, s) for m, s in pairs if m[0]]
        assert all(m == s for m, s in pairs if not m[0])
        assert 0.35 < len(swapped) / len(pairs) < 0.65
        if partner == 'source':
            assert all(sources[m[1]] == s[1] for m, s in swapped)
            assert len({m[1] for m, s in swapped}) > 0.5 * 2 * PER_CLASS * 4  # both variants of an image come up
        if partner == 'class':
            assert all(m[2] == s[2] for m, s in swapped)
        if partner == 'any':
            assert any(m[2] != s[2] for m, s in swapped)
    assert all(m[0] for batch in epochs(recipe(world, mix={'store': store, 'alpha': 1})) for m in batch)


def test_composition_is_the_same_with_0_1_and_2_workers_and_differs_between_epochs_and_seeds(world: Path) -> None:
    mix = {'store': str(world / 'variants'), 'alpha': 0.5}
    none = epochs(recipe(world, mix=mix), 2)
    assert [epochs(recipe(world, workers=n, mix=mix), 2) for n in (1, 2)] == [none, none]
    where = [[m[0] for m in batch] for batch in none]
    assert where[:6] != where[6:]
    assert where != [[m[0] for m in batch] for batch in epochs(recipe(world, mix={**mix, 'seed': 3}), 2)]


def test_partner_any_uses_every_record_once_before_one_comes_again(world: Path) -> None:
    drawn = [m[1] for batch in epochs(recipe(world, mix={'store': str(world / 'free'), 'alpha': 1, 'partner': 'any'}), 3) for m in batch]
    n = 9 * len(CLASSES)
    laps = [drawn[i : i + n] for i in range(0, len(drawn), n)]
    assert all(len(set(lap)) == len(lap) for lap in laps[: len(drawn) // n])
    assert laps[0] != laps[1]


def turns(drawn: Sequence[Any], n: int) -> list[int]:
    """How many different records each whole lap of n draws holds."""
    return [len(set(drawn[i : i + n])) for i in range(0, len(drawn) - n + 1, n)]


@pytest.mark.parametrize(
    'mode',
    [{'alpha': 0.5}, {'alpha': [(0, 0.2), (2, 0.0), (3, 1.0), (4, 0.6)]}, {'mode': 'per_batch', 'ratio': (3, 1)}, {'mode': 'two_stream', 'ratio': (4, 1)}],
)
def test_partner_any_gives_each_record_of_each_store_its_turn_before_one_comes_again(world: Path, mode: dict[str, Any]) -> None:
    stores = [{'store': str(world / 'some'), 'weight': 2}, {'store': str(world / 'free')}]  # 40 and 36 records
    mix = {'stores': stores, **mode, **({} if mode.get('mode') == 'two_stream' else {'partner': 'any'})}
    for epoch_steps in (None, 5):  # 5: epochs that begin and end within a pass
        batches = loader(recipe(world, mix={**mix, 'epoch_steps': epoch_steps})).batch_sampler
        drawn: list[int] = []
        for epoch in range(24):
            batches.sampler.set_epoch(epoch)
            drawn += [i for batch in batches for i in (e[0] if isinstance(e, tuple) else e for e in batch) if i >= 44]
        some, free = [i for i in drawn if i < 84], [i for i in drawn if i >= 84]
        assert len(turns(some, 40)) >= 2
        assert set(turns(some, 40)) == {40}
        assert set(turns(free, 36)) == {36}
        assert abs(len(some) / len(drawn) - 2 / 3) < 0.07
        # a run that starts in a late epoch, as a resumed one does, draws the same
        late = loader(recipe(world, mix={**mix, 'epoch_steps': epoch_steps})).batch_sampler
        late.sampler.set_epoch(23)
        batches.sampler.set_epoch(23)
        assert list(late) == list(batches)


def test_turns_of_stores_are_exact_whatever_their_weights() -> None:
    weights = np.array([1.0, 0.003, 5.0, 0.5])
    sizes = np.array([700, 5, 1100, 64])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    slots = np.arange(20_000)
    drawn = Walk(sizes, weights, first, 3).at(slots)
    for s, size in enumerate(sizes):
        mine = drawn[(drawn >= first[s]) & (drawn < first[s] + size)].tolist()
        assert abs(len(mine) - 20_000 * weights[s] / weights.sum()) <= 0.03 * 20_000 * weights[s] / weights.sum() + 2
        assert set(turns(mine, size)) <= {size}
    mixed = np.random.default_rng(0).permutation(slots)
    again = Walk(sizes, weights, first, 3).at(mixed)  # in any order of asking
    assert np.array_equal(again, drawn[mixed])
    with pytest.raises(RecipeError, match='below a millionth'):
        Walk(sizes, np.array([1.0, 1e-8, 1.0, 1.0]), first, 3)


def test_stores_are_drawn_by_their_weights(world: Path) -> None:
    stores = [{'store': str(world / 'variants'), 'weight': 3}, {'store': str(world / 'free')}]
    batches = loader(recipe(world, mix={'stores': stores, 'alpha': 1, 'partner': 'class'})).batch_sampler
    drawn = []
    for epoch in range(40):
        batches.sampler.set_epoch(epoch)
        drawn += [i for batch in batches for i in batch]
    first = batches.dataset.records[0]
    share = np.mean([i < 44 + len(first) for i in drawn])
    assert 0.72 < share < 0.78


def test_alpha_follows_its_schedule(world: Path) -> None:
    store = str(world / 'variants')
    shares = {}
    for name, alpha in {
        'steps': [(0, 0.0), (2, 1.0)],
        'linear': {'start': 0.0, 'end': 1.0, 'begin': 1, 'end_epoch': 3},
        'cosine': {'start': 1.0, 'end': 0.0, 'end_epoch': 3, 'shape': 'cosine'},
    }.items():
        rows = epochs(recipe(world, mix={'store': store, 'alpha': alpha}), 4)
        shares[name] = [np.mean([m[0] for batch in rows[6 * e : 6 * e + 6] for m in batch]) for e in range(4)]
    assert shares['steps'] == [0, 0, 1, 1]
    assert shares['linear'][:2] == [0, 0]
    assert 0.3 < shares['linear'][2] < 0.7
    assert shares['linear'][3] == 1
    assert shares['cosine'][0] == 1
    assert shares['cosine'][3] == 0
    assert 0.55 < shares['cosine'][1] < 0.95  # 0.75


def test_images_without_a_variant_stay_real_and_the_log_counts_them(world: Path, log: list[str]) -> None:
    rows = [m for batch in epochs(recipe(world, mix={'store': str(world / 'some'), 'alpha': 1, 'partner': 'source'})) for m in batch]
    assert sum(m[0] for m in rows) == 5 * len(CLASSES)
    assert any('24 of 44 real images have no variants' in line for line in log)


# --- the other modes


def test_per_batch_holds_its_ratio_in_every_batch(world: Path) -> None:
    cfg = recipe(world, mix={'store': str(world / 'variants'), 'mode': 'per_batch', 'ratio': (1, 3)})
    batches = epochs(cfg, 3)
    assert [sum(m[0] for m in batch) for batch in batches] == [6, 6, 6, 6, 6, 3] * 3
    assert len({tuple(m[0] for m in batch) for batch in batches}) > 3  # places vary
    assert all(m[3] == 1 for batch in batches for m in batch)


def test_two_stream_adds_synthetic_images_to_every_real_batch(world: Path) -> None:
    mix = {'store': str(world / 'free'), 'mode': 'two_stream', 'ratio': (2, 3), 'synthetic_weight': 0.5}
    batches = epochs(recipe(world, mix=mix), 3)
    stock = epochs(recipe(world, mix={'store': str(world / 'free'), 'alpha': 0}), 3)
    assert [[m[1] for m in batch if not m[0]] for batch in batches] == [[m[1] for m in batch] for batch in stock]
    assert [sum(m[0] for m in batch) for batch in batches] == [12, 12, 12, 12, 12, 6] * 3
    for batch in batches:
        real, synthetic = [m[3] for m in batch if not m[0]], [m[3] for m in batch if m[0]]
        assert sum(real) == pytest.approx(len(batch))
        assert sum(synthetic) == pytest.approx(0.5 * len(batch))
        assert len(set(real)) == len(set(synthetic)) == 1
    lap = [m[1] for batch in batches for m in batch if m[0]][:36]
    assert len(set(lap)) == 36


def test_two_stream_loss_is_mean_real_plus_w_mean_synthetic(world: Path, tmp_path: Path) -> None:
    import torch
    import torch.nn.functional as F

    mix = {'store': str(world / 'free'), 'mode': 'two_stream', 'ratio': (2, 3), 'synthetic_weight': 0.25}
    cfg = configure(recipe(world, mix=mix), get_plugin_manager())
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    model = runner.model
    for batch in runner.build_dataloader(cfg.train_dataloader, seed=7):
        synthetic = torch.tensor([s.is_synthetic for s in batch['data_samples']])
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        model.eval()  # the same statistics for both ways of computing it
        loss = model.loss(data['inputs'], data['data_samples'])['loss']
        logits = model(data['inputs'], mode='tensor')
        each = F.cross_entropy(logits, torch.cat([s.gt_label for s in data['data_samples']]), reduction='none')
        assert loss.item() == pytest.approx((each[~synthetic].mean() + 0.25 * each[synthetic].mean()).item(), rel=1e-5)


def test_synthetic_weight_scales_the_loss_of_synthetic_images_in_every_mode(world: Path) -> None:
    for mode in ('per_sample', 'per_batch', 'concat'):
        rows = [m for batch in epochs(recipe(world, mix={'store': str(world / 'variants'), 'mode': mode, 'synthetic_weight': 0.3})) for m in batch]
        assert {m[3] for m in rows if m[0]} == {0.3}
        assert {m[3] for m in rows if not m[0]} == {1.0}


def test_concat_sees_every_image_of_both_once_per_epoch(world: Path) -> None:
    batches = epochs(recipe(world, mix={'store': str(world / 'free'), 'mode': 'concat'}))
    names = [m[1] for batch in batches for m in batch]
    assert len(names) == len(set(names)) == 44 + 36
    assert len(loader(recipe(world, mix={'store': str(world / 'free'), 'mode': 'concat'})).dataset) == 80


def test_phases_follow_each_other(world: Path, tmp_path: Path) -> None:
    mix = {'store': str(world / 'free'), 'mode': 'phased', 'phases': [('synthetic', 1), ('real', 1)], 'partner': 'any'}
    batches = run(recipe(world, mix=mix), tmp_path / 'run').batches
    assert [{m[0] for m in batch} for batch in batches] == [{True}] * 6 + [{False}] * 6
    with pytest.raises(RecipeError, match='the phases last 3 epochs, the recipe trains for 2'):
        configure(recipe(world, mix={**mix, 'phases': [('synthetic', 1), ('real', 2)]}), get_plugin_manager())


def test_epoch_steps_sets_the_length_of_an_epoch_and_walks_on_through_the_real_set(world: Path) -> None:
    mix = {'store': str(world / 'free'), 'mode': 'two_stream', 'epoch_steps': 11}
    batches = epochs(recipe(world, mix=mix), 2)
    assert len(batches) == 22
    real = [m[1] for batch in batches for m in batch if not m[0]]
    passes = [real[i : i + 44] for i in range(0, len(real), 44)]
    assert [len(set(p)) for p in passes] == [44, 44, 44, 44]
    assert passes[0] != passes[1]


def test_epoch_steps_counts_on_through_an_endless_sampler(world: Path) -> None:
    mix = {'store': str(world / 'free'), 'mode': 'two_stream', 'epoch_steps': 4}
    endless = loader(recipe(world, 'iter', mix=mix))
    indices = [[e[0] for batch in endless.batch_sampler for e in batch] for _ in range(11)]
    real = [i for one in indices for i in one if i < 44]
    assert [len(one) for one in indices] == [64] * 11
    assert turns(real, 44) == [44] * 8
    assert turns([i for one in indices for i in one if i >= 44], 36) == [36] * 9
    late = loader(recipe(world, 'iter', mix=mix)).batch_sampler
    late.resume_at(9, 3)
    assert [e[0] for batch in late for e in batch] == indices[9][48:]
    assert [e[0] for batch in late for e in batch] == indices[10]


@pytest.mark.parametrize('epoch_steps', [None, 4])
def test_a_sampler_that_gives_nothing_is_refused_and_does_not_hang(world: Path, epoch_steps: int | None) -> None:
    class Once(list):
        """A sampler that has been used up."""

        dataset, seed = loader(recipe(world, mix={'store': str(world / 'free')})).dataset, 3

        def __len__(self) -> int:
            return 44

    batches = MixBatchSampler(Once(), 8, epoch_steps=epoch_steps)
    with pytest.raises(RecipeError, match='Once gives no index in pass 1'):
        next(iter(batches))


# --- iteration loops, processes, resume


def test_iteration_based_loops_mix_on_without_end(world: Path, tmp_path: Path) -> None:
    mix = {'store': str(world / 'variants'), 'alpha': [(0, 0.0), (1, 1.0)]}
    for workers in (0, 2):
        batches = run(recipe(world, 'iter', workers, mix=mix), tmp_path / f'run{workers}', train_cfg={'by_epoch': False, 'max_iters': 14}).batches
        assert [np.mean([m[0] for m in batch]) for batch in batches] == [0] * 5 + [0.5] + [1] * 8  # epoch 1 begins after 44 images


@pytest.mark.parametrize('mode', ['per_sample', 'two_stream'])
def test_resuming_in_the_middle_of_an_epoch_continues_the_same_batches(world: Path, tmp_path: Path, mode: str) -> None:
    mix = {'store': str(world / 'variants'), 'mode': mode}
    save = {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 4, 'max_keep_ckpts': -1}}}
    whole = run(recipe(world, mix=mix), tmp_path / 'whole', **save).batches
    for stop, workers in ((4, 0), (8, 2)):
        checkpoint = str(tmp_path / 'whole' / f'iter_{stop}.pth')
        rest = run(recipe(world, workers=workers, mix=mix), tmp_path / f'rest{stop}', resume=True, load_from=checkpoint, **save).batches
        assert rest == whole[stop:], stop
    with pytest.raises(RecipeError, match='batch 4 of an epoch of 6 batches, but an epoch has 11 now'):
        run(recipe(world, batch_size=4, mix=mix), tmp_path / 'other', resume=True, load_from=str(tmp_path / 'whole/iter_4.pth'))


def test_resuming_an_iteration_based_run_continues_the_same_batches(world: Path, tmp_path: Path) -> None:
    mix = {'store': str(world / 'variants'), 'alpha': 0.5}
    save = {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 5}}}
    whole = run(recipe(world, 'iter', mix=mix), tmp_path / 'whole', **save).batches
    rest = run(recipe(world, 'iter', mix=mix), tmp_path / 'rest', resume=True, load_from=str(tmp_path / 'whole/iter_5.pth'), **save).batches
    assert rest == whole[5:]


@pytest.mark.parametrize(
    ('loop', 'workers', 'mode'), [('epoch', 0, 'per_sample'), ('epoch', 2, 'two_stream'), ('iter', 0, 'per_sample'), ('iter', 2, 'two_stream')]
)
def test_without_a_seed_a_resumed_run_has_the_batches_of_the_interrupted_one(world: Path, tmp_path: Path, loop: str, workers: int, mode: str) -> None:
    """MMPretrain's default is randomness.seed=None; the sampler is then built with a random seed before a checkpoint is read."""
    mix = {'store': str(world / 'variants'), 'mode': mode, **({'partner': 'any'} if mode == 'per_sample' else {})}
    save = {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 2, 'max_keep_ckpts': -1}}}
    free = {'randomness': {'seed': None}, **save}
    whole = run(recipe(world, loop, workers, mix=mix), tmp_path / 'whole', **free).batches
    for stop in (4, 6) if (loop, mode) == ('epoch', 'two_stream') else (6,):  # in the middle of an epoch, and at its end
        checkpoint = str(tmp_path / 'whole' / f'iter_{stop}.pth')
        rest = run(recipe(world, loop, workers, mix=mix), tmp_path / f'rest{stop}', resume=True, load_from=checkpoint, **free).batches
        assert rest == whole[stop:], stop
        if loop == 'epoch' and mode == 'two_stream':
            seen = [m[1] for batch in (whole[:stop] + rest)[:6] for m in batch if not m[0]]
            assert len(seen) == len(set(seen)) == 44
    if not workers:
        assert run(recipe(world, loop, mix=mix), tmp_path / 'other', **free).batches != whole  # no seed: another order each time


def test_epochs_of_an_endless_sampler_resume_where_they_were(world: Path, tmp_path: Path) -> None:
    cfg = recipe(world, 'iter', mix={'store': str(world / 'free'), 'mode': 'two_stream', 'epoch_steps': 3})
    by_epoch = {'train_cfg': {'by_epoch': True, 'max_epochs': 3}, 'randomness': {'seed': None}}
    save = {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 1, 'max_keep_ckpts': -1}}}
    whole = run(cfg, tmp_path / 'whole', **by_epoch, **save).batches
    assert len(whole) == 9
    for stop in (3, 4):
        checkpoint = str(tmp_path / 'whole' / f'iter_{stop}.pth')
        assert run(cfg, tmp_path / f'rest{stop}', resume=True, load_from=checkpoint, **by_epoch, **save).batches == whole[stop:]


def train_as(rank: int, folder: Path, cfgs: dict[str, Config], then: Callable[[int], None] | None = None) -> None:
    """What torchrun's process of this rank does: environment, process group, one Runner after the other; writes the batches of each."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2')
    torch.distributed.init_process_group('gloo', f'file://{folder}/group', rank=rank, world_size=2)
    for name, cfg in cfgs.items():
        cfg.launcher = 'pytorch'
        cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', 'device_ids': None, 'find_unused_parameters': True}
        runner = Runner.from_cfg(cfg)
        runner.train()
        recorder = next(h for h in runner.hooks if isinstance(h, Recorder))
        (folder / f'{name}{rank}.json').write_text(json.dumps(recorder.batches))
    if then is not None:
        then(rank)


def two_ranks(folder: Path, then: Callable[[int], None] | None = None, **cfgs: Config) -> dict[str, list[Any]]:
    """Batches that each of two gloo processes trained on, by recipe, under a real Runner; each then makes a call with its rank."""
    for name, cfg in cfgs.items():
        cfgs[name] = cfg = configure(cfg, get_plugin_manager())
        cfg.work_dir = cfg.experiment_name = str(folder / name)
    processes = [copy_of_this_process(functools.partial(train_as, rank, folder, cfgs, then)) for rank in (0, 1)]
    for process in processes:
        ended = process.end()
        assert ended.status == 0, ended.err[-3000:]
    return {name: [json.loads((folder / f'{name}{rank}.json').read_text()) for rank in (0, 1)] for name in cfgs}


PER_SAMPLE = {'alpha': 0.5}
ANY = {'alpha': [(0, 0.4), (1, 0.8)], 'partner': 'any'}


def any_of_two(world: Path) -> dict[str, Any]:
    return {'stores': [{'store': str(world / 'some')}, {'store': str(world / 'free')}], **ANY}


@pytest.fixture(scope='session')
def ranks(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What two processes trained on, by recipe."""
    variants = {'store': str(world / 'variants')}
    swap = recipe(world, workers=1, transform={**variants, 'root': str(world / 'train'), 'prob': 0.5})
    swap.train_dataloader.dataset.pipeline[-1].meta_keys = ('img_path', 'is_synthetic', 'synthetic_id')
    return two_ranks(
        tmp_path_factory.mktemp('ranks'),
        per_sample=recipe(world, workers=1, mix={**variants, **PER_SAMPLE}, frozen_bn={'freeze_affine': True}),
        two_stream=recipe(world, mix={**variants, 'mode': 'two_stream'}),
        any=recipe(world, mix=any_of_two(world)),
        swap=swap,
    )


def together(ranks: list[Any]) -> list[tuple[Any, ...]]:
    """The samples of both processes in the order of their positions."""
    first, second = ([tuple(m) for batch in rank for m in batch] for rank in ranks)
    return [m for pair in zip(first, second, strict=True) for m in pair]


def test_two_processes_draw_together_what_one_draws(world: Path, ranks: dict[str, list[Any]]) -> None:
    for name, mix in {'per_sample': {'store': str(world / 'variants'), **PER_SAMPLE}, 'any': any_of_two(world)}.items():
        assert together(ranks[name]) == [m for batch in epochs(recipe(world, mix=mix), 2) for m in batch]


def test_each_of_two_processes_holds_the_ratio_and_they_share_one_walk(ranks: dict[str, list[Any]]) -> None:
    assert [[sum(m[0] for m in batch) for batch in rank] for rank in ranks['two_stream']] == [[8, 8, 6] * 2] * 2
    drawn = [m[1] for rank in ranks['two_stream'] for batch in rank for m in batch if m[0]]
    assert len(drawn) == len(set(drawn)) == 88  # one walk through the store, shared without overlap


def test_two_processes_do_not_make_the_same_swaps(ranks: dict[str, list[Any]]) -> None:
    first, second = ([m[0] for batch in rank for m in batch] for rank in ranks['swap'])
    assert len(first) == len(second) == 44
    assert 0.3 < np.mean(first + second) < 0.7
    assert 10 < sum(a != b for a, b in zip(first, second, strict=True)) < 34


def test_record_numbers_are_wide_enough_for_any_number_of_images() -> None:
    groups = Groups.of(np.zeros(200, np.int16), 1)  # kept in bytes
    assert groups.order.itemsize == 1
    assert groups.member(np.array([0]), np.array([0.999])).dtype == np.int64  # NumPy 1 would add an offset in the narrow type
    drawn = Walk(np.array([200]), np.array([1.0]), np.array([100]), 3).at(np.arange(200))
    assert sorted(drawn.tolist()) == list(range(100, 300))
