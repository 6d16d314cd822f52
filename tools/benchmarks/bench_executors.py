"""What executors cost: scaling from one worker to two with a network that dominates, and the driver's own share of each block.

    python tools/benchmarks/bench_executors.py                          # some 10 minutes on 2 cores, which should have nothing else to do
    python tools/benchmarks/bench_executors.py --blocks 12 --rounds 1   # 3 minutes, rougher

Scaling: `synthaug generate edm_digits` as a user starts it, each worker with one thread, by every executor with one worker and with two. The rate is that
of the middle of a run, from the times at which blocks were published: the start of processes and the last blocks, when a worker may have nothing to do, are
not in it.
Two cores seldom do twice the work of one, whatever runs on them (memory and clock are shared). So the ideal is measured too: two runs of one process each, side
by side, that know nothing of each other. Rounds go through all cases in turn, and figures are medians.

Driver: tasks that do nothing, through the same executors. The latency of a task is what a worker waits between two blocks; the driver's CPU time is what one
driver can serve. From both follows on paper what N workers give: with blocks of T seconds a worker is busy T / (T + latency) of its time, until N workers ask
for more than the driver has, N x CPU > T.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from empty_job import EmptyJob

from synthaug_plugins.executors.base import Executor
from synthaug_plugins.executors.local import Local
from synthaug_plugins.executors.ray import Ray
from synthaug_plugins.executors.torchrun import Torchrun

EXECUTORS = ('local', 'torchrun', 'ray')
WORKERS = (8, 64, 512)
BLOCKS_S = (10.0, 60.0)
"""Blocks as GPUs make them: 64 images and more at a few images per second."""
HERE = Path(__file__).resolve().parent


def command(executor: str, workers: int, out: Path, blocks: int, block_size: int) -> list[str]:
    """A generation of so many blocks of one class."""
    recipe = ['edm_digits', '--out', str(out), '--device', 'cpu', '--executor', executor, '--cfg-options']
    sizes = ["classes=['three']", f'per_class={blocks * block_size}', f'block_size={block_size}', f'batch_size={block_size}']
    if executor == 'torchrun':
        starts = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={workers}', '-m', 'synthaug_plugins.cli', 'generate']
        return [*starts, *recipe, *sizes]
    return [sys.executable, '-m', 'synthaug_plugins.cli', 'generate', *recipe, *sizes, '--workers', str(workers)]


def published(out: Path) -> list[float]:
    """When the blocks of a store were, in seconds, rising."""
    return sorted(path.stat().st_mtime for path in (out / 'index').glob('*.parquet'))


def rate(times: Sequence[float], workers: int) -> float:
    """Blocks per second in the middle of a run: over a whole number of rounds of its workers, from the second quarter on to where none runs out of blocks."""
    first = len(times) // 4
    rounds = (len(times) - workers - first) // workers
    return rounds * workers / (times[first + rounds * workers] - times[first])


def measure(cases: Sequence[tuple[str, int]], blocks: int, block_size: int) -> list[tuple[float, float]]:
    """Blocks per second together, and seconds from start to end, of commands that run side by side."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(k) for k in range(len(cases))]
        started = time.time()
        running = [
            subprocess.Popen(command(*case, out, blocks, block_size), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for case, out in zip(cases, outs, strict=True)
        ]
        for process in running:
            said = process.communicate()[1]
            if process.returncode:
                raise SystemExit(said)
        return [(rate(published(out), workers), published(out)[-1] - started) for (_, workers), out in zip(cases, outs, strict=True)]


def scaling(blocks: int, block_size: int, rounds: int) -> float:
    """Print the table of all executors; seconds of a block in one process."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for number in range(rounds):
        beside = measure([('local', 1)] * 2, blocks, block_size)
        found.setdefault(('two runs side by side', 2), []).append((sum(r for r, _ in beside), max(s for _, s in beside)))
        for executor in EXECUTORS:
            for workers in (1, 2):
                found.setdefault((executor, workers), []).append(measure([(executor, workers)], blocks, block_size)[0])
        print(f'round {number + 1} of {rounds} done', file=sys.stderr, flush=True)
    rates = {case: statistics.median(r for r, _ in runs) for case, runs in found.items()}
    alone, ideal = rates['local', 1], rates['two runs side by side', 2]
    print(f'\nScaling, {blocks} blocks of {block_size} images, {1 / alone:.2f} s each in one process; medians of {rounds}\n')
    print('| executor | workers | blocks/s | of twice its one worker | of two runs side by side | start to end, s |\n|---|---|---|---|---|---|')
    for (name, workers), runs in found.items():
        one = rates.get((name, 1), alone)
        ratios = f'{rates[name, workers] / (2 * one):.1%} | {rates[name, workers] / ideal:.1%}' if workers == 2 else '| '
        print(f'| {name} | {workers} | {rates[name, workers]:.3f} | {ratios} | {statistics.median(s for _, s in runs):.1f} |')
    return 1 / alone


def empty_tasks(executor: Executor, tasks: int) -> tuple[float, float]:
    """Seconds of the clock and CPU seconds of this process for each task, after the first tenth."""
    with closing(executor.run(EmptyJob(), range(tasks))) as results:
        for _ in range(tasks // 10):
            next(results)
        wall, cpu = time.perf_counter(), time.process_time()
        left = sum(1 for _ in results)
        return (time.perf_counter() - wall) / left, (time.process_time() - cpu) / left


def driver_costs(tasks: int) -> dict[str, tuple[float, float]]:
    """Executor -> (latency, CPU seconds of the driver) of a task, with one worker beside the driver."""
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=1', __file__, '--rank', '--tasks', str(tasks)]
    said = subprocess.run(torchrun, stdout=subprocess.PIPE, text=True, check=True).stdout
    return {
        'local': empty_tasks(Local('cpu', 1, stall_timeout=600), tasks),
        'torchrun': tuple(json.loads(said.splitlines()[-1])),
        'ray': empty_tasks(Ray(workers=1, device='cpu'), tasks),
    }


def paper(costs: dict[str, tuple[float, float]], block_s: float) -> None:
    """Print the driver's costs, and what follows for many workers."""
    lengths = (block_s, *BLOCKS_S)
    heads = ' | '.join(f'{n} workers, {t:.3g} s' for t in lengths for n in WORKERS)
    print(f'\nDriver, for each block, and the share of ideal that follows for blocks of so many seconds\n\n| executor | latency, ms | CPU, ms | {heads} |')
    print('|---' * (3 + len(lengths) * len(WORKERS)) + '|')
    for name, (latency, cpu) in costs.items():
        shares = ' | '.join(f'{min(t / (t + latency), t / (n * cpu)):.1%}' for t in lengths for n in WORKERS)
        print(f'| {name} | {1e3 * latency:.2f} | {1e3 * cpu:.2f} | {shares} |')


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--blocks', type=int, default=24)
    parser.add_argument('--block-size', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--tasks', type=int, default=1000)
    parser.add_argument('--rank', action='store_true', help='what torchrun starts')
    given = parser.parse_args()
    if given.rank:
        print(json.dumps(empty_tasks(Torchrun('cpu'), given.tasks)))
        return
    os.environ |= {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get('PYTHONPATH', '')])}  # of all workers
    print(f'{platform.machine()} CPU, {len(os.sched_getaffinity(0))} cores, OMP_NUM_THREADS=1', flush=True)
    costs = driver_costs(given.tasks)
    paper(costs, scaling(given.blocks, given.block_size, given.rounds))


if __name__ == '__main__':
    main()
