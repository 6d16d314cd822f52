"""Soft labels: what a CLIP's zero-shot head says of every image, for the SCE loss of He et al. (ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.curation.base import Inspector, Verdicts
from synthaug_plugins.curation.class_prompts import ClassPrompts
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.zero_shot import ZeroShot
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.registry import INSPECTORS
from synthaug_plugins.store.plan import Request

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.real_images import RealImages

_MOST_CLASSES = np.iinfo(np.int16).max


@INSPECTORS.register_module()
class SoftLabels(Inspector):
    """Records a teacher's logits for every class and rejects nothing: z_k = s * cos(g(x), h(prompt_k)), s the CLIP's own scale (about 100).

    Temperature is applied at training, where it can be changed: `soft_labels=dict(column='teacher_logits', blend=0.5, temperature=2.0)` of `mix`.
    The paper's teacher is the zero-shot head of the network that it tunes, before tuning.

    Args:
        model, pretrained, revision, quick_gelu: the CLIP, see `ClipModel`. Default: OpenAI's RN50, as in the paper.
        top_k: keep the k largest logits only, largest first, with their classes; the others count as probability 0 in training. Default: all.
        templates, dataset, names, hints: what CLIP is told of a class, see `ClassPrompts`; several templates are averaged.

    Scores: `teacher_logits`, float16 lists in the order of the store's classes, each shifted by a constant so that its largest is 0. No softmax
    sees the constant, but half precision does: logits of 64 to 128 are 1/16 apart there, those near 0 as fine as need be. With a top_k below
    the number of classes also `teacher_classes`, int16 lists of the labels that they belong to.

    Raises:
        RecipeError: top_k below 1; in `check`, fewer than two classes or more than 32767.
        ModelError, DataError: see `ClipModel` and `ClassPrompts`.
    """

    def __init__(
        self,
        model: str = 'RN50',
        pretrained: str | None = None,
        top_k: int | None = None,
        templates: str | Sequence[str] | None = None,
        dataset: str | None = None,
        names: str | None = None,
        hints: bool = True,
        revision: str | None = None,
        quick_gelu: bool | None = None,
    ) -> None:
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise RecipeError(f'SoftLabels top_k = {top_k!r} is no number of classes.', 'Use a whole number of at least 1, or None for all.')
        self.top_k = top_k
        self.zero_shot = ZeroShot(ClipModel(model, pretrained, revision, quick_gelu), ClassPrompts(templates, dataset, names, hints))

    def check(self, classes: Sequence[str], real_images: RealImages | None) -> None:
        if not 2 <= len(classes) <= _MOST_CLASSES:
            raise RecipeError(f'SoftLabels: {len(classes)} classes are outside [2, {_MOST_CLASSES}].', 'Leave the inspector out.')
        self.zero_shot.check(classes)

    def setup(self, device: torch.device, classes: Sequence[str], real_images: RealImages | None) -> None:
        self.zero_shot.setup(device, classes)

    def identity(self) -> Mapping[str, Any]:
        return {'type': 'SoftLabels', 'top_k': self.top_k, **self.zero_shot.identity()}

    def inspect(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Verdicts:
        logits = self.zero_shot.logits(images).numpy()
        logits -= logits.max(1, keepdims=True)
        everything_passes = [None] * len(images)
        if self.top_k is None or self.top_k >= logits.shape[1]:
            return Verdicts(everything_passes, {'teacher_logits': logits.astype(np.float16)})
        best = np.argsort(-logits, axis=1, kind='stable')[:, : self.top_k]
        kept = np.take_along_axis(logits, best, 1)
        return Verdicts(everything_passes, {'teacher_logits': kept.astype(np.float16), 'teacher_classes': best.astype(np.int16)})
