"""The contract between a run and its workers: jobs, executors, signs of life, and how often a worker may be lost."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from synthaug_plugins.errors import ExecutorError, RecipeError, first_line

DEATHS_ALLOWED = 3
"""So many workers may be lost on one task; the last of them ends the run. Once is chance (another process took the memory), three times is the task."""

STALL_TIMEOUT_S = 1800.0
"""A worker that gives no sign of life for so long hangs. A sign comes with every batch; loading and compiling a large model come before the first one."""


class Job(Protocol):
    """What is to be done with each task. Picklable, without weights: it travels to every worker."""

    @property
    def name(self) -> str:
        """What one task is called in messages, in the singular: 'block' makes 'block 7'."""

    def start(self, device: str) -> Callable[[Any], Any]:
        """Get ready; called once in each worker, before its first task.

        Args:
            device: `cpu`, `cuda:1`, ..., or what the user gave where the worker is the user's own process.

        Returns: `work(task) -> result`. The result is small and picklable (for torchrun: plain JSON); what is large goes to disk. A task that is done twice,
        because its worker was lost after the work and before the result, gives the same.
        """


class Executor(Protocol):
    """Has tasks worked on."""

    def describe(self) -> str:
        """What its workers compute on, for records: 'NVIDIA H100', '4 of x86_64 CPU', 'a Ray cluster of 8 GPUs'."""

    def run(self, job: Job, tasks: Sequence[Hashable]) -> Generator[tuple[Any, Any], None, None]:
        """Have every task done once, by workers that call `job.start` once each and may do many tasks.

        Close the iterator (`contextlib.closing`) where it may be left early: workers end with it, within one batch.

        Returns: (task, result) as tasks are finished, in any order.

        Raises:
            SynthAugError: the one that a worker raised, of the same class and text; the other workers are stopped.
            ExecutorError: workers died or hung again and again, or could not be started.
        """


def check_workers(workers: int | None, stall_timeout: float | None) -> None:
    """Refuse (RecipeError) numbers out of range, as the options --workers and --stall-timeout give them."""
    if workers is not None and workers < 1:
        raise RecipeError(f'--workers {workers} is out of range.', 'Use a whole number of at least 1, or leave it out: one for each GPU.')
    if stall_timeout is not None and not stall_timeout > 0:
        raise RecipeError(f'--stall-timeout {stall_timeout:g} is out of range.', 'Give seconds, longer than a batch and the loading of the model take.')


def packed(job: Job, cure: str) -> bytes:
    """A job on its way to other processes, pickled.

    Raises:
        ExecutorError: it cannot be; `cure` says what to do.
    """
    try:
        return pickle.dumps(job)
    except Exception as error:  # whatever a part of it raises
        raise ExecutorError(f'The job of each {job.name} cannot be sent to another process: {first_line(error)}.', cure) from error


class _Sign:
    """Where this process's signs of life go."""

    send: Callable[[], None] | None = None


def beat() -> None:
    """Give a sign of life: call it with every batch. Costs nothing where nobody listens."""
    if _Sign.send is not None:
        _Sign.send()


@contextmanager
def beating(send: Callable[[], None]) -> Iterator[None]:
    """Let `send()` be called at every `beat` of this process. It should be cheap, or see to that itself."""
    before, _Sign.send = _Sign.send, send
    try:
        yield
    finally:
        _Sign.send = before


class Deaths:
    """Counts the workers that were lost on each task.

    Args:
        job: its name says what a task is.
    """

    def __init__(self, job: Job) -> None:
        self._name, self._of = job.name, Counter[Hashable]()

    def started(self) -> None:
        """A worker has started: those that were lost before they could were no row."""
        self._of.pop(None, None)

    def note(self, task: Hashable | None, how: str) -> None:
        """One more; `task` is what it was at, None if it had none yet, and `how` ends the sentence 'the last one ...'.

        Raises:
            ExecutorError: it was one too many.
        """
        self._of[task] += 1
        if self._of[task] >= DEATHS_ALLOWED:
            what = 'Workers were lost before they could start' if task is None else f'Workers were lost at {self._name} {task}'
            raise ExecutorError(
                f'{what}, {DEATHS_ALLOWED} in a row; the last one {how}.',
                'Lower batch_size or --workers if memory ran out, raise --stall-timeout if a batch takes longer; the same command goes on from there.',
            )


def how_it_ended(exitcode: int | None) -> str:
    """An exit code, as `multiprocessing` has it (negative: minus the signal), as the end of the sentence 'the worker ...'.

    >>> how_it_ended(-9), how_it_ended(1)
    ('was killed by SIGKILL, as the system does when memory runs out', 'ended with status 1')
    """
    if exitcode is None:
        return 'was lost'
    if exitcode >= 0:
        return f'ended with status {exitcode}'
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f'signal {-exitcode}'
    return f'was killed by {name}' + (', as the system does when memory runs out' if exitcode == -signal.SIGKILL else '')


@contextmanager
def omp_threads(number: int) -> Iterator[None]:
    """Set OMP_NUM_THREADS for processes that start within the block, unless the user did: torch reads it when it is imported."""
    if 'OMP_NUM_THREADS' in os.environ:
        yield
        return
    os.environ['OMP_NUM_THREADS'] = str(number)
    try:
        yield
    finally:
        del os.environ['OMP_NUM_THREADS']


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP wait until the block is left: for what should not be cut in two and is over soon. In the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in stopping if signal.getsignal(number) not in (signal.SIG_IGN, None)]  # None: a handler that Python cannot put back
    before = {number: signal.signal(number, lambda n, frame: came.append(n)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)
