"""A CLIP in MMPretrain: an ordinary ImageClassifier whose untrained head is open_clip's own zero-shot classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_mix import CLASSES, make_store, world  # noqa: F401

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.training.run import configure

import mmpretrain  # noqa: F401  isort: skip
from mmengine.config import Config  # isort: skip
from mmengine.registry import MODELS, init_default_scope  # isort: skip
from mmengine.runner import Runner  # isort: skip
from mmpretrain.apis import ImageClassificationInferencer  # isort: skip

open_clip = pytest.importorskip('open_clip')
MODEL = 'embedded:digits_clip'
RN50_TOWER: dict[str, Any] = {'image_size': 224, 'layers': [3, 4, 6, 3], 'width': 64}
TEXT: dict[str, Any] = {'context_length': 16, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 1}


def recipe(world: Path, tmp_path: Path, by_epoch: int | None = None, **synthaug: Any) -> Config:  # noqa: F811
    """A CLIP head on world/train, validated on the same folder: plumbing, not accuracy."""
    loader = {'num_workers': 0, 'collate_fn': {'type': 'default_collate'}}
    data = {'type': 'CustomDataset', 'data_root': str(world / 'train')}
    clip = {'model': MODEL, 'cache': str(tmp_path / 'cache'), **synthaug.pop('clip', {})}
    if clip.get('train', 'cached') != 'cached':
        del clip['cache']
    cfg = {
        'default_scope': 'mmpretrain',
        'train_dataloader': {**loader, 'batch_size': 8, 'sampler': {'type': 'DefaultSampler', 'shuffle': True}, 'dataset': data},
        'val_dataloader': {**loader, 'batch_size': 32, 'sampler': {'type': 'DefaultSampler', 'shuffle': False}, 'dataset': dict(data)},
        'test_dataloader': {**loader, 'batch_size': 32, 'sampler': {'type': 'DefaultSampler', 'shuffle': False}, 'dataset': dict(data)},
        **{f'{part}_evaluator': [{'type': 'Accuracy', 'topk': (1,)}] for part in ('val', 'test')},
        'val_cfg': {},
        'test_cfg': {},
        'train_cfg': {'by_epoch': True, 'max_epochs': by_epoch or 1},
        'optim_wrapper': {'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1}, 'clip_grad': {'max_norm': 1.0}},
        'randomness': {'seed': 7},
        'log_level': 'WARNING',
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        'synthaug': {'clip': clip, **synthaug},
    }
    return Config(cfg)


def runner_of(cfg: Config, work_dir: Path) -> Runner:
    cfg = configure(cfg, get_plugin_manager())
    cfg.work_dir = cfg.experiment_name = str(work_dir)
    return Runner.from_cfg(cfg)


def model_of(cfg: Config) -> Any:
    """The model as a run starts it."""
    cfg = configure(cfg, get_plugin_manager())
    init_default_scope('mmpretrain')
    model = MODELS.build({**cfg.model.to_dict(), 'data_preprocessor': cfg.data_preprocessor.to_dict()})
    model.init_weights()
    return model.eval()


def save_clip(folder: Path, vision: dict[str, Any], embed_dim: int, seed: int = 0) -> Path:
    """A CLIP with random weights in open_clip's layout."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    config = {'embed_dim': embed_dim, 'vision_cfg': vision, 'text_cfg': TEXT}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in open_clip.CLIP(**config).state_dict().items()}, folder / 'open_clip_model.safetensors')
    (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config, 'preprocess_cfg': {}}))
    return folder


@pytest.fixture(scope='module')
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer: no BatchNorm."""
    return save_clip(tmp_path_factory.mktemp('vit'), {'image_size': 32, 'layers': 2, 'width': 64, 'patch_size': 8}, 24)


# --- the head


@pytest.mark.parametrize('templates', ['a photo of a {}', ['a photo of a {}', 'the digit {}', 'a drawing of {}']])
def test_untrained_head_gives_open_clips_own_zero_shot_logits(world: Path, tmp_path: Path, templates: Any) -> None:  # noqa: F811
    model = model_of(recipe(world, tmp_path, clip={'train': 'head', 'templates': templates}))
    own, _, prepare = open_clip.create_model_and_transforms('local-dir:' + str(_embedded()))
    own.eval()
    formats = [templates] if isinstance(templates, str) else templates
    classifier = open_clip.build_zero_shot_classifier(own, open_clip.get_tokenizer('local-dir:' + str(_embedded())), list(CLASSES), [t.format for t in formats])
    images = torch.stack([prepare(Image.open(world / 'train' / name / '0.png')) for name in CLASSES])
    with torch.no_grad():
        expected = own.logit_scale.exp() * own.encode_image(images, normalize=True) @ classifier
        found = model(images, mode='tensor')
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert model.head.fc.bias.abs().max() == 0
    assert all(p.requires_grad for p in model.head.parameters())


def _embedded() -> Path:
    from synthaug_plugins.weights import embedded_folder

    return embedded_folder(MODEL)


def test_head_stays_in_float32_under_autocast(world: Path, tmp_path: Path) -> None:  # noqa: F811
    model = model_of(recipe(world, tmp_path, clip={'train': 'head'}))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        (feats,) = model.backbone(x)
        logits = model.head((feats,))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.nn.functional.normalize(feats.float()) @ model.head.fc.weight.T + model.head.fc.bias)


def test_random_head_knows_nothing_of_the_texts(world: Path, tmp_path: Path) -> None:  # noqa: F811
    model = model_of(recipe(world, tmp_path, clip={'init': 'random'}))
    assert model.head.fc.weight.std() < 0.02


# --- images and features


def test_live_transforms_prepare_images_as_open_clip_does(world: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / 'odd' / 'train'
    rng = np.random.default_rng(0)
    for i, (name, size) in enumerate(zip(CLASSES, [(37, 61), (90, 41), (32, 32), (20, 23)], strict=True)):
        (folder / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / name / 'x.jpg', quality=90 + i)
    runner = runner_of(recipe(folder.parent, tmp_path, clip={'train': 'head'}), tmp_path / 'run')
    loader = runner.build_dataloader(runner._test_dataloader)
    batch = runner.model.data_preprocessor(next(iter(loader)), False)
    clip = ClipModel(MODEL)
    clip.load(torch.device('cpu'))
    expected = clip.preprocess([np.asarray(Image.open(folder / name / 'x.jpg')) for name in CLASSES])
    torch.testing.assert_close(batch['inputs'], expected, rtol=0, atol=1e-5)


def test_cached_training_deploys_through_the_live_tower(world: Path, tmp_path: Path) -> None:  # noqa: F811
    cached = runner_of(recipe(world, tmp_path, by_epoch=3), tmp_path / 'cached')
    cached.train()
    accuracy = cached.test()['accuracy/top1']
    cfg = recipe(world, tmp_path, clip={'train': 'head'})
    cfg.load_from = str(tmp_path / 'cached' / 'epoch_3.pth')
    live = runner_of(cfg, tmp_path / 'live')
    assert live.test()['accuracy/top1'] == pytest.approx(accuracy)
    torch.testing.assert_close(live.model.head.fc.weight, cached.model.head.fc.weight)
    assert (cached.model.head.fc.weight - model_of(cfg).head.fc.weight).abs().max() > 1e-3  # it did train

    inferencer = ImageClassificationInferencer(configure(cfg, get_plugin_manager()), pretrained=cfg.load_from, device='cpu', classes=list(CLASSES))
    files = [str(world / 'train' / name / '3.png') for name in CLASSES]
    scores = np.stack([result['pred_scores'] for result in inferencer(files)])
    of_files = [i for i in range(44) if cached.test_dataloader.dataset.get_data_info(i)['img_path'] in files]
    expected = cached.model.head((cached.test_dataloader.dataset.features[of_files],)).softmax(1)
    np.testing.assert_allclose(scores, expected.detach().numpy(), atol=1e-4)


def test_head_only_checkpoint_loads_without_a_word_about_the_tower(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    from mmengine.runner import load_checkpoint, save_checkpoint

    cached, live = model_of(recipe(world, tmp_path)), model_of(recipe(world, tmp_path, clip={'train': 'head'}))
    save_checkpoint({'state_dict': cached.state_dict()}, str(tmp_path / 'head.pth'))
    save_checkpoint({'state_dict': live.state_dict()}, str(tmp_path / 'whole.pth'))
    load_checkpoint(live, str(tmp_path / 'head.pth'))
    assert 'missing' not in ''.join(capfd.readouterr())
    with torch.no_grad():
        live.backbone.visual.conv1.weight.zero_()
    load_checkpoint(live, str(tmp_path / 'whole.pth'))
    assert live.backbone.visual.conv1.weight.abs().max() > 0  # a checkpoint that holds the tower restores it
