"""Pixels of 0 to 255 as the images in [-1, 1] that models see."""

from __future__ import annotations

from torch import Tensor


def from_uint8(pixels: Tensor) -> Tensor:
    """x / 127.5 - 1 (Karras et al. 2022, and every model of diffusers): uint8 of any shape to float32 in [-1, 1], on the device of the pixels.

    `generators.denoiser_generator.to_uint8` is the way back.
    """
    return pixels.float() / 127.5 - 1
