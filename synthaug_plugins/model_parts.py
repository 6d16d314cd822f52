"""Parts of a model, chosen by regular expressions over their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

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


def find_batch_norms(model: Any, modules: Sequence[str] | None) -> list[Any]:
    """The BatchNorm layers of a model whose names the expressions find (all, for None); none for a model that has none.

    Raises:
        RecipeError: an expression finds none of them, or is not valid.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    found = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not found or modules is None:
        return list(found.values())
    return [module for _, module in named_matches(modules, found, 'frozen_bn')]
