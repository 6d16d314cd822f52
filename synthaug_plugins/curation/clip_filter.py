"""Keep an image only if a CLIP recognises its class: the CLIP filter of He et al. (ICLR 2023)."""

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


@INSPECTORS.register_module()
class ClipFilter(Inspector):
    """Zero-shot classification over all N classes of the recipe: p = softmax(s * cos(g(x), h(prompt_k))), s the CLIP's own scale (He et al., CF).

    Quantiles and the best k per class are choices over a finished set: select by the recorded `clip_p`. The paper's code takes 800 per class of
    those above chance, or the best 800 if there are fewer: `where='clip_p > 1/N or row_number() over (partition by class order by clip_p desc)
    <= 800', sample=800`.

    Args:
        model, pretrained, revision, quick_gelu: the CLIP, see `ClipModel`. Default: OpenAI's RN50, as in the paper.
        rule: 'chance' keeps p[own] > 1/N, strictly; 'argmax' keeps what CLIP finds most probable.
        times_chance: for 'chance': keeps p[own] > times_chance / N.
        threshold: keeps p[own] > threshold instead, in [0, 1).
        templates, dataset, names, hints: what CLIP is told of a class, see `ClassPrompts`; several templates are averaged.

    Scores: `clip_p`, the probability of the image's own class (float32 precision; the rule sees the recorded value); `clip_argmax`, the label of
    the most probable class.

    Raises:
        RecipeError: options that contradict each other or are out of range; in `check`, fewer than two classes.
        ModelError, DataError: see `ClipModel` and `ClassPrompts`.
    """

    def __init__(
        self,
        model: str = 'RN50',
        pretrained: str | None = None,
        rule: str = 'chance',
        times_chance: float = 1.0,
        threshold: float | None = None,
        templates: str | Sequence[str] | None = None,
        dataset: str | None = None,
        names: str | None = None,
        hints: bool = True,
        revision: str | None = None,
        quick_gelu: bool | None = None,
    ) -> None:
        if rule not in ('chance', 'argmax'):
            raise RecipeError(f'ClipFilter rule = {rule!r} is unknown.', "Use 'chance' or 'argmax'; a fixed limit is threshold=0.1.")
        if times_chance != 1 and (rule != 'chance' or threshold is not None):
            raise RecipeError(f'ClipFilter times_chance = {times_chance} needs the rule "chance" without a threshold.', 'Leave one of them out.')
        if threshold is not None and rule != 'chance':
            raise RecipeError(f'ClipFilter threshold = {threshold} contradicts the rule {rule!r}.', 'Leave one of them out.')
        if threshold is not None and not 0 <= threshold < 1:
            raise RecipeError(f'ClipFilter threshold = {threshold} is outside [0, 1).', 'Give a probability; 1 would keep nothing.')
        if not 0 < times_chance < float('inf'):
            raise RecipeError(f'ClipFilter times_chance = {times_chance} is not positive.', 'Use 1 for p > 1/N.')
        self.rule, self.times_chance, self.threshold = rule, float(times_chance), threshold
        self.zero_shot = ZeroShot(ClipModel(model, pretrained, revision, quick_gelu), ClassPrompts(templates, dataset, names, hints))

    def limit(self, n: int) -> float:
        """What p[own] must exceed among n classes."""
        return self.times_chance / n if self.threshold is None else float(self.threshold)

    def check(self, classes: Sequence[str], real_images: RealImages | None) -> None:
        if len(classes) < 2:
            raise RecipeError('ClipFilter compares classes, but the recipe has only one: its probability is always 1.', 'Leave the inspector out.')
        if self.limit(len(classes)) >= 1:
            raise RecipeError(f'ClipFilter times_chance = {self.times_chance} asks {len(classes)} classes for p >= 1: nothing would be kept.', 'Lower it.')
        self.zero_shot.check(classes)

    def setup(self, device: torch.device, classes: Sequence[str], real_images: RealImages | None) -> None:
        self.zero_shot.setup(device, classes)

    def identity(self) -> Mapping[str, Any]:
        rule = {'rule': self.rule, 'times_chance': self.times_chance, 'threshold': self.threshold}
        return {'type': 'ClipFilter', **rule, **self.zero_shot.identity()}

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Zero-shot probabilities of (H, W, 3) uint8 images: (B, N) float32, rows that sum to 1."""
        return self.zero_shot.logits(images).double().softmax(-1).float().numpy()

    def inspect(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Verdicts:
        p = self.probabilities(images)
        labels = np.array([request.label for request in requests])
        own, best = p[np.arange(len(p)), labels].astype(np.float64), p.argmax(1)
        classes = self.zero_shot.classes
        limit = self.limit(len(classes))
        if self.rule == 'argmax':
            reasons = [
                None if k == label else f'CLIP filter (p = {q:.4f}, but {p[i, k]:.4f} for {classes[k]!r})'
                for i, (k, label, q) in enumerate(zip(best, labels, own, strict=True))
            ]
        else:
            reasons = [None if q > limit else f'CLIP filter (p = {q:.4f}, not above {limit:.4f})' for q in own]
        return Verdicts(reasons, {'clip_p': own, 'clip_argmax': best})
