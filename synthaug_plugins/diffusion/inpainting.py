"""Editing a region of an image and keeping the rest: for any denoiser, and for networks that were trained for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion.adapters_networks import CONCAT
from synthaug_plugins.diffusion.denoiser import Denoiser
from synthaug_plugins.errors import RecipeError


class Blended:
    """A denoiser that knows the image outside of a mask (latent blending, Avrahami et al. 2023, arXiv 2206.02779): D' = m D + (1 - m) z0.

    Outside of the mask dx/dsigma = (x - z0) / sigma, so that x = z0 + sigma * noise at every step: what the network sees there is the known image
    at the right noise level, and what comes out in the end is z0. With churn the noise changes from step to step. All solvers follow this line
    exactly where it is straight, with schedule='linear' and scaling='none' or both 'flow'; elsewhere up to their own error. Guidance goes inside:
    `Blended(Guided(...), ...)`.

    Args:
        denoiser: of what is blended.
        mask: (B, 1, h, w), m: 1 where the image is made anew, 0 where it is known; one row per sample, or a single one for all.
        known: z0, (B, C, h, w) or (1, C, h, w).

    Raises:
        RecipeError: mask and image do not fit each other.
    """

    def __init__(self, denoiser: Denoiser, mask: Tensor, known: Tensor) -> None:
        check_mask(mask, known)
        self.denoiser, self.mask, self.known = denoiser, mask, known
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """See `Denoiser.__call__`."""
        D = self.denoiser(x, sigma, cond)
        m, z0 = self.mask.to(D), self.known.to(D)
        # Chosen, not multiplied by 0: what is not finite outside of the mask stays there.
        return torch.where(m > 0, m * D + (1 - m) * z0, z0)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """See `Denoiser.round_sigma`."""
        return self.denoiser.round_sigma(sigma)


@dataclass(frozen=True)
class Region:
    """What of each image of a batch is made anew.

    Attributes:
        mask: (B, 1, h, w): 1 where it is, 0 where the image stays; on the grid of what is sampled.
        masked: (B, C, h, w): the images with the region made grey (0 of [-1, 1]), encoded, for a network that was trained for inpainting; None for
            others, which are blended.

    Raises:
        RecipeError: mask and images do not fit each other.
    """

    mask: Tensor
    masked: Tensor | None = None

    def __post_init__(self) -> None:
        if self.masked is not None:
            check_mask(self.mask, self.masked)

    def condition(self) -> dict[str, Tensor]:
        """What an inpainting network is told: mask and masked image, (B, 1 + C, h, w), beside the noisy latents (Rombach et al. 2022, section 4.5)."""
        return {} if self.masked is None else {CONCAT: torch.cat([self.mask.to(self.masked), self.masked], dim=1)}

    def around(self, denoiser: Denoiser, known: Tensor) -> Denoiser:
        """The denoiser that leaves the rest alone: blended, unless its network sees the masked image itself."""
        return Blended(denoiser, self.mask, known) if self.masked is None else denoiser


def check_mask(mask: Tensor, like: Tensor) -> None:
    """Refuse (RecipeError) a mask that is not (B, 1, h, w) or (1, 1, h, w) for images `like` (B, C, h, w)."""
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != like.shape[2:] or 1 != len(mask) != len(like) != 1:
        raise RecipeError(f'The mask has the shape {tuple(mask.shape)} for images {tuple(like.shape)}.', 'Give (B, 1, h, w) on the grid of the images.')


def cover(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask of pixels on a coarser grid, such as that of latents: a cell is in it when any of its pixels is (maximum, so nothing is missed).

    Args:
        mask: (B, 1, H, W), H and W multiples of height and width.

    Returns: (B, 1, height, width) in the dtype of the mask.

    Raises:
        RecipeError: the grids do not fit each other.
    """
    H, W = mask.shape[2:]
    if H % height or W % width:
        raise RecipeError(f'A mask of {W} x {H} pixels does not lie on a grid of {width} x {height}.', 'Give a multiple of it.')
    return torch.nn.functional.max_pool2d(mask, (H // height, W // width))
