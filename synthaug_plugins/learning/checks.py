"""What options of every kind of learning are refused for."""

from __future__ import annotations

from typing import Any

from synthaug_plugins.errors import RecipeError, nearest

PRECISIONS = ('auto', 'fp32', 'bf16', 'fp16')
"""In which a network may run that itself learns nothing, see `diffusion.precision.network_dtype`."""


def check_whole(name: str, value: Any) -> None:
    """Refuse (RecipeError) what is no whole number above 0. name: of the key."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f'{name} = {value!r} is no whole number above 0.', 'Correct it.')


def check_seed(seed: Any) -> None:
    """Refuse (RecipeError) what is no whole number of 63 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise RecipeError(f'seed = {seed!r} is no whole number from 0 on.', 'Correct it.')


def check_precision(precision: Any) -> None:
    """Refuse (RecipeError) what is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise RecipeError(f'precision = {precision!r} is unknown.', nearest(str(precision), PRECISIONS))
