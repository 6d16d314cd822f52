"""The folder of a learning run, of any kind: whose it is, that one process at a time works in it, and how a run ends that does not finish."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synthaug_plugins import __version__
from synthaug_plugins.errors import RecipeError, Stopped
from synthaug_plugins.own_folder import WORKERS_GO_S, lock_within
from synthaug_plugins.store.files import refusal, write_whole

MARK = 'learn.json'
"""Names the kind of run, its recipe and its data; a folder with it is ours."""
KINDS = {
    'edm': 'training',
    'words': 'learning of class words',
    'erasure': 'run of erasing classes',
    'embeddings': 'learning of image embeddings',
    'minority': 'learning of levels of rarity',
}
"""What `synthaug learn KIND` leaves in a folder, as messages say it."""

Decisive = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class LearnFolder:
    """A folder that a learning run writes, claimed for one recipe: new, empty, or that of an earlier run which goes on.

    Args:
        folder: made if it is missing.
        kind: one of `KINDS`.
        recipe: complete; plain JSON.
        decisive: `recipe -> dict` of what decides the result, as dotted keys: what may not change between the calls of one run.

    Attributes:
        folder: as given.
        goes_on: whether an earlier run is there.

    Raises:
        RecipeError: the folder holds something else, a run of another kind, or one of another recipe; the keys that differ are named.
            Nothing was touched then.
        StoreError: the mark cannot be written.
    """

    def __init__(self, folder: Path, kind: str, recipe: Mapping[str, Any], decisive: Decisive) -> None:
        self.folder, self._kind, self._recipe = folder, kind, recipe
        mark = folder / MARK
        self.goes_on = mark.is_file()
        self._data_sha256: str | None = None
        if self.goes_on:
            self._check_mark(mark, decisive)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RecipeError(f'{str(folder)!r} exists and holds no {KINDS[kind]}.', 'Give a new or empty folder; nothing was touched.')
        else:
            self._write_mark()

    def _check_mark(self, mark: Path, decisive: Decisive) -> None:
        name = str(self.folder)
        try:
            known = json.loads(mark.read_text(encoding='utf-8'))
            kind = known.get('kind', 'edm')  # marks from before there were other kinds name none
            if kind != self._kind:
                raise RecipeError(f'{name!r} holds a {KINDS.get(kind, kind)}, no {KINDS[self._kind]}.', 'Give a new or empty folder; nothing was touched.')
            before, self._data_sha256 = decisive(known['recipe']), known['data_sha256']
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f'{str(mark)!r} is damaged: {error!r}.', 'Give a new folder.') from error
        now = decisive(self._recipe)
        differ = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if differ:
            what = f'{name!r} holds a {KINDS[self._kind]} that differs in {", ".join(differ)}.'
            raise RecipeError(what, 'Restore these values, or give a new folder.')

    def _write_mark(self) -> None:
        mark = {'kind': self._kind, 'recipe': self._recipe, 'data_sha256': self._data_sha256, 'synthaug_plugins': __version__}
        write_whole(self.folder / MARK, (json.dumps(mark, indent=1) + '\n').encode())

    def remember_data(self, sha256: str) -> None:
        """Write down what the run learns from; of a run that goes on it must be the same.

        Raises:
            RecipeError: it is not.
            StoreError: the mark cannot be written.
        """
        if self._data_sha256 not in (None, sha256):
            raise RecipeError(f'{str(self.folder)!r} holds a {KINDS[self._kind]} on other images: data changed.', 'Restore the images, or give a new folder.')
        self._data_sha256 = sha256
        self._write_mark()

    @contextmanager
    def at_work(self, how_far: Callable[[], str]) -> Iterator[None]:
        """Hold the right to work in the folder; the kernel frees it when the process ends, however it ends.

        Args:
            how_far: said when Ctrl-C stops the run, such as 'has seen 1,000 images' of the last checkpoint.

        Raises:
            RecipeError: another process holds it.
            Stopped: Ctrl-C.
            StoreError: the disk is full, or the folder cannot be written.
        """
        from safetensors import SafetensorError

        with self._lock():
            try:
                yield
            except KeyboardInterrupt:
                raise Stopped(f'Stopped: the last checkpoint in {self.folder} {how_far()}.', 'The same command goes on from there.') from None
            except (OSError, SafetensorError) as error:
                cause = error if isinstance(error, OSError) else OSError(errno.ENOSPC if 'No space' in str(error) else errno.EIO, str(error))
                what = f'The {KINDS[self._kind]} in {str(self.folder)!r} was not saved'
                raise refusal(cause, what, 'The last checkpoint is sound') from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        fd = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                lock_within(fd, WORKERS_GO_S)
            except BlockingIOError as error:
                raise RecipeError(f'Another process is at work in {str(self.folder)!r}.', 'Wait until it ends, or stop it.') from error
            yield
        finally:
            os.close(fd)
