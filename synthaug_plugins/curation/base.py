"""The contract of an inspector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.store.plan import Request

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.real_images import RealImages


@dataclass(frozen=True)
class Verdicts:
    """What an inspector says of a batch.

    Attributes:
        reasons: per image, why it is rejected, or None to keep it.
        scores: score columns by name, (B,) floats each, or (B, k) for a list per image; they are stored beside the index columns, kept or not.
    """

    reasons: Sequence[str | None]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)


class Inspector(ABC):
    """Looks at finished images. Registered in `INSPECTORS`; its constructor arguments are the recipe's options.

    Life: `__init__` and `check` read no weights and refuse what cannot work; `setup` is called once in the process that inspects;
    weights load at the first `inspect`. A verdict depends on the image, its request and `identity` alone, and at most on the images of
    the same block before it (see `begin_block`), so that a block that is redone gets the same verdicts.
    """

    needs_real_images = False
    """Whether it compares with the user's real images."""

    def check(self, classes: Sequence[str], real_images: RealImages | None) -> None:  # noqa: B027  nothing to check is a fine default
        """Refuse (ModelError, RecipeError, DataError) what cannot work for these class names, before any weights load."""

    def setup(self, device: torch.device, classes: Sequence[str], real_images: RealImages | None) -> None:  # noqa: B027
        """Where to run, the store's class names in order, and the real images of the recipe's `data`."""

    def begin_block(self) -> None:  # noqa: B027  most inspectors look at each image alone
        """Forget the images seen so far: those that follow belong to another block. A block may hold several classes."""

    @property
    def remembers(self) -> bool:
        """Whether a verdict depends on images before it. A scoring that was stopped starts again then, else it goes on where it was.

        Where `begin_block` is overridden there is something to forget.
        """
        return type(self).begin_block is not Inspector.begin_block

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON that decides its verdicts: resolved options and model hashes. Part of the plan's fingerprint."""

    @abstractmethod
    def inspect(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Verdicts:
        """Judge one batch. images: (H, W, 3) uint8 each. May run in a thread beside the network."""
