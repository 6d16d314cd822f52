"""The options that all generators share which can run a text-to-image pipeline, beside those of the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.prompt_conditions import PromptConditions
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.text_model import TextModel, open_model


@dataclass(frozen=True)
class ModelOptions:
    """Options of a pipeline itself, whatever it is told; what they mean stands at `TextToImage`.

    A generator takes them as `**pipeline` under `registry.options_of(ModelOptions)`. A new one is added here, and to its docstring.
    """

    image_size: int | Sequence[int] | None = None
    revision: str | None = None
    variant: str | None = None
    few_step: bool | None = None
    tiny_vae: str | None = None
    compile: bool = False
    channels_last: bool = False

    def of_model(self) -> dict[str, Any]:
        """Those that `TextModel` takes and that were set."""
        return {name: value for name, value in self._set().items() if name not in _OF_PROMPTS}

    def _set(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def layout(self) -> dict[str, Any]:
        """Those that change the last bits of an image, and that the model's identity does not hold."""
        return {'compile': self.compile, 'channels_last': self.channels_last}

    def text_model(self, model: str) -> TextModel:
        """A pipeline, see `TextModel`."""
        return TextModel(model, **self.of_model())

    def open(self, model: str) -> DenoiserModel | TextModel:
        """A model of either kind, see `open_model`. One of class labels is refused (RecipeError) where an option of pipelines is set."""
        opened = open_model(model, **self.of_model())
        if isinstance(opened, DenoiserModel):
            for name, value in self._set().items():
                raise RecipeError(f'{name} = {value!r}: the model {model!r} takes class labels, no prompts.', f'Leave {name} out, or use a pipeline.')
        return opened


@dataclass(frozen=True)
class PipelineOptions(ModelOptions):
    """Options of a pipeline and of what it is told; what they mean stands at `TextToImage`.

    A generator takes them as `**pipeline` under `registry.options_of(PipelineOptions)`. A new one is added here, and to its docstring.
    """

    prompts: Mapping[str, Any] | None = None
    negative_prompt: str = ''
    guidance_scale: float | Mapping[str, float] | Sequence[float] | None = None
    guidance_interval: Sequence[float] | None = None
    class_names: str = 'allowed'
    safety: str = 'off'
    words: str | None = None
    erasures: str | None = None

    def conditions(self, model: TextModel, images_per_prompt: int = 1) -> PromptConditions:
        """What the pipeline is told."""
        return PromptConditions(model, images_per_prompt=images_per_prompt, **{name: getattr(self, name) for name in _OF_PROMPTS})


_OF_PROMPTS = ('prompts', 'negative_prompt', 'guidance_scale', 'guidance_interval', 'class_names', 'safety')
