"""Fuzz the reader of stores: changed shards, indices, scores, cards and links; an error of ours or a correct read, never anything else.

    python tools/faults/fuzz_store.py --cases 20000 --seed 1

Each case is a store of its own, changed once by `store_mutations.mutate` and read in every way that commands and trainers read one. Processes do the cases, so
a crash or a hang is one case's. Ends with status 1 if anything but a correct read or an error of ours was seen; prints each such case's seed, for --only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from store_mutations import Draws, RandomDraws, make_whole_store, mutate

from synthaug_plugins.errors import SynthAugError
from synthaug_plugins.evaluation.gallery import counts, gallery
from synthaug_plugins.handover.card import data_card
from synthaug_plugins.handover.export import LAYOUTS, export
from synthaug_plugins.mixing.records import read_records
from synthaug_plugins.store.encode import decode
from synthaug_plugins.store.open_shards import forget_open_files
from synthaug_plugins.store.reader import StoreReader, read_uri
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.sheet import contact_sheet
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import discard, verify

SECONDS = 60
"""Longest that a case may take."""
_STARTS = {'subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'socket.connect', 'pickle.find_class', 'ctypes.dlopen'}


class Watch:
    """What Python code of this process opens, lists and starts while it is on; a hook cannot be taken off again."""

    def __init__(self) -> None:
        self.on, self.allowed, self.seen = False, (), []
        self.code = tuple({sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(__file__).parents[2])})
        sys.addaudithook(self._hook)

    def start(self, *folders: Path) -> None:
        """Watch; only these folders, and what Python itself loads, may be opened."""
        self.allowed, self.seen, self.on = (*map(str, folders), *self.code, '/proc/', '/sys/', '/dev/null', '/usr/share/zoneinfo'), [], True

    def stop(self) -> list[str]:
        """What was not allowed."""
        self.on = False
        return self.seen

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _STARTS:
            self.seen.append(f'{event} {str(args)[:100]}')
        elif event in ('open', 'os.listdir', 'os.scandir') and isinstance(args[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(args[0]))
            if not path.startswith(self.allowed):
                self.seen.append(f'{event} {path}')


def read_everything(folder: Path, out: Path) -> list[str]:
    """Read a store as commands and trainers do; the names of what was refused. Anything but an error of ours comes through."""
    refused = []

    def attempt(name: str, call: Any) -> Any:
        try:
            return call()
        except SynthAugError:
            refused.append(name)
            return None

    forget_open_files()
    if (store := attempt('open', lambda: Store.open(folder))) is None:
        return refused
    reader = StoreReader(folder)

    def images(only: str | None) -> None:
        for row in store.index(['id', 'shard', 'offset', 'size', 'sha256'], only).to_pylist():
            decode(reader.read_image(row), row['id'])

    def records() -> None:
        found = read_records({'store': str(folder), 'select': {'allow_empty': True}}, prompts=True)
        found.prompt_groups()
        for row in range(len(found)):
            read_uri(found.uri(row))

    where = "clip_p >= 0 and params.sigma < 1 and class != 'x'"
    attempt('counts', store.counts)
    attempt('index', store.index)
    attempt('select', lambda: select(store, where, allow_empty=True))
    attempt('top', lambda: select(store, top_k=0.5, by='rarity', sample=1, rejected=True, allow_empty=True))
    attempt('kept images', lambda: images('kept'))
    attempt('stored images', lambda: images('stored'))
    attempt('records', records)
    attempt('sheet', lambda: contact_sheet(store, out / 'sheet.png', select(store, rejected=True, allow_empty=True)))
    for layout in LAYOUTS:
        attempt(f'export {layout}', lambda to=layout: export(store, out / to, to))
    attempt('card', lambda: data_card(store))
    attempt('made by', lambda: store.scores_made_by('later'))
    attempt('gallery', lambda: gallery(store))
    attempt('report', lambda: counts(store, [('arm', where)]))
    faults = attempt('verify', lambda: verify(store))
    if faults:
        refused.append('faults')
        attempt('discard', lambda: discard(store, faults))
    return refused


def one_case(draw: Draws, whole: Path, watch: Watch) -> tuple[str, bool]:
    """The kind of change of a case, and whether anything of the store was refused.

    Raises:
        AssertionError: something was read wrongly, or outside; anything else that is no error of ours.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, outside, out = (Path(scratch) / name for name in ('store', 'outside', 'out'))
        outside.mkdir()
        out.mkdir()
        shutil.copytree(whole, folder)
        kind = mutate(folder, outside, draw)
        before = listing(outside)
        watch.start(folder, out, Path(f'{scratch}/out'))
        try:
            refused = read_everything(folder, out)
        finally:
            seen = watch.stop()
        assert not seen, f'outside of the store: {seen[:3]}'
        assert listing(outside) == before, 'what lies outside has changed'
        if kind == 'bytes' and 'faults' not in refused and 'open' not in refused and 'verify' not in refused:
            assert content(folder) == content(whole), 'another content without a fault'
        return kind, bool(refused)


def content(folder: Path) -> Any:
    """What a reader takes from a store, to be compared."""
    store = Store.open(folder)
    table = store.index()
    return store.plan, table.to_pylist(), [StoreReader(folder).read_image(row) for row in table.to_pylist() if row['offset'] is not None]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of everything in a folder."""
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in sorted(folder.rglob('*'))}


def _work(seeds: range, whole: Path, out: Any) -> None:
    watch = Watch()
    for seed in seeds:
        out.send((seed, None, None))
        try:
            kind, refused = one_case(RandomDraws(seed), whole, watch)
            out.send((seed, kind, 'refused' if refused else 'read'))
        except BaseException:
            out.send((seed, 'fault', traceback.format_exc()))
    out.close()


def campaign(first: int, cases: int, whole: Path, seconds: float = float('inf')) -> tuple[Counter[tuple[str, str]], list[tuple[int, str]]]:
    """Counts by kind of change and outcome, and the cases that went wrong with what was seen; ends after so many seconds."""
    deadline = time.monotonic() + seconds
    table: Counter[tuple[str, str]] = Counter()
    wrong: list[tuple[int, str]] = []
    seed, context = first, get_context('fork')
    while seed < first + cases:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(range(seed, first + cases), whole, theirs))
        process.start()
        theirs.close()
        try:
            while ours.poll(SECONDS):
                seed, kind, said = ours.recv()
                if kind == 'fault':
                    wrong.append((seed, said))
                elif kind is not None:
                    table[kind, said] += 1
                seed += kind is not None
                if time.monotonic() > deadline:
                    process.kill()
                    return table, wrong
            wrong.append((seed, f'a hang of more than {SECONDS} s'))
            process.kill()
            seed += 1
        except EOFError:
            process.join()
            if process.exitcode:
                wrong.append((seed, f'a crash: the process ended with {process.exitcode}'))
                seed += 1
    return table, wrong


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=2000)
    parser.add_argument('--seed', type=int, default=0, help='of the first case; the next ones count on')
    parser.add_argument('--seconds', type=float, default=float('inf'), help='ends after so long, however many cases that were')
    parser.add_argument('--only', type=int, help='one case in this process, with its traceback')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(make_whole_store(Path(scratch) / 'whole' / 'store').folder)  # copies have its name, which timm's list of shards says
        if given.only is not None:
            print(one_case(RandomDraws(given.only), whole, Watch()))
            return 0
        started = time.monotonic()
        table, wrong = campaign(given.seed, given.cases, whole, given.seconds)
    kinds = sorted({kind for kind, _ in table})
    print(f'{"change":10}{"tried":>8}{"refused":>9}{"read":>8}')
    for kind in kinds:
        refused, read = table[kind, 'refused'], table[kind, 'read']
        print(f'{kind:10}{refused + read:8}{refused:9}{read:8}')
    print(f'{"all":10}{table.total():8}{sum(table[k, "refused"] for k in kinds):9}{sum(table[k, "read"] for k in kinds):8}')
    last = given.seed + table.total() + len(wrong) - 1
    print(f'{len(wrong)} wrong, seeds {given.seed} to {last}, {time.monotonic() - started:.0f} s')
    for seed, said in wrong[:20]:
        print(f'--- seed {seed}\n{said}')
    return bool(wrong)


if __name__ == '__main__':
    sys.exit(main())
