"""The executor `ray`: workers on a Ray cluster, or on one that is started on this machine for the run and stopped after it."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from synthaug_plugins import __version__
from synthaug_plugins.device import choose_device, device_name
from synthaug_plugins.errors import ExecutorError, MissingExtra, RecipeError, first_line
from synthaug_plugins.executors.base import STALL_TIMEOUT_S, Deaths, Job, beating, check_workers, packed
from synthaug_plugins.executors.ray_cluster import connected
from synthaug_plugins.executors.worker import DONE, FAILED, Failure

_LOOK_EVERY_S, _ASK_EVERY_S = 1.0, 5.0
_SAY_WAITING_S, _WAIT_S = 15.0, 1800.0
"""A cluster that has no room gives none after that, or another run holds it."""


class Ray:
    """Workers that a Ray cluster starts, on any of its machines: with a GPU each where the cluster has some, else with a CPU core each.

    Every machine needs this version of this package and the same files under the same paths. A worker that is lost, with its machine or without, is
    replaced and its task done again; so is one that hangs.

    Args:
        address: of a cluster: `auto`, `host:port`, `ray://host:port`. None starts one on this machine, which ends with the run, however that ends.
        workers: how many; None is one for each GPU, or for each CPU core where there is none.
        device: `auto`; `cpu` leaves GPUs alone; `cuda` waits for them.
        stall_timeout: seconds without a sign of life after which a worker is killed, see `STALL_TIMEOUT_S`.

    Raises:
        MissingExtra: Ray is not installed.
        RecipeError: a number out of range, or a device that a cluster cannot give.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, device: str = 'auto', stall_timeout: float | None = None) -> None:
        os.environ.setdefault('RAY_DEDUP_LOGS_SKIP_REGEX', '.')  # read at the import: else Ray tells standard output of each lost worker, at length
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise MissingExtra('ray', 'ray', '--executor ray') from error
        check_workers(workers, stall_timeout)
        if device not in ('auto', 'cpu', 'cuda'):
            raise RecipeError(f'--device {device} with --executor ray: the cluster says which GPU a worker has.', 'Use auto, cpu or cuda.')
        self.address, self.workers, self.device = address, workers, device
        self.stall_timeout = STALL_TIMEOUT_S if stall_timeout is None else stall_timeout

    def describe(self) -> str:
        """See `Executor.describe`. What the workers of a cluster compute on is not known before they are there."""
        return f'a Ray cluster ({self.device})' if self.address else f'Ray on {device_name(choose_device(self.device))}'

    def run(self, job: Job, tasks: Sequence[Hashable]) -> Generator[tuple[Any, Any], None, None]:
        """See `Executor.run`."""
        if tasks:
            with self.connected(), _Crew(self, job, tasks) as crew:
                yield from crew.results()

    def connected(self) -> AbstractContextManager[None]:
        """A connection to the cluster, see `ray_cluster.connected`."""
        cores = max(len(os.sched_getaffinity(0)), self.workers or 0)
        return connected(self.address, cores, 0 if self.device == 'cpu' else None)


class _Actor:
    """A worker, as Ray runs it. `signs` has a thread of its own, so it answers while `work` computes."""

    def __init__(self) -> None:
        self._signs = 0
        self._work: Callable[[Any], Any] | None = None

    def where(self) -> str:
        """Name of the machine; the answer says that the worker is there."""
        return os.uname().nodename

    def signs(self) -> int:
        """How many signs of life there were."""
        return self._signs

    def start(self, version: str, folder: str, job: bytes, device: str) -> tuple[Any, ...]:
        """Get ready in the driver's working folder, where there is such a folder."""
        if version != __version__:
            what = f'{os.uname().nodename} has synthaug_plugins {__version__}, the machine of the command {version}.'
            return FAILED, Failure(ExecutorError(what, 'Install the same version on all machines.'))
        with suppress(OSError):
            os.chdir(folder)
        return self._guarded(lambda: self._begin(job, device))

    def _begin(self, job: bytes, device: str) -> None:
        self._work = pickle.loads(job).start(device)

    def work(self, task: Any) -> tuple[Any, ...]:
        """Do a task; (DONE, result) or (FAILED, Failure)."""
        assert self._work is not None
        work = self._work
        return self._guarded(lambda: work(task))

    def _guarded(self, call: Callable[[], Any]) -> tuple[Any, ...]:
        def send() -> None:
            self._signs += 1

        try:
            with beating(send):
                return DONE, call()
        except Exception as error:
            return FAILED, Failure(error)


@dataclass
class _Worker:
    """A worker as its driver sees it.

    Attributes:
        actor: Ray's handle.
        place: of the task that it is at.
        there, ready: it runs; it has started its job.
        signs: of life that it gave, and `heard` when it was seen to have given one, on the monotonic clock, which nobody sets.
        asked: when it was last asked for signs.
    """

    actor: Any
    heard: float
    place: int | None = None
    there: bool = False
    ready: bool = False
    signs: int = -1
    asked: float = 0.0


class _Crew:
    """The workers of one call of `run`."""

    def __init__(self, executor: Ray, job: Job, tasks: Sequence[Hashable]) -> None:
        self._executor, self._tasks = executor, tasks
        self._job = packed(job, 'Use --executor local.')
        self._deaths = Deaths(job)
        self._waiting = deque(range(len(tasks)))
        self._left = len(tasks)
        self._workers: list[_Worker] = []
        self._asked: dict[Any, tuple[_Worker, str]] = {}  # what Ray has been asked for -> of whom, and which answer it will be
        self._began, self._said = time.monotonic(), False
        self._device, self._count = self._share()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End all workers at once. Nothing half done is seen of them: publishing is atomic."""
        for worker in list(self._workers):
            self._drop(worker)

    def _share(self) -> tuple[str, int]:
        """Which kind of device a worker has, and how many workers there are to be."""
        import ray

        e, has = self._executor, ray.cluster_resources()
        device = 'cpu' if e.device == 'cpu' or (e.device == 'auto' and not has.get('GPU')) else 'cuda'
        return device, e.workers or max(1, int(has.get('GPU' if device == 'cuda' else 'CPU', 1)))

    def results(self) -> Iterator[tuple[Hashable, Any]]:
        """(task, result) as tasks are finished."""
        import ray

        while self._left:
            self._staff()
            self._hand_out()
            self._look()
            answered, _ = ray.wait(list(self._asked), timeout=min(_LOOK_EVERY_S, self._executor.stall_timeout / 4))
            for ref in answered:
                yield from self._hear(ref)

    def _staff(self) -> None:
        """Ask for workers until there are as many as there should be, or as there are tasks."""
        import ray

        share: dict[str, Any] = {'num_cpus': 1, 'num_gpus': 1 if self._device == 'cuda' else 0}
        while len(self._workers) < min(self._count, self._left):
            # Lost workers are replaced here, not by Ray: only here is it known how many a task has cost.
            options: dict[str, Any] = {**share, 'max_restarts': 0, 'max_task_retries': 0, 'concurrency_groups': {'signs': 1}}
            worker = _Worker(ray.remote(**options)(_Actor).remote(), time.monotonic())
            self._workers.append(worker)
            self._asked[worker.actor.where.remote()] = worker, 'where'
            self._asked[worker.actor.start.remote(__version__, os.getcwd(), self._job, self._device)] = worker, 'start'

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.place is None and self._waiting:
                worker.place, worker.heard = self._waiting.popleft(), time.monotonic()
                self._asked[worker.actor.work.remote(self._tasks[worker.place])] = worker, 'work'

    def _hear(self, ref: Any) -> Iterator[tuple[Hashable, Any]]:
        """Take an answer of a worker: a result, a sign of life, or that it is lost."""
        import ray

        if ref not in self._asked:  # of a worker that was dropped a moment ago
            return
        worker, which = self._asked.pop(ref)
        try:
            said = ray.get(ref)
        except ray.exceptions.RayError as error:
            self._lost(worker, f'was lost: {first_line(error)}')
            return
        if which == 'where':
            worker.there, worker.heard = True, time.monotonic()
        elif which == 'signs':
            if said > worker.signs:
                worker.signs, worker.heard = said, time.monotonic()
        elif said[0] == FAILED:
            raise said[1].error()
        elif which == 'start':
            worker.ready = True
            self._deaths.started()
        else:
            place, worker.place = worker.place, None
            assert place is not None
            self._left -= 1
            self._hand_out()  # before the caller looks at the result: the worker need not wait for that
            yield self._tasks[place], said[1]

    def _look(self) -> None:
        """Ask workers for signs of life, and give up those that have given none for too long; say when the cluster has none to give."""
        now, limit = time.monotonic(), self._executor.stall_timeout
        asked = {id(worker) for worker, which in self._asked.values() if which == 'signs'}
        for worker in list(self._workers):
            busy = worker.there and (worker.place is not None or not worker.ready)
            if busy and now - worker.heard > limit:
                self._lost(worker, f'gave no sign of life for {limit:g} s and was killed')
            elif busy and id(worker) not in asked and now - worker.asked > min(_ASK_EVERY_S, limit / 4):
                worker.asked = now
                self._asked[worker.actor.signs.options(concurrency_group='signs').remote()] = worker, 'signs'
        if self._workers and not any(worker.there for worker in self._workers):
            self._wait_for_cluster(now - self._began)

    def _wait_for_cluster(self, seconds: float) -> None:
        """Say once that there is no worker yet, and raise (ExecutorError) when that has been so for too long."""
        wanted = 'a GPU and a CPU core' if self._device == 'cuda' else 'a CPU core'
        if seconds > _WAIT_S:
            raise ExecutorError(f'The Ray cluster gave no worker in {seconds:.0f} s: {wanted} for each is not free.', 'See what holds them: ray status')
        if seconds > _SAY_WAITING_S and not self._said:
            self._said = True
            print(f'Waiting for the Ray cluster: {wanted} for a worker is not free yet.', file=sys.stderr)

    def _lost(self, worker: _Worker, how: str) -> None:
        """Drop a worker; what it was at is the next task to be handed out."""
        self._drop(worker)
        self._began = time.monotonic()
        if worker.place is not None:
            self._waiting.appendleft(worker.place)
        self._deaths.note(None if worker.place is None else self._tasks[worker.place], how)

    def _drop(self, worker: _Worker) -> None:
        import ray

        self._workers.remove(worker)
        self._asked = {ref: entry for ref, entry in self._asked.items() if entry[0] is not worker}
        with suppress(Exception):  # it may be gone, and the cluster with it
            ray.kill(worker.actor)
