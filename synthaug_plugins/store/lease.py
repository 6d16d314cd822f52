"""Who may write to a store: one run at a time, known by name; its workers on whatever machine belong to it.

On a local disk the kernel's locks are the truth, so they end with their processes. The run holds `store.json` exclusively and says in `lease.json` who it is;
every worker that is a process of its own holds `lease.json` in common with the others. A new run has to get both, so no worker that outlived its driver
publishes into it.

A remote disk knows no locks: `lease.json` itself is the lease. It is created exclusively and counts up while its run lives. Whoever finds one watches
that number by a clock of his own that only runs forward, so it does not matter what time any machine believes it is. Every publication looks at the lease
first. Should two runs get past each other all the same, one of them stops at its next look, and both have published the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import StoreError
from synthaug_plugins.own_folder import lock_within
from synthaug_plugins.plain_json import parse_json
from synthaug_plugins.store import files
from synthaug_plugins.store.card import CARD
from synthaug_plugins.store.place import LocalPlace, Place, TooLong

LEASE = 'lease.json'
BEAT_EVERY_S = 10.0
"""A run on a remote disk counts its lease up this often."""
STALE_AFTER_S = 60.0
"""A lease that nobody counted up for so long belongs to nobody."""
SETTLE_S = 2.0
"""After taking over a lease on a remote disk: so long may another one that took it over in the same moment remain unseen."""
WORKERS_END_S = 15.0
"""So long a new run waits for the workers of one that died, and a run that is done for its own."""
STOPPED_END_S = 1.0
"""So long a run that failed or was stopped waits for its workers. torchrun ends them only when it has ended."""

_MOST_BYTES = 10_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """A run that writes to a store, as `lease.json` says it.

    Attributes:
        run: its name, drawn at random.
        what: it does: 'generate', 'repair', 'score'.
        host, process: of its driver.
        since: when it began, UTC by the clock of its host; for people.
        machine: boot and process namespace, within which process ids mean something; '' where the system does not say.
        started: of the process, in clock ticks since the boot: another process may get the same id later.
        beat: counts up while the run lives.
    """

    run: str
    what: str
    host: str
    process: int
    since: str
    machine: str = ''
    started: str = ''
    beat: int = 0

    def __str__(self) -> str:
        return f'process {self.process} on host {self.host} (synthaug {self.what}), since {self.since}'

    def text(self) -> bytes:
        """What stands in the file."""
        return (json.dumps(asdict(self), indent=1) + '\n').encode()

    def is_dead(self) -> bool:
        """Whether its driver certainly lives no more: it ran here, and is not here. False where that cannot be known."""
        return bool(self.machine) and self.machine == machine() and _started(self.process) != self.started


def this_process(what: str) -> Holder:
    """A new run of this process."""
    now = datetime.now(UTC).strftime('%Y-%m-%d %H:%M:%S UTC')
    return Holder(secrets.token_hex(8), what, socket.gethostname(), os.getpid(), now, machine(), _started(os.getpid()))


def read_holder(place: Place) -> Holder | None:
    """Who holds a place, or held it when it died; None if nobody does or the file is damaged, as a kill in the middle of writing leaves it."""
    try:
        found = parse_json(place.read(LEASE, _MOST_BYTES))
        values: dict[str, Any] = {f.name: (int if f.name in ('process', 'beat') else str)(found[f.name]) for f in fields(Holder)}
        return Holder(**values)
    except (FileNotFoundError, TooLong, ValueError, KeyError, TypeError):
        return None


def machine() -> str:
    """What tells this boot of this machine, and this container, from others; '' where the system does not say."""
    try:
        return f'{Path("/proc/sys/kernel/random/boot_id").read_text().strip()} {os.stat("/proc/self/ns/pid").st_ino}'
    except OSError:
        return ''


def _started(process: int) -> str:
    """'' for a process that is not there, or is a dead one that nobody has asked about."""
    try:
        entries = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return ''
    return '' if entries[0] in 'ZX' else entries[19]


@contextmanager
def hold(place: Place, what: str, say: Say) -> Iterator[tuple[str, Callable[[], None]]]:
    """Hold the right to write to a store.

    Args:
        what: is done: 'generate', 'repair', 'score'.
        say: told when the lease of a dead run is taken over, and when that takes waiting.

    Returns: the run's name, for `join`, and `check()`, which raises StoreError if another run has taken the store over meanwhile.

    Raises:
        StoreError: another run holds it, which is named; or the store cannot be written.
    """
    me = this_process(what)
    with (_hold_locally if isinstance(place, LocalPlace) else _hold_remotely)(place, me, say):  # type: ignore[arg-type]
        yield me.run, (lambda: None) if isinstance(place, LocalPlace) else lambda: _check(place, me.run)


@contextmanager
def join(place: Place, run: str) -> Iterator[Callable[[], None]]:
    """Belong to a run, as a worker that is a process of its own: on a local disk no other run begins before this one has left.

    Returns: `check()`, to be called before each publication: raises StoreError if the run is over.

    Raises:
        StoreError: the run is over, or the folder is not the one that its driver sees.
    """
    if not isinstance(place, LocalPlace):
        _check(place, run)
        yield lambda: _check(place, run)
        return
    try:
        fd = os.open(place.path(LEASE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _over(place, None) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # held exclusively for the moment only in which a driver writes it
        _check(place, run)
        yield lambda: _check(place, run)
    finally:
        os.close(fd)


def _check(place: Place, run: str) -> None:
    holder = read_holder(place)
    if holder is None or holder.run != run:
        raise _over(place, holder)


def _over(place: Place, holder: Holder | None) -> StoreError:
    if holder is None:
        return StoreError(
            f'The run that this worker belongs to is not at work in {place.given!r}.', 'All machines of a run must see the same folder; start the run again.'
        )
    return StoreError(f'The store {place.given!r} was taken over by {holder}.', 'Nothing more is written by this run; let that one end.')


def _refused(place: Place, holder: Holder | None) -> StoreError:
    who = f': {holder}' if holder else ''
    return StoreError(f'Another process is writing to the store {place.given!r}{who}.', 'Wait until it ends, or stop it.')


@contextmanager
def _hold_locally(place: LocalPlace, me: Holder, say: Say) -> Iterator[None]:
    there = read_holder(place)
    patience_s = WORKERS_END_S if there and there.is_dead() else 0.0  # what a dead driver forked may hold its lock for another moment
    with _locked(place, CARD, os.O_RDWR, patience_s, lambda: _refused(place, read_holder(place))):
        before = read_holder(place)
        cure = 'They end with it; run the same command again.'
        left = lambda: StoreError(f'Workers of a run that is over are still writing to the store {place.given!r}: it was {before}.', cure)  # noqa: E731
        with _locked(place, LEASE, os.O_RDWR | os.O_CREAT, WORKERS_END_S, left) as fd:  # to be written: nobody belongs to another run now
            try:
                os.ftruncate(fd, 0)
                os.pwrite(fd, me.text(), 0)
            except OSError as error:  # a full disk
                raise files.refusal(error, f'The store {place.given!r} cannot be held for writing') from error
        if before:
            say(f'An earlier run did not end well; its lease is taken over: {before}.')
        patience_s = STOPPED_END_S
        try:
            yield
            patience_s = WORKERS_END_S
        finally:  # while a worker still belongs to this run, the lease stays: the next run waits at it
            with suppress(OSError, StoreError), _locked(place, LEASE, os.O_RDWR, patience_s, left):
                place.remove(LEASE)


@contextmanager
def _locked(place: LocalPlace, name: str, flags: int, patience_s: float, refusal: Callable[[], StoreError]) -> Iterator[int]:
    """Hold a file exclusively, or raise `refusal()` where another process still does after so many seconds. The kernel frees it with the process."""
    try:
        fd = os.open(place.path(name), flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)  # a link leads out of the store
    except OSError as error:
        raise files.refusal(error, f'The store {place.given!r} cannot be opened for writing') from error
    try:
        try:
            lock_within(fd, patience_s)
        except BlockingIOError as error:
            raise refusal() from error
        except OSError as error:
            what = f'The store {place.given!r} cannot be locked: {error.strerror}.'
            raise StoreError(what, 'Generate on a local disk and copy the store.') from error
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _hold_remotely(place: Place, me: Holder, say: Say) -> Iterator[None]:
    _take(place, me, say)
    over = threading.Event()
    beats = threading.Thread(target=_count_up, args=(place, me, over), daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        with suppress(StoreError, OSError):  # a lease that stays is found out to be stale
            if (holder := read_holder(place)) and holder.run == me.run:
                place.remove(LEASE)


def _take(place: Place, me: Holder, say: Say) -> None:
    while not place.write_first(LEASE, me.text()):
        found = read_holder(place)
        if found is None and not place.exists(LEASE):
            continue  # its run has ended just now
        if found == me:
            return  # the answer to the first write was lost, and it was tried again
        if found is None or not found.is_dead():
            _watch(place, found, say)
        if read_holder(place) == found and place.exists(LEASE):
            say(f'An earlier run did not end well; its lease is taken over: {found or "its file is damaged"}.')
            place.remove(LEASE)
            if place.write_first(LEASE, me.text()):
                time.sleep(SETTLE_S)
                _check(place, me.run)
                return


def _watch(place: Place, found: Holder | None, say: Say) -> None:
    """Come back when a lease has not changed for `STALE_AFTER_S`, or is no longer there; StoreError when its run lives."""
    if found:
        say(f'The store is held by {found}; waiting up to {STALE_AFTER_S:.0f} s for a sign of life.')
    deadline = time.monotonic() + STALE_AFTER_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, STALE_AFTER_S / 10))
        now = read_holder(place)
        if now is None and not place.exists(LEASE):
            return
        if now != found:
            raise _refused(place, now)


def _count_up(place: Place, me: Holder, over: threading.Event) -> None:
    """Give signs of life until the run is over, or has lost its lease: its next publication says so."""
    beat = 0
    while not over.wait(BEAT_EVERY_S):
        beat += 1
        with suppress(StoreError, OSError):  # a network that is down for a while; for longer, another run may take over, which `check` finds
            if (holder := read_holder(place)) is None or holder.run != me.run:
                return
            place.write_whole(LEASE, replace(me, beat=beat).text())
