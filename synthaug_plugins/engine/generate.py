"""Generate a store from a recipe, go on after a kill, repair what was damaged."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pluggy

from synthaug_plugins import __version__
from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.block_job import BlockDone, BlockJob, InWorker
from synthaug_plugins.engine.progress import GenerationProgress, say_to_user
from synthaug_plugins.engine.recipe import Run, check_sources, complete, prepare
from synthaug_plugins.errors import QuotaShortfall, Stopped, StoreError, SynthAugError
from synthaug_plugins.executors.base import Executor
from synthaug_plugins.executors.local import Local
from synthaug_plugins.executors.torchrun import Torchrun
from synthaug_plugins.store.cost import RunCost
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import Fault, discard, verify

_CLASSES_SAID = 12
"""Classes that fell short and are named in one message."""
_KINDS_SAID = 3
"""Kinds of devices that are named in `cost.json`."""


def made_by(run: Run, device: str, command: str | None = None) -> dict[str, Any]:
    """Provenance for store.json: what the fingerprint does not decide but a reader wants to know. Holds no token; of the user what folders are called.

    Args:
        device: as `Executor.describe` has it.
        command: shell command that makes the store; None where it was no command of its own.
    """
    packages = ('torch', 'diffusers', 'transformers', 'open_clip_torch', 'numpy', 'pillow')
    return {
        'synthaug_plugins': __version__,
        'recipe': run.recipe,
        'model': run.plan.recipe['generator'].get('model'),
        'device': device,
        'versions': {'python': platform.python_version(), **{p: metadata.version(p) for p in packages}},
        'created': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        **({} if command is None else {'command': command}),
    }


def generate(
    recipe: Mapping[str, Any],
    out: str | Path,
    device: str = 'auto',
    hook: pluggy.HookRelay | None = None,
    quiet: bool = False,
    executor: Executor | None = None,
    in_worker: InWorker | None = None,
    command: str | None = None,
) -> Store:
    """Make every image of a complete recipe into the store `out`; blocks that are already there stay as they are.

    Args:
        recipe: as `engine.recipe.load_recipe` returns it.
        out: the store's folder or address; new, empty, or a store of the same recipe.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...; where there is no executor.
        hook: the plugin manager's hooks (`get_plugin_manager().hook`), or None to run without plugins.
        quiet: no progress on standard error.
        executor: has the blocks made (see `executors.make_executor`); default: this process makes them, on one device.
        in_worker: what its workers do first, see `InWorker` (the command line's is `plugins.hooks_of_process`).
        command: shell command that does this, for the store's card and its report.

    Returns: the finished store. In a rank of torchrun that does not lead: the store, when no block is left that this rank could make.

    Raises:
        RecipeError, DataError, ModelError: refused before any weights load.
        StoreError: `out` is not ours, was made by another recipe, is being written by another process, or the disk is full.
        ExecutorError: workers were lost again and again.
        QuotaShortfall: everything was tried, and a class has fewer accepted images than asked for.
        Stopped: Ctrl-C or a signal; what is published stays.
    """
    with _stopped(out):
        if isinstance(executor, Torchrun) and not executor.leads:
            executor.follow(lambda shared: BlockJob.from_shared(shared, in_worker))
            return Store.open(out)
        run = prepare(recipe, say_to_user(quiet))
        executor = executor or Local(str(choose_device(device)), workers=1)
        if not Store.is_one(out):
            check_sources(run)
        store = Store.create(out, run.plan, made_by(run, executor.describe(), command))
        with store.lock('generate', say_to_user(quiet)) as lease:
            _make_missing(run, store, lease, executor, hook, in_worker, quiet)
    _check_quota(store)
    return store


@contextmanager
def _stopped(out: str | Path) -> Iterator[None]:
    """Turn Ctrl-C, and the signals that end as it does, into a refusal that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        how_far = 'nothing is made yet'
        with suppress(SynthAugError):
            store = Store.open(out)
            how_far = f'{len(store.finished())} of {len(store.plan.blocks)} blocks are in {store.folder}'
        raise Stopped(f'Stopped: {how_far}.', 'The same command goes on from there.') from None


def _make_missing(run: Run, store: Store, lease: str, executor: Executor, hook: pluggy.HookRelay | None, in_worker: InWorker | None, quiet: bool) -> None:
    """Have every block made that is not there, under the store's lock."""
    store.clean_partials()
    todo = [block.index for block in store.unfinished()]
    if todo or isinstance(executor, Torchrun):  # its other ranks wait to hear that there is nothing to do
        total = sum(block.target for block in run.plan.blocks)
        done: list[BlockDone] = []
        started = time.monotonic()
        progress = None if quiet else GenerationProgress(total, sum(per_class['kept'] for per_class in store.counts().values()))
        try:
            with progress or nullcontext(), closing(executor.run(BlockJob(run, store, lease, hook, in_worker), todo)) as results:
                for _, one in results:
                    done.append(one)
                    if progress:
                        progress.block_done(one['kept'], one['made'])
        except BaseException:
            with suppress(StoreError, OSError):  # the next run tries again
                store.clean_partials()  # of workers that were killed
            raise
        if done:
            _note_cost(run, store, done, time.monotonic() - started, quiet)
    store.finish()


def _note_cost(run: Run, store: Store, done: Sequence[BlockDone], wall: float, quiet: bool) -> None:
    size, asked = min(one['batch_size'] for one in done), run.recipe['batch_size']
    if size < asked and not quiet:
        print(f'Memory ran out: the batch was lowered from {asked} to {size}. Set batch_size to that next time.', file=sys.stderr)
    flop = [one['network_flop'] for one in done]
    names = sorted({one['device_name'] for one in done})
    store.add_cost(
        RunCost(
            images=sum(one['made'] for one in done),
            seconds=round(sum(one['seconds'] for one in done), 3),
            batch_size=size,
            network_images=sum(one['network_images'] for one in done),
            wall=round(wall, 3),
            device=', '.join(names) if len(names) <= _KINDS_SAID else f'{names[0]} and {len(names) - 1} other kinds',
            devices=len({one['device'] for one in done}),
            workers=len({one['worker'] for one in done}),
            network_tflop=None if None in flop else sum(one for one in flop if one is not None) / 1e12,
        )
    )


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
    with _stopped(folder), store.lock('repair', say_to_user(quiet)) as lease:
        faults = verify(store)
        if not faults:
            return []
        run = prepare(complete(recipe), say_to_user(quiet))  # a key that came later has its default
        if run.plan.fingerprint != store.plan.fingerprint:
            Store.create(folder, run.plan, {})  # refuses, and names what differs
        discard(store, faults)
        _make_missing(run, store, lease, Local(str(choose_device(device)), workers=1), hook, None, quiet)
    _check_quota(store)
    return verify(store)
