"""How much of a generation run's wall time is not the network: planning, noise, inspection, encoding, writing.

python tools/benchmarks/bench_generation.py [--recipe edm_digits] [--per-class 100] [--device auto] [--cfg-options KEY=VALUE ...]

"Network" is the time inside the outermost torch module calls (on a GPU the device is waited for at both ends, so the
overlap with encoding is kept and the network's share is not flattered). The plain loop beside it makes the same batches
with the same generator, and does nothing else: no inspection, no encoding, no store.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch

from synthaug_plugins.cli import parse_options
from synthaug_plugins.engine.block import batches
from synthaug_plugins.engine.generate import choose_device, generate
from synthaug_plugins.engine.recipe import load_recipe, prepare
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
    run.generator.generate(list(islice(run.generator.requests(run.plan.blocks[0], recipe['seed']), 1)))  # loads the weights
    clock, images, start = NetworkClock(device), 0, time.perf_counter()
    with clock.running():
        for block in run.plan.blocks:
            wave = list(islice(run.generator.requests(block, recipe['seed']), block.target))
            for positions in batches(wave, map(run.generator.bucket, wave), recipe['batch_size']):
                images += len(run.generator.generate([wave[p] for p in positions]))
    return time.perf_counter() - start, clock.seconds, images


def engine(recipe: dict, device: torch.device, folder: Path) -> tuple[float, float, int]:
    """The whole run into a store. Returns the same; loading the weights is inside, as users have it."""
    clock, start = NetworkClock(device), time.perf_counter()
    with clock.running():
        store = generate(recipe, folder, str(device), quiet=True)
    return time.perf_counter() - start, clock.seconds, store.index().num_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--recipe', default='edm_digits')
    parser.add_argument('--data')
    parser.add_argument('--per-class', type=int, default=100)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--cfg-options', nargs='*', default=[])
    arguments = parser.parse_args()
    recipe = load_recipe(
        find_recipe(arguments.recipe, 'generate'), {**parse_options(arguments.cfg_options), 'per_class': arguments.per_class, 'data': arguments.data}
    )
    device = choose_device(arguments.device)
    torch.backends.cudnn.benchmark = True
    print(f'{platform.machine()} {device} ({torch.get_num_threads()} threads), torch {torch.__version__}, {recipe["generator"]}')
    print(f'{"":14} {"images":>7} {"wall s":>8} {"network s":>10} {"images/s":>9} {"outside the network":>20}')
    rates: dict[str, list[float]] = {'plain loop': [], 'engine': []}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, measured in (('plain loop', plain_loop(recipe, device)), ('engine', engine(recipe, device, Path(folder) / 'store'))):
                wall, network, images = measured
                rates[name].append(images / wall)
                print(f'{name:14} {images:7} {wall:8.2f} {network:10.2f} {images / wall:9.1f} {100 * (wall - network) / wall:18.1f} %')
            shutil.rmtree(Path(folder) / 'store')
    ratios = sorted(e / p for e, p in zip(rates['engine'], rates['plain loop'], strict=True))
    print(f'engine / plain loop, images per second: median {ratios[len(ratios) // 2]:.3f} of {len(ratios)} pairs')


if __name__ == '__main__':
    main()
