"""Tuning a CLIP classifier: the published losses to the last digits, frozen statistics, resume, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_clip_classifier import MODEL, RN50_TOWER, model_of, recipe, runner_of, save_clip, vit  # noqa: F401
from test_mix import CLASSES, make_store, world  # noqa: F401
from torch.nn.functional import cross_entropy

from conftest import REPO
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.errors import DataError, MissingExtra, ModelError, RecipeError, StoreError
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.store.scores import write_scores
from synthaug_plugins.store.store import Store
from synthaug_plugins.training.run import configure

from mmengine.config import Config  # isort: skip
from mmengine.hooks import Hook  # isort: skip
from mmengine.registry import DATASETS, HOOKS, init_default_scope  # isort: skip

STEPS = 50


@HOOKS.register_module(force=True)
class Watch(Hook):
    """Notes what each step saw, its loss and its learning rate."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        samples = data_batch['data_samples']
        self.steps.append(
            {
                'x': torch.stack(list(data_batch['inputs'])),
                'label': torch.cat([s.gt_label for s in samples]),
                'synthetic': torch.tensor([s.get('is_synthetic', False) for s in samples]),
                'ids': [s.get('synthetic_id') for s in samples],
                'loss': float(outputs['loss'].detach()),
            }
        )


def mixed(world: Path, tmp_path: Path, **mix: Any) -> Config:  # noqa: F811
    """He et al.'s few-shot mix at a small scale: 8 real and 24 synthetic images in a step."""
    store = str(world / 'variants')
    options = {'store': store, 'mode': 'two_stream', 'ratio': (8, 24), 'epoch_steps': 10, **mix}
    cfg = recipe(world, tmp_path, by_epoch=STEPS // 10, mix=options)
    cfg.param_scheduler = [{'type': 'CosineAnnealingLR', 'by_epoch': True, 'begin': 0, 'end': STEPS // 10, 'convert_to_iter_based': True}]
    cfg.custom_hooks = [{'type': 'Watch'}]
    return cfg


# --- the mathematics


@pytest.mark.parametrize('blend', [None, 0.5])
def test_first_50_updates_of_mix_training_equal_a_plain_torch_loop(world: Path, tmp_path: Path, blend: float | None) -> None:  # noqa: F811
    store = make_store(tmp_path / 'variants', per_class=22)
    logits = np.random.default_rng(0).normal(0, 4, (store.index().num_rows, 4)).astype(np.float32)
    logits -= logits.max(1, keepdims=True)
    ids = store.index()['id'].to_pylist()
    teacher = dict(zip(ids, logits, strict=True))
    if blend is not None:
        scored(store, teacher)
    soft = {} if blend is None else {'soft_labels': {'column': 'teacher_logits', 'blend': blend, 'temperature': 2.0}}
    runner = runner_of(mixed(world, tmp_path, store=str(tmp_path / 'variants'), **soft), tmp_path / 'run')
    runner.train()
    watch = next(h for h in runner.hooks if isinstance(h, Watch))
    assert len(watch.steps) == STEPS

    clip = ClipModel(MODEL)
    clip.load(torch.device('cpu'))
    text = clip.class_embeddings([[f'a photo of a {name}'] for name in CLASSES])
    W, b = (clip.logit_scale * text).requires_grad_(True), torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.AdamW([W, b], lr=1e-3, weight_decay=0.1)
    for t, step in enumerate(watch.steps):
        optimizer.param_groups[0]['lr'] = 0.5e-3 * (1 + math.cos(math.pi * t / STEPS))
        x, y, made = step['x'], step['label'], step['synthetic']
        assert made.tolist() == [False] * 8 + [True] * 24
        z = torch.nn.functional.normalize(x) @ W.T + b
        loss = cross_entropy(z[~made], y[~made])
        if blend is None:
            loss = loss + cross_entropy(z[made], y[made])
        else:
            z_t = torch.from_numpy(np.stack([teacher[i].astype(np.float16) for i in step['ids'] if i is not None])).double()
            p = (z_t / 2.0).softmax(1).float()
            loss = loss + (1 - blend) * cross_entropy(z[made], y[made]) - blend * (p * z[made].log_softmax(1)).sum(1).mean()
        assert step['loss'] == pytest.approx(float(loss.detach()), rel=1e-6, abs=1e-6), t
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([W, b], 1.0)
        optimizer.step()
    torch.testing.assert_close(runner.model.head.fc.weight.detach(), W.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(runner.model.head.fc.bias.detach(), b.detach(), rtol=1e-6, atol=1e-6)
    assert (W.detach() - clip.logit_scale * text).abs().max() > 0.01


def scored(store: Store, teacher: dict[str, np.ndarray]) -> None:
    """Logits as SoftLabels writes them."""
    import pyarrow as pa

    index = store.index()
    known = dict(zip(index['id'].to_pylist(), index['sha256'].to_pylist(), strict=True))
    length = len(next(iter(teacher.values())))
    values = pa.array([row.astype(np.float16).tolist() for row in teacher.values()], pa.list_(pa.float16(), length))
    write_scores(store.place, 'teacher', pa.table({'id': list(teacher), 'teacher_logits': values}), known, set())


def test_an_epoch_of_mix_training_is_one_pass_over_the_synthetic_images(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = mixed(world, tmp_path, epoch_steps='synthetic')
    runner = runner_of(cfg, tmp_path / 'run')
    assert len(runner.build_dataloader(runner._train_dataloader)) == math.ceil(4 * 22 / 24)
    cfg = mixed(world, tmp_path, mode='per_sample', ratio=None, epoch_steps='synthetic')
    with pytest.raises(RecipeError, match="epoch_steps = 'synthetic' needs batches that hold synthetic images"):
        runner_of(cfg, tmp_path / 'other').train()


# --- frozen statistics and tuned towers


def test_frozen_bn_moves_no_statistic_through_an_open_clip_rn50(world: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = save_clip(tmp_path / 'rn50', {**RN50_TOWER, 'image_size': 64, 'width': 16}, 1024)

    def statistics(frozen: bool) -> tuple[int, float]:
        cfg = recipe(world, tmp_path, clip={'model': str(folder), 'train': 'head', 'augment': 'none'})
        cfg.default_hooks = {'checkpoint': None}
        cfg.train_dataloader.batch_size = 2
        cfg.train_dataloader.num_batch_per_epoch = 1
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg = configure(cfg, get_plugin_manager())
        assert [h['type'] for h in cfg.custom_hooks].count('synthaug_plugins.FrozenBNHook') == 1
        if not frozen:
            cfg.custom_hooks = [h for h in cfg.custom_hooks if 'FrozenBN' not in h['type']]
        cfg.work_dir = cfg.experiment_name = str(tmp_path / f'run-{frozen}')
        from mmengine.runner import Runner

        runner = Runner.from_cfg(cfg)
        before = {k: v.clone() for k, v in runner.model.backbone.state_dict().items() if 'running' in k}
        runner.train()
        after = runner.model.backbone.state_dict()
        return len(before), max(float((after[k] - v).abs().max()) for k, v in before.items())

    assert statistics(frozen=True) == (110, 0.0)
    count, moved = statistics(frozen=False)
    assert count == 110
    assert moved > 1e-3


def test_model_without_batch_norm_is_said_once_and_trains(world: Path, tmp_path: Path, vit: Path) -> None:  # noqa: F811
    cfg = recipe(world, tmp_path, by_epoch=2, clip={'model': str(vit), 'train': 'head'}, frozen_bn={})
    runner = runner_of(cfg, tmp_path / 'run')
    said: list[str] = []
    runner.logger.warning = lambda text, *rest: said.append(text)  # type: ignore[method-assign]
    runner.train()
    assert len([text for text in said if 'has no BatchNorm layer' in text]) == 1
    plain = configure(recipe(world, tmp_path, clip={'model': str(vit), 'train': 'head'}), get_plugin_manager())
    assert not any('FrozenBN' in h['type'] for h in plain.custom_hooks)  # of itself it is not asked for


def moved_parameters(cfg: Config, work_dir: Path) -> set[str]:
    cfg.default_hooks = {'checkpoint': None}
    runner = runner_of(cfg, work_dir)
    runner.model.init_weights()
    before = copy.deepcopy(dict(runner.model.state_dict()))
    runner.train()
    return {k for k, v in runner.model.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize(
    ('clip', 'tuned'),
    [
        ({'train': 'head'}, ()),
        ({'train': 'encoder', 'tune': 'attnpool.c_proj'}, ('backbone.visual.attnpool.c_proj.',)),
        ({'train': 'encoder', 'tune': [r'^layer4\.', 'attnpool']}, ('backbone.visual.layer4.', 'backbone.visual.attnpool.')),
        (
            {'train': 'encoder', 'lora': {'r': 2}},
            ('backbone.visual.layer4.0.conv1.lora', 'backbone.visual.layer4.0.conv2.lora', 'backbone.visual.layer4.0.conv3.lora'),
        ),
    ],
)
def test_what_is_named_trains_and_nothing_else(world: Path, tmp_path: Path, clip: dict[str, Any], tuned: tuple[str, ...]) -> None:  # noqa: F811
    moved = moved_parameters(recipe(world, tmp_path, clip=clip), tmp_path / 'run')
    assert {'head.fc.weight', 'head.fc.bias'} <= moved
    rest = moved - {'head.fc.weight', 'head.fc.bias'}
    assert all(name.startswith(tuned) for name in rest) if tuned else not rest
    assert all(any(name.startswith(part) for name in rest) for part in tuned)


def test_lora_starts_as_the_tower_without_it(world: Path, tmp_path: Path, vit: Path) -> None:  # noqa: F811
    plain, adapted = (model_of(recipe(world, tmp_path, clip={'model': str(vit), **clip})) for clip in ({'train': 'head'}, {'train': 'encoder', 'lora': {}}))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(adapted(x), plain(x), rtol=1e-4, atol=1e-4)
    assert sum('lora_' in name for name, p in adapted.named_parameters() if p.requires_grad) == 8  # two blocks, in- and out-projection, A and B


# --- resume, averages


def test_a_run_resumes_mid_way_to_the_same_weights(world: Path, tmp_path: Path) -> None:  # noqa: F811
    whole = runner_of(mixed(world, tmp_path), tmp_path / 'whole')
    whole.train()
    cfg = mixed(world, tmp_path)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / 'epoch_2.pth')
    rest = runner_of(cfg, tmp_path / 'rest')
    rest.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


def test_averaged_weights_are_evaluated_and_kept(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = recipe(world, tmp_path, by_epoch=2)
    cfg.custom_hooks = [{'type': 'EMAHook', 'momentum': 0.5}]
    runner = runner_of(cfg, tmp_path / 'run')
    runner.train()
    saved = torch.load(tmp_path / 'run' / 'epoch_2.pth')
    average, last = saved['state_dict'], saved['ema_state_dict']
    assert not torch.equal(average['head.fc.weight'], last['module.head.fc.weight'])
    assert torch.equal(average['head.clip_sha256'], last['module.head.clip_sha256'])


# --- stores as training sets, shots


def test_a_store_is_a_training_set_with_its_labels_and_soft_labels(world: Path, tmp_path: Path) -> None:  # noqa: F811
    store = make_store(tmp_path / 'free', per_class=3, sources=None)
    teacher = {i: np.array([0.0, -1, -2, -3]) for i in store.index()['id'].to_pylist()}
    scored(store, teacher)
    init_default_scope('mmpretrain')
    options = {'type': 'synthaug_plugins.StoreDataset', 'store': str(store.folder)}
    soft = {'column': 'teacher_logits', 'blend': 0.5, 'temperature': 2.0}
    dataset = DATASETS.build({**options, 'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}], 'soft_labels': soft})
    assert tuple(dataset.metainfo['classes']) == CLASSES
    assert [int(dataset[i]['data_samples'].gt_label) for i in range(12)] == [k for k in range(4) for _ in range(3)]
    assert dataset[0]['inputs'].shape == (3, 16, 16)
    p = np.exp(np.array([0.0, -1, -2, -3]) / 2)
    np.testing.assert_allclose(dataset[4]['data_samples'].gt_score, 0.5 * np.eye(4)[1] + 0.5 * p / p.sum(), rtol=1e-6)
    with pytest.raises(StoreError, match='order'):
        DATASETS.build({**options, 'classes': CLASSES[::-1]})


def test_shots_of_a_folder_are_those_of_the_draw(world: Path, tmp_path: Path) -> None:  # noqa: F811
    from synthaug_plugins.few_shot import draw_shots

    init_default_scope('mmpretrain')
    options = {'type': 'synthaug_plugins.FewShotDataset', 'data_root': str(world / 'train'), 'pipeline': []}

    def ids(**more: Any) -> list[str]:
        dataset = DATASETS.build({**options, **more})
        return ['/'.join(dataset.get_data_info(i)['img_path'].split('/')[-2:]) for i in range(len(dataset))]

    drawn = draw_shots({name: [f'{name}/{i}.png' for i in range(11)] for name in CLASSES}, 2, 3)
    assert ids(shots=2, seed=3) == [i for name in CLASSES for i in drawn.train[name]]
    assert ids(shots=2, seed=3, part='val') == [i for name in CLASSES for i in drawn.val[name]]
    listed = {'train': [[f'{name}/{i}.png', 0, name] for name in CLASSES for i in range(5)], 'val': [[f'{name}/9.png', 0, name] for name in CLASSES]}
    (tmp_path / 'split.json').write_text(json.dumps(listed))
    split = {'split_file': str(tmp_path / 'split.json')}
    assert ids(**split) == [row[0] for row in listed['train']]
    assert set(ids(shots=5, **split)) == {row[0] for row in listed['train']}
    assert ids(shots=1, part='val', **split) == [row[0] for row in listed['val']]
    with pytest.raises(DataError, match="'four' has 5 images, too few for 6 shots"):
        ids(shots=6, **split)


# --- recipes


def shipped(name: str, folder: Path, tmp_path: Path, teacher: bool) -> Config:
    """A shipped recipe on world/train and a store of its own, one step long."""
    from synthaug_plugins.recipes import find_recipe
    from synthaug_plugins.training.run import load_recipe

    cfg = load_recipe(find_recipe(name, 'train'))
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(loader) or {}).get('dataset') or {}
        if 'data_root' in dataset:
            dataset.data_root = str(folder / 'train')
        if 'shots' in dataset:
            dataset.shots = 4
    store = make_store(tmp_path / 'store', per_class=6)
    if teacher:
        scored(store, {i: np.array([0.0, -1, -2, -3]) for i in store.index()['id'].to_pylist()})
    if cfg.train_dataloader.dataset.get('store'):
        cfg.train_dataloader.dataset.store = str(store.folder)
    if cfg.synthaug.get('mix'):
        cfg.synthaug.mix.store = str(store.folder)
    cfg.synthaug.clip |= {'model': MODEL, 'cache': str(tmp_path / 'cache')}
    cfg.train_cfg.max_epochs, cfg.log_level = 1, 'WARNING'
    return cfg


RECIPES = sorted(p.stem for p in (REPO / 'registry_configs' / 'train').glob('he2023_*.py') if not p.stem.endswith('_digits'))


@pytest.mark.parametrize('name', RECIPES)
def test_every_tuning_recipe_trains_from_its_file(world: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    assert len(RECIPES) == 8
    runner = runner_of(shipped(name, world, tmp_path, teacher='sce' in name), tmp_path / 'run')
    runner.train()
    assert runner.iter >= 1
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


def test_the_compatible_recipe_has_the_quirks_of_the_published_code(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = shipped('he2023_fewshot_mix_paper_compat', world, tmp_path, teacher=False)
    cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs, cfg.param_scheduler[0].epochs = 4, 2, 2
    cfg.custom_hooks = [{'type': 'Watch'}]
    runner = runner_of(cfg, tmp_path / 'run')
    rates: list[float] = []
    hook = next(h for h in runner.hooks if isinstance(h, Watch))
    hook.before_train_iter = lambda runner, **rest: rates.append(runner.optim_wrapper.get_lr()['lr'][0])  # type: ignore[method-assign]
    runner.train()
    steps = len(rates) // 2
    assert steps == 3  # 12 variants of the shots in batches of 4
    counted = 1  # an epoch in batches four times as large
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * (e * counted + i) / (2 * counted))) for e in range(2) for i in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9, atol=1e-12)


# --- what is refused


def refused(cfg: Config, tmp_path: Path) -> None:
    runner_of(cfg, tmp_path / 'refused').train()


@pytest.mark.parametrize(
    ('clip', 'said'),
    [
        ({'model': None}, 'clip needs model'),
        ({'train': 'heads'}, "train = 'heads' is unknown. Did you mean 'head'"),
        ({'train': 'head', 'augment': 'all'}, "augment = 'all' is unknown"),
        ({'tune': 'layer4'}, "tune means nothing with train = 'cached'"),
        ({'train': 'encoder', 'tune': 'layer9'}, "tune: 'layer9' is found in none of the"),
        ({'train': 'encoder', 'tune': '('}, 'is not a regular expression'),
        ({'train': 'encoder', 'tune': 'layer4', 'lora': {}}, 'tune and lora are two ways'),
        ({'train': 'encoder', 'lora': {'rank': 4}}, "lora has no option 'rank'"),
        ({'train': 'encoder', 'lora': {'r': 0}}, 'is out of range'),
        ({'train': 'encoder', 'lora': {'targets': 'attnpool.*_proj'}}, 'an adapter there would do nothing'),
        ({'train': 'encoder', 'lora': {'targets': 'nothing'}}, 'cannot be adapted'),
        ({'init': 'texts'}, "init = 'texts' is unknown"),
        ({'native_px': 0}, 'native_px = 0 is no number of pixels'),
        ({'templates': 'no place'}, 'no place'),
    ],
)
def test_wrong_options_are_refused_with_their_key_and_a_cure(world: Path, tmp_path: Path, clip: dict[str, Any], said: str) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=said):
        refused(recipe(world, tmp_path, clip=clip), tmp_path)


def test_lora_without_peft_says_what_to_install(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import sys

    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(MissingExtra, match=r'synthaug-plugins\[lora\]'):
        refused(recipe(world, tmp_path, clip={'train': 'encoder', 'lora': {}}), tmp_path)


def test_classes_of_head_data_and_store_that_differ_are_refused(world: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(DataError, match=r'the training set .* are not those of the head .* Give the head the order of the data set'):
        refused(recipe(world, tmp_path, clip={'classes': list(CLASSES[::-1])}), tmp_path)
    with pytest.raises(DataError, match=r"only in the head \['five'\], only in the data \['four'\]"):
        refused(recipe(world, tmp_path, clip={'classes': ['five', *CLASSES[1:]]}), tmp_path)
    other = make_store(tmp_path / 'other', per_class=2, sources=None, classes=CLASSES[::-1])
    with pytest.raises(StoreError, match='order'):
        refused(recipe(world, tmp_path, mix={'store': str(other.folder)}), tmp_path)


def test_a_checkpoint_of_another_clip_or_other_classes_is_refused(world: Path, tmp_path: Path, vit: Path) -> None:  # noqa: F811
    model, other = model_of(recipe(world, tmp_path)), model_of(recipe(world, tmp_path, clip={'model': str(vit)}))
    with pytest.raises(ModelError, match='holds a head for another CLIP'):
        model.load_state_dict(other.state_dict())
    state = model.state_dict()
    state['head.fc.weight'] = torch.zeros(7, 64)
    with pytest.raises(ModelError, match='holds a head of 7 classes and 64 features, the recipe one of 4 and 64'):
        model.load_state_dict(state)


def test_transforms_that_would_do_nothing_are_refused(world: Path, tmp_path: Path) -> None:  # noqa: F811
    swap = {'store': str(world / 'variants'), 'root': str(world / 'train')}
    with pytest.raises(RecipeError, match='The transform SwapWithSynthetic would do nothing'):
        refused(recipe(world, tmp_path, transform=swap), tmp_path)


def test_soft_labels_of_another_length_are_refused(world: Path, tmp_path: Path) -> None:  # noqa: F811
    store = make_store(tmp_path / 'variants', per_class=4)
    scored(store, {i: np.array([0.0, -1, -2]) for i in store.index()['id'].to_pylist()})
    soft = {'column': 'teacher_logits', 'blend': 0.5, 'temperature': 2.0}
    with pytest.raises(RecipeError, match="lists in 'teacher_logits' do not all have 4 entries"):
        refused(mixed(world, tmp_path, store=str(store.folder), soft_labels=soft), tmp_path)


def test_folders_that_classes_names_in_another_order_never_train(world: Path, tmp_path: Path) -> None:  # noqa: F811
    turned = list(CLASSES[::-1])
    store = make_store(tmp_path / 'turned', per_class=3, sources=None, classes=turned)
    for cfg in (recipe(world, tmp_path), recipe(world, tmp_path, mix={'store': str(store.folder), 'mode': 'two_stream'})):
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.metainfo = {'classes': turned}
        with pytest.raises(DataError, match="labels the folder 'two' 3"):
            runner_of(cfg, tmp_path / 'run').train()


def test_a_checkpoint_of_the_same_classes_in_another_order_is_refused(world: Path, tmp_path: Path) -> None:  # noqa: F811
    state = model_of(recipe(world, tmp_path)).state_dict()
    with pytest.raises(ModelError, match='in another order'):
        model_of(recipe(world, tmp_path, clip={'classes': list(CLASSES[::-1])})).load_state_dict(state)
    assert not model_of(recipe(world, tmp_path)).load_state_dict(state).missing_keys


def test_a_device_that_is_none_is_refused_with_its_key(world: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match='FeatureDataset: device = foo'):
        runner_of(recipe(world, tmp_path, clip={'device': 'foo'}), tmp_path / 'run').train()


def test_a_training_folder_that_is_missing_is_named(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = recipe(world, tmp_path)
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'nowhere')
    with pytest.raises(RecipeError, match="nowhere' of the training set does not exist"):
        configure(cfg, get_plugin_manager())


def test_shots_that_are_validation_images_too_are_refused(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = recipe(world, tmp_path)
    few = {'type': 'synthaug_plugins.FewShotDataset', 'data_root': str(world / 'train'), 'shots': 4, 'seed': 1}
    cfg.train_dataloader.dataset, cfg.val_dataloader.dataset = few, {**few, 'part': 'val', 'shots': 7}
    refused(cfg, tmp_path)  # 4 + 4 of 11: no overlap, though the numbers differ
    cfg.train_dataloader.dataset.shots = 9
    with pytest.raises(DataError, match='images are shots and validation images at once'):
        refused(cfg, tmp_path)
