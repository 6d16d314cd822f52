"""A folder of images becomes three, none of which shares an image with another."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Say
from synthaug_plugins.data_split import split_folder
from synthaug_plugins.errors import DataError
from synthaug_plugins.real_images import RealImages


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for name, n in (('cat', 20), ('dog', 7)):
        (root / name).mkdir()
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)).save(root / name / f'{i}.png')
    for i in range(5):
        shutil.copyfile(root / 'cat' / '3.png', root / 'cat' / f'copy-{i}.png')
    return root


def digests(part: Path) -> set[str]:
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in part.rglob('*.png')}


def test_no_image_is_in_two_parts_not_even_under_another_name(folder: Path, tmp_path: Path, synthaug: Say) -> None:
    ended = synthaug('split', folder, '--out', tmp_path / 'data', '--val', '0.2', '--test', '0.3')
    assert ended.status == 0, ended.err
    parts = [digests(tmp_path / 'data' / name) for name in ('train', 'val', 'test')]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 27
    assert sum(1 for _ in (tmp_path / 'data').rglob('*.png')) == 32
    assert [len(list((tmp_path / 'data' / 'val' / name).iterdir())) >= n for name, n in (('cat', 4), ('dog', 1))] == [True, True]
    again = split_folder(RealImages(folder), tmp_path / 'again', 0.2, 0.3)
    assert [digests(tmp_path / 'again' / name) for name in ('train', 'val', 'test')] == parts
    split_folder(RealImages(folder), tmp_path / 'other', 0.2, 0.3, seed=1)
    assert digests(tmp_path / 'other' / 'val') != parts[1]
    assert set(again) == {'train', 'val', 'test'}


def test_an_image_of_two_classes_and_a_class_that_is_too_small_are_named(folder: Path, tmp_path: Path, synthaug: Say) -> None:
    root = shutil.copytree(folder, tmp_path / 'images')
    shutil.copyfile(root / 'cat' / '0.png', root / 'dog' / 'wrong.png')
    with pytest.raises(DataError, match=r"'cat/0.png' and 'dog/wrong.png' are the same image"):
        split_folder(RealImages(root), tmp_path / 'out', 0.2, 0.2)
    shutil.rmtree(root / 'dog')
    (root / 'owl').mkdir()
    shutil.copyfile(folder / 'dog' / '0.png', root / 'owl' / '0.png')
    with pytest.raises(DataError, match=r"'owl' has 1 different images"):
        split_folder(RealImages(root), tmp_path / 'out', 0.2, 0.2)
    refused = synthaug('split', root, '--out', tmp_path / 'out', '--val', '0.6', '--test', '0.5')
    assert (refused.status, '--val 0.15' in refused.err) == (2, True)
    assert not (tmp_path / 'out').exists()
