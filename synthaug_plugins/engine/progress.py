"""What a run says while it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor


def say_to_user(quiet: bool) -> Callable[[str], None]:
    """Where sentences for the user go: standard error, or nowhere."""
    return lambda sentence: None if quiet else print(sentence, file=sys.stderr)


class _Spoken:
    """A bar on a terminal's standard error; elsewhere one line every so many seconds.

    Args:
        name: of the bar.
        total, done: what the bar counts to, and where it starts.
        every_s: seconds between two plain lines.
        unit: what is counted.
    """

    def __init__(self, name: str, total: int, done: int, every_s: float, unit: str = 'images') -> None:
        self.total, self.every_s, self.unit, self._said = total, every_s, unit, 0.0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[state]}'), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=total, completed=done, state='')

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def _due(self, done: int, now: float) -> bool:
        """Whether it is time to say something; twice a second on a terminal."""
        return now - self._said >= (0.5 if self._bar else self.every_s) or done >= self.total

    def _say(self, done: int, now: float, state: str, seconds_left: float) -> None:
        self._said = now
        if self._bar:
            self._bar.update(self._task, completed=done, state=state)
        else:
            print(f'{done:,}/{self.total:,} {self.unit}, {state}, {seconds_left:.0f} s left', file=sys.stderr, flush=True)


class GenerationProgress(_Spoken):
    """Counts accepted images against the quota; shows images per second, accepted rate and time left.

    Args:
        total: accepted images that the whole plan asks for.
        done: of these, how many an earlier run has published.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        super().__init__('images', total, done, 5.0)
        self.kept, self.made = done, 0
        self._done_before, self._start = done, time.monotonic()

    def block_done(self, kept: int, made: int) -> None:
        """Add a published block: `kept` accepted of `made` images."""
        self.kept += kept
        self.made += made
        now = time.monotonic()
        seconds, accepted = max(now - self._start, 1e-9), self.kept - self._done_before
        if self._due(self.kept, now):
            state = f'{self.made / seconds:.1f} images/s, {100 * accepted / max(self.made, 1):.0f} % accepted'
            self._say(self.kept, now, state, (self.total - self.kept) * seconds / max(accepted, 1))


class ScoringProgress(_Spoken):
    """Images that inspectors have looked at, images per second and time left.

    Args:
        total: images to look at.
        done: of these, how many an earlier run has looked at.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        super().__init__('score', total, done, 5.0)
        self.done, self._done_before, self._start = done, done, time.monotonic()

    def looked_at(self, images: int) -> None:
        """Add a batch."""
        self.done += images
        now = time.monotonic()
        if self._due(self.done, now):
            rate = (self.done - self._done_before) / max(now - self._start, 1e-9)
            self._say(self.done, now, f'{rate:.1f} images/s', (self.total - self.done) / rate)


class TrainingProgress(_Spoken):
    """Images shown, loss, images per second and time left. Reads the loss from the device only when it says something.

    Args:
        total: images that the whole training shows.
        unit: what is counted, if not images.
    """

    def __init__(self, total: int, unit: str = 'images') -> None:
        super().__init__('learn', total, 0, 10.0, unit)
        self._first: tuple[int, float] | None = None

    def step(self, images_shown: int, loss: Tensor) -> None:
        """A step is done; `loss` is a 0-dim tensor."""
        now, done = time.monotonic(), min(images_shown, self.total)
        if self._first is None:
            self._first = images_shown, now  # the first step of a run builds caches and tells little about speed
        elif self._due(done, now):
            rate = (images_shown - self._first[0]) / max(now - self._first[1], 1e-9)
            self._say(done, now, f'loss {float(loss):.4f}, {rate:.1f} {self.unit}/s', (self.total - done) / max(rate, 1e-9))


class EmbeddingProgress(_Spoken):
    """Images learned, loss, images per hour and time left. Reads the loss from the device only when it says something.

    Args:
        total: images.
        steps: of each.
    """

    def __init__(self, total: int, steps: int) -> None:
        super().__init__('learn', total, 0, 10.0)
        self.steps = steps
        self._first: tuple[int, float] | None = None

    def step(self, image_steps: int, loss: Tensor) -> None:
        """So many steps of all images together are done; `loss` is a 0-dim tensor."""
        now = time.monotonic()
        if self._first is None:
            self._first = image_steps, now  # the first step of a run builds caches and tells little about speed
        elif self._due(image_steps // self.steps, now):
            rate = (image_steps - self._first[0]) / self.steps / max(now - self._first[1], 1e-9)
            state = f'loss {float(loss):.4f}, {3600 * rate:,.0f} images/hour'
            self._say(image_steps // self.steps, now, state, (self.total - image_steps / self.steps) / max(rate, 1e-9))
