"""Compare recipes: what is compared with what, read and checked before anything runs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.evaluation.ablation.curves import Curve, read_curves
from synthaug_plugins.evaluation.ablation.entries import COMMON_NAMES, DRAW_NAMES, Made, needed, read_made
from synthaug_plugins.evaluation.recipe_text import check_keys, fill
from synthaug_plugins.few_shot import check_imbalance
from synthaug_plugins.recipes import recipe_file

KEYS = {
    'title': 'heading of this comparison in the report',
    'notes': 'sentences for the report, such as what the generator had seen: a text or a list of texts',
    'train': "the trainer recipe of every run: a path relative to this file, or 'mmpretrain::...'",
    'seeds': 'every arm runs once per seed; the text {seed} in any string becomes the number',
    'values': 'names that stand in braces in any string, with their values; --set NAME=VALUE on the command line changes one',
    'cfg_options': 'changes to the trainer recipe in every run, as dotted keys',
    'arms': 'what is compared: name -> dict(cfg_options=..., synthaug=...); the first is the baseline',
    'reference': 'name of an arm that others vary: differences to it are given beside those to the baseline',
    'shots': 'numbers of real images per class: one comparison for each. They are drawn from data for each seed; folders and number of classes of the '
    'trainer recipe are set to the draw',
    'imbalance': 'with shots: a long tail. shots are then the images of the first class by name, and the others fall off exponentially to 1/imbalance of them',
    'data': 'with shots: a folder with train/, test/ and perhaps val/, a folder per class in each; --data on the command line sets it',
    'made': 'with shots: what is made from each draw before training, name -> dict(kind=..., recipe=..., cfg_options=..., once=False); {name} in any string '
    'is where it lies. Only what an arm names is made',
    'curves': 'with shots: quantities that some arms vary, name -> dict(axis=..., arms={value: arm}, baseline=...); drawn over their values, a line for each '
    'number of shots. The number of shots itself is always drawn',
    'search': 'dict(arm=..., grid={dotted key: [values]}), or a list of them: chosen on validation, the winner is the arm that is tested. Several grids over '
    'the same keys, as a list, are tried one after the other, and what they share once',
}
ARM_KEYS = {
    'cfg_options': 'changes to the trainer recipe for this arm',
    'synthaug': 'options of the plugins for this arm, as under `synthaug = dict(...)` in a trainer recipe',
}
SEARCH_KEYS = ('arm', 'grid')


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: how its training differs from the base recipe.

    Attributes:
        name: its name.
        cfg_options: changes to the trainer recipe, by dotted key.
        synthaug: options of the plugins, as under `synthaug = dict(...)`; what is None there is taken away.
    """

    name: str
    cfg_options: Mapping[str, Any] = field(default_factory=dict)
    synthaug: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, options: Mapping[str, Any]) -> Arm:
        """This arm with dotted keys set. `cfg_options.KEY` changes the trainer recipe, any other key the plugins' options.

        Raises:
            RecipeError: the key's plugin is not in the arm, so setting it would switch on a plugin with one option only.
        """
        cfg_options, synthaug = copy.deepcopy(dict(self.cfg_options)), copy.deepcopy(dict(self.synthaug))
        for key, value in options.items():
            head, _, rest = key.partition('.')
            if head == 'cfg_options' and rest:
                inside = [k for k in cfg_options if rest.startswith(f'{k}.')]
                if inside:  # the arm sets a whole list or dict, and the search one value in it
                    _set(cfg_options[inside[0]], rest.removeprefix(f'{inside[0]}.'), value, key)
                else:
                    cfg_options[rest] = value
            elif head in synthaug and rest:
                _set(synthaug[head], rest, value, key)
            else:
                what = f'search.grid names {key!r}, but the arm {self.name!r} has no synthaug option {head!r}.'
                raise RecipeError(what, nearest(head, [*synthaug, 'cfg_options']))
        return Arm(self.name, cfg_options, synthaug)


@dataclass(frozen=True)
class Search:
    """Grids over options of one arm, chosen on validation only.

    Attributes:
        arm: name of the arm.
        grids: each option -> values to try; all grids name the same options, see `Arm.with_options`.
    """

    arm: str
    grids: Sequence[Mapping[str, Sequence[Any]]]

    def candidates(self) -> list[dict[str, Any]]:
        """Every combination of each grid, the last key fastest; one that an earlier grid has is not repeated."""
        found: list[dict[str, Any]] = []
        for grid in self.grids:
            combinations = itertools.product(*(grid[key] for key in self.grids[0]))
            candidates = (dict(zip(self.grids[0], values, strict=True)) for values in combinations)
            found += [candidate for candidate in candidates if candidate not in found]
        return found


@dataclass(frozen=True)
class Comparison:
    """A checked compare recipe; strings still hold `{seed}`, and with `shots` `{shots}` and the names of `made`, nothing else in braces.

    Attributes:
        path: the recipe file.
        searches: one per arm at the most.
        others: as `KEYS` says of the recipe.
    """

    path: Path
    title: str
    notes: tuple[str, ...]
    train: str
    seeds: tuple[int, ...]
    values: Mapping[str, Any]
    cfg_options: Mapping[str, Any]
    arms: tuple[Arm, ...]
    searches: tuple[Search, ...]
    reference: str | None = None
    shots: tuple[int, ...] = ()
    imbalance: float | None = None
    data: str | None = None
    made: tuple[Made, ...] = ()
    curves: tuple[Curve, ...] = ()


def _set(tree: Any, path: str, value: Any, key: str) -> None:
    """Set a dotted path in nested dicts and lists."""
    head, _, rest = path.partition('.')
    try:
        at: Any = int(head) if isinstance(tree, list) else head
        if rest:
            _set(tree[at] if isinstance(tree, list) else tree.setdefault(at, {}), rest, value, key)
        else:
            tree[at] = value
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise RecipeError(f'search.grid names {key!r}, but there is no {head!r} in {tree!r}.', 'Correct the key.') from error


def read_comparison(path: str | Path, values: Mapping[str, Any] | None = None, data: str | None = None) -> Comparison:
    """Read a compare recipe (an MMEngine config, so it is Python code that runs).

    Args:
        path: the recipe file.
        values: replaces some of the recipe's `values`.
        data: replaces the recipe's `data`.

    Raises:
        RecipeError: the file cannot be run, or holds an unknown key or a wrong value.
    """
    from mmengine.config import Config

    path = Path(path)
    if not path.is_file():
        raise RecipeError(f'The compare recipe {str(path)!r} does not exist.', 'Give the path of a file.')
    try:
        recipe = {k: v for k, v in Config.fromfile(str(path)).to_dict().items() if not k.startswith('_')}  # _name: a helper variable
    except Exception as error:  # a recipe is Python: it may raise anything
        raise RecipeError(f'The compare recipe {str(path)!r} cannot be read: {type(error).__name__}: {error}.', 'Correct the file.') from error
    check_keys(recipe, KEYS, 'The compare recipe')
    for key in ('train', 'seeds', 'arms'):
        if not recipe.get(key):
            raise RecipeError(f'The compare recipe {str(path)!r} has no {key}.', f'{key}: {KEYS[key]}.')
    named = dict(recipe.get('values') or {})
    check_keys(values or {}, named, 'values')
    named.update(values or {})
    if data is not None:
        recipe['data'] = data
    draws = _check_draws(recipe)
    reserved = [*DRAW_NAMES, *COMMON_NAMES] if draws else ['seed']
    keep = [*reserved, *(recipe.get('made') or {})] if draws else reserved
    for name in named:
        if name in keep:
            raise RecipeError(f'values names {name!r}, which has a meaning of its own in braces.', 'Use another name.')
    recipe = {k: v if k == 'values' else fill(v, named, keep) for k, v in recipe.items()}
    arms = _arms(recipe['arms'])
    if recipe.get('reference') is not None and recipe['reference'] not in [arm.name for arm in arms]:
        raise RecipeError(f'reference = {recipe["reference"]!r} is none of the arms.', nearest(str(recipe['reference']), [arm.name for arm in arms]))
    notes = recipe.get('notes') or []
    shots = whole_numbers('shots', recipe['shots'], 1) if draws else ()
    return Comparison(
        path=path,
        title=recipe.get('title') or path.stem,
        notes=(notes,) if isinstance(notes, str) else tuple(notes),
        train=recipe_file(recipe['train'], path, 'train', 'train'),
        seeds=whole_numbers('seeds', recipe['seeds'], 0),
        values=named,
        cfg_options=recipe.get('cfg_options') or {},
        arms=arms,
        searches=_searches(recipe.get('search') or [], arms),
        reference=recipe.get('reference'),
        shots=shots,
        imbalance=recipe.get('imbalance'),
        data=recipe.get('data'),
        made=needed(read_made(recipe.get('made') or {}, path, reserved + list(named)), [recipe.get('cfg_options'), recipe['arms'], recipe.get('search')]),
        curves=read_curves(recipe.get('curves') or {}, [arm.name for arm in arms], shots),
    )


def _check_draws(recipe: Mapping[str, Any]) -> bool:
    """Whether the recipe draws shots; refuse (RecipeError) half of what that needs."""
    if recipe.get('shots') is None:
        for key in ('data', 'made', 'curves', 'imbalance'):
            if recipe.get(key) is not None:
                raise RecipeError(f'The compare recipe has {key}, but no shots to draw.', 'Add shots = [1, 4, 16], or set the folders under cfg_options.')
        return False
    if not isinstance(recipe.get('data'), str):
        raise RecipeError('The compare recipe draws shots, but names no data.', 'Add --data FOLDER with train/ and test/.')
    if recipe.get('imbalance') is not None:
        check_imbalance(recipe['imbalance'])
    if not isinstance(recipe.get('made') or {}, Mapping):
        raise RecipeError(f'made = {recipe["made"]!r} is not a dict.', 'Its keys are names of what is made.')
    return True


def whole_numbers(key: str, values: Any, low: int) -> tuple[int, ...]:
    """Distinct whole numbers of at least `low`, as a tuple; refuse (RecipeError) anything else under its key."""
    if not isinstance(values, list | tuple) or not values or any(isinstance(v, bool) or not isinstance(v, int) or v < low for v in values):
        raise RecipeError(f'{key} = {values!r} is not a list of whole numbers from {low}.', f'Write {key} = [1, 2, 4].')
    if len(set(values)) != len(values):
        raise RecipeError(f'{key} = {values!r} repeats a {key[:-1]}.', 'Twice is the same run twice: name different ones.')
    return tuple(values)


def _arms(arms: Any) -> tuple[Arm, ...]:
    if not isinstance(arms, Mapping) or len(arms) < 2:
        raise RecipeError(f'arms = {arms!r} holds fewer than two arms.', 'Name at least a baseline and one more: arms = dict(real_only=dict(), ...).')
    for name, arm in arms.items():
        if not isinstance(arm, Mapping):
            raise RecipeError(f'arms.{name} = {arm!r} is not a dict.', f'Its keys are {" and ".join(ARM_KEYS)}.')
        check_keys(arm, ARM_KEYS, f'arms.{name}')
    return tuple(Arm(name, arm.get('cfg_options') or {}, arm.get('synthaug') or {}) for name, arm in arms.items())


def _searches(searches: Any, arms: Sequence[Arm]) -> tuple[Search, ...]:
    searches = [searches] if isinstance(searches, Mapping) else list(searches)
    by_name = {arm.name: arm for arm in arms}
    found: list[Search] = []
    for search in searches:
        check_keys(search, SEARCH_KEYS, 'search')
        name, grid = search.get('arm'), search.get('grid')
        if name not in by_name:
            raise RecipeError(f'search.arm = {name!r} is none of the arms.', nearest(str(name), by_name))
        if name in [s.arm for s in found]:
            raise RecipeError(f'The arm {name!r} is searched twice.', 'Put both grids into one search.')
        grids = list(grid) if isinstance(grid, list | tuple) else [grid]
        if not grids or any(not _is_grid(one) or set(one) != set(grids[0]) for one in grids):
            raise RecipeError(f'search.grid = {grid!r} is not a dict of lists.', "Write grid={'mix.alpha': [0.3, 0.6]}, or a list of such with the same keys.")
        by_name[name].with_options({key: values[0] for key, values in grids[0].items()})  # refuses keys that fit no option
        found.append(Search(name, tuple(grids)))
    return tuple(found)


def _is_grid(grid: Any) -> bool:
    """Whether it is a dict of lists that are not empty."""
    return isinstance(grid, Mapping) and bool(grid) and all(isinstance(values, list | tuple) and values for values in grid.values())
