"""Stock MMPretrain recipes train with `--mix` and no file edited, through the real command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ('six', 'three')


def synthaug(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, '-m', 'synthaug_plugins.cli', *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(log: str) -> list[float]:
    return [float(x) for x in re.findall(r'Epoch\(train\).* loss: ([0-9.]+)', log)]


def generate(folder: Path, data: str) -> None:
    options = ['per_class=6', 'generator.use_labels=False', 'generator.sigma=0.3', 'generator.sampler.num_steps=4']
    synthaug(folder, 'generate', 'digits_real_guidance', '--data', data, '--out', 'store', '--cfg-options', *options)


def test_stock_imagenet_recipe_trains_with_mix(tmp_path: Path) -> None:
    """`resnet18_8xb32_in1k.py`: only the place of the data and the class names come from the command line."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in CLASSES:
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(tmp_path / 'data' / split / name / f'{i}.jpg')
    generate(tmp_path, 'data/train')
    options = [
        f'{s}_dataloader.{k}'
        for s in ('train', 'val', 'test')
        for k in ('dataset.data_root=data', f'dataset.metainfo.classes={list(CLASSES)}', 'num_workers=0', 'persistent_workers=False')
    ]
    options += ['train_dataloader.batch_size=4', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1', "val_evaluator={'type':'Accuracy','topk':1}"]
    log = synthaug(
        tmp_path, 'train', 'mmpretrain::resnet/resnet18_8xb32_in1k.py', '--work-dir', 'run', '--mix', 'store', '--alpha', '0.5', '--cfg-options', *options
    )
    assert len(losses(log)) == 2
    assert 'accuracy/top1' in log
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


def test_stock_cifar_recipe_trains_with_mix(shared: Path, tmp_path: Path) -> None:
    """`resnet18_8xb16_cifar10.py` on a small unpacked part of CIFAR-10, and `synthaug test` on its checkpoint."""
    sys.path.insert(0, str(shared / 'data'))
    try:
        from load_packs import load_cifar
    finally:
        sys.path.pop(0)
    for split in ('train', 'test'):
        images, labels, classes = load_cifar(shared / 'data' / 'cifar10', split)
        for label, name in enumerate(classes):
            (tmp_path / split / name).mkdir(parents=True)
            for i in np.flatnonzero(labels == label)[:4]:
                Image.fromarray(images[i]).save(tmp_path / split / name / f'{i:05d}.png')
    generate(tmp_path, 'train')
    load, pack = {'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}
    augment = [{'type': 'RandomCrop', 'crop_size': 32, 'padding': 4}, {'type': 'RandomFlip', 'prob': 0.5, 'direction': 'horizontal'}]
    options = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
    for name, folder, pipeline in (('train', 'train', [load, *augment, pack]), ('val', 'test', [load, pack]), ('test', 'test', [load, pack])):
        dataset = {'_delete_': True, 'type': 'CustomDataset', 'data_root': folder, 'pipeline': pipeline}
        options += [f'{name}_dataloader.dataset={dataset}', f'{name}_dataloader.num_workers=0', f'{name}_dataloader.persistent_workers=False']
    recipe = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    log = synthaug(tmp_path, 'train', recipe, '--work-dir', 'run', '--mix', 'store', '--alpha', '0.5', '--cfg-options', *options)
    assert len(losses(log)) == 3
    assert 'accuracy/top1' in synthaug(tmp_path, 'test', recipe, 'run/epoch_1.pth', '--work-dir', 'run-test', '--cfg-options', *options)


@pytest.mark.parametrize('alpha', ['-0.1', '1.01'])
def test_alpha_outside_its_range_is_refused_before_anything_loads(tmp_path: Path, alpha: str) -> None:
    command = [sys.executable, '-m', 'synthaug_plugins.cli', 'train', 'mmpretrain::resnet/resnet18_8xb16_cifar10.py', '--work-dir', 'run', '--mix', 'store']
    done = subprocess.run([*command, '--alpha', alpha], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert '[0, 1]' in done.stderr
    assert not (tmp_path / 'run').exists()
