"""A worker process of the executor `local`: takes tasks from its driver's pipe, gives signs of life, and ends with its driver."""

from __future__ import annotations

import ctypes
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from synthaug_plugins.errors import SynthAugError
from synthaug_plugins.executors.base import Job, beating

READY, BEAT, DONE, FAILED = 'ready', 'beat', 'done', 'failed'
"""What a worker says; `DONE` with (place of the task, result), `FAILED` with a `Failure`."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BEAT_EVERY_S = 0.5


class Failure:
    """An exception on its way to another process: itself, where that can be pickled, else its text; with its trace."""

    def __init__(self, error: BaseException) -> None:
        self.trace = ''.join(traceback.format_exception(error))
        try:
            self.pickled: bytes | None = pickle.dumps(error)
            pickle.loads(self.pickled)  # some exceptions can be written and not read
        except Exception:
            self.pickled = None
        self.text = f'{type(error).__name__}: {error}'

    def error(self) -> BaseException:
        """The exception; one that is not ours has the worker's trace as its cause."""
        error = RuntimeError(self.text) if self.pickled is None else pickle.loads(self.pickled)
        if not isinstance(error, SynthAugError):
            error.__cause__ = RuntimeError(f'in a worker:\n{self.trace}')
        return error


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, where there is such a thing (Linux); `parent` is its process."""
    if sys.platform == 'linux':
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)


def serve(pipe: Connection, job: bytes, device: str, parent: int) -> None:
    """The whole life of a worker process.

    Args:
        pipe: to the driver, which sends (place, task) pairs, and None at the end.
        job: pickled.
        device: for `job.start`.
        parent: process id of the driver.
    """
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the workers too: the driver says when to end
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    inbox: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    lock = threading.Lock()

    def say(*message: object) -> None:
        with lock:
            pipe.send(message)

    try:
        with beating(_seldom(lambda: say(BEAT))):
            _work(inbox, say, pickle.loads(job), device)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGTERM)  # at once: what libraries do at the end of a process may wait for threads
    except Exception as error:
        say(FAILED, Failure(error))


def _work(inbox: queue.SimpleQueue[tuple[int, Any] | None], say: Callable[..., None], job: Job, device: str) -> None:
    work = job.start(device)
    say(READY)
    while (message := inbox.get()) is not None:
        place, task = message
        say(DONE, place, work(task))


def _listen(pipe: Connection, inbox: queue.SimpleQueue[tuple[int, Any] | None]) -> None:
    """Hand on what the driver sends; end the process when the driver is gone, which a thread notices while the network computes."""
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            os._exit(1)
        inbox.put(message)
        if message is None:
            return


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what is being cleaned up is not interrupted
    raise KeyboardInterrupt


def _seldom(send: Callable[[], None]) -> Callable[[], None]:
    """`send`, at most twice a second: small networks have hundreds of batches in that time."""
    last = -float('inf')

    def maybe() -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _BEAT_EVERY_S:
            last = now
            send()

    return maybe
