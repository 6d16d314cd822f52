"""What a denoiser is, and the one made of a raw network and EDM's preconditioning."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Denoiser(Protocol):
    """D(x; sigma): the expected clean image given a noisy one. Every sampler runs on every denoiser.

    Attributes:
        sigma_min, sigma_max: the noise levels that the model supports; 0 and infinity when it has no limits.
    """

    sigma_min: float
    sigma_max: float

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        """Denoise a batch.

        Args:
            x: (B, C, H, W) clean image in [-1, 1] plus sigma times unit normal noise, float32 or float64.
            sigma: noise levels, (B,) or a scalar tensor.
            cond: class indices (B,) int64, or None for an unconditional call.

        Returns: (B, C, H, W) in the dtype of x. Non-finite values are returned as they are.
        """
        ...

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the model can be asked for; the identity for a continuous model."""
        ...


class EDMPrecond(nn.Module):
    """Make a denoiser of a raw network F: D = c_skip x + c_out F(c_in x; c_noise, labels) (EDM, Table 1, last column).

    The network runs in the dtype of its own parameters; the coefficients and the result have the dtype of x (float32 at
    least), so that a float64 sampler loses nothing outside of the network.

    Args:
        network: called as `network(x, c_noise, labels)`; x (B, C, H, W), c_noise (B,) float32 or float64, labels (B,) int64 or
            None. Returns (B, C, H, W).
        sigma_data: root mean square of the training images' values. With it and a network that starts at zero, the
            expected loss is 1 at every noise level.
        sigma_min, sigma_max: supported noise levels.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5, sigma_min: float = 0.0, sigma_max: float = math.inf) -> None:
        super().__init__()
        self.network = network
        self.sigma_data, self.sigma_min, self.sigma_max = float(sigma_data), float(sigma_min), float(sigma_max)

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        """See `Denoiser.__call__`."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1).expand(len(x))
        s, sd = sigma.reshape(-1, 1, 1, 1), self.sigma_data
        variance = s**2 + sd**2
        c_skip, c_out, c_in = sd**2 / variance, s * sd / variance.sqrt(), 1 / variance.sqrt()
        c_noise = sigma.log() / 4
        F_x = self.network((c_in * x).to(next(self.network.parameters()).dtype), c_noise, cond)
        return c_skip * x + c_out * F_x.to(x.dtype)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Every noise level is supported."""
        return sigma
