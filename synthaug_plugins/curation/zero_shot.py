"""What a CLIP says of the recipe's classes, told by their names alone: the head that filter and teacher share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.curation.class_prompts import ClassPrompts
from synthaug_plugins.curation.clip_model import ClipModel

if TYPE_CHECKING:
    import numpy as np
    import torch


class ZeroShot:
    """A zero-shot classifier (Radford et al. 2021): z_k = s * cos(g(x), h(prompt_k)), s the CLIP's own scale (about 100).

    Args:
        clip: its towers g and h.
        prompts: what it is told of each class.
    """

    def __init__(self, clip: ClipModel, prompts: ClassPrompts) -> None:
        self.clip, self.prompts = clip, prompts

    def check(self, classes: Sequence[str]) -> None:
        """Refuse what cannot work for these classes, see `ClipModel.check` and `ClassPrompts.check`."""
        self.clip.check()
        self.prompts.check(classes, self.clip)

    def setup(self, device: torch.device, classes: Sequence[str]) -> None:
        """Where to run, and the classes in label order."""
        self.device, self.classes = device, tuple(classes)
        self._texts: torch.Tensor | None = None

    def identity(self) -> dict[str, Any]:
        """Plain JSON that decides every logit; complete once `check` has seen the classes."""
        return {'model': dict(self.clip.identity()), **self.prompts.identity()}

    def logits(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Logits of (H, W, 3) uint8 images: (B, N) float32 on the CPU. Loads the weights and encodes the prompts when first called."""
        from synthaug_plugins.diffusion import full_float32

        if self._texts is None:
            self.clip.load(self.device)
            self._texts = self.clip.class_embeddings(self.prompts.of(self.classes))
        with full_float32():
            return (self.clip.logit_scale * self.clip.batch_features(images) @ self._texts.T).cpu()
