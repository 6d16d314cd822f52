"""The data-centric defence against leakage (DA-Fusion, Trabucco et al., ICLR 2024): the model is never told what a class is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.models.words import word_tokens
from synthaug_plugins.prompts.names import clean_label
from synthaug_plugins.prompts.placeholders import between_placeholders
from synthaug_plugins.prompts.sentences import Vocabulary

CLASS_NAMES = ('never', 'allowed')
_CURE = "Write it without class names, or set class_names='allowed'."


class NoClassNames:
    """Refuses prompts that name a class to a text encoder.

    A prompt is looked at as it is written, and as every tokenizer of the pipeline reads it: its tokens, without those of learned words, are turned
    back into text. A name counts as in `Vocabulary`: as whole words, in singular or plural, in any case. Names of all classes count in every
    prompt.

    Args:
        model: the pipeline.
        classes: labels; each counts as it is written and as words.
        called: label -> what a prompt source calls the class, which counts too.
    """

    def __init__(self, model: TextModel, classes: Sequence[str], called: Mapping[str, str]) -> None:
        self._model = model
        names = {*classes, *called.values()}
        for label in classes:
            with suppress(DataError):  # a WordNet id: as it is written is all that it is called
                names.add(clean_label(label))
        self._names = tuple(sorted(names))
        self._written = Vocabulary({name: name for name in self._names})
        self._named = lru_cache(maxsize=65536)(self._find)

    def check_words(self) -> None:
        """Refuse (RecipeError) learned words that began from the names of their classes, or were learned with prompts that name one.

        The vectors that a name begins with lie near to it, so what the model knows of the name would reach the images.
        """
        words = self._model.words
        if words is None:
            return
        if not words.class_free:
            raise RecipeError(
                f"words = {str(words.file)!r} began from the names of the classes, and class_names = 'never' lets no name reach the model.",
                "Learn them from a word without a class (initialise_from='the' in the recipe of synthaug learn words), or set class_names='allowed'.",
            )
        self.check('text that learned words began from', str(words.card['initialised_from']['word']))
        for template in words.card.get('options', {}).get('templates', ()):
            for part in str(template).split('{}'):
                self.check('template that words were learned with', part)

    def check(self, what: str, text: str) -> None:
        """Refuse a text that names a class.

        Args:
            what: the text is, for the message.
            text: as the model is given it.

        Raises:
            RecipeError: it does; the name is said.
        """
        if (found := self._named(text)) is not None:
            raise RecipeError(f"The {what} {text!r} names the class {found!r} to the model, but class_names = 'never'.", _CURE)

    def _find(self, text: str) -> str | None:
        """The first name in a text, or None. A learned word parts what is left and right of it."""
        seen = [(self._written, part) for part in between_placeholders(text)]
        seen += [(vocabulary, part) for tokenizer, vocabulary in self._as_read for part in self._read(tokenizer, text)]
        return next((min(names) for vocabulary, part in seen for names in vocabulary.named(part)), None)

    @cached_property
    def _as_read(self) -> list[tuple[Any, Vocabulary]]:
        """Each tokenizer with the names as it reads them: one may drop accents or letters that it does not know."""
        return [(t, Vocabulary({name: ' '.join(self._read(t, name)) for name in self._names})) for t in self._model.tokens.tokenizers.values()]

    def _read(self, tokenizer: Any, text: str) -> list[str]:
        """What a tokenizer makes of a text, as text again: the parts beside learned words, without marks of start, end and the unknown."""
        ours = {token for word, vectors in self._model.tokens.words.items() for token in word_tokens(word, vectors)}
        ids = tokenizer(self._model.tokens.expand(text), truncation=False, verbose=False).input_ids
        parts: list[list[int]] = [[]]
        for number, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
            if token in ours:
                parts.append([])
            else:
                parts[-1].append(number)
        return [str(tokenizer.decode(part, skip_special_tokens=True)) for part in parts]
