"""Parts of a model, chosen by regular expressions over their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from synthaug_plugins.errors import RecipeError, nearest

T = TypeVar('T')


def named_matches(patterns: Sequence[str], named: Mapping[str, T], option: str) -> list[tuple[str, T]]:
    """The entries in whose names an expression is found.

    Raises:
        RecipeError: an expression that finds none, or is not valid.
    """
    found: dict[str, T] = {}
    for pattern in patterns:
        try:
            hits = {name: value for name, value in named.items() if re.search(pattern, name)}
        except re.error as error:
            raise RecipeError(f'{option}: {pattern!r} is not a regular expression: {error}.', 'Correct it.') from error
        if not hits:
            raise RecipeError(f'{option}: {pattern!r} is found in none of the {len(named)} names that it could mean.', nearest(pattern, named))
        found |= hits
    return list(found.items())
