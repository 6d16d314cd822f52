"""The trial of a plan: a few images of its largest block, made for their time, size and memory, and thrown away."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from synthaug_plugins.engine.block import BatchSize, Workers, make_block
from synthaug_plugins.engine.recipe import Run
from synthaug_plugins.store.plan import Block, Part
from synthaug_plugins.store.shard import KEPT, Row, block_files


@dataclass(frozen=True)
class Trial:
    """What a few images took.

    Attributes:
        images: that the estimate rests on: those of the last and largest of the goes.
        whole_block: whether they were a whole block, with the batches that the run will have.
        kept: of them, accepted by all inspectors.
        seconds: that they took, from request to encoded file.
        load_s: before the first image: weights from disk to device, and what a device does once.
        took_s: the whole trial.
        batch_size: images per network call at its end; lower than the recipe's where memory ran out.
        tar_bytes: of a block's shard, per try.
        index_bytes: of a block's index: of its head and end, and per try.
        memory: bytes at the peak: what torch took of the CUDA device, else resident in this process.
        device_memory: bytes that the CUDA device has; None on a CPU.
    """

    images: int
    whole_block: bool
    kept: int
    seconds: float
    load_s: float
    took_s: float
    batch_size: int
    tar_bytes: float
    index_bytes: tuple[float, float]
    memory: int
    device_memory: int | None

    def tries(self, part: Part) -> float:
        """Images that will be made for a part if the share of accepted ones stays that of the trial."""
        return min(part.max_tries, part.target * self.images / self.kept) if self.kept else part.max_tries


def try_out(run: Run, device: torch.device, seconds: float, say: Callable[[str], None]) -> Trial:
    """Make the first images of the plan's largest block, in memory: one, uncounted, to load the model, then 1, 2, 4, ... of them.

    It ends with the whole block, or where twice as many would probably take longer than `seconds` altogether, loading aside. So it takes about that
    long, and but for the second image no longer, whatever model and device.

    Raises:
        ModelError, DataError: what would end the run too.
    """
    block = max(run.plan.blocks, key=lambda b: b.target)
    size = BatchSize(run.recipe['batch_size'])
    say(f'Trial: the first images of a block are made for about {seconds:g} s, once the model is loaded, and thrown away; --trial 0 leaves it out.')
    started = time.monotonic()
    run.generator.setup(device, run.real_images)
    for inspector in run.inspectors:
        inspector.setup(device, run.plan.classes, run.real_images)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    with Workers() as workers:

        def make(images: int) -> tuple[list[Row], float]:
            since = time.monotonic()
            rows, _ = make_block(run, beginning(block, images), size, workers)
            return rows, time.monotonic() - since

        make(1)
        loaded = time.monotonic()
        rows, took = make(1)
        load_s = max(0.0, loaded - started - took)  # the first image is no part of it
        while len(rows) < block.target and time.monotonic() - loaded + 2 * took <= seconds:
            rows, took = make(min(2 * len(rows), block.target))
    ended = time.monotonic()
    tar_bytes, index_bytes = _sizes(block, rows, run.recipe['image']['keep_rejected'])
    memory, device_memory = _memory(device)
    return Trial(
        images=len(rows),
        whole_block=len(rows) == block.target,
        kept=sum(row.verdict == KEPT for row in rows),
        seconds=took,
        load_s=load_s,
        took_s=ended - started,
        batch_size=size.value,
        tar_bytes=tar_bytes,
        index_bytes=index_bytes,
        memory=memory,
        device_memory=device_memory,
    )


def beginning(block: Block, images: int) -> Block:
    """The first so many requests of a block, in which none that is rejected is made up for."""
    parts: list[Part] = []
    for part in block.parts:
        if n := min(images, part.target):
            parts.append(replace(part, target=n, max_tries=n))
            images -= n
    return Block(block.index, tuple(parts))


def _sizes(block: Block, rows: list[Row], keep_rejected: bool) -> tuple[float, tuple[float, float]]:
    """See `Trial.tar_bytes` and `.index_bytes`."""
    chunks, index = block_files(block, rows, keep_rejected)
    if len(rows) == 1:
        return sum(map(len, chunks)), (len(index), 0.0)
    _, of_one = block_files(block, rows[:1], keep_rejected)
    per_row = (len(index) - len(of_one)) / (len(rows) - 1)
    return sum(map(len, chunks)) / len(rows), (len(of_one) - per_row, per_row)


def _memory(device: torch.device) -> tuple[int, int | None]:
    """See `Trial.memory` and `.device_memory`."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, None
