"""What a store of millions costs to open: time and memory, for one and for five million images.

    python tools/benchmarks/bench_index.py                            # 1 and 5 million rows in blocks of 4096, about 9 minutes on 2 cores
    python tools/benchmarks/bench_index.py --rows 1000000 --block-size 256

Rows are invented, everything else is real: the plan, its card, the writer of index files, `Store`, `StoreDataset`, `MixedDataset`. There are no shards,
since opening a store reads none (a mixed training set reads one image). Every case is a process of its own, so memory is what that case alone needs;
figures are medians of `--rounds`. The files were just written, so they are in the machine's cache: from a cold disk add the time to read their size.

A record says: one of a thousand classes, a prompt that it shares with nine others, no source (with --sources: a source that it shares with nine others),
seed and params, as a text-to-image recipe writes them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from synthaug_plugins import compat
from synthaug_plugins.store.address import place_of
from synthaug_plugins.store.card import card_text
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.index import read_blocks
from synthaug_plugins.store.plan import Block, Plan, make_blocks, request_id, request_seed
from synthaug_plugins.store.shard import index_name, shard_name
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import INDEX_SCHEMA, parquet_bytes

CLASSES = tuple(f'class {i:04d}' for i in range(1000))
PER_PROMPT = 10


def make_store(folder: Path, rows: int, block_size: int, sources: bool, jobs: int) -> float:
    """A finished store whose shards are empty, since no image is read; returns the MB of its index files."""
    for name in ('index', 'shards'):
        (folder / name).mkdir(parents=True)
    plan = Plan(CLASSES, make_blocks(CLASSES, rows // len(CLASSES), block_size=block_size), {'generator': {'type': 'TextToImage'}})
    (folder / 'store.json').write_text(card_text(plan, {'recipe': {}}), encoding='utf-8')
    with ProcessPoolExecutor(jobs) as pool:
        return sum(pool.map(partial(write_index, folder, sources), plan.blocks, chunksize=8)) / 1e6


def write_index(folder: Path, sources: bool, block: Block) -> int:
    """The index of a block as `write_block` writes it; returns its size."""
    requests = [(part, number) for part in block.parts for number in range(part.target)]
    rng = np.random.default_rng(block.index)
    sizes = rng.integers(20_000, 60_000, len(requests))
    ends = np.cumsum(512 * (-(-sizes // 512) + 5))  # the image, its header, label and sidecar
    prompts = [f'a photo of a {part.class_name} on a table near the window, number {(part.first + n) // PER_PROMPT}' for part, n in requests]
    table = pa.table(
        {
            'id': [request_id(part, n) for part, n in requests],
            'label': [part.label for part, _ in requests],
            'source': [f'{part.class_name}/{(part.first + n) // PER_PROMPT:08d}.jpg' if sources else None for part, n in requests],
            'prompt': prompts,
            'seed': [request_seed(0, part, n) for part, n in requests],
            'params': [json.dumps({'guidance_scale': 2.0, 'negative_prompt': None, 'num_steps': 50}) for _ in requests],
            'offset': ends - 512 * (-(-sizes // 512) + 4),
            'size': sizes,
            'sha256': [rng.bytes(32).hex() for _ in requests],
            'verdict': ['kept'] * len(requests),
            'reason': [None] * len(requests),
        },
        schema=INDEX_SCHEMA,
    )
    data = parquet_bytes(table)
    (folder / index_name(block.index)).write_bytes(data)
    (folder / shard_name(block.index)).touch()
    return len(data)


# --- what is measured, each in a process of its own


def open_card(store: str) -> Any:
    return Store.open(store)


def whole_index(store: str) -> Any:
    return Store.open(store).index()


def store_dataset(store: str) -> Any:
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope('mmpretrain')
    return DATASETS.build({'type': 'synthaug_plugins.StoreDataset', 'store': store, 'pipeline': []})


def groups_by_prompt(store: str) -> Any:
    dataset = store_dataset(store)
    return dataset, dataset.prompt_groups()


def mixed_dataset(store: str) -> Any:
    """Beside a thousand real images, one of each class."""
    from mmengine.registry import DATASETS, init_default_scope

    real = Path(store) / 'real'
    if not real.exists():
        for name in CLASSES:
            (real / name).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(real / name / '0.png')
        # The one image of the store that is read, to compare sizes.
        first = read_blocks(place_of(store), [0], ['offset', 'size']).slice(0, 1).to_pylist()[0]
        (Path(store) / shard_name(0)).write_bytes(bytes(first['offset']) + encode(np.zeros((8, 8, 3), np.uint8), 'png', 100).ljust(first['size'], b'\0'))
    init_default_scope('mmpretrain')
    dataset = {'type': 'CustomDataset', 'data_root': str(real), 'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]}
    mixed = DATASETS.build({'type': 'synthaug_plugins.MixedDataset', 'real': dataset, 'stores': [{'store': store}], 'sources': 'any'})
    return mixed, mixed.walk(0).at(np.arange(8))


CASES: dict[str, Callable[[str], Any]] = {
    'Store.open': open_card,
    'StoreDataset': store_dataset,
    'StoreDataset, prompt groups': groups_by_prompt,
    'MixedDataset, partner any': mixed_dataset,
    'Store.index(), every column': whole_index,
}


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process now and at its highest."""
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(status['VmRSS'].split()[0]) / 1024, int(status['VmHWM'].split()[0]) / 1024


def measure(case: str, store: str, small: str) -> None:
    """Print seconds, CPU seconds and MB (now, highest) that a case adds on `store`, after it ran on a small store that loads all code."""
    compat.apply()
    if case != 'Store.open':
        CASES[case](small)
    before = memory_mb()[0]
    start, worked = time.perf_counter(), time.process_time()
    kept = CASES[case](store)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    now, highest = memory_mb()
    print(json.dumps({'seconds': seconds, 'cpu': worked, 'now': now - before, 'highest': highest - before}))
    del kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, nargs='+', default=[1_000_000, 5_000_000])
    parser.add_argument('--block-size', type=int, default=4096)
    parser.add_argument('--sources', action='store_true', help='images started from real ones')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--jobs', type=int, default=2, help='processes that write the stores')
    parser.add_argument('--measure', nargs=3, metavar=('CASE', 'STORE', 'SMALL'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    with tempfile.TemporaryDirectory() as root:
        small = Path(root) / 'small'
        make_store(small, 2000, args.block_size, args.sources, 1)
        for rows in args.rows:
            store = Path(root) / str(rows)
            size = make_store(store, rows, args.block_size, args.sources, args.jobs)
            files = sum(1 for _ in (store / 'index').iterdir())
            print(f'\n{rows:,} images, {files:,} index files of {size:.0f} MB together, sources: {"yes" if args.sources else "no"}, median of {args.rounds}')
            print(f'{"":30}{"seconds":>10}{"CPU s":>9}{"MB":>9}{"MB/million":>12}{"MB at most":>12}')
            for case in CASES:
                command = [sys.executable, __file__, '--measure', case, str(store), str(small)]
                seen = []
                for _ in range(args.rounds):
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    seen.append(json.loads(done.stdout.splitlines()[-1]))
                seconds, cpu, now, highest = (statistics.median(s[k] for s in seen) for k in ('seconds', 'cpu', 'now', 'highest'))
                print(f'{case:30}{seconds:10.2f}{cpu:9.2f}{now:9.0f}{now / rows * 1e6:12.0f}{highest:12.0f}', flush=True)


if __name__ == '__main__':
    main()
