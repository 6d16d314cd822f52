"""Processes that are killed: the one that the user started, or one that works for it, at a random moment."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from harness import ALONE, TORCHRUN, Bench, Command, How, Lost, expect, published


def driver(bench: Bench, how: How = ALONE) -> None:
    """SIGKILL to the process that the user started; every fifth time before there is a store, else while blocks are made."""
    to_store, _ = bench.times(how)
    for _ in range(20):
        out = bench.case() / 'store'
        command = bench.run(out, how)
        if bench.rng.random() < 0.2:
            time.sleep(bench.rng.uniform(0, to_store))
        else:
            _some_time(bench, how, out, command)
        if command.end(signal.SIGKILL).status == -signal.SIGKILL:
            break
        shutil.rmtree(out.parent)  # it had ended before: this moment hit nothing, and counts for nothing
    else:
        raise Lost('no moment hit the run')
    command.gone()
    _keeps(bench, out, how)


def worker(bench: Bench, how: How) -> None:
    """SIGKILL to one of the processes that make images. The run puts another in its place, or (torchrun) ends and is begun again."""
    for _ in range(20):
        out = bench.case() / 'store'
        command = bench.run(out, how)
        command.wait_until(lambda out=out, command=command: (out / 'store.json').exists() and command.workers())
        _some_time(bench, how, out, command)
        workers = command.workers()
        if workers and published(out) < bench.blocks:
            try:
                os.kill(bench.rng.choice(workers), signal.SIGKILL)
                break
            except ProcessLookupError:
                pass
        command.end()
        shutil.rmtree(out.parent)
    else:
        raise Lost('no moment hit a worker')
    ended = command.end()
    command.gone()
    if how is not TORCHRUN:
        ended.finished()
        bench.same(out, bench.whole())
    _keeps(bench, out, how)


def asked_to_stop(bench: Bench, how: How = ALONE) -> None:
    """SIGTERM, as cluster schedulers send it: ends within one batch, publishes nothing half, says how to go on."""
    number = bench.rng.choice([signal.SIGTERM, signal.SIGINT])
    for _ in range(20):
        out = bench.case() / 'store'
        command = bench.run(out, how)
        _some_time(bench, how, out, command)
        sent = time.monotonic()
        ended = command.end(number)
        if ended.status != 0:
            break
        shutil.rmtree(out.parent)
    else:
        raise Lost('no moment hit the run')
    command.gone()
    took = time.monotonic() - sent
    if how is not TORCHRUN and published(out) < bench.blocks:  # torchrun's own status and words come first; with all blocks made there is nothing to say
        ended.refused(128 + number, 'The same command goes on')
    expect(took < 15, f'it took {took:.0f} s to end')
    left = [p.name for p in out.rglob('.partial*')]
    expect(not left, f'temporary files stay: {left[:1]}')
    _keeps(bench, out, how)


def _some_time(bench: Bench, how: How, out: Path, command: Command) -> None:
    """Wait until a random moment of a run that has begun its store: a random block, and a random part of the time that a block takes."""
    _, to_end = bench.times(how)
    number = bench.rng.randrange(bench.blocks)
    part = bench.rng.uniform(0, to_end / bench.blocks if number else to_end / 2)  # before the first, workers load the model
    if command.wait_until(lambda: (out / 'store.json').exists() and published(out) >= number):
        time.sleep(part)


def _keeps(bench: Bench, out: Path, how: How) -> None:
    """Expect that the same command makes what is missing, and nothing that was there again."""
    before = {p: p.stat().st_mtime_ns for p in (out / 'index').glob('0*.parquet')}
    bench.goes_on(out, how)
    expect({p: p.stat().st_mtime_ns for p in before} == before, 'blocks that were published were made again')
