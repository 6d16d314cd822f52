"""The prompt source for classes whose words were learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from synthaug_plugins.prompts.base import PromptSource, not_prepared, pick
from synthaug_plugins.prompts.placeholders import placeholders, words_of
from synthaug_plugins.prompts.templates import fill, resolve_templates


class LearnedWords(PromptSource):
    """A template with the learned word of the class in place of its name: 'a photo of a <cat>' (DA-Fusion, Trabucco et al., ICLR 2024).

    What the class is called never reaches the text encoder, unless the template says it. The generator's option `words` names the file of the
    words, and refuses a class that it lacks. A word is the class's name in lower case, with `_` for all that is no letter or digit.

    Args:
        templates: see `Basic`.

    Raises:
        RecipeError: see `resolve_templates`.
        DataError: in `prepare`, two classes with the same word.
    """

    def __init__(self, templates: str | Sequence[str] = 'a photo of a {}') -> None:
        super().__init__()
        self.templates = resolve_templates(templates)
        self._words: dict[str, str] = {}

    def prepare(self, classes: Sequence[str], progress: Callable[[str], None] | None = None) -> None:
        """Settle the word of every class. What they are called does not matter: WordNet ids will do."""
        self._words = words_of(classes)

    def spoken(self, label: str) -> str:
        """The class's word."""
        if label not in self._words:
            raise not_prepared(label)
        return self._words[label]

    def prompt(self, label: str, seed: int, n: int) -> str:
        """A template with the class's word filled in."""
        return fill(pick(self.templates, seed, label, n), self.spoken(label))

    def cycle(self, label: str) -> int:
        """The number of templates."""
        return len(self.templates)

    def loses_name(self, label: str, whole: str, kept: str) -> bool:
        """Whether the word of the class is cut off."""
        return self._words[label] in placeholders(whole) and self._words[label] not in placeholders(kept)

    def identity(self) -> dict[str, Any]:
        """Words and templates."""
        return {'type': type(self).__name__, 'words': dict(self._words), 'templates': list(self.templates)}
