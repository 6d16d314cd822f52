"""Disks that are full, fail, or may not be written; files of a store that are cut, bent or removed."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Bench, Lost, expect, published


class NotHere(Exception):
    """A fault that cannot be made on this machine: why."""


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    done = subprocess.run(['mount', *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise NotHere(f'mounting needs root: {done.stderr.strip().splitlines()[-1]}')
    try:
        yield
    finally:
        subprocess.run(['umount', str(folder)], check=True)


def full(bench: Bench) -> None:
    """A tmpfs of a random size that does not hold the store; then it grows, and the same command goes on."""
    folder = bench.case() / 'disk'
    folder.mkdir()
    kib = bench.rng.randrange(16, 14 * bench.blocks, 4)
    with _mounted(folder, '-t', 'tmpfs', '-o', f'size={kib}k', 'tmpfs'):
        out = folder / 'store'
        bench.run(out).end().refused(2, 'the disk is full', 'run the same command again')
        kept = published(out)
        expect(kept < bench.blocks, f'a disk of {kib} KiB holds the whole store')
        subprocess.run(['mount', '-o', 'remount,size=16m', str(folder)], check=True)
        bench.goes_on(out)


def failing(bench: Bench) -> None:
    """EIO from one call of fsync, rename or link, at a random moment."""
    out = bench.case() / 'store'
    # Three calls for the card, then some seven for each block.
    inject = {'what': 'write', 'call': bench.rng.randint(1, 3 + 7 * bench.blocks // 2), 'once': str(out.parent / 'happened')}
    bench.run(out, inject=inject).end().refused(2, 'Input/output error', 'run the same command again')
    bench.goes_on(out)


def read_only(bench: Bench) -> None:
    """A store that becomes read-only (as file systems do after an error) with some blocks made."""
    out = _half_made(bench)
    before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    with _mounted(out, '--bind', str(out)):
        subprocess.run(['mount', '-o', 'remount,ro,bind', str(out)], check=True)
        bench.run(out).end().refused(2, 'Read-only file system')
    expect({p: p.read_bytes() for p in out.rglob('*') if p.is_file()} == before, 'files changed')
    bench.goes_on(out)


def _half_made(bench: Bench) -> Path:
    """A store of a run that was killed after some of its blocks."""
    for _ in range(20):
        out, wanted = bench.case() / 'store', bench.rng.randint(2, bench.blocks - 3)
        command = bench.run(out)
        command.wait_until(lambda out=out, wanted=wanted: published(out) >= wanted)
        command.end(signal.SIGKILL)
        if published(out) < bench.blocks:
            return out
    raise Lost('every run ended before it could be killed')


def cut(bench: Bench) -> None:
    """A shard or index that ends too early, at a random byte."""

    def change(data: bytes) -> bytes:
        return data[: bench.rng.randrange(len(data))]

    _damaged(bench, change)


def bent(bench: Bench) -> None:
    """One flipped bit of a shard or index, at a random place."""

    def change(data: bytes) -> bytes:
        at = bench.rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << bench.rng.randrange(8)]) + data[at + 1 :]

    _damaged(bench, change)


def removed(bench: Bench) -> None:
    """A shard or index that is gone."""
    _damaged(bench, None)


def _damaged(bench: Bench, change: object) -> None:
    whole, out = bench.whole(), bench.case() / 'store'
    shutil.copytree(whole, out)
    kind, number = bench.rng.choice([('shards', '.tar'), ('index', '.parquet')]), bench.rng.randrange(bench.blocks)
    path = out / kind[0] / f'{number:05d}{kind[1]}'
    if callable(change):
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    trained = trainer_sees(out, whole)
    expect(trained != 'other images', f'training reads other images from {path.name}')
    bench.synthaug('verify', out).refused(4, 'synthaug repair')
    untouched = {p: p.stat().st_mtime_ns for p in out.glob('[si][hn]*/0*') if p.stem != path.stem}
    bench.synthaug('repair', out, '--device', 'cpu').finished()
    expect({p: p.stat().st_mtime_ns for p in untouched} == untouched, 'repair touched whole blocks')
    bench.same(out, whole)
    bench.goes_on(out)


def trainer_sees(out: Path, whole: Path) -> str:
    """What a training that reads every image of a damaged store would get: 'a refusal', 'the same images', or 'other images'."""
    from synthaug_plugins import compat

    compat.apply()
    import numpy as np
    from mmcv.transforms import LoadImageFromFile

    from synthaug_plugins.errors import SynthAugError
    from synthaug_plugins.training.store_dataset import StoreDataset

    def images(folder: Path) -> list[np.ndarray]:
        data = StoreDataset(store=str(folder), pipeline=[])
        load = LoadImageFromFile()
        return [load.transform({'img_path': data.get_data_info(i)['img_path']})['img'] for i in range(len(data))]

    expected = images(whole)
    try:
        found = images(out)
    except SynthAugError:
        return 'a refusal'
    except Exception as error:  # the decoder's own, which ends the training too
        return f'a refusal ({type(error).__name__})'
    same = len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    fewer = len(found) < len(expected)
    return 'the same images' if same else 'fewer images' if fewer else 'other images'
