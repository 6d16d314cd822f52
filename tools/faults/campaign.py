"""Every fault that a run may meet, made on purpose: tried, survived, lost.

After each, the same command again must end with the store of an unhindered run, byte by byte, and `verify` must find nothing.

python tools/faults/campaign.py --seed 1 --kills 100 --out tools/faults/results/campaign.txt      (some two hours on two cores)
python tools/faults/campaign.py --only 'local|disk' --times 1
"""

from __future__ import annotations

import argparse
import platform
import random
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import disks
import kills
import models
from harness import ALONE, RAY, TORCHRUN, TWO, Bench, How, Lost

SHORT = 3
"""Cases of each fault that is not a kill."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: in the table.
        seen: what the user sees of it, in words.
        case: makes it, once; raises Lost if it was not survived.
        kills: share of the campaign's SIGKILLs; 0 for another fault, which is tried `SHORT` times.
        quick: part of the short version: no process loads anything.
    """

    name: str
    seen: str
    case: Callable[[Bench], None]
    kills: float = 0.0
    quick: bool = False


def _killed() -> list[Fault]:
    again = 'The shell says Killed. The same command goes on after the last published block.'
    replaced = 'Nothing but lost time: another worker takes its place and its block, the command ends with status 0.'
    faults = []
    for how, of_driver, of_worker in ((ALONE, 0.28, 0), (TWO, 0.12, 0.16), (TORCHRUN, 0.1, 0.12), (RAY, 0.1, 0.12)):
        starts = 'torchrun itself' if how is TORCHRUN else 'driver'
        faults.append(Fault(f'SIGKILL: {how.name}: {starts}', again, partial(kills.driver, how=how), of_driver, how is ALONE))
        if of_worker:
            seen = 'torchrun ends the other ranks and says which one was killed; the same command goes on.' if how is TORCHRUN else replaced
            faults.append(Fault(f'SIGKILL: {how.name}: {"a rank" if how is TORCHRUN else "a worker"}', seen, partial(kills.worker, how=how), of_worker))
    return faults


def _stopped(how: How) -> Fault:
    seen = 'Within a batch: "Stopped: 5 of 12 blocks are in stores/x. The same command goes on from there." Status 130 or 143.'
    if how is TORCHRUN:
        seen = 'torchrun passes the signal on and ends with a status of its own; the same command goes on.'
    return Fault(f'Ctrl-C or SIGTERM: {how.name}', seen, partial(kills.asked_to_stop, how=how), quick=how is ALONE)


def _hangs(how: How) -> Fault:
    seen = 'After --stall-timeout the worker is killed and replaced; the command ends with status 0.'
    if how is TORCHRUN:
        seen = 'After --stall-timeout the rank ends with the trace of where it hung, torchrun ends the others; the same command goes on.'
    return Fault(f'hanging network: {how.name}', seen, partial(models.hang, how=how))


FAULTS = [
    *_killed(),
    *map(_stopped, (ALONE, TWO, TORCHRUN, RAY)),
    *map(_hangs, (TWO, TORCHRUN, RAY)),
    Fault('disk full (tmpfs)', '"... was not written: the disk is full. The 3 finished blocks are kept; free some space ..."', disks.full, quick=True),
    Fault('disk fails (EIO)', '"... was not written: Input/output error. ... run the same command again."', disks.failing, quick=True),
    Fault('disk turns read-only', '"... Read-only file system ..." before any weights load; nothing changes.', disks.read_only),
    Fault('file cut short', 'verify names it, status 4; training stops with its name; repair makes that block again.', disks.cut, quick=True),
    Fault('bit flipped', 'verify names it, status 4; training reads the same pixels or stops; repair makes that block again.', disks.bent, quick=True),
    Fault('file removed', 'verify names it, status 4; repair makes that block again.', disks.removed),
    *(
        Fault(f'weights {what}', 'Refused before any weights load, with the file; the store is not touched.', partial(models.weights, what=what))
        for what in ('missing', 'cut', 'of another shape')
    ),
    Fault('out of memory, batch', 'The batch is halved; at the end: "Memory ran out: ... Set batch_size to that next time."', models.memory, quick=True),
    Fault('out of memory, one image', '"Memory does not suffice for a single image. ..." The same command goes on elsewhere.', models.no_memory),
    Fault('NaN, some images', 'They are rejected with the step at which they went bad, and made up for.', models.nan, quick=True),
    Fault('NaN, all images', '"The quota was not met ... Not one image was accepted." Status 3.', models.all_nan),
    Fault('inspector raises', 'Its own trace, status 1. Finished blocks are kept; the same command goes on.', models.inspector, quick=True),
    Fault('real image cut short', 'Named before anything is made.', partial(models.sources, when='before')),
    Fault(
        'real image vanishes',
        'Named when its turn comes; finished blocks are kept; put back, the same command goes on.',
        partial(models.sources, when='during'),
    ),
    Fault('clock set back a day', 'Nothing: no decision depends on the wall clock.', models.clock, quick=True),
    Fault('clock set back, 2 workers', 'Nothing.', partial(models.clock, how=TWO)),
]


@dataclass
class Tally:
    """What became of one fault."""

    fault: Fault
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    left_out: str = ''


def run(bench: Bench, faults: Sequence[Fault], times: Callable[[Fault], int], seed: int, say: Callable[[str], None] = print) -> list[Tally]:
    """Make faults, each so many times; what is left of a lost case stays where it was made."""
    tallies = []
    for fault in faults:
        tally = Tally(fault)
        for n in range(times(fault)):
            bench.rng = random.Random(f'{seed}/{fault.name}/{n}')  # of its own, so that one case can be made again alone
            started, before = time.monotonic(), set(bench.folder.glob('case-*'))
            try:
                fault.case(bench)
            except disks.NotHere as why:
                tally.left_out = str(why)
                break
            except Exception as error:
                reason = str(error) if isinstance(error, Lost) else f'{type(error).__name__}: {error}'
                tally.lost.append(f'case {n}: {reason}')
                say(f'LOST {fault.name}, case {n}: {reason}')
            else:
                for folder in set(bench.folder.glob('case-*')) - before - {whole.parent for whole in bench._wholes.values()}:
                    shutil.rmtree(folder)
            tally.tried += 1
            say(f'{fault.name}, case {n}: {time.monotonic() - started:.1f} s')
        tallies.append(tally)
    return tallies


def table(tallies: Sequence[Tally]) -> str:
    """What became of all faults."""
    width = max(len(t.fault.name) for t in tallies)
    lines = [f'{"fault":{width}}  tried  survived  lost  what the user sees']
    for t in tallies:
        seen = textwrap.wrap(f'not tried: {t.left_out}' if t.left_out else t.fault.seen, 88)
        lines.append(f'{t.fault.name:{width}}  {t.tried:5}  {t.tried - len(t.lost):8}  {len(t.lost):4}  {seen[0]}')
        lines += [' ' * (width + 25) + part for part in seen[1:]]
    tried, lost = sum(t.tried for t in tallies), sum(len(t.lost) for t in tallies)
    lines.append(f'{"all":{width}}  {tried:5}  {tried - lost:8}  {lost:4}')
    return '\n'.join(lines)


def shares(kills_: int) -> dict[str, int]:
    """How many SIGKILLs each fault gets, that many in all."""
    wanted = {f.name: kills_ * f.kills for f in FAULTS if f.kills}
    given = {name: int(n) for name, n in wanted.items()}
    for name in sorted(wanted, key=lambda name: given[name] - wanted[name])[: kills_ - sum(given.values())]:
        given[name] += 1
    return given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=1, help='decides every random moment, byte and victim')
    parser.add_argument('--kills', type=int, default=100, help='SIGKILLs over all executors')
    parser.add_argument('--times', type=int, help=f'cases of each other fault (default {SHORT}), and at most so many kills of each kind')
    parser.add_argument('--only', default='', help='faults whose name holds this regular expression')
    parser.add_argument('--out', type=Path, help='write the table there')
    parser.add_argument('--folder', type=Path, help='where stores are made; default: a temporary folder')
    arguments = parser.parse_args()
    chosen = [f for f in FAULTS if re.search(arguments.only, f.name)]
    given = shares(arguments.kills)

    def times(fault: Fault) -> int:
        n = given[fault.name] if fault.kills else SHORT if arguments.times is None else arguments.times
        return n if arguments.times is None else min(n, arguments.times)

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix='faults-'))
    started = time.monotonic()
    tallies = run(Bench(folder, random.Random(0)), chosen, times, arguments.seed, lambda line: print(line, file=sys.stderr, flush=True))
    text = table(tallies)
    lost = [f'{t.fault.name}, {reason}' for t in tallies for reason in t.lost]
    versions = f'Python {platform.python_version()}, {platform.machine()}'
    head = f'$ python {shlex.join(sys.argv)}\n{versions}; {(time.monotonic() - started) / 60:.0f} min\n\n'
    print(text, *lost, sep='\n')
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(head + text + '\n' + ''.join(f'LOST {line}\n' for line in lost))
    if not lost and arguments.folder is None:
        shutil.rmtree(folder)
    sys.exit(1 if lost else 0)


if __name__ == '__main__':
    main()
