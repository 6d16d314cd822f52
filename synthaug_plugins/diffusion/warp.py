"""One affine warp of a batch of images, with little blur: upsample by a wavelet filter, look up, downsample.

The way of Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676), appendix B,
which EDM's augmentation uses too.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# The low-pass filter of sym6: the least asymmetric of Daubechies' orthonormal wavelets with 6 vanishing moments
# (Daubechies 1992, "Ten Lectures on Wavelets", chapter 8). Orthonormality makes the identity warp exact.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_MARGIN = len(SYM6) // 4  # output pixels beyond the border that downsampling reads


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Move the pixels of each image by an affine map about its centre.

    Images go on beyond their borders by one reflection, and end in zeros. The reflection is always as wide as it can be: how
    an image is warped does not depend on the others in its batch, and no size has to be read back from the device.

    Args:
        images: (B, C, H, W), H and W 2 or more.
        inverse: (B, 3, 3) homogeneous maps from places in the result to places in the image, in pixels from the centre, x first.

    Returns: (B, C, H, W) in the dtype of images.
    """
    height, width = images.shape[2:]
    rows, columns = 2 * (height + 2 * _MARGIN), 2 * (width + 2 * _MARGIN)
    fine = _upsampling(height, images.dtype, images.device) @ images @ _upsampling(width, images.dtype, images.device).T
    # Pixel centres of the fine grids lie at half pixels: a shift by a quarter of a coarse pixel each way.
    # The coordinates of grid_sample are 1 at the borders.
    to_coarse = _scale_shift(images, columns / 4, rows / 4, 0.25, 0.25)
    to_fine = _scale_shift(images, 4 / fine.shape[3], 4 / fine.shape[2], -1 / fine.shape[3], -1 / fine.shape[2])
    G = to_fine @ inverse.to(images) @ to_coarse
    grid = F.affine_grid(G[:, :2], [len(images), images.shape[1], rows, columns], align_corners=False)
    found = F.grid_sample(fine, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
    return _downsampling(height, images.dtype, images.device) @ found @ _downsampling(width, images.dtype, images.device).T


@lru_cache(maxsize=64)
def constant(values: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small matrix on a device. Kept, since every copy of numbers to a device waits for it."""
    return torch.tensor(values, dtype=dtype, device=device)


def _scale_shift(like: Tensor, scale_x: float, scale_y: float, shift_x: float, shift_y: float) -> Tensor:
    """The homogeneous map that scales, then shifts: (3, 3)."""
    return constant(((scale_x, 0.0, shift_x), (0.0, scale_y, shift_y), (0.0, 0.0, 1.0)), like.dtype, like.device)


# Along one axis, going on as the reflection and filtering are a matrix: on images of training size its product is many times
# faster than depthwise convolutions with 12 taps.


@lru_cache(maxsize=16)
def _upsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """From the pixels of an axis to twice as many of its reflected continuation: (2 (3 size - 2), size)."""
    pixels = F.pad(torch.eye(size, dtype=torch.float64, device='cpu')[:, None], (size - 1, size - 1), mode='reflect')
    fine = F.conv_transpose1d(pixels, _taps(), stride=2, padding=len(SYM6) // 2 - 1)
    return fine[:, 0].T.to(device, dtype).contiguous()


@lru_cache(maxsize=16)
def _downsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Undoes what `_upsampling` does to the inner pixels: (size, 2 (size + 2 margin))."""
    fine = torch.eye(2 * (size + 2 * _MARGIN), dtype=torch.float64, device='cpu')[:, None]
    return F.conv1d(fine, _taps(), stride=2, padding=len(SYM6) // 2 - 1)[:, 0, _MARGIN:-_MARGIN].T.to(device, dtype).contiguous()


def _taps() -> Tensor:
    return torch.tensor([[SYM6]], dtype=torch.float64, device='cpu')
