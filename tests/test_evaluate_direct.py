"""`synthaug evaluate` in full on one pair of stores: its figures are those of torchmetrics used directly, and classifiers learn from right images only."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import CLIP, NAMES, make_store, of_class, pixels

from conftest import Say, command_line
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.metrics.table import HELD_OUT, REAL
from synthaug_plugins.evaluation.recipe_folders import set_folders
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.training.run import load_recipe
from synthaug_plugins.weights import embedded_folder

SORTED = tuple(sorted(NAMES))  # as folders are


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real and held-out digits, a store of others, and one in which each class shows the next one's digits."""
    root = tmp_path_factory.mktemp('direct')
    for part, chosen in (('real', slice(0, 70)), ('held', slice(70, 100))):
        for label, name in enumerate(NAMES):
            (root / part / name).mkdir(parents=True)
            for i in of_class(label)[chosen]:
                Image.fromarray(pixels(i)).save(root / part / name / f'{i}.png')
    make_store(root / 'right', (None,), 70, SORTED)
    make_store(root / 'wrong', (None,), 12, SORTED, turned=1)
    return root


@pytest.fixture(scope='module')
def found(data: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of metrics.csv by set and class."""
    status = command_line(
        *('evaluate', data / 'right', data / 'wrong', '--real', data / 'real', '--held-out', data / 'held', '--features', f'clip:{embedded_folder(CLIP)}'),
        *('--per-class', '--probe', '--out', data / 'out'),
    )
    assert status == 0
    return {(row['set'], row['class']): row for row in csv.DictReader((data / 'out' / 'metrics.csv').open())}


class Seen(torch.nn.Module):
    """The CLIP as torchmetrics takes a network: uint8 images (B, 3, H, W) to features."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.clip = ClipModel(CLIP)
        self.clip.load(torch.device('cpu'))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_images([np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images])


def shown(which: slice, names: tuple[str, ...]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(pixels(i)).permute(2, 0, 1) for name in names for i in of_class(NAMES.index(name))[which]])


@pytest.mark.parametrize('names', [SORTED, ('two',)], ids=['all', 'a class'])
def test_fid_and_kid_are_those_of_torchmetrics_on_the_images(found: dict[tuple[str, str], dict[str, str]], names: tuple[str, ...]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    network = Seen()
    n = 70 * len(names)
    fid, kid = FrechetInceptionDistance(feature=network), KernelInceptionDistance(feature=network, subsets=1, subset_size=n)
    for metric in (fid, kid):
        metric.set_dtype(torch.float64)
        metric.update(shown(slice(0, 70), names), real=True)
        metric.update(shown(slice(-70, None), names), real=False)
    row = found['right', '' if len(names) > 1 else names[0]]
    assert (row['images'], row['real_images'], row['features'], row['clip']) == (str(n), str(n), f'clip:{embedded_folder(CLIP)}', row['features'])
    assert float(row['fid']) == pytest.approx(float(fid.compute()), rel=1e-3)
    assert float(row['kid']) == pytest.approx(float(kid.compute()[0]), abs=1e-6)  # torchmetrics adds the kernel up in the network's own float32


def test_the_clip_score_is_that_of_torchmetrics_formula(found: dict[tuple[str, str], dict[str, str]]) -> None:
    network = Seen()
    texts = network.clip.encode_texts([f'a photo of a {name}' for name in SORTED])
    labels = np.repeat(np.arange(3), 70)
    cosines = network(shown(slice(-70, None), SORTED)) @ texts.T
    assert float(found['right', '']['clip_score']) == pytest.approx(float(100 * cosines[range(210), labels].clamp(min=0).mean()), rel=1e-4)
    assert float(found['right', '']['zero_shot']) == pytest.approx(100 * float((cosines.argmax(1).numpy() == labels).mean()))
    assert float(found['wrong', '']['zero_shot']) < 20 < 80 < float(found['right', '']['zero_shot'])


def test_classes_have_lines_with_what_their_numbers_of_images_allow(found: dict[tuple[str, str], dict[str, str]], data: Path) -> None:
    assert {name for _, name in found} == {'', *NAMES}
    for name in NAMES:
        assert found['right', name]['fid'] and found['right', name]['real_images'] == '70'  # 64 features
        assert not found[HELD_OUT, name]['fid'] and found[HELD_OUT, name]['kid'] and found[HELD_OUT, name]['images'] == '30'
        assert found['wrong', name]['vendi'] and found[REAL, name]['spread']
    html, plain = (data / 'out' / 'report.html').read_text(), json.loads((data / 'out' / 'metrics.json').read_text())
    assert 'Class by class' in html and 'right: two' in html
    assert any(note.startswith('No FID of a class, of which it needs more than 64 images') for note in plain['notes'])
    assert plain['clip']['prompts'] and len(plain['clip']['identity']['sha256']) == 64


def test_the_probe_learns_from_right_images_what_real_ones_teach(found: dict[tuple[str, str], dict[str, str]]) -> None:
    assert float(found[REAL, '']['probe']) > 90 and float(found['right', '']['probe']) > 90 and float(found['wrong', '']['probe']) < 20
    assert found[HELD_OUT, '']['probe'] == '' and {found[name, '']['test_images'] for name in (REAL, 'right', 'wrong')} == {'90'}
    mean = np.mean([float(found['right', name]['probe']) for name in NAMES])
    assert float(found['right', '']['probe']) == pytest.approx(mean) and found['right', 'two']['test_images'] == '30'


def test_a_classifier_trains_on_each_set_and_is_tested_on_held_out_images(data: Path, synthaug: Say, copied_workers: None) -> None:
    command = (
        *('evaluate', data / 'wrong', '--real', data / 'real', '--held-out', data / 'held', '--features', 'pixels', '--clip', CLIP),
        *('--cas', 'digits_resnet', '--cfg-options', 'train_cfg.max_iters=30', '--per-class', '--out', data / 'cas'),
    )
    said = synthaug(*command)
    assert said.status == 0, said.err
    assert said.err.count('after 30 steps') == 2
    rows = {(row['set'], row['class']): row for row in csv.DictReader((data / 'cas' / 'metrics.csv').open())}
    assert float(rows['wrong', '']['cas']) < 25 < 75 < float(rows[REAL, '']['cas'])
    results = [json.loads(path.read_text()) for path in (data / 'cas' / 'classifiers').glob('*/result.json')]
    assert sorted(round(one['top1'], 4) for one in results) == sorted(round(float(rows[name, '']['cas']), 4) for name in (REAL, 'wrong'))
    assert {one['steps'] for one in results} == {30} and rows['wrong', 'two']['test_images'] == '30'
    plain = json.loads((data / 'cas' / 'metrics.json').read_text())
    assert plain['classifiers']['steps'] == 30 and plain['classifiers']['recipe'].endswith('digits_resnet.py')
    assert rows['wrong', '']['clip'] == CLIP and rows['wrong', '']['features'] == 'pixels'

    # What was killed before its result starts again, what is done does not.
    killed = next(path for path in (data / 'cas' / 'classifiers').iterdir())
    (killed / 'result.json').unlink()
    again = synthaug(*command)
    assert again.status == 0 and again.err.count('after 30 steps') == 1
    assert {(row['set'], row['class']): row for row in csv.DictReader((data / 'cas' / 'metrics.csv').open())} == rows

    uneven = synthaug(*command[:-3], 'train_cfg.by_epoch=True', 'train_cfg.max_epochs=1', *command[-3:])
    assert uneven.status == 2 and 'do not take equal optimiser steps' in uneven.err


def test_a_recipe_that_changes_its_own_images_or_a_class_without_images_trains_no_classifier(data: Path, tmp_path: Path, synthaug: Say) -> None:
    recipe = tmp_path / 'mixed.py'
    recipe.write_text(f"_base_ = {find_recipe('digits_resnet', 'train')!r}\nsynthaug = dict(mix=dict(store='x'))\n")
    options = ('--held-out', data / 'held', '--features', 'pixels', '--out', tmp_path / 'out', '--cas')
    refused = synthaug('evaluate', data / 'right', '--real', data / 'real', *options, recipe)
    assert refused.status == 2 and 'has synthaug.mix, which changes what is trained on' in refused.err
    refused = synthaug('evaluate', data / 'right', '--real', data / 'real', '--where', 'label < 2', *options, 'digits_resnet')
    assert refused.status == 2 and "has no images of 'zero', 1 classes of 3" in refused.err


def test_stock_recipes_that_read_image_folders_are_set_to_others(data: Path) -> None:
    from mmpretrain.registry import DATASETS

    cfg = load_recipe('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    set_folders(cfg, {'train': data / 'real', 'test': data / 'held'}, 3, 'why')
    assert (
        cfg.model.head.num_classes == 3 and len(DATASETS.build(cfg.train_dataloader.dataset)) == 210 and len(DATASETS.build(cfg.test_dataloader.dataset)) == 90
    )
    with pytest.raises(RecipeError, match='reads a CIFAR10, whose folder cannot be set'):
        set_folders(load_recipe('mmpretrain::resnet/resnet18_8xb16_cifar10.py'), {'train': data / 'real'}, 3, 'why')
