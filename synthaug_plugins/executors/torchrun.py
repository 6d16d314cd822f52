"""The executor `torchrun`: the ranks that torchrun has started share the tasks.

They meet in the key-value store of the rendezvous and need no process group: nothing is summed over ranks, so there is no collective in which one could wait
for another. Tasks are taken from a common counter, not dealt out beforehand: blocks take unequal times, and a slow machine takes fewer.

A rank that dies or hangs ends; torchrun then ends all of them, and starts them again if it was told to (`--max-restarts`). What is published stays, so either
that or the same command goes on.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from synthaug_plugins import errors
from synthaug_plugins.device import choose_device, device_name
from synthaug_plugins.errors import ExecutorError, RecipeError, SynthAugError, again, first_line
from synthaug_plugins.executors.base import STALL_TIMEOUT_S, Job, beating, check_workers
from synthaug_plugins.executors.worker import end_with

if TYPE_CHECKING:
    from torch.distributed import Store

_MEET_S = 600.0
"""Ranks load their libraries from one disk; on a large cluster that takes minutes."""
_AGENT_S = 60.0
"""Where torchrun itself keeps the store it has it before it starts a rank: whoever finds none need not wait for it to begin."""
_LOOK_EVERY_S = 0.2
_BEAT_EVERY_S = 1.0
_PART_S = 30.0


@runtime_checkable
class SharedJob(Job, Protocol):
    """A job that travels as plain JSON: what is read from the rendezvous' store is never code."""

    def shared(self) -> dict[str, Any]:
        """All that another process needs to make it again."""


class Torchrun:
    """One of the ranks that share the tasks. Rank 0 leads and works; the others `follow`.

    Args:
        device: `auto` and `cuda` give each rank of a machine one of its GPUs; `cpu`, `cuda:1`: this one for all.
        stall_timeout: seconds without a sign of life after which a rank ends itself, with the trace of where it hung on standard error.

    Attributes:
        leads: whether this is rank 0.

    Raises:
        RecipeError: torchrun has not started this process, or a number out of range.
        ExecutorError: it has, and is gone.
    """

    def __init__(self, device: str = 'auto', stall_timeout: float | None = None) -> None:
        missing = [name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT') if not os.environ.get(name)]
        if missing:
            raise RecipeError(
                f'--executor torchrun: torchrun has not started this process, {missing[0]} is not set.',
                'Run: torchrun --nproc-per-node N -m synthaug_plugins.cli generate RECIPE --out STORE --executor torchrun',
            )
        self.rank, self.size = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
        self.leads = self.rank == 0
        check_workers(None, stall_timeout)
        self.stall_timeout = STALL_TIMEOUT_S if stall_timeout is None else stall_timeout
        self._asked = device
        if 'TORCHELASTIC_RUN_ID' in os.environ:
            end_with(os.getppid())  # a torchrun that is killed would leave its ranks behind, with the store's lock
            if not _has_agent():
                raise ExecutorError('torchrun ended before this rank had begun.', 'The same command goes on from what is published.')

    @property
    def device(self) -> str:
        """The one that this rank computes on."""
        import torch

        if self._asked in ('auto', 'cuda') and torch.cuda.is_available():
            return f'cuda:{int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()}'  # srun may show each task one GPU only
        return 'cpu' if self._asked == 'auto' else self._asked

    def describe(self) -> str:
        """See `Executor.describe`: as many as there are ranks, of the kind that the first has.

        Raises:
            RecipeError: a device that torch does not know or this machine does not have.
        """
        return f'{self.size} of {device_name(choose_device(self.device))}'

    def run(self, job: Job, tasks: Sequence[Hashable]) -> Generator[tuple[Any, Any], None, None]:
        """See `Executor.run`; for rank 0, also where there is no task: the others wait to hear that. Tasks and results are plain JSON.

        Raises:
            ExecutorError: no rank gives a sign of life any more, or the rendezvous is gone.
            RecipeError: a job that is no `SharedJob`.
        """
        if not isinstance(job, SharedJob):
            raise RecipeError(f'--executor torchrun: the job of each {job.name} cannot be told as plain JSON.', 'Use --executor local.')
        with _meeting(self) as meeting:
            meeting.tell('job', {'job': job.shared(), 'tasks': list(tasks)})
            heard = dict.fromkeys(range(1, self.size), 0)
            left = len(tasks)
            for place, result in meeting.work(job, self.device, tasks):
                left -= 1
                yield tasks[place], result
                for place_, result_ in meeting.results(heard):
                    left -= 1
                    yield tasks[place_], result_
            for place, result in meeting.rest(heard, left):
                yield tasks[place], result
            meeting.part()

    def follow(self, make_job: Callable[[dict[str, Any]], Job]) -> None:
        """Work for rank 0 until no task is left to be taken.

        Args:
            make_job: what rank 0's `job.shared()` describes, made a job again.

        Raises:
            SynthAugError: what the job raised; rank 0 raises the same.
            ExecutorError: the rendezvous is gone.
        """
        with _meeting(self) as meeting:
            told = meeting.hear('job')
            try:
                for number, outcome in enumerate(meeting.work(make_job(told['job']), self.device, told['tasks'])):
                    meeting.tell(f'result/{self.rank}/{number}', outcome)
            except SynthAugError as error:
                meeting.tell('failed', [type(error).__name__, error.what, error.cure])
                raise
            meeting.leave()


def _has_agent() -> bool:
    """Whether a process that started this one, directly or by a script, has loaded torch, as torchrun has. One that was killed while this process loaded its
    libraries has left it to another parent, which nobody could tell by its number: in a container torchrun may well be process 1."""
    if sys.platform != 'linux':
        return True
    pid = os.getppid()
    while pid:
        try:
            with open(f'/proc/{pid}/maps', 'rb') as maps:
                if b'libtorch' in maps.read():
                    return True
        except OSError:  # another user's, so no torchrun of ours
            pass
        try:
            with open(f'/proc/{pid}/stat', 'rb') as stat:
                pid = int(stat.read().rpartition(b')')[2].split()[1])
        except OSError:
            return False
    return False


class _Meeting:
    """What the ranks tell each other, in the rendezvous' store."""

    def __init__(self, store: Store, size: int, stall_timeout: float) -> None:
        self._store, self._size, self._stall_timeout = store, size, stall_timeout
        self._beaten = -float('inf')
        try:
            self._said = sys.stderr.fileno()
        except (AttributeError, ValueError, OSError):  # a stream of some embedding program
            self._said = 2
        self._arm()

    def tell(self, key: str, value: object) -> None:
        self._store.set(key, json.dumps(value))

    def _told(self, key: str) -> Any:
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def hear(self, key: str) -> Any:
        """What another rank tells, whenever that is: rank 0 may read all images before it has a plan. Looks again and again: a wait hears no signal."""
        while (told := self._told(key)) is None:
            self._arm()
            time.sleep(_LOOK_EVERY_S)
        return told

    def work(self, job: Job, device: str, tasks: Sequence[Hashable]) -> Iterator[tuple[int, Any]]:
        """(place, result) of the tasks that this rank takes. The model is made ready only when there is one."""
        work: Callable[[Any], Any] | None = None
        while (place := self._store.add('next', 1) - 1) < len(tasks):
            work = work or job.start(device)
            self.beat()
            yield place, work(tasks[place])

    def results(self, heard: dict[int, int]) -> Iterator[tuple[int, Any]]:
        """What other ranks have finished; `heard` is how many results of each were read."""
        if failed := self._told('failed'):
            name, what, cure = failed
            kind = getattr(errors, name, None)
            raise (again(kind, what, cure) if isinstance(kind, type) and issubclass(kind, SynthAugError) else ExecutorError(what, cure))
        for rank in heard:
            while (outcome := self._told(f'result/{rank}/{heard[rank]}')) is not None:
                heard[rank] += 1
                yield outcome[0], outcome[1]

    def rest(self, heard: dict[int, int], left: int) -> Iterator[tuple[int, Any]]:
        """The results that other ranks still owe.

        Raises:
            ExecutorError: none of them gives a sign of life any more. Where torchrun itself watches them, it has ended this process before.
        """
        beats, since = -1, time.monotonic()
        while left:
            for outcome in self.results(heard):
                left -= 1
                yield outcome
            self._arm()
            if (now := self._store.add('beats', 0)) != beats:
                beats, since = now, time.monotonic()
            elif time.monotonic() - since > self._stall_timeout:
                raise ExecutorError(
                    f'{left} tasks are not done, and no other rank has given a sign of life for {self._stall_timeout:.0f} s.',
                    'Read what they said; the same command goes on from what is published.',
                )
            time.sleep(_LOOK_EVERY_S if left else 0)

    def beat(self) -> None:
        """A sign of life, for this rank's own alarm and for rank 0."""
        if (now := time.monotonic()) - self._beaten >= _BEAT_EVERY_S:
            self._beaten = now
            self._arm()
            self._store.add('beats', 1)

    def _arm(self) -> None:
        """Put off the end of a rank that hangs: a thread of C, which needs no turn of the interpreter, shows where it hangs and ends it."""
        faulthandler.dump_traceback_later(self._stall_timeout, exit=True, file=self._said)

    def leave(self) -> None:
        self._store.add('left', 1)

    def part(self) -> None:
        """Wait until the others have left, for rank 0 may be where the store lives."""
        deadline = time.monotonic() + _PART_S
        while self._store.add('left', 0) < self._size - 1 and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)


@contextmanager
def _meeting(ranks: Torchrun) -> Iterator[_Meeting]:
    import torch.distributed as dist

    try:
        wait_s = _AGENT_S if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True' else _MEET_S
        store = next(iter(dist.rendezvous('env://', timeout=timedelta(seconds=wait_s))))[0]
        # After a restart by torchrun nothing counts that was said before it.
        start = f'synthaug/{os.environ.get("TORCHELASTIC_RUN_ID", "")}/{os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")}'
        meeting = _Meeting(dist.PrefixStore(start, store), ranks.size, ranks.stall_timeout)
        with beating(meeting.beat):
            yield meeting
    except dist.DistError as error:
        what = f'Rank {ranks.rank} lost the rendezvous at {os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}: {first_line(error)}.'
        raise ExecutorError(what, 'If it is no other rank that ended, see that all machines reach that address; the same command goes on.') from error
    finally:
        faulthandler.cancel_dump_traceback_later()
