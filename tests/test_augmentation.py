"""Augmentation: against reference vectors, and its promises: what does not act changes nothing, and the batch does not matter."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug_plugins.diffusion.augmentation import Augmentation
from synthaug_plugins.diffusion.warp import SYM6, warp
from synthaug_plugins.errors import RecipeError

OFF = {f.name: 0 for f in fields(Augmentation) if f.name != 'p'}
ALL = Augmentation(**{**dict.fromkeys(OFF, 1), 'p': 1})


@pytest.mark.parametrize('number', range(18))
def test_augmentation_gives_the_reference_images_and_labels(number: int, shared: Path) -> None:
    arrays = np.load(shared / 'golden' / 'augment.npz')
    case = json.loads((shared / 'golden' / 'augment.json').read_text())['cases'][number]
    key, n = case['key'], case['shape'][0]
    recorded = [torch.from_numpy(arrays[f'{key}_draw{i:02d}']) for i in range(len(case['draws']))]
    augmentation = Augmentation(**{**OFF, **case['kwargs']})
    draws: dict[str, tuple[Tensor, ...]] = {}
    for name, like in augmentation.draw(n).items():
        draws[name] = tuple(recorded.pop(0).reshape(d.shape) for d in like)
    assert not recorded
    images, labels = augmentation(torch.from_numpy(arrays[f'{key}_in']), draws)
    assert labels.shape == (n, augmentation.label_dim) == (n, case['labels_dim'])
    torch.testing.assert_close(images, torch.from_numpy(arrays[f'{key}_out']), rtol=0, atol=2e-5)
    torch.testing.assert_close(labels, torch.from_numpy(arrays[f'{key}_labels']), rtol=0, atol=1e-6)


def test_default_draws_tell_nine_numbers() -> None:
    torch.manual_seed(0)
    augmentation = Augmentation()
    images, labels = augmentation(torch.zeros(400, 1, 4, 4), augmentation.draw(400))
    assert augmentation.label_dim == 9 and labels.shape == (400, 9) and labels.dtype == torch.float32 and images.shape == (400, 1, 4, 4)
    assert float(labels[:, 0].mean()) == pytest.approx(0.5, abs=0.1)  # xflip acts whatever p is
    assert float((labels[:, 2] != 0).float().mean()) == pytest.approx(0.12, abs=0.06)


@pytest.mark.parametrize('size', [(8, 8), (7, 12)])
def test_p_zero_changes_nothing(size: tuple[int, int]) -> None:
    x = torch.rand(4, 3, *size) * 2 - 1
    augmentation = Augmentation(p=0, brightness=1, hue=1, saturation=1, translate_int=1)
    images, labels = augmentation(x, augmentation.draw(4))
    torch.testing.assert_close(images, x, rtol=0, atol=5e-6)
    assert labels.shape == (4, 15) and not labels.any()


def test_image_is_changed_alike_in_every_batch() -> None:
    torch.manual_seed(1)
    x, draws = torch.rand(6, 3, 8, 8), ALL.draw(6)
    together = ALL(x, draws)
    for i in range(6):
        alone = ALL(x[i : i + 1], {name: tuple(d[..., i : i + 1] for d in ds) for name, ds in draws.items()})
        torch.testing.assert_close(alone[0][0], together[0][i], rtol=0, atol=2e-6)
        assert torch.equal(alone[1][0], together[1][i])


def test_autocast_does_not_blur_the_images() -> None:
    x, draws = torch.rand(4, 3, 8, 8), ALL.draw(4)
    with torch.autocast('cpu', torch.bfloat16):
        images = ALL(x, draws)[0]
    torch.testing.assert_close(images, ALL(x, draws)[0], rtol=0, atol=1e-6)


def test_draws_come_from_the_global_generator() -> None:
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(torch.cat([d.double().flatten() for ds in ALL.draw(5).values() for d in ds]))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_warp_by_whole_pixels_moves_them_and_goes_on_as_the_reflection() -> None:
    x = torch.rand(2, 3, 16, 12, dtype=torch.float64)
    moved = warp(x, torch.tensor([[1.0, 0, -3], [0, 1, 2], [0, 0, 1]], dtype=torch.float64).expand(2, 3, 3))
    torch.testing.assert_close(moved[:, :, :-2, 3:], x[:, :, 2:, :-3], rtol=0, atol=1e-10)
    torch.testing.assert_close(moved[:, :, :-2, :3], x[:, :, 2:, 1:4].flip(3), rtol=0, atol=1e-10)


def test_wavelet_is_orthonormal_with_six_vanishing_moments() -> None:
    h = torch.tensor(SYM6, dtype=torch.float64)
    n = torch.arange(12, dtype=torch.float64)
    assert float(h.sum()) == pytest.approx(math.sqrt(2), abs=1e-11)
    assert [float((h[2 * k :] * h[: 12 - 2 * k]).sum()) for k in range(6)] == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-11)
    high = h.flip(0) * (-1) ** n
    assert [float((high * (n / 12) ** k).sum()) for k in range(6)] == pytest.approx([0] * 6, abs=1e-11)


@pytest.mark.parametrize(('options', 'named'), [({'p': 1.5}, 'p'), ({'p': math.nan}, 'p'), ({'scale': -1}, 'scale'), ({'yflip': math.nan}, 'yflip')], ids=str)
def test_wrong_options_are_refused_by_key(options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=f'augment {named} = '):
        Augmentation(**options)


@pytest.mark.parametrize(
    ('transform', 'images', 'what'),
    [
        ('hue', torch.zeros(2, 2, 4, 4), '2 channels'),
        ('rotate_int', torch.zeros(2, 3, 4, 6), '4 x 6'),
        ('scale', torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 'uint8'),
        ('scale', torch.zeros(2, 3, 1, 4), '1, 4'),
    ],
    ids=['hue', 'rotate_int', 'uint8', 'one row'],
)
def test_images_that_a_transform_cannot_take_are_refused(transform: str, images: Tensor, what: str) -> None:
    augmentation = Augmentation(**{**OFF, transform: 1})
    with pytest.raises(RecipeError, match=what):
        augmentation(images, augmentation.draw(2))
