"""Proposed noise levels: measured where they can be, EDM's own values for data like EDM's, and sensible beyond."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synthaug_plugins.diffusion import EDMPrecond
from synthaug_plugins.errors import DataError
from synthaug_plugins.learning import calibrate as calibrate_module
from synthaug_plugins.learning.calibrate import calibrate, calibrate_folder, loss_per_sigma, pixel_rms


def natural(n: int = 600, size: int = 32, rms: float = 0.5, seed: int = 0) -> np.ndarray:
    """Random images with a power spectrum of 1/f^2, as photographs have it: (n, 3, size, size) uint8."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(2 * size)[:, None], np.fft.fftfreq(2 * size)[None])
    f[0, 0] = f[0, 1] / 2
    noise = np.fft.fft2(rng.standard_normal((n, 3, 2 * size, 2 * size))) / f
    x = np.fft.ifft2(noise).real[..., :size, :size]
    x = 0.9 * x[:, :1] + 0.3 * x  # most of the variation is in the brightness
    return np.clip(x * rms / x.std() * 127.5 + 127.5, 0, 255).round().astype(np.uint8)


def test_sigma_data_is_the_root_mean_square() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)
    assert pixel_rms(images) == pytest.approx(float(np.sqrt(((images / 127.5 - 1) ** 2).mean())), rel=1e-12)
    assert pixel_rms(torch.from_numpy(images)) == pixel_rms(images)


def test_images_like_photographs_get_values_near_those_of_the_paper() -> None:
    found = calibrate(natural())
    assert found.sigma_data == pytest.approx(0.5, abs=0.05)
    assert found.P_mean == pytest.approx(-1.2, abs=0.35)
    assert found.P_std == pytest.approx(1.2, abs=0.25)
    assert found.sigma_min == pytest.approx(0.002, abs=0.0005)
    assert 40 < found.sigma_max < 120
    assert set(found.reasons) == {'sigma_data', 'P_mean', 'P_std', 'sigma_min', 'sigma_max'}


def test_cifar10_gets_the_values_of_the_paper(shared: Path) -> None:
    sys.path.insert(0, str(shared / 'data'))
    try:
        from load_packs import load_cifar
    finally:
        sys.path.pop(0)
    images = load_cifar(shared / 'data' / 'cifar10', 'test')[0].transpose(0, 3, 1, 2)
    found = calibrate(images, limit=1024)
    assert found.sigma_data == pytest.approx(0.5, abs=0.02)
    assert (found.P_mean, found.P_std) == (pytest.approx(-1.2, abs=0.05), pytest.approx(1.2, abs=0.05))
    assert found.sigma_max == pytest.approx(80, rel=0.1)


def test_training_moves_with_the_contrast_of_the_data() -> None:
    """Data scaled by k need every noise level scaled by k."""
    full, half = calibrate(natural(rms=0.4)), calibrate(natural(rms=0.2))
    assert half.sigma_data / full.sigma_data == pytest.approx(0.5, rel=0.03)
    assert half.P_mean - full.P_mean == pytest.approx(-math.log(2), abs=0.1)
    assert half.sigma_max / full.sigma_max == pytest.approx(0.5, rel=0.05)


def test_grey_levels_that_are_not_used_raise_sigma_min() -> None:
    coarse = natural() // 16 * 16
    assert calibrate(coarse).sigma_min == pytest.approx(16 / 127.5 / math.sqrt(12), rel=0.03)


def test_a_constant_brightness_shift_changes_sigma_data_and_not_where_to_train() -> None:
    images = natural(rms=0.2)
    bright = (images.astype(int) + 60).clip(0, 255).astype(np.uint8)
    a, b = calibrate(images), calibrate(bright)
    assert b.sigma_data > 2 * a.sigma_data
    assert b.P_mean == pytest.approx(a.P_mean, abs=0.1)


def test_grey_images_seen_in_colour_are_trained_where_their_noise_averages_out() -> None:
    """Three channels that agree average the noise: every level moves up by the square root of 3, and colours that never vary say nothing."""
    grey = natural(400, 8, rms=0.3).mean(1, keepdims=True).round().astype(np.uint8)
    one, three = calibrate(grey), calibrate(grey.repeat(3, 1))
    assert three.P_mean - one.P_mean == pytest.approx(math.log(3) / 2, abs=0.1)
    assert three.P_std == pytest.approx(one.P_std, abs=0.1)


def test_few_images_propose_what_many_of_their_kind_do() -> None:
    many = natural(2000, 8, rms=0.3)
    few, all_of_them = calibrate(many[:100]), calibrate(many)  # 192 values each: the covariance of 100 is singular
    assert few.P_mean == pytest.approx(all_of_them.P_mean, abs=0.3)
    assert few.P_std == pytest.approx(all_of_them.P_std, abs=0.3)


def test_of_large_images_only_so_many_are_looked_at_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_module, '_MOST_VALUES', 90 * 3 * 8 * 8)
    assert calibrate(natural(100, 8)).images == 90
    assert calibrate(natural(100, 16)).images == 64


@pytest.mark.parametrize('images', [np.zeros((20, 1, 8, 8), np.uint8), natural(8), natural(20).astype(np.float32)])
def test_images_that_say_nothing_are_refused(images: np.ndarray) -> None:
    with pytest.raises(DataError, match='images'):
        calibrate(images)


def test_folder_of_images_is_calibrated_at_its_own_size(tmp_path: Path) -> None:
    images = natural(40, 16)
    for k, pixels in enumerate(images):
        (tmp_path / 'ab'[k % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / 'ab'[k % 2] / f'{k:03d}.png')
    order = [*range(0, 40, 2), *range(1, 40, 2)]
    assert calibrate_folder(tmp_path) == calibrate(images[order])
    assert calibrate_folder(tmp_path, resolution=8, channels=1).images == 40
    Image.new('RGB', (20, 16)).save(tmp_path / 'a' / 'wide.png')
    with pytest.raises(DataError, match='one size'):
        calibrate_folder(tmp_path)


class Wiener(torch.nn.Module):
    """The network that makes `EDMPrecond` the best denoiser of images that are one random grey each, variance v."""

    def __init__(self, v: float, sigma_data: float) -> None:
        super().__init__()
        self.v, self.sd, self.nothing = v, sigma_data, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        s = (4 * c_noise).exp()[:, None, None, None]
        root, d = (s**2 + self.sd**2).sqrt(), x[0].numel()
        noisy = x * root
        D = self.v / (self.v + s**2 / d) * noisy.mean((1, 2, 3), keepdim=True)
        return (D - self.sd**2 / root**2 * noisy) * root / (s * self.sd)


def test_loss_per_sigma_is_that_of_the_closed_form() -> None:
    rng, d = np.random.default_rng(0), 64
    grey = np.clip(127.5 + 127.5 * 0.4 * rng.standard_normal(4000), 0, 255).round().astype(np.uint8)
    images = np.broadcast_to(grey[:, None, None, None], (4000, 1, 8, 8)).copy()
    v = float(((images[:, 0, 0, 0] / 127.5 - 1) ** 2).mean())
    sd = math.sqrt(v)
    denoiser = EDMPrecond(Wiener(v, sd), sd).train()
    table = loss_per_sigma(denoiser, images, None, [0.05, 0.5, 5.0, 50.0], limit=4000, batch_size=1000)
    assert denoiser.training
    for row in table:
        s2 = row.sigma**2
        wanted = (s2 + v) / (s2 * v) * (v * s2 / d) / (v + s2 / d)
        assert abs(row.loss - wanted) < 4 * row.standard_error + 0.01 * wanted
    assert loss_per_sigma(denoiser, images, None, [0.5], limit=64) == loss_per_sigma(denoiser, images, None, [0.5], limit=64, batch_size=64)


def test_levels_outside_the_model_are_left_out() -> None:
    denoiser = EDMPrecond(Wiener(0.2, 0.5), 0.5, sigma_min=0.1, sigma_max=10)
    assert [row.sigma for row in loss_per_sigma(denoiser, natural(4, 8)[:, :1], None, [0.01, 1.0, 100.0])] == [1.0]
