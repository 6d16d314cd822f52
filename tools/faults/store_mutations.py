"""Ways in which a stranger's store can differ from one that this package wrote, down to files whose own digests are right."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthaug_plugins.store.cost import RunCost
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id, request_seed
from synthaug_plugins.store.shard import Row, archive, index_name, shard_name
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import parquet_bytes

T = TypeVar('T')
NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 511, 512, 2**31 - 1, 2**31, 2**42, 2**53, 2**62, 2**63 - 1)
TEXTS = (
    *('', '.', '..', '../../x', '/etc/passwd', 'a\0b', 'x' * 70_000, '<script>alert(1)</script>', '\x1b[31mred', "'; drop table images; --"),
    *('\u202e', '💥', 'NaN'),
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *TEXTS,
    *(10**30, 10**400, 0.5, -0.0, 1e308, float('nan'), float('inf'), None, True, [], {}, [[]], {'': 1}, '\ud800', ['a', 1]),
)


class Draws(Protocol):
    """Where the choices come from: a seed, or a tester that makes a failing case smaller."""

    def integer(self, low: int, high: int) -> int:
        """low to high, both included."""

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""


class RandomDraws:
    """Choices from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        """As in `Draws`."""
        return self._random.randint(low, high)

    def choice(self, items: Sequence[T]) -> T:
        """As in `Draws`."""
        return items[self.integer(0, len(items) - 1)]


def make_whole_store(folder: Path) -> Store:
    """A finished store of three classes in three blocks, with rejected images, a score column in the index, and scores of three kinds added later."""
    classes = ('one', 'two', 'three')
    sources = {name: [f'{name}/{i}.png' for i in range(2)] for name in classes}
    plan = Plan(classes, make_blocks(classes, 4, sources, 6), {'generator': {'type': 'EDM', 'steps': 18}, 'seed': 0})
    store = Store.create(folder, plan, {'model': {'name': 'embedded:test'}, 'recipe': {'generator': {'type': 'EDM'}, 'data': 'no/such/folder'}})
    for block in plan.blocks:
        rows = []
        for part in block.parts:
            for number in range(part.target + 1):
                seed = request_seed(0, part, number)
                image = encode(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8), 'png', 90)
                request = Request(request_id(part, number), part.label, part.class_name, seed, part.source(number), f'a {part.class_name}', {'sigma': 0.3})
                reason = 'blank (contrast 1 below 2)' if number == part.target else None
                rows.append(Row(request, 'rejected' if reason else 'kept', reason, 'png', image, {'clip_p': number / 10}))
        store.publish(block, rows, keep_rejected=True)
    ids = store.index(['id'])['id']
    lists = pa.array([[float(i), 0.5] for i in range(len(ids))], pa.list_(pa.float32()))
    store.add_scores('later', pa.table({'id': ids, 'rarity': np.linspace(0, 1, len(ids)), 'logits': lists, 'why': ['none'] * len(ids)}), {'inspectors': []})
    store.add_cost(RunCost(images=len(ids), seconds=1.0, batch_size=4))
    return store


def mutate(folder: Path, outside: Path, draw: Draws) -> str:
    """Change a store made by `make_whole_store` in one way; returns which.

    Args:
        outside: a folder that links may lead to.
    """
    name, change = draw.choice(sorted(MUTATIONS.items()))
    change(folder, outside, draw)
    return name


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob('*') if p.is_file() and not p.is_symlink())


def _bytes(folder: Path, outside: Path, draw: Draws) -> None:
    """Flip, cut, repeat or insert bytes of any file."""
    path = draw.choice(_files(folder))
    data = bytearray(path.read_bytes())
    for _ in range(draw.integer(1, 3)):
        at, n = draw.integer(0, max(len(data) - 1, 0)), draw.integer(1, 40)
        match draw.integer(0, 3):
            case 0 if data:
                data[at] ^= 1 << draw.integer(0, 7)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[at : at + n]
            case _:
                data[at : at + n] = bytes([draw.integer(0, 255)]) * n
    path.write_bytes(data)


def _json(name: str) -> Callable[[Path, Path, Draws], None]:
    def change(folder: Path, outside: Path, draw: Draws) -> None:
        """Put another value anywhere into a JSON file; the fingerprint fits again."""
        path = folder / name
        content = json.loads(path.read_text())
        for _ in range(draw.integer(1, 2)):
            _replace(content, draw)
        if isinstance(content, dict) and draw.integer(0, 3):
            plan = {key: content.get(key) for key in ('classes', 'recipe', 'sources', 'blocks')}
            content['fingerprint'] = hashlib.sha256(json.dumps(plan, sort_keys=True, ensure_ascii=False).encode(errors='replace')).hexdigest()
        text = json.dumps(content)
        match draw.integer(0, 9):
            case 0:
                text = text.replace('{', '{"classes": [], "classes": 1, ', 1)
            case 1:
                text = '[' * 5000 + text + ']' * 5000
        path.write_text(text)

    return change


def _replace(content: Any, draw: Draws) -> None:
    """Walk down to some place in nested lists and dicts and change what is there."""
    while isinstance(content, dict | list) and content:
        key = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if not isinstance(content[key], dict | list) or not content[key] or not draw.integer(0, 4):
            if not draw.integer(0, 4):
                del content[key]
            else:
                content[key] = draw.choice(VALUES)
            return
        content = content[key]


def _parquet(pattern: str) -> Callable[[Path, Path, Draws], None]:
    def change(folder: Path, outside: Path, draw: Draws) -> None:
        """Put other values, types, names or rows into a table; its digest and checksums are right."""
        path = draw.choice(sorted(folder.glob(pattern)))
        table = pq.read_table(path)
        made_by = {'inspectors': []} if 'scores' in pattern else None
        i = draw.integer(0, table.num_columns - 1)
        match draw.integer(0, 6):
            case 0:
                names = table.column_names
                names[i] = draw.choice([*names, 'class', 'CLIP_P', 'a b', '"', ''])
                table = table.rename_columns(names)
            case 1:
                table = table.remove_column(i)
            case 2:
                table = table.take(pa.array([draw.integer(0, len(table) - 1) for _ in range(draw.integer(0, 2 * len(table)))], pa.int64()))
            case 3:
                odd = draw.choice([pa.nulls(len(table)), pa.array([{'a': 1}] * len(table)), pa.array([b'\xff'] * len(table)), pa.array([['x']] * len(table))])
                table = table.set_column(i, table.column_names[i], odd)
            case _:
                table = table.set_column(i, table.column_names[i], _other_values(table.column(i), draw))
        path.write_bytes(parquet_bytes(table, made_by))

    return change


def _other_values(column: pa.ChunkedArray, draw: Draws) -> pa.Array:
    values = column.to_pylist()
    pool: Sequence[Any] = TEXTS if pa.types.is_string(column.type) else (*NUMBERS, 0.5)
    for _ in range(draw.integer(1, 3)):
        value = draw.choice([None, *pool, *(v for v in values if v is not None)])
        values[draw.integer(0, len(values) - 1)] = [value] * draw.integer(0, 3) if isinstance(values[0], list) and not isinstance(value, list) else value
    for kind in (column.type, pa.int64(), pa.float64(), pa.string()):
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
    return pa.nulls(len(values))


def _images(folder: Path, outside: Path, draw: Draws) -> None:
    """Put other bytes in the place of images, with an index that fits them."""
    store = Store.open(folder)
    block = draw.choice(store.plan.blocks)
    path = folder / index_name(block.index)
    table = pq.read_table(path)
    records = table.to_pylist()
    tar = (folder / shard_name(block.index)).read_bytes()
    images = {r['id']: tar[r['offset'] : r['offset'] + r['size']] for r in records if r['offset'] is not None}
    first = draw.choice(sorted(images))
    png = images[first]
    bomb = bytearray(png)
    bomb[16:24] = b'\x00\x00\xff\xff' * 2  # width and height
    images[first] = draw.choice([png[:40], png[:8], b'\x89PNG\r\n\x1a\n' + b'\0' * 64, b'\xff\xd8\xff' + b'\0' * 20, b'RIFF\xff\xff\xff\xffWEBP', bytes(bomb)])
    chunks, offsets = archive(records, images, block.class_names)
    if not draw.integer(0, 3):  # a decoder of PostScript would start a program
        other = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n'.ljust(len(images[first]))
        chunks = [other if chunk == images[first] else chunk for chunk in chunks]
        images[first] = other
    for record in records:
        record['offset'], record['size'] = offsets.get(record['id'], (None, None))
        if record['id'] == first:
            record['sha256'] = hashlib.sha256(images[first]).hexdigest()
    (folder / shard_name(block.index)).write_bytes(b''.join(chunks))
    path.write_bytes(parquet_bytes(pa.Table.from_pylist(records, schema=table.schema.remove_metadata())))


def _links(folder: Path, outside: Path, draw: Draws) -> None:
    """Put a link, a pipe or a folder in the place of a file or folder; or remove it."""
    path = draw.choice(sorted(folder.rglob('*')))
    moved = outside / path.name
    match draw.integer(0, 4):
        case 0:
            path.rename(moved)
            path.symlink_to(moved)
        case 1:
            path.rename(moved)
            path.symlink_to(os.path.relpath(moved, path.parent), target_is_directory=moved.is_dir())
        case 2 if path.is_file():
            path.unlink()
            os.mkfifo(path)
        case 3 if path.is_file():
            path.unlink()
            path.mkdir()
        case _:
            path.rename(moved)


MUTATIONS: dict[str, Callable[[Path, Path, Draws], None]] = {
    'bytes': _bytes,
    'card': _json('store.json'),
    'cost': _json('cost.json'),
    'images': _images,
    'index': _parquet('index/*.parquet'),
    'links': _links,
    'scores': _parquet('scores/*.parquet'),
}
"""By name: changes of a store in a folder."""
