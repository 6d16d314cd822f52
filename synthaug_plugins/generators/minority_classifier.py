"""Towards levels of rarity, by a classifier of levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.generators.guidance import GuidedBatch
from synthaug_plugins.generators.minority_guidance import MinorityGuidance
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.level_classifier import LevelClassifierModel
from synthaug_plugins.registry import GUIDANCE
from synthaug_plugins.store.plan import Part, request_share

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.diffusion import LevelClassifier
    from synthaug_plugins.diffusion.guidance import Term

LEVEL = 'minority_level'
"""In a request's params."""


@GUIDANCE.register_module()
class MinorityClassifier(MinorityGuidance):
    """Minority guidance (Um, Lee and Ye 2024, arXiv 2301.12334): towards images of a level of rarity, by a noise-conditional classifier of levels.

    D + weight sigma^2 grad_x log p(level | x; sigma). A request's level and weight stand in its params. The classifier's own calls are
    not among the network evaluations that a store counts.

    Args:
        classifier: the folder `OUT/model` of `synthaug learn minority`.
        level: 0 (the most common) to L - 1 (the rarest): a number; a list, of which each request draws one by its seed; 'lacking', which draws levels of
            the request's class in proportion to how many training images each lacks of the fullest level of any class (all alike where none lacks any); or
            a dict of class name -> one of these.
        weight: a number, or a list of which each request draws one. The paper takes 3.5 on LSUN. 0 calls no classifier.
        interval: (lowest, highest) sigma at which it acts, within the noise levels that the classifier was trained at.
        normalise: None; 'norm' or 'max': every gradient has length 1 by its Euclidean norm or its largest absolute value, so that the weight alone says how
            far a step moves, however sure the classifier is. See `diffusion.ClassifierGradient`.

    Raises:
        ModelError: no such classifier; in `check`, one of another model.
        RecipeError: a level that the classifier does not have, or an option out of range.
    """

    def __init__(
        self,
        classifier: str,
        level: Any,
        weight: Any,
        interval: Sequence[float] = (0.0, math.inf),
        normalise: str | None = None,
    ) -> None:
        from synthaug_plugins.diffusion.gradient_guidance import check_normalise

        super().__init__(weight, interval)
        check_normalise('MinorityClassifier', normalise)
        self.classifier = LevelClassifierModel(classifier)
        self.level, self.normalise = dict(level) if isinstance(level, Mapping) else level, normalise
        for one in self.level.values() if isinstance(self.level, dict) else [self.level]:
            self._check_level(one)
        self._loaded: dict[torch.device, LevelClassifier] = {}

    def _check_level(self, level: Any) -> None:
        several = level if isinstance(level, list | tuple) else [level]
        if level == 'lacking':
            return
        if not several or any(isinstance(one, str | float) for one in several):
            what = f'MinorityClassifier: level = {level!r} is no level, list of levels or dict of classes.'
            raise RecipeError(what, f"Give 0 to {self.classifier.levels.count - 1}, a list of these, or 'lacking'.")
        for one in several:
            self.classifier.check_level(one)

    def choices(self, class_name: str) -> tuple[list[int], list[float]]:
        """The levels that requests of a class draw from, and the share of each.

        Raises:
            RecipeError: nothing is said of the class, or in no class a level lacks more than one image.
            ModelError: the classifier saw no image of the class.
        """
        level = self.level
        if isinstance(level, dict):
            if class_name not in level:
                raise RecipeError(f'MinorityClassifier: level says nothing of the class {class_name!r}.', nearest(class_name, level))
            level = level[class_name]
        if level != 'lacking':
            several = list(level) if isinstance(level, list | tuple) else [level]
            return several, [1 / len(several)] * len(several)
        counts = self.classifier.counts
        if class_name not in counts:
            what = f"MinorityClassifier: level = 'lacking', but the classifier saw no image of the class {class_name!r}."
            raise ModelError(what, nearest(class_name, counts))
        # Equal shares differ by one image where the number does not divide: that is no lack.
        if all(max(of_class) - min(of_class) <= 1 for of_class in counts.values()):
            what = "MinorityClassifier: level = 'lacking', but in every class all levels have as many training images."
            raise RecipeError(what, "Name levels, or learn the classifier with levels=dict(rank='all').")
        # Of the fullest level of any class: of its own fullest, a class of four images in five levels would lack nothing but the fifth.
        fullest = max(max(of_class) for of_class in counts.values())
        lacks = [fullest - n for n in counts[class_name]]
        return list(range(len(lacks))), [n / sum(lacks) if any(lacks) else 1 / len(lacks) for n in lacks]

    def check(self, model: DenoiserModel, use_labels: bool, classes: Sequence[str] = ()) -> None:
        """See `Guidance.check`."""
        self.classifier.check_weights()
        self.classifier.check(model)
        for name in classes:
            self.choices(name)
            if self.classifier.label_conditioning:
                self.classifier.label_of(name)

    def check_sampling(self, model: DenoiserModel, grids: Sequence[Mapping[str, Any]], from_noise: bool) -> None:
        """See `Guidance.check_sampling`: it is asked at noise levels that it was trained at only."""
        for grid in grids:
            asked = self.check_acts(_asked_at(model, grid))
            # The ends of a grid are powers of powers: equal to the range but for the last bits.
            ends = [
                near if math.isclose(sigma, near, rel_tol=1e-6) else sigma
                for sigma, near in zip((min(asked), max(asked)), self.classifier.sigma_range, strict=True)
            ]
            self.classifier.check(model, (ends[0], ends[1]))

    def identity(self) -> dict[str, Any]:
        """See `Guidance.identity`."""
        return {**super().identity(), 'level': self.level, 'normalise': self.normalise, 'classifier': self.classifier.identity()}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> dict[str, Any]:
        """See `Guidance.tell`: `minority_level` and `minority_weight`."""
        levels, shares = self.choices(part.class_name)
        at, drawn = list(accumulate(shares)), request_share(seed, 'minority level')
        # The last sum may fall short of 1 by rounding.
        place = next((k for k, end in enumerate(at) if drawn < end), max(k for k, share in enumerate(shares) if share))
        return {LEVEL: levels[place], **super().tell(part, number, recipe_seed, seed)}

    def term(self, batch: GuidedBatch) -> Term | None:
        """See `Guidance.term`; the classifier's weights are read at the first batch with a weight."""
        import torch

        from synthaug_plugins.diffusion import ClassifierGradient

        device = batch.device
        weights = self.weights(batch.requests, device)
        if weights is None:
            return None
        if device not in self._loaded:
            self._loaded[device] = self.classifier.load(device, batch.model.denoiser if self.classifier.features else None)
        classifier, told = self._loaded[device], self.classifier
        levels = torch.tensor([r.params[LEVEL] for r in batch.requests], device=device)
        labels = torch.tensor([told.label_of(r.class_name) for r in batch.requests], device=device) if told.label_conditioning else None

        def log_prob(x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
            return classifier.log_prob(x, sigma, levels, labels)

        return ClassifierGradient(weights, log_prob, self.normalise, interval=self.interval)  # type: ignore[arg-type]


def _asked_at(model: DenoiserModel, options: Mapping[str, Any]) -> list[float]:
    """The noise levels at which a run asks the denoiser."""
    from synthaug_plugins.diffusion.steps import plan_steps

    steps = plan_steps(options, model.round_sigma)[options['first_step'] :]
    return [point.sigma for step in steps for point in (step.hat, step.probe) if point is not None]
