"""What a CLIP is told of each class: the recipe's class names in one or several templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.prompts.sources import Basic
from synthaug_plugins.prompts.templates import fill


class ClassPrompts:
    """All prompts of every class, named as generators name them.

    Args:
        templates: one template with `{}`, several, or a name of `prompts.templates.ENSEMBLES`. Default: the data set's own, else 'a photo of a {}'.
        dataset, names, hints: see `prompts.base.PromptSource`.

    Raises:
        RecipeError, DataError: see `prompts.sources.Basic`.
    """

    def __init__(self, templates: str | Sequence[str] | None = None, dataset: str | None = None, names: str | None = None, hints: bool = True) -> None:
        self._source = Basic(templates, dataset, names, hints)

    def of(self, classes: Sequence[str]) -> list[list[str]]:
        """The prompts of each class, in order.

        Raises:
            DataError: a class that is empty, repeated, unknown to the table, or cannot be told from another.
        """
        self._source.prepare(classes)
        return [[fill(template, self._source.spoken(label)) for template in self._source.templates] for label in classes]

    def check(self, classes: Sequence[str], clip: ClipModel) -> None:
        """Refuse classes that cannot be named, and prompts that the text tower would cut: two classes could then look alike.

        Raises:
            DataError: see `of`.
            RecipeError: a prompt is too long.
        """
        named = [(label, prompt) for label, prompts in zip(classes, self.of(classes), strict=True) for prompt in prompts]
        for (label, prompt), excess in zip(named, clip.excess_tokens([prompt for _, prompt in named]), strict=True):
            if excess:
                raise RecipeError(
                    f'The prompt {prompt!r} of the class {label!r} is {excess} tokens too long for {clip.name!r}.',
                    'Shorten the template, or give the class a shorter name in a names file.',
                )

    def identity(self) -> dict[str, Any]:
        """Names and templates; complete once `of` or `check` has seen the classes."""
        return {key: value for key, value in self._source.identity().items() if key != 'type'}
