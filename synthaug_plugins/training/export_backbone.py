"""A trained backbone for other libraries: their names, checked against the model that will take them, and how it does."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins import compat
from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.training.backbone_names import LIBRARIES, ResNet, VisionTransformer, architecture, renamed
from synthaug_plugins.training.backbone_weights import load_backbone
from synthaug_plugins.training.checkpoint_recipe import recipe_of

if TYPE_CHECKING:
    import torch

_OPENMMLAB = ('mmdet', 'mmseg')
_STEPS = {'strides': (1, 2, 2, 2), 'dilations': (1, 1, 1, 1)}
"""Of a ResNet's stages: what no weight shows, as every library has it."""
_HEADS = ('fc.', 'head.', 'heads.', 'head_dist.')
"""What the names of a classifier's own weights begin with in timm and torchvision."""


def export_backbone(checkpoint: str | Path, to: str, out: str | Path, ema: bool = False, name: str | None = None) -> str:
    """Write the backbone of a checkpoint for another library, under its names, and say how it is loaded there.

    What does not fit is refused before anything is written: for timm and torchvision the real model is built without memory for its weights and
    compared name by name and shape by shape, its classifier excepted.

    Args:
        checkpoint: a .pth file of MMEngine, see `load_backbone`.
        to: 'mmdet', 'mmseg', 'timm' or 'torchvision'.
        out: a new file, .pth; for timm and torchvision also .safetensors.
        ema: take the average that an EMAHook kept.
        name: the model of timm or torchvision that the weights are for; default: by their shapes.

    Returns: what was exported and lines to load it with.

    Raises:
        RecipeError: an unknown library or suffix, a name for a library that has none, or `out` exists.
        ModelError: no backbone in the checkpoint, one that the library does not have, or weights that do not fit the model of that name.
        StoreError: the file cannot be written.
    """
    out = Path(out)
    if to not in LIBRARIES:
        raise RecipeError(f'--to {to!r} is unknown.', nearest(to, LIBRARIES))
    if name is not None and to in _OPENMMLAB:
        raise RecipeError(f'--name {name!r} names a model, and {to} builds its backbone from a config.', 'Leave it out.')
    suffixes = ('.pth',) if to in _OPENMMLAB else ('.pth', '.safetensors')
    if out.suffix not in suffixes:
        raise RecipeError(f'--out {str(out)!r} is no {" or ".join(suffixes)} file, which {to} loads.', f'Call it {out.stem or "backbone"}{suffixes[-1]}.')
    if out.exists():
        raise RecipeError(f'--out {str(out)!r} exists.', 'Give another name; nothing was touched.')
    state, recipe = load_backbone(checkpoint, ema), recipe_of(checkpoint)
    found = architecture(state)
    backbone = recipe.get('model', {}).get('backbone', {})
    _refuse_other_functions(found, to, backbone)
    weights = renamed(state, to)
    if to in _OPENMMLAB:
        entry = _entry(found, to, backbone)
        usage = f'model = dict(backbone=dict({entry}, init_cfg=dict(type={"Pretrained"!r}, checkpoint={str(out)!r})))'
        what = entry.split("'")[1]
    else:
        what = name or _default_name(found, to)
        _check(weights, what, _skeleton(found, to, name), to)
        usage = _usage(found, to, what, name, out)
    _write(out, {'state_dict': weights} if to in _OPENMMLAB else weights)
    return f'{out}: {len(weights)} weights of a backbone, as {to} names those of {what}.\n{usage}{_normalised(recipe)}'


def _refuse_other_functions(found: ResNet | VisionTransformer, to: str, backbone: Mapping[str, Any]) -> None:
    """Weights that fit by shape and would compute something else there."""
    if isinstance(found, ResNet):
        if found.kernel != 7 and not found.deep_stem:
            what = f'The backbone begins with a {found.kernel}x{found.kernel} convolution, as ResNet_CIFAR does, and those of {to} with 7x7 and a pooling.'
            raise ModelError(what, 'Train an mmpretrain.ResNet to export it.')
        if found.deep_stem and to == 'torchvision':
            raise ModelError('torchvision has no ResNet with the deep stem of V1c and V1d.', 'Export to timm, or train an mmpretrain.ResNet.')
        width = 64 if found.groups > 1 else found.base_channels
        if to in _OPENMMLAB and found.out_channels != width * (1 if found.depth < 50 else 4):
            what = f'The first stage of the backbone gives out {found.out_channels} channels, as Wide ResNets do, which {to} does not have.'
            raise ModelError(what, 'Export to timm or torchvision, or train another ResNet.')
        for key in _STEPS:
            if tuple(backbone.get(key, _STEPS[key])) != _STEPS[key] and to not in _OPENMMLAB:
                what = f'The backbone was trained with {key}={tuple(backbone[key])}; those of {to} have {_STEPS[key]}.'
                raise ModelError(what, 'Train with the usual ones, or export to mmdet or mmseg, whose config can say it.')
        if backbone.get('style') == 'caffe' and to not in _OPENMMLAB:
            raise ModelError(
                f"The backbone was trained with style='caffe', where the 1x1 convolution has the stride; in {to} the 3x3 one has it.",
                "Train with style='pytorch'.",
            )
        return
    if to == 'mmdet':
        raise ModelError('MMDetection itself has no vision transformer.', 'Export a ResNet, or the transformer to mmseg, timm or torchvision.')
    if found.distilled and to != 'timm':
        raise ModelError(f'{to} has no transformer with a distillation token.', 'Export it to timm.')
    arch = backbone.get('arch')
    heads = arch.get('num_heads', found.heads) if isinstance(arch, Mapping) else found.heads
    if heads != found.heads or heads * 64 != found.dims:
        raise ModelError(
            f'The transformer has {heads} heads of {found.dims / heads:g} numbers; those of other libraries have 64.',
            'Train one with num_heads = embed_dims / 64.',
        )


def _entry(found: ResNet | VisionTransformer, to: str, backbone: Mapping[str, Any]) -> str:
    """The backbone's config in MMDetection or MMSegmentation, without the outer dict and what decides nothing about the weights."""
    if isinstance(found, VisionTransformer):
        options: dict[str, Any] = {
            'type': 'VisionTransformer',
            'img_size': (found.image_px, found.image_px),
            'patch_size': found.patch_px,
            'embed_dims': found.dims,
            'num_layers': found.layers,
            'num_heads': found.heads,
            'mlp_ratio': found.mlp_dims // found.dims,
            'patch_bias': True,
            'norm_cfg': {'type': 'LN', 'eps': 1e-6},
            'final_norm': found.final_norm,
        }
    else:
        options = {'type': 'ResNeXt' if found.groups > 1 else 'ResNet', 'depth': found.depth}
        if found.groups > 1:
            options |= {'groups': found.groups, 'base_width': found.base_channels // found.groups}
        elif (found.base_channels, found.stem_channels) != (64, 64):  # both: MMDetection makes the stem as wide as the rest, MMSegmentation 64
            options |= {'base_channels': found.base_channels, 'stem_channels': found.stem_channels}
        if found.deep_stem:  # said like this, since MMDetection has no ResNetV1c
            options |= {'deep_stem': True, 'avg_down': found.avg_down}
        options |= {key: tuple(backbone[key]) for key in _STEPS if tuple(backbone.get(key, _STEPS[key])) != _STEPS[key]}
        options['style'] = backbone.get('style', 'pytorch')
    return ', '.join(f'{key}={value!r}' for key, value in options.items())


def _default_name(found: ResNet | VisionTransformer, to: str) -> str:
    if to == 'torchvision' and isinstance(found, VisionTransformer):
        return 'VisionTransformer'
    return found.name


def _skeleton(found: ResNet | VisionTransformer, to: str, name: str | None) -> torch.nn.Module:
    """The model that will take the weights, on the device meta.

    Raises:
        ModelError: the library has none of that name.
    """
    compat.apply()
    import torch

    if to == 'timm':
        import timm

        known, build = timm.list_models(), timm.create_model
    else:
        import torchvision

        if name is None and isinstance(found, VisionTransformer):
            with torch.device('meta'):
                return torchvision.models.VisionTransformer(**_sizes(found))
        known, build = torchvision.models.list_models(torchvision.models), torchvision.models.get_model
    wanted = name or found.name
    if wanted not in known:
        cure = nearest(wanted, known)
        raise ModelError(f'{to} has no model {wanted!r}.', cure if name else f'Name one with --name. {cure}')
    with torch.device('meta'):
        return build(wanted)


def _sizes(found: VisionTransformer) -> dict[str, int]:
    """As torchvision calls them."""
    return {
        'image_size': found.image_px,
        'patch_size': found.patch_px,
        'num_layers': found.layers,
        'num_heads': found.heads,
        'hidden_dim': found.dims,
        'mlp_dim': found.mlp_dims,
    }


def _check(weights: Mapping[str, torch.Tensor], what: str, model: torch.nn.Module, to: str) -> None:
    """Refuse (ModelError) weights that are not all of a model's but its classifier's; the first that differs is named, with both shapes."""
    wanted = {key: value for key, value in model.state_dict().items() if not key.startswith(_HEADS)}
    for key in [*wanted, *(key for key in weights if key not in wanted)]:
        have, want = weights.get(key), wanted.get(key)
        if have is None and key.endswith('num_batches_tracked'):
            continue
        if have is None or want is None or have.shape != want.shape:
            there, here = ('no such weight' if tensor is None else str(tuple(tensor.shape)) for tensor in (have, want))
            raise ModelError(
                f'The backbone does not fit {what} of {to}: {key} is {there} in the checkpoint and {here} there.', 'Name the right model with --name.'
            )


def _usage(found: ResNet | VisionTransformer, to: str, what: str, name: str | None, out: Path) -> str:
    load = f'load_file({str(out)!r})' if out.suffix == '.safetensors' else f'torch.load({str(out)!r}, weights_only=True)'
    first = 'from safetensors.torch import load_file\n' if out.suffix == '.safetensors' else ''
    if to == 'timm':
        return (
            f'{first}model = timm.create_model({what!r}, num_classes=10)\n'
            f'model.load_state_dict({load}, strict=False)   # strict=False: the head is new\n'
            f"timm's train.py: --model {what} --num-classes 10 --pretrained --pretrained-path {out}"
        )
    built = f'torchvision.models.get_model({what!r}, num_classes=10)'
    if isinstance(found, VisionTransformer) and name is None:
        built = f'torchvision.models.VisionTransformer({", ".join(f"{k}={v}" for k, v in _sizes(found).items())}, num_classes=10)'
    usage = f'{first}model = {built}\nmodel.load_state_dict({load}, strict=False)   # strict=False: the head is new'
    if what == 'resnet50':
        usage += (
            '\ndetector = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21)\n'
            f'detector.backbone.body.load_state_dict({load})'
        )
    return usage


def _normalised(recipe: Mapping[str, Any]) -> str:
    """What images it wants, where the checkpoint says so."""
    own = recipe.get('model', {}).get('data_preprocessor') or recipe.get('data_preprocessor') or {}
    if not own.get('mean') or not own.get('std'):
        return ''
    order = 'RGB' if own.get('to_rgb') or own.get('bgr_to_rgb') else 'BGR'
    scaled = ' and '.join(f'{key} {[round(value / 255, 4) for value in own[key]]}' for key in ('mean', 'std'))
    return f'\nIt was trained on {order} images with mean {list(own["mean"])} and std {list(own["std"])} of 255: {scaled} of 1.'


def _write(out: Path, content: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save

    if out.suffix == '.safetensors':
        write_whole(out, save({key: value.contiguous() for key, value in content.items()}))
        return
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(out, buffer.getvalue())
