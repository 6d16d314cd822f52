"""The training recipes of DA-Fusion (ICLR 2024): the trunk stays as it is, draws follow the paper's batch rule, weights fit by name. Offline."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mix import CLASSES, PER_CLASS, loader, make_real, world  # noqa: F401

from synthaug_plugins.errors import RecipeError, TrainingFailed
from synthaug_plugins.plugins import get_plugin_manager, register_nouns
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.training.replacement_sampler import ReplacementSampler
from synthaug_plugins.training.run import configure, load_recipe, train

from mmengine.config import Config  # isort: skip

SMALL = {
    'model.backbone.init_cfg': None,
    'model.backbone.depth': 18,
    'model.backbone.stem_channels': 8,
    'model.backbone.base_channels': 8,
    'model.head.num_classes': len(CLASSES),
    'model.head.in_channels': 64,
    'train_cfg.max_iters': 4,
    'train_cfg.val_interval': 2,
    'log_level': 'ERROR',
    'default_hooks.checkpoint.interval': 4,
}


def small(name: str, world: Path, test: Path, **options: Any) -> Config:  # noqa: F811
    """A recipe as the user sets it, on 16 pixels, with a trunk of random weights."""
    options = {**SMALL, 'synthaug.mix.store': str(world / 'variants'), **options}
    for part, folder in (('train', world / 'train'), ('val', test if 'compat' in name else world / 'train'), ('test', test)):
        options |= {f'{part}_dataloader.dataset.data_root': str(folder), f'{part}_dataloader.num_workers': 0, f'{part}_dataloader.persistent_workers': False}
        if 'compat' in name:
            options[f'{part}_dataloader.dataset.pipeline.1.scale'] = (32, 32)
        else:
            options |= {f'{part}_dataloader.dataset.pipeline.1.scale': 32, f'{part}_dataloader.dataset.pipeline.2.crop_size': 32}
        if part == 'train' or (part == 'val' and 'compat' not in name):
            options |= {f'{part}_dataloader.dataset.shots': 4, f'{part}_dataloader.dataset.seed': 3}
    return configure(load_recipe(find_recipe(name, 'train'), options), get_plugin_manager())


@pytest.fixture(scope='module')
def test_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_nouns()
    return make_real(tmp_path_factory.mktemp('test') / 'test', per_class=3, first=PER_CLASS)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(cfg: Config, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Any]:
    """The model's state before and after training, and the Runner."""
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    class Before(Hook):
        priority = 'VERY_LOW'

        def before_train(self, runner: Any) -> None:
            states.append(state(runner.model))

    states: list[dict[str, torch.Tensor]] = []
    HOOKS.register_module(name='StateBefore', module=Before, force=True)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), {'type': 'StateBefore'}]
    runner = train(cfg, folder)
    return states[0], state(runner.model), runner


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_head_learns_and_the_best_mean_of_per_class_accuracies_is_kept(world: Path, test_images: Path, tmp_path: Path) -> None:  # noqa: F811
    before, after, _ = trained(small('dafusion_resnet50', world, test_images), tmp_path)
    assert moved(before, after) == {'head.fc.weight', 'head.fc.bias'}
    assert list(tmp_path.glob('best_single-label_recall_iter_*.pth'))


def test_paper_compat_lets_only_batch_statistics_of_the_trunk_move(world: Path, test_images: Path, tmp_path: Path) -> None:  # noqa: F811
    before, after, _ = trained(small('dafusion_resnet50_paper_compat', world, test_images), tmp_path)
    statistics = {n for n in before if n.endswith(('running_mean', 'running_var', 'num_batches_tracked'))}
    assert moved(before, after) == {'head.fc.weight', 'head.fc.bias', *statistics}
    assert statistics


def test_paper_compat_squashes_and_normalises_to_plus_minus_one() -> None:
    default, compat = (load_recipe(find_recipe(f'dafusion_resnet50{suffix}', 'train')) for suffix in ('', '_paper_compat'))
    assert [t['type'].rpartition('.')[2] for t in default.test_dataloader.dataset.pipeline] == ['LoadImageFromFile', 'ResizeEdge', 'CenterCrop', 'PackInputs']
    for name in ('train', 'val', 'test'):
        assert compat[f'{name}_dataloader'].dataset.pipeline[1].scale == (256, 256)
    assert compat.data_preprocessor.mean == compat.data_preprocessor.std == [127.5] * 3
    assert default.data_preprocessor.to_rgb and compat.data_preprocessor.to_rgb


def test_the_published_numbers_stand_in_the_recipe() -> None:
    cfg = load_recipe(find_recipe('dafusion_resnet50', 'train'))
    assert dict(cfg.optim_wrapper.optimizer) == {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 0}
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (32, 10_000, 200)
    assert cfg.param_scheduler == []
    assert dict(cfg.synthaug.mix) == {'store': 'stores/dafusion', 'mode': 'per_sample', 'alpha': 0.5, 'partner': 'source'}


def test_rotations_are_uniform_from_minus_15_to_15_degrees(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmpretrain.registry import TRANSFORMS

    angles: list[float] = []
    monkeypatch.setattr('mmcv.imrotate', lambda image, angle, **options: angles.append(angle) or image)
    np.random.seed(0)
    rotate = TRANSFORMS.build(load_recipe(find_recipe('dafusion_resnet50', 'train')).train_dataloader.dataset.pipeline[4])
    for _ in range(2000):
        rotate({'img': np.zeros((2, 2, 3), np.uint8)})
    assert len(angles) == 2000
    counts, _ = np.histogram(angles, bins=6, range=(-15, 15))
    assert counts.sum() == 2000
    assert counts.min() > 270  # of 333


def test_weights_of_torchvision_fit_the_trunk_by_name_and_give_the_same_features(tmp_path: Path) -> None:
    from mmengine.runner.checkpoint import get_torchvision_models
    from mmpretrain.registry import MODELS
    from torchvision.models import ResNet50_Weights, resnet50

    backbone = load_recipe(find_recipe('dafusion_resnet50', 'train')).model.backbone
    name = backbone.init_cfg.checkpoint.removeprefix('torchvision://')
    assert get_torchvision_models()[name] == ResNet50_Weights.IMAGENET1K_V2.url
    theirs = resnet50(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # nothing is what an initialisation would leave
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    torch.save(theirs.state_dict(), tmp_path / 'weights.pth')
    backbone.init_cfg.checkpoint = str(tmp_path / 'weights.pth')
    ours = MODELS.build(backbone)
    ours.init_weights()
    ours.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)[0].mean((2, 3)), torch.nn.Sequential(*list(theirs.children())[:-1])(image).flatten(1))


def test_train_mode_bn_and_frozen_bn_exclude_each_other(world: Path, test_images: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises((RecipeError, TrainingFailed), match='TrainModeBNHook lets go'):
        train(small('dafusion_resnet50_paper_compat', world, test_images, **{'synthaug.frozen_bn': {}}), tmp_path)


# --- draws with replacement


def first(sampler: ReplacementSampler, n: int) -> list[int]:
    return list(itertools.islice(sampler, n))


def test_images_are_drawn_uniformly_and_independently() -> None:
    drawn = first(ReplacementSampler(range(8), seed=0), 8000)
    counts = Counter(drawn)
    assert set(counts) == set(range(8))
    assert 880 < min(counts.values()) <= max(counts.values()) < 1120
    # In batches of 8 from 8 images, (1 - 1/8)^8 = 34 % of the images are absent; without replacement none would be.
    absent = np.mean([8 - len(set(drawn[i : i + 8])) for i in range(0, 8000, 8)]) / 8
    assert absent == pytest.approx((7 / 8) ** 8, abs=0.02)
    pairs = Counter(itertools.pairwise(drawn))
    assert len(pairs) == 64 and min(pairs.values()) > 80  # of 125


def test_draws_follow_from_the_seed_and_the_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = first(ReplacementSampler(range(100), seed=1), 9000)
    assert first(ReplacementSampler(range(100), seed=1), 9000) == whole
    assert first(ReplacementSampler(range(100), seed=2), 9000) != whole
    for rank in range(2):
        monkeypatch.setattr('synthaug_plugins.training.replacement_sampler.get_dist_info', lambda rank=rank: (rank, 2))
        assert first(ReplacementSampler(range(100), seed=1), 4500) == whole[rank::2]


def test_a_data_set_without_images_is_refused() -> None:
    with pytest.raises(RecipeError, match='without images'):
        ReplacementSampler([], seed=0)


def test_each_draw_is_a_variant_of_itself_with_probability_alpha(world: Path, test_images: Path) -> None:  # noqa: F811
    cfg = small('dafusion_resnet50', world, test_images, **{'synthaug.mix.alpha': 0.3})
    batches = loader(cfg)
    real, dataset = batches.dataset.offset, batches.dataset
    assert real == 4 * len(CLASSES)
    plain = first(ReplacementSampler(range(real), seed=batches.batch_sampler.sampler.seed), 32 * 100)
    drawn = [i for batch in itertools.islice(batches.batch_sampler, 100) for i in batch]
    swapped = [i for i in drawn if i >= real]
    assert len(swapped) / len(drawn) == pytest.approx(0.3, abs=0.03)
    names = {i: Path(dataset.get_data_info(i)['img_path']).name for i in range(real)}
    for was, now in zip(plain, drawn, strict=True):
        if now < real:
            assert now == was
        else:
            records, row = dataset.synthetic.locate(now)
            assert records.sources[row].as_py().endswith(f'/{names[was]}')
