"""A training that is resumed ends with the bits of one that was not stopped, augmentations and Mixup included, whoever draws the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dataset import DefaultSampler
from test_mix import recipe, world  # noqa: F401
from test_multi_positive import PROMPTS
from test_multi_positive import recipe as prompt_recipe
from test_store_dataset import store_of

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.training.exact_resume import SeededBatches
from synthaug_plugins.training.run import configure, train

from mmengine.runner import Runner  # isort: skip

pytestmark = pytest.mark.usefixtures('one_thread')


def blended(world: Path, loop: str, workers: int, **synthaug: Any) -> Any:  # noqa: F811
    """A recipe that draws in the loader (crop, flip) and in the step (Mixup), and saves a checkpoint every 5 steps, in the middle of epochs of 6."""
    cfg = recipe(world, loop, workers, exact_resume={}, **synthaug)
    cfg.model.train_cfg = {'augments': {'type': 'Mixup', 'alpha': 0.8}}
    cfg.model.head.loss = {'type': 'CrossEntropyLoss', 'use_soft': True}
    cfg.default_hooks = {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 5}}
    return configure(cfg, get_plugin_manager())


def bits(runner: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in runner.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ('loop', 'synthaug'),
    [('epoch', {}), ('iter', {}), ('epoch', {'mix': {'alpha': 0.5}}), ('epoch', {'mix': {'mode': 'two_stream', 'synthetic_weight': 0.5}})],
    ids=['epochs', 'iterations', 'mix', 'weights'],
)
def test_a_resumed_training_has_the_bits_of_an_unbroken_one(world: Path, tmp_path: Path, loop: str, synthaug: dict[str, Any]) -> None:  # noqa: F811
    if 'mix' in synthaug:
        synthaug = {'mix': {'store': str(world / 'variants'), **synthaug['mix']}}
    if (synthaug.get('mix') or {}).get('mode') == 'two_stream':
        cfg = recipe(world, loop, exact_resume={}, **synthaug)  # weights and Mixup exclude each other
        cfg.default_hooks = {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 5}}
        cfg = configure(cfg, get_plugin_manager())
    else:
        cfg = blended(world, loop, 0, **synthaug)
    unbroken = bits(train(cfg, tmp_path / 'unbroken'))
    resumed = bits(train(cfg, tmp_path / 'resumed', resume=tmp_path / 'unbroken' / 'iter_5.pth'))
    assert same(resumed, unbroken)


def test_gradients_that_are_being_accumulated_survive_a_resume(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = blended(world, 'epoch', 0)
    cfg.optim_wrapper.accumulative_counts = 2  # the checkpoint after 5 steps holds half of the third update
    unbroken = bits(train(cfg, tmp_path / 'unbroken'))
    assert same(bits(train(cfg, tmp_path / 'resumed', resume=tmp_path / 'unbroken' / 'iter_5.pth')), unbroken)


def test_a_resume_passes_over_a_checkpoint_that_a_kill_cut_off(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = blended(world, 'iter', 0)
    unbroken = bits(train(cfg, tmp_path / 'run'))
    for cut in ('iter_10.pth', 'iter_12.pth'):
        (tmp_path / 'run' / cut).write_bytes((tmp_path / 'run' / cut).read_bytes()[:1000])
    assert (tmp_path / 'run' / 'last_checkpoint').read_text().endswith('iter_12.pth')
    runner = train(cfg, tmp_path / 'run', resume=True)
    assert runner.cfg.load_from.endswith('iter_5.pth')
    assert same(bits(runner), unbroken)


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_batches_of_prompts_resume_to_the_bit_too(tmp_path: Path, loop: str) -> None:
    store = store_of(tmp_path / 'store', PROMPTS, per_class=20, block_size=60).folder
    cfg = prompt_recipe(Path(store), loop, synthaug={'exact_resume': {}})
    cfg.default_hooks.checkpoint = {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 4}
    cfg = configure(cfg, get_plugin_manager())
    unbroken = bits(train(cfg, tmp_path / 'unbroken'))
    assert same(bits(train(cfg, tmp_path / 'resumed', resume=tmp_path / 'unbroken' / 'iter_4.pth')), unbroken)


def test_loader_processes_change_no_bit_and_without_it_a_resume_does(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = blended(world, 'epoch', 0)
    unbroken = bits(train(cfg, tmp_path / 'unbroken'))
    cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    assert same(bits(train(cfg, tmp_path / 'two', resume=tmp_path / 'unbroken' / 'iter_5.pth')), unbroken)
    stock = recipe(world)
    stock.default_hooks = {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}}
    stock = configure(stock, get_plugin_manager())
    whole = bits(train(stock, tmp_path / 'stock'))
    assert not same(bits(train(stock, tmp_path / 'again', resume=tmp_path / 'stock' / 'epoch_1.pth')), whole)


def test_seeds_of_a_checkpoint_are_taken_those_of_0_too_and_what_it_lacks_stays() -> None:
    def batches(seed: int) -> SeededBatches:
        return SeededBatches(DefaultSampler(range(8), seed=seed), 4)

    own = batches(7)
    assert own.restore_seeds(batches(0).seeds()) and own.seeds() == {'sampler': 0, 'augmentation': 0}
    assert own.restore_seeds({'sampler': 3}) and own.seeds() == {'sampler': 3, 'augmentation': 0}
    assert next(iter(own)) == next(iter(batches(3)))


def test_images_are_augmented_anew_in_every_epoch(world: Path) -> None:  # noqa: F811
    cfg = blended(world, 'epoch', 0)
    cfg.train_dataloader.sampler.shuffle = False
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=3)
    epochs = []
    for epoch in (0, 1):
        loader.batch_sampler.sampler.set_epoch(epoch)
        epochs.append([batch['inputs'] for batch in loader])
    assert [len(batch) for batch in epochs[0]] == [8, 8, 8, 8, 8, 4]
    assert not any(torch.equal(a, b) for a, b in zip(*epochs, strict=True))
    assert not torch.equal(epochs[0][0][:4] * 0 + epochs[0][0][:1], epochs[0][0][:4])


def test_a_limit_of_batches_stays(world: Path) -> None:  # noqa: F811
    cfg = recipe(world, exact_resume={})
    cfg.train_dataloader.num_batch_per_epoch = 2
    loader = Runner.build_dataloader(configure(cfg, get_plugin_manager()).train_dataloader, seed=3)
    assert [len(batch['inputs']) for batch in loader] == [8, 8]


@pytest.mark.parametrize(('given', 'text'), [({'seed': 'a'}, "seed = 'a' is of the wrong kind"), ({'sead': 1}, "Did you mean 'seed'"), (3, 'is not a dict')])
def test_wrong_options_are_refused(world: Path, given: Any, text: str) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=text):
        configure(recipe(world, exact_resume=given), get_plugin_manager())
