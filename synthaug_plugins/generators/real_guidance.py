"""Variants of real images: noise is added up to some level, and the model takes it away again."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthaug_plugins.errors import DataError, ModelError, RecipeError, nearest
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Block, Request, request_id, request_seed

FITS = ('crop', 'squash')


@dataclass(frozen=True)
class Strength:
    """How far from the real image.

    Attributes:
        sampler: all options of `diffusion.sample`.
        params: what is recorded of it: `sigma`, the noise level at the start, rounded as the model rounds it, and `t0` where the
            recipe said so.
    """

    sampler: Mapping[str, Any]
    params: Mapping[str, float]


@GENERATORS.register_module()
class RealGuidance(DenoiserGenerator):
    """Start from a real image of the class plus noise (SDEdit, Meng et al. 2022; "real guidance", He et al. 2023).

    Low strength returns the image almost as it was; high strength forgets it. The requests of a class go through its real
    images first, then through the strengths, then on with new seeds: n images times m strengths are covered evenly.

    Args:
        model: `embedded:digits_edm`, or a folder with config.json and model.safetensors.
        sigma: noise level at the start, for images in [-1, 1]; a number or a list. The sampler gets a grid that begins
            exactly there (at the nearest level of a model that knows only some), with as many steps as the full grid spends
            below that level, so that a step has the same size.
        t0: the other way to say it: share in (0, 1] of the sampler's steps that run; a number or a list. Exactly one of
            sigma and t0.
        use_labels: tell the model the class. False needs an unconditional model, or one trained with label dropout; it
            works for classes that the model never saw.
        fit: how a real image becomes a square of the model's resolution: 'crop' the centre, or 'squash'.
        sampler, guidance, precision: see `EDM`; num_steps is that of the full grid, from sigma_max down, of which a strength
            below full runs fewer, and churn per step is that of the full grid.

    Raises:
        RecipeError: not exactly one of sigma and t0, or a value out of range.
        ModelError: see `DenoiserGenerator`; or labels that the model does not take, or cannot do without.
    """

    needs_sources = True

    def __init__(
        self,
        model: str,
        sigma: float | Sequence[float] | None = None,
        t0: float | Sequence[float] | None = None,
        use_labels: bool = True,
        fit: str = 'crop',
        sampler: Mapping[str, Any] | None = None,
        guidance: Sequence[Mapping[str, Any]] = (),
        precision: str = 'fp32',
    ) -> None:
        super().__init__(model, use_labels, sampler, guidance, precision)
        if fit not in FITS:
            raise RecipeError(f'fit = {fit!r} is unknown.', nearest(str(fit), FITS))
        if (sigma is None) == (t0 is None):
            raise RecipeError(f'RealGuidance has sigma = {sigma!r} and t0 = {t0!r}.', 'Set exactly one of them.')
        for key in ('sigmas', 'first_step'):
            if self.sampler[key]:
                raise RecipeError(f'RealGuidance has sampler.{key} = {self.sampler[key]!r}.', 'Leave it out: sigma or t0 says where to begin.')
        if use_labels and not self.model.takes_labels:
            raise ModelError(f'The model {model!r} takes no class labels.', 'Set use_labels=False.')
        if not use_labels and not self.model.runs_without_labels:
            raise ModelError(f'The model {model!r} was trained without label dropout and cannot run without labels.', 'Set use_labels=True.')
        self.fit, self.whole_source = fit, fit == 'squash'
        if sigma is not None:
            self.strengths = [self._by_sigma(s) for s in _numbers('sigma', sigma)]
        elif t0 is not None:
            self.strengths = [self._by_t0(t) for t in _numbers('t0', t0)]

    def _by_sigma(self, sigma: float) -> Strength:
        from synthaug_plugins.diffusion.steps import option_levels

        low, high = self.sampler['sigma_min'], self.sampler['sigma_max']
        if not low < sigma <= high:
            raise RecipeError(f'sigma = {sigma:g} is outside ({low:g}, {high:g}].', 'Between 0.1 and 1 is usual.')
        below = int((option_levels(self.sampler) < sigma * (1 - 1e-9)).sum())
        return self._strength_of({'num_steps': below + 1, 'sigma_max': sigma}, sigma=sigma)

    def _by_t0(self, t0: float) -> Strength:
        if not 0 < t0 <= 1:
            raise RecipeError(f't0 = {t0:g} is outside (0, 1].', 'It is the share of the steps that run.')
        n = self.sampler['num_steps']
        first = n - max(1, math.floor(t0 * n + 0.5))
        return self._strength_of({'first_step': first}, t0=t0)

    def _strength_of(self, changes: Mapping[str, Any], **said: float) -> Strength:
        """The full grid's options with these changes, checked now: a churn window may lie above the start."""
        from synthaug_plugins.diffusion import sampler_options
        from synthaug_plugins.diffusion.steps import option_levels

        churn = self.sampler['S_churn'] * changes.get('num_steps', self.sampler['num_steps']) / self.sampler['num_steps']
        options = sampler_options({**self.sampler, **changes, 'S_churn': churn}, *self.model.sigma_range, self.model.round_sigma)
        start = float(option_levels(options, self.model.round_sigma)[options['first_step']])
        # The recipe's own number, not one that differs in its last digit; another only where the model knows but some levels.
        return Strength(options, {'sigma': start} | {k: v for k, v in said.items() if k != 'sigma' or math.isclose(v, start)})

    def _unknown_class_cure(self, name: str) -> str:
        cure = super()._unknown_class_cure(name)
        return f'{cure} Or set use_labels=False.' if self.model.runs_without_labels else cure

    def identity(self) -> Mapping[str, Any]:
        strengths = [dict(s.params) for s in self.strengths]
        return {**super().identity(), 'strengths': strengths, 'use_labels': self.use_labels, 'fit': self.fit}

    def requests(self, block: Block, recipe_seed: int) -> Iterator[Request]:
        if not block.sources:
            raise DataError(f'The class {block.class_name!r} has no real images to start from.', 'Add some, or leave the class out.')
        number = 0
        while True:
            round_, source = divmod(block.first + number, len(block.sources))
            yield Request(
                request_id(block, number),
                block.label,
                block.class_name,
                request_seed(recipe_seed, block, number),
                source=block.sources[source],
                params=dict(self.strengths[round_ % len(self.strengths)].params),
            )
            number += 1

    def bucket(self, request: Request) -> Hashable:
        return self._strength(request)[0]

    def _strength(self, request: Request) -> tuple[int, Strength]:
        return next((k, s) for k, s in enumerate(self.strengths) if s.params == request.params)

    def generate(self, requests: Sequence[Request]) -> np.ndarray:
        import torch

        with ThreadPoolExecutor(4) as pool:
            sources = list(pool.map(self._load, requests))
        start = torch.from_numpy(np.stack(sources)).to(self.device).float() / 127.5 - 1
        return self.sample(requests, start, **self._strength(requests[0])[1].sampler)

    def _load(self, request: Request) -> np.ndarray:
        """The request's real image as the model wants it: (C, H, W) uint8."""
        from PIL import Image, ImageOps

        if self.real_images is None or request.source is None:
            raise DataError(f'The request {request.id} has no real image to start from.', 'Give the folder of real images.')
        image = Image.fromarray(self.real_images.load(request.source))
        size = self.model.size[1:]
        filter_ = Image.Resampling.BICUBIC  # antialiased when it shrinks
        image = ImageOps.fit(image, size, filter_) if self.fit == 'crop' else image.resize(size, filter_)
        pixels = np.asarray(image.convert('L') if self.model.size[0] == 1 else image)
        return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def _numbers(key: str, value: float | Sequence[float]) -> list[float]:
    """One number or a list of them, as a list of distinct floats."""
    values: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float):
            raise RecipeError(f'{key} = {value!r} holds {v!r}, which is no number.', 'Give a number or a list of numbers.')
    if not values or len(set(values)) < len(values):
        raise RecipeError(f'{key} = {value!r} is empty or repeats a value.', 'Name each strength once.')
    return [float(v) for v in values]
