"""The recipe that a checkpoint was trained with. MMEngine keeps it as Python text; it is read here without being run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from synthaug_plugins.training.backbone_weights import read_checkpoint


def recipe_of(checkpoint: str | Path) -> dict[str, Any]:
    """What the recipe in a checkpoint of MMEngine sets to plain values, by name; empty where there is none, as in files of bare weights.

    Dicts, lists and values are read, anything else that Python could hold is left out.

    Raises:
        ModelError: see `backbone_weights.load_backbone`.
    """
    meta = read_checkpoint(checkpoint).get('meta')
    text = meta.get('cfg') if isinstance(meta, dict) else None
    return plain_settings(text) if isinstance(text, str) else {}


def plain_settings(text: str) -> dict[str, Any]:
    """The assignments of a config's text, as far as they are plain.

    >>> plain_settings('a = dict(b=[1, -2.5], c=(None, "d"))\\ne = open("f")')
    {'a': {'b': [1, -2.5], 'c': (None, 'd')}}
    """
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = {}
    for line in lines:
        if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
            try:
                found[line.targets[0].id] = _value(line.value)
            except ValueError:
                continue
    return found


def _value(node: ast.expr) -> Any:
    """The value of a literal, in which dict(a=1) is one, too. Raises ValueError for anything else."""
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords) if all(keyword.arg for keyword in keywords):
            return {keyword.arg: _value(keyword.value) for keyword in keywords}
        case ast.Dict(keys=keys, values=values):
            return {_value(key) if key else None: _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
    return ast.literal_eval(node)
