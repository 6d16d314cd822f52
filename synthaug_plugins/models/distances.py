"""Distances between images, as recipes name them: `distance=dict(type='synthaug_plugins.LPIPS', network='vgg')`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from synthaug_plugins.registry import DISTANCES

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Distance(ABC):
    """How far two images lie apart. Registered in `DISTANCES`; its constructor arguments are the recipe's options.

    Life: `__init__` and `check` read no weights and refuse what cannot work; `setup` reads them; then it is called, differentiably in both images.
    """

    def check(self, image_size: tuple[int, int] | None = None) -> None:  # noqa: B027  nothing to check is a fine default
        """Refuse (ModelError, RecipeError, MissingExtra) what cannot work, before any weights load. Weights that are not here are fetched, or missed.

        Args:
            image_size: (H, W) in pixels of the images to come, where it is known.
        """

    def setup(self, device: torch.device) -> None:  # noqa: B027  nothing to read is a fine default
        """Read weights, in float32, onto the device of the images to come.

        Raises:
            ModelError: they cannot be read.
        """

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON that decides its numbers: options and hashes of weights."""

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of pairs, (B,), 0 or more.

        Args:
            a, b: (B, 1 or 3, H, W) in [-1, 1], floating. Grey images are shown in three channels where a network sees three.
        """

    def seen_from(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """b -> distances of a and b: what of them depends on a alone is worked out once, for the several draws of a score."""
        return partial(self, a)


@DISTANCES.register_module()
class MSE(Distance):
    """Mean squared difference over channels and pixels; no weights. With it a score is the denoising error at one noise level."""

    def identity(self) -> Mapping[str, Any]:
        """See `Distance.identity`."""
        return {'type': 'MSE'}

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1)
