"""The blocks of a plan as the job of an executor: what a worker needs to make and publish them, and what it says of each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypedDict

import pluggy

from synthaug_plugins.device import choose_device, device_name
from synthaug_plugins.engine.block import BatchSize, Workers, make_block
from synthaug_plugins.engine.recipe import Run, prepare
from synthaug_plugins.errors import StoreError
from synthaug_plugins.executors.base import signals_wait
from synthaug_plugins.store.card import differences
from synthaug_plugins.store.lease import machine
from synthaug_plugins.store.shard import KEPT
from synthaug_plugins.store.store import Store

if TYPE_CHECKING:
    import torch

InWorker = Callable[[], pluggy.HookRelay | None]
"""Called first in each worker that is a process of its own; picklable. It registers what recipes name, and returns the hooks to call."""


class BlockDone(TypedDict):
    """What a worker says of a block that it has published: plain JSON.

    `kept` and `made`: images accepted and tried. `seconds`: what it took, the loading of the model in a worker's first block included. `network_images` and
    `network_flop`: see `Generator`. `batch_size`: what memory allowed in the end. `worker`: what tells its process from others; `device` and `device_name`: the
    same of the GPU that it computed on, or of the process, and what kind that is.
    """

    kept: int
    made: int
    seconds: float
    network_images: int
    network_flop: float | None
    batch_size: int
    worker: str
    device: str
    device_name: str


class BlockJob:
    """Makes and publishes blocks, whose tasks are their numbers. Travels as `shared()`; only the process that made it has run, store and hooks at hand.

    Args:
        run: the prepared recipe.
        store: which this process holds locked.
        lease: the name of its lock, see `Store.lock`.
        hook: plugins' hooks in this process.
        in_worker: see `InWorker`.
    """

    name = 'block'

    def __init__(self, run: Run, store: Store, lease: str, hook: pluggy.HookRelay | None, in_worker: InWorker | None) -> None:
        self._here: tuple[Run, Store, pluggy.HookRelay | None] | None = (run, store, hook)
        self._shared: dict[str, Any] = {'recipe': run.recipe, 'folder': store.place.absolute, 'lease': lease, 'machine': machine()}
        self._in_worker = in_worker
        self._stack = ExitStack()

    @classmethod
    def from_shared(cls, shared: dict[str, Any], in_worker: InWorker | None) -> BlockJob:
        """The job that `shared()` described."""
        job = cls.__new__(cls)
        job.__setstate__((shared, in_worker))
        return job

    def shared(self) -> dict[str, Any]:
        """All that another process needs to know, as plain JSON."""
        return self._shared

    def __getstate__(self) -> tuple[dict[str, Any], InWorker | None]:
        return self._shared, self._in_worker

    def __setstate__(self, state: tuple[dict[str, Any], InWorker | None]) -> None:
        self._here, self._stack = None, ExitStack()
        self._shared, self._in_worker = state

    def start(self, device: str) -> Callable[[int], BlockDone]:
        """See `Job.start`. In another process it joins the run that holds the store's lock, until that process ends.

        Raises:
            StoreError: the run is over, or recipe, images or model are others on this machine than on the driver's.
            RecipeError, DataError, ModelError: what cannot work, before any weights load.
        """
        run, store, hook = self._here or self._in_other_process()
        torch_device = choose_device(device)
        run.generator.setup(torch_device, run.real_images)
        for inspector in run.inspectors:
            inspector.setup(torch_device, run.plan.classes, run.real_images)
        size, place = BatchSize(run.recipe['batch_size']), _place(torch_device)
        return lambda number: _make(run, store, hook, size, place, number)

    def _in_other_process(self) -> tuple[Run, Store, pluggy.HookRelay | None]:
        hook = self._in_worker() if self._in_worker else None
        store = Store.open(self._shared['folder'])
        self._stack.enter_context(store.join(self._shared['lease']))
        # On the driver's machine images and weights are what they were when it made the plan; elsewhere that has to be seen, and takes reading them all.
        same = bool(machine()) and machine() == self._shared['machine']
        run = prepare(self._shared['recipe'], plan=store.plan if same else None)
        if run.plan.fingerprint != store.plan.fingerprint:
            lines = differences(store.plan, run.plan)
            raise StoreError(
                f'This machine would make other images than the one that began the store {store.place.given!r}; these differ: {"; ".join(lines[:12])}.',
                'Give all machines the same images, models and versions.',
            )
        return run, store, hook


class _Place(TypedDict):
    """Where a worker computes, see `BlockDone`."""

    worker: str
    device: str
    device_name: str


def _place(device: torch.device) -> _Place:
    process = f'{machine()} {os.getpid()}'
    if device.type != 'cuda':
        return {'worker': process, 'device': process, 'device_name': device_name(device.type)}
    import torch

    found = torch.cuda.get_device_properties(device)
    return {'worker': process, 'device': str(getattr(found, 'uuid', process)), 'device_name': found.name}


def _make(run: Run, store: Store, hook: pluggy.HookRelay | None, size: BatchSize, place: _Place, number: int) -> BlockDone:
    block, started, before, work_before = run.plan.blocks[number], time.monotonic(), run.generator.network_images, run.generator.network_flop
    if hook:
        hook.synthaug_before_block(block=block)
    with Workers() as workers:
        rows, images = make_block(run, block, size, workers)
    if hook:
        hook.synthaug_after_block(block=block, rows=rows, images=images)
    with signals_wait():
        store.publish(block, rows, run.recipe['image']['keep_rejected'])
    work = run.generator.network_flop
    return {
        'kept': sum(row.verdict == KEPT for row in rows),
        'made': len(rows),
        'seconds': time.monotonic() - started,
        'network_images': run.generator.network_images - before,
        'network_flop': None if work is None or work_before is None else work - work_before,
        'batch_size': size.value,
        **place,
    }
