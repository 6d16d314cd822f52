"""What reading a store on S3 costs: the first pass, which fetches and checks its shards, and later ones, beside the same store on the local disk.

    python tools/benchmarks/bench_remote.py                 # 2000 JPEGs, 5 passes, moto's server on this machine
    python tools/benchmarks/bench_remote.py --images 500

The server is moto's, a process of its own on the loopback address: it has no distance, and no great speed either. So the first pass says what the work on both
sides is (fetching, hashing, comparing with the index), not what a network gives. Local and remote
passes take turns; rates are medians, the ratio that of the medians.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bench_loader import CLASSES, photo

from synthaug_plugins.mixing.records import read_records
from synthaug_plugins.store.cache import CACHE
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id
from synthaug_plugins.store.reader import read_uri
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's server with one bucket; the environment leads there meanwhile. Gives the bucket's address."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while socket.socket().connect_ex(('127.0.0.1', port)):
            time.sleep(0.1)
        os.environ |= {
            'AWS_ACCESS_KEY_ID': 'x',
            'AWS_SECRET_ACCESS_KEY': 'x',
            'AWS_DEFAULT_REGION': 'us-east-1',
            'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}',
        }
        import s3fs

        s3fs.S3FileSystem().mkdir('bench')
        yield 's3://bench'
    finally:
        process.kill()
        process.wait()


def make(folders: list[str], n: int) -> float:
    """The same store at several places; mean size of its images in kB."""
    plan = Plan(CLASSES, make_blocks(CLASSES, n // len(CLASSES)), {})
    stores, rng, total = [Store.create(folder, plan, {}) for folder in folders], np.random.default_rng(0), 0
    for block in plan.blocks:
        rows = []
        for part, number in ((p, i) for p in block.parts for i in range(p.target)):
            data = photo(rng)
            total += len(data)
            rows.append(Row(Request(request_id(part, number), part.label, part.class_name, number), 'kept', None, 'jpg', data))
        for store in stores:
            store.publish(block, rows, keep_rejected=False)
    return total / n / 1e3


def one_pass(addresses: list[str], seed: int) -> float:
    """Images per second of all images, once, in random order."""
    start = time.perf_counter()
    for i in np.random.default_rng(seed).permutation(len(addresses)):
        read_uri(addresses[i])
    return len(addresses) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=2000)
    parser.add_argument('--passes', type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket:
        os.environ[CACHE] = str(Path(folder) / 'cache')
        places = {'local': f'{folder}/store', 'S3': f'{bucket}/store'}
        size = make(list(places.values()), args.images)
        opened, addresses = {}, {}
        for name, place in places.items():
            start = time.perf_counter()
            records = read_records({'store': place})
            opened[name] = time.perf_counter() - start
            addresses[name] = [records.uri(i) for i in range(len(records))]
        first = {name: one_pass(addresses[name], 0) for name in places}
        later: dict[str, list[float]] = {name: [] for name in places}
        for number in range(1, args.passes + 1):
            for name in list(places) if number % 2 else reversed(list(places)):
                later[name].append(one_pass(addresses[name], number))
    rates = {name: statistics.median(values) for name, values in later.items()}
    print(f'{args.images} JPEGs of {size:.0f} kB, {args.passes} passes after the first, in random order, one process')
    print(f'{"":8}{"open s":>10}{"first pass img/s":>20}{"later img/s":>14}{"against local":>16}')
    for name in places:
        print(f'{name:8}{opened[name]:10.3f}{first[name]:20.0f}{rates[name]:14.0f}{rates[name] / rates["local"]:16.3f}')


if __name__ == '__main__':
    main()
