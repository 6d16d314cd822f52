"""Runs in processes of their own: several at a time, each with its output in a file."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import SynthAugError
from synthaug_plugins.executors.base import omp_threads


@dataclass(frozen=True)
class Task:
    """One call in a worker process.

    Attributes:
        label: how progress and errors name it.
        log: the file that takes everything the call prints; appended to.
        function, arguments: the call, both picklable.
    """

    label: str
    log: Path
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


class RunFailed(SynthAugError):
    """A run of a comparison ended with an error."""


class Pool:
    """Worker processes that live for a whole comparison (importing MMPretrain takes seconds). Use it in a `with` statement.

    Args:
        jobs: processes at a time; each gets its share of the cores for torch's threads.
        setup: called once in each worker.
    """

    def __init__(self, jobs: int, setup: Callable[[], object] | None = None) -> None:
        self.jobs, self.setup = jobs, setup
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def run(self, tasks: Sequence[Task], progress: Callable[[str, dict[str, Any]], None]) -> list[dict[str, Any]]:
        """Make all calls; `progress(label, result)` after each. Returns the results in the order of the tasks.

        Raises:
            RunFailed: a call or the setup raised, or its process died; its log is named, calls that were not begun are dropped.
        """
        if not tasks:
            return []
        with omp_threads(max(1, (os.cpu_count() or 1) // self.jobs)):  # workers start at the first submit and take the environment from here
            self._executor = self._executor or ProcessPoolExecutor(
                self.jobs, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker, initargs=(self.setup,)
            )
            futures: dict[Future[Any], Task] = {self._executor.submit(_call, task): task for task in tasks}
            results: dict[str, dict[str, Any]] = {}
            for future in as_completed(futures):
                task = futures[future]
                try:
                    outcome, failure = future.result()
                except BrokenProcessPool:
                    self._executor = None
                    what = f'The process of a run died (out of memory, or killed), perhaps that of {task.label}.'
                    raise RunFailed(what, f'Read {task.log}; lower --jobs.' if task.log.exists() else 'It left no log; lower --jobs.') from None
                if failure:
                    for other in futures:
                        other.cancel()
                    raise RunFailed(f'The run {task.label} failed: {failure}', f'Its log is {task.log}.')
                results[task.label] = outcome
                progress(task.label, outcome)
        return [results[task.label] for task in tasks]


_failed_start: tuple[str, str] | None = None
"""In a worker: why it cannot be used, and the traceback. An exception here would only be seen as a dead process."""


def _start_worker(setup: Callable[[], object] | None) -> None:
    global _failed_start
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A comparison that is killed must not leave runs behind: nothing else would tell this process.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with open(os.devnull, 'w') as null, _output_to(null.fileno()):  # import warnings of other packages
            from synthaug_plugins import compat

            compat.apply()
            import mmpretrain  # noqa: F401

            if setup:
                setup()
    except (Exception, SystemExit) as error:  # plugins are other people's code
        _failed_start = f'its process could not start: {_named(error)}', traceback.format_exc()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _call(task: Task) -> tuple[dict[str, Any], str | None]:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, 'a', encoding='utf-8') as log, _output_to(log.fileno()):
        if _failed_start:
            failure, trace = _failed_start
            log.write(trace)
            return {}, failure
        try:
            return task.function(*task.arguments), None
        except (Exception, SystemExit) as error:  # a run is other people's code: it may raise anything
            traceback.print_exc()
            return {}, _named(error)
        finally:
            gc.collect()  # the runner holds cycles: free its GPU memory and loader processes before the next run


def _named(error: BaseException) -> str:
    """An exception as one sentence."""
    if isinstance(error, SynthAugError):
        return str(error)
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else "no message"}.'


@contextmanager
def _output_to(fd: int) -> Iterator[None]:
    """Send this process's standard output and error to a file, C++ libraries and loader processes included."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for old, number in zip(kept, (1, 2), strict=True):
            os.dup2(old, number)
            os.close(old)
