"""Find damage in a store, and clear damaged blocks away so that they are made again.

The bytes of a shard follow from its images and its index, so each one is checked by writing it again in memory: a
flipped bit anywhere, headers and padding included, is a difference.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import open_shards
from synthaug_plugins.store.card import CARD
from synthaug_plugins.store.cost import COST
from synthaug_plugins.store.lease import LEASE
from synthaug_plugins.store.place import Foreign, TooLong, Unreachable
from synthaug_plugins.store.plan import Block
from synthaug_plugins.store.scores import SCORE_KEYS, UNFINISHED
from synthaug_plugins.store.shard import KEPT, archive, index_name, read_index, shard_name
from synthaug_plugins.store.store import FOLDERS, INFO_FILE, Store
from synthaug_plugins.store.table import INDEX_SCHEMA, damage, read_parquet


@dataclass(frozen=True)
class Fault:
    """One finding.

    Attributes:
        block: number of the block to redo, or None if no block is at fault.
        file: the file, relative to the store's folder.
        what: what is wrong with it.
    """

    block: int | None
    file: str
    what: str

    def __str__(self) -> str:
        return f'{self.file}: {self.what}'


def verify(store: Store) -> list[Fault]:
    """Read every byte of a store and compare it with the index and the plan.

    Finds: blocks not finished or lost, shards cut short or changed anywhere, missing members, unreadable indexes and
    scores, rows that the plan does not allow (label, repeated ids, quota missed with tries left), files that are not part
    of the store, and temporary files of a killed run. Changes nothing.
    """
    with ThreadPoolExecutor(4) as pool:  # hashing and reading release the GIL
        faults = [fault for found in pool.map(lambda block: list(block_faults(store, block)), store.plan.blocks) for fault in found]
    damaged = {f.block for f in faults}
    owner: dict[str, int] = {}
    hashes: dict[str, str] = {}
    columns: dict[str, str] = {}
    for block in store.plan.blocks:
        if block.index in damaged:
            continue
        table = read_index(store.place, block.index)
        for name in table['id'].to_pylist():
            if owner.setdefault(name, block.index) != block.index:
                faults.append(Fault(block.index, index_name(block.index), f'the id {name!r} is in block {owner[name]} too'))
                break
        hashes.update(zip(table['id'].to_pylist(), table['sha256'].to_pylist(), strict=True))
        columns.update(dict.fromkeys((c.lower() for c in table.column_names[len(INDEX_SCHEMA) :]), 'the index'))
    faults += _score_faults(store, hashes, columns, complete=not damaged)
    faults += _folder_faults(store)
    return faults


def discard(store: Store, faults: Iterable[Fault]) -> list[int]:
    """Remove the files of damaged blocks and temporary files of killed runs; generation then makes just these blocks again.

    Files that are not part of the store, and score files, are never removed. Call it under `store.lock()`.

    Returns: the numbers of the blocks to redo, sorted.
    """
    store.check_lease()  # verifying takes long; who took over meanwhile may have made these blocks again
    faults = list(faults)
    blocks = sorted({f.block for f in faults if f.block is not None})
    for number in blocks:
        store.place.remove(index_name(number))  # first: without it the block is not finished
        store.place.remove(shard_name(number))
    if blocks or any(f.file == INFO_FILE for f in faults):
        store.place.remove(INFO_FILE)  # written again when all blocks are there
    store.clean_partials()
    for name in FOLDERS[:2]:
        store.place.sync(name)
    open_shards.forget_open_files()
    return blocks


def block_faults(store: Store, block: Block, read: Callable[[str, int], bytes] | None = None) -> Iterable[Fault]:
    """What is wrong with one block's index and shard. read: gives the shard of a name, of at most so many bytes; default: as `store.place` does."""
    place, tar, index = store.place, shard_name(block.index), index_name(block.index)

    def fault(file: str, what: str) -> Fault:
        return Fault(block.index, file, what)

    try:
        if not place.exists(index):
            yield fault(index, 'missing, so its shard counts as not finished' if place.exists(tar) else 'not made yet, or lost together with its shard')
            return
        table = read_index(place, block.index)
    except Unreachable:
        raise
    except StoreError as error:
        yield fault(index, f'damaged ({error.what})')
        return
    if what := damage(place, index, table):
        yield fault(index, f'damaged ({what})')
        return
    records = table.select(INDEX_SCHEMA.names).to_pylist()
    for what in _plan_faults(block, records):
        yield fault(index, what)
    try:
        data = (read or place.read)(tar, _longest(records))
    except FileNotFoundError:
        yield fault(tar, 'missing')
        return
    except (Foreign, TooLong) as error:
        yield fault(tar, f'damaged ({error.what})')
        return
    except OSError as error:
        yield fault(tar, f'cannot be read ({error.strerror})')
        return
    for what in _tar_faults(data, records, block.class_names):
        yield fault(tar, what)


def _plan_faults(block: Block, records: Sequence[dict[str, Any]]) -> Iterable[str]:
    if len({r['id'] for r in records}) != len(records):
        yield 'ids are repeated'
    if foreign := {r['label'] for r in records} - set(block.class_names):
        yield f'rows have another label than those of the block: {", ".join(map(str, sorted(foreign)))}'
    if any(r['verdict'] == KEPT and r['offset'] is None for r in records):
        yield 'kept rows have no image'
    if any((r['verdict'] == KEPT) != (r['reason'] is None) for r in records):
        yield 'verdicts and reasons do not fit together'
    tried, kept = Counter(r['label'] for r in records), Counter(r['label'] for r in records if r['verdict'] == KEPT)
    for part in block.parts:
        if kept[part.label] < part.target and tried[part.label] < part.max_tries:
            counts = f'{kept[part.label]} of {part.target} images after {tried[part.label]} of {part.max_tries} tries'
            yield f'{part.class_name}: {counts}: the block was not finished'


def _longest(records: Sequence[dict[str, Any]]) -> int:
    """Bytes that a shard with these records cannot exceed: three headers and paddings an image, and what its sidecar says, escaped."""
    texts = ('id', 'source', 'prompt', 'params')
    stored = [r for r in records if r['offset'] is not None]
    return 4096 + sum(r['size'] + 8192 + 6 * sum(len((r[key] or '').encode()) for key in texts) for r in stored)


def _tar_faults(data: bytes, records: Sequence[dict[str, Any]], class_names: Mapping[int, str]) -> Iterable[str]:
    """Differences between a tar's bytes and what index and images say they must be."""
    stored = [r for r in records if r['offset'] is not None]
    end = max((r['offset'] + r['size'] for r in stored), default=0)
    if len(data) < end:
        yield f'cut short: {len(data)} bytes, the index needs at least {end}'
        return
    images = {r['id']: data[r['offset'] : r['offset'] + r['size']] for r in stored}
    changed = [r['id'] for r in stored if hashlib.sha256(images[r['id']]).hexdigest() != r['sha256']]
    if changed:
        yield f'{len(changed)} images are missing or changed (their sha256 differs), the first is {changed[0]!r}'
        return
    try:
        chunks, offsets = archive(records, images, class_names)
    except (ValueError, TypeError, KeyError) as error:
        yield f'cannot be compared with its index ({error})'
        return
    expected = b''.join(chunks)
    if data == expected and all(offsets[r['id']] == (r['offset'], r['size']) for r in stored):
        return
    if len(data) < len(expected) and expected.startswith(data):
        yield f'cut short: {len(data)} of {len(expected)} bytes'
        return
    at = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), min(len(data), len(expected)))
    starts = accumulate((len(c) for c in chunks), initial=0)
    headers = [(start, c) for start, c in zip(starts, chunks, strict=False) if start <= at and len(c) == 512 and c[257:262] == b'ustar']
    member = headers[-1][1][:100].rstrip(b'\0').decode() if headers else 'its beginning'
    yield f'{len(data)} bytes for {len(expected)}, different from the index from byte {at} on, at {member}'


def _score_faults(store: Store, hashes: dict[str, str], columns: dict[str, str], complete: bool) -> Iterable[Fault]:
    for name in store.score_files():
        try:
            table = read_parquet(store.place, name, rows=store.plan.tries)
        except Unreachable:
            raise
        except StoreError as error:
            yield Fault(None, name, f'damaged ({error.what}); score again')
            continue
        if any(key not in table.column_names or not pa.types.is_string(table.schema.field(key).type) for key in SCORE_KEYS):
            yield Fault(None, name, 'has no columns id and sha256')
            continue
        if what := damage(store.place, name, table):
            yield Fault(None, name, f'damaged ({what}); score again')
            continue
        unknown = [i for i in table['id'].to_pylist() if i not in hashes]
        if unknown and complete:
            yield Fault(None, name, f'scores {len(unknown)} ids that are not in the store, the first is {unknown[0]!r}; score again')
        changed = [i for i, sha256 in zip(table['id'].to_pylist(), table['sha256'].to_pylist(), strict=True) if i in hashes and hashes[i] != sha256]
        if changed:
            yield Fault(
                None, name, f'scores {len(changed)} images that were made again since, the first is {changed[0]!r}; they count as not scored: score again'
            )
        for column in table.column_names:
            if column not in SCORE_KEYS and columns.setdefault(column.lower(), name) != name:
                yield Fault(None, name, f'its column {column!r} is in {columns[column.lower()]} too; remove one of them')


def _folder_faults(store: Store) -> Iterable[Fault]:
    """Temporary files, files that are not part of the store, and a wrong or missing list of shards."""
    place, leftover = store.place, set(store.partials())
    for name in sorted(leftover):
        yield Fault(None, name, 'left by a killed run')
    known = {CARD, COST, INFO_FILE, LEASE, *store.score_files(), *(f'{name}/' for name in FOLDERS)}
    for block in store.plan.blocks:
        known |= {shard_name(block.index), index_name(block.index)}
    for folder in ('', *sorted(FOLDERS)):
        for name in (f'{folder}/{name}' if folder else name for name in place.names(folder)):
            if name not in known and name not in leftover:
                what = 'not part of the store; it is left alone'
                if name.endswith('/') and name.rpartition('/')[0].rpartition('/')[2].startswith(UNFINISHED):
                    what = 'left by a scoring that did not end; the same `synthaug score` goes on with it'
                yield Fault(None, name.rstrip('/'), what)
    if not store.unfinished():
        try:
            expected = store.info_text().encode()
        except Unreachable:
            raise
        except StoreError:  # a damaged index is reported with its block
            return
        try:
            wrong = not place.exists(INFO_FILE) or place.read(INFO_FILE, len(expected)) != expected
        except (Foreign, TooLong, OSError):
            wrong = True
        if wrong:
            yield Fault(None, INFO_FILE, 'missing or different from the shards; repair writes it again')
