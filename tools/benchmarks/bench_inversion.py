"""Diffusion Inversion: how fast embeddings are learned, against the published scheme; how fast they are sampled at the size wanted, against sampling at 512
pixels and shrinking; and what memory 1,000 and 100,000 of them take.

python tools/benchmarks/bench_inversion.py [--size tiny] [--pixels 32] [--steps 30] [--rounds 2] [--device cpu] [--more] [--only learning|sampling|memory]

Learning. The other loop is written here of parts of diffusers, from the paper's description: groups of 100 images, batches of 50, one row of a linear
layer per image that is reached by a product with one-hot rows, AdamW on all rows in every step, every batch through the VAE in every step, float32.
Decoding of files is left out of it, in its favour. Three more ways say where a difference comes from: ours in float32, the other one with its latents
encoded once, and the other one under autocast to bfloat16. Both have the same pipeline with random weights, the same images, 50 per step and K = 5. The
rate is that of 3,000 steps per image, worked out from the steps that were timed and, for ours, from what an image costs when its turn comes (file, VAE).

Sampling. The same generator, embeddings and number of steps, with images stored in the size wanted: once made in that size, once in the model's own.

Memory. Of a process of its own that opens a folder of embeddings (K = 5, d = 768), reads 1,000 of them in random order and works out their mean: what
it takes more than before it opened the folder.

On a CPU that others use too, the ratio of CPU seconds says more than that of wall seconds.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from bench_generation import Stopwatch
from machine import machine
from PIL import Image
from random_pipeline import CONFIGS, write_pipeline

from synthaug_plugins.device import choose_device
from synthaug_plugins.diffusion.pixels import from_uint8
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete
from synthaug_plugins.errors import ModelError
from synthaug_plugins.learning.embeddings import learn_embeddings
from synthaug_plugins.learning.embeddings_options import EmbeddingTraining
from synthaug_plugins.models.base import EmbeddingShape
from synthaug_plugins.models.embedding_shards import create_embeddings, publish_shard
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.real_images import RealImages

BATCH, GROUP, TOKENS, WARM_UP, STEPS_EACH = 50, 100, 5, 3, 3000
LEARNING_RATE, WEIGHT_DECAY = 0.03, 1e-2


def pictures(pixels: int, count: int) -> list[np.ndarray]:
    """Smooth random images, (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (count, 8, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BICUBIC)) for image in small]


def write_images(folder: Path, pixels: int, count: int) -> RealImages:
    """These as files of one class."""
    (folder / 'thing').mkdir(parents=True)
    for k, image in enumerate(pictures(pixels, count)):
        Image.fromarray(image).save(folder / 'thing' / f'{k:07d}.png')
    return RealImages(folder)


class Marks:
    """Wall and CPU seconds at some steps; the device's work is waited for at these only."""

    def __init__(self, device: torch.device, steps: tuple[int, ...]) -> None:
        self._watch, self._steps = Stopwatch(device), steps
        self._seen: dict[int, tuple[float, float]] = {}

    def step(self, done: int) -> None:
        """So many steps are done."""
        if done in self._steps:
            self._seen[done] = self._watch.read()

    def between(self, first: int, last: int) -> tuple[float, float]:
        """(wall, CPU) seconds between two of the steps."""
        (w0, c0), (w1, c1) = self._seen[first], self._seen[last]
        return w1 - w0, c1 - c0


@dataclass(frozen=True)
class Cost:
    """What learning costs.

    Attributes:
        step: (wall, CPU) seconds of an image's step: of a step of all, over the images in it.
        once: (wall, CPU) seconds of what an image costs when its turn comes.
    """

    step: tuple[float, float]
    once: tuple[float, float] = (0.0, 0.0)

    def per_hour(self, place: int = 0) -> float:
        """Embeddings per hour of wall (or CPU: place 1) time at 3,000 steps per image."""
        return 3600 / (STEPS_EACH * self.step[place] + self.once[place])


def ours(pipeline: Path, pixels: int, steps: int, device: torch.device, precision: str, batch: int = BATCH, **options_of_model: Any) -> Cost:
    """This package's learning, of twice as many images as a batch holds."""
    marks = Marks(device, (WARM_UP, steps, steps + 1))
    options = EmbeddingTraining(tokens=TOKENS, steps=steps, batch_size=batch, precision=precision, checkpoint_steps=10**9)
    model = TextModel(str(pipeline), image_size=pixels, **options_of_model)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        real = write_images(work / 'images', pixels, 2 * batch)
        places = (work / 'embeddings', work / 'checkpoints', device)
        learn_embeddings(model, real, real.ids('thing'), options, *places, on_step=lambda done, loss: marks.step(done // batch))
    step = [seconds / (steps - WARM_UP) for seconds in marks.between(WARM_UP, steps)]
    turn = [max(0.0, seconds - of_step) for seconds, of_step in zip(marks.between(steps, steps + 1), step, strict=True)]
    return Cost((step[0] / batch, step[1] / batch), (turn[0] / batch, turn[1] / batch))


def published(pipeline: Path, pixels: int, steps: int, device: torch.device, *, encode_once: bool = False, autocast: bool = False) -> Cost:
    """The scheme that the paper describes."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    vae = AutoencoderKL.from_pretrained(pipeline / 'vae', torch_dtype=torch.float32).to(device).requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(pipeline / 'unet', torch_dtype=torch.float32).to(device).requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(pipeline / 'scheduler')
    width = unet.config.cross_attention_dim
    rows = torch.nn.Linear(GROUP, TOKENS * width, bias=False).to(device)
    optimizer = torch.optim.AdamW(rows.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY)
    images = from_uint8(torch.from_numpy(np.stack(pictures(pixels, GROUP)).transpose(0, 3, 1, 2)).to(device))
    marks = Marks(device, (WARM_UP, steps))

    def latents(chosen: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return vae.encode(images[chosen]).latent_dist.sample() * vae.config.scaling_factor

    known = torch.cat([latents(torch.arange(k, k + BATCH)) for k in range(0, GROUP, BATCH)]) if encode_once else None
    for step in range(steps):
        if not step % (GROUP // BATCH):
            order = torch.randperm(GROUP)
        chosen = order[step % (GROUP // BATCH) * BATCH :][:BATCH]
        z = latents(chosen) if known is None else known[chosen]
        noise, t = torch.randn_like(z), torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,), device=device)
        told = rows(torch.nn.functional.one_hot(chosen, GROUP).float().to(device)).reshape(BATCH, TOKENS, width)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(z, noise, t), t, told).sample.float(), noise.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        marks.step(step + 1)
    wall, cpu = (seconds / (steps - WARM_UP) / BATCH for seconds in marks.between(WARM_UP, steps))
    return Cost((wall, cpu))


def busy(pipeline: Path, pixels: int, steps: int, device: torch.device, batch: int) -> None:
    """Print how long the device works in a step of ours, and how long the step takes: where the two differ, it waits for launches."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CUDA])
    begun: list[Stopwatch] = []

    def on_step(done: int, loss: torch.Tensor) -> None:
        if done == 5 * batch:
            torch.cuda.synchronize()
            profiler.start()
            begun.append(Stopwatch(device))
        if done == 15 * batch:
            wall, _ = begun[0].read()
            profiler.stop()
            kernels = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
            works = sum(e.self_device_time_total for e in kernels) / 1e6
            print(f'\nprofile of ours, bf16, {batch} at once: a step takes {wall * 100:.1f} ms, of which the device works {works * 100:.1f} ms', flush=True)
            for e in kernels[:12]:
                print(f'{e.self_device_time_total / 1e6 / works:6.1%}  {e.count // 10:5} calls per step  {e.key[:110]}')

    options = EmbeddingTraining(tokens=TOKENS, steps=max(steps, 16), batch_size=batch, precision='bf16', checkpoint_steps=10**9)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        real = write_images(work / 'images', pixels, batch)
        places = (work / 'embeddings', work / 'checkpoints', device)
        learn_embeddings(TextModel(str(pipeline), image_size=pixels), real, real.ids('thing'), options, *places, on_step=on_step)


def learning(folder: Path, pixels: int, steps: int, rounds: int, device: torch.device, more: bool) -> None:
    """Print the rates of all ways and their ratios. more: larger batches of ours, and other layouts of the network, too."""
    precision = 'bf16' if device.type == 'cuda' else 'fp32'
    given = (folder, pixels, steps, device)
    ways: dict[str, Callable[[], Cost]] = {
        f'ours, {precision}': lambda: ours(*given, precision),
        'published, fp32': lambda: published(*given),
        'published, fp32, latents once': lambda: published(*given, encode_once=True),
    }
    if precision != 'fp32':
        ways['published, bf16 autocast'] = lambda: published(*given, autocast=True)
        ways['ours, fp32'] = lambda: ours(*given, 'fp32')
    if more:
        for batch in (4 * BATCH, 8 * BATCH):
            ways[f'ours, {precision}, {batch} at once'] = lambda batch=batch: ours(*given, precision, batch)
        ways[f'ours, {precision}, {4 * BATCH} at once, channels_last'] = lambda: ours(*given, precision, 4 * BATCH, channels_last=True)
        ways[f'ours, {precision}, {4 * BATCH} at once, compiled'] = lambda: ours(*given, precision, 4 * BATCH, compile=True)
    print(f'\nlearning: {pixels} px, {BATCH} images per step, K = {TOKENS}, {steps} steps of which the first {WARM_UP} are not timed')
    found: dict[str, dict[int, Cost]] = {way: {} for way in ways}  # by round
    for number in range(rounds):
        for way, learn in ways.items():
            if device.type == 'cuda':
                torch.cuda.reset_peak_memory_stats(device)
            try:
                cost = learn()
            except ModelError as error:  # memory is too small
                print(f'round {number + 1}  {way}: {error}', flush=True)
                continue
            found[way][number] = cost
            memory = f', {torch.cuda.max_memory_allocated(device) / 2**30:.0f} GiB' if device.type == 'cuda' else ''
            step = f'{cost.step[0] * 1e3:8.3f} ms per image and step ({cost.step[1] * 1e3:.3f} CPU)'
            print(f'round {number + 1}  {way:43} {step}, {cost.once[0] * 1e3:6.1f} ms once, {cost.per_hour():9,.1f} embeddings per hour{memory}', flush=True)
    kinds = [('wall', 0)] if device.type == 'cuda' else [('wall', 0), ('CPU', 1)]
    for one, other in itertools.product((way for way in ways if way.startswith('ours')), (way for way in ways if way.startswith('published'))):
        for kind, place in kinds if found[one] else ():
            ratios = [cost.per_hour(place) / found[other][number].per_hour(place) for number, cost in found[one].items()]
            print(f'{one} / {other}, {kind}: median {statistics.median(ratios):.2f}, rounds {", ".join(f"{r:.2f}" for r in ratios)}')


def write_embeddings(folder: Path, count: int, width: int, card: dict[str, Any], hashes: list[str] | None = None, shard: int = 1000) -> None:
    """A folder of random embeddings; hashes: of the images' files."""
    ids, generator = [f'thing/{k:07d}.png' for k in range(count)], torch.Generator().manual_seed(0)
    hashes = hashes or [f'{k:064x}' for k in range(count)]
    create_embeddings(folder, {'shape': EmbeddingShape(TOKENS, width, None), 'name': 'random', 'licence': None, **card})
    for number, first in enumerate(range(0, count, shard)):
        part = ids[first : first + shard]
        columns = {'steps': [1] * len(part), 'loss_first': [1.0] * len(part), 'loss_last': [1.0] * len(part)}
        publish_shard(folder, number, part, hashes[first : first + shard], torch.randn(len(part), TOKENS, width, generator=generator), None, columns)


def sampling(folder: Path, size: str, pixels: int, a: argparse.Namespace, device: torch.device) -> None:
    """Print the rates of the whole engine, from the recipe to a finished store, at the size wanted and at the model's own."""
    own = CONFIGS[size]['vae']['sample_size']
    work = folder.parent / 'sampling'
    real = write_images(work / 'real', pixels, 16)
    rates: dict[int, list[float]] = {pixels: [], own: []}
    todo = {}
    precision = 'bf16' if device.type == 'cuda' else 'fp32'
    for side in rates:
        model = TextModel(str(folder), image_size=side)
        width = model.embedding_shape(TOKENS).width
        hashes = list(real.file_hashes(real.ids('thing')))
        write_embeddings(work / f'embeddings-{side}', 16, width, {'model': model.origin(contents=True), 'image_size': list(model.image_size)}, hashes=hashes)
        generator = {
            **{'type': 'synthaug_plugins.DiffusionInversion', 'model': str(folder), 'embeddings': str(work / f'embeddings-{side}'), 'image_size': side},
            **{'sampler': {'num_steps': a.sampling_steps}, 'precision': precision},
        }
        sizes = {'per_class': 2 * a.images, 'block_size': a.images, 'batch_size': a.batch, 'image': {'size': pixels}}
        todo[side] = complete({'generator': generator, 'data': str(work / 'real'), 'inspectors': [], **sizes})
    print(f'\nsampling: {a.images} images of {pixels} px, {a.sampling_steps} steps, guidance 2 (two calls per step), {precision}, batches of {a.batch}')
    for number in range(a.rounds):
        for side in rates:
            begun: list[Stopwatch] = []
            hook = SimpleNamespace(
                synthaug_before_block=lambda block, begun=begun: begun.append(Stopwatch(device)) if block.index == 1 else None,
                synthaug_after_block=lambda **_: None,
            )
            generate(todo[side], work / f'store-{side}-{number}', str(device), hook, quiet=True)  # type: ignore[arg-type]
            wall, cpu = begun[0].read()
            rates[side].append(a.images / wall)
            print(f'round {number + 1}  made at {side:4} px {wall:8.2f} s ({cpu:.2f} CPU) {rates[side][-1]:8.2f} images/s', flush=True)
    ratios = [fast / slow for fast, slow in zip(rates[pixels], rates[own], strict=True)]
    print(f'made at {pixels} px / made at {own} px and shrunk: median {statistics.median(ratios):.2f} times the images per second')


def resident() -> float:
    """Resident memory of this process, MB."""
    return int(re.search(r'VmRSS:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024  # type: ignore[index]


def peak_resident() -> float:
    """The largest that it was, MB."""
    return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024  # type: ignore[index]


def read_some(folder: Path) -> None:
    """In a process of its own: open, read 1,000 embeddings in random order one batch at a time, work out the mean; print what it took."""
    torch.zeros(10).sum()
    before, start = resident(), time.perf_counter()
    embeddings = Embeddings(folder)
    opened = time.perf_counter() - start
    order = np.random.default_rng(0).permutation(len(embeddings))[:1000]
    for first in range(0, len(order), 50):
        embeddings.read(order[first : first + 50])
    after_read = resident()
    start = time.perf_counter()
    embeddings.mean(np.arange(len(embeddings)))
    print(opened, after_read - before, time.perf_counter() - start, peak_resident() - before)


def memory(folder: Path) -> None:
    """Print what opening, reading and averaging take for two sizes."""
    print('\nmemory: more than before the folder was opened (pages of mapped files that the system may take back are counted)')
    for count in (1_000, 100_000):
        place = folder.parent / f'embeddings-{count}'
        write_embeddings(place, count, 768, {'model': {'name': 'random'}, 'image_size': [128, 128]})
        disk = sum(p.stat().st_size for p in place.rglob('*') if p.is_file())
        command = [sys.executable, __file__, '--read', str(place)]
        opened, read, mean, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        line = f'{count:7,} embeddings, {disk / count:,.0f} bytes each on disk: opened in {opened:.2f} s, 1,000 read +{read:.0f} MB; '
        print(line + f'mean of all in {mean:.2f} s, peak +{peak:.0f} MB', flush=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='tiny', choices=list(CONFIGS))
    parser.add_argument('--pixels', type=int, default=32, help='the size wanted: of learning, and of what is sampled')
    parser.add_argument('--steps', type=int, default=30, help='of learning, in each round')
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--images', type=int, default=50, help='sampled in each round')
    parser.add_argument('--batch', type=int, default=50, help='of sampling')
    parser.add_argument('--sampling-steps', type=int, default=20)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--only', choices=('learning', 'sampling', 'memory'))
    parser.add_argument('--more', action='store_true', help='learning also in larger batches, compiled and with channels_last; on a GPU also a profile')
    parser.add_argument('--read', type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.read:
        read_some(a.read)
        return
    device = choose_device(a.device)
    print(f'{machine(device)}, random pipeline of the size {a.size}')
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = Path(scratch) / 'pipeline'
        if a.only != 'memory':
            write_pipeline(pipeline, a.size, device)
        if a.only in (None, 'learning'):
            learning(pipeline, a.pixels, a.steps, a.rounds, device, a.more)
            for batch in (BATCH, 4 * BATCH) if a.more and device.type == 'cuda' else ():
                busy(pipeline, a.pixels, a.steps, device, batch)
        if a.only in (None, 'sampling'):
            sampling(pipeline, a.size, a.pixels, a, device)
        if a.only in (None, 'memory'):
            memory(pipeline)


if __name__ == '__main__':
    main()
