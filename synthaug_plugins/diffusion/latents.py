"""The autoencoder of a model of latents: images to latents, scaled as the model was trained on them, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.errors import ModelError


class Latents:
    """An autoencoder of diffusers, with the scale of its latents.

    Args:
        vae: AutoencoderKL, AutoencoderDC or AutoencoderTiny; it runs in its own dtype.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of images, scaled to what the model was trained on: (z - mean) scaling_factor / std.

        mean is latents_mean or shift_factor and std latents_std where the VAE's config has them, else 0 and 1.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: unit normal noise like the latents, to draw from the posterior; without it, z is the posterior's mean.

        Returns: (B, c, h, w) in the dtype of images; the VAE runs in its own.

        Raises:
            ModelError: noise for a VAE without a posterior.
        """
        z, spread = self._encoded(images)
        if noise is not None:
            if spread is None:
                raise ModelError(f'{type(self.vae).__name__} has no posterior to draw from.', 'Leave noise out.')
            z = z + spread * noise.to(z)
        mean, std = self._latent_statistics(images)
        return (z.to(images.dtype) - mean) * (self._scaling_factor() / std)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images, scaled as `encode` scales them: mean + deviation * noise is a draw.

        The deviation is 0 for a VAE without a posterior. Arguments, shapes and refusals as for `encode`.
        """
        z, spread = self._encoded(images)
        mean, std = self._latent_statistics(images)
        scale = self._scaling_factor() / std
        deviation = torch.zeros_like(z) if spread is None else spread
        return (z.to(images.dtype) - mean) * scale, deviation.to(images.dtype) * scale

    def _encoded(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The VAE's own latents, not scaled: their mean, and their deviation where it has a posterior."""
        encoded = self.vae.encode(images.to(self.vae.dtype))
        if hasattr(encoded, 'latent_dist'):
            return encoded.latent_dist.mean, encoded.latent_dist.std
        return (encoded.latents if hasattr(encoded, 'latents') else encoded.latent), None

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, the inverse of `encode`: about [-1, 1], not clamped, in the dtype of latents."""
        mean, std = self._latent_statistics(latents)
        z = latents * (std / self._scaling_factor()) + mean
        return self.vae.decode(z.to(self.vae.dtype), return_dict=False)[0].to(latents.dtype)

    def _scaling_factor(self) -> float:
        return float(self.vae.config.get('scaling_factor') or 1.0)

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's latents per channel, (c, 1, 1) or (1, 1, 1)."""
        config = self.vae.config
        mean, std = config.get('latents_mean') or config.get('shift_factor') or 0.0, config.get('latents_std') or 1.0
        return like.new_tensor(mean).reshape(-1, 1, 1), like.new_tensor(std).reshape(-1, 1, 1)
