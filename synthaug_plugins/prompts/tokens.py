"""The token limit of a text encoder: what does not fit is cut at a word, and said."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

from synthaug_plugins.errors import RecipeError

_NO_LIMIT = 10**6  # tokenizers without a limit give a huge number
_ADDED = 4  # tokens beside those of the text, at most: its start, its end, the mark before its first word


def fit_tokens(prompt: str, tokenizer: Any, max_tokens: int | None = None, expand: Callable[[str], str] = str) -> tuple[str, list[str]]:
    """The longest beginning of `prompt`, in whole words, that the text encoder sees entirely.

    Args:
        tokenizer: of transformers: called with a text, it gives `input_ids` with start and end tokens.
        max_tokens: limit with start and end tokens; default: the tokenizer's own (77 for CLIP).
        expand: what a pipeline does to a prompt before it goes to the tokenizer, see `maybe_convert_prompt` of diffusers.

    Returns: the prompt, unchanged if it fits; and the words that were cut, for the caller to say once.

    Raises:
        RecipeError: not even the first word fits.
    """
    limit = tokenizer.model_max_length if max_tokens is None else max_tokens

    def length(text: str) -> int:
        return len(tokenizer(expand(text), truncation=False, verbose=False).input_ids)

    # No tokenizer makes more than one token of an ASCII character; asking it takes a hundred times as long as counting these.
    if limit > _NO_LIMIT or (prompt.isascii() and len(expand(prompt)) + _ADDED <= limit) or length(prompt) <= limit:
        return prompt, []
    parts = prompt.split()
    kept = bisect.bisect_right(range(1, len(parts)), limit, key=lambda n: length(' '.join(parts[:n])))
    if not kept:
        raise RecipeError(f'The prompt {prompt[:60]!r}... does not fit into {limit} tokens, nor does its first word.', 'Write a shorter prompt.')
    return ' '.join(parts[:kept]), parts[kept:]
