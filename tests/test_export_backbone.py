"""A trained backbone in other libraries: the real ones load it, and it computes there what it computed here."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import Say
from synthaug_plugins import compat
from synthaug_plugins.errors import ModelError, RecipeError, SynthAugError
from synthaug_plugins.training.backbone_names import architecture, renamed
from synthaug_plugins.training.backbone_weights import save_backbone
from synthaug_plugins.training.checkpoint_recipe import plain_settings
from synthaug_plugins.training.export_backbone import export_backbone


def backbone(kind: str, **options: Any) -> torch.nn.Module:
    """One of MMPretrain's with weights and statistics by chance, in eval mode."""
    return copy.deepcopy(built(kind, json.dumps(options)))


@functools.lru_cache(maxsize=1)  # most want a ResNet-18
def built(kind: str, options: str) -> torch.nn.Module:
    compat.apply()
    import mmpretrain.models.backbones as backbones

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        module = getattr(backbones, kind)(**json.loads(options))
    for name, buffer in module.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_(std=0.1)
        elif name.endswith('running_var'):
            buffer.uniform_(0.5, 1.5)
    module.eval()  # gives None: MMPretrain overrides it
    return module


def checkpoint_of(module: torch.nn.Module, path: Path, recipe: str = '') -> Path:
    """As MMEngine writes one: the backbone beside a head, and the recipe as text."""
    state = {**{f'backbone.{key}': value for key, value in module.state_dict().items()}, 'head.fc.weight': torch.zeros(3, 4)}
    torch.save({'state_dict': state, 'meta': {'cfg': recipe}}, path)
    return path


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def exported(module: torch.nn.Module, to: str, tmp_path: Path, **options: Any) -> dict[str, torch.Tensor]:
    out = tmp_path / f'{to}.pth'
    export_backbone(checkpoint_of(module, tmp_path / 'checkpoint.pth'), to, out, **options)
    return torch.load(out, weights_only=True)


def take(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A model with the weights: all of its own but the classifier's, and no others."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and missing and all(key.startswith(('fc.', 'head', 'heads.')) for key in missing)
    return model.eval()


# --- the real libraries


@pytest.mark.parametrize(
    ('kind', 'options', 'name'),
    [
        ('ResNet', {'depth': 18}, 'resnet18'),
        ('ResNetV1d', {'depth': 18}, 'resnet18d'),
        ('ResNeXt', {'depth': 50, 'groups': 32, 'width_per_group': 4}, 'resnext50_32x4d'),
    ],
)
@torch.no_grad()
def test_timm_computes_what_the_resnet_computed_here(kind: str, options: dict[str, Any], name: str, images: torch.Tensor, tmp_path: Path) -> None:
    import timm

    module = backbone(kind, **options)
    state = exported(module, 'timm', tmp_path)
    assert architecture(module.state_dict()).name == name
    model = take(timm.create_model(name, num_classes=10), state)
    torch.testing.assert_close(model.forward_features(images), module(images)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('kind', 'name'), [('VisionTransformer', 'deit_tiny_patch16_224'), ('DistilledVisionTransformer', 'deit_tiny_distilled_patch16_224')])
@torch.no_grad()
def test_timm_computes_what_the_transformer_computed_here(kind: str, name: str, tmp_path: Path) -> None:
    import timm

    module = backbone(kind, arch='deit-tiny')
    model = take(timm.create_model(name, num_classes=10), exported(module, 'timm', tmp_path))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    here = module(image)[-1]
    tokens = torch.stack(here, 1) if isinstance(here, tuple) else here[:, None]
    torch.testing.assert_close(model.forward_features(image)[:, : tokens.shape[1]], tokens, rtol=1e-4, atol=1e-4)


def test_timms_own_train_script_would_load_it(tmp_path: Path) -> None:
    import timm

    module = backbone('ResNet', depth=18)
    out = tmp_path / 'resnet18.safetensors'
    said = export_backbone(checkpoint_of(module, tmp_path / 'checkpoint.pth'), 'timm', out)
    assert f'--model resnet18 --num-classes 10 --pretrained --pretrained-path {out}' in said
    # what train.py makes of these two options
    model = timm.create_model('resnet18', pretrained=True, num_classes=10, pretrained_cfg_overlay={'file': str(out)})
    assert torch.equal(model.layer4[1].conv2.weight, module.layer4[1].conv2.weight)


@torch.no_grad()
def test_torchvisions_faster_rcnn_takes_the_resnet50_and_looks_at_an_image(images: torch.Tensor, tmp_path: Path) -> None:
    import torchvision

    module = backbone('ResNet', depth=50)
    state = exported(module, 'torchvision', tmp_path)
    plain = take(torchvision.models.resnet50(num_classes=10), state)
    body = torch.nn.Sequential(*list(plain.children())[:-2])
    here = module(images)[-1]
    torch.testing.assert_close(body(images), here, rtol=1e-4, atol=1e-4)

    detector = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21, min_size=64, max_size=64).eval()
    detector.backbone.body.load_state_dict(state)
    torch.testing.assert_close(detector.backbone.body(images)['3'], here, rtol=1e-3, atol=1e-3)
    found = detector([images[0].sigmoid()])
    assert set(found[0]) == {'boxes', 'labels', 'scores'}


@torch.no_grad()
def test_torchvision_computes_what_the_transformer_computed_here(tmp_path: Path) -> None:
    import torchvision

    arch = {'embed_dims': 128, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 256}
    module = backbone('VisionTransformer', arch=arch, img_size=64, patch_size=16)
    out = tmp_path / 'vit.pth'
    said = export_backbone(checkpoint_of(module, tmp_path / 'checkpoint.pth'), 'torchvision', out)
    call = re.search(r'torchvision\.models\.VisionTransformer\(.*\)', said)
    assert call
    model = take(eval(call[0], {'torchvision': torchvision}), torch.load(out, weights_only=True))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    tokens = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), model._process_input(image)], 1))
    torch.testing.assert_close(tokens[:, 0], module(image)[-1], rtol=1e-4, atol=1e-4)


def need(library: str) -> None:
    """Skip where the real MMDetection or MMSegmentation cannot be had."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f'{library} is not installed: its backbone was not built from the exported file')
    compat.apply()
    try:
        importlib.import_module(f'{library}.models')
    except (AssertionError, ImportError) as error:
        pytest.skip(f'{library} cannot be imported with this mmcv: {error}')


def loaded_by(library: str, said: str) -> torch.nn.Module:
    """The backbone that the printed config builds there, weights loaded by MMEngine's Pretrained."""
    from mmengine.registry import MODELS, DefaultScope

    config = plain_settings(said.splitlines()[1])['model']['backbone']
    with DefaultScope.overwrite_default_scope(library):
        module = MODELS.build(config)
    module.init_weights()
    module.eval()  # gives None: MMPretrain overrides it
    return module


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('ResNet', {'depth': 50}),
        ('ResNet', {'depth': 18, 'base_channels': 8}),
        ('ResNet', {'depth': 18, 'stem_channels': 8, 'strides': (1, 2, 1, 1), 'dilations': (1, 1, 2, 4)}),
        ('ResNetV1c', {'depth': 18}),
        ('ResNetV1d', {'depth': 18}),
        ('ResNeXt', {'depth': 50}),
    ],
)
@torch.no_grad()
def test_openmmlabs_own_resnet_takes_it_by_the_printed_config(library: str, kind: str, options: dict[str, Any], images: torch.Tensor, tmp_path: Path) -> None:
    need(library)
    module = backbone(kind, **options)
    recipe = f'model = dict(backbone={options})'
    said = export_backbone(checkpoint_of(module, tmp_path / 'checkpoint.pth', recipe), library, tmp_path / 'backbone.pth')
    torch.testing.assert_close(loaded_by(library, said)(images)[-1], module(images)[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mmsegmentations_own_transformer_takes_it_by_the_printed_config(images: torch.Tensor, tmp_path: Path) -> None:
    need('mmseg')
    arch = {'embed_dims': 128, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 256}
    module = backbone('VisionTransformer', arch=arch, img_size=64, patch_size=16, out_type='featmap')
    said = export_backbone(checkpoint_of(module, tmp_path / 'checkpoint.pth'), 'mmseg', tmp_path / 'backbone.pth')
    torch.testing.assert_close(loaded_by('mmseg', said)(images)[-1], module(images)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_the_printed_config_names_the_file_and_mmengine_loads_it_as_a_checkpoint(library: str, tmp_path: Path) -> None:
    module, other = backbone('ResNet', depth=18), backbone('ResNet', depth=18)
    out = tmp_path / 'backbone.pth'
    said = export_backbone(checkpoint_of(module, tmp_path / 'checkpoint.pth'), library, out)
    config = plain_settings(said.splitlines()[1])['model']['backbone']
    assert config == {'type': 'ResNet', 'depth': 18, 'style': 'pytorch', 'init_cfg': {'type': 'Pretrained', 'checkpoint': str(out)}}
    from mmengine.model import initialize

    torch.nn.init.zeros_(other.conv1.weight)
    initialize(other, config['init_cfg'])
    for key, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


# --- what is said, and what is refused


def test_the_command_says_how_images_were_normalised_and_keeps_what_is_there(synthaug: Say, tmp_path: Path) -> None:
    recipe = "data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[51.0, 51.0, 51.0], to_rgb=True)\nmodel = dict(backbone=dict(type='ResNet', depth=18))"
    checkpoint = checkpoint_of(backbone('ResNet', depth=18), tmp_path / 'checkpoint.pth', recipe)
    out = tmp_path / 'resnet18.safetensors'
    said = synthaug('export-backbone', checkpoint, '--to', 'torchvision', '--out', out)
    assert said.status == 0, said.err
    assert "torchvision.models.get_model('resnet18', num_classes=10)" in said.out
    assert 'trained on RGB images' in said.out and 'mean [0.5, 0.5, 0.5] and std [0.2, 0.2, 0.2] of 1' in said.out
    assert 'fc.weight' not in load_file(out)
    before = out.read_bytes()
    again = synthaug('export-backbone', checkpoint, '--to', 'timm', '--out', out)
    assert again.status == 2 and 'exists' in again.err and out.read_bytes() == before


@pytest.fixture(scope='module')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(backbone('ResNet', depth=18), tmp_path_factory.mktemp('small') / 'checkpoint.pth')


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'to': 'tim'}, "Did you mean 'timm'"),
        ({'to': 'mmdet', 'name': 'resnet18'}, 'builds its backbone from a config'),
        ({'to': 'mmdet', 'out': 'x.safetensors'}, r'no \.pth file'),
        ({'to': 'timm', 'out': 'x.bin'}, r'Call it x\.safetensors'),
        ({'to': 'timm', 'name': 'resnet19'}, "timm has no model 'resnet19'.*'resnet18'"),
        ({'to': 'torchvision', 'name': 'resnet50'}, r'resnet50 of torchvision: layer1\.0\.conv1\.weight is \(64, 64, 3, 3\) .* \(64, 64, 1, 1\)'),
        ({'to': 'timm', 'name': 'resnet34'}, r'layer1\.2\.conv1\.weight is no such weight'),
        ({'to': 'timm', 'ema': True}, 'holds no average'),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(small: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    options = {'out': 'x.pth', **options}
    out = tmp_path / options.pop('out')
    with pytest.raises(SynthAugError, match=says):
        export_backbone(small, out=out, **options)
    assert not out.exists()


@pytest.mark.parametrize(
    ('kind', 'options', 'to', 'says'),
    [
        ('ResNet_CIFAR', {'depth': 18}, 'torchvision', '3x3 convolution'),
        ('ResNet_CIFAR', {'depth': 18}, 'mmdet', '3x3 convolution'),
        ('SEResNet', {'depth': 50}, 'timm', 'no other library has a name for its weight layer1.0.se_layer'),
        ('ResNetV1d', {'depth': 18}, 'torchvision', 'deep stem'),
        ('ResNet', {'depth': 50, 'base_channels': 8, 'expansion': 2}, 'mmdet', 'gives out 16 channels, as Wide ResNets do'),
        ('MobileNetV2', {}, 'timm', r'name for its weight conv1\.conv\.weight.*ResNet'),
        ('VisionTransformer', {'arch': 'deit-tiny'}, 'mmdet', 'no vision transformer'),
        ('DistilledVisionTransformer', {'arch': 'deit-tiny'}, 'torchvision', 'distillation token'),
        ('VisionTransformer', {'arch': 'deit-tiny', 'img_size': 96}, 'timm', "no model 'deit_tiny_patch16_96'.*--name"),
    ],
)
def test_a_backbone_that_a_library_does_not_have_is_refused(kind: str, options: dict[str, Any], to: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=says):
        exported(backbone(kind, **options), to, tmp_path)


def test_weights_that_fit_by_shape_and_would_compute_something_else_are_refused(tmp_path: Path) -> None:
    caffe = checkpoint_of(backbone('ResNet', depth=50, style='caffe'), tmp_path / 'a.pth', "model = dict(backbone=dict(type='ResNet', style='caffe'))")
    with pytest.raises(ModelError, match='1x1 convolution has the stride'):
        export_backbone(caffe, 'timm', tmp_path / 'x.pth')
    assert "style='caffe'" in export_backbone(caffe, 'mmdet', tmp_path / 'y.pth')
    dilated = {'strides': (1, 2, 2, 1), 'dilations': (1, 1, 1, 2)}
    dense = checkpoint_of(backbone('ResNet', depth=18, **dilated), tmp_path / 'd.pth', f'model = dict(backbone={dilated})')
    with pytest.raises(ModelError, match=r'strides=\(1, 2, 2, 1\); those of timm have \(1, 2, 2, 2\)'):
        export_backbone(dense, 'timm', tmp_path / 'x.pth')
    assert 'dilations=(1, 1, 1, 2)' in export_backbone(dense, 'mmseg', tmp_path / 'v.pth')
    arch = {'embed_dims': 128, 'num_layers': 1, 'num_heads': 4, 'feedforward_channels': 256}
    heads = checkpoint_of(backbone('VisionTransformer', arch=arch, img_size=32), tmp_path / 'b.pth', f'model = dict(backbone=dict(arch={arch}))')
    with pytest.raises(ModelError, match='4 heads of 32 numbers'):
        export_backbone(heads, 'torchvision', tmp_path / 'z.pth')


def test_the_backbone_alone_is_a_checkpoint_too(tmp_path: Path) -> None:
    module = backbone('ResNet', depth=18)
    save_backbone(module.state_dict(), tmp_path / 'backbone.pth')
    export_backbone(tmp_path / 'backbone.pth', 'torchvision', tmp_path / 'x.pth')
    assert set(torch.load(tmp_path / 'x.pth', weights_only=True)) == set(renamed(module.state_dict(), 'torchvision'))
    with pytest.raises(RecipeError, match='exists'):
        export_backbone(tmp_path / 'backbone.pth', 'torchvision', tmp_path / 'x.pth')


def test_the_recipe_in_a_checkpoint_is_read_and_never_run() -> None:
    text = "a = dict(b=[1, 2.5, None], c={'d': ('e', -1)})\nf = __import__('os').system('exit 1')\ng = dict(**a)\nh = True\n"
    assert plain_settings(text) == {'a': {'b': [1, 2.5, None], 'c': {'d': ('e', -1)}}, 'h': True}
    assert plain_settings('a = (') == {}
