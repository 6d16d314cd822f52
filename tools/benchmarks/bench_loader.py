"""What mixing costs: a stock MMPretrain loader beside ours, in CPU time and images per second; and what a store alone costs beside a folder.

    python tools/benchmarks/bench_loader.py                 # 1000 images, 9 rounds, no workers
    python tools/benchmarks/bench_loader.py --workers 2
    python tools/benchmarks/bench_loader.py --px 64 224     # a store against a folder, square images of these sizes

Makes its own photo-like JPEGs (short side 224 to 500 px, about 40 kB) in a temporary folder, once as files and once, byte
for byte the same, as a store. All loaders take turns within a round, so that a slow moment of the machine hits each of
them; figures are medians over the rounds, differences and ratios medians of the rounds' own. CPU time counts this process
only, so it is given without workers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from synthaug_plugins import compat
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store

CLASSES = tuple(f'class_{i}' for i in range(10))
ADDED_MS_BAR, RATE_BAR = 0.05, 0.97


def photo(rng: np.random.Generator, px: int | None = None) -> bytes:
    """A JPEG with a photo's spectrum: octaves of smooth noise, amplitude falling with frequency. Square with `px`, else of a photo's sizes."""
    short = int(rng.integers(224, 501))
    height, width = (short, int(short * rng.uniform(1, 1.5))) if rng.random() < 0.5 else (int(short * rng.uniform(1, 1.5)), short)
    height, width = (height, width) if px is None else (px, px)
    image = np.zeros((height, width, 3), np.float32)
    for octave in range(9):
        side = 2**octave + 1
        image += cv2.resize(rng.standard_normal((side, side, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC) * 70 / 1.45**octave
    return cv2.imencode('.jpg', np.clip(image + 120, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def make_data(root: Path, n: int, px: int | None = None) -> float:
    """The same images as files and as a store; returns their mean size in kB."""
    rng = np.random.default_rng(0)
    per_class = n // len(CLASSES)
    ids = {name: [f'{name}/{i:05d}.jpg' for i in range(per_class)] for name in CLASSES}
    store = Store.create(root / 'store', Plan(CLASSES, make_blocks(CLASSES, per_class, ids), {}), {})
    total = 0
    for block in store.plan.blocks:
        rows = []
        for part, number in ((p, n) for p in block.parts for n in range(p.target)):
            data, source = photo(rng, px), part.sources[part.first + number]
            total += len(data)
            (root / 'train' / part.class_name).mkdir(parents=True, exist_ok=True)
            (root / 'train' / source).write_bytes(data)
            rows.append(Row(Request(request_id(part, number), part.label, part.class_name, number, source), 'kept', None, 'jpg', data))
        store.publish(block, rows, keep_rejected=False)
    return total / n / 1e3


def loader(root: Path, workers: int, batch_size: int, synthaug: dict[str, Any], crop: int = 224) -> Any:
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from synthaug_plugins.training.run import configure

    init_default_scope('mmpretrain')
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'RandomResizedCrop', 'scale': crop}, {'type': 'RandomFlip', 'prob': 0.5}, {'type': 'PackInputs'}]
    cfg = Config(
        {
            'model': {'type': 'ImageClassifier', 'head': {'type': 'LinearClsHead', 'num_classes': len(CLASSES)}},
            'train_dataloader': {
                'batch_size': batch_size,
                'num_workers': workers,
                'persistent_workers': workers > 0,
                'collate_fn': {'type': 'default_collate'},
                'sampler': {'type': 'DefaultSampler', 'shuffle': True},
                'dataset': {'type': 'CustomDataset', 'data_root': str(root / 'train'), 'pipeline': pipeline},
            },
            'synthaug': {key: {'store': str(root / 'store'), **options} for key, options in synthaug.items()},
        }
    )
    return Runner.build_dataloader(configure(cfg, get_plugin_manager()).train_dataloader, seed=0)


def one_epoch(loader: Any) -> tuple[float, float]:
    """(CPU ms per image, images per second)."""
    wall, cpu, n = time.perf_counter(), time.process_time(), 0
    for batch in loader:
        n += len(batch['data_samples'])
    return (time.process_time() - cpu) / n * 1e3, n / (time.perf_counter() - wall)


def reads(root: Path) -> dict[str, Callable[[], tuple[float, float]]]:
    """Bytes only, through MMEngine's file layer: every image once, in random order, warm."""
    from mmengine import fileio

    from synthaug_plugins.mixing.records import read_records
    from synthaug_plugins.store.reader import image_uri

    records = read_records({'store': str(root / 'store')})
    addresses = {
        'folder': [str(p) for p in (root / 'train').rglob('*.jpg')],
        'store': [records.uri(i) for i in range(len(records))],
        'store, shards not watched': [image_uri(root / 'store', *place.item()) for place in records.places],
    }

    def timed(paths: list[str]) -> tuple[float, float]:
        order = np.random.default_rng(1).permutation(len(paths))
        wall, cpu = time.perf_counter(), time.process_time()
        for i in order:
            fileio.get(paths[i])
        return (time.process_time() - cpu) / len(paths) * 1e3, len(paths) / (time.perf_counter() - wall)

    return {f'bytes from the {name}': lambda paths=paths: timed(paths) for name, paths in addresses.items()}


def table(title: str, cases: dict[str, Callable[[], tuple[float, float]]], rounds: int, with_cpu: bool) -> None:
    """Run all cases `rounds` times in turn and print medians; the first case is what the others are compared with."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for case in cases.values():
        case()  # warm
    for r in range(rounds):
        for name in list(cases) if r % 2 == 0 else reversed(list(cases)):
            seen[name].append(cases[name]())
    base = seen[next(iter(cases))]
    print(f'\n{title}\n{"":30}{"CPU ms/img":>12}{"added ms":>10}{"img/s":>9}{"rate":>8}')
    for name, values in seen.items():
        ms, rate = (statistics.median(v[k] for v in values) for k in (0, 1))
        added = statistics.median(v[0] - b[0] for v, b in zip(values, base, strict=True))
        ratio = statistics.median(v[1] / b[1] for v, b in zip(values, base, strict=True))
        print(f'{name:30}' + (f'{ms:12.4f}{added:+10.4f}' if with_cpu else f'{"-":>12}{"-":>10}') + f'{rate:9.0f}{ratio:8.3f}')


def mixing(root: Path, args: argparse.Namespace) -> None:
    """Stock loader and mixed ones, on images of a photo's sizes."""
    size = make_data(root, args.images)
    cases: dict[str, dict[str, Any]] = {
        'stock, folder': {},
        'mixed, alpha 0': {'mix': {'alpha': 0}},
        'mixed, alpha 0.5, by class': {'mix': {'alpha': 0.5}},
        'mixed, alpha 0.5, by source': {'mix': {'alpha': 0.5, 'partner': 'source'}},
        'mixed, alpha 1: store only': {'mix': {'alpha': 1, 'partner': 'any'}},
    }
    loaders = {name: loader(root, args.workers, args.batch_size, case) for name, case in cases.items()}
    title = f'{args.images} JPEGs of {size:.0f} kB, batch {args.batch_size}, {args.workers} workers, {args.rounds} rounds'
    table(f'Loader: {title}', {name: lambda one=one: one_epoch(one) for name, one in loaders.items()}, args.rounds, args.workers == 0)
    table('Reading bytes', reads(root), args.rounds, True)
    print(f'\nBars: at most {ADDED_MS_BAR} ms CPU added per image, rate at least {RATE_BAR} of stock; reading the store no slower than the folder.')


def store_alone(root: Path, args: argparse.Namespace, px: int) -> None:
    """A folder of class folders and a store of the same images, each as the training set."""
    size = make_data(root, args.images, px)
    cases: dict[str, dict[str, Any]] = {'folder': {}, 'store': {'train_on': {}}}
    starts: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            loader(root, 0, args.batch_size, case, px)
            starts[name].append(time.perf_counter() - start)
    loaders = {name: loader(root, args.workers, args.batch_size, case, px) for name, case in cases.items()}
    title = f'{args.images} JPEGs of {px} px and {size:.1f} kB, batch {args.batch_size}, {args.workers} workers, {args.rounds} rounds'
    table(f'Store against folder: {title}', {name: lambda one=one: one_epoch(one) for name, one in loaders.items()}, args.rounds, args.workers == 0)
    table('Reading bytes', reads(root), args.rounds, True)
    print('Building the loader: ' + ', '.join(f'{name} {statistics.median(seconds) * 1e3:.0f} ms' for name, seconds in starts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--px', type=int, nargs='+', default=[], help='compare a store with a folder of square images of these sizes, without mixing')
    args = parser.parse_args()
    compat.apply()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for px in args.px:
        with tempfile.TemporaryDirectory() as folder:
            store_alone(Path(folder), args, px)
    if not args.px:
        with tempfile.TemporaryDirectory() as folder:
            mixing(Path(folder), args)


if __name__ == '__main__':
    main()
