"""EDM's training loss and its distribution of noise levels."""

from __future__ import annotations

from torch import Tensor

from synthaug_plugins.diffusion.denoiser import EDMPrecond


def lognormal_sigmas(normal: Tensor, P_mean: float = -1.2, P_std: float = 1.2) -> Tensor:
    """Noise levels to train at: ln sigma ~ N(P_mean, P_std^2) (EDM, Table 1). normal: unit normal draws of any shape."""
    return (P_mean + P_std * normal).exp()


def edm_loss(denoiser: EDMPrecond, y: Tensor, sigma: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
    """lambda(sigma) |D(y + sigma n; sigma) - y|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (EDM, Table 1).

    The mean is taken over channels and pixels, where EDM's code takes the sum: the value is 1 at the start of training
    whatever the resolution, and a gradient clip means the same at every resolution.

    Args:
        y: clean images (B, C, H, W) in [-1, 1].
        sigma: noise levels (B,).
        noise: unit normal noise like y.
        cond: class indices (B,) int64, or None.

    Returns: (B,), one loss per sample.
    """
    s, sd = sigma.reshape(-1, 1, 1, 1), denoiser.sigma_data
    weight = (s**2 + sd**2) / (s * sd) ** 2
    return (weight * (denoiser(y + s * noise, sigma, cond) - y) ** 2).mean(dim=(1, 2, 3))
