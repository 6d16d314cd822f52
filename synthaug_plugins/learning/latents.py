"""Real images as what a model is trained on: latents, or pixels, with the spread that its encoder gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.diffusion.pixels import from_uint8
from synthaug_plugins.models.fit import channels_first, place

if TYPE_CHECKING:
    from synthaug_plugins.models.base import Model


@torch.no_grad()
def posteriors(model: Model, images: Iterable[np.ndarray], fit: str, device: torch.device, mirrored: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what a model sees of images, float32: a draw from a VAE's posterior costs nothing afterwards.

    Images are taken and encoded one at a time, so that none depends on its neighbours, and their number costs no memory but that of latents.

    Args:
        model: after `load`.
        images: (H, W, 3) uint8 each.
        fit: see `place`.
        device: where the model is.
        mirrored: encode the mirror images as well; they follow all the others.

    Returns: (N or 2N, C, h, w) each, on the device.
    """
    found, turned = [], []
    for image in images:
        pixels = from_uint8(torch.tensor(channels_first(place(image, *model.image_size, fit).pixels, model.size[0])).to(device))
        found.append(model.posterior(pixels[None]))
        if mirrored:
            turned.append(model.posterior(pixels.flip(-1)[None]))
    mean, deviation = (torch.cat(parts).float() for parts in zip(*found, *turned, strict=True))
    return mean, deviation
