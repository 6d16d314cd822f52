"""Guidance as recipes name it: `guidance=[dict(type='synthaug_plugins.ClassifierFree', weight=1.0, interval=(0.2, 5))]`.

Each entry adds weight * delta to the denoiser's output while sigma lies in its interval, see `diffusion.Guided`. Outside of
it no network is called: guidance harms at high noise and does nothing at low (Kynkaanniemi et al. 2024, arXiv 2404.07724).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.registry import GUIDANCE
from synthaug_plugins.store.plan import Part, Request

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.diffusion import Denoiser
    from synthaug_plugins.diffusion.guidance import Term


@dataclass(frozen=True)
class GuidedBatch:
    """A batch that is about to be sampled, as guidance sees it.

    Attributes:
        model: the one that is guided, loaded.
        load: reads another model's weights onto the device.
        requests: the batch.
        device: where it runs.
        options: of `diffusion.sample`, completed, with which the batch runs.
    """

    model: DenoiserModel
    load: Callable[[DenoiserModel], Denoiser]
    requests: Sequence[Request]
    device: torch.device
    options: Mapping[str, Any]


class Guidance(ABC):
    """One entry of a generator's `guidance` list.

    Args:
        weight: strength; 0 does nothing and costs nothing.
        interval: (lowest, highest) sigma at which it acts.

    Raises:
        RecipeError: see `diffusion.guidance.check_strength`.
    """

    alternative = False
    """Whether it is one of several ways to the same, of which a list names one at most."""

    def __init__(self, weight: float, interval: Sequence[float] = (0.0, math.inf)) -> None:
        from synthaug_plugins.diffusion.guidance import check_strength

        check_strength(type(self).__name__, weight, interval)
        self.weight, self.interval = float(weight), (float(interval[0]), float(interval[1]))

    @abstractmethod
    def check(self, model: DenoiserModel, use_labels: bool, classes: Sequence[str] = ()) -> None:
        """Refuse (ModelError, RecipeError) what cannot guide this model to these classes, before any weights load."""

    def check_sampling(self, model: DenoiserModel, grids: Sequence[Mapping[str, Any]], from_noise: bool) -> None:  # noqa: B027
        """Refuse (ModelError, RecipeError) what does not go with the sampler.

        Args:
            grids: completed options of `diffusion.sample`, all that requests may get.
            from_noise: whether sampling begins with noise alone, not with an image.
        """

    def identity(self) -> dict[str, Any]:
        """Plain JSON that decides what it does."""
        low, high = self.interval
        return {'type': type(self).__name__, 'weight': self.weight, **finite_json({'from': low, 'to': high})}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> dict[str, Any]:
        """What the params of a part's request hold of it. `seed` is the request's own."""
        return {}

    def start(self, requests: Sequence[Request]) -> tuple[list[float], int] | None:
        """By what each request's noise at the start is multiplied, and how many of the first steps are left out; None for no change."""
        return None

    def term(self, batch: GuidedBatch) -> Term | None:
        """The term of `diffusion.Guided` for a batch; None where it has nothing to add."""
        return None


@GUIDANCE.register_module()
class ClassifierFree(Guidance):
    """Classifier-free guidance (Ho and Salimans 2022): away from what the model makes without a label.

    Args:
        weight: D + weight (D(class) - D(no class)); the usual "guidance scale" is 1 + weight.
        interval: (lowest, highest) sigma at which it acts.
    """

    def check(self, model: DenoiserModel, use_labels: bool, classes: Sequence[str] = ()) -> None:
        if not (use_labels and model.takes_labels):
            raise ModelError(f'ClassifierFree guidance of {model.name!r}: it runs without labels, so there is nothing to guide towards.', 'Leave it out.')
        if not model.runs_without_labels:
            raise ModelError(
                f'ClassifierFree guidance of {model.name!r}: it was trained without label dropout and cannot run without labels.',
                'Use Autoguidance, or train with label_dropout=0.1.',
            )

    def term(self, batch: GuidedBatch) -> Term:
        from synthaug_plugins.diffusion import ClassifierFree

        return ClassifierFree(self.weight, uncond=batch.model.unconditional(), interval=self.interval)


@GUIDANCE.register_module()
class Autoguidance(Guidance):
    """Autoguidance (Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself"): away from a weaker model.

    Args:
        weight: D + weight (D - D_weak).
        weak: `embedded:NAME` or a model folder: the same task, less trained or smaller. It is told the same labels.
        interval: (lowest, highest) sigma at which it acts.
    """

    def __init__(self, weight: float, weak: str, interval: Sequence[float] = (0.0, math.inf)) -> None:
        super().__init__(weight, interval)
        self.weak = DenoiserModel(weak)

    def check(self, model: DenoiserModel, use_labels: bool, classes: Sequence[str] = ()) -> None:
        self.weak.check_weights()
        for what in ('size', 'takes_labels', 'classes'):
            ours, theirs = getattr(model, what), getattr(self.weak, what)
            if ours != theirs:
                raise ModelError(f'Autoguidance: {what} is {theirs} in the weak model {self.weak.name!r} and {ours} in {model.name!r}.', 'They must agree.')
        if not use_labels and not self.weak.runs_without_labels:
            what = f'Autoguidance: the weak model {self.weak.name!r} was trained without label dropout and cannot run without labels.'
            raise ModelError(what, 'Set use_labels=True, or use another one.')
        low, high = self.weak.sigma_range
        if max(self.interval[0], model.sigma_range[0]) < low or min(self.interval[1], model.sigma_range[1]) > high:
            what = f'Autoguidance: the weak model {self.weak.name!r} knows noise levels from {low:g} to {high:g} only.'
            raise ModelError(what, f'Set an interval within ({low!r}, {high!r}).')

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), 'weak': self.weak.identity()}

    def term(self, batch: GuidedBatch) -> Term:
        from synthaug_plugins.diffusion import Autoguidance

        return Autoguidance(self.weight, batch.load(self.weak), interval=self.interval)


def build_guidance(entries: Sequence[Mapping[str, Any]]) -> tuple[Guidance, ...]:
    """The entries of a recipe's `guidance` list.

    Raises:
        RecipeError: not a list, or an entry that is unknown or wrong.
        ModelError: a model that an entry names does not exist.
        RecipeError: two entries of which one would do, see `Guidance.alternative`.
    """
    if not isinstance(entries, list | tuple):
        raise RecipeError(f'guidance = {entries!r} is not a list.', "Write guidance=[dict(type='synthaug_plugins.ClassifierFree', weight=1.0)].")
    built = tuple(GUIDANCE.build(entry) for entry in entries)
    rivals = [type(one).__name__ for one in built if one.alternative]
    if len(rivals) > 1:
        raise RecipeError(f'guidance has {" and ".join(rivals)}, which are ways to the same.', 'Keep one of them; another recipe may have the other.')
    return built


def finite_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them: infinity becomes None."""
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in options.items()}
