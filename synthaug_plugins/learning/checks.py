"""What options of every kind of learning are refused for."""

from __future__ import annotations

import math
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest

PRECISIONS = ('auto', 'fp32', 'bf16', 'fp16')
"""In which a network may run that itself learns nothing, see `diffusion.precision.network_dtype`."""
AUTOCAST = ('auto', 'fp32', 'bf16')
"""In which a network may learn: its weights are float32, and float16 would need its losses scaled."""


def check_whole(name: str, value: Any) -> None:
    """Refuse (RecipeError) what is no whole number above 0. name: of the key."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f'{name} = {value!r} is no whole number above 0.', 'Correct it.')


def check_number(name: str, value: Any, cure: str, low: float = 0.0, high: float = math.inf, above: bool = False) -> None:
    """Refuse (RecipeError) what is no finite number from `low` to `high`; with `above`, `low` itself too. name: of the key; cure: what works."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        raise RecipeError(f'{name} = {value!r} is out of range.', cure)


def check_flag(name: str, value: Any) -> None:
    """Refuse (RecipeError) what is neither True nor False. name: of the key."""
    if not isinstance(value, bool):
        raise RecipeError(f'{name} = {value!r} is neither True nor False.', 'Correct it.')


def check_seed(seed: Any) -> None:
    """Refuse (RecipeError) what is no whole number of 63 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise RecipeError(f'seed = {seed!r} is no whole number from 0 on.', 'Correct it.')


def check_precision(precision: Any, known: tuple[str, ...] = PRECISIONS) -> None:
    """Refuse (RecipeError) what is none of the known ones, `PRECISIONS` or `AUTOCAST`."""
    if precision not in known:
        raise RecipeError(f'precision = {precision!r} is unknown.', nearest(str(precision), known))
