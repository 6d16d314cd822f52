"""Distances in the feature space of a CLIP or of one of timm's networks, such as DINO: 1 - cosine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.timm_network import TimmNetwork
from synthaug_plugins.models.distances import Distance
from synthaug_plugins.registry import DISTANCES

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class _Cosine(Distance):
    """1 - cos of two images' features, between 0 and 2."""

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """(B, D) of (B, 3, H, W) in [-1, 1]; differentiable."""

    def seen_from(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Distance.seen_from`: the network looks at a once."""
        import torch

        def features(images: Tensor) -> Tensor:
            return self._features(images.float().expand(-1, 3, -1, -1))

        of_a = features(a)
        return lambda b: 1 - torch.nn.functional.cosine_similarity(of_a, features(b), dim=1)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.seen_from(a)(b)


@DISTANCES.register_module()
class ClipCosine(_Cosine):
    """1 - cosine of a CLIP's image features: what the images show rather than where.

    Args:
        model, pretrained, revision, quick_gelu: the CLIP, see `ClipModel`. The whole image is interpolated (bicubic, antialiased) to its input size.

    Raises:
        ModelError: see `ClipModel`.
    """

    def __init__(self, model: str = 'RN50', pretrained: str | None = None, revision: str | None = None, quick_gelu: bool | None = None) -> None:
        self.clip = ClipModel(model, pretrained, revision, quick_gelu)

    def check(self, image_size: tuple[int, int] | None = None) -> None:
        """See `Distance.check`."""
        self.clip.check()

    def identity(self) -> Mapping[str, Any]:
        return {'type': 'ClipCosine', **self.clip.identity()}

    def setup(self, device: torch.device) -> None:
        """See `Distance.setup`."""
        self.clip.load(device)

    def _features(self, images: Tensor) -> Tensor:
        return self.clip.features(images)


@DISTANCES.register_module()
class TimmCosine(_Cosine):
    """1 - cosine of the features of one of timm's networks; 'vit_small_patch16_224.dino' is DINO.

    Args:
        model: name of the network, see `TimmNetwork`. The whole image is interpolated (bicubic, antialiased) to its input size.
        checkpoint: a weight file, see `TimmNetwork`.

    Raises:
        ModelError: see `TimmNetwork`.
    """

    def __init__(self, model: str, checkpoint: str | None = None) -> None:
        self.timm = TimmNetwork(model, checkpoint)

    def check(self, image_size: tuple[int, int] | None = None) -> None:
        """See `Distance.check`."""
        self.timm.check()

    def identity(self) -> Mapping[str, Any]:
        return {'type': 'TimmCosine', **self.timm.identity()}

    def setup(self, device: torch.device) -> None:
        """See `Distance.setup`."""
        self.timm.setup(device)

    def _features(self, images: Tensor) -> Tensor:
        return self.timm.features(images)
