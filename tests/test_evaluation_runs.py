"""What decides a run, which images its loaders share, its clock, and workers that cannot start."""

from __future__ import annotations

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from synthaug_plugins import compat
from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.evaluation import fingerprint
from synthaug_plugins.evaluation import pool as pool_module
from synthaug_plugins.evaluation.fingerprint import run_key, versions
from synthaug_plugins.evaluation.leaks import data_of, refuse_leaks
from synthaug_plugins.evaluation.pool import Pool, RunFailed, Task
from synthaug_plugins.evaluation.runs import RunRecord

compat.apply()


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(folder / name)
    return folder


# --- the hash of a run


@pytest.mark.parametrize('named', ['load_from', 'init_cfg', 'hook'])
def test_changed_content_of_a_named_file_makes_another_run(tmp_path: Path, named: str) -> None:
    file = tmp_path / 'start.pth'
    file.write_bytes(b'abc')
    places = {
        'load_from': {'load_from': str(file)},
        'init_cfg': {'model': {'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': str(file)}}}},
        'hook': {'custom_hooks': [{'type': 'X', 'table': str(file)}]},
    }
    cfg = Config(places[named])
    before, times = run_key(cfg), file.stat()
    os.utime(file, ns=(0, 0))  # the same content at another time is the same run
    assert run_key(cfg) == before
    file.write_bytes(b'abd')  # of equal size and time, so that only the content tells
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run_key(cfg) != before


def test_changed_image_in_a_linked_class_folder_makes_another_run_and_circles_end(tmp_path: Path) -> None:
    images(tmp_path / 'elsewhere', 'a.png')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'cat').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'back').symlink_to(tmp_path / 'data')
    (tmp_path / 'data' / 'nowhere').symlink_to(tmp_path / 'gone')
    cfg = Config({'train_dataloader': {'dataset': {'data_root': str(tmp_path / 'data')}}})
    before = run_key(cfg)
    assert run_key(cfg) == before
    (tmp_path / 'elsewhere' / 'a.png').write_bytes(b'changed')  # in place: the time of the folder stays
    assert run_key(cfg) != before


def test_another_version_of_a_package_makes_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [re.sub('^onedl-', '', name) for name in versions()] == ['synthaug-plugins', 'torch', 'mmengine', 'mmpretrain', 'numpy']
    keys = {run_key(Config({}))}
    real = fingerprint.metadata.version
    for package in versions():
        monkeypatch.setattr(fingerprint.metadata, 'version', lambda name, package=package: '0' if name == package else real(name))
        keys.add(run_key(Config({})))
    assert len(keys) == 6


def test_versions_are_found_under_the_names_of_the_onedl_family(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ('mmengine', 'mmpretrain'):
            raise fingerprint.metadata.PackageNotFoundError(name)
        return '1'

    monkeypatch.setattr(fingerprint.metadata, 'version', version)
    assert {'onedl-mmengine', 'onedl-mmpretrain'} < set(versions())


# --- leaks


def loaders(train: dict[str, Any], val: dict[str, Any], test: dict[str, Any]) -> Config:
    sets = {'train_dataloader': train, 'val_dataloader': val, 'test_dataloader': test}
    return Config({'default_scope': 'mmpretrain', **{name: {'dataset': {'type': 'CustomDataset', **d}} for name, d in sets.items()}})


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three sets of two classes in `d`."""
    for name in 'tvx':
        images(tmp_path / 'd' / name, f'cat/{name}0.png', f'cat/{name}1.png', f'dog/{name}2.png')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_three_sets_pass(split: Path) -> None:
    refuse_leaks(loaders({'data_root': 'd/t'}, {'data_root': 'd/v'}, {'data_root': 'd/x'}))


@pytest.mark.parametrize('there', [True, False])
@pytest.mark.parametrize(
    'test',
    [
        {'data_root': 'd/v'},
        {'data_root': 'd/v/'},
        {'data_root': './d/v'},
        {'data_root': 'd/x/../v'},
        {'data_root': 'd', 'data_prefix': 'v'},
        {'data_prefix': {'img_path': 'd/v'}},
        {'data_root': 'd/v', 'with_label': True},
        {'data_root': 'd/v', 'extensions': ['.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif'], 'indices': None},
    ],
)
def test_the_same_images_under_another_spelling_are_refused(split: Path, test: dict[str, Any], there: bool) -> None:
    if not there:  # before the folder exists the configs alone must tell
        (split / 'd' / 'v').rename(split / 'hidden')
    with pytest.raises(RecipeError, match='val_dataloader and test_dataloader read the same images') as error:
        refuse_leaks(loaders({'data_root': 'd/t'}, {'data_root': 'd/v'}, test))
    assert ('3 files, such as' in str(error.value)) == there


def test_absolute_and_linked_folders_are_the_same_images(split: Path) -> None:
    (split / 'link').symlink_to(split / 'd' / 'v')
    for root in (split / 'd' / 'v', split / 'link'):
        with pytest.raises(RecipeError, match='train_dataloader and test_dataloader read the same images: 3 files'):
            refuse_leaks(loaders({'data_root': 'd/v'}, {'data_root': 'd/t'}, {'data_root': str(root)}))


def test_one_shared_file_is_refused_and_named(split: Path) -> None:
    # by annotation file: one line of the validation list is a training image
    (split / 'val.txt').write_text('v/cat/v0.png 0\nt/dog/t2.png 1\n')
    val = {'data_root': 'd', 'ann_file': '../val.txt', 'classes': ['cat', 'dog']}
    with pytest.raises(RecipeError, match=r'train_dataloader and val_dataloader read the same images: 1 files.*t/dog/t2\.png'):
        refuse_leaks(loaders({'data_root': 'd/t'}, val, {'data_root': 'd/x'}))
    # by a link from file to file
    (split / 'd' / 'x' / 'cat' / 'copy.png').symlink_to(split / 'd' / 't' / 'cat' / 't0.png')
    with pytest.raises(RecipeError, match=r'train_dataloader and test_dataloader read the same images: 1 files'):
        refuse_leaks(loaders({'data_root': 'd/t'}, {'data_root': 'd/v'}, {'data_root': 'd/x'}))


def test_parts_of_one_folder_are_no_leak_but_the_whole_of_it_is(split: Path) -> None:
    def fold(test_mode: bool) -> dict[str, Any]:
        return {'type': 'KFoldDataset', 'dataset': {'type': 'CustomDataset', 'data_root': 'd/t'}, 'fold': 0, 'num_splits': 3, 'test_mode': test_mode}

    refuse_leaks(loaders({'data_root': 'd/t', 'indices': [0]}, {'data_root': 'd/t', 'indices': [1]}, {'data_root': 'd/t', 'indices': [2]}))
    cfg = loaders({}, {'data_root': 'd/v'}, {'data_root': 'd/x'})
    cfg.train_dataloader.dataset = {'type': 'RepeatDataset', 'times': 2, 'dataset': {'type': 'CustomDataset', 'data_root': 'd/v'}}
    with pytest.raises(RecipeError, match='train_dataloader and val_dataloader read the same images: 3 files'):
        refuse_leaks(cfg)
    cfg.train_dataloader.dataset, cfg.val_dataloader.dataset = fold(False), fold(True)
    refuse_leaks(cfg)


def test_arrays_are_compared_by_config_without_reading_them(split: Path) -> None:
    def cifar(**options: Any) -> dict[str, Any]:
        return {'type': 'CIFAR10', 'data_root': 'no/such/folder', **options}  # to build it would download it

    refuse_leaks(loaders(cifar(split='train'), {'data_root': 'v'}, cifar(split='test')))
    with pytest.raises(RecipeError, match='train_dataloader and val_dataloader read the same images'):
        refuse_leaks(loaders(cifar(), cifar(split='train'), cifar(split='test')))
    assert not (split / 'no').exists()
    assert data_of({'dataset': cifar()}) == data_of({'dataset': cifar(split='train', download=True)})


def test_dataset_that_cannot_be_built_is_said_at_once(split: Path) -> None:
    with pytest.raises(RecipeError, match=r'The dataset of val_dataloader cannot be built.*Correct val_dataloader\.dataset'):
        refuse_leaks(loaders({'data_root': 'd/t'}, {'data_root': 'd/v', 'no_such_option': 1}, {'data_root': 'd/x'}))


# --- the clock


class SlowGPU:
    """Stands in for `torch.cuda` of a machine whose GPU is behind by `lag_s` at every synchronisation."""

    def __init__(self, lag_s: float) -> None:
        self.lag_s = lag_s

    def is_initialized(self) -> bool:
        return True

    def synchronize(self) -> None:
        time.sleep(self.lag_s)


def test_training_time_includes_what_the_gpu_has_still_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, 'cuda', SlowGPU(0.05))
    record = RunRecord()
    record.before_train(None)
    record.before_val_epoch(None)  # waits 0.05 s, which is training
    record.after_val_epoch(None, {'accuracy/top1': 1.0})  # waits 0.05 s, which is validation
    record.after_train(None)  # training again
    assert 0.1 <= record.seconds < 0.14


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_training_time_on_a_gpu_is_that_of_its_kernels() -> None:
    x = torch.randn(8192, 8192, device='cuda')
    torch.cuda.synchronize()
    record, start, end = RunRecord(), torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    record.before_train(None)
    start.record()
    for _ in range(50):
        x @ x
    end.record()
    record.after_train(None)
    assert record.seconds * 1000 >= start.elapsed_time(end)


# --- workers


def broken_setup() -> None:
    raise DataError('The plugin found no table.', 'Give it one.')


def leaving_setup() -> None:
    sys.exit('the plugin has had enough')


def result() -> dict[str, Any]:
    return {}


def leave() -> dict[str, Any]:
    sys.exit('no more')


@pytest.fixture
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """'processes', or 'threads' that run the same code."""
    if request.param == 'processes':
        request.getfixturevalue('copied_workers')
    else:
        monkeypatch.setattr(pool_module, 'ProcessPoolExecutor', lambda jobs, mp_context, **start: ThreadPoolExecutor(jobs, **start))
        monkeypatch.setattr(pool_module, '_failed_start', None)


@pytest.mark.parametrize(
    ('workers', 'setup', 'call', 'says'),
    [
        ('threads', broken_setup, result, 'The run a failed: its process could not start: The plugin found no table. Give it one.'),
        ('threads', leaving_setup, result, 'The run a failed: its process could not start: SystemExit: the plugin has had enough.'),
        ('processes', None, leave, 'The run a failed: SystemExit: no more.'),
    ],
    indirect=['workers'],
)
def test_worker_that_raises_is_reported_by_its_own_words_and_its_log_exists(workers: None, tmp_path: Path, setup: Any, call: Any, says: str) -> None:
    log = tmp_path / 'run' / 'log.txt'
    with Pool(1, setup) as pool, pytest.raises(RunFailed) as error:
        pool.run([Task('a', log, call, ())], lambda label, result: None)
    assert error.value.what == says
    assert str(log) in error.value.cure
    assert 'Traceback' in log.read_text()


def die() -> None:
    os._exit(9)


def test_log_of_a_process_that_died_before_it_began_is_not_named(tmp_path: Path, copied_workers: None) -> None:
    with Pool(1, die) as pool, pytest.raises(RunFailed, match='process of a run died') as error:
        pool.run([Task('a', tmp_path / 'log.txt', result, ())], lambda label, result: None)
    assert 'log.txt' not in str(error.value)
