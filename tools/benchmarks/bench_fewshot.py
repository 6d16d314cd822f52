"""What it saves to encode images once: a CLIP head tuned on cached features against the same head tuned through the frozen encoder.

python tools/benchmarks/bench_fewshot.py [--model embedded:digits_clip] [--shots 16] [--synthetic 800] [--epochs 30] [--live-epochs 2]

Both run the mix recipe of He et al. (32 real + 512 synthetic images in a step) through MMPretrain's Runner on scikit-learn's digits: `shots` real
images and `synthetic` noisy copies of others per class. No augmentation, so both see the same pixels and must end with the same weights: the script
stops if their test accuracy differs. Seconds are those of training without validation; the ratio is per epoch. The features are made before, once,
and their price is printed beside. With `--model RN50 --data FOLDER` the same on a real CLIP and your own images.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo import CLASSES, write_digits

from synthaug_plugins import compat
from synthaug_plugins.plugins import get_plugin_manager, register_nouns
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id, request_seed
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store

METRIC = 'accuracy/top1'
PIXELS = 32


def noisy_store(folder: Path, images: Path, per_class: int) -> Store:
    """A store of `per_class` noisy copies of the images of each class, 32 x 32."""
    classes = sorted(p.name for p in images.iterdir())
    pixels = {name: [np.asarray(Image.open(p).convert('RGB').resize((PIXELS, PIXELS))) for p in sorted((images / name).iterdir())] for name in classes}
    store = Store.create(folder, Plan(tuple(classes), make_blocks(classes, per_class), {'bench': per_class}), {'model': 'noise'})
    for block in store.unfinished():
        rows = []
        for part in block.parts:
            for number in range(part.target):
                key = request_seed(0, part, number)
                rng = np.random.default_rng(key)
                copies = pixels[part.class_name]
                noise = rng.normal(0, 25, (PIXELS, PIXELS, 1))
                image = np.clip(copies[(part.first + number) % len(copies)] + noise, 0, 255).astype(np.uint8)
                rows.append(Row(Request(request_id(part, number), part.label, part.class_name, key), 'kept', None, 'png', encode(image, 'png', 90)))
        store.publish(block, rows, keep_rejected=False)
    return store


def tuned(data: Path, store: Store, work_dir: Path, options: dict[str, Any], clip: dict[str, Any], epochs: int) -> tuple[float, float, float, int]:
    """Train and test. Returns seconds of training, seconds of everything before it, test top-1 in percent, steps."""
    from synthaug_plugins.evaluation.runs import RunRecord
    from synthaug_plugins.recipes import find_recipe
    from synthaug_plugins.training.run import configure, load_recipe, test, train

    parts = {f'{part}_dataloader.dataset.data_root': str(data / 'train') for part in ('train', 'val')}
    cfg = load_recipe(find_recipe('he2023_fewshot_mix', 'train'), {**parts, **options, 'test_dataloader.dataset.data_root': str(data / 'test')})
    cfg.synthaug.clip, cfg.synthaug.mix.store = clip, str(store.folder)
    cfg.train_cfg.max_epochs, cfg.param_scheduler[0].end = epochs, 30
    cfg.train_cfg.val_interval = epochs
    cfg.log_level = 'WARNING'
    cfg.custom_hooks = [{'type': 'synthaug_plugins.RunRecord'}]
    cfg.experiment_name = f'{work_dir.name}-{time.time_ns()}'
    configured = configure(cfg, get_plugin_manager())
    start = time.perf_counter()
    runner = train(configured, work_dir)
    whole = time.perf_counter() - start
    record = next(h for h in runner.hooks if isinstance(h, RunRecord))
    configured.experiment_name += '-test'
    top1 = test(configured, work_dir / f'epoch_{epochs}.pth', work_dir / 'test')[METRIC]
    return record.seconds, whole - record.seconds, top1, record.iterations


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='embedded:digits_clip')
    parser.add_argument('--data', type=Path, help='train/ and test/ with class folders; default: digits')
    parser.add_argument('--shots', type=int, default=16)
    parser.add_argument('--synthetic', type=int, default=800, help='synthetic images per class')
    parser.add_argument('--epochs', type=int, default=30, help='of the cached run that is timed as a whole')
    parser.add_argument('--live-epochs', type=int, default=2, help='of both, for the ratio')
    arguments = parser.parse_args()
    compat.apply()
    register_nouns()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = arguments.data
        if data is None:
            data = root / 'data'
            write_digits(root / 'digits')
            data.mkdir()
            shutil.copytree(root / 'digits' / 'train', data / 'train')
            shutil.copytree(root / 'digits' / 'test', data / 'test')
        store = noisy_store(root / 'store', data / 'train', arguments.synthetic)
        options = {f'{part}_dataloader.dataset.shots': arguments.shots for part in ('train', 'val')}
        cached = {'model': arguments.model, 'train': 'cached', 'cache': str(root / 'cache')}
        live = {'model': arguments.model, 'train': 'head', 'augment': 'none'}
        n = len(CLASSES) if arguments.data is None else len(list((data / 'train').iterdir()))
        print(f'{platform.machine()} CPU ({torch.get_num_threads()} threads), torch {torch.__version__}, {arguments.model}')
        print(f'{n} classes, {arguments.shots} shots, {arguments.synthetic} synthetic images per class, 32 + 512 in a step')
        few = arguments.live_epochs
        first = tuned(data, store, root / 'cached-first', options, cached, few)
        again = tuned(data, store, root / 'cached', options, cached, few)
        slow = tuned(data, store, root / 'live', options, live, few)
        whole = tuned(data, store, root / 'cached-whole', options, cached, arguments.epochs)
    print(f'{"":34} {"epochs":>7} {"steps":>6} {"training s":>11} {"before it s":>12} {"test top-1 %":>13}')
    for name, epochs, (seconds, before, top1, steps) in (
        ('cached, features made first', few, first),
        ('cached', few, again),
        ('through the encoder every epoch', few, slow),
        ('cached, the whole recipe', arguments.epochs, whole),
    ):
        print(f'{name:34} {epochs:7} {steps:6} {seconds:11.2f} {before:12.2f} {top1:13.2f}')
    if abs(again[2] - slow[2]) > 1e-6:
        sys.exit('The two ways end with different accuracy: they did not train on the same features.')
    print(f'through the encoder / cached, seconds of training per epoch: {slow[0] / again[0]:.1f}')
    print(f'the whole recipe, all of its epochs on features that exist: {whole[0]:.1f} s')


if __name__ == '__main__':
    main()
