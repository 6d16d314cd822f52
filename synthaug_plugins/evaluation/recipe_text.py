"""What compare recipes are written in: known keys, names in braces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest

NAME = re.compile(r'[A-Za-z_]\w*')
_PLACE = re.compile(r'\{(' + NAME.pattern + r')\}')


def fill(tree: Any, values: Mapping[str, Any], keep: Sequence[str] = ()) -> Any:
    """Replace `{name}` in every string of nested dicts and lists (keys stay).

    Args:
        values: by name.
        keep: names that stay as they are.

    Raises:
        RecipeError: a name in braces that neither `values` nor `keep` has.
    """
    if isinstance(tree, Mapping):
        return {k: fill(v, values, keep) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(fill(v, values, keep) for v in tree)
    if not isinstance(tree, str):
        return tree

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name in keep:
            return match[0]
        if name not in values:
            raise RecipeError(f'The text {tree!r} names {match[0]}, which has no value.', nearest(name, [*values, *keep]) + ' Set it under values.')
        return str(values[name])

    return _PLACE.sub(replace, tree)


def names_in(tree: Any) -> frozenset[str]:
    """The names that stand in braces in the strings of nested dicts and lists."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return frozenset().union(*map(names_in, tree))
    return frozenset(_PLACE.findall(tree)) if isinstance(tree, str) else frozenset()


def check_keys(keys: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str], where: str) -> None:
    """Refuse (RecipeError) a key that is not known; the nearest ones are offered."""
    for key in keys:
        if key not in known:
            raise RecipeError(f'{where} has no key {key!r}.', nearest(key, known))
