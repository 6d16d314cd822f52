"""Models, inspectors, real images and clocks that fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
from harness import ALONE, CLASSES, Bench, How, expect, published
from PIL import Image

from synthaug_plugins.weights import model_folder


def memory(bench: Bench) -> None:
    """The network runs out of memory with more than one image at a time: the batch is halved."""
    out = bench.case() / 'store'
    ended = bench.run(out, inject={'what': 'memory', 'images': 1}).end().finished()
    expect('Set batch_size to that next time' in ended.said, 'it is not said')
    expect(json.loads((out / 'cost.json').read_text())[-1]['batch_size'] == 1, 'the batch size is not noted')
    bench.same(out, bench.whole())


def no_memory(bench: Bench) -> None:
    """Memory does not suffice for a single image; on a larger device the same command goes on."""
    out = bench.case() / 'store'
    bench.run(out, inject={'what': 'memory', 'images': 0}).end().refused(2, 'Memory does not suffice for a single image')
    bench.goes_on(out)


def nan(bench: Bench) -> None:
    """NaN for some images, always the same ones: they are rejected and made up for, also over a kill."""
    inject = {'what': 'nan', 'share': 0.3 / bench.steps}
    whole = bench.whole('nan', inject=inject)
    from synthaug_plugins.store.store import Store

    rejected = [r for r in Store.open(whole).index().to_pylist() if r['verdict'] == 'rejected']
    expect(rejected and all(r['reason'].startswith('not finite') and r['sha256'] is None for r in rejected), 'no image was rejected as not finite')
    out = bench.case() / 'store'
    command = bench.run(out, inject=inject)
    command.wait_until(lambda: published(out) >= bench.rng.randint(1, bench.blocks - 3))
    command.end(signal.SIGKILL)
    bench.goes_on(out, whole=whole, inject=inject)


def all_nan(bench: Bench) -> None:
    """NaN for every image: the run says that no class has its quota, with a status of its own."""
    out = bench.case() / 'store'
    inject = {'what': 'nan', 'share': 1.0}
    bench.run(out, inject=inject).end().refused(3, 'quota was not met', 'not finite', 'Not one image was accepted')
    bench.goes_on(bench.case() / 'store')  # into a new folder, as it says


def hang(bench: Bench, how: How) -> None:
    """The network of one worker never answers: the worker is killed and replaced after --stall-timeout."""
    out = bench.case() / 'store'
    inject = {'what': 'hang', 'call': bench.rng.randint(2, 4 * bench.steps), 'once': str(out.parent / 'happened')}
    ended = bench.run(out, how, inject, more=('--stall-timeout', '40')).end()
    expect((out.parent / 'happened').exists(), f'nothing hung; it ended with status {ended.status}: {ended.sentence}')
    if how.launcher:  # torchrun ends all ranks with the one that hangs
        expect(ended.status != 0, 'it ended well')
        bench.goes_on(out, how)
    else:
        ended.finished()
        bench.same(out, bench.whole())


def inspector(bench: Bench) -> None:
    """An inspector raises something of its own: the run ends with its trace, and keeps what is finished."""
    out = bench.case() / 'store'
    inject = {'what': 'inspector', 'call': bench.rng.randint(1, 2 * bench.blocks), 'once': str(out.parent / 'happened')}
    ended = bench.run(out, inject=inject).end()
    expect(ended.status == 1, f'status {ended.status}')
    expect('an inspector with a mistake in it' in ended.sentence, f'it ends with {ended.sentence!r}')
    bench.goes_on(out)


def clock(bench: Bench, how: How = ALONE) -> None:
    """The wall clock goes back by a day in the middle of a run that is then killed, and is still wrong for the one that goes on."""
    out = bench.case() / 'store'
    command = bench.run(out, how, {'what': 'clock', 'after': 0.5, 'back': 86400})
    command.wait_until(lambda: published(out) >= bench.rng.randint(1, bench.blocks - 3))
    command.end(signal.SIGKILL)
    command.gone()
    bench.run(out, how, {'what': 'clock', 'after': 0, 'back': 7 * 86400}).end().finished()
    bench.same(out, bench.whole())


def weights(bench: Bench, what: str) -> None:
    """Weights that are missing, cut or of other shapes when a run goes on: refused before anything is touched; put back, it goes on."""
    case = bench.case()
    model = case / 'model'
    shutil.copytree(model_folder('embedded:digits_edm'), model)
    out, whole = case / 'store', bench.whole('own model', **{'generator.model': str(_model_for_whole(bench))})
    option = {'generator.model': str(model)}
    command = bench.run(out, **option)
    command.wait_until(lambda: published(out) >= 2)
    command.end(signal.SIGKILL)
    file = model / 'model.safetensors'
    good, before = file.read_bytes(), {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    if what == 'missing':
        file.unlink()
    elif what == 'cut':
        file.write_bytes(good[: bench.rng.randrange(len(good))])
    else:
        file.write_bytes(_other_shape(good, bench.rng.random()))
    bench.run(out, **option).end().refused(2, 'model|weights|safetensors')
    expect({p: p.read_bytes() for p in out.rglob('*') if p.is_file()} == before, 'the refused command changed the store')
    file.write_bytes(good)
    bench.goes_on(out, whole=whole, **option)


def _model_for_whole(bench: Bench) -> Path:
    """The same weights in a folder that stays."""
    model = bench.folder / 'model'
    if not model.exists():
        shutil.copytree(model_folder('embedded:digits_edm'), model)
    return model


def _other_shape(data: bytes, draw: float) -> bytes:
    """Weights of which one tensor lacks a row."""
    from safetensors.numpy import load, save

    tensors = load(data)
    names = sorted(name for name, value in tensors.items() if value.ndim and len(value) > 1)
    name = names[int(draw * len(names))]
    tensors[name] = np.ascontiguousarray(tensors[name][:-1])
    return save(tensors)


def sources(bench: Bench, when: str) -> None:
    """A real image that is cut short before the run, or vanishes in the middle of it: named; put back, the same command goes on."""
    case = bench.case()
    options = {'generator.model': 'embedded:digits_edm', 'classes': CLASSES}
    data = _photos(bench)
    how = {'recipe': 'digits_real_guidance', 'more': ('--data', str(data)), **options}
    whole, out = bench.whole('sources', **how), case / 'store'
    victim = bench.rng.choice(sorted(data.rglob('*.png')))
    good = victim.read_bytes()
    try:
        if when == 'before':
            victim.write_bytes(good[: len(good) // 2])
            bench.run(out, **how).end().refused(2, victim.name)
            expect(not out.exists(), 'a store was begun')
        else:
            command = bench.run(out, **how)
            command.wait_until(lambda: published(out) >= 1)
            os.kill(command.pid, signal.SIGSTOP)
            made = published(out)
            victim.unlink()
            os.kill(command.pid, signal.SIGCONT)
            ended = command.end()
            if ended.status:  # else all that needs it was made
                ended.refused(2, victim.name)
                expect(published(out) >= made, 'finished blocks are gone')
                bench.run(out, **how).end().refused(2)  # still not there
    finally:
        victim.write_bytes(good)
    bench.goes_on(out, whole=whole, **how)


def _photos(bench: Bench) -> Path:
    """A folder of real images, twelve of each class."""
    data = bench.folder / 'photos'
    if not data.exists():
        draw = np.random.default_rng(0)
        for name in CLASSES:
            (data / name).mkdir(parents=True)
            for i in range(12):
                Image.fromarray(draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(data / name / f'{name}-{i:02d}.png')
    return data
