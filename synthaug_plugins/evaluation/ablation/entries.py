"""The key `made` of a compare recipe: what is made from each draw before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.evaluation.recipe_text import NAME, check_keys, names_in
from synthaug_plugins.recipes import recipe_file

KINDS = {
    'store': 'generate',
    'words': 'learn',
    'embeddings': 'learn',
    'erasure': 'learn',
    'minority': 'learn',
    'denoiser': 'learn',
    'training': 'train',
}
"""What can be made -> folder of the shipped recipes that say how."""

MADE_KEYS = {
    'kind': 'store (images), words (learned class words), embeddings (one learned for each image), erasure (concepts erased from the model), minority '
    '(a classifier of how rare an image is), denoiser (a diffusion model, as `synthaug learn edm` trains it) or training (a trainer recipe, with stages or '
    'without; {name} is the file with its backbone)',
    'recipe': 'the generation, learning or trainer recipe: a path relative to this file, or a shipped recipe by name',
    'cfg_options': 'changes to that recipe, as dotted keys; {name} is where something lies that is made above, {train} the images of the draw, {data} the '
    'data folder',
    'once': 'True: made once for all draws, without any real image, such as an erasure, or from images of its own, such as {data}/seen: one that is '
    'a validation or test image, byte for byte, is refused. Default False: made for each draw, from its shots alone and with its seed',
}
DRAW_NAMES = ('seed', 'shots', 'train')
"""Names in braces that every draw has."""
COMMON_NAMES = ('data',)
"""Names in braces that all draws share."""
_FOLLOWS = ('data', 'seed')


@dataclass(frozen=True)
class Made:
    """One thing to make: a store, or what a store needs.

    Attributes:
        name: what stands in braces where its place is meant.
        kind: one of `KINDS`.
        recipe: path of the recipe file.
        cfg_options: changes to it; strings may name the seed, the shots and things made before.
        once: for all draws, or for each.
        uses: names of other things that it needs.
    """

    name: str
    kind: str
    recipe: str
    cfg_options: Mapping[str, Any]
    once: bool
    uses: frozenset[str]


def read_made(made: Mapping[str, Any], path: Path, taken: Sequence[str]) -> tuple[Made, ...]:
    """The entries of `made`, checked, in order; values are filled in already.

    Args:
        made: the key of the compare recipe at `path`.
        taken: names that stand for something else.

    Raises:
        RecipeError: an unknown key or kind, a recipe that is not there, a name that is taken or not made before it is used.
    """
    found: dict[str, Made] = {}
    for name, entry in made.items():
        where = f'made.{name}'
        if not NAME.fullmatch(name) or name in taken:
            raise RecipeError(f'{where}: the name stands in braces and is {"taken" if name in taken else "no word"}.', 'Use another, of letters and digits.')
        if not isinstance(entry, Mapping):
            raise RecipeError(f'{where} = {entry!r} is not a dict.', f'Its keys are {", ".join(MADE_KEYS)}.')
        check_keys(entry, MADE_KEYS, where)
        kind, recipe, options, once = entry.get('kind'), entry.get('recipe'), entry.get('cfg_options') or {}, entry.get('once', False)
        if kind not in KINDS:
            raise RecipeError(f'{where}.kind = {kind!r} is unknown.', nearest(str(kind), KINDS))
        if not isinstance(recipe, str) or not isinstance(options, Mapping) or not isinstance(once, bool):
            raise RecipeError(
                f'{where} lacks a recipe, or has a value of the wrong kind.', f'recipe: {MADE_KEYS["recipe"]}; cfg_options: a dict; once: True or False.'
            )
        for key in options:
            if not once and (key in _FOLLOWS or key.split('.')[-2:] == ['randomness', 'seed']):
                raise RecipeError(f'{where}.cfg_options sets {key}, which follows from the draw.', 'Remove it.')
        uses = names_in(options)
        for other in sorted(uses - {*DRAW_NAMES, *COMMON_NAMES}):
            if other not in found:
                raise RecipeError(f'{where} names {{{other}}}, which is not made before it.', nearest(other, [*found, *DRAW_NAMES, *COMMON_NAMES]))
        if once and not all(other in COMMON_NAMES or (other in found and found[other].once) for other in uses):
            raise RecipeError(f'{where} is made once, but names {sorted(uses)}, which differ by draw.', 'Remove once=True, or make those once too.')
        found[name] = Made(name, kind, recipe_file(recipe, path, KINDS[kind], f'{where}.recipe'), options, once, uses - {*DRAW_NAMES, *COMMON_NAMES})
    return tuple(found.values())


def needed(made: Sequence[Made], by: Any) -> tuple[Made, ...]:
    """Those entries that the strings of `by` name, and what they need; in order."""
    wanted = set(names_in(by))
    for entry in reversed(made):
        if entry.name in wanted:
            wanted |= entry.uses
    return tuple(entry for entry in made if entry.name in wanted)
