"""The training loss and the distributions of noise levels to train at (EDM, Table 1, "Training")."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from synthaug_plugins.diffusion.preconditioning import Precond
from synthaug_plugins.diffusion.schedules import VPSchedule, model_sigmas


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(P_mean, P_std^2): EDM's, most at the levels where a network can learn something."""

    P_mean: float = -1.2
    P_std: float = 1.2

    def __call__(self, normal: Tensor) -> Tensor:
        """Noise levels of unit normal draws of any shape."""
        return (self.P_mean + self.P_std * normal).exp()

    def draw(self, n: int, device: torch.device | str) -> Tensor:
        """(n,) float32 from torch's global generator."""
        return self(torch.randn(n, device=device))


class _OfUniform(ABC):
    """What distributions share that are made of uniform draws."""

    @abstractmethod
    def __call__(self, uniform: Tensor) -> Tensor:
        """Noise levels of draws from [0, 1) of any shape."""

    def draw(self, n: int, device: torch.device | str) -> Tensor:
        """(n,) float32 from torch's global generator."""
        return self(torch.rand(n, device=device))


@dataclass(frozen=True)
class VPUniform(_OfUniform):
    """t ~ U(epsilon_t, 1), sigma = sigma(t) of `VPSchedule`."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    def __call__(self, uniform: Tensor) -> Tensor:
        """Noise levels of draws from [0, 1) of any shape; 0 stands for t = 1."""
        return VPSchedule(self.beta_d, self.beta_min).sigma(1 + uniform * (self.epsilon_t - 1))


@dataclass(frozen=True)
class LogUniform(_OfUniform):
    """ln sigma ~ U(ln sigma_min, ln sigma_max): VE's."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __call__(self, uniform: Tensor) -> Tensor:
        """Noise levels of draws from [0, 1) of any shape; 0 stands for sigma_min."""
        return self.sigma_min * (uniform * math.log(self.sigma_max / self.sigma_min)).exp()


@dataclass(frozen=True)
class IDDPMUniform(_OfUniform):
    """sigma = u_j, j ~ U{0 ... M-1}, of `iddpm_table`."""

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000

    def __call__(self, uniform: Tensor) -> Tensor:
        """Noise levels of draws from [0, 1) of any shape; 0 stands for the highest."""
        table = model_sigmas(self.M, self.C_1, self.C_2, torch.device('cpu') if uniform.device.type == 'mps' else uniform.device)
        j = (uniform * self.M).long().clamp(max=self.M - 1)
        return table[j.to(table.device)].to(uniform)


def denoising_error(denoiser: Precond, y: Tensor, sigma: Tensor, noise: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
    """lambda(sigma) (D(y + sigma n; sigma) - y)^2 for every pixel (EDM, eq. 2 and Table 1).

    Args:
        denoiser: its `loss_weight` is lambda.
        y: clean (augmented) images (B, C, H, W) in [-1, 1].
        sigma: noise levels (B,).
        noise: unit normal noise like y.
        cond: class indices (B,) int64, or None.
        augment_labels: (B, A) what augmentation did to y, or None.

    Returns: (B, C, H, W) in the dtype of y, float32 at least.
    """
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    s, weight = (v.to(y).reshape(-1, 1, 1, 1) for v in (sigma, denoiser.loss_weight(sigma)))
    return weight * (denoiser(y + s * noise, sigma, cond, augment_labels) - y) ** 2


def denoising_loss(denoiser: Precond, y: Tensor, sigma: Tensor, noise: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
    """The mean of `denoising_error` over channels and pixels, where EDM's code takes the sum. Arguments as there.

    With EDM's preconditioning it is 1 at the start of training whatever the resolution, and a gradient clip means the same at
    every resolution.

    Returns: (B,), one loss per sample.
    """
    return denoising_error(denoiser, y, sigma, noise, cond, augment_labels).mean(dim=(1, 2, 3))
