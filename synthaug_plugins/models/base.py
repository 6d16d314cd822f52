"""What all models that generators run have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion import Denoiser


class Model(Protocol):
    """What `DenoiserModel` and `TextModel` have in common: known without weights, then loaded."""

    name: str

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of what is sampled: pixels or latents."""
        ...

    @property
    def inpaints(self) -> bool:
        """Whether it runs only with a mask and the masked image, see `TextModel`."""
        ...

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that it supports."""
        ...

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """See `diffusion.Denoiser.round_sigma`."""
        ...

    def check_weights(self) -> None:
        """Refuse (ModelError) weights that are missing or do not fit, from their headers alone."""
        ...

    def identity(self) -> dict[str, Any]:
        """Plain JSON: name, SHA-256 of what decides pixels, licence."""
        ...

    def run_as(self) -> dict[str, Any]:
        """Plain JSON: what else says how the network runs once it is loaded."""
        ...

    def load(self, device: torch.device, dtype: torch.dtype) -> Denoiser:
        """The denoiser with its weights; reads them."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """What is sampled, (B, C, h, w), of images in [-1, 1]. After `load`."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Images, about [-1, 1], of what was sampled. After `load`."""
        ...
