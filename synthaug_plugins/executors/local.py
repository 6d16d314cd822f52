"""The executor `local`: this process, or several on this machine, one for each GPU."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter, deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from synthaug_plugins.device import choose_device, device_name
from synthaug_plugins.executors.base import STALL_TIMEOUT_S, Deaths, Job, check_workers, how_it_ended, omp_threads, packed, signals_wait
from synthaug_plugins.executors.worker import DONE, FAILED, READY, serve

START_METHOD = 'spawn'
"""After a thread or CUDA has started, no forked process can be trusted."""

_GRACE_S = 10.0
"""A worker that was told to end and has not is killed after so many seconds. Nothing half done is seen of it: publishing is atomic."""
_LOOK_EVERY_S = 1.0


class Local:
    """Workers on this machine. One works in this process; several are processes of their own, which end with it, however it ends.

    A worker that dies is replaced and its task done again; so is one that hangs.

    Args:
        device: `auto` and `cuda` are all visible GPUs; `cpu`, `cuda:1`, ...: this one for all workers.
        workers: how many; None is one for each GPU, or one.
        stall_timeout: seconds without a sign of life after which a worker is killed, see `STALL_TIMEOUT_S`. When it is given, a single worker is a process of
            its own too: nobody can watch itself.

    Raises:
        RecipeError: a number out of range, or a device that this machine has not.
    """

    def __init__(self, device: str = 'auto', workers: int | None = None, stall_timeout: float | None = None) -> None:
        check_workers(workers, stall_timeout)
        self.devices = visible_devices(device)
        self.workers = workers or len(self.devices)
        self.stall_timeout = STALL_TIMEOUT_S if stall_timeout is None else stall_timeout
        self.in_process = self.workers == 1 and stall_timeout is None

    def describe(self) -> str:
        """See `Executor.describe`."""
        name = device_name(self.devices[0])
        return name if self.workers == 1 else f'{self.workers} of {name}'

    def run(self, job: Job, tasks: Sequence[Hashable]) -> Generator[tuple[Any, Any], None, None]:
        """See `Executor.run`."""
        if self.in_process:
            work = job.start(self.devices[0])
            for task in tasks:
                yield task, work(task)
            return
        if tasks:
            with _Crew(self, job, tasks) as crew:
                yield from crew.results()


def visible_devices(device: str) -> list[str]:
    """Names of the devices that `device` means: every visible GPU for `auto` and `cuda`, else itself. Starts no CUDA for GPUs that workers will use.

    Raises:
        RecipeError: a device that torch does not know or this machine does not have.
    """
    import torch

    if device in ('auto', 'cuda') and torch.cuda.is_available() and (count := torch.cuda.device_count()) > 1:
        return [f'cuda:{i}' for i in range(count)]
    return [str(choose_device(device))]


@dataclass
class _Worker:
    """A worker process as its driver sees it.

    Attributes:
        device: that it was started for.
        heard: when it last gave a sign of life, on the monotonic clock, which nobody sets.
        ready: it has started its job.
        place: of the task that it is at.
        gone: its end of the pipe is closed.
    """

    process: BaseProcess
    pipe: Connection
    device: str
    heard: float
    ready: bool = False
    place: int | None = None
    gone: bool = False


class _Crew:
    """The workers of one call of `run`."""

    def __init__(self, executor: Local, job: Job, tasks: Sequence[Hashable]) -> None:
        self._executor, self._tasks = executor, tasks
        self._job = packed(job, 'Use --workers 1.')
        self._deaths = Deaths(job)
        self._waiting = deque(range(len(tasks)))
        self._left = len(tasks)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End all workers: those of a finished run by themselves, others in the middle of their work."""
        deadline = time.monotonic() + _GRACE_S
        if self._left == 0:
            for worker in self._workers:
                _send(worker, None)
        try:
            while time.monotonic() < deadline and (alive := [w.process for w in self._workers if w.process.is_alive()]):
                if self._left:
                    for process in alive:
                        process.terminate()  # again and again: one that has just begun may not have heard the first
                wait([process.sentinel for process in alive], 0.2)
        finally:  # a second Ctrl-C does not wait
            for worker in self._workers:
                _kill(worker)

    def results(self) -> Iterator[tuple[Hashable, Any]]:
        """(task, result) as tasks are finished."""
        while self._left:
            self._staff()
            self._hand_out()
            wait([end for w in self._workers for end in (w.pipe, w.process.sentinel)], min(_LOOK_EVERY_S, self._executor.stall_timeout / 4))
            for worker in list(self._workers):
                yield from self._hear(worker)
            for worker in list(self._workers):
                self._check(worker)

    def _staff(self) -> None:
        """Start workers until there are as many as asked for, or as there are tasks."""
        while len(self._workers) < min(self._executor.workers, self._left):
            taken = Counter(worker.device for worker in self._workers)
            device = min(self._executor.devices, key=lambda name: taken[name])
            ours, theirs = Pipe()
            # Not daemonic: what a generator or inspector does may start processes of its own.
            process = multiprocessing.get_context(START_METHOD).Process(  # type: ignore[attr-defined]
                target=serve, args=(theirs, self._job, device, os.getpid())
            )
            # On a CPU one thread each, so that sums have one order whatever the number of workers; beside a GPU a share of the cores.
            threads = 1 if device == 'cpu' else max(1, (os.cpu_count() or 1) // self._executor.workers)
            with signals_wait(), nullcontext() if self._executor.workers == 1 else omp_threads(threads):
                process.start()
                self._workers.append(_Worker(process, ours, device, time.monotonic()))
            theirs.close()  # the worker's own copy alone keeps the pipe open, so that its end is seen

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.place is None and self._waiting:
                worker.place, worker.heard = self._waiting.popleft(), time.monotonic()
                _send(worker, (worker.place, self._tasks[worker.place]))

    def _hear(self, worker: _Worker) -> Iterator[tuple[Hashable, Any]]:
        """Take in all that a worker has said."""
        while (message := _receive(worker)) is not None:
            kind, *rest = message
            worker.heard = time.monotonic()
            if kind == READY:
                worker.ready = True
                self._deaths.started()
            elif kind == FAILED:
                raise rest[0].error()
            elif kind == DONE:
                place, result = rest
                worker.place = None
                self._left -= 1
                self._hand_out()  # before the caller looks at the result: the worker need not wait for that
                yield self._tasks[place], result

    def _check(self, worker: _Worker) -> None:
        """Let go of a worker that is dead or hangs; its task goes to another one, before those that nobody has begun."""
        silent = time.monotonic() - worker.heard
        busy = worker.place is not None or not worker.ready
        if worker.gone or not worker.process.is_alive():
            worker.process.join(_GRACE_S)
            how = how_it_ended(worker.process.exitcode)
        elif busy and silent > self._executor.stall_timeout and not worker.pipe.poll():
            how = f'gave no sign of life for {silent:.0f} s and was killed'
        else:
            return
        _kill(worker)
        self._workers.remove(worker)
        self._deaths.note(None if worker.place is None else self._tasks[worker.place], how)
        if worker.place is not None:
            self._waiting.appendleft(worker.place)


def _receive(worker: _Worker) -> tuple[Any, ...] | None:
    """What a worker has said next; None where it has said no more, or is gone."""
    try:
        return worker.pipe.recv() if worker.pipe.poll() else None
    except (EOFError, ConnectionError):
        worker.gone = True
        return None


def _send(worker: _Worker, message: object) -> None:
    """A worker that is gone hears nothing; that it is gone is seen at the next look."""
    with suppress(OSError):
        worker.pipe.send(message)


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()
