"""Images in [-1, 1] as networks for photographs take them, differentiably: for distances, which have gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def as_network_sees(x: Tensor, size: Sequence[int], mean: Tensor, std: Tensor) -> Tensor:
    """The whole image, interpolated (bicubic, antialiased) to the network's input size, in units of what the network was trained on.

    Args:
        x: (B, 3, H, W) in [-1, 1].
        size: (height, width) of the input, pixels.
        mean, std: (3, 1, 1), of images in [0, 1], on the device of x.

    Returns: (B, 3, height, width) float32, differentiable in x.
    """
    import torch

    x = x.float()
    if tuple(x.shape[-2:]) != tuple(size):
        x = torch.nn.functional.interpolate(x, size=tuple(size), mode='bicubic', antialias=True)
    return ((x + 1) / 2 - mean) / std
