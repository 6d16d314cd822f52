"""Images of a pipeline that a learning run holds in memory, for its sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from synthaug_plugins.errors import ModelError
from synthaug_plugins.generators.base import Made, NonFiniteImages
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.prompt_conditions import PromptConditions
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.store.plan import Request


class LoadedPipeline(DenoiserGenerator):
    """A pipeline that is loaded already, as a generator of images from noise.

    Args:
        model: after `load`.
        samples: dict(num_steps=..., guidance_scale=...); None: the pipeline's own.
        device: where it is.

    Raises:
        RecipeError: a guidance scale or number of steps that the pipeline does not take.
    """

    def __init__(self, model: TextModel, samples: Mapping[str, Any], device: torch.device) -> None:
        told = PromptConditions(model, guidance_scale=samples['guidance_scale'])
        super().__init__(told, {'num_steps': samples['num_steps']} if samples['num_steps'] else {}, 'fp32')
        self._scale, self._denoiser = told.scale.given, model.denoiser
        self.setup(device)

    def draw(self, class_name: str, prompt: str, seeds: Sequence[int]) -> np.ndarray:
        """(n, H, W, 3) uint8, one image per seed; the same noise for every prompt. With erasures the class is erased.

        Raises:
            ModelError: the network returned NaN or infinity.
        """
        told = {'guidance_scale': self._scale}
        try:
            made = self.sample([Request(f'{class_name} {k}', 0, class_name, seed, None, prompt, told) for k, seed in enumerate(seeds)])
        except NonFiniteImages as found:
            cure = "Give a new folder with a lower learning_rate, or with precision='fp32'."
            raise ModelError(f'After learning, a sample of {prompt!r} is not finite ({next(iter(found.bad.values()))}).', cure) from None
        return np.asarray(made.images if isinstance(made, Made) else made)
