"""Small text-to-image pipelines with random weights, of every family, built from diffusers' and transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

WORDS = [
    'a',
    'photo',
    'of',
    'the',
    'digit',
    'one',
    'two',
    'three',
    'four',
    'five',
    'bold',
    'thin',
    'small',
    'large',
    'cat',
    'dog',
    'on',
    'table',
    'picture',
    'drawing',
    'blurred',
]
LATENTS = 4


def stirred(model: Any, scale: float = 0.1) -> Any:
    """None of its layers is zero or nearly so, in eval mode."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return model.eval().requires_grad_(False)


def clip_tokenizer(folder: Path, max_length: int = 20) -> Any:
    """Letters, and the words above; so that every text has tokens."""
    letters = [chr(c) for c in range(ord('a'), ord('z') + 1)]
    vocabulary, merges = [*letters, *(f'{c}</w>' for c in letters)], []
    for word in dict.fromkeys(WORDS):
        parts = [*word[:-1], f'{word[-1]}</w>']
        while len(parts) > 1:
            pair = parts[0], parts[1]
            if ' '.join(pair) not in merges:
                merges.append(' '.join(pair))
                vocabulary.append(''.join(pair))
            parts = [''.join(pair), *parts[2:]]
    vocabulary = [*dict.fromkeys(vocabulary), '<|startoftext|>', '<|endoftext|>']
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.json').write_text(json.dumps({token: k for k, token in enumerate(vocabulary)}))
    (folder / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n')
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=max_length)


def clip_encoder(tokenizer: Any, projection: bool = False, size: int = 16) -> Any:
    torch.manual_seed(1 + projection)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return stirred(transformers.CLIPTextModelWithProjection(config) if projection else transformers.CLIPTextModel(config))


def t5_tokenizer() -> Any:
    scores = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), ('▁', -2.0)]
    scores += [(f'▁{w}', -3.0) for w in dict.fromkeys(WORDS) if w != 'a'] + [(chr(c), -5.0) for c in range(ord('a'), ord('z') + 1)]
    return transformers.T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=512)


def t5_encoder(tokenizer: Any, size: int = 32) -> Any:
    torch.manual_seed(3)
    config = transformers.T5Config(vocab_size=len(tokenizer), d_model=size, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)
    return stirred(transformers.T5EncoderModel(config))


def gemma() -> tuple[Any, Any]:
    vocabulary = {token: k for k, token in enumerate(['<pad>', '<eos>', '<bos>', '<unk>', '<mask>', '▁', *(chr(c) for c in range(33, 127))])}
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=4096)
    torch.manual_seed(4)
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    return tokenizer, stirred(transformers.Gemma2Model(config))


def vae(**options: Any) -> Any:
    torch.manual_seed(5)
    blocks = {'down_block_types': ('DownEncoderBlock2D',) * 2, 'up_block_types': ('UpDecoderBlock2D',) * 2, 'block_out_channels': (8, 8)}
    return stirred(diffusers.AutoencoderKL(latent_channels=LATENTS, norm_num_groups=4, sample_size=16, **blocks, **options))


def unet(cross_attention_dim: int = 16, **options: Any) -> Any:
    torch.manual_seed(6)
    shape = {'sample_size': 8, 'in_channels': LATENTS, 'out_channels': LATENTS, 'block_out_channels': (8, 16), 'layers_per_block': 1, 'norm_num_groups': 4}
    blocks = {'down_block_types': ('CrossAttnDownBlock2D', 'DownBlock2D'), 'up_block_types': ('UpBlock2D', 'CrossAttnUpBlock2D')}
    return stirred(diffusers.UNet2DConditionModel(**{**shape, **blocks, 'cross_attention_dim': cross_attention_dim, 'attention_head_dim': 4, **options}))


SCALED = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}


def ddim(**options: Any) -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, steps_offset=1, **{**SCALED, **options})


INPAINT = {'in_channels': 2 * LATENTS + 1}
"""Of a U-Net for inpainting: latents, mask and masked latents."""


def sd(folder: Path, scheduler: Any = None, lcm: bool = False, max_length: int = 20, inpaint: bool = False, **unet_options: Any) -> Path:
    """Stable Diffusion 1, its version for inpainting, or a latent consistency model."""
    tokenizer = clip_tokenizer(folder / 'clip', max_length)
    options = {'time_cond_proj_dim': 12} if lcm else INPAINT if inpaint else {}
    ordinary = diffusers.StableDiffusionInpaintPipeline if inpaint else diffusers.StableDiffusionPipeline
    cls = diffusers.LatentConsistencyModelPipeline if lcm else ordinary
    cls(
        vae=vae(),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet(**{**options, **unet_options}),
        scheduler=scheduler or (diffusers.LCMScheduler(**SCALED) if lcm else ddim()),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / 'pipeline')
    return folder / 'pipeline'


def sdxl(folder: Path, scheduler: Any = None, inpaint: bool = False, **options: Any) -> Path:
    """Stable Diffusion XL, or its version for inpainting."""
    tokenizer = clip_tokenizer(folder / 'clip')
    added = {'addition_embed_type': 'text_time', 'addition_time_embed_dim': 4, 'projection_class_embeddings_input_dim': 40}
    network = unet(32, **added, **(INPAINT if inpaint else {}))
    cls = diffusers.StableDiffusionXLInpaintPipeline if inpaint else diffusers.StableDiffusionXLPipeline
    cls(
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip_encoder(tokenizer),
        text_encoder_2=clip_encoder(tokenizer, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=network,
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(timestep_spacing='leading', steps_offset=1, **SCALED),
        add_watermarker=False,
        **options,
    ).save_pretrained(folder / 'pipeline')
    return folder / 'pipeline'


def sd3(folder: Path, t5: bool = True, scheduler: Any = None) -> Path:
    tokenizer, tokenizer_3 = clip_tokenizer(folder / 'clip'), t5_tokenizer()
    torch.manual_seed(7)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=12,
    )
    diffusers.StableDiffusion3Pipeline(
        transformer=stirred(network),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip_encoder(tokenizer, projection=True),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(tokenizer, projection=True),
        tokenizer_2=tokenizer,
        text_encoder_3=t5_encoder(tokenizer_3) if t5 else None,
        tokenizer_3=tokenizer_3 if t5 else None,
    ).save_pretrained(folder / 'pipeline')
    return folder / 'pipeline'


def flux(folder: Path, dev: bool = True) -> Path:
    """FLUX.1 dev, or schnell."""
    tokenizer, tokenizer_2 = clip_tokenizer(folder / 'clip'), t5_tokenizer()
    torch.manual_seed(8)
    network = diffusers.FluxTransformer2DModel(
        in_channels=4 * LATENTS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True) if dev else diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=stirred(network),
    ).save_pretrained(folder / 'pipeline')
    return folder / 'pipeline'


def pixart(folder: Path, sigma: bool = False) -> Path:
    """PixArt-Sigma, or PixArt-alpha of 1024 pixels, which is told resolution and aspect ratio."""
    tokenizer = t5_tokenizer()
    torch.manual_seed(9)
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=LATENTS,
        out_channels=2 * LATENTS,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=8 if sigma else 128,
        patch_size=2,
        caption_channels=32,
        use_additional_conditions=False if sigma else None,
        interpolation_scale=1,
    )
    cls = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    cls(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=vae(),
        transformer=stirred(network),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule='linear', beta_start=0.0001, beta_end=0.02, solver_order=1),
    ).save_pretrained(folder / 'pipeline')
    return folder / 'pipeline'


def sana(folder: Path) -> Path:
    tokenizer, encoder = gemma()
    torch.manual_seed(10)
    network = diffusers.SanaTransformer2DModel(
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=16,
        timestep_scale=0.5,
    )
    blocks = ('ResBlock', 'EfficientViTBlock')
    dc = diffusers.AutoencoderDC(
        latent_channels=LATENTS,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type='conv',
        upsample_block_type='interpolate',
        decoder_norm_types='rms_norm',
        decoder_act_fns='silu',
        scaling_factor=0.41407,
    )
    diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=stirred(dc),
        transformer=stirred(network),
        scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=3.0, solver_order=1),
    ).save_pretrained(folder / 'pipeline')
    return folder / 'pipeline'


def tiny_vae(folder: Path) -> Path:
    torch.manual_seed(11)
    shape = {'encoder_block_out_channels': (8, 8), 'decoder_block_out_channels': (8, 8), 'num_encoder_blocks': (1, 1), 'num_decoder_blocks': (1, 1)}
    stirred(diffusers.AutoencoderTiny(latent_channels=LATENTS, **shape)).save_pretrained(folder)
    return folder


def learned_words(file: Path, pipeline: Path | str, classes: list[str], seed: int = 0, **card: Any) -> str:
    """A file of random words for a pipeline, that began from a word without a class unless `card` says otherwise."""
    from synthaug_plugins.models.text_model import TextModel
    from synthaug_plugins.models.words import save_words
    from synthaug_plugins.prompts.placeholders import word_of

    model, g = TextModel(str(pipeline)), torch.Generator().manual_seed(seed)
    widths = model.text_widths()
    rows = {e: {word_of(c): torch.randn(2, width, generator=g) for c in classes} for e, width in widths.items()}
    about = {'classes': classes, 'vectors': 2, 'encoders': list(widths), 'model': model.origin(), 'initialised_from': {'word': 'the'}}
    save_words(file, rows, about | card)
    return str(file)
