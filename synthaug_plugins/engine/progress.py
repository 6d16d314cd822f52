"""What a run says while it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class GenerationProgress:
    """Counts accepted images against the quota; shows images per second, accepted rate and time left.

    Args:
        total: accepted images that the whole plan asks for.
        done: of these, how many an earlier run has published.
        every_s: seconds between two plain lines.
    """

    def __init__(self, total: int, done: int = 0, every_s: float = 5.0) -> None:
        self.total, self.kept, self.made, self.every_s = total, done, 0, every_s
        self._done_before, self._start, self._last_line = done, time.monotonic(), 0.0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[rate]}'), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task('images', total=total, completed=done, rate='')

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def block_done(self, kept: int, made: int) -> None:
        """Add a published block: `kept` accepted of `made` images."""
        self.kept += kept
        self.made += made
        now = time.monotonic()
        seconds = max(now - self._start, 1e-9)
        accepted = self.kept - self._done_before
        rate = f'{self.made / seconds:.1f} images/s, {100 * accepted / max(self.made, 1):.0f} % accepted'
        if self._bar:
            self._bar.update(self._task, completed=self.kept, rate=rate)
        elif now - self._last_line >= self.every_s or self.kept >= self.total:
            left = (self.total - self.kept) * seconds / max(accepted, 1)
            print(f'{self.kept}/{self.total} images, {rate}, {left:.0f} s left', file=sys.stderr, flush=True)
            self._last_line = now
