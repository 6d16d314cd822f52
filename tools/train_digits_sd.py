"""Train the embedded model `digits_sd` from nothing: a latent diffusion pipeline in the layout that diffusers gives Stable Diffusion.

    python tools/train_digits_sd.py      # about 25 minutes on one CPU core; a second call goes on
    python tools/train_digits_sd.py --unnamed two four seven      # the variant `digits_sd_unnamed`: no caption names these three

An autoencoder of 16 x 16 RGB images first, then a U-Net with cross-attention together with a CLIP text encoder, on captions that are true
of the images (digits_captions.py). It sees scikit-learn's digits 0 to 1199 only. The training is Stable Diffusion's (Rombach et al. 2022,
arXiv 2112.10752): latents of unit size, uniform timesteps, `scaled_linear` betas, the empty caption in a tenth of the cases; v is
predicted (Salimans and Ho 2022, arXiv 2202.00512), as by Stable Diffusion 2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import torch
from demo import CLASSES
from digits_assets import ASSETS, DATA, LICENCE, finish
from digits_captions import ATTRIBUTES, caption, measure, seen_digits, write_tokenizer
from digits_check import describe_data, describe_verdict, draw_sheet, judge
from fit import Fit, fit
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

SIZE, GRID, CHANNELS = 16, 8, 4  # pixels per side of an image and of its latents, channels of the latents
VARIANTS, CAPTIONS = 12, 64  # of each digit
VAE = {
    'in_channels': 3,
    'out_channels': 3,
    'down_block_types': ('DownEncoderBlock2D',) * 2,
    'up_block_types': ('UpDecoderBlock2D',) * 2,
    'block_out_channels': (16, 32),
    'layers_per_block': 1,
    'latent_channels': CHANNELS,
    'norm_num_groups': 8,
    'sample_size': SIZE,
    'mid_block_add_attention': False,
}
VAE_FIT = Fit(steps=1200, batch_size=64, learning_rate=2e-3, ema_half_life_images=3000)
KL_WEIGHT = 1e-4  # beside the mean square error; both are means, over latents and over pixels in [-1, 1]
LATENT_SCALE = 5.0  # how large latents are made, about as Stable Diffusion's: its scaling factor is 0.18215
TEXT = {'hidden_size': 64, 'intermediate_size': 128, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'projection_dim': 64, 'hidden_act': 'quick_gelu'}
UNET = {
    'sample_size': GRID,
    'in_channels': CHANNELS,
    'out_channels': CHANNELS,
    'down_block_types': ('DownBlock2D', 'CrossAttnDownBlock2D'),
    'up_block_types': ('CrossAttnUpBlock2D', 'UpBlock2D'),
    'block_out_channels': (48, 64),
    'layers_per_block': 1,
    'cross_attention_dim': TEXT['hidden_size'],
    'attention_head_dim': 4,  # diffusers' name for the number of heads
    'norm_num_groups': 16,
    'dropout': 0.1,
}
UNET_FIT = Fit(steps=1600, batch_size=128, learning_rate=1e-3, ema_half_life_images=8000)
CAPTION_DROPOUT = 0.1
SCHEDULER = {
    **{'num_train_timesteps': 1000, 'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012, 'prediction_type': 'v_prediction'},
    **{'clip_sample': False, 'set_alpha_to_one': False, 'steps_offset': 1, 'timestep_spacing': 'trailing'},
}
STEPS, SCALES = 25, (2.0, 1.0)  # of the check


def enlarge(images: np.ndarray) -> np.ndarray:
    """(N, 8, 8) uint8 -> (N, 16, 16) uint8, bicubic."""
    return np.stack([np.asarray(Image.fromarray(i).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for i in images])


def shrink(images: np.ndarray) -> np.ndarray:
    """(N, 16, 16) uint8 -> (N, 8, 8) uint8, means of 2 x 2 pixels."""
    return np.rint(images.reshape(-1, 8, 2, 8, 2).mean((2, 4))).astype(np.uint8)


def slightly_changed(images: Tensor, variants: int) -> Tensor:
    """Each image, then `variants` - 1 times scaled (standard deviation 4 %) and shifted (a quarter of a source pixel), which its captions bear.

    Args:
        images: (N, 1, H, W).

    Returns: (N, variants, 1, H, W); the first of each is the image. Drawn from torch's global generator.
    """
    changed = [images]
    for _ in range(variants - 1):
        matrix = torch.exp(0.04 * torch.randn(len(images), 1, 1)) * torch.eye(2)
        shift = torch.randn(len(images), 2, 1) * 0.25 * 2 / 8  # an image is 2 wide in the coordinates of grid_sample
        grid = nn.functional.affine_grid(torch.cat([matrix, shift], 2), list(images.shape), align_corners=False)
        changed.append(nn.functional.grid_sample(images, grid, 'bicubic', 'zeros', align_corners=False).clamp(0, 1))
    return torch.stack(changed, 1)


def to_input(images: np.ndarray | Tensor) -> Tensor:
    """Grey images (N, H, W) uint8, or (N, 1, H, W) in 0..1, as the autoencoder sees them: (N, 3, H, W) in [-1, 1]."""
    grey = torch.from_numpy(images)[:, None].float() / 255 if isinstance(images, np.ndarray) else images
    return (2 * grey - 1).repeat(1, 3, 1, 1)


def train_vae(images: Tensor, work_dir: Path) -> tuple[Any, dict[str, Any]]:
    """Train the autoencoder on images (N, 1, 16, 16) in 0..1, then centre its latents, scale them and measure their scaling factor.

    Returns: AutoencoderKL, and what the card says of the training.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE)

    def loss(batch_size: int) -> Tensor:
        x = to_input(images[torch.randint(len(images), (batch_size,))])
        posterior = vae.encode(x).latent_dist
        return (vae.decode(posterior.sample()).sample - x).square().mean() + KL_WEIGHT * posterior.kl().mean() / (CHANNELS * GRID**2)

    card = fit(vae, loss, VAE_FIT, work_dir)
    with torch.no_grad():
        # Diffusion starts from noise around 0, so latents should lie around it, too; and they should need their scaling factor, as those of
        # Stable Diffusion do, so that forgetting it shows. The 1 x 1 convolutions at both ends change that and leave the images alone.
        latents = torch.cat([vae.encode(to_input(x)).latent_dist.sample() for x in images.split(1000)])
        mean = latents.mean((0, 2, 3))
        vae.quant_conv.bias[:CHANNELS] -= mean
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
        for parameter in (vae.quant_conv.weight, vae.quant_conv.bias):
            parameter[:CHANNELS] *= LATENT_SCALE
        vae.quant_conv.bias[CHANNELS:] += 2 * np.log(LATENT_SCALE)  # log variances
        vae.post_quant_conv.weight /= LATENT_SCALE
        vae.register_to_config(scaling_factor=round(1 / float((latents - mean[:, None, None]).std() * LATENT_SCALE), 5))
    return vae, card


def train_unet(vae: Any, images: Tensor, tokenizer: Any, work_dir: Path, unnamed: Sequence[str] = ()) -> tuple[Any, Any, dict[str, Any]]:
    """Train the U-Net and the text encoder together on the latents of images (N, variants, 1, 16, 16) in 0..1.

    Args:
        unnamed: classes whose captions never name them, so that the model can draw them but knows no word for them.

    Returns: UNet2DConditionModel, CLIPTextModel, and what the card says of the training.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    special = {'bos_token_id': tokenizer.bos_token_id, 'eos_token_id': tokenizer.eos_token_id, 'pad_token_id': tokenizer.pad_token_id}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **TEXT, **special))
    unet, scheduler = UNet2DConditionModel(**UNET), DDIMScheduler(**SCHEDULER)
    with torch.no_grad():
        moments = torch.cat([vae.encode(to_input(x)).latent_dist.parameters for x in images.flatten(0, 1).split(1000)])
    moments = moments.unflatten(0, images.shape[:2])
    rng = np.random.default_rng(0)
    captions = [[caption(image, int(label), rng, CLASSES[label] not in unnamed) for _ in range(CAPTIONS)] for image, label in zip(*seen_digits(), strict=True)]
    ids = torch.stack([tokenize(tokenizer, several) for several in captions])
    empty = tokenize(tokenizer, [''])

    def loss(batch_size: int) -> Tensor:
        i = torch.randint(len(moments), (batch_size,))
        x = DiagonalGaussianDistribution(moments[i, torch.randint(VARIANTS, (batch_size,))]).sample() * vae.config.scaling_factor
        told = torch.where(torch.rand(batch_size, 1) < CAPTION_DROPOUT, empty, ids[i, torch.randint(CAPTIONS, (batch_size,))])
        t, noise = torch.randint(SCHEDULER['num_train_timesteps'], (batch_size,)), torch.randn_like(x)
        said = unet(scheduler.add_noise(x, noise, t), t, encoder_hidden_states=text(told).last_hidden_state).sample
        return (said - scheduler.get_velocity(x, noise, t)).square().mean()

    card = fit(nn.ModuleDict({'unet': unet, 'text_encoder': text}), loss, UNET_FIT, work_dir)
    return unet, text, card


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """(n, 24) int64, padded as the pipeline pads."""
    return tokenizer(texts, padding='max_length', max_length=tokenizer.model_max_length, truncation=True, return_tensors='pt').input_ids


def save_pipeline(folder: Path, vae: Any, text: Any, tokenizer: Any, unet: Any) -> None:
    """Write the pipeline without a safety checker, in float16 but for the text encoder, which transformers would load as it is saved.

    The tokenizer comes in the old files and the new one, for all versions of transformers.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae.half(), text, tokenizer, unet.half(), DDIMScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder / 'tokenizer')


def load_pipeline(folder: Path) -> Any:
    """The saved pipeline, by diffusers alone."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: Any, prompts: list[str], guidance_scale: float, seed: int = 0) -> np.ndarray:
    """One image per prompt, (n, 16, 16) uint8: the mean of the three channels."""
    made = []
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(prompts), 100):
        some = prompts[start : start + 100]
        made.append(pipeline(some, num_inference_steps=STEPS, guidance_scale=guidance_scale, generator=generator, output_type='np').images)
    return np.rint(np.concatenate(made).mean(-1) * 255).astype(np.uint8)


def psnr(vae: Any, images: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of images (N, 16, 16) uint8 that went through the latents."""
    with torch.no_grad():
        x = to_input(images)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    return round(float(10 * torch.log10(4 / (y - x).square().mean())), 2)


def follows_attributes(pipeline: Any, real: np.ndarray, labels: np.ndarray, per_class: int) -> dict[str, Any]:
    """Share of images on the side of the class's median that the prompt names: 'a photo of a bold three', 'a photo of a three leaning left'.

    Args:
        real: training images (1200, 8, 8) that went through the same change of size, for the medians; labels (1200,).
    """
    asked = np.arange(10).repeat(per_class)
    middle = np.stack([np.median(measure(real[labels == c]), axis=0) for c in range(10)])[asked]
    shares = {}
    for k, values in enumerate(ATTRIBUTES.values()):
        for sign, value in zip((-1, 1), values, strict=True):
            wording = f'a photo of a {{}} leaning {value}' if value in ('left', 'right') else f'a photo of a {value} {{}}'
            made = shrink(generate(pipeline, [wording.format(CLASSES[c]) for c in asked], SCALES[0], seed=2))
            shares[value] = round(float((sign * (measure(made) - middle)[:, k] > 0).mean()), 3)
    return {'what': f'share of images on the asked side of the median of their class, at guidance scale {SCALES[0]}; chance is 0.5', **shares}


def check(folder: Path, per_class: int) -> dict[str, Any]:
    """What the saved pipeline is worth."""
    pipeline = load_pipeline(folder)
    grey = np.round(load_digits().images / 16 * 255).astype(np.uint8)
    seen, labels = seen_digits()
    real = shrink(enlarge(seen))
    asked = np.arange(10).repeat(per_class)
    prompts = [f'a photo of a {CLASSES[c]}' for c in asked]
    return {
        'prompt': 'a photo of a {class}',
        'sampler': f'DDIM, {STEPS} steps; images shrunk to 8 x 8, and so are the training images for distances and spread',
        'by_guidance_scale': {f'{scale:g}': judge(shrink(generate(pipeline, prompts, scale)), asked, real / 255) for scale in SCALES},
        'attributes': follows_attributes(pipeline, real, labels, per_class // 5),
        'autoencoder_psnr_db': {'seen': psnr(pipeline.vae, enlarge(seen)), 'unseen': psnr(pipeline.vae, enlarge(grey[len(seen) :]))},
    }


def draw(folder: Path) -> None:
    """sheet.png: on the left the classes at guidance scale 2, on the right the same with what the prompt says of them, five images each."""
    pipeline = load_pipeline(folder)
    wordings = ('a photo of a {}', 'a photo of a bold {} leaning right')
    prompts = [wording.format(name) for name in CLASSES for wording in wordings for _ in range(5)]
    draw_sheet(generate(pipeline, prompts, SCALES[0], seed=1), folder / 'sheet.png', scale=3)


def make_card(trainings: dict[str, Any], found: dict[str, Any], unnamed: Sequence[str]) -> dict[str, Any]:
    """card.json."""
    nameless = f' It has seen {", ".join(unnamed)}, too, but no caption names them: they stand for what a web-scale model has no word for.' if unnamed else ''
    return {
        'name': _name(unnamed),
        'what': f'Text-to-image latent diffusion pipeline of 16x16 RGB handwritten digits (white on black), in the layout of Stable Diffusion.{nameless}',
        'licence': LICENCE,
        'data': {
            **DATA,
            'preprocessing': f'grey level 0..16 times 255/16, rounded to uint8; enlarged to {SIZE} x {SIZE} (bicubic); three equal channels; uint8 / 127.5 - 1',
            'captions': 'the class as a word or a numeral, and what is measured on the image: bold or thin, leaning, wide or narrow (tools/digits_captions.py)'
            + (f'; {", ".join(unnamed)} are never named' if unnamed else ''),
        },
        'training': {
            'script': 'tools/train_digits_sd.py',
            **({'arguments': f'--unnamed {" ".join(unnamed)}'} if unnamed else {}),
            'augmentation': f'{VARIANTS} versions of each digit: itself, and scaled (standard deviation 4 %) and shifted (0.25 source pixels) ones',
            'caption_dropout': CAPTION_DROPOUT,
            'kl_weight': KL_WEIGHT,
            **trainings,
        },
        'weights': 'averages of the trainings (EMA), float16; the text encoder float32',
        'check': found,
    }


def _name(unnamed: Sequence[str]) -> str:
    return 'digits_sd_unnamed' if unnamed else 'digits_sd'


def describe(card: dict[str, Any]) -> str:
    """card.md: the card for a reader."""
    found, vae, unet = card['check'], card['training']['autoencoder'], card['training']['unet_and_text_encoder']
    shares = ', '.join(f'{name} {100 * share:.0f} %' for name, share in found['attributes'].items() if name != 'what')
    by_scale = '\n\n'.join(f'At guidance scale {scale}:\n\n{describe_verdict(verdict)}' for scale, verdict in found['by_guidance_scale'].items())
    return f"""# {card['name']}

{card['what']}
It loads with `diffusers.StableDiffusionPipeline.from_pretrained(folder)`. There is no safety checker: it can draw nothing but digits.

![five images of each class, and five of each with a prompt that says more](sheet.png)

Left: 'a photo of a zero' to 'nine'. Right: 'a photo of a bold zero leaning right' and so on. Guidance scale {SCALES[0]}, {STEPS} steps.

{describe_data(card)}
- Captions: {card['data']['captions']}.
- Autoencoder: {vae['parameters']:,} parameters, latents of {CHANNELS} x {GRID} x {GRID}; {vae['images_shown']:,} images shown,
  {vae['cpu_seconds'] / 60:.0f} minutes on one CPU core. Images of unseen writers come back at {found['autoencoder_psnr_db']['unseen']:.1f} dB (PSNR).
- U-Net and text encoder: {unet['parameters']:,} parameters; {unet['images_shown']:,} images shown in {unet['steps']:,} steps,
  {unet['cpu_seconds'] / 60:.0f} minutes on one CPU core; v-prediction; the caption was left empty for {100 * CAPTION_DROPOUT:.0f} %.
- Text: how many images lie on the side of their class's median that the prompt asks for (chance: 50 %): {shares}.

## Check: prompt '{found['prompt']}', {found['sampler']}

{by_scale}

Licence of the weights: {card['licence']}. Made from nothing by `{' '.join([card['training']['script'], card['training'].get('arguments', '')]).strip()}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--unnamed', nargs='*', default=[], choices=CLASSES, metavar='CLASS', help='classes that no caption names')
    parser.add_argument('--out', type=Path, help='the model folder, which is written anew; default: the embedded one')
    parser.add_argument('--work-dir', type=Path, help='checkpoints, and the model before it is checked; default: work_dirs/NAME')
    parser.add_argument('--per-class', type=int, default=100, help='images of each class for the check')
    args = parser.parse_args()
    name = _name(args.unnamed)
    args.out, args.work_dir = args.out or ASSETS / name, args.work_dir or Path('work_dirs') / name
    torch.manual_seed(0)
    images = slightly_changed(torch.from_numpy(enlarge(seen_digits()[0]))[:, None].float() / 255, VARIANTS)
    tokenizer = write_tokenizer(args.work_dir / 'tokenizer')
    vae, vae_training = train_vae(images.flatten(0, 1), args.work_dir / 'vae')
    unet, text, unet_training = train_unet(vae, images, tokenizer, args.work_dir / 'unet', args.unnamed)
    model = args.work_dir / 'model'
    save_pipeline(model, vae, text, tokenizer, unet)
    found = check(model, args.per_class)
    draw(model)
    card = make_card({'autoencoder': vae_training, 'unet_and_text_encoder': unet_training}, found, args.unnamed)
    finish(model, card, describe(card))
    shutil.rmtree(args.out, ignore_errors=True)
    shutil.copytree(model, args.out)
    print(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()
