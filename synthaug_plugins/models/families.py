"""What differs between the families of text-to-image pipelines: parts, sizes, noise levels, and how a prompt becomes conditions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Conditions = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What a pipeline's network is told in place of words: encoded text, or an embedding that was learned.

    Attributes:
        states: (B, K, d) that cross-attention looks at.
        pooled: (B, p), where the family has a summary beside them.
        mask: (B, K), which states count, for the families that say so; None: all of them.
    """

    states: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Family:
    """One family of pipelines.

    Attributes:
        name: as recipes and messages say it.
        network: component that is the denoiser, of the class `network_class` of diffusers.
        encoders: components that encode text; each has a tokenizer with the same ending (text_encoder_2, tokenizer_2).
        optional: those of them that a pipeline may come without, as long as one is there.
        network_once: names that the network's class had before.
        reserved: tokens of the limit that are not the prompt's.
        limit_by: the encoders whose token limit bounds a prompt.
        encode: `(pipeline, prompt, negative, options) -> told` of one prompt, one row each.
        conditions: `(told, options) -> conditions`, as the network names them, differentiable; what a family tells besides is filled in.
        widths: `network config -> (d, p)` of `Told.states` and `Told.pooled`; p None where the family has no summary.
        default_max_shift: of dynamic shifting, where the scheduler's config does not say it; None where the family's pipelines do not shift by resolution.
        packs: pixels of latents that make one channel vector of the network's input, along one side (2: FLUX).
        inpaints: whether the network of such a pipeline may see a mask and the masked image beside the latents.
        encode_tokens: `(encoders, tokens, options) -> told` of prompts that are tokens already, as `encode` makes it, with gradients; for the
            families that take learned words.
        no_words: why learned words (textual inversion) do not work; empty where they do.
    """

    name: str
    network: str
    network_class: str
    encoders: tuple[str, ...]
    limit_by: tuple[str, ...]
    encode: Callable[[Any, str, bool, dict[str, Any]], Told]
    conditions: Callable[[Told, dict[str, Any]], Conditions]
    widths: Callable[[Mapping[str, Any]], tuple[int, int | None]]
    optional: tuple[str, ...] = ()
    network_once: tuple[str, ...] = ()
    reserved: int = 0
    default_max_shift: float | None = None
    packs: int = 1
    inpaints: bool = False
    encode_tokens: Callable[[Mapping[str, Any], Mapping[str, Mapping[str, Tensor]], dict[str, Any]], Told] | None = None
    no_words: str = ''

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """Channels of the latents, from the network's config."""
        return int(config['out_channels' if self.inpaints else 'in_channels']) // self.packs**2

    def channels_beside(self, config: Mapping[str, Any]) -> int:
        """Channels of the network's input that are not the latents': 1 + C for the mask and the masked image, or 0."""
        return int(config['in_channels']) - self.latent_channels(config) if self.inpaints else 0

    def patch(self, config: Mapping[str, Any]) -> int:
        """By what height and width of the latents must divide. U-Nets take any size."""
        return self.packs if self.packs > 1 else int(config.get('patch_size') or 1) if self.network == 'transformer' else 1

    def mu(self, scheduler: Mapping[str, Any], config: Mapping[str, Any], h: int, w: int) -> float | None:
        """mu of dynamic shifting for latents of h x w (Esser et al. 2024, section 5.3.2): linear in the number of image tokens.

        None where the scheduler does not shift so, or the family's pipelines pass none.
        """
        if not scheduler.get('use_dynamic_shifting') or self.default_max_shift is None:
            return None
        patch = self.patch(config)
        low, high = scheduler.get('base_image_seq_len', 256), scheduler.get('max_image_seq_len', 4096)
        shift, max_shift = scheduler.get('base_shift', 0.5), scheduler.get('max_shift', self.default_max_shift)
        slope = (max_shift - shift) / (high - low)
        return float((h // patch) * (w // patch) * slope + shift - slope * low)


def _text(pipeline: Any) -> dict[str, Any]:
    """What every `encode_prompt` is called with."""
    return {'device': pipeline.text_encoder.device, 'num_images_per_prompt': 1}


def _in_every_row(like: Tensor, *numbers: float) -> Tensor:
    """(B, n) with these numbers in each row, of the dtype of `like` (B, ...). Made on its device: a copy from the host would wait for the device."""
    import torch

    return torch.stack([like.new_full((len(like),), number) for number in numbers], dim=1)


def _encode_sd(pipeline: Any, prompt: str, negative: bool, options: dict[str, Any]) -> Told:
    return Told(pipeline.encode_prompt([prompt], do_classifier_free_guidance=False, **_text(pipeline))[0])


def _encode_sd_tokens(encoders: Mapping[str, Any], tokens: Mapping[str, Mapping[str, Tensor]], options: dict[str, Any]) -> Told:
    """The last hidden states, as StableDiffusionPipeline.encode_prompt takes them."""
    encoder, told = encoders['text_encoder'], tokens['text_encoder']
    mask = told['attention_mask'] if getattr(encoder.config, 'use_attention_mask', False) else None
    return Told(encoder(told['input_ids'], attention_mask=mask)[0])


def _sd_conditions(told: Told, options: dict[str, Any]) -> Conditions:
    return {'encoder_hidden_states': told.states}


def _sd_widths(config: Mapping[str, Any]) -> tuple[int, None]:
    """A U-Net may project what it is told before its cross-attention sees it; a config may name the width block by block."""
    width = config.get('encoder_hid_dim') or config['cross_attention_dim']
    while isinstance(width, list | tuple):
        width = width[0]
    return int(width), None


def _encode_sdxl(pipeline: Any, prompt: str, negative: bool, options: dict[str, Any]) -> Told:
    """An empty negative prompt is zeros if the pipeline says so."""
    import torch

    embeds, _, pooled, _ = pipeline.encode_prompt([prompt], do_classifier_free_guidance=False, **_text(pipeline))
    if negative and not prompt and pipeline.config.force_zeros_for_empty_prompt:
        embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
    return Told(embeds, pooled)


def _encode_sdxl_tokens(encoders: Mapping[str, Any], tokens: Mapping[str, Mapping[str, Tensor]], options: dict[str, Any]) -> Told:
    """The last hidden states but one of both encoders, side by side, and the second one's summary, as StableDiffusionXLPipeline.encode_prompt takes them."""
    import torch

    said = [encoders[e](tokens[e]['input_ids'], output_hidden_states=True) for e in _TWO]
    return Told(torch.cat([s.hidden_states[-2] for s in said], dim=-1), said[-1].text_embeds)


def _sdxl_conditions(told: Told, options: dict[str, Any]) -> Conditions:
    """The size, crop and target size that SDXL is told: an image of the wanted size, not cropped."""
    height, width = options['image_size']
    time_ids = _in_every_row(told.states, height, width, 0, 0, height, width)
    return {'encoder_hidden_states': told.states, 'added_cond_kwargs': {'text_embeds': told.pooled, 'time_ids': time_ids}}


def _sdxl_widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """The summary goes into one projection together with the six numbers of time_ids."""
    return _sd_widths(config)[0], int(config['projection_class_embeddings_input_dim']) - 6 * int(config['addition_time_embed_dim'])


def _encode_sd3(pipeline: Any, prompt: str, negative: bool, options: dict[str, Any]) -> Told:
    embeds, _, pooled, _ = pipeline.encode_prompt(
        [prompt], None, None, do_classifier_free_guidance=False, max_sequence_length=options['max_length'], **_text(pipeline)
    )
    return Told(embeds, pooled)


def _encode_flux(pipeline: Any, prompt: str, negative: bool, options: dict[str, Any]) -> Told:
    embeds, pooled, _ = pipeline.encode_prompt([prompt], max_sequence_length=options['max_length'], **_text(pipeline))
    return Told(embeds, pooled)


def _joint_conditions(told: Told, options: dict[str, Any]) -> Conditions:
    return {'encoder_hidden_states': told.states, 'pooled_projections': told.pooled}


def _joint_widths(config: Mapping[str, Any]) -> tuple[int, int]:
    return int(config['joint_attention_dim']), int(config['pooled_projection_dim'])


def _encode_pixart(pipeline: Any, prompt: str, negative: bool, options: dict[str, Any]) -> Told:
    embeds, mask, _, _ = pipeline.encode_prompt([prompt], False, max_sequence_length=options['max_length'], **_text(pipeline))
    return Told(embeds, None, mask)


def _pixart_conditions(told: Told, options: dict[str, Any]) -> Conditions:
    """PixArt-alpha of 1024 pixels is told resolution and aspect ratio."""
    found = _masked_conditions(told, options)
    config, (height, width) = options['network'], options['image_size']
    asked = config.get('use_additional_conditions')
    if config.get('sample_size') == 128 if asked is None else asked:
        found['added_cond_kwargs'] = {
            'resolution': _in_every_row(told.states, height, width),
            'aspect_ratio': _in_every_row(told.states, height / width),
        }
    return found


def _encode_sana(pipeline: Any, prompt: str, negative: bool, options: dict[str, Any]) -> Told:
    """Sana puts an instruction before a prompt, not before a negative one."""
    instruction = None if negative else options['instruction']
    embeds, mask, _, _ = pipeline.encode_prompt(
        [prompt], False, max_sequence_length=options['max_length'], complex_human_instruction=instruction, **_text(pipeline)
    )
    return Told(embeds, None, mask)


def _masked_conditions(told: Told, options: dict[str, Any]) -> Conditions:
    import torch

    mask = torch.ones(told.states.shape[:2], dtype=torch.int64, device=told.states.device) if told.mask is None else told.mask
    return {'encoder_hidden_states': told.states, 'encoder_attention_mask': mask}


def _masked_widths(config: Mapping[str, Any]) -> tuple[int, None]:
    return int(config['caption_channels']), None


_ONE, _TWO, _THREE = ('text_encoder',), ('text_encoder', 'text_encoder_2'), ('text_encoder', 'text_encoder_2', 'text_encoder_3')
_SD = Family('sd', 'unet', 'UNet2DConditionModel', _ONE, _ONE, _encode_sd, _sd_conditions, _sd_widths, encode_tokens=_encode_sd_tokens)
_SDXL = Family('sdxl', 'unet', 'UNet2DConditionModel', _TWO, _TWO, _encode_sdxl, _sdxl_conditions, _sdxl_widths, encode_tokens=_encode_sdxl_tokens)
_T5_WORDS = 'it reads prompts by a T5, for which no published method learns words, and words for its CLIP alone would say little'
_SD3 = Family(
    *('sd3', 'transformer', 'SD3Transformer2DModel', _THREE, _TWO, _encode_sd3, _joint_conditions, _joint_widths),
    optional=_THREE,
    default_max_shift=1.16,
    no_words=_T5_WORDS,
)
# FLUX's CLIP makes the pooled vector only: the T5 sees the whole prompt.
_FLUX = Family(
    *('flux', 'transformer', 'FluxTransformer2DModel', _TWO, ('text_encoder_2',), _encode_flux, _joint_conditions, _joint_widths),
    default_max_shift=1.15,
    packs=2,
    no_words=_T5_WORDS,
)
_PIXART = Family(
    *('pixart', 'transformer', 'PixArtTransformer2DModel', _ONE, _ONE, _encode_pixart, _pixart_conditions, _masked_widths),
    network_once=('Transformer2DModel',),
    no_words='it reads prompts by a T5, for which no published method learns words',
)
# The instruction before the prompt and the prompt share the limit, at the cost of two tokens.
_SANA = Family(
    *('sana', 'transformer', 'SanaTransformer2DModel', _ONE, _ONE, _encode_sana, _masked_conditions, _masked_widths),
    reserved=2,
    no_words='it reads prompts by a language model, for which no published method learns words',
)

PIPELINES: dict[str, Family] = {
    'StableDiffusionPipeline': _SD,
    'LatentConsistencyModelPipeline': _SD,
    'StableDiffusionInpaintPipeline': replace(_SD, inpaints=True),
    'StableDiffusionXLPipeline': _SDXL,
    'StableDiffusionXLInpaintPipeline': replace(_SDXL, inpaints=True),
    'StableDiffusion3Pipeline': _SD3,
    'FluxPipeline': _FLUX,
    'PixArtAlphaPipeline': _PIXART,
    'PixArtSigmaPipeline': _PIXART,
    'SanaPipeline': _SANA,
}

# Why a pipeline that somebody may well try is not among them.
REASONS: dict[str, str] = {
    'StableDiffusionInstructPix2PixPipeline': 'its network sees a given image too',
    'StableDiffusionXLImg2ImgPipeline': 'the refiner is told an aesthetic score and continues images of another model',
    'SanaSprintPipeline': 'it is sampled by a trigonometric consistency schedule, which has no noise level in the sense of the samplers here',
    'StableCascadeCombinedPipeline': 'it is two diffusion models in a row',
    'KandinskyCombinedPipeline': 'it is two diffusion models in a row',
    'IFPipeline': 'it is a cascade in pixels of which this is the first model',
}


def call_default(pipeline_class: Any, argument: str) -> Any:
    """The default of an argument of the pipeline's own `__call__`: steps, guidance scale, token limit. None if it has no such argument."""
    found = inspect.signature(pipeline_class.__call__).parameters.get(argument)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def scale_embedding(scales: Tensor, dim: int) -> Tensor:
    """What a guidance-distilled U-Net (LCM, Luo et al. 2023) is told of the guidance scale: sines and cosines of 1000 (scale - 1).

    Args:
        scales: (B,) guidance scales.
        dim: length of the embedding, `time_cond_proj_dim` of the U-Net.

    Returns: (B, dim) float32.
    """
    import torch

    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=scales.device) * (-math.log(10000.0) / (half - 1)))
    angles = (1000.0 * (scales.float() - 1))[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))
