"""How each class of diffusers networks wants to be called: what of it an adapter must know beside its timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.errors import ModelError, nearest

CONCAT = 'concat'
"""The condition that lies beside x as further channels of the input, (B, c, h, w)."""
_NOT_CONDITIONS = {'self', 'sample', 'hidden_states', 'timestep', 'return_dict'}


def _plain_call(model: Any, x: Tensor, timestep: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """All networks but FLUX: image in, image out, first argument and first result."""
    return model(x, timestep=timestep, return_dict=False, **conditions)[0]


def _flux_call(model: Any, x: Tensor, timestep: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """FLUX: each 2 x 2 pixels of the latents are one token, and tokens of text and image carry (0, row, column)."""
    batch, channels, height, width = x.shape
    h, w = height // 2, width // 2
    tokens = x.reshape(batch, channels, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w, 4 * channels)
    row, column = torch.arange(h, device=x.device, dtype=torch.float32), torch.arange(w, device=x.device, dtype=torch.float32)
    img_ids = torch.stack([torch.zeros(h, w, device=x.device), row[:, None].expand(h, w), column.expand(h, w)], dim=-1).reshape(h * w, 3)
    txt_ids = img_ids.new_zeros(conditions['encoder_hidden_states'].shape[1], 3)
    tokens = _plain_call(model, tokens, timestep, {**conditions, 'img_ids': img_ids, 'txt_ids': txt_ids})
    return tokens.reshape(batch, h, w, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)


def _unet_required(module: Any) -> tuple[str, ...]:
    return () if module.class_embedding is None else ('class_labels',)


def _text_unet_required(module: Any) -> tuple[str, ...]:
    config = module.config
    added = config.get('addition_embed_type') not in (None, 'text') or config.get('encoder_hid_dim_type') not in (None, 'text_proj')
    guided = config.get('time_cond_proj_dim') is not None  # the guidance scale, of a distilled model
    beside = [CONCAT] if _inpainting_channels(config) else []
    return (*_unet_required(module), *beside, 'encoder_hidden_states', *(['added_cond_kwargs'] if added else []), *(['timestep_cond'] if guided else []))


def _pixart_required(module: Any) -> tuple[str, ...]:
    return ('encoder_hidden_states', *(['added_cond_kwargs'] if module.use_additional_conditions else []))


def _guidance(module: Any) -> tuple[str, ...]:
    """The guidance scale, where the network is told it."""
    return ('guidance',) if module.config.get('guidance_embeds') else ()


def _inpainting_channels(config: Mapping[str, Any]) -> int:
    """A U-Net that takes more channels than it returns sees more than x: for inpainting 1 + C, the mask and the masked image."""
    return max(int(config['in_channels']) - int(config['out_channels']), 0)


def _embedding_rows(table: Any) -> int:
    return table.num_embeddings if isinstance(table, torch.nn.Embedding) else 0


@dataclass(frozen=True)
class Network:
    """How a class of networks is called.

    Attributes:
        required: conditions without which a network cannot run.
        made_here: arguments that `call` works out itself, so that they are no conditions.
        num_labels: rows of a network's table of classes, that of "no class" included; 0 if it has none.
        packed: how many pixels of the image make one channel vector of the input; the config counts channels of those.
        beside: channels of the input that are no part of x, from the config: the condition `CONCAT`.
        time_scale: what the timestep of the scheduler is multiplied by, from the network's config.
        call: `(model, image, timestep, conditions) -> output`, (B, C, H, W) to (B, C or more, H, W).
    """

    required: Callable[[Any], tuple[str, ...]]
    made_here: frozenset[str] = frozenset()
    num_labels: Callable[[Any], int] = lambda module: 0
    packed: int = 1
    beside: Callable[[Mapping[str, Any]], int] = lambda config: 0
    time_scale: Callable[[Mapping[str, Any]], float] = lambda config: 1.0
    call: Callable[[Any, Tensor, Tensor, Mapping[str, Any]], Tensor] = _plain_call

    def channels(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Channels of the image that a network takes, and that it returns."""
        taken = int(config['in_channels']) - self.beside(config)
        return taken // self.packed, int(config.get('out_channels') or taken) // self.packed

    def known_conditions(self, module: Any) -> set[str]:
        """Names of the conditions that a network takes."""
        known = {CONCAT} if self.beside(module.config) else set()
        known |= set(inspect.signature(module.forward).parameters) - _NOT_CONDITIONS - self.made_here
        if hasattr(module, 'class_embedding') and module.class_embedding is None:
            known.discard('class_labels')  # which UNet2DConditionModel would ignore
        return known


NETWORKS: dict[str, Network] = {
    'UNet2DModel': Network(_unet_required, num_labels=lambda module: _embedding_rows(module.class_embedding)),
    'UNet2DConditionModel': Network(_text_unet_required, num_labels=lambda module: _embedding_rows(module.class_embedding), beside=_inpainting_channels),
    'DiTTransformer2DModel': Network(
        lambda module: ('class_labels',),
        num_labels=lambda module: _embedding_rows(module.transformer_blocks[0].norm1.emb.class_embedder.embedding_table),
    ),
    'SD3Transformer2DModel': Network(lambda module: ('encoder_hidden_states', 'pooled_projections')),
    'FluxTransformer2DModel': Network(
        lambda module: ('encoder_hidden_states', 'pooled_projections', *_guidance(module)),
        made_here=frozenset({'img_ids', 'txt_ids'}),
        packed=4,
        time_scale=lambda config: 1e-3,  # it counts time from 0 to 1, and multiplies by 1000 itself
        call=_flux_call,
    ),
    'PixArtTransformer2DModel': Network(_pixart_required),
    'SanaTransformer2DModel': Network(
        lambda module: ('encoder_hidden_states', *_guidance(module)), time_scale=lambda config: float(config.get('timestep_scale', 1.0))
    ),
}


def find_network(module: Any) -> tuple[str, Network]:
    """The name of a network's class, or of the first known one that it derives from, and how it is called.

    Raises:
        ModelError: none is known.
    """
    for cls in type(module).__mro__:
        if cls.__name__ in NETWORKS:
            return cls.__name__, NETWORKS[cls.__name__]
    raise ModelError(f'No adapter is known for the model class {type(module).__name__}.', nearest(type(module).__name__, NETWORKS))


def check_labels(labels: Any, num_labels: int) -> None:
    """Refuse (ModelError) labels that are no class indices (B,), or lie outside of the model (on the CPU only: others would have to be waited for)."""
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1:
        raise ModelError(f'The class_labels are {labels.dtype} of the shape {tuple(labels.shape)}.', 'Give one class index per sample, (B,) int64.')
    if labels.device.type == 'cpu':
        wrong = labels[(labels < 0) | (labels >= num_labels)]
        if len(wrong):
            raise ModelError(f'The class label {int(wrong[0])} is outside of the model.', f'It knows 0 to {num_labels - 1}.')
