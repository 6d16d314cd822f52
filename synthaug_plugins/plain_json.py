"""JSON that anybody may have written: plain values, no deeper and no longer than stated, every key once."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_BYTES = 256 * 2**20
"""A card with the names of five million real images has 200 MB."""
MAX_DEPTH = 64
"""Ours are less than ten deep. Python's own limit would be met in the middle of later work, wherever that recurses."""
_NESTS = (dict, list)
_MAX_DIGITS = 40  # beyond 308 a number cannot be a float any more
_HALF_PAIR = re.compile(r'\\u[dD][89a-fA-F]')


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        finite: whether all numbers must be; configs of diffusers' schedulers hold -Infinity.

    Raises:
        ValueError: no JSON or no UTF-8; NaN, infinity, a number that is larger than a float or has more than 40 digits; a key that is there twice in an object;
            half of a surrogate pair, which is no text; deeper than `MAX_DEPTH` or longer than `MAX_BYTES`.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f'longer than {MAX_BYTES >> 20} MiB')
    text = text if isinstance(text, str) else text.decode('utf-8')
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number if finite else None, parse_float=_float, parse_int=_int)
    except RecursionError as error:
        raise ValueError(f'nested deeper than {MAX_DEPTH}') from error
    level = [found] if isinstance(found, _NESTS) else []
    for _ in range(MAX_DEPTH):
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, _NESTS)]
    if level:
        raise ValueError(f'nested deeper than {MAX_DEPTH}')
    if _HALF_PAIR.search(text):
        json.dumps(found, ensure_ascii=False).encode()  # UnicodeEncodeError, a ValueError, where a half has no other half
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'the key {next(n for n in names if names.count(n) > 1)[:100]!r} is there twice')
    return found


def _no_number(text: str) -> float:
    raise ValueError(f'{text} is no number of JSON')


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f'{text[:40]} is too large')
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f'a number of {len(text)} digits')
    return int(text)
