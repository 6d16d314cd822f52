"""Three ways to the rare end of what a model makes, as entries of a generator's `guidance`; a recipe names one.

All three say of a request in its params how hard it is pushed: `minority_weight`, and `minority_level` where there are levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.generators.guidance import Guidance, finite_json
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.level_classifier import LevelClassifierModel
from synthaug_plugins.registry import DISTANCES, GUIDANCE
from synthaug_plugins.store.plan import Part, Request, purpose_seed, request_share

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.diffusion import Denoiser, LevelClassifier
    from synthaug_plugins.diffusion.guidance import Term

LEVEL, WEIGHT = 'minority_level', 'minority_weight'


class MinorityGuidance(Guidance):
    """What the three have in common: a strength, or several of which each request draws one by its seed.

    Args:
        strengths: a number or a list.
        interval: see `Guidance`.
        key: what the entry calls its strength.

    Raises:
        RecipeError: an empty list, or what is no finite number.
    """

    alternative = True

    def __init__(self, strengths: Any, interval: Sequence[float] = (0.0, math.inf), key: str = 'weight') -> None:
        from synthaug_plugins.diffusion.guidance import check_strength

        name = type(self).__name__
        several = list(strengths) if isinstance(strengths, list | tuple) else [strengths]
        if not several:
            raise RecipeError(f'{name}: {key} = {strengths!r} is an empty list.', 'Give a number, or a list of numbers to draw from.')
        for strength in several:
            check_strength(name, strength, interval, key)
        self._key, self.strengths = key, [float(strength) for strength in several]
        super().__init__(self.strengths[0], interval)

    def identity(self) -> dict[str, Any]:
        """See `Guidance.identity`."""
        return {**{k: v for k, v in super().identity().items() if k != 'weight'}, self._key: self.strengths}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> dict[str, Any]:
        """See `Guidance.tell`: `minority_weight`."""
        return {WEIGHT: self.strengths[int(request_share(seed, 'minority weight') * len(self.strengths))]}

    def weights(self, requests: Sequence[Request], device: torch.device) -> float | torch.Tensor | None:
        """The strength of a batch, one number where all are equal; None where it is 0 for all."""
        import torch

        weights = [float(r.params[WEIGHT]) for r in requests]
        if not any(weights):
            return None
        # As exact as the one number: a request's weight must not depend on its batch.
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        return weights[0] if len(set(weights)) == 1 else torch.tensor(weights, dtype=dtype, device=device)

    def check_acts(self, sigmas: Sequence[float]) -> list[float]:
        """Those of the noise levels at which it might act that lie in its interval.

        Raises:
            RecipeError: none of them.
        """
        low, high = self.interval
        inside = [sigma for sigma in sigmas if low <= sigma <= high]
        if not inside:
            what = f'{type(self).__name__}: no step at which it could act has its noise level in interval = ({low:g}, {high:g}).'
            raise RecipeError(what, 'Widen the interval, or leave the entry out.')
        return inside


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
            asked = self.check_acts(_calls(model, grid))
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

    def term(
        self,
        model: DenoiserModel,
        load: Callable[[DenoiserModel], Denoiser],
        requests: Sequence[Request],
        device: torch.device,
        options: Mapping[str, Any],
    ) -> Term | None:
        """See `Guidance.term`; the classifier's weights are read at the first batch with a weight."""
        import torch

        from synthaug_plugins.diffusion import ClassifierGradient

        weights = self.weights(requests, device)
        if weights is None:
            return None
        if device not in self._loaded:
            self._loaded[device] = self.classifier.load(device, model.denoiser if self.classifier.features else None)
        classifier, told = self._loaded[device], self.classifier
        levels = torch.tensor([r.params[LEVEL] for r in requests], device=device)
        labels = torch.tensor([told.label_of(r.class_name) for r in requests], device=device) if told.label_conditioning else None

        def log_prob(x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
            return classifier.log_prob(x, sigma, levels, labels)

        return ClassifierGradient(weights, log_prob, self.normalise, interval=self.interval)  # type: ignore[arg-type]


@GUIDANCE.register_module()
class SelfGuided(MinorityGuidance):
    """Self-guided minority sampling (Um and Ye, ECCV 2024): away from what the model makes of its own guess. Nothing is trained.

    At every `every`-th step the guess D(x) is noised again and denoised; x moves to where both differ more. See `diffusion.SelfGuided` for what that costs.

    Args:
        weight: a number, or a list of which each request draws one. The paper takes 0.4 on CelebA, 0.2 on ImageNet.
        every: it acts at steps 0, every, 2 every, ... of the sampler's grid. The paper takes 5, and 2 on ImageNet.
        sigma: the noise level to which the guess is noised again, in units of images in [-1, 1]. The paper takes timestep 0.8 T, sigma = 25 of the linear
            schedule, where small and simple images are lost altogether.
        distance: an entry of the distances, for example dict(type='synthaug_plugins.MSE'); LPIPS with AlexNet by default, as in the paper.
        interval: (lowest, highest) sigma at which it acts.

    Raises:
        RecipeError: an option out of range; in `check`, see the distance, or a sampler of which it would reach but one of Heun's slopes.
    """

    def __init__(
        self,
        weight: Any,
        every: int = 5,
        sigma: float = 6.5,
        distance: Mapping[str, Any] | None = None,
        interval: Sequence[float] = (0.0, math.inf),
    ) -> None:
        super().__init__(weight, interval)
        if isinstance(every, bool) or every < 1:
            raise RecipeError(f'SelfGuided: every = {every!r} is no number of steps.', 'Use 5.')
        if not 0 < sigma < math.inf:
            raise RecipeError(f'SelfGuided: sigma = {sigma!r} is no noise level.', 'Use 6.5.')
        self.every, self.sigma = every, float(sigma)
        self.distance = DISTANCES.build(dict(distance or {'type': 'synthaug_plugins.LPIPS', 'network': 'alex'}))
        self._ready: set[torch.device] = set()

    def check(self, model: DenoiserModel, use_labels: bool, classes: Sequence[str] = ()) -> None:
        """See `Guidance.check`."""
        low, high = model.sigma_range
        if not low <= self.sigma <= high:
            raise RecipeError(f'SelfGuided: sigma = {self.sigma:g}, but {model.name!r} knows noise levels from {low:g} to {high:g}.', 'Use one of these.')
        self.distance.check(model.image_size)

    def check_sampling(self, model: DenoiserModel, grids: Sequence[Mapping[str, Any]], from_noise: bool) -> None:
        """See `Guidance.check_sampling`. Heun's second slope must lie where the next step begins: else it is unguided, and half of the weight, or all, lost."""
        for grid in grids:
            if grid['solver'] == 'heun' and (grid['alpha'] != 1 or grid['S_churn'] > 0):
                key = 'alpha' if grid['alpha'] != 1 else 'S_churn'
                what = f"SelfGuided does not go with {key} = {grid[key]:g} of solver = 'heun': the second slope of a step would have no part of it."
                raise RecipeError(what, f"Leave {key} out, or use solver = 'euler'.")
            self.check_acts(list(self._levels(model, grid).values()))

    def identity(self) -> dict[str, Any]:
        """See `Guidance.identity`."""
        return {**super().identity(), 'every': self.every, 'sigma': self.sigma, 'distance': self.distance.identity()}

    def _levels(self, model: DenoiserModel, options: Mapping[str, Any]) -> dict[int, float]:
        """Step -> the noise level of its first call, for the steps at which it may act."""
        from synthaug_plugins.diffusion.steps import plan_steps

        steps = plan_steps(options, model.round_sigma)
        return {i: step.hat.sigma for i, step in enumerate(steps) if i % self.every == 0 and i >= options['first_step']}

    def term(
        self,
        model: DenoiserModel,
        load: Callable[[DenoiserModel], Denoiser],
        requests: Sequence[Request],
        device: torch.device,
        options: Mapping[str, Any],
    ) -> Term | None:
        """See `Guidance.term`."""
        import torch

        from synthaug_plugins.diffusion import SampleNoise
        from synthaug_plugins.diffusion import SelfGuided as SelfGuidedTerm

        weights = self.weights(requests, device)
        if weights is None:
            return None
        if device not in self._ready:
            self.distance.setup(device)
            self._ready.add(device)
        # Not the noise of the sampler's own steps.
        noise = SampleNoise([purpose_seed(r.seed, 'self-guided') for r in requests], model.size, device)
        sigma = float(model.round_sigma(torch.tensor(self.sigma, dtype=torch.float64, device='cpu')))
        return SelfGuidedTerm(weights, self.distance, noise.step, self._levels(model, options), sigma, interval=self.interval)


@GUIDANCE.register_module()
class BoostAndSkip(MinorityGuidance):
    """Boost-and-Skip (Um, Kim and Ye, ICML 2025): start from louder noise, and later. Costs less than nothing: the first steps are left out.

    Noise that is too far out for its level stays far out where the steps that would have pulled it back are missing.

    Args:
        boost: by what the noise at the start is multiplied, a number or a list of which each request draws one (`minority_weight` in its params). The paper
            takes 4 on CelebA, 2.5 on ImageNet. 1 boosts nothing.
        skip: how many of the first steps are left out. The paper leaves out 3 of 250.

    Raises:
        RecipeError: an option out of range; in `check`, no step left, or a generator that starts from images.
    """

    def __init__(self, boost: Any = 4.0, skip: int = 3) -> None:
        super().__init__(boost, key='boost')
        if min(self.strengths) <= 0:
            raise RecipeError(f'BoostAndSkip: boost = {boost!r} is not positive.', 'Use 4.')
        if isinstance(skip, bool) or skip < 0:
            raise RecipeError(f'BoostAndSkip: skip = {skip!r} is no number of steps.', 'Use 3 of 250 steps.')
        self.skip = skip

    def check(self, model: DenoiserModel, use_labels: bool, classes: Sequence[str] = ()) -> None:
        """See `Guidance.check`: any model."""

    def check_sampling(self, model: DenoiserModel, grids: Sequence[Mapping[str, Any]], from_noise: bool) -> None:
        """See `Guidance.check_sampling`."""
        if not from_noise:
            raise RecipeError('BoostAndSkip changes the noise at the start, but this generator starts from images.', 'Use it with EDM.')
        for grid in grids:
            left = grid['num_steps'] - grid['first_step']
            if self.skip >= left:
                raise RecipeError(f'BoostAndSkip: skip = {self.skip} leaves nothing of {left} steps.', 'Skip fewer, or take more steps.')

    def identity(self) -> dict[str, Any]:
        """See `Guidance.identity`."""
        return {**finite_json(super().identity()), 'skip': self.skip}

    def start(self, requests: Sequence[Request]) -> tuple[list[float], int]:
        """See `Guidance.start`."""
        return [float(r.params[WEIGHT]) for r in requests], self.skip

    def term(
        self,
        model: DenoiserModel,
        load: Callable[[DenoiserModel], Denoiser],
        requests: Sequence[Request],
        device: torch.device,
        options: Mapping[str, Any],
    ) -> Term | None:
        """See `Guidance.term`: none."""
        return None


def _calls(model: DenoiserModel, options: Mapping[str, Any]) -> list[float]:
    """The noise levels at which a run asks the denoiser."""
    from synthaug_plugins.diffusion.steps import plan_steps

    steps = plan_steps(options, model.round_sigma)[options['first_step'] :]
    return [point.sigma for step in steps for point in (step.hat, step.probe) if point is not None]
