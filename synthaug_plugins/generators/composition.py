"""Several editing generators as one: one of them drawn per image, or one after the other (DA-Fusion, Trabucco et al., ICLR 2024)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.base import Made, NonFiniteImages
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.loaded import LoadedModels
from synthaug_plugins.generators.source_generator import SourceGenerator
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import GENERATORS, build_strict
from synthaug_plugins.store.plan import Part, Request, purpose_seed, request_share

if TYPE_CHECKING:
    import torch

_SUM_TOLERANCE = 1e-6  # thirds are written with a few decimals


class Composition(SourceGenerator):
    """What `Parallel` and `Sequential` share. Members may be compositions again.

    Weights that members have in common are loaded once; members that differ in anything that decides pixels share nothing. A member's seed
    follows from the request's and its place, so that members draw independently.

    Args:
        generators: entries of `GENERATORS` that edit images.
        probs: one per member, in (0, 1].

    Raises:
        RecipeError: no members, one that edits no images, or probabilities that are none.
    """

    def __init__(self, generators: Sequence[Mapping[str, Any]], probs: Sequence[float]) -> None:
        name = type(self).__name__
        self.members: list[SourceGenerator] = []
        for entry in generators:
            member = build_strict(dict(entry) if isinstance(entry, Mapping) else entry, GENERATORS)
            if not isinstance(member, SourceGenerator):
                cure = 'Its members start from images: DAFusion, RealGuidance, RoundTrip, Parallel, Sequential.'
                raise RecipeError(f'{name} has the member {type(member).__name__}, which edits no images.', cure)
            self.members.append(member)
        wrong = [p for p in probs if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p <= 1]
        if wrong or len(probs) != len(self.members):
            what = f'{name} has probs = {list(probs)!r} for {len(self.members)} generators.'
            raise RecipeError(what, 'Give one number above 0 and up to 1 for each; leave out who is never to act.')
        self.probs = [float(p) for p in probs]
        self._said: set[str] = set()
        self._loaded = LoadedModels()
        self.loaded = self._loaded

    @property
    def loaded(self) -> LoadedModels:
        """Models with their weights, shared by all members."""
        return self._loaded

    @loaded.setter
    def loaded(self, loaded: LoadedModels) -> None:
        self._loaded = loaded
        for member in self.members:
            if isinstance(member, DenoiserGenerator | Composition):
                member.loaded = loaded

    @property
    def network_images(self) -> int:
        return self._loaded.images + self._counted_by_members()

    @property
    def network_flop(self) -> float | None:
        return None if self._counted_by_members() else self._loaded.flop

    def _counted_by_members(self) -> int:
        """What members count that load no shared models."""
        counted = 0
        for member in self.members:
            if isinstance(member, Composition):
                counted += member._counted_by_members()
            elif not isinstance(member, DenoiserGenerator):
                counted += member.network_images
        return counted

    @property
    def real_images(self) -> RealImages | None:  # type: ignore[override]
        """See `Generator.real_images`."""
        return self._real_images

    @real_images.setter
    def real_images(self, real_images: RealImages | None) -> None:
        self._real_images = real_images
        for member in self.members:
            member.real_images = real_images

    @property
    def keeps_pixels(self) -> bool:  # type: ignore[override]
        """See `Generator.keeps_pixels`."""
        return any(member.keeps_pixels for member in self.members)

    @property
    def keeps_shape(self) -> bool:  # type: ignore[override]
        """See `SourceGenerator.keeps_shape`."""
        return all(member.keeps_shape for member in self.members)

    def model_classes(self) -> Sequence[str] | None:
        known = [classes for member in self.members if (classes := member.model_classes()) is not None]
        return [name for name in known[0] if all(name in classes for classes in known)] if known else None

    def check(self, classes: Sequence[str]) -> None:
        for member in self.members:
            member.check(classes)

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        def say_once(sentence: str) -> None:
            if sentence not in self._said:
                self._said.add(sentence)
                say(sentence)

        for member in self.members:
            member.prepare(classes, say_once)

    def setup(self, device: torch.device, real_images: RealImages | None = None) -> None:
        super().setup(device, real_images)
        for member in self.members:
            member.setup(device, real_images)

    def identity(self) -> Mapping[str, Any]:
        members = [dict(member.identity()) for member in self.members]
        models = list({repr(m['model']): m['model'] for m in members if m.get('model')}.values())
        model = models[0] if len(models) == 1 else {'name': ' + '.join(str(m.get('name')) for m in models)}
        return {'type': type(self).__name__, 'model': model, 'probs': self.probs, 'generators': members}

    @abstractmethod
    def of_members(self, request: Request) -> list[tuple[SourceGenerator, Request]]:
        """The members that act on a request, in order, each with the request as it was told."""

    def bucket(self, request: Request) -> Hashable:
        return tuple((self.members.index(member), member.bucket(told)) for member, told in self.of_members(request))

    def whole_source(self, request: Request) -> bool:
        return all(member.whole_source(told) for member, told in self.of_members(request))

    def edit(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Made:
        told = [self.of_members(request) for request in requests]
        current = images if told[0] else [images[k] for k in range(len(requests))]
        bad: dict[int, str] = {}
        reasons: dict[int, str] = {}
        scores: dict[str, np.ndarray] = {}
        for place, (member, _) in enumerate(told[0]):  # the same for the whole bucket
            try:
                made = member.edit([of[place][1] for of in told], current)
            except NonFiniteImages as found:
                made, bad = found.images, {**found.bad, **bad}
            said = made if isinstance(made, Made) else Made(made)
            current, reasons, scores = list(said.images), {**said.reasons, **reasons}, {**scores, **said.scores}
        if bad:
            raise NonFiniteImages(Made(current, reasons, scores), bad)
        return Made(current, reasons, scores)


@GENERATORS.register_module()
class Parallel(Composition):
    """Edit every image by one of several generators, drawn by the request's seed. The place of the one drawn is recorded as `params.member`.

    Beside it stand the params that it records itself: `select='params.member = 0 and params.t0 < 1'`; those of a Parallel in this one stand
    under `params.inner`. Weights that members have in common are loaded once.

    Args:
        generators: entries that edit images: [dict(type='synthaug_plugins.DAFusion', ...), dict(type='synthaug_plugins.RealGuidance', ...)].
        probs: probability of each; they add up to 1. Default: all alike.

    Raises:
        RecipeError: no members, one that edits no images, or probabilities that are none.
    """

    def __init__(self, generators: Sequence[Mapping[str, Any]], probs: Sequence[float] | None = None) -> None:
        generators = _listed('Parallel', 'generators', generators)
        super().__init__(generators, [1 / len(generators)] * len(generators) if probs is None else _listed('Parallel', 'probs', probs))
        if not math.isclose(sum(self.probs), 1, abs_tol=_SUM_TOLERANCE):
            raise RecipeError(f'Parallel has probs = {self.probs!r}, which add up to {sum(self.probs):g}.', 'Make it 1.')

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str | None, dict[str, Any]]:
        left, place = request_share(seed, 'member') * sum(self.probs), 0
        while left >= self.probs[place] and place < len(self.probs) - 1:
            left -= self.probs[place]
            place += 1
        prompt, params = self.members[place].tell(part, number, recipe_seed, _member_seed(seed, place))
        return prompt, {'member': place, **({'inner': params} if {'member', 'inner'} & set(params) else params)}

    def of_members(self, request: Request) -> list[tuple[SourceGenerator, Request]]:
        place = int(request.params['member'])
        params = request.params['inner'] if 'inner' in request.params else {k: v for k, v in request.params.items() if k != 'member'}
        return [(self.members[place], replace(request, params=params, seed=_member_seed(request.seed, place)))]


@GENERATORS.register_module()
class Sequential(Composition):
    """Edit every image by several generators, one after the other, each with a probability of its own. Where none acts, the image stays as it is.

    `params.steps` records for those that acted, in order, their place, prompt and params. An image that was rejected on the way by a verdict of
    a generator's own stays rejected. Weights that members have in common are loaded once.

    Args:
        generators: entries that edit images, in the order in which they act.
        probs: probability that each acts. Default: 1 for all.

    Raises:
        RecipeError: no members, one that edits no images, one with masks behind one that crops, or probabilities that are none.
    """

    def __init__(self, generators: Sequence[Mapping[str, Any]], probs: Sequence[float] | None = None) -> None:
        generators = _listed('Sequential', 'generators', generators)
        super().__init__(generators, [1.0] * len(generators) if probs is None else _listed('Sequential', 'probs', probs))
        for place, member in enumerate(self.members):
            if member.keeps_pixels and not all(before.keeps_shape for before in self.members[:place]):
                what = f'Sequential edits within masks ({type(member).__name__}, place {place}) what was cropped before: masks no longer fit.'
                raise RecipeError(what, "Set fit='pad' in the generators before it.")

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str | None, dict[str, Any]]:
        steps, prompts = [], set[str | None]()
        for place, (member, prob) in enumerate(zip(self.members, self.probs, strict=True)):
            if request_share(seed, f'acts {place}') < prob:
                prompt, params = member.tell(part, number, recipe_seed, _member_seed(seed, place))
                steps.append({'member': place, 'prompt': prompt, 'params': params})
                prompts.add(prompt)
        return prompts.pop() if len(prompts) == 1 else None, {'steps': steps}

    def of_members(self, request: Request) -> list[tuple[SourceGenerator, Request]]:
        found = []
        for step in request.params['steps']:
            told = replace(request, prompt=step['prompt'], params=step['params'], seed=_member_seed(request.seed, step['member']))
            found.append((self.members[step['member']], told))
        return found


def _member_seed(seed: int, place: int) -> int:
    """The seed of the member at that place, by the request's."""
    return purpose_seed(seed, f'member {place}')


def _listed(whose: str, key: str, value: Any) -> list[Any]:
    """A list that is not empty, or a refusal (RecipeError)."""
    if not isinstance(value, list | tuple) or not value:
        raise RecipeError(f'{whose} has {key} = {value!r}.', f'Write {key}=[...], with an entry for each.')
    return list(value)
