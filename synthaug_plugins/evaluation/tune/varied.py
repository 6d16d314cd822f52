"""What a store varies from image to image: each strength or guidance that it was made with is a selection that a search may try."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.recipe_text import NAME
from synthaug_plugins.store.rows import params_of
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

MOST_VALUES = 8
"""A param with more of them, such as a number drawn for each image, is no list of settings."""
MOST_SELECTIONS = 24
"""More combinations than these are the user's to choose from: each of them is trained with every share and seed."""

Choice = str | Mapping[str, Any] | None
"""As `mix.select` takes it: a condition, a dict of the arguments of `store.selection.select`, None for all."""


def arguments(choice: Choice) -> dict[str, Any]:
    """A choice as arguments of `store.selection.select`."""
    return dict(choice) if isinstance(choice, Mapping) else {'where': choice}


def both(choice: Choice, condition: str) -> Choice:
    """A choice narrowed by a condition.

    >>> both(None, 'params.t0 = 0.5'), both('clip_p > 0.1', 'params.t0 = 0.5')
    ('params.t0 = 0.5', '(clip_p > 0.1) and (params.t0 = 0.5)')
    """
    if isinstance(choice, Mapping):
        return {**choice, 'where': both(choice.get('where'), condition)}
    return condition if choice is None else f'({choice}) and ({condition})'


def choices(store: Store, own: Choice) -> tuple[list[Choice], list[str]]:
    """`own`, then it narrowed to each value of each param that the store varies, and to each combination of them.

    Params are looked at where they are numbers at the top level with 2 to `MOST_VALUES` values. One that follows from another (the noise level of each
    `t0`) is left out.

    Args:
        own: what the recipe selects.

    Returns: the choices, and sentences on what was left out: params with more values, and combinations without an image of some class.

    Raises:
        RecipeError: more than `MOST_SELECTIONS`, or `own` is wrong or leaves a class empty.
        StoreError: a damaged store.
    """
    chosen = select(store, **arguments(own), columns=['label', 'params']).table
    found, notes = _varied({text: params_of(text, 'one of them') for text in chosen['params'].unique().to_pylist()})
    number = math.prod(len(param.values) + 1 for param in found)
    if number > MOST_SELECTIONS:
        what = f'The store {str(store.folder)!r} varies {", ".join(f"{param.said} ({len(param.values)} values)" for param in found)}: {number} selections.'
        example = ' '.join(f'--select "{param.equals(param.values[0])}"' for param in found)
        raise RecipeError(what, f'That is more than {MOST_SELECTIONS}: say which to try, such as {example}')
    told: list[Choice] = []
    groups = chosen.group_by(['label', 'params']).aggregate([]).to_pylist()
    classes = {group['label'] for group in groups}
    for settings in itertools.product(*([None, *param.values] for param in found)):
        named = [(param, value) for param, value in zip(found, settings, strict=True) if value is not None]
        condition = ' and '.join(param.equals(value) for param, value in named)
        lacking = classes - {group['label'] for group in groups if all(param.of[group['params']] == value for param, value in named)}
        if lacking:
            lacks = store.classes[min(lacking)]
            notes.append(f'{condition}: not tried, since {len(lacking)} of {len(classes)} classes would have no image, such as {lacks!r}.')
        else:
            told.append(both(own, condition) if condition else own)
    return told, notes


@dataclass(frozen=True)
class _Param:
    """A param that takes several values.

    Attributes:
        said: its name as conditions say it.
        of: its value by the whole text of the params that hold it; None where it is no number.
    """

    said: str
    of: Mapping[str, float | None]

    @property
    def values(self) -> list[float]:
        """Ascending."""
        return sorted({value for value in self.of.values() if value is not None})

    def equals(self, value: float) -> str:
        """The condition that it has a value."""
        return f'{self.said} = {value!r}'

    def divides_like(self, other: _Param) -> bool:
        """Whether both divide the images into the same groups."""
        pairs = set(zip(self.of.values(), other.of.values(), strict=True))
        return len(pairs) == len(set(self.of.values())) == len(set(other.of.values()))


def _varied(rows: Mapping[str, Mapping[str, Any]]) -> tuple[list[_Param], list[str]]:
    """The params that take several values, and sentences on those that take too many."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    params = [_Param(_said(name), {text: row[name] if _is_number(row.get(name)) else None for text, row in rows.items()}) for name in names]
    notes = [f'{p.said} has {len(p.values)} values: conditions on it are tried if --select names them.' for p in params if len(p.values) > MOST_VALUES]
    kept: list[_Param] = []
    # Of two that say the same, the one with the shorter numbers: t0 = 0.25 says more than sigma = 0.43857.
    for param in sorted((p for p in params if 2 <= len(p.values) <= MOST_VALUES), key=lambda p: len(repr(p.values))):
        if not any(param.divides_like(other) for other in kept):
            kept.append(param)
    return [param for param in params if param in kept], notes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _said(name: str) -> str:
    return f'params.{name}' if NAME.fullmatch(name) else 'params."{}"'.format(name.replace('"', '""'))
