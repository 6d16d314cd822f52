"""Generate a store from a recipe, go on after a kill, repair what was damaged."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import pluggy
import torch

from synthaug_plugins import __version__
from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.block import BatchSize, Workers, make_block
from synthaug_plugins.engine.progress import GenerationProgress
from synthaug_plugins.engine.recipe import Run, check_sources, complete, prepare
from synthaug_plugins.errors import QuotaShortfall, Stopped, StoreError
from synthaug_plugins.store.plan import Block
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import Fault, discard, verify

_CLASSES_SAID = 12
"""Classes that fell short and are named in one message."""


def made_by(run: Run, device: torch.device) -> dict[str, Any]:
    """Provenance for store.json: what the fingerprint does not decide but a reader wants to know. Holds no token and no user name."""
    packages = ('torch', 'diffusers', 'transformers', 'open_clip_torch', 'numpy', 'pillow')
    return {
        'synthaug_plugins': __version__,
        'recipe': run.recipe,
        'model': run.plan.recipe['generator'].get('model'),
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine() + ' CPU',
        'versions': {'python': platform.python_version(), **{p: metadata.version(p) for p in packages}},
        'created': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    }


def generate(recipe: Mapping[str, Any], out: str | Path, device: str = 'auto', hook: pluggy.HookRelay | None = None, quiet: bool = False) -> Store:
    """Make every image of a complete recipe into the store `out`; blocks that are already there stay as they are.

    Args:
        recipe: as `engine.recipe.load_recipe` returns it.
        out: the store's folder or address; new, empty, or a store of the same recipe.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        hook: the plugin manager's hooks (`get_plugin_manager().hook`), or None to run without plugins.
        quiet: no progress on standard error.

    Returns: the finished store.

    Raises:
        RecipeError, DataError, ModelError: refused before any weights load.
        StoreError: `out` is not ours, was made by another recipe, is being written by another process, or the disk is full.
        QuotaShortfall: everything was tried, and a class has fewer accepted images than asked for.
    """
    return _fill(prepare(recipe, _say(quiet)), out, choose_device(device), hook, quiet)


def _say(quiet: bool) -> Callable[[str], None]:
    """Where sentences for the user go: standard error, or nowhere."""
    return lambda sentence: None if quiet else print(sentence, file=sys.stderr)


def _fill(run: Run, out: str | Path, device: torch.device, hook: pluggy.HookRelay | None, quiet: bool) -> Store:
    if not Store.is_one(out):
        check_sources(run)
    store = Store.create(out, run.plan, made_by(run, device))
    with store.lock():
        store.clean_partials()
        todo = store.unfinished()
        if todo:
            run.generator.setup(device, run.real_images)
            for inspector in run.inspectors:
                inspector.setup(device, run.plan.classes, run.real_images)
            try:
                _work(run, store, todo, hook, quiet)
            except KeyboardInterrupt:
                raise Stopped(
                    f'Stopped: {len(store.finished())} of {len(run.plan.blocks)} blocks are in {store.folder}.', 'The same command goes on from there.'
                ) from None
    _check_quota(store)
    return store


def _work(run: Run, store: Store, todo: Sequence[Block], hook: pluggy.HookRelay | None, quiet: bool) -> None:
    total = sum(block.target for block in run.plan.blocks)
    done = sum(per_class['kept'] for per_class in store.counts().values())
    size = BatchSize(run.recipe['batch_size'])
    started, made = time.monotonic(), 0
    progress = None if quiet else GenerationProgress(total, done)
    with Workers() as workers, progress or nullcontext():
        for block in todo:
            if hook:
                hook.synthaug_before_block(block=block)
            rows, images = make_block(run, block, size, workers)
            if hook:
                hook.synthaug_after_block(block=block, rows=rows, images=images)
            store.publish(block, rows, run.recipe['image']['keep_rejected'])
            made += len(rows)
            if progress:
                progress.block_done(sum(row.verdict == 'kept' for row in rows), len(rows))
    if size.value < run.recipe['batch_size'] and not quiet:
        print(f'Memory ran out: the batch was lowered from {run.recipe["batch_size"]} to {size.value}. Set batch_size to that next time.', file=sys.stderr)
    store.add_cost(images=made, seconds=time.monotonic() - started, batch_size=size.value, network_images=run.generator.network_images)


def _check_quota(store: Store) -> None:
    """Refuse (QuotaShortfall) to call a store complete that lacks images: which classes, how many tries, why they were rejected."""
    counts = store.counts()
    short = {name: c for name, c in counts.items() if c['kept'] < c['target']}
    if not short:
        return
    said = [f'{name}: {c["kept"]} of {c["target"]} after {c["kept"] + c["rejected"]} tries (rejected: {_reasons(c)})' for name, c in short.items()]
    more = f'; and {len(said) - _CLASSES_SAID} more classes' if len(said) > _CLASSES_SAID else ''
    whose = f'{len(short)} of {len(counts)} classes' if len(short) > 1 else 'one class'
    nothing = ' Not one image was accepted.' if not any(c['kept'] for c in counts.values()) else ''
    raise QuotaShortfall(
        f'The quota was not met for {whose} in {store.folder}.{nothing} {"; ".join(said[:_CLASSES_SAID])}{more}.',
        'Raise tries_per_image or loosen an inspector, into a new folder.',
    )


def _reasons(counts: Mapping[str, Any]) -> str:
    return ', '.join(f'{n} {reason}' for reason, n in counts['reasons'].items())


def repair(folder: str | Path, device: str = 'auto', hook: pluggy.HookRelay | None = None, quiet: bool = False) -> list[Fault]:
    """Redo the damaged and missing blocks of a store, and nothing else.

    Files that are not part of the store, and damaged score files, are left alone: they cannot be made again.

    The recipe comes from the store's own JSON: registered names and plain data, no code.

    Returns: the faults that remain.

    Raises:
        StoreError: not a store, or a fault that generation cannot mend.
        RecipeError, DataError, ModelError: model or source images are no longer what the store was made from.
    """
    store = Store.open(folder)
    recipe = store.made_by.get('recipe')
    if recipe is None:
        raise StoreError(f'{str(folder)!r} does not hold the recipe that made it.', 'Generate it again from the recipe file.')
    with store.lock():
        faults = verify(store)
        if not faults:
            return []
        run = prepare(complete(recipe), _say(quiet))  # a key that came later has its default
        if run.plan.fingerprint != store.plan.fingerprint:
            Store.create(folder, run.plan, {})  # refuses, and names what differs
        discard(store, faults)
    return verify(_fill(run, folder, choose_device(device), hook, quiet))
