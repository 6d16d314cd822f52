"""Commands that are killed and hindered, and the stores that they leave: started, waited for, and compared with the store of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from synthaug_plugins.store.store import Store  # noqa: E402
from synthaug_plugins.store.verify import verify  # noqa: E402

INJECT = HERE / 'inject'
MARK = 'SYNTHAUG_CAMPAIGN'
"""Variable that tells the processes of one command from all others, also when their parent is gone."""
CLASSES = ['zero', 'one', 'two']
OPTIONS = {'classes': CLASSES, 'block_size': 3, 'batch_size': 2}
"""Blocks of two batches, as many as there are images of a class."""
PATIENCE_S = 300.0
GONE_S = 60.0
"""So long may processes live on after the one that the user started was killed."""


class Lost(Exception):
    """A fault that was not survived: what is wrong."""


def expect(truth: object, why: str) -> None:
    """Refuse to call a case survived."""
    if not truth:
        raise Lost(why)


@dataclass
class Ended:
    """How a command ended: status (minus the signal that killed it) and what it said on standard error."""

    status: int
    said: str

    @property
    def sentence(self) -> str:
        """Its last line, which is what a user reads."""
        return ([line for line in self.said.strip().splitlines() if line.strip()] or [''])[-1]

    def refused(self, status: int, *texts: str) -> Ended:
        """Expect a sentence of ours that holds these texts, and a status."""
        expect(self.status == status, f'status {self.status} in place of {status}: {self.sentence}')
        expect('Traceback' not in self.said, f'a traceback: {self.sentence}')
        for text in texts:
            expect(re.search(text, self.said), f'{text!r} is not said: {self.sentence}')
        return self

    def finished(self) -> Ended:
        """Expect that it did all."""
        expect(self.status == 0, f'status {self.status}: {self.said.strip()[-600:]}')
        return self


class Command:
    """A command line that runs in processes of its own."""

    def __init__(self, arguments: Sequence[object], inject: dict[str, Any] | None, launcher: Sequence[str] = (), fork: bool = False) -> None:
        self.mark = secrets.token_hex(8)
        self._err = tempfile.TemporaryFile()  # noqa: SIM115  closed at its end
        self._forked = fork and not launcher
        words = [str(a) for a in arguments]
        if self._forked:
            self.pid, self._process = self._fork(words, inject), None
            return
        environment = {**os.environ, MARK: self.mark, 'PYTHONPATH': os.pathsep.join([str(INJECT), str(HERE.parents[1])]), 'OMP_NUM_THREADS': '1'}
        environment |= {'SYNTHAUG_INJECT': json.dumps(inject)} if inject else {}
        command = [sys.executable, *(launcher or ('-m',)), 'synthaug_plugins.cli', *words]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=self._err, env=environment, start_new_session=True, preexec_fn=_heed_signals
        )
        self.pid = self._process.pid

    def _fork(self, words: list[str], inject: dict[str, Any] | None) -> int:
        """The same in a copy of this process, which has loaded everything long ago."""
        if pid := os.fork():
            return pid
        status = 1
        try:
            _heed_signals()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a Python that has just started
            os.dup2(self._err.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', buffering=1, closefd=False)  # noqa: SIM115
            if inject:
                sys.path.insert(0, str(INJECT))
                import importlib

                importlib.reload(importlib.import_module('sitecustomize')).install(inject)
            from synthaug_plugins.cli import main

            main(words)
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)

    def running(self) -> bool:
        """Whether the process that was started has not ended."""
        return self._status(block=False) is None

    def _status(self, block: bool) -> int | None:
        if self._process is not None:
            return self._process.wait() if block else self._process.poll()
        if not hasattr(self, '_ended'):
            pid, status = os.waitpid(self.pid, 0 if block else os.WNOHANG)
            if pid:
                self._ended = os.waitstatus_to_exitcode(status)
        return getattr(self, '_ended', None)

    def said(self) -> str:
        """What it has said so far."""
        return os.pread(self._err.fileno(), 1 << 22, 0).decode(errors='replace')

    def end(self, number: int | None = None, patience_s: float = PATIENCE_S) -> Ended:
        """Send it a signal, or wait; refuse to wait for ever."""
        if number is not None and self.running():
            os.kill(self.pid, number)
        deadline = time.monotonic() + patience_s
        while self.running():
            if time.monotonic() > deadline:
                self.clear()
                raise Lost(f'it did not end within {patience_s:.0f} s: {self.said().strip()[-300:]}')
            time.sleep(0.02)
        status = self._status(block=True)
        assert status is not None
        return Ended(status, self.said())

    def processes(self) -> list[int]:
        """All of its processes that live."""
        if self._forked:
            return [self.pid] if self.running() else []
        found = []
        for entry in Path('/proc').iterdir():
            if entry.name.isdecimal():
                try:
                    is_ours = f'{MARK}={self.mark}'.encode() in (entry / 'environ').read_bytes()
                    if is_ours and (entry / 'stat').read_text().rpartition(')')[2].split()[0] not in 'ZX':
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def workers(self) -> list[int]:
        """Its processes that make images: workers of `local`, ranks of torchrun, actors of Ray."""
        found = []
        for pid in self.processes():
            line = _command_line(pid)
            is_rank = 'synthaug_plugins.cli' in line and 'torch.distributed.run' not in line and self.pid != pid
            if 'multiprocessing.spawn' in line or '_Actor' in line or is_rank:
                found.append(pid)
        return found

    def gone(self) -> None:
        """Expect that no process of it lives on."""
        deadline = time.monotonic() + GONE_S
        while left := self.processes():
            if time.monotonic() > deadline:
                lines = '; '.join(_command_line(pid)[:120] for pid in left)
                self.clear()
                raise Lost(f'{len(left)} processes live on after {GONE_S:.0f} s: {lines}')
            time.sleep(0.1)

    def clear(self) -> None:
        """Kill what is left of it."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def wait_until(self, so_far: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
        """Wait until something is so; False if the command ends before."""
        deadline = time.monotonic() + patience_s
        while not so_far():
            if not self.running():
                return bool(so_far())
            expect(time.monotonic() < deadline, f'nothing happened for {patience_s:.0f} s: {self.said().strip()[-300:]}')
            time.sleep(0.002)
        return True


@dataclass
class How:
    """By whom a run is done.

    Attributes:
        name: in the table.
        options: of the command.
        launcher: what starts it in place of `python -m`.
    """

    name: str
    options: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()


ALONE = How('local, 1 worker')
TWO = How('local, 2 workers', ('--workers', '2'))
TORCHRUN = How('torchrun, 2 ranks', ('--executor', 'torchrun'), ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m'))
RAY = How('Ray, 2 workers', ('--executor', 'ray', '--workers', '2'))


@dataclass
class Bench:
    """What all cases of a campaign share.

    Attributes:
        folder: for everything that is made.
        rng: of the campaign's seed.
        fork: whether a run of one worker is a copy of this process, which takes a tenth of the time.
        blocks: of a run.
        steps: of the sampler; with 24 a run takes seconds, most of which is the network.
    """

    folder: Path
    rng: random.Random
    fork: bool = False
    blocks: int = 12
    steps: int = 24
    _wholes: dict[str, Path] = field(default_factory=dict)
    _times: dict[str, tuple[float, float]] = field(default_factory=dict)
    _count: int = 0

    @property
    def recipe(self) -> dict[str, Any]:
        """What `--cfg-options` says."""
        return {**OPTIONS, 'per_class': self.blocks, 'generator.sampler.num_steps': self.steps, 'generator.sampler.solver': 'euler'}

    def __post_init__(self) -> None:
        """Load here what the copies of this process then need not load."""
        if self.fork:
            from synthaug_plugins.engine.generate import generate
            from synthaug_plugins.engine.recipe import load_recipe
            from synthaug_plugins.plugins import register_nouns
            from synthaug_plugins.recipes import find_recipe

            register_nouns()
            generate(load_recipe(find_recipe('edm_digits', 'generate'), {**self.recipe, 'per_class': 1}), self.folder / 'loaded', 'cpu', quiet=True)

    def case(self) -> Path:
        """A new folder for one case; its store is called `store`."""
        self._count += 1
        folder = self.folder / f'case-{self._count:04d}'
        folder.mkdir(parents=True)
        return folder

    def run(
        self, out: Path, how: How = ALONE, inject: dict[str, Any] | None = None, recipe: str = 'edm_digits', more: Sequence[str] = (), **options: Any
    ) -> Command:
        """Start `synthaug generate`."""
        pairs = [f'{key}={value}' for key, value in {**self.recipe, **options}.items()]
        return Command(['generate', recipe, '--out', out, '--device', 'cpu', *how.options, *more, '--cfg-options', *pairs], inject, how.launcher, self.fork)

    def synthaug(self, *words: object) -> Ended:
        """Another command, from its start to its end."""
        return Command(words, None, fork=self.fork).end()

    def whole(self, key: str = '', inject: dict[str, Any] | None = None, **options: Any) -> Path:
        """The store of a run that nothing happens to, by one worker; made once for each key."""
        if key not in self._wholes:
            out = self.case() / 'store'
            self.run(out, inject=inject, **options).end().finished()
            self._wholes[key] = out
        return self._wholes[key]

    def times(self, how: How) -> tuple[float, float]:
        """Seconds from the start of a run to its store, and from there to its end."""
        if how.name not in self._times:
            out, started = self.case() / 'store', time.monotonic()
            command = self.run(out, how)
            command.wait_until(lambda: (out / 'store.json').exists())
            begun = time.monotonic()
            command.end().finished()
            self._times[how.name] = begun - started, time.monotonic() - begun
            self.same(out, self.whole())
        return self._times[how.name]

    def same(self, out: Path, whole: Path) -> None:
        """Expect that a store holds the files of another, byte by byte, nothing else, and that it verifies."""
        for folder in ('shards', 'index', ''):
            mine, theirs = ({p.name: p.read_bytes() for p in sorted((s / folder).iterdir()) if p.is_file()} for s in (out, whole))
            if not folder:
                mine.setdefault('cost.json', b'')  # a killed run adds nothing to it; a run that came too late to do anything neither
                theirs.setdefault('cost.json', b'')
                expect(set(mine) == set(theirs), f'files differ: {sorted(set(mine) ^ set(theirs))}')
                continue
            expect(set(mine) == set(theirs), f'files of {folder} differ: {sorted(set(mine) ^ set(theirs))[:4]}')
            changed = [name for name in mine if mine[name] != theirs[name]]
            expect(not changed, f'{len(changed)} files of {folder} differ, the first is {changed[:1]}')
        mine_, theirs_ = ([(r['id'], r['sha256']) for r in Store.open(s).index(['id', 'sha256']).to_pylist()] for s in (out, whole))
        expect(mine_ == theirs_, 'ids or hashes differ')
        faults = verify(Store.open(out))
        expect(not faults, f'verify finds {len(faults)} faults: {faults[:1]}')

    def goes_on(self, out: Path, how: How = ALONE, whole: Path | None = None, **options: Any) -> Ended:
        """Expect that the same command, once more and unhindered, ends with the store of an unhindered run."""
        ended = self.run(out, how, **options).end().finished()
        self.same(out, whole or self.whole())
        return ended


def _heed_signals() -> None:
    """In a new process: end at the signals that a terminal sends, also when the campaign itself runs under nohup and passes its deafness on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _command_line(pid: int) -> str:
    """Of a process; '' if it is gone."""
    try:
        return Path(f'/proc/{pid}/cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
    except OSError:
        return ''


def published(out: Path) -> int:
    """Blocks that are in a store."""
    folder = out / 'index'
    return sum(p.suffix == '.parquet' and p.name[0].isdecimal() for p in folder.iterdir()) if folder.is_dir() else 0
