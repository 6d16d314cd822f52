"""Showing many images to inspectors: read ahead, looked at in order, written down in parts that a later run goes on from."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthaug_plugins.curation.base import Inspector
from synthaug_plugins.engine.judge import Verdict, judge
from synthaug_plugins.engine.progress import ScoringProgress
from synthaug_plugins.errors import Stopped, StoreError
from synthaug_plugins.store.place import Place
from synthaug_plugins.store.plan import Request
from synthaug_plugins.store.scores import parts_folder
from synthaug_plugins.store.table import content_is_whole, parquet_bytes, read_parquet, score_columns

PART_IMAGES, PART_SECONDS = 4096, 60.0
"""A part is written after so many images, or after so long."""
_AHEAD = 2  # batches that are read while one is looked at
_CARD = 'card.json'


@dataclass(frozen=True)
class Shown:
    """Images to show, in order.

    Attributes:
        rows: one mapping per image, with `id` and `label` at least.
        request: what an inspector is told of a row.
        pixels: (H, W, 3) uint8 of a row; called in threads.
    """

    rows: Sequence[Mapping[str, Any]]
    request: Callable[[Mapping[str, Any]], Request]
    pixels: Callable[[Mapping[str, Any]], np.ndarray]

    def batches(self, start: int, size: int) -> Iterator[tuple[list[Request], list[np.ndarray]]]:
        """Batches from row `start` on; the next ones are read meanwhile."""
        waiting: deque[tuple[list[Request], list[Future[np.ndarray]]]] = deque()
        with ThreadPoolExecutor(4) as pool:
            for first in range(start, len(self.rows), size):
                part = self.rows[first : first + size]
                waiting.append(([self.request(row) for row in part], [pool.submit(self.pixels, row) for row in part]))
                if len(waiting) > _AHEAD:
                    requests, futures = waiting.popleft()
                    yield requests, [future.result() for future in futures]
            for requests, futures in waiting:
                yield requests, [future.result() for future in futures]


@dataclass(frozen=True)
class Columns:
    """What the score columns of a run are called.

    Attributes:
        name: of the scores; `<name>_kept` and `<name>_reason` are what the inspectors decided.
        prefix: put before the inspectors' own columns.
    """

    name: str
    prefix: str = ''

    @property
    def kept(self) -> str:
        """The column that says whether an image was kept."""
        return f'{self.name}_kept'

    @property
    def reason(self) -> str:
        """The column that says why not."""
        return f'{self.name}_reason'

    def table(self, ids: Sequence[str], verdicts: Sequence[Verdict]) -> pa.Table:
        """Ids, score columns and verdicts of some images."""
        columns = score_columns([{self.prefix + column: value for column, value in verdict.scores.items()} for verdict in verdicts])
        columns[self.kept] = pa.array([verdict.reason is None for verdict in verdicts], pa.bool_())
        columns[self.reason] = pa.array([verdict.reason for verdict in verdicts], pa.string())
        return pa.table({'id': pa.array(ids, pa.string()), **columns})

    def names(self, verdict: Verdict) -> list[str]:
        """All columns but the id, in order."""
        return [*(self.prefix + column for column in verdict.scores), self.kept, self.reason]


class ScoreParts:
    """Scores so far, in a hidden folder beside the file that they are for. To be used by whoever may write that file.

    Args:
        place, file: the file to be, and where.
        columns: what the columns are called.
        decides: plain JSON; parts of a run that something else decided are thrown away.
        ids: of all images, in order.
        keep: whether a later run may go on from them; without it they stay in memory.

    Attributes:
        done: images whose scores are in a part.

    Raises:
        OSError, StoreError: the folder cannot be read or emptied.
    """

    def __init__(self, place: Place, file: str, columns: Columns, decides: Mapping[str, Any], ids: Sequence[str], keep: bool) -> None:
        self.place, self.folder, self.columns, self.keep, self.done = place, parts_folder(file), columns, keep, 0
        self._card = json.dumps(decides, sort_keys=True, ensure_ascii=False).encode()
        self._parts: list[str | bytes] = []
        self._held: list[tuple[str, Verdict]] = []
        self._since = time.monotonic()
        for name in place.partials(self.folder):
            place.remove(name)
        there = [f'{self.folder}/{name}' for name in place.names(self.folder)]
        card = f'{self.folder}/{_CARD}'
        usable = keep and card in there and place.read(card) == self._card
        for name in there:
            if usable and name == self._name(len(self._parts)) and self._follows(name, ids):
                self._parts.append(name)
            elif name.endswith('.parquet'):
                place.remove(name)
        if not self._parts:
            place.remove(card)

    def _name(self, number: int) -> str:
        return f'{self.folder}/{number:05d}.parquet'

    def _follows(self, part: str, ids: Sequence[str]) -> bool:
        """Whether a part is whole and of the next images; counts it if so."""
        try:
            table = self._read(part)
        except (StoreError, OSError):
            return False
        if not content_is_whole(table) or 'id' not in table.column_names or table['id'].to_pylist() != list(ids[self.done : self.done + len(table)]):
            return False
        self.done += len(table)
        return True

    def add(self, ids: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Take down the verdicts of the next batch; once a part is full, or a minute old, it is on disk when this returns."""
        self._held += zip(ids, verdicts, strict=True)
        if len(self._held) >= PART_IMAGES or time.monotonic() - self._since >= PART_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._held:
            held, self._held = self._held, []
            part, name = parquet_bytes(self.columns.table([i for i, _ in held], [v for _, v in held])), self._name(len(self._parts))
            if self.keep:
                if not self._parts:
                    self.place.write_whole(f'{self.folder}/{_CARD}', self._card)
                self.place.write_whole(name, part)
            self._parts.append(name if self.keep else part)
            self.done += len(held)
        self._since = time.monotonic()

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Whatever ends the block: the verdicts so far are in parts."""
        try:
            yield
        except BaseException:
            with suppress(OSError, StoreError):  # what went wrong first is what the user must hear
                self._write()
            raise
        self._write()

    def join(self) -> pa.Table:
        """All parts as one table.

        Raises:
            StoreError: a column that holds numbers in one part and lists in another.
        """
        try:
            # Read again also what was just written, so that a run in one go gives the very table that a resumed one gives.
            tables = [self._read(part).replace_schema_metadata(None) for part in self._parts]
            table = pa.concat_tables(tables, promote_options='permissive').combine_chunks()
        except pa.ArrowException as error:
            raise StoreError(f'A score column changes its kind on the way: {error}.', 'Correct the inspector that made it.') from error
        last = [self.columns.kept, self.columns.reason]
        return table.select([name for name in table.column_names if name not in last] + last)

    def remove(self) -> None:
        """Throw the parts away: their file is written."""
        self.place.remove_folder(self.folder)

    def _read(self, part: str | bytes) -> pa.Table:
        return read_parquet(self.place, part) if isinstance(part, str) else pq.read_table(pa.BufferReader(part))


def show(
    shown: Shown,
    inspectors: Sequence[Inspector],
    size: int,
    parts: ScoreParts,
    check: Callable[[Sequence[str]], None] = lambda names: None,
    quiet: bool = False,
) -> pa.Table:
    """Show all images that have no scores yet to inspectors that were set up; the scores of all, in the order of the rows.

    Args:
        size: images per batch.
        parts: where the scores go, and which there are.
        check: refuses columns that cannot be added; asked after the first batch, not after the last.
        quiet: no progress on standard error.

    Raises:
        Stopped: the user stopped it.
    """
    for inspector in inspectors:
        inspector.begin_block()
    total, checked = len(shown.rows), False
    progress = None if quiet else ScoringProgress(total, parts.done)
    try:
        with progress or nullcontext(), parts.saved():
            for requests, images in shown.batches(parts.done, size):
                judged = judge(inspectors, requests, images)
                if not checked:
                    check(parts.columns.names(judged[0]))
                    checked = True
                parts.add([request.id for request in requests], judged)
                if progress:
                    progress.looked_at(len(images))
    except KeyboardInterrupt:
        far, cure = (f' {parts.done} of {total} images are done.', 'goes on from there') if parts.keep else ('', 'starts again')
        raise Stopped(f'Stopped: no scores were written.{far}', f'The same command {cure}.') from None
    return parts.join()
