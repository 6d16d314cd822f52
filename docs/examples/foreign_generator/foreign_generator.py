"""A generator from outside of synthaug_plugins, as small as one can be. `draw` stands where your own model goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.base import Generator
from synthaug_plugins.hookspecs import hookimpl
from synthaug_plugins.prompts.base import PromptSource
from synthaug_plugins.registry import PROMPTS, Registries, build_strict
from synthaug_plugins.store.plan import Part, Request, request_id, request_seed


class Gratings(Generator):
    """Coloured gratings, one angle and colour per class: an example of a foreign generator.

    Args:
        prompts: what the model is told, an entry such as dict(type='synthaug_plugins.Basic', templates='a photo of a {}').
        size: side of an image in pixels.

    Raises:
        RecipeError: a size below 2.
    """

    def __init__(self, prompts: Mapping[str, Any] | None = None, size: int = 64) -> None:
        # Only options here: no weights, no network, no device. What cannot work is refused now, with a cure.
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise RecipeError(f'Gratings size = {size!r} is no size.', 'Use a whole number of pixels, 2 or more.')
        self.prompts: PromptSource = build_strict(dict(prompts or {'type': 'synthaug_plugins.Basic'}), PROMPTS)
        self.size = size

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        self.prompts.prepare(classes, say)
        for note in self.prompts.notes():
            say(note)

    def identity(self) -> Mapping[str, Any]:
        # Everything that, with the request, decides the pixels. The store's fingerprint is made of it: whoever changes the drawing
        # changes `version`, so that no half-finished store goes on with another one. A model with weights puts their SHA-256 here.
        return {'type': 'Gratings', 'version': 1, 'size': self.size, 'prompts': self.prompts.identity(), 'model': {'name': 'gratings', 'licence': 'Apache-2.0'}}

    def requests(self, part: Part, recipe_seed: int) -> Iterator[Request]:
        number = 0
        while True:  # endless: rejected images are made up for by the next requests
            prompt = self.prompts.prompt(part.class_name, recipe_seed, part.first + number)
            seed = request_seed(recipe_seed, part, number)
            yield Request(request_id(part, number), part.label, part.class_name, seed, prompt=prompt)
            number += 1

    def generate(self, requests: Sequence[Request]) -> np.ndarray:
        # A real model loads its weights at the first call, onto `self.device`, and makes the whole batch at once. Its noise for a
        # request comes from that request's seed alone: then the batch size, a kill and a second machine change nothing.
        return np.stack([draw(str(r.prompt), r.seed, self.size) for r in requests])


def draw(prompt: str, seed: int, size: int) -> np.ndarray:
    """The "model": a grating whose angle and colour follow from the prompt, its place and fineness from the seed. (H, W, 3) uint8."""
    told = hashlib.sha256(prompt.encode()).digest()
    angle, colour = told[0] / 256 * np.pi, 128 + np.frombuffer(told[1:4], np.uint8) / 2
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    wave = np.cos((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(0.3, 0.9) + rng.uniform(0, 2 * np.pi))
    return np.round((wave[..., None] + 1) / 2 * colour).astype(np.uint8)


@hookimpl
def synthaug_register(registries: Registries) -> None:
    """Called by synthaug_plugins before the first recipe is read."""
    registries.generators.register_module(module=Gratings)
