"""How fast words are learned, against textual inversion as the published scripts do it; and what memory 1 and 20 classes take.

python tools/benchmarks/bench_words.py [--size tiny] [--steps 40] [--rounds 3] [--device cpu]

The other loop is written here of parts of diffusers and transformers, from the papers' description: the images of a batch are decoded, resized
and go through the VAE in every step, one prompt per image is tokenised and goes through the text encoder, AdamW works on the whole table of
tokens, and all rows but the word's are set back after each step. Both have the same pipeline with random weights, the same images, batch, number of
vectors and precision (float32). Rounds take turns; the first steps of each are not timed. On a CPU that others use too, the ratio of CPU seconds
says more than that of wall seconds. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_pipeline import write_pipeline

from synthaug_plugins.learning.words import ClassImages, learn_words
from synthaug_plugins.learning.words_options import WordTraining
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.prompts.templates import ENSEMBLES, fill

BATCH, VECTORS, IMAGES, WARM_UP = 8, 4, 16, 3
TEMPLATES = ENSEMBLES['textual_inversion']


def write_images(folder: Path, size: int) -> None:
    """JPEGs, somewhat larger than the model."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(IMAGES):
        small = Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8))
        small.resize((size * 3 // 2, size * 5 // 4), Image.Resampling.BICUBIC).save(folder / f'{i}.jpg', quality=90)


class Clock:
    """Wall and CPU seconds from the end of the warm-up on."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.start = device, (0.0, 0.0)

    def now(self) -> tuple[float, float]:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()

    def step(self, done: int) -> None:
        """So many steps are done."""
        if done == WARM_UP:
            self.start = self.now()

    def per_step(self, steps: int) -> tuple[float, float]:
        """(wall, CPU) seconds per timed step."""
        wall, cpu = self.now()
        return (wall - self.start[0]) / (steps - WARM_UP), (cpu - self.start[1]) / (steps - WARM_UP)


def ours(pipeline: Path, images: Path, steps: int, device: torch.device, classes: int = 1) -> tuple[float, float]:
    """Learn words by this package; (wall, CPU) seconds per step of the first class."""
    clock, files = Clock(device), sorted(images.iterdir())
    pictures = ClassImages(lambda name: [np.asarray(Image.open(f).convert('RGB')) for f in files], 'bench')
    options = WordTraining(vectors=VECTORS, steps=steps, batch_size=BATCH, checkpoint_steps=10**9, precision='fp32')
    names = [f'class {"abcdefghijklmnopqrst"[k]}' for k in range(classes)]
    found: list[tuple[float, float]] = []

    def on_step(done: int, loss: torch.Tensor) -> None:
        clock.step(done)
        if done == steps:
            found.append(clock.per_step(steps))

    with tempfile.TemporaryDirectory() as work:
        learn_words(TextModel(str(pipeline)), names, {name: name for name in names}, pictures, options, Path(work) / 'work', device, on_step=on_step)
    return found[0]


def published(pipeline: Path, images: Path, steps: int, device: torch.device) -> tuple[float, float]:
    """Textual inversion as the published scripts do it; (wall, CPU) seconds per step."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    clock, files, size = Clock(device), sorted(images.iterdir()), TextModel(str(pipeline)).image_size[0]
    tokenizer = CLIPTokenizer.from_pretrained(pipeline / 'tokenizer')
    encoder = CLIPTextModel.from_pretrained(pipeline / 'text_encoder', torch_dtype=torch.float32).to(device).requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(pipeline / 'vae', torch_dtype=torch.float32).to(device).requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(pipeline / 'unet', torch_dtype=torch.float32).to(device).requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(pipeline / 'scheduler')
    tokens = ['<word>', *(f'<word>_{k}' for k in range(1, VECTORS))]
    tokenizer.add_tokens(tokens)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight.requires_grad_()
    ids = tokenizer.convert_tokens_to_ids(tokens)
    others = torch.ones(len(table), dtype=torch.bool)
    others[ids] = False
    original = table.detach().clone()
    optimizer = torch.optim.AdamW([table], lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    rng = np.random.default_rng(0)
    for step in range(steps):
        pixels, prompts = [], []
        for file in rng.choice(files, BATCH):
            image = Image.open(file).convert('RGB').resize((size, size), Image.Resampling.BICUBIC)
            array = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image)
            pixels.append(torch.from_numpy((array / 127.5 - 1).astype(np.float32)).permute(2, 0, 1))
            text = fill(TEMPLATES[rng.integers(len(TEMPLATES))], ' '.join(tokens))
            prompts.append(tokenizer(text, padding='max_length', truncation=True, max_length=tokenizer.model_max_length, return_tensors='pt').input_ids[0])
        with torch.no_grad():
            z = vae.encode(torch.stack(pixels).to(device)).latent_dist.sample() * vae.config.scaling_factor
        noise, t = torch.randn_like(z), torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,), device=device)
        told = encoder(torch.stack(prompts).to(device))[0]
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(z, noise, t), t, told).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            table[others] = original[others]
        loss.item()  # the scripts show it after each step
        clock.step(step + 1)
    return clock.per_step(steps)


def peak(way: str, pipeline: Path, images: Path, device: str, classes: int) -> float:
    """Peak resident memory in MB of a process that learns five steps of each class."""
    command = [sys.executable, __file__, '--memory-of', way, '--folder', str(pipeline.parent), '--classes', str(classes), '--device', device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='tiny', choices=('tiny', 'sd15'))
    parser.add_argument('--steps', type=int, default=40, help='of each round')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--memory-of', choices=('ours', 'published'), help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--classes', type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = torch.device(given.device)
    ways: dict[str, Any] = {'ours': ours, 'published': published}
    if given.memory_of:
        more = {'classes': given.classes} if given.memory_of == 'ours' else {}
        ways[given.memory_of](given.folder / 'pipeline', given.folder / 'images', 5, device, **more)
        status = Path('/proc/self/status').read_text()  # ru_maxrss would count the process that started this one
        print(int(re.search(r'VmHWM:\s+(\d+)', status)[1]) / 1024)
        return
    with tempfile.TemporaryDirectory() as scratch:
        pipeline, images = Path(scratch) / 'pipeline', Path(scratch) / 'images'
        write_pipeline(pipeline, given.size, device)
        write_images(images, TextModel(str(pipeline)).image_size[0])
        print(f'{platform.machine()} {given.device} ({torch.get_num_threads()} threads), torch {torch.__version__}, random pipeline of the size {given.size}')
        print(f'batch {BATCH}, {VECTORS} vectors, {IMAGES} images, {given.steps} steps of which the first {WARM_UP} are not timed')
        rounds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(given.rounds):
            for way, learn in ways.items():
                rounds[way].append(learn(pipeline, images, given.steps, device))
                wall, cpu = rounds[way][-1]
                print(f'round {number + 1}  {way:10} {1 / wall:7.2f} steps/s  {cpu:7.4f} CPU seconds per step', flush=True)
        for kind, place in (('wall', 0), ('CPU', 1)):
            ratios = [p[place] / o[place] for o, p in zip(rounds['ours'], rounds['published'], strict=True)]
            print(f'{kind} seconds per step, published / ours: median {statistics.median(ratios):.2f}, rounds {", ".join(f"{r:.2f}" for r in ratios)}')
        for way, classes in (('published', 1), ('ours', 1), ('ours', 20)):
            print(f'peak memory, {way}, {classes} class{"es" if classes > 1 else ""}: {peak(way, pipeline, images, given.device, classes):.0f} MB', flush=True)


if __name__ == '__main__':
    main()
