"""The classifier recipes of Diffusion Inversion say what was published: schedule, stems, crops, and how real and synthetic images meet. Offline."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from test_mix import CLASSES, loader, world  # noqa: F401

from synthaug_plugins.plugins import get_plugin_manager, register_nouns
from synthaug_plugins.recipes import find_recipe, shipped_recipes
from synthaug_plugins.training.run import configure, load_recipe, train

RECIPES = [r.removeprefix('train/').removesuffix('.py') for r in shipped_recipes() if r.startswith('train/inversion_')]
SIZES = {'cifar10': 32, 'cifar100': 32, 'medmnist': 28, 'eurosat': 64, 'stl10': 96, 'imagenette': 256}
LARGE = [r for r in RECIPES if not r.endswith('digits')]


@pytest.fixture(autouse=True, scope='module')
def nouns() -> None:
    register_nouns()


def read(name: str, **options: Any) -> Config:
    return load_recipe(find_recipe(name, 'train'), options)


def size_of(name: str) -> int:
    return SIZES[name.split('_')[1]]


def learning_rates(cfg: Config) -> list[float]:
    """Of every step, as MMEngine's schedulers set them."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build({**s, 'type': s['type'].removeprefix('mmengine.'), 'optimizer': optimiser}) for s in cfg.param_scheduler]
    rates = []
    for _ in range(cfg.train_cfg.max_iters):
        rates.append(optimiser.param_groups[0]['lr'])
        optimiser.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def test_there_are_recipes_for_every_set_network_and_machine() -> None:
    networks = ('vgg16', 'mobilenet_v2', 'shufflenet_v2', 'efficientnet_b0', 'resnet50')
    wanted = {*SIZES, 'digits', 'cifar10_short', 'stl10_paper_compat', *(f'stl10_{n}' for n in networks)}
    assert {r.removeprefix('inversion_') for r in RECIPES} == wanted


@pytest.mark.parametrize('name', LARGE)
def test_the_published_protocol_stands_in_every_recipe(name: str) -> None:
    cfg = read(name)
    assert dict(cfg.optim_wrapper.optimizer) == {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 5e-4}
    steps, warmup = (5_000, 100) if name.endswith('short') else (50_000, 1_000)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval, cfg.train_cfg.by_epoch) == (steps, steps // 20, False)
    warm, cosine = cfg.param_scheduler
    assert (warm.begin, warm.end, cosine.begin, cosine.end) == (0, warmup, warmup, steps)
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
    assert cfg.train_dataloader.batch_size == 128
    assert dict(cfg.synthaug.mix) == {'store': 'stores/inversion', 'mode': 'per_batch', 'ratio': (1, 1), 'partner': 'any'}


@pytest.mark.parametrize(('name', 'warmup'), [('inversion_cifar10_short', 100), ('inversion_digits', 20)])
def test_the_rate_climbs_from_a_thousandth_and_falls_to_a_thousandth_along_a_cosine(name: str, warmup: int) -> None:
    rates = learning_rates(read(name))
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (warmup - 1, warmup)
    climbs = [b - a for a, b in itertools.pairwise(rates[: warmup - 1])]
    assert climbs == pytest.approx([climbs[0]] * len(climbs))
    assert rates[warmup + (len(rates) - warmup) // 2] == pytest.approx((0.1 + 1e-4) / 2, rel=0.02)
    assert rates[-1] == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize('name', LARGE)
def test_crops_are_padded_by_an_eighth_and_the_network_sees_the_size_of_the_set(name: str) -> None:
    from mmpretrain.registry import MODELS

    cfg, size = read(name), size_of(name)
    kinds = {part: [t['type'].rpartition('.')[2] for t in cfg[f'{part}_dataloader'].dataset.pipeline] for part in ('train', 'val', 'test')}
    assert kinds['train'] == ['LoadImageFromFile', 'ResizeEdge', 'CenterCrop', 'RandomCrop', 'RandomFlip', 'PackInputs']
    assert kinds['val'] == kinds['test'] == ['LoadImageFromFile', 'ResizeEdge', 'CenterCrop', 'PackInputs']
    _, edge, centre, crop, flip, _ = cfg.train_dataloader.dataset.pipeline
    assert (edge.scale, centre.crop_size, crop.crop_size, crop.padding, flip.prob) == (size, size, size, size // 8, 0.5)

    # 3 x 3 and stride 1 up to 32 pixels, 7 x 7 and stride 2 above, and pooling after it at 256 alone; other networks have their usual stems
    backbone = MODELS.build(cfg.model.backbone)
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, size, size))[-1]
    strides = {28: 8, 32: 8, 64: 16, 96: 16, 256: 32}[size] if 'ResNet' in cfg.model.backbone.type else 32
    assert features.shape == (1, cfg.model.head.in_channels, -(-size // strides), -(-size // strides))


def test_the_stem_has_seven_pixels_where_published() -> None:
    from mmpretrain.registry import MODELS

    for name, kernel in (('cifar10', 3), ('medmnist', 3), ('stl10', 7), ('stl10_resnet50', 7), ('imagenette', 7)):
        assert MODELS.build(read(f'inversion_{name}').model.backbone).conv1.kernel_size == (kernel, kernel)


def test_only_the_published_way_chooses_on_test_images() -> None:
    for name in RECIPES:
        cfg = read(name)
        chosen_on_test = cfg.val_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root
        assert chosen_on_test == name.endswith('paper_compat'), name


def configured(world: Path, **options: Any) -> Config:  # noqa: F811
    """The digits' recipe on a small world of 16 x 16 pixels."""
    folders = {f'{part}_dataloader.dataset.data_root': str(world / 'train') for part in ('train', 'val', 'test')}
    steps = {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2, 'log_level': 'ERROR', 'train_dataloader.batch_size': 8}
    small = {'model.backbone.stem_channels': 4, 'model.backbone.base_channels': 4, 'model.head.in_channels': 32, 'model.head.num_classes': len(CLASSES)}
    options = {**folders, **steps, **small, 'synthaug.mix.store': str(world / 'variants'), **options}
    return configure(read('inversion_digits', **options), get_plugin_manager())


@pytest.mark.parametrize(('ratio', 'synthetic'), [((1, 1), 4), ((0, 1), 8), ((1, 3), 6)])
def test_a_batch_is_real_and_synthetic_images_in_the_ratio_asked_for(world: Path, ratio: tuple[int, int], synthetic: int) -> None:  # noqa: F811
    batches = loader(configured(world, **{'synthaug.mix.ratio': ratio}))
    real, store = batches.dataset.offset, len(batches.dataset.records[0])
    drawn = [list(batch) for batch in itertools.islice(batches.batch_sampler, 4 * store // synthetic)]
    assert {sum(i >= real for i in batch) for batch in drawn} == {synthetic}
    # every synthetic image has its turn before one comes again
    first = [i for batch in drawn for i in batch if i >= real][:store]
    assert sorted(first) == list(range(real, real + store))


def test_the_digits_train_and_keep_the_best_on_validation(world: Path, tmp_path: Path) -> None:  # noqa: F811
    train(configured(world), tmp_path)
    assert list(tmp_path.glob('best_accuracy_top1_iter_*.pth'))
