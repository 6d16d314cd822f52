"""Images of one prompt are each other's positives: the formula, the batches, training on one process and on two."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mix import log, run, two_ranks, world  # noqa: F401
from test_self_supervised import moco
from test_store_dataset import store_of

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.recipes import ROOT
from synthaug_plugins.training.multi_positive import MultiPositiveHead, turn_of_each
from synthaug_plugins.training.prompt_group_sampler import PromptGroupSampler
from synthaug_plugins.training.run import configure, load_recipe

from mmengine.config import Config  # isort: skip
from mmengine.dataset import DefaultSampler, InfiniteSampler  # isort: skip
from mmengine.hooks import Hook  # isort: skip
from mmengine.registry import DATASETS, HOOKS, init_default_scope  # isort: skip

PROMPTS = ('a', 'b', 'c', 'd', 'e')  # three classes, 20 images of each: 12 images of each prompt


@pytest.fixture(scope='module')
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose images were told five prompts in turn."""
    return Path(store_of(tmp_path_factory.mktemp('prompted') / 'store', PROMPTS, per_class=20, block_size=60).folder)


def recipe(store: Path, loop: str = 'epoch', seed: int | None = 7, prompts_per_batch: int = 2, **changes: Any) -> Config:
    """The shipped recipe for digits, narrower: two prompts, three images of each in a batch."""
    cfg = load_recipe(ROOT / 'train' / 'pretrain_multi_positive_digits.py')
    cfg.model.backbone.update(stem_channels=4, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    cfg.model.neck.update(in_channels=8, hid_channels=8, out_channels=8)
    cfg.train_dataloader.dataset.store = str(store)
    cfg.train_dataloader.update(batch_size=3 * prompts_per_batch, collate_fn={'type': 'default_collate'})
    cfg.train_dataloader.batch_sampler.images_per_prompt = 3
    cfg.param_scheduler, cfg.log_level, cfg.randomness = None, 'WARNING', {'seed': seed}
    cfg.train_cfg = {'by_epoch': False, 'max_iters': 5}
    if loop == 'epoch':
        cfg.train_dataloader.sampler = {'type': 'DefaultSampler', 'shuffle': True}
        cfg.train_cfg = {'by_epoch': True, 'max_epochs': 3}
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks = [*cfg.custom_hooks, {'type': 'Recorder'}]
    for key, value in changes.items():
        cfg[key] = value
    return cfg


# --- the formula


def by_hand(z: np.ndarray, groups: list[int], tau: float) -> float:
    """Mean of H(p_i, q_i), term by term."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(z)):
        below = sum(math.exp(z[i] @ z[j] / tau) for j in range(len(z)) if j != i)
        positives = [j for j in range(len(z)) if j != i and groups[j] == groups[i]]
        for j in positives:
            total -= math.log(math.exp(z[i] @ z[j] / tau) / below) / len(positives)
    return total / len(z)


@pytest.mark.parametrize('tau', [0.1, 0.7])
def test_loss_is_the_cross_entropy_of_uniform_positives_and_the_softmax_over_all_others(tau: float) -> None:
    z = np.random.default_rng(3).normal(size=(9, 5))
    groups = [4, 4, 0, 4, 0, 7, 7, 7, 7]
    loss = MultiPositiveHead(tau).loss(torch.tensor(z), torch.tensor(groups))
    assert loss.item() == pytest.approx(by_hand(z, groups, tau), rel=1e-5)


def test_an_image_without_a_positive_is_refused() -> None:
    with pytest.raises(RecipeError, match='1 of 3 images of a batch have no other image of their prompt'):
        MultiPositiveHead().loss(torch.eye(3), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize('temperature', [0, -1.0, 'hot', True])
def test_a_temperature_that_is_none_is_refused(temperature: Any) -> None:
    with pytest.raises(RecipeError, match=f'temperature = {temperature!r}'):
        MultiPositiveHead(temperature)


def test_each_image_has_its_turn_within_its_prompt() -> None:
    assert turn_of_each(np.array([7, 7, 3, 7, 3])).tolist() == [0, 1, 0, 2, 1]


# --- the batches


class Told:
    """A data set that knows prompts and nothing else."""

    def __init__(self, groups: list[int]) -> None:
        self.groups = np.array(groups)

    def __len__(self) -> int:
        return len(self.groups)

    def prompt_groups(self) -> np.ndarray:
        return self.groups


def sampler(groups: list[int], endless: bool = False, rank: int = 0, world_size: int = 1, **options: Any) -> PromptGroupSampler:
    inner = (InfiniteSampler if endless else DefaultSampler)(Told(groups), seed=5)
    inner.rank, inner.world_size = rank, world_size
    return PromptGroupSampler(inner, **{'batch_size': 6, 'images_per_prompt': 3, **options})


SIZES = [3, 4, 5, 3, 6, 2, 3, 9, 3]  # images of each prompt; one has too few
GROUPS = np.random.default_rng(0).permutation(np.repeat(np.arange(9), SIZES)).tolist()


def test_an_epoch_shows_every_prompt_once_with_images_drawn_anew(log: list[str]) -> None:  # noqa: F811
    batches = sampler(GROUPS)
    assert any('1 of 9 prompts have fewer than 3 images and are left out' in line for line in log)
    assert len(batches) == 4
    seen = []
    for epoch in range(30):
        batches.sampler.set_epoch(epoch)
        drawn = [[GROUPS[i] for i in batch] for batch in batches]
        assert all(batch[:3] == [batch[0]] * 3 and batch[3:] == [batch[3]] * 3 for batch in drawn)
        assert sorted(batch[k] for batch in drawn for k in (0, 3)) == [0, 1, 2, 3, 4, 6, 7, 8]
        seen.append([i for batch in batches for i in batch])
        assert len(set(seen[-1])) == 24
    assert {i for one in seen for i in one} == {i for i, g in enumerate(GROUPS) if g != 5}  # every image has its turn
    assert len({tuple(one) for one in seen}) == 30
    batches.sampler.set_epoch(3)
    assert [i for batch in batches for i in batch] == seen[3]


def test_processes_share_the_prompts_and_draw_together_what_one_draws() -> None:
    whole = sampler(GROUPS, batch_size=12)
    for epoch in range(3):
        parts = [sampler(GROUPS, rank=rank, world_size=2) for rank in (0, 1)]
        for one in (whole, *parts):
            one.sampler.set_epoch(epoch)
        for batch, first, second in zip(whole, *parts, strict=True):
            assert sorted(batch) == sorted(first + second)
            assert len({GROUPS[i] for i in batch}) == 4


def test_batches_of_an_endless_sampler_and_of_epochs_of_a_set_length_go_on_through_the_prompts() -> None:
    endless = iter(sampler(GROUPS, endless=True))
    drawn = [next(endless) for _ in range(12)]
    counted = sampler(GROUPS, endless=True, epoch_steps=3)
    assert [batch for _ in range(4) for batch in counted] == drawn
    by_epoch = sampler(GROUPS, epoch_steps=3)
    assert len(by_epoch) == 3
    late = sampler(GROUPS, endless=True, epoch_steps=3)
    late.resume_at(2, 1)
    assert list(late) == drawn[7:9]
    assert list(late) == drawn[9:12]


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'images_per_prompt': 1}, RecipeError, 'images_per_prompt = 1 is not a whole number of at least 2'),
        ({'images_per_prompt': None}, RecipeError, 'images_per_prompt = None'),
        ({'epoch_steps': 0}, RecipeError, 'epoch_steps = 0'),
        ({'batch_size': 7}, RecipeError, 'batch_size = 7 does not hold 3 images of each prompt. Use a batch_size that is a multiple of 3'),
        ({'images_per_prompt': 6}, DataError, '0 of the 2 prompts have 6 images or more, and a batch needs 1 such prompts; they have 4 images on average'),
        ({'batch_size': 9}, DataError, '2 of the 2 prompts have 3 images or more, and a batch needs 3'),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sampler([0, 0, 0, 0, 1, 1, 1, 1], **options)


def test_a_part_of_the_images_keeps_its_prompts(prompted: Path) -> None:
    init_default_scope('mmpretrain')
    whole, part = (DATASETS.build({**recipe(prompted).train_dataloader.dataset, 'indices': indices}) for indices in (None, [3, 4, 8]))
    together = [whole.prompt_groups()[i] for i in (3, 4, 8)]
    assert [part[i]['data_samples'].prompt_group for i in range(3)] == part.prompt_groups().tolist()
    assert [a == b for a in together for b in together] == [a == b for a in part.prompt_groups() for b in part.prompt_groups()]
    subset = whole.get_subset([3, 4])
    assert len(subset.prompt_groups()) == 2
    assert len(whole.prompt_groups()) == 60


def test_real_images_have_no_prompts_to_be_mixed_by(prompted: Path) -> None:
    with pytest.raises(RecipeError, match='images are learned from by their prompts, and real ones have none'):
        configure(recipe(prompted, synthaug={'mix': {'store': str(prompted)}}), get_plugin_manager())


def test_images_without_prompts_and_data_sets_without_them_are_refused(tmp_path: Path, prompted: Path) -> None:
    some = store_of(tmp_path / 'some', ['a', None])
    with pytest.raises(RecipeError, match=r'6 of 12 selected records .* have no prompt'):
        run(recipe(Path(some.folder)), tmp_path / 'run')
    cfg = recipe(prompted)
    cfg.train_dataloader.batch_sampler = None
    cfg.train_dataloader.dataset.type = 'synthaug_plugins.StoreDataset'
    with pytest.raises(RecipeError, match='The samples of a batch do not know their prompts'):
        run(cfg, tmp_path / 'run2')
    with pytest.raises(RecipeError, match='PromptGroupSampler needs images that know their prompts; list has none'):
        PromptGroupSampler(DefaultSampler([1, 2], seed=0), 6, 3)


# --- training


def test_training_sees_images_of_one_prompt_side_by_side(prompted: Path, tmp_path: Path) -> None:
    recorder = run(recipe(prompted), tmp_path / 'run')
    assert len(recorder.losses) == 6
    assert np.isfinite(recorder.losses).all()
    model = recorder.runner.model
    batch = next(iter(recorder.runner.train_dataloader))
    groups = [s.prompt_group for s in batch['data_samples']]
    assert groups[:3] == groups[:1] * 3
    data = model.data_preprocessor(batch, True)
    model.eval()  # BatchNorm alike for both ways
    z = model.neck(model.backbone(data['inputs']))[0].detach().double().numpy()
    assert model.loss(**data)['loss'].item() == pytest.approx(by_hand(z, groups, 0.1), rel=1e-4)
    views = model.loss([data['inputs'], data['inputs'].flip(3)], data['data_samples'])['loss'].item()
    flipped = model.neck(model.backbone(data['inputs'].flip(3)))[0].detach().double().numpy()
    assert views == pytest.approx(by_hand(np.concatenate([z, flipped]), groups * 2, 0.1), rel=1e-4)


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
@pytest.mark.parametrize('seed', [7, None])
def test_a_resumed_run_goes_on_with_the_batches_it_would_have_had(prompted: Path, tmp_path: Path, loop: str, seed: int | None) -> None:
    save = {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 1, 'max_keep_ckpts': -1}}}
    cfg = recipe(prompted, loop, seed, **save)
    whole = run(cfg, tmp_path / 'whole').batches
    rest = run(cfg, tmp_path / 'rest', resume=True, load_from=str(tmp_path / 'whole' / 'iter_3.pth')).batches
    assert rest == whole[3:]


# --- two processes


@HOOKS.register_module(force=True)
class Keep(Hook):
    """Leaves what a process has learned in its folder."""

    def after_train(self, runner: Any) -> None:
        torch.save(runner.model.module.state_dict(), Path(runner.work_dir) / f'{torch.distributed.get_rank()}.pt')


def test_two_processes_learn_one_model_from_prompts_and_mixed_images_that_they_share(prompted: Path, world: Path, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    weights, x, groups = torch.randn(5, 4), torch.randn(8, 5), torch.tensor([0, 1, 0, 1, 1, 0, 2, 2])

    def gradient(rows: slice) -> torch.Tensor:
        w = weights.clone().requires_grad_()
        MultiPositiveHead().loss(x[rows] @ w, groups[rows]).backward()
        return w.grad

    def both(rank: int) -> None:
        grad = gradient(slice(4 * rank, 4 * rank + 4))  # the last two images have no positive in the first half, the others have
        torch.distributed.all_reduce(grad)
        torch.save(grad / 2, tmp_path / f'gradient{rank}.pt')  # as DDP averages

    keep = [{'type': 'Recorder'}, {'type': 'Keep'}]
    positive = recipe(prompted, prompts_per_batch=2)
    positive.custom_hooks = [*positive.custom_hooks, {'type': 'Keep'}]
    mixed = moco(world / 'train', loop='epoch', mix={'store': str(world / 'free'), 'alpha': 0.5})
    mixed.custom_hooks = keep
    ranks = two_ranks(tmp_path, then=both, positive=positive, moco=mixed)
    for rank in (0, 1):
        assert torch.allclose(torch.load(tmp_path / f'gradient{rank}.pt'), gradient(slice(None)), atol=1e-6)
    for name in ranks:
        first, second = (torch.load(tmp_path / name / f'{rank}.pt') for rank in (0, 1))
        own = ('running_mean', 'running_var')  # BatchNorm is not synchronised here
        assert all(torch.equal(first[k], second[k]) for k in first if not k.endswith(own))
        assert any(not torch.equal(first[k], second[k]) for k in first if k.endswith(own))
    together = [sorted(a + b) for a, b in zip(*ranks['positive'], strict=True)]
    assert together == [sorted(map(list, batch)) for batch in run(recipe(prompted, prompts_per_batch=4), tmp_path / 'one').batches]
    alone = run(moco(world / 'train', loop='epoch', batch_size=16, mix={'store': str(world / 'free'), 'alpha': 0.5}), tmp_path / 'alone').batches
    pairs = [[tuple(m) for pair in zip(a, b, strict=True) for m in pair] for a, b in zip(*ranks['moco'], strict=True)]
    assert pairs == alone
