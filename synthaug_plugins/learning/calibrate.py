"""Noise levels for the user's own data: sigma_data, the training distribution and the sampler's range, measured without a network.

EDM's constants (sigma_data 0.5, P_mean -1.2, P_std 1.2, 0.002 to 80) were tuned for natural images of 32 and 64 pixels. What is
measured here and what is rule of thumb: see `Calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.diffusion import Precond, denoising_loss
from synthaug_plugins.diffusion.pixels import from_uint8
from synthaug_plugins.errors import DataError
from synthaug_plugins.learning.data import some_images
from synthaug_plugins.real_images import RealImages

_MEAN_SHIFT, _STD_SCALE, _SHARPNESS = -0.47, 1.04, 4
"""From the moments of gain^4 over ln sigma to P_mean and P_std. Set so that CIFAR-10, whose moments are -0.73 and 1.15, gets
EDM's tuned -1.2 and 1.2."""
_STD_RANGE = (1.0, 2.0)
_QUANTILE, _DISTANCES = 0.999, 1.05
"""sigma_max in distances that only one pair of images in 1000 exceeds: EDM's 80 over CIFAR-10's 76. The largest distance itself
would grow with the number of images looked at."""
_EXACT_BELOW, _ENOUGH = 1024, 4
"""Up to so many values per image the whole covariance is used, where there are so many images per value; else the spectrum. Of
fewer images the covariance is singular, which looks like knowledge that pays at the lowest noise."""
_ROUNDING = (1 / 127.5) ** 2 / 12
"""Variance of the rounding to 8 bits. Directions that vary less, such as the colours of grey images, hold nothing to denoise."""
_MOST_VALUES = 2**26
"""So many values at most are looked at, but 64 images in any case: float64 copies of them must fit into memory."""


@dataclass(frozen=True)
class Calibration:
    """Proposals, and what they rest on. Pixels are counted from -1 to 1.

    Attributes:
        sigma_data: measured. Root mean square of the pixels: with it the network's input and target have unit variance (EDM,
            appendix B.6). Exact.
        P_mean, P_std: heuristic. Where on ln sigma a linear denoiser that knows the data's spectrum (Wiener's) beats one that
            knows only their variance: mean and width of gain^4, shifted and scaled by constants that give CIFAR-10 EDM's own
            values. On other natural images at 64 pixels the rule comes near the (-0.8, 1.6) of EDM2 (Karras et al. 2024).
        sigma_min: rule. Standard deviation of the rounding to grey levels, (smallest step of grey) / sqrt(12), 0.0023 for 8-bit
            images (EDM: 0.002): below it there is nothing left to denoise but the rounding.
        sigma_max: rule. 1.05 times the distance that only one pair of images in 1000 exceeds, after Song and Ermon's technique 1
            (2020, arXiv 2006.09011): when sigma reaches the distance between two images, a noisy one no longer tells which it
            was. The factor gives CIFAR-10 EDM's 80. Too small a value costs variety of brightness and colour, too large a value
            a few sampler steps (EDM keeps 80 at 64 pixels too, where this rule gives about twice that for natural images).
        images: how many images were looked at.
        reasons: one sentence per proposal, with the measured figures.
    """

    sigma_data: float
    P_mean: float
    P_std: float
    sigma_min: float
    sigma_max: float
    images: int
    reasons: dict[str, str]


@dataclass(frozen=True)
class SigmaLoss:
    """The loss at one noise level.

    Attributes:
        sigma: the noise level.
        loss: mean over images, see `diffusion.denoising_loss`.
        standard_error: of that mean; NaN for a single image.
    """

    sigma: float
    loss: float
    standard_error: float


def pixel_rms(images: Tensor | np.ndarray) -> float:
    """sigma_data of uint8 images of any shape: the root mean square of x / 127.5 - 1, exact; reads a memory-mapped array in pieces."""
    counts = _level_counts(images)
    values = np.arange(256) / 127.5 - 1
    return math.sqrt(float((counts * values**2).sum() / counts.sum()))


def calibrate(images: Tensor | np.ndarray, limit: int = 2048, seed: int = 0) -> Calibration:
    """Propose noise levels for images.

    Args:
        images: (N, C, H, W) uint8. sigma_data and the grey levels come from all of them.
        limit: of these, how many drawn at random decide the spectrum and the distances; fewer where images are large.
        seed: of that draw.

    Raises:
        DataError: fewer than 16 images, not uint8, or images without variation.
    """
    if str(images.dtype).removeprefix('torch.') != 'uint8' or images.ndim != 4 or len(images) < 16:
        raise DataError(f'The images are {images.dtype} {tuple(images.shape)}.', 'Give at least 16 uint8 images (N, C, H, W).')
    limit = _affordable(limit, int(np.prod(images.shape[1:])))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:limit])
    sample = images[torch.from_numpy(chosen)].cpu().numpy() if isinstance(images, Tensor) else images[chosen]
    x = torch.from_numpy(np.asarray(sample)).double() / 127.5 - 1
    variances = _spectrum(x)
    variances = variances[variances > _ROUNDING]
    levels = np.flatnonzero(_level_counts(images))
    farthest = _far_distance(x.flatten(1))
    if len(levels) < 2 or not farthest > 0 or not len(variances):
        raise DataError(f'The {len(images)} images are all alike.', 'Give images that differ.')

    ln_sigma = np.linspace(math.log(1e-3), math.log(1e3), 400)
    mean, width, best = _moments(ln_sigma, _linear_gain(variances.numpy(), np.exp(ln_sigma)))
    P_mean, P_std = mean + _MEAN_SHIFT, min(max(width * _STD_SCALE, _STD_RANGE[0]), _STD_RANGE[1])
    sigma_data, step = pixel_rms(images), float(np.diff(levels).min()) / 127.5
    sigma_min, sigma_max = step / math.sqrt(12), _DISTANCES * farthest
    return Calibration(
        sigma_data=round(sigma_data, 4),
        P_mean=round(P_mean, 2),
        P_std=round(P_std, 2),
        sigma_min=float(f'{sigma_min:.2g}'),
        sigma_max=float(f'{sigma_max:.3g}'),
        images=len(x),
        reasons={
            'sigma_data': f'root mean square of the pixels of {len(images)} images, {sigma_data:.4f}',
            'P_mean': f'a linear denoiser gains most at sigma {math.exp(best):.2g}, on average at {math.exp(mean):.2g}; shifted as for CIFAR-10',
            'P_std': f'its gain is {width:.2f} wide in ln sigma; scaled as for CIFAR-10, kept in {_STD_RANGE[0]:g} to {_STD_RANGE[1]:g}',
            'sigma_min': f'the smallest step between two grey levels in use is {step:.4f}; rounding to it is noise of {sigma_min:.2g}',
            'sigma_max': f'{_DISTANCES:g} times the distance that one pair in 1000 of {len(x)} images exceeds, {farthest:.1f}',
        },
    )


def calibrate_folder(folder: str | Path, resolution: int | None = None, channels: int = 3, limit: int = 2048, seed: int = 0) -> Calibration:
    """`calibrate` for a folder of class folders; only `limit` images are read.

    Args:
        folder: the user's images.
        resolution: pixels per side that the model will have; default: that of the images, where all are squares of one size.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        DataError: see `calibrate` and `RealImages`; or no resolution was given and the images differ in size.
    """
    real_images = RealImages(folder)
    if resolution is None:
        ids = [i for name in real_images.classes for i in real_images.ids(name)]
        sizes = {real_images.size(ids[k]) for k in np.random.default_rng(seed).permutation(len(ids))[:limit]}
        if len(sizes) > 1 or len(set(next(iter(sizes)))) > 1:
            raise DataError(f'The images of {str(folder)!r} are not squares of one size.', 'Say which resolution the model will have: --resolution 64.')
        resolution = next(iter(sizes))[0]
    limit = _affordable(limit, channels * resolution**2)
    return calibrate(some_images(real_images, resolution, channels, limit, seed), limit, seed)


@torch.no_grad()
def loss_per_sigma(
    denoiser: Precond,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | None,
    sigmas: Sequence[float],
    *,
    limit: int = 256,
    batch_size: int = 64,
    seed: int = 0,
) -> list[SigmaLoss]:
    """The weighted loss of a denoiser at single noise levels: 1 at the start of training, below 1 where it has learnt something.

    Every level sees the same images and the same noise, drawn on the CPU from the seed: two calls, and two denoisers, compare
    exactly. The denoiser is put into eval mode for the while.

    Args:
        denoiser: on any device.
        images: (N, C, H, W) uint8; images kept from training show overfitting.
        labels: (N,) class indices, or None.
        sigmas: noise levels; those outside the denoiser's range are left out.
        limit: images used, drawn at random.
        batch_size: images per network call.
        seed: of images and noise.
    """
    device = next(denoiser.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:limit].sort().values
    pixels = images[chosen.to(images.device)] if isinstance(images, Tensor) else torch.from_numpy(np.asarray(images[chosen.numpy()]))
    y = from_uint8(pixels.to(device))
    noise = torch.randn(y.shape, generator=generator).to(device)
    cond = None if labels is None else torch.as_tensor(np.asarray(labels))[chosen].to(device, torch.int64)
    was_training = denoiser.training
    denoiser.eval()
    table = []
    for sigma in sigmas:
        if not denoiser.sigma_min <= sigma <= denoiser.sigma_max:
            continue
        losses = torch.cat(
            [
                denoising_loss(denoiser, y[i : i + batch_size], y.new_full((len(y[i : i + batch_size]),), sigma), noise[i : i + batch_size], c)
                for i, c in zip(range(0, len(y), batch_size), [None] * len(y) if cond is None else cond.split(batch_size), strict=False)
            ]
        ).double()
        error = float(losses.std() / math.sqrt(len(losses))) if len(losses) > 1 else math.nan
        table.append(SigmaLoss(float(sigma), float(losses.mean()), error))
    denoiser.train(was_training)
    return table


def _level_counts(images: Tensor | np.ndarray) -> np.ndarray:
    """(256,) how often each grey level occurs."""
    rows = max(1, 2**24 // max(1, int(np.prod(images.shape[1:]))))
    counts = np.zeros(256)
    for i in range(0, len(images), rows):
        part = images[i : i + rows]
        counts += np.bincount((part.cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)).ravel(), minlength=256)
    return counts


def _affordable(limit: int, values: int) -> int:
    """How many images of so many values each are looked at: `limit`, or what memory allows."""
    return min(limit, max(_MOST_VALUES // values, 64))


def _spectrum(x: Tensor) -> Tensor:
    """Variances of the images x (N, C, H, W) along uncorrelated directions, (C H W,), never negative.

    Many small images: the eigenvalues of their covariance. Few or larger ones: cosine transform (DCT-II), then the eigenvalues over the
    channels at each frequency, as if the statistics were the same all over the image.
    """
    n, c, h, w = x.shape
    x = x - x.mean(dim=0)
    if c * h * w <= min(_EXACT_BELOW, n // _ENOUGH):
        flat = x.flatten(1)
        return torch.linalg.eigvalsh(flat.T @ flat / n).clamp(min=0)
    z = _cosines(h) @ x @ _cosines(w).T
    return torch.linalg.eigvalsh(torch.einsum('nahw,nbhw->hwab', z, z) / n).flatten().clamp(min=0)


def _far_distance(x: Tensor) -> float:
    """The Euclidean distance that a share 1 - _QUANTILE of all pairs of rows exceeds. x: (N, D)."""
    n = len(x)
    i, j = torch.triu_indices(n, n, 1)
    distances = torch.cdist(x, x)[i, j]
    return float(distances.kthvalue(max(1, math.ceil(_QUANTILE * len(distances)))).values)


def _cosines(n: int) -> Tensor:
    """The orthonormal DCT-II matrix (n, n), float64."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * (i + 0.5) * k / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def _linear_gain(variances: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """1 - (error of the best linear denoiser) / (error of the best one that scales all values alike), at each sigma."""
    total = variances.mean()
    error = np.array([(variances * s**2 / (variances + s**2)).mean() for s in sigmas])
    return np.clip(1 - error / (total * sigmas**2 / (total + sigmas**2)), 0, None)


def _moments(ln_sigma: np.ndarray, gain: np.ndarray) -> tuple[float, float, float]:
    """Mean and standard deviation of ln sigma under gain^4, and where the gain is largest."""
    weights = np.gradient(ln_sigma) * gain**_SHARPNESS
    weights = weights / weights.sum()
    mean = float((weights * ln_sigma).sum())
    return mean, math.sqrt(float((weights * (ln_sigma - mean) ** 2).sum())), float(ln_sigma[gain.argmax()])
