"""What a recipe would make and cost, said before anything is made: `synthaug plan`."""

from __future__ import annotations

import heapq
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.plan_trial import Trial, try_out
from synthaug_plugins.engine.recipe import Run, check_sources, prepare
from synthaug_plugins.prompts.sentence_cache import only_read
from synthaug_plugins.store.address import place_of
from synthaug_plugins.store.place import LocalPlace, Place
from synthaug_plugins.store.plan import Block, Request
from synthaug_plugins.store.store import Store

DRIVER_S = 0.002
"""Seconds that the driver of several workers spends on a block: more than any executor's driver needs (`python tools/benchmarks/bench_executors.py`)."""
_CLASSES_SAID, _REQUESTS_SAID = 12, 5
_WIDTH = 80


@dataclass(frozen=True)
class RunPlan:
    """A recipe's plan with what it would cost.

    Attributes:
        run: the checked recipe.
        todo: blocks that are not made yet, all of them for a new store.
        first: the first request of some classes.
        unwritten: files of sentences that `generate` will have a language model write first.
        trial: what a few images took; None where none was wanted, or nothing is left to make.
        device: where they were made, in words.
        out: the store that was named.
        workers: processes that share the blocks, each with a device like the trial's.
    """

    run: Run
    todo: Sequence[Block]
    first: Sequence[Request]
    unwritten: Sequence[str]
    trial: Trial | None
    device: str
    out: Place | None
    workers: int

    def seconds(self, workers: int) -> float | None:
        """Time for the blocks that are left; None without a trial."""
        if self.trial is None:
            return None
        image_s = self.trial.seconds / self.trial.images
        return share_out([image_s * sum(map(self.trial.tries, block.parts)) for block in self.todo], workers, self.trial.load_s)

    def bytes(self) -> float | None:
        """Size of the files that are left to write; None without a trial."""
        if self.trial is None:
            return None
        head, per_row = self.trial.index_bytes
        return sum(head + (self.trial.tar_bytes + per_row) * sum(map(self.trial.tries, block.parts)) for block in self.todo)

    def text(self) -> str:
        """All of it as a table of 80 columns; names of one's own may be longer."""
        return '\n'.join(line for head, lines in self._rows() for line in _row(head, lines))

    def _rows(self) -> list[tuple[str, list[str]]]:
        plan, total = self.run.plan, sum(b.target for b in self.run.plan.blocks)
        rows = [('images', [f'{total:,} of {_count(len(self._counts()), "class", "classes")} in {_count(len(plan.blocks), "block")}{self._sizes()}'])]
        rows.append(('per class', [self._per_class()]))
        if self.out is not None and len(self.todo) < len(plan.blocks):
            left = sum(b.target for b in self.todo)
            rows.append(('left', [f'{left:,} images in {_count(len(self.todo), "block")}; the others are in {self.out.given}']))
        model = (plan.recipe['generator'].get('model') or {}).get('name')
        rows.append(('made by', [f'{self.run.recipe["generator"]["type"].rpartition(".")[2]}{f" with {model}" if model else ""}']))
        rows.append(('requests', [_said(request) for request in self.first]))
        if self.unwritten:
            said = f'are written first, to {", ".join(self.unwritten)}: the prompts above hold plain names instead, and the time below does not include that'
            rows.append(('sentences', [said]))
        return rows + self._costs()

    def _costs(self) -> list[tuple[str, list[str]]]:
        trial = self.trial
        if trial is None:
            return [('estimate', ['none: nothing is left to make' if not self.todo else 'none: no trial was made (--trial 0)'])]
        seconds, size = self.seconds(1), self.bytes()
        assert seconds is not None
        assert size is not None
        what = 'a whole block' if trial.whole_block else f'the first {_count(trial.images, "image")} of a block'
        rate = trial.images / trial.seconds
        rejected = f'; {trial.images - trial.kept} of {trial.images} were rejected' if trial.kept < trial.images else ''
        said = f'{spoken_time(trial.took_s)} on {self.device}, {spoken_time(trial.load_s)} of it to load; {what} at {rate:.3g} images/s{rejected}'
        rows = [('trial', [said])]
        times = [f'about {spoken_time(seconds)}']
        batch = min(self.run.recipe['batch_size'], max(b.target for b in self.run.plan.blocks))
        if trial.images < batch:
            times.append(f'at most, since batches of {batch} were not reached: for a better figure give --trial more seconds')
        if not trial.kept:
            times.append('with all the tries that tries_per_image allows, since no image was accepted')
        if self.workers > 1:
            shared = self.seconds(self.workers)
            assert shared is not None
            share = f'{seconds / shared:.3g} times as fast' + ('; no more workers than blocks have work' if self.workers > len(self.todo) else '')
            times.append(f'{self.workers} workers, each with a device like this: about {spoken_time(shared)} ({share})')
        rows.append(('time', times))
        rows.append(('disk', [self._disk(size)]))
        if trial.device_memory is not None:
            rows.append(('GPU memory', [f'{spoken_bytes(trial.memory)} of {spoken_bytes(trial.device_memory)}, with {self._at_once(trial)}']))
        else:
            rows.append(('memory', [f'{spoken_bytes(trial.memory)} of this process, with {self._at_once(trial)}']))
        return rows

    def _at_once(self, trial: Trial) -> str:
        n = min(trial.batch_size, trial.images)
        lowered = f'; memory ran out with more, so set batch_size={trial.batch_size}' if trial.batch_size < self.run.recipe['batch_size'] else ''
        return f'at most {_count(n, "image")} at a time{lowered}'

    def _disk(self, size: float) -> str:
        said = f'about {spoken_bytes(size)}'
        if self.out is None or not isinstance(self.out, LocalPlace):
            return said
        folder = next(p for p in (self.out.folder.absolute(), *self.out.folder.absolute().parents) if p.is_dir())
        free = shutil.disk_usage(folder).free
        return f'{said}; {"only " if free < size else ""}{spoken_bytes(free)} are free at {self.out.given}'

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for part in self.run.plan.parts:
            counts[part.class_name] = counts.get(part.class_name, 0) + part.target
        return counts

    def _per_class(self) -> str:
        counts = self._counts()
        none = len(self.run.plan.classes) - len(counts)
        if len(counts) > _CLASSES_SAID:
            low, high = min(counts.values()), max(counts.values())
            said = f'{low:,}' if low == high else f'{low:,} to {high:,}'
        else:
            said = ', '.join(f'{name} {n:,}' for name, n in counts.items())
        return f'{said}; none of {_count(none, "further class", "further classes")}' if none else said

    def _sizes(self) -> str:
        sizes = [b.target for b in self.run.plan.blocks]
        return f' of {sizes[0]:,}' if len(set(sizes)) == 1 else f' of {min(sizes):,} to {max(sizes):,}'


def plan_run(
    recipe: Mapping[str, Any],
    device: str = 'auto',
    trial_s: float = 20.0,
    out: str | Path | None = None,
    workers: int = 1,
    say: Callable[[str], None] = lambda sentence: None,
) -> RunPlan:
    """Check a complete recipe as `generate` does, count what it makes, and time a few images. Nothing is written.

    Only what a model hub has to send goes into the hub's own cache.

    Args:
        recipe: as `engine.recipe.load_recipe` returns it.
        device: of the trial.
        trial_s: see `plan_trial.try_out`; 0: no trial, and no weights load.
        out: the store that is meant: what is in it already is not counted again.
        workers: processes that share the blocks.
        say: called with one sentence when a user should know something.

    Raises:
        RecipeError, DataError, ModelError: what `generate` would refuse.
        StoreError: `out` is no store, or one of another recipe.
    """
    with only_read() as unwritten:
        run = prepare(recipe, say)
        # Without its sentences a plan has not the fingerprint that its store will have.
        store = Store.started(out, run.plan) if out is not None and not unwritten else None
        if store is None:
            check_sources(run)
        todo = run.plan.blocks if store is None else store.unfinished()
        trial, spoken = None, ''
        if trial_s > 0 and todo:
            where = choose_device(device)
            spoken = f'this {where.type.upper()}'
            trial = try_out(run, where, trial_s, say)
    parts = {part.label: part for part in reversed(run.plan.parts)}  # the first of each class
    first = [next(iter(run.generator.requests(parts[label], run.recipe['seed']))) for label in sorted(parts)[:_REQUESTS_SAID]]
    return RunPlan(run, todo, first, list(unwritten), trial, spoken, None if out is None else place_of(out), workers)


def share_out(seconds: Sequence[float], workers: int, load_s: float, driver_s: float = DRIVER_S) -> float:
    """When the last of several workers ends: each loads the model, then takes the next block whenever it has finished one.

    Args:
        seconds: that the blocks take, in the order in which they are handed out.
        load_s: before a worker's first block.
        driver_s: that handing out a block and hearing of its end take; only one worker can be served at a time. A single worker has no driver.

    >>> share_out([10, 10, 10], 1, 2), share_out([10, 10, 10], 2, 2, 0), share_out([10, 10, 10], 8, 2, 0)
    (32, 22, 12)
    """
    if workers == 1 or not seconds:
        return sum(seconds) + (load_s if seconds else 0)
    free = [load_s] * min(workers, len(seconds))
    served = 0.0
    for block_s in seconds:
        served = max(served, heapq.heappop(free)) + driver_s
        heapq.heappush(free, served + block_s)
    return max(free)


def spoken_time(seconds: float) -> str:
    """Seconds for a reader.

    >>> spoken_time(0.042), spoken_time(71), spoken_time(7300), spoken_time(200_000)
    ('0.042 s', '1 min 11 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 59.5:
        return f'{seconds:.2g} s' if seconds < 9.5 else f'{seconds:.0f} s'
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f'{days} d {hours} h'
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {left} s'


def spoken_bytes(size: float) -> str:
    """Bytes for a reader, in powers of 1000.

    >>> spoken_bytes(12), spoken_bytes(640_000), spoken_bytes(12_340_000_000)
    ('12 B', '640 kB', '12.3 GB')
    """
    units = ['TB', 'GB', 'MB', 'kB', 'B']
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop()
    return f'{size:.3g} {units[-1]}'


def _count(n: int, one: str, more: str = '') -> str:
    """`1 image`, `2 images`, `1,000 images`."""
    return f'{n:,} {one if n == 1 else more or one + "s"}'


def _said(request: Request) -> str:
    """A request as the generator is told it."""
    told = [f'from {request.source}'] if request.source is not None else []
    told += [f'"{request.prompt}"'] if request.prompt is not None else []
    told += [f'{key}={value:.4g}' if isinstance(value, float) else f'{key}={value}' for key, value in request.params.items()]
    return f'{request.class_name}: {", ".join(told) if told else "from noise"}'


def _row(head: str, lines: Sequence[str]) -> list[str]:
    """A row of the table: its head, and beside it lines that are wrapped."""
    indent = 12
    found = [part for line in lines for part in textwrap.wrap(line, _WIDTH - indent, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False)]
    return [f'{head if i == 0 else "":{indent}}{line}' for i, line in enumerate(found or ['-'])]
