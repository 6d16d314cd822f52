"""What drawing the intensity of every image costs: DAFusion with a pool of four t0 against a single t0 of as many steps in the mean.

python tools/benchmarks/bench_dafusion.py [--size tiny] [--images 128] [--block 64] [--batch 16] [--steps 50] [--repeats 3] [--device cpu]

Images with different t0 run different numbers of steps and cannot share a batch, so a block is parted into four kinds of batches, of which the last
of each kind may be small. The single t0 is the mean of the pool, 0.625, which with 50 steps runs 31 of them, as the pool does in the mean (12, 25, 37
and 50); which t0 the images have drawn, and so how many steps ran, is counted, and the rate is given per executed step, too.

Our whole engine, from the recipe to a finished store, with a pipeline and learned words of random weights; the first block loads the weights and is not
in the figures. Both are measured in turns. On a CPU that others use too, the ratio of CPU seconds says more than that of wall seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
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
from synthaug_plugins.engine.block import batches
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, prepare
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.models.words import save_words, word_of

POOLS: dict[str, Any] = {'mixed t0': [0.25, 0.5, 0.75, 1.0], 'one t0': 0.625}
CLASS = 'thing'


def write_inputs(folder: Path, size: str, device: torch.device) -> None:
    """A pipeline, the word of one class for it, and eight real images."""
    write_pipeline(folder / 'model', size, device)
    model, g = TextModel(str(folder / 'model')), torch.Generator().manual_seed(0)
    rows = {e: {word_of(CLASS): 0.02 * torch.randn(4, width, generator=g)} for e, width in model.text_widths().items()}
    card = {'classes': [CLASS], 'vectors': 4, 'encoders': list(rows), 'model': model.origin(), 'initialised_from': {'word': 'the'}}
    save_words(folder / 'words.safetensors', rows, card)
    (folder / 'real' / CLASS).mkdir(parents=True)
    pixels, rng = CONFIGS[size]['vae']['sample_size'], np.random.default_rng(0)
    for k in range(8):
        Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)).save(folder / 'real' / CLASS / f'{k}.png')


def recipe(folder: Path, t0: Any, a: argparse.Namespace) -> dict[str, Any]:
    generator = {
        **{'type': 'synthaug_plugins.DAFusion', 'model': str(folder / 'model'), 'words': str(folder / 'words.safetensors'), 't0': t0},
        **{'sampler': {'num_steps': a.steps}, 'guidance_scale': a.scale, 'precision': a.precision},
    }
    sizes = {'per_class': a.images + a.block, 'block_size': a.block, 'batch_size': a.batch}
    return complete({'generator': generator, 'data': str(folder / 'real'), 'inspectors': [], **sizes})


def measured(todo: dict[str, Any], out: Path, device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds from the start of the second block on."""
    begun: list[Stopwatch] = []
    hook = SimpleNamespace(
        synthaug_before_block=lambda block: begun.append(Stopwatch(device)) if block.index == 1 else None, synthaug_after_block=lambda **_: None
    )
    generate(todo, out, str(device), hook, quiet=True)  # type: ignore[arg-type]
    return begun[0].read()


def layout(todo: dict[str, Any]) -> tuple[int, int]:
    """Steps that all images together run from the second block on, and the number of batches."""
    run = prepare(todo)
    steps = calls = 0
    for part in run.plan.parts[1:]:
        stream = run.generator.requests(part, todo['seed'])
        requests = [next(stream) for _ in range(part.target)]
        for positions in batches(requests, map(run.generator.bucket, requests), todo['batch_size']):
            options = run.generator._strength(requests[positions[0]])[1].sampler  # type: ignore[attr-defined]
            steps += len(positions) * (options['num_steps'] - options['first_step'])
            calls += 1
    return steps, calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=list(CONFIGS), default='tiny')
    parser.add_argument('--images', type=int, default=128)
    parser.add_argument('--block', type=int, default=64)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--steps', type=int, default=50)
    parser.add_argument('--scale', type=float, default=7.5, help='guidance scale')
    parser.add_argument('--precision', choices=['fp32', 'bf16', 'fp16'], default='fp32')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--device', default='auto')
    a = parser.parse_args()
    device = choose_device(a.device)
    print(f'{machine(device)}, {a.size}, {a.steps} steps, guidance {a.scale:g}, {a.precision}, blocks of {a.block}, batches of {a.batch}')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, a.size, device)
        todo = {name: recipe(folder, t0, a) for name, t0 in POOLS.items()}
        laid = {name: layout(one) for name, one in todo.items()}
        wall: dict[str, list[float]] = {name: [] for name in POOLS}
        cpu: dict[str, list[float]] = {name: [] for name in POOLS}
        print(f'{"":10} {"images":>7} {"batches":>8} {"steps each":>11} {"wall s":>8} {"CPU s":>8} {"images/s":>9} {"image steps/s":>14}')
        for turn in range(a.repeats):
            for name in sorted(POOLS, reverse=bool(turn % 2)):
                steps, calls = laid[name]
                seconds, cpu_seconds = measured(todo[name], folder / f'{name} {turn}', device)
                wall[name].append(steps / seconds)
                cpu[name].append(steps / cpu_seconds)
                rates = f'{a.images / seconds:9.2f} {steps / seconds:14.1f}'
                print(f'{name:10} {a.images:7} {calls:8} {steps / a.images:11.2f} {seconds:8.2f} {cpu_seconds:8.2f} {rates}', flush=True)
    of_wall, of_cpu = (statistics.median(m / o for m, o in zip(r['mixed t0'], r['one t0'], strict=True)) for r in (wall, cpu))
    images = of_wall * laid['one t0'][0] / laid['mixed t0'][0]
    print(f'mixed t0 / one t0, median of {a.repeats}: {images:.3f} times the images per second; per executed step {of_wall:.3f}, per CPU second {of_cpu:.3f}')


if __name__ == '__main__':
    main()
