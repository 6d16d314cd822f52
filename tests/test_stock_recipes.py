"""Stock MMPretrain recipes train with `--mix` and no file edited, through the real command."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Said, Say
from new_process import new_python

CLASSES = ('six', 'three')


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed in the test's own folder."""
    monkeypatch.chdir(tmp_path)


def log_of(done: Said) -> str:
    assert done.status == 0, done.err[-3000:]
    return done.out + done.err


def losses(log: str) -> list[float]:
    return [float(x) for x in re.findall(r'Epoch\(train\).* loss: ([0-9.]+)', log)]


def generate(synthaug: Say, data: str) -> None:
    options = ['per_class=3', 'generator.use_labels=False', 'generator.sigma=0.3', 'generator.sampler.num_steps=4']
    assert synthaug('generate', 'digits_real_guidance', '--data', data, '--out', 'store', '--cfg-options', *options).status == 0


def test_stock_imagenet_recipe_trains_with_mix(synthaug: Say, tmp_path: Path) -> None:
    """`resnet18_8xb32_in1k.py`: only the place of the data and the class names come from the command line."""
    rng = np.random.default_rng(0)
    for split, images in (('train', 2), ('val', 1)):
        for name in CLASSES:
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for i in range(images):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(tmp_path / 'data' / split / name / f'{i}.jpg')
    generate(synthaug, 'data/train')
    options = [
        f'{s}_dataloader.{k}'
        for s in ('train', 'val', 'test')
        for k in ('dataset.data_root=data', f'dataset.metainfo.classes={list(CLASSES)}', 'num_workers=0', 'persistent_workers=False')
    ]
    options += ['train_dataloader.batch_size=2', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1', "val_evaluator={'type':'Accuracy','topk':1}"]
    # In a process of its own: nobody but the command has mended MMPretrain or registered anything.
    command = ['train', 'mmpretrain::resnet/resnet18_8xb32_in1k.py', '--work-dir', 'run', '--mix', 'store', '--alpha', '0.5', '--cfg-options', *options]
    log = log_of(new_python('-m', 'synthaug_plugins.cli', *command))
    assert len(losses(log)) == 2
    assert 'accuracy/top1' in log
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


def test_stock_cifar_recipe_trains_with_mix(synthaug: Say, shared: Path, tmp_path: Path) -> None:
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
            for i in np.flatnonzero(labels == label)[: 2 if split == 'train' else 1]:
                Image.fromarray(images[i]).save(tmp_path / split / name / f'{i:05d}.png')
    generate(synthaug, 'train')
    load, pack = {'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}
    augment = [{'type': 'RandomCrop', 'crop_size': 32, 'padding': 4}, {'type': 'RandomFlip', 'prob': 0.5, 'direction': 'horizontal'}]
    options = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1', 'train_dataloader.batch_size=8']
    for name, folder, pipeline in (('train', 'train', [load, *augment, pack]), ('val', 'test', [load, pack]), ('test', 'test', [load, pack])):
        dataset = {'_delete_': True, 'type': 'CustomDataset', 'data_root': folder, 'pipeline': pipeline}
        options += [f'{name}_dataloader.dataset={dataset}', f'{name}_dataloader.num_workers=0', f'{name}_dataloader.persistent_workers=False']
    recipe = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    log = log_of(synthaug('train', recipe, '--work-dir', 'run', '--mix', 'store', '--alpha', '0.5', '--cfg-options', *options))
    assert len(losses(log)) == 3
    assert 'accuracy/top1' in log_of(synthaug('test', recipe, 'run/epoch_1.pth', '--work-dir', 'run-test', '--cfg-options', *options))


@pytest.mark.parametrize('alpha', ['-0.1', '1.01'])
def test_alpha_outside_its_range_is_refused_before_anything_loads(synthaug: Say, tmp_path: Path, alpha: str) -> None:
    done = synthaug('train', 'mmpretrain::resnet/resnet18_8xb16_cifar10.py', '--work-dir', 'run', '--mix', 'store', '--alpha', alpha)
    assert done.status == 2
    assert '[0, 1]' in done.err
    assert not (tmp_path / 'run').exists()
