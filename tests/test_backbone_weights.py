"""A backbone travels from one training to the next: whole, as it was trained, and only to a backbone that it fits."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mix import recipe, world  # noqa: F401

from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.training.backbone_weights import check_fits, load_backbone, save_backbone, skeleton
from synthaug_plugins.training.run import configure, load_recipe, train

RESNET = {'type': 'ResNet', 'depth': 18, 'base_channels': 4, 'stem_channels': 4, 'num_stages': 2, 'out_indices': (1,), 'strides': (1, 2), 'dilations': (1, 1)}
VIT = {'type': 'VisionTransformer', 'arch': {'embed_dims': 8, 'num_layers': 1, 'num_heads': 2, 'feedforward_channels': 8}, 'img_size': 32, 'patch_size': 8}


@pytest.fixture(scope='module')
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: F811
    """A real Runner after two epochs with an EMAHook, whose checkpoints lie in its work_dir."""
    cfg = recipe(world)
    cfg.train_cfg.max_epochs = 2
    cfg.custom_hooks.append({'type': 'EMAHook', 'momentum': 0.1})
    cfg.default_hooks = {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}}
    return train(configure(cfg, get_plugin_manager()), tmp_path_factory.mktemp('trained') / 'run')


def equal(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_the_trained_weights_and_their_average_are_told_apart(trained: Any) -> None:
    checkpoint = Path(trained.work_dir) / 'epoch_2.pth'
    hook = next(h for h in trained.hooks if type(h).__name__ == 'EMAHook')
    raw, average = load_backbone(checkpoint), load_backbone(checkpoint, ema=True)
    assert equal(raw, trained.model.backbone.state_dict())
    assert equal(average, hook.ema_model.module.backbone.state_dict())
    assert not equal(raw, average)


def test_a_saved_backbone_is_what_mmengines_pretrained_loads(trained: Any, tmp_path: Path) -> None:
    from mmengine.registry import MODELS, init_default_scope

    state = load_backbone(Path(trained.work_dir) / 'epoch_2.pth')
    save_backbone(state, tmp_path / 'a.pth')
    save_backbone(load_backbone(tmp_path / 'a.pth'), tmp_path / 'b.pth')
    assert (tmp_path / 'a.pth').read_bytes() == (tmp_path / 'b.pth').read_bytes()
    init_default_scope('mmpretrain')
    cfg = trained.cfg.model.backbone.to_dict()
    check_fits(state, cfg)
    backbone = MODELS.build({**cfg, 'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'a.pth'), 'prefix': 'backbone.'}})
    backbone.init_weights()
    assert equal(backbone.state_dict(), state)


def test_of_a_self_supervised_model_the_encoder_is_taken_that_gradients_train(tmp_path: Path) -> None:
    cfg = load_recipe('mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py').model.to_dict()
    small = {**cfg, 'backbone': {**RESNET, 'out_indices': [1]}, 'queue_len': 8, 'neck': {**cfg['neck'], 'in_channels': 8, 'hid_channels': 8}}
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmpretrain')
    model = MODELS.build(small)
    for parameter in model.encoder_k.parameters():
        parameter.data += 1
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'moco.pth')
    assert equal(load_backbone(tmp_path / 'moco.pth'), model.backbone.state_dict())


def test_the_first_weight_that_differs_is_named_with_both_shapes() -> None:
    state = skeleton(RESNET).state_dict()
    check_fits(state, RESNET)
    wide = {**RESNET, 'base_channels': 8, 'stem_channels': 4}
    with pytest.raises(RecipeError, match=r'backbone ResNet: layer1\.0\.conv1\.weight is \(4, 4, 3, 3\) in the checkpoint and \(8, 4, 3, 3\) in the recipe'):
        check_fits(state, wide)
    deeper = {**RESNET, 'num_stages': 3, 'out_indices': (2,), 'strides': (1, 2, 2), 'dilations': (1, 1, 1)}
    with pytest.raises(RecipeError, match=r'layer3\.0\.conv1\.weight is no such weight in the checkpoint and \(16, 8, 3, 3\) in the recipe'):
        check_fits(state, deeper)
    with pytest.raises(RecipeError, match=r'layer3\.0\.conv1\.weight is \(16, 8, 3, 3\) in the checkpoint and no such weight in the recipe'):
        check_fits(skeleton(deeper).state_dict(), RESNET)
    check_fits(state, deeper, may_differ=[r'^layer3\.'])
    with pytest.raises(RecipeError, match='not a regular expression'):
        check_fits(state, RESNET, may_differ=['('])
    with pytest.raises(RecipeError, match="'ResNut' cannot be built"):
        check_fits(state, {**RESNET, 'type': 'ResNut'})


def test_what_a_backbone_resizes_at_loading_is_no_difference() -> None:
    state = {key: torch.zeros(value.shape) for key, value in skeleton(VIT).state_dict().items()}
    check_fits(state, {**VIT, 'img_size': 64})  # position embeddings of another image size
    with pytest.raises(RecipeError, match=r'patch_embed\.projection\.weight is \(8, 3, 8, 8\) in the checkpoint and \(8, 3, 4, 4\)'):
        check_fits(state, {**VIT, 'patch_size': 4})


class Evil:
    def __reduce__(self) -> Any:
        return print, ('loaded',)


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        (None, 'does not exist'),
        (b'', 'cannot be read'),
        (b'PK\x03\x04 cut off', 'cannot be read'),
        (pickle.dumps(Evil()), 'could run code'),
        ([1], 'holds a list'),
        ({}, 'first names are none'),
        (
            {'state_dict': {'conv1.weight': torch.zeros(1), 'fc.bias': torch.zeros(1)}},
            r'no weight of a backbone; its first names are conv1\.weight, fc\.bias\.',
        ),
    ],
    ids=['absent', 'empty', 'cut off', 'code', 'list', 'nothing', 'timm'],
)
def test_what_is_no_backbone_is_refused_by_name(tmp_path: Path, content: Any, text: str) -> None:
    file = tmp_path / 'given.pth'
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ModelError, match=text) as refused:
        load_backbone(file)
    assert 'given.pth' in refused.value.what
    assert refused.value.cure


def test_an_average_that_was_not_kept_is_refused(tmp_path: Path) -> None:
    save_backbone({'conv1.weight': torch.zeros(1)}, tmp_path / 'a.pth')
    with pytest.raises(ModelError, match='holds no average of weights'):
        load_backbone(tmp_path / 'a.pth', ema=True)
