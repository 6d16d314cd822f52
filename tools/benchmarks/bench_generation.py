"""How fast images are made, and how much of a run's wall time is not the network: planning, noise, inspection, encoding, writing.

python tools/benchmarks/bench_generation.py [--recipe edm_digits] [--per-class 100] [--device auto] [--cfg-options KEY=VALUE ...]
python tools/benchmarks/bench_generation.py --size sd15 [--images 256] [--one-by-one 16] [--batch 32] [--precision bf16] [--device cuda]

With --recipe: our engine against a plain loop that makes the same batches with the same generator and does nothing else: no
inspection, no encoding, no store.

With --size: text to image by a pipeline with random weights, shaped like Stable Diffusion 1.5 (`sd15`, 512 pixels) or like a small
relative that a CPU can run (`tiny`, 64 pixels), with guidance. Our engine, from the recipe to a finished store, against diffusers'
own pipeline (a) called image by image, each saved as PNG, as the papers' code does, and (b) called in batches of the same size, then
saved. (a) is slow, and its speed hardly depends on the number of images: --one-by-one gives it fewer. All have made a batch before
the clock starts: loading is not in the figures. MFU is the share of the device's peak that the U-Net's floating-point operations make
up (0.803e12 per image and call at 512 pixels, two calls per step with guidance), over the whole wall time; text encoder, VAE and
saving are no work in that sense. On a CPU that others use too, the ratio of CPU seconds says more than that of wall seconds: it
counts the encoding that our engine does beside the network.

"Network" is the time inside the outermost torch module calls (on a GPU the device is waited for at both ends, so the
overlap with encoding is kept and the network's share is not flattered; that waiting costs speed, so with --size it has a run of its own,
in the first round only).
"""

from __future__ import annotations

import argparse
import math
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import machine
from random_pipeline import CONFIGS, unet_tflop, write_pipeline

from synthaug_plugins.cli import parse_options
from synthaug_plugins.device import choose_device, device_name
from synthaug_plugins.engine.block import batches
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, load_recipe, prepare
from synthaug_plugins.recipes import find_recipe


class NetworkClock:
    """Seconds spent inside outermost `nn.Module` calls."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self.calls, self._depth, self._device = 0.0, 0, 0, device

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        def enter(module: torch.nn.Module, inputs: object) -> None:
            if self._depth == 0:
                self._start = self._now()
            self._depth += 1

        def leave(module: torch.nn.Module, inputs: object, output: object) -> None:
            self._depth -= 1
            if self._depth == 0:
                self.seconds += self._now() - self._start
                self.calls += 1

        handles = [torch.nn.modules.module.register_module_forward_pre_hook(enter), torch.nn.modules.module.register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def plain_loop(recipe: dict, device: torch.device) -> tuple[float, float, int]:
    """The same batches through the same generator, images thrown away. Returns wall seconds, network seconds, images."""
    run = prepare(recipe)
    run.generator.setup(device, run.real_images)
    run.generator.generate(list(islice(run.generator.requests(run.plan.parts[0], recipe['seed']), 1)))  # loads the weights
    clock, images, start = NetworkClock(device), 0, time.perf_counter()
    with clock.running():
        for block in run.plan.blocks:
            wave = [r for part in block.parts for r in islice(run.generator.requests(part, recipe['seed']), part.target)]
            for positions in batches(wave, map(run.generator.bucket, wave), recipe['batch_size']):
                images += len(run.generator.generate([wave[p] for p in positions]))
    return time.perf_counter() - start, clock.seconds, images


def engine(recipe: dict, device: torch.device, folder: Path) -> tuple[float, float, int]:
    """The whole run into a store. Returns the same; loading the weights is inside, as users have it."""
    clock, start = NetworkClock(device), time.perf_counter()
    with clock.running():
        store = generate(recipe, folder, str(device), quiet=True)
    return time.perf_counter() - start, clock.seconds, store.index().num_rows


def compare_recipe(recipe: dict, device: torch.device, repeats: int) -> None:
    """Print the engine beside the plain loop."""
    print(f'{platform.machine()} {device} ({torch.get_num_threads()} threads), torch {torch.__version__}, {recipe["generator"]}')
    print(f'{"":14} {"images":>7} {"wall s":>8} {"network s":>10} {"images/s":>9} {"outside the network":>20}')
    rates: dict[str, list[float]] = {'plain loop': [], 'engine': []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, measured in (('plain loop', plain_loop(recipe, device)), ('engine', engine(recipe, device, Path(folder) / 'store'))):
                wall, network, images = measured
                rates[name].append(images / wall)
                print(f'{name:14} {images:7} {wall:8.2f} {network:10.2f} {images / wall:9.1f} {100 * (wall - network) / wall:18.1f} %')
            shutil.rmtree(Path(folder) / 'store')
    ratios = sorted(e / p for e, p in zip(rates['engine'], rates['plain loop'], strict=True))
    print(f'engine / plain loop, images per second: median {ratios[len(ratios) // 2]:.3f} of {len(ratios)} pairs')


@dataclass(frozen=True)
class Job:
    """What a contestant of --size does: `images` images (a whole number of its batches), one prompt each, from one pipeline folder."""

    folder: Path
    images: int
    batch: int
    steps: int
    scale: float
    precision: str
    device: torch.device
    compile: bool

    @property
    def dtype(self) -> torch.dtype:
        return {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[self.precision]

    @property
    def classes(self) -> list[str]:
        return [f'object {number}' for number in range(1 + math.ceil(self.images / self.batch))]  # each a block of one batch, and one to warm up


class Stopwatch:
    """Wall and CPU seconds since it was made; the device's work is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wall, self._cpu = _now(device), time.process_time()

    def read(self) -> tuple[float, float]:
        return _now(self._device) - self._wall, time.process_time() - self._cpu


Contestant = Callable[[Job, Path, NetworkClock | None], tuple[float, float]]


def text_to_image(job: Job, out: Path, clock: NetworkClock | None) -> tuple[float, float]:
    """Our engine, recipe to store. Wall and CPU seconds from the start of the second block on: the first one has loaded the weights."""
    begun: list[Stopwatch] = []
    watch = clock.running() if clock else nullcontext()

    def before_block(block: Any) -> None:
        if block.index == 1:
            watch.__enter__()
            begun.append(Stopwatch(job.device))

    hook = SimpleNamespace(synthaug_before_block=before_block, synthaug_after_block=lambda **_: None)
    generator = {
        'type': 'synthaug_plugins.TextToImage',
        'model': str(job.folder),
        'prompts': {'type': 'synthaug_plugins.Basic'},
        'guidance_scale': job.scale,
        'sampler': {'num_steps': job.steps, 'solver': 'euler'},  # one call per step, as DDIM in the stock pipeline
        'precision': job.precision,
        'compile': job.compile,
    }
    # Random weights may make a dull image, which must not be made again: min_std = 0 keeps what is not one single colour.
    recipe = {
        **{'generator': generator, 'classes': job.classes, 'per_class': job.batch, 'block_size': job.batch, 'batch_size': job.batch},
        'inspectors': [{'type': 'synthaug_plugins.ImageSanity', 'min_std': 0.0}],
    }
    store = generate(complete(recipe), out, str(job.device), hook, quiet=True)  # type: ignore[arg-type]
    seconds = begun[0].read()
    watch.__exit__(None, None, None)
    assert store.index().num_rows == job.images + job.batch
    return seconds


def stock(batch: int | None) -> Contestant:
    """Diffusers' own pipeline, in batches of the job's size or of `batch`, every image saved as PNG when its batch is done."""

    def run(job: Job, out: Path, clock: NetworkClock | None) -> tuple[float, float]:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()
        pipeline = StableDiffusionPipeline.from_pretrained(job.folder, torch_dtype=job.dtype, safety_checker=None).to(job.device)
        pipeline.set_progress_bar_config(disable=True)
        size = batch or job.batch
        prompts = [f'a photo of a {job.classes[1 + i // job.batch]}' for i in range(job.images)]
        out.mkdir()

        def make(start: int) -> None:
            noise = [torch.Generator().manual_seed(start + i) for i in range(size)]
            made = pipeline(prompts[start : start + size], num_inference_steps=job.steps, guidance_scale=job.scale, generator=noise)
            for i, image in enumerate(made.images):
                image.save(out / f'{start + i}.png')

        make(0)
        with clock.running() if clock else nullcontext():
            begun = Stopwatch(job.device)
            for start in range(0, job.images, size):
                make(start)
            return begun.read()

    return run


ONE_BY_ONE = 'stock, one by one'
CONTESTANTS: dict[str, Contestant] = {'our engine': text_to_image, ONE_BY_ONE: stock(1), 'stock, batched': stock(None)}
PEAK_TFLOPS = {'H200': 989, 'H100': 989, 'A100': 312}  # dense bf16 and fp16, from the makers' data sheets


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_tflops(job: Job) -> tuple[float, str]:
    """What the device can do at most, in 1e12 operations per second, and where that is from."""
    if job.device.type == 'cuda' and job.precision != 'fp32':
        name = device_name(job.device)
        for known, peak in PEAK_TFLOPS.items():
            if known in name:
                return peak, f'{known} data sheet'
    n = 8192 if job.device.type == 'cuda' else 1536
    a, seconds = torch.randn(n, n, device=job.device, dtype=job.dtype), []
    for _ in range(5):
        begun = _now(job.device)
        a @ a
        seconds.append(_now(job.device) - begun)
    return 2 * n**3 / min(seconds) / 1e12, f'measured, product of {n} x {n} matrices'


def compare_pipelines(size: str, job: Job, one_by_one: int, repeats: int) -> None:
    """Print our engine beside diffusers' own pipeline, in turns; the one that goes image by image makes `one_by_one`."""
    tflop = unet_tflop(size)
    per_image = 2 * job.steps * tflop
    peak, source = peak_tflops(job)
    pixels = CONFIGS[size]['vae']['sample_size']
    print(f'{machine(job.device)}, {size}, {pixels} px, {job.steps} steps, guidance {job.scale:g}, {job.precision}, batch {job.batch}')
    print(f'U-Net {tflop:.3g} TFLOP per image and call, {per_image:.3g} per image; peak {peak:.3g} TFLOP/s ({source})')
    print(f'{"":20} {"images":>7} {"wall s":>8} {"images/s":>9} {"MFU":>7} {"CPU s":>8} {"outside the network":>20}')
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    cpu: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    outside: dict[str, float] = {}
    jobs = {name: replace(job, images=one_by_one) if name == ONE_BY_ONE else job for name in CONTESTANTS}
    for turn in range(repeats):
        order = list(CONTESTANTS)[turn % 3 :] + list(CONTESTANTS)[: turn % 3]
        for name in order:
            images = jobs[name].images
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu_seconds = CONTESTANTS[name](jobs[name], Path(folder) / 'timed', None)
                if name not in outside:
                    clock = NetworkClock(job.device)
                    watched, _ = CONTESTANTS[name](jobs[name], Path(folder) / 'watched', clock)
                    outside[name] = 1 - clock.seconds / watched
            rates[name].append(images / wall)
            cpu[name].append(cpu_seconds / images)
            mfu = per_image * rates[name][-1] / peak
            print(
                f'{name:20} {images:7} {wall:8.2f} {rates[name][-1]:9.2f} {100 * mfu:5.1f} % {cpu_seconds:8.2f} {100 * outside[name]:18.1f} %',
                flush=True,
            )
    print(f'median of {repeats} rounds in turns:')
    for name, found in rates.items():
        rate = statistics.median(found)
        print(f'{name:20} {rate:9.2f} images/s, MFU {100 * per_image * rate / peak:.1f} %, outside the network {100 * outside[name]:.1f} %')
    for name in list(CONTESTANTS)[1:]:
        faster = statistics.median(ours / other for ours, other in zip(rates['our engine'], rates[name], strict=True))
        cheaper = statistics.median(other / ours for ours, other in zip(cpu['our engine'], cpu[name], strict=True))
        print(f'our engine / {name}: {faster:.2f} times the images per second, {cheaper:.2f} times the images per CPU second')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--recipe', default='edm_digits')
    parser.add_argument('--data')
    parser.add_argument('--per-class', type=int, default=100)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--cfg-options', nargs='*', default=[])
    parser.add_argument('--size', choices=list(CONFIGS), help='compare with the stock pipeline of diffusers instead')
    parser.add_argument('--images', type=int, default=32)
    parser.add_argument('--one-by-one', type=int, metavar='IMAGES', help='images of the contestant that goes image by image; default: as many')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--steps', type=int, default=25)
    parser.add_argument('--scale', type=float, default=3.0, help='guidance scale')
    parser.add_argument('--precision', choices=['fp32', 'bf16', 'fp16'], default='fp32')
    parser.add_argument('--compile', action='store_true', help='let our engine compile the network')
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    torch.backends.cudnn.benchmark = True
    if arguments.size:
        if arguments.images % arguments.batch:
            parser.error('--images must be a multiple of --batch')
        with tempfile.TemporaryDirectory() as folder:
            write_pipeline(Path(folder) / 'model', arguments.size, device)
            a = arguments
            job = Job(Path(folder) / 'model', a.images, a.batch, a.steps, a.scale, a.precision, device, a.compile)
            compare_pipelines(a.size, job, a.one_by_one or a.images, a.repeats)
        return
    options = {**parse_options(arguments.cfg_options), 'per_class': arguments.per_class, 'data': arguments.data}
    compare_recipe(load_recipe(find_recipe(arguments.recipe, 'generate'), options), device, arguments.repeats)


if __name__ == '__main__':
    main()
