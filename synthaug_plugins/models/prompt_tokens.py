"""The tokenizers of a text-to-image pipeline, with learned words among their tokens: what of a prompt its text encoders see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, RecipeError, first_line, nearest
from synthaug_plugins.models.words import add_tokens, word_tokens
from synthaug_plugins.prompts.placeholders import placeholders
from synthaug_plugins.prompts.tokens import fit_tokens

if TYPE_CHECKING:
    from synthaug_plugins.models.files import ModelFiles


class PromptTokens:
    """The tokenizers of a pipeline. They are read when they are first needed.

    Args:
        files: of the pipeline.
        words: word -> vectors, to be added.
        classes: component ('tokenizer', 'tokenizer_2', ...) -> class of its tokenizer.
        limited_by: components whose token limit bounds a prompt.
        limit: the pipeline's own limit beside theirs, or None.

    Attributes:
        words: word -> vectors of the words that were added.
    """

    def __init__(self, files: ModelFiles, words: Mapping[str, int], classes: Mapping[str, Any], limited_by: Sequence[str], limit: int | None) -> None:
        self._files, self._classes, self._limited_by, self._limit = files, classes, limited_by, limit
        self.words = dict(words)

    @cached_property
    def tokenizers(self) -> dict[str, Any]:
        """Component -> tokenizer.

        Raises:
            ModelError: one cannot be read.
            DataError: a word is a token of one already.
        """
        found = {}
        for name, cls in self._classes.items():
            try:
                found[name] = cls.from_pretrained(str(self._files.folder / name), local_files_only=True)
            except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
                raise ModelError(f'model = {self._files.name!r}: {name} cannot be read: {first_line(error)}.', self._files.cure) from error
            add_tokens(found[name], self.words, f'the {name} of {self._files.name!r}')
        return found

    def add(self, words: Mapping[str, int]) -> None:
        """Have these words among the tokens of every tokenizer.

        Args:
            words: word -> vectors.

        Raises:
            ModelError: a tokenizer cannot be read.
            DataError: a word is a token of one already.
        """
        for name, tokenizer in self.tokenizers.items():
            add_tokens(tokenizer, words, f'the {name} of {self._files.name!r}')
        self.words |= words

    def check(self, prompt: str, file: object) -> None:
        """Refuse (RecipeError) a prompt with a placeholder that is no known word: the tokenizer would read it letter by letter.

        Args:
            file: where the words come from, for the message; None where there are none.
        """
        for word in placeholders(prompt):
            if word not in self.words and not self._has_token(word):
                what = f'The prompt {prompt!r} holds {word!r}, which is no learned word'
                if file is None:
                    raise RecipeError(f'{what}: the model was given none.', 'Set words to the file that `synthaug learn words` wrote, or leave it out.')
                raise RecipeError(f'{what} of {str(file)!r}.', nearest(word, self.words))

    def _has_token(self, word: str) -> bool:
        """Whether a pipeline brings this token itself. Single tokens of our words do not count: a prompt says the whole word."""
        ours = {token for known, vectors in self.words.items() for token in word_tokens(known, vectors)}
        return word not in ours and all(word in tokenizer.added_tokens_encoder for tokenizer in self.tokenizers.values())

    def expand(self, prompt: str) -> str:
        """A prompt as the pipeline gives it to its tokenizers: a word of several vectors as its several tokens."""
        if not self.words or '<' not in prompt:
            return prompt
        from diffusers.loaders import TextualInversionLoaderMixin

        return str(TextualInversionLoaderMixin().maybe_convert_prompt(prompt, next(iter(self.tokenizers.values()))))

    def fit(self, prompt: str) -> tuple[str, list[str]]:
        """The longest beginning of a prompt that the text encoders see entirely, and the words that were cut, see `fit_tokens`.

        Raises:
            RecipeError: not even the first word fits.
            ModelError: a tokenizer cannot be read, or names no limit.
        """
        text, cut = prompt, list[str]()
        for name in self._limited_by:
            tokenizer = self.tokenizers[name]
            if self._limit is None and tokenizer.model_max_length > 10**6:  # what transformers says for no limit
                what = f'{name}/tokenizer_config.json is missing or names no model_max_length'
                raise ModelError(f'model = {self._files.name!r}: {what}.', self._files.cure)
            text, more = fit_tokens(text, tokenizer, self._limit if self._limit and self._limit < tokenizer.model_max_length else None, self.expand)
            cut = more + cut
        return text, cut
