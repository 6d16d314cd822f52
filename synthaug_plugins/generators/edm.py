"""Images from pure noise by a class-conditional EDM model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from synthaug_plugins.errors import ModelError
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Block, Request, request_id, request_seed


@GENERATORS.register_module()
class EDM(DenoiserGenerator):
    """Sample an EDM model (Karras et al. 2022, Algorithm 2). Recipe classes find the model's own labels by name.

    Args:
        model: `embedded:digits_edm`, or a folder with config.json and model.safetensors.
        num_steps: sampler steps; Heun costs 2 * num_steps - 1 network calls per image.
        solver: 'heun' (order 2) or 'euler' (order 1).
        sigma_min, sigma_max: lowest and highest noise level; EDM's 0.002 and 80 unless given, cut to what the model supports.
        rho: spacing of the noise levels; larger puts more of them at low noise.
        S_churn, S_min, S_max, S_noise: fresh noise added on the way: how much, between which noise levels, and its standard
            deviation. 0 is the deterministic sampler, best for models trained this way.
        precision: 'fp32', 'bf16' or 'fp16', in which the network runs.

    Raises:
        ModelError, RecipeError: see `DenoiserGenerator`.
    """

    def __init__(
        self,
        model: str,
        num_steps: int = 18,
        solver: str = 'heun',
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        rho: float = 7.0,
        S_churn: float = 0.0,
        S_min: float = 0.0,
        S_max: float = math.inf,
        S_noise: float = 1.0,
        precision: str = 'fp32',
    ) -> None:
        sampler = {'num_steps': num_steps, 'solver': solver, 'sigma_min': sigma_min, 'sigma_max': sigma_max, 'rho': rho}
        super().__init__(model, True, precision, {**sampler, 'S_churn': S_churn, 'S_min': S_min, 'S_max': S_max, 'S_noise': S_noise})

    def check(self, classes: Sequence[str]) -> None:
        if self.config['label_conditioning']:
            super().check(classes)
            return
        seen = self.config['classes'] or classes
        if len(classes) > 1 or len(seen) > 1:
            raise ModelError(
                f'The model {self.model!r} takes no class labels, but {len(max(classes, seen, key=len))} classes are involved: '
                'nobody would know which class an image shows.',
                'Use a class-conditional model, or RealGuidance with use_labels=False, which keeps the class of a real image.',
            )
        super().check(classes if self.config['classes'] else ())

    def requests(self, block: Block, recipe_seed: int) -> Iterator[Request]:
        number = 0
        while True:
            yield Request(request_id(block, number), block.label, block.class_name, request_seed(recipe_seed, block, number))
            number += 1

    def generate(self, requests: Sequence[Request]) -> np.ndarray:
        return self.sample(requests)
