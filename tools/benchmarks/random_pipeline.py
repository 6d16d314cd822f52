"""A Stable-Diffusion-shaped text-to-image pipeline with random weights, in diffusers' folder layout: for measuring speed, offline.

The configs are those of Stable Diffusion 1.5 (`sd15`: 860 million parameters in the U-Net, 512 pixels) and of a small relative (`tiny`, 64 pixels).
The tokenizer is CLIP's own, from the vocabulary that open_clip carries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_SD15: dict[str, dict[str, Any]] = {
    'unet': {
        'sample_size': 64,
        'in_channels': 4,
        'out_channels': 4,
        'layers_per_block': 2,
        'block_out_channels': (320, 640, 1280, 1280),
        'down_block_types': ('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',),
        'up_block_types': ('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3,
        'attention_head_dim': 8,
        'cross_attention_dim': 768,
    },
    'vae': {
        'in_channels': 3,
        'out_channels': 3,
        'latent_channels': 4,
        'layers_per_block': 2,
        'block_out_channels': (128, 256, 512, 512),
        'down_block_types': ('DownEncoderBlock2D',) * 4,
        'up_block_types': ('UpDecoderBlock2D',) * 4,
        'sample_size': 512,
        'scaling_factor': 0.18215,
    },
    'text_encoder': {
        'vocab_size': 49408,
        'max_position_embeddings': 77,
        'hidden_size': 768,
        'intermediate_size': 3072,
        'num_hidden_layers': 12,
        'num_attention_heads': 12,
        'hidden_act': 'quick_gelu',
        'bos_token_id': 49406,
        'eos_token_id': 49407,
        'pad_token_id': 49407,
    },
}
_TINY_CHANGES: dict[str, dict[str, Any]] = {
    'unet': {'sample_size': 8, 'layers_per_block': 1, 'block_out_channels': (32, 64, 128, 128), 'cross_attention_dim': 64},
    'vae': {'sample_size': 64, 'layers_per_block': 1, 'block_out_channels': (32, 64, 64, 64)},
    'text_encoder': {'hidden_size': 64, 'intermediate_size': 256, 'num_hidden_layers': 2, 'num_attention_heads': 2},
}
CONFIGS = {'sd15': _SD15, 'tiny': {part: _SD15[part] | changes for part, changes in _TINY_CHANGES.items()}}
_SCHEDULER = {
    'num_train_timesteps': 1000,
    'beta_start': 0.00085,
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'clip_sample': False,
    'set_alpha_to_one': True,  # no level after the last timestep: n steps are n calls for everybody
    'steps_offset': 1,
}


def write_pipeline(folder: Path, size: str, device: torch.device | str = 'cpu') -> None:
    """Write the pipeline folder: `model_index.json`, tokenizer, text encoder, U-Net, VAE, DDIM scheduler; safetensors in half precision for `sd15`.

    The weights are drawn on `device`: a billion random numbers take half a minute on one CPU core.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    configs = CONFIGS[size]
    with torch.device(device):
        vae, unet = AutoencoderKL(**configs['vae']), UNet2DConditionModel(**configs['unet'])
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs['text_encoder']))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(folder.with_name(folder.name + '-vocabulary')),
        unet=unet,
        scheduler=DDIMScheduler(**_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16 if size == 'sd15' else torch.float32).save_pretrained(folder)


def unet_tflop(size: str) -> float:
    """One forward pass of the U-Net for one image, counted by torch on the meta device: 0.803 for `sd15`."""
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    config = CONFIGS[size]['unet']
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        x = torch.zeros(1, config['in_channels'], config['sample_size'], config['sample_size'])
        UNet2DConditionModel(**config)(x, 1, torch.zeros(1, 77, config['cross_attention_dim']))
    return counter.get_total_flops() / 1e12


def _tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer, in transformers' files."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    known = SimpleTokenizer()
    names = {'<start_of_text>': '<|startoftext|>', '<end_of_text>': '<|endoftext|>'}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.json').write_text(json.dumps({names.get(token, token): number for token, number in known.encoder.items()}))
    (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in known.bpe_ranks))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)
