"""What other libraries call the weights of MMPretrain's ResNets and vision transformers: names and shapes only, no library is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

from synthaug_plugins.errors import ModelError

if TYPE_CHECKING:
    import torch

LIBRARIES = ('mmdet', 'mmseg', 'timm', 'torchvision')
_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_RESNET = re.compile(r'(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[012]))\.[a-z_]+')
_STEM = re.compile(r'stem\.([012])\.(conv|bn)\.([a-z_]+)')
_VIT = re.compile(
    r'cls_token|dist_token|pos_embed|patch_embed\.projection\.(weight|bias)|ln1\.(weight|bias)'
    r'|layers\.\d+\.(ln[12]|attn\.qkv|attn\.proj|ffn\.layers\.0\.0|ffn\.layers\.1)\.(weight|bias)'
)
_KNOWN = 'ResNet (V1b, V1c, V1d, ResNeXt and Wide ones, too) and VisionTransformer (DeiT)'
HEAD_WIDTH = 64
"""Of each attention head in every published ViT and DeiT; the number of heads cannot be read off the weights."""


@dataclass(frozen=True)
class ResNet:
    """What the weights of a ResNet say about it.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        groups: of the 3x3 convolutions.
        base_channels: width of a bottleneck's (or block's) 3x3 convolution in the first stage.
        out_channels: of the first stage: 4 times that width, but in Wide ResNets twice, and in ResNeXt 256.
        stem_channels: of what enters the first stage.
        deep_stem, avg_down: the two changes of V1c and V1d.
        kernel: of the first convolution, pixels.
    """

    depth: int
    groups: int
    base_channels: int
    out_channels: int
    stem_channels: int
    deep_stem: bool
    avg_down: bool
    kernel: int

    @property
    def name(self) -> str:
        """As timm and torchvision call it."""
        variant = 'd' if self.avg_down else 'c' if self.deep_stem else ''
        if self.groups > 1:
            return f'resnext{self.depth}{variant}_{self.groups}x{self.base_channels // self.groups}d'
        wide = f'wide_resnet{self.depth}{variant}_2' if self.base_channels == 128 else None
        return wide or f'resnet{self.depth}{variant}'


@dataclass(frozen=True)
class VisionTransformer:
    """What the weights of a vision transformer say about it.

    Attributes:
        dims, layers, mlp_dims, patch_px: its sizes.
        image_px: side of the (square) images that its position embeddings are for.
        distilled: whether it has DeiT's second token.
        final_norm: whether its output is normalised.
    """

    dims: int
    layers: int
    mlp_dims: int
    patch_px: int
    image_px: int
    distilled: bool
    final_norm: bool

    @property
    def heads(self) -> int:
        """Attention heads, by the width that published ones have."""
        return self.dims // HEAD_WIDTH

    @property
    def name(self) -> str:
        """As timm calls it; of other sizes a name that it does not know."""
        size = {192: 'tiny', 384: 'small', 768: 'base', 1024: 'large'}.get(self.dims, str(self.dims))
        kind = f'deit_{size}{"_distilled" if self.distilled else ""}' if self.dims < 1024 and self.patch_px == 16 else f'vit_{size}'
        return f'{kind}_patch{self.patch_px}_{self.image_px}'


def architecture(state: Mapping[str, torch.Tensor]) -> ResNet | VisionTransformer:
    """What a backbone is, by its weights' names and shapes.

    Args:
        state: by MMPretrain's names without `backbone.`.

    Raises:
        ModelError: neither a ResNet nor a vision transformer, or one with weights that these do not have; the first is named.
    """
    transformer = 'patch_embed.projection.weight' in state
    known = (_VIT,) if transformer else (_RESNET, _STEM)
    strange = next((key for key in state if not any(pattern.fullmatch(key) for pattern in known)), None)
    if strange is None and not transformer and 'layer4.0.conv1.weight' not in state:
        strange = 'layer4, which is missing'
    if strange is not None:
        raise ModelError(f'This backbone cannot be exported: no other library has a name for its weight {strange}.', f'{_KNOWN} can be.')
    return _transformer(state) if transformer else _resnet(state)


def _resnet(state: Mapping[str, torch.Tensor]) -> ResNet:
    bottleneck = 'layer1.0.conv3.weight' in state
    blocks = tuple(len({key.split('.')[1] for key in state if key.startswith(f'layer{stage}.')}) for stage in (1, 2, 3, 4))
    if (bottleneck, blocks) not in _DEPTHS:
        what = f'This backbone cannot be exported: no other library has a ResNet of {blocks} {"bottlenecks" if bottleneck else "blocks"}.'
        raise ModelError(what, f'Depths are {", ".join(map(str, _DEPTHS.values()))}.')
    middle = state[f'layer1.0.conv{2 if bottleneck else 1}.weight']
    deep = 'stem.0.conv.weight' in state
    first = state['stem.2.conv.weight' if deep else 'conv1.weight']
    return ResNet(
        depth=_DEPTHS[bottleneck, blocks],
        groups=middle.shape[0] // middle.shape[1] if bottleneck else 1,
        base_channels=middle.shape[0],
        out_channels=state[f'layer1.0.conv{3 if bottleneck else 2}.weight'].shape[0],
        stem_channels=first.shape[0],
        deep_stem=deep,
        avg_down='layer2.0.downsample.2.weight' in state,
        kernel=first.shape[-1],
    )


def _transformer(state: Mapping[str, torch.Tensor]) -> VisionTransformer:
    patch = state['patch_embed.projection.weight']
    distilled = 'dist_token' in state
    patches = state['pos_embed'].shape[1] - ('cls_token' in state) - distilled
    return VisionTransformer(
        dims=patch.shape[0],
        layers=len({key.split('.')[1] for key in state if key.startswith('layers.')}),
        mlp_dims=state['layers.0.ffn.layers.0.0.weight'].shape[0],
        patch_px=patch.shape[-1],
        image_px=isqrt(patches) * patch.shape[-1],
        distilled=distilled,
        final_norm='ln1.weight' in state,
    )


def renamed(state: Mapping[str, torch.Tensor], to: str) -> dict[str, torch.Tensor]:
    """A backbone's weights by the names of another library; values and order stay.

    Args:
        state: as for `architecture`, which knows it.
        to: one of `LIBRARIES`.
    """
    found = architecture(state)
    if isinstance(found, VisionTransformer):
        return {_of_transformer(key, to): value for key, value in state.items()}
    return {_of_resnet(key, to, found.avg_down): value for key, value in state.items()}


def _of_resnet(key: str, to: str, avg_down: bool) -> str:
    """Names are the same everywhere but in the deep stem, and in V1d where nothing is pooled: there timm counts a layer that does nothing."""
    stem = _STEM.fullmatch(key)
    if stem:
        place, kind, rest = int(stem[1]), stem[2], stem[3]
        if to == 'timm' and place == 2 and kind == 'bn':
            return f'bn1.{rest}'
        return f'{"conv1" if to == "timm" else "stem"}.{3 * place + (kind == "bn")}.{rest}'
    if to == 'timm' and avg_down and key.startswith('layer1.0.downsample.'):
        _, _, rest = key.partition('downsample.')
        counted, _, name = rest.partition('.')
        return f'layer1.0.downsample.{int(counted) + 1}.{name}'
    return key


_TIMM_VIT = {'patch_embed.projection': 'patch_embed.proj', 'ln1': 'norm1', 'ln2': 'norm2', 'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2'}
_TORCHVISION_VIT = {
    'patch_embed.projection': 'conv_proj',
    'cls_token': 'class_token',
    'pos_embed': 'encoder.pos_embedding',
    'ln1': 'ln_1',
    'ln2': 'ln_2',
    'attn.qkv': 'self_attention.in_proj',
    'attn.proj': 'self_attention.out_proj',
    'ffn.layers.0.0': 'mlp.0',
    'ffn.layers.1': 'mlp.3',
}
_MMSEG_VIT = {'attn.qkv': 'attn.attn.in_proj', 'attn.proj': 'attn.attn.out_proj'}
_VIT_NAMES = {'timm': ('blocks.', 'norm', _TIMM_VIT), 'torchvision': ('encoder.layers.encoder_layer_', 'encoder.ln', _TORCHVISION_VIT)}
"""Library -> what a layer's name begins with, the last normalisation, and what else has another name."""


def _of_transformer(key: str, to: str) -> str:
    layer, last, names = _VIT_NAMES.get(to, ('layers.', 'ln1', _MMSEG_VIT))
    inside = re.fullmatch(r'layers\.(\d+)\.(.+)', key)
    module, dot, parameter = (inside[2] if inside else key).rpartition('.')
    module = module or parameter  # a token or the position embeddings: parameters of the network itself
    name = names.get(module, module)
    if not dot:
        return name
    if inside is None:
        return f'{last if module == "ln1" else name}.{parameter}'
    if name.endswith('in_proj'):  # parameters of the attention itself: in_proj_weight
        return f'{layer}{inside[1]}.{name}_{parameter}'
    return f'{layer}{inside[1]}.{name}.{parameter}'
