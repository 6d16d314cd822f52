"""Compare recipes: what is compared with what, read and checked before anything runs."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest

KEYS = {
    'title': 'heading of this comparison in the report',
    'notes': 'sentences for the report, such as what the generator had seen: a text or a list of texts',
    'train': "the trainer recipe of every run: a path relative to this file, or 'mmpretrain::...'",
    'seeds': 'every arm runs once per seed; the text {seed} in any string becomes the number',
    'values': 'names that stand in braces in any string, with their values; --set NAME=VALUE on the command line changes one',
    'cfg_options': 'changes to the trainer recipe in every run, as dotted keys',
    'arms': 'what is compared: name -> dict(cfg_options=..., synthaug=...); the first is the baseline',
    'search': 'dict(arm=..., grid={dotted key: [values]}), or a list of them: chosen on validation, the winner is the arm that is tested',
}
ARM_KEYS = {
    'cfg_options': 'changes to the trainer recipe for this arm',
    'synthaug': 'options of the plugins for this arm, as under `synthaug = dict(...)` in a trainer recipe',
}
SEARCH_KEYS = ('arm', 'grid')
_PLACE = re.compile(r'\{([A-Za-z_]\w*)\}')


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: how its training differs from the base recipe."""

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
    """A grid over options of one arm, chosen on validation only."""

    arm: str
    grid: Mapping[str, Sequence[Any]]

    def candidates(self) -> list[dict[str, Any]]:
        """Every combination, the last key fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Comparison:
    """A checked compare recipe; strings still hold `{seed}`, nothing else in braces."""

    path: Path
    title: str
    notes: tuple[str, ...]
    train: str
    seeds: tuple[int, ...]
    values: Mapping[str, Any]
    cfg_options: Mapping[str, Any]
    arms: tuple[Arm, ...]
    searches: tuple[Search, ...]


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


def read_comparison(path: str | Path, values: Mapping[str, Any] | None = None) -> Comparison:
    """Read a compare recipe (an MMEngine config, so it is Python code that runs).

    Args:
        path: the recipe file.
        values: replaces some of the recipe's `values`.

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
    _known(recipe, KEYS, 'The compare recipe')
    for key in ('train', 'seeds', 'arms'):
        if not recipe.get(key):
            raise RecipeError(f'The compare recipe {str(path)!r} has no {key}.', f'{key}: {KEYS[key]}.')
    named = dict(recipe.get('values') or {})
    _known(values or {}, named, 'values')
    named.update(values or {})
    recipe = {k: v if k == 'values' else fill(v, named, keep=['seed']) for k, v in recipe.items()}
    arms = _arms(recipe['arms'])
    notes = recipe.get('notes') or []
    return Comparison(
        path=path,
        title=recipe.get('title') or path.stem,
        notes=(notes,) if isinstance(notes, str) else tuple(notes),
        train=_train(recipe['train'], path),
        seeds=_seeds(recipe['seeds']),
        values=named,
        cfg_options=recipe.get('cfg_options') or {},
        arms=arms,
        searches=_searches(recipe.get('search') or [], arms),
    )


def _known(keys: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str], where: str) -> None:
    for key in keys:
        if key not in known:
            raise RecipeError(f'{where} has no key {key!r}.', nearest(key, known))


def _train(train: str, path: Path) -> str:
    if '::' in train:
        return train
    file = path.parent / train
    if not file.is_file():
        raise RecipeError(f'train = {train!r}: the file {str(file)!r} does not exist.', "Give a path relative to the compare recipe, or 'mmpretrain::...'.")
    return str(file.resolve())


def _seeds(seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list | tuple) or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in seeds):
        raise RecipeError(f'seeds = {seeds!r} is not a list of whole numbers.', 'Write seeds = [0, 1, 2].')
    if len(set(seeds)) != len(seeds):
        raise RecipeError(f'seeds = {seeds!r} repeats a seed.', 'A seed twice is the same run twice: name different ones.')
    return tuple(seeds)


def _arms(arms: Any) -> tuple[Arm, ...]:
    if not isinstance(arms, Mapping) or len(arms) < 2:
        raise RecipeError(f'arms = {arms!r} holds fewer than two arms.', 'Name at least a baseline and one more: arms = dict(real_only=dict(), ...).')
    for name, arm in arms.items():
        if not isinstance(arm, Mapping):
            raise RecipeError(f'arms.{name} = {arm!r} is not a dict.', f'Its keys are {" and ".join(ARM_KEYS)}.')
        _known(arm, ARM_KEYS, f'arms.{name}')
    return tuple(Arm(name, arm.get('cfg_options') or {}, arm.get('synthaug') or {}) for name, arm in arms.items())


def _searches(searches: Any, arms: Sequence[Arm]) -> tuple[Search, ...]:
    searches = [searches] if isinstance(searches, Mapping) else list(searches)
    by_name = {arm.name: arm for arm in arms}
    seen: set[str] = set()
    for search in searches:
        _known(search, SEARCH_KEYS, 'search')
        name, grid = search.get('arm'), search.get('grid')
        if name not in by_name:
            raise RecipeError(f'search.arm = {name!r} is none of the arms.', nearest(str(name), by_name))
        if name in seen:
            raise RecipeError(f'The arm {name!r} is searched twice.', 'Put both grids into one search.')
        seen.add(name)
        if not isinstance(grid, Mapping) or not grid or any(not isinstance(v, list | tuple) or not v for v in grid.values()):
            raise RecipeError(f'search.grid = {grid!r} is not a dict of lists.', "Write grid={'mix.alpha': [0.3, 0.6]}.")
        by_name[name].with_options({key: values[0] for key, values in grid.items()})  # refuses keys that fit no option
    return tuple(Search(s['arm'], s['grid']) for s in searches)
