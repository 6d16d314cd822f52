"""What recipes are refused for that has nothing to do with what they make: keys, kinds of values, data that is not plain."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest


def check_learn_keys(recipe: Mapping[str, Any], known: Mapping[str, str], what: str) -> None:
    """Refuse (RecipeError) keys that a recipe of `synthaug learn ...` has not; what belongs to another command is sent there.

    Args:
        known: its keys.
        what: what such a recipe does: 'learn words'.
    """
    commands = {'train_dataloader': 'train', 'arms': 'compare', 'generator': 'generate', 'augment': 'learn edm'}
    for key in recipe:
        if key not in known:
            if key in commands:
                raise RecipeError(f'This is no recipe to {what}: it has {key}.', f'Use `synthaug {commands[key]}`.')
            raise RecipeError(f'The recipe has an unknown key {key!r}.', nearest(key, known))


def check_dict(key: str, value: Any, known: Collection[str] | None = None) -> None:
    """Refuse (RecipeError) what is no dict, or has a key that is not among the known ones; None knows all. key: of the recipe."""
    if not isinstance(value, Mapping):
        raise RecipeError(f'{key} = {value!r} is not a dict.', f'Write {key} = dict(...).')
    for name in value:
        if known is not None and name not in known:
            raise RecipeError(f'{key} has an unknown key {name!r}.', f'It stands beside {key}.' if name == 'seed' else nearest(str(name), known))


def check_model(recipe: Mapping[str, Any], known: Collection[str], shipped: str) -> None:
    """Refuse (RecipeError) a recipe whose `model` is no dict of the known keys with a name, or that has none.

    Args:
        shipped: a recipe of this kind, to start from.
    """
    if 'model' not in recipe:
        raise RecipeError('The recipe has no model.', f'Start from a shipped one: synthaug init {shipped}')
    check_dict('model', recipe['model'], known)
    if not isinstance(name := recipe['model'].get('name'), str):
        raise RecipeError(f'model.name = {name!r} is no text.', "Write model = dict(name='embedded:digits_sd').")


def check_names(key: str, names: Any) -> None:
    """Refuse (RecipeError) what is no list of different names, one at least. key: of the recipe."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise RecipeError(f'{key} = {names!r} is not a list of names.', f"Write {key}=['cat', 'dog'].")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise RecipeError(f'{key} = {names!r} names {twice[0]!r} twice.', 'Name each once.')


def check_texts(recipe: Mapping[str, Any], *keys: str) -> None:
    """Refuse (RecipeError) what is no text, or an empty one, under keys that may be left out (None)."""
    for key in keys:
        if recipe[key] is not None and (not isinstance(recipe[key], str) or not recipe[key].strip()):
            raise RecipeError(f'{key} = {recipe[key]!r} is not a text.', 'Correct it, or leave it out.')


def named_data(recipe: Mapping[str, Any]) -> str:
    """The folder of images that a complete recipe names; RecipeError where it names none."""
    if recipe['data'] is None:
        raise RecipeError('The recipe names no images.', 'Add --data FOLDER with one folder per class.')
    return str(recipe['data'])


def plain_data(recipe: Mapping[str, Any], finite: bool = True) -> dict[str, Any]:
    """A recipe as a JSON file gives it back: plain values, tuples as lists.

    Args:
        finite: whether all numbers must be; samplers know S_max = inf.

    Raises:
        RecipeError: it holds something else.
    """
    try:
        return dict(json.loads(json.dumps(recipe, allow_nan=not finite)))
    except (TypeError, ValueError) as error:
        cure = f'Use {"finite " if finite else ""}numbers, texts, lists and dicts only.'
        raise RecipeError(f'The recipe holds a value that is no plain data: {error}.', cure) from error
