"""The file that keeps what a language model wrote: JSON lines that a person can read and edit.

The first line says how it was made. Then per class its sentences, one a line, and a line with counts. While it is being made the file is called
`.partial-<name>` and grows by whole classes; a rename publishes it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from synthaug_plugins.errors import DataError
from synthaug_plugins.prompts.sources import check_classes, read_lines

_unwritten: ContextVar[list[str] | None] = ContextVar('unwritten', default=None)


@contextmanager
def only_read() -> Iterator[list[str]]:
    """Within it no sentence is written: a class without any has its plain name. For who looks at a recipe and must leave no trace.

    Yields: the files that are missing, filled while prompts are prepared.
    """
    files: list[str] = []
    token = _unwritten.set(files)
    try:
        yield files
    finally:
        _unwritten.reset(token)


def left_unwritten(path: Path) -> bool:
    """Whether nothing may be written now (see `only_read`); the missing file is then noted."""
    files = _unwritten.get()
    if files is not None:
        files.append(str(path))
    return files is not None


def read_sentences(path: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """Sentences by class of a published file, as it stands now: hand edits count.

    Raises:
        DataError: unreadable, a broken line (its number is said), or a foreign class.
    """
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'The sentence file {str(path)!r} cannot be read: {error}.', 'Remove it to have it made again.') from error
    found = read_lines(text.splitlines(), str(path))
    check_classes(found, classes, str(path))
    return {label: found.get(label, []) for label in classes}


class Partial:
    """A sentence file in the making.

    Attributes:
        done: classes that are finished.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.done: set[str] = set()
        end = 0
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or not line.endswith(b'\n') or ('kept' in row and not isinstance(row.get('class'), str)):
                break
            if 'made_with' in row:
                end = file.tell()
            elif 'kept' in row:
                self.done.add(row['class'])
                end = file.tell()
        # What follows the last finished class was cut off by the interruption.
        file.seek(end)
        file.truncate()
        self.empty = end == 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append lines and force them to disk.

        Raises:
            DataError: the disk is full.
        """
        try:
            self._file.write(b''.join(json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(f'The sentence file was not written: {error}.', 'Free some space and run again: finished classes are kept.') from error


@contextmanager
def making(path: Path) -> Iterator[Partial | None]:
    """The partial file of `path` under a lock, published at the end; None if another process published it meanwhile.

    After an error or a kill it stays, and the next run goes on after its last finished class.

    Raises:
        DataError: the folder cannot be written.
    """
    partial = path.with_name(f'.partial-{path.name}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(partial, 'a+b')  # noqa: SIM115  closed below; the lock goes with it
    except OSError as error:
        raise DataError(f'The sentence file {str(path)!r} cannot be written: {error}.', 'Set cache to a folder that can be written.') from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            partial.unlink(missing_ok=True)
            yield None
            return
        file.seek(0)
        yield Partial(file)
        os.replace(partial, path)
