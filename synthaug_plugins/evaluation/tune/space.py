"""What a search tries: the recipe as it is, the recipe without synthetic images, and the grid of stores, selections and shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.recipe_text import fill
from synthaug_plugins.evaluation.tune.varied import Choice, arguments, both, choices
from synthaug_plugins.mixing.rule import mix_rule
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

ALPHAS = (0.25, 0.5, 0.75)
"""Shares that are tried where none are named: evenly spaced, since no paper's value holds for all data (DA-Fusion takes 0.5)."""
STORE, SELECT, ALPHA, RATIO = 'mix.store', 'mix.select', 'mix.alpha', 'mix.ratio'
_RULE = ('mode', 'alpha', 'partner', 'ratio', 'phases', 'synthetic_weight')


@dataclass(frozen=True)
class Space:
    """The candidates of a search.

    Attributes:
        mix: options of the plugin `mix` for the default; strings may hold `{seed}`.
        default: those of them that are searched, by dotted key.
        grids: the candidates, the default first, as `protocol.Search` takes them.
        without: the options of the candidate that uses no synthetic image; None in modes where none can.
        notes: sentences on what is not tried.
    """

    mix: Mapping[str, Any]
    default: Mapping[str, Any]
    grids: tuple[Mapping[str, Sequence[Any]], ...]
    without: Mapping[str, Any] | None
    notes: tuple[str, ...]


def search_space(
    mix: Mapping[str, Any],
    stores: Sequence[str],
    selects: Sequence[str],
    alphas: Sequence[float] | None,
    ratios: Sequence[tuple[int, int]] | None,
    seeds: Sequence[int],
) -> Space:
    """The candidates for a recipe; the stores are looked into, no image is read.

    Args:
        mix: the recipe's own options of the plugin `mix`; may be empty.
        stores: candidates for `mix.store`, the first in the default; none: the recipe's own.
        selects: conditions to try; none: whatever the stores vary, see `varied.choices`.
        alphas: shares of synthetic images to try; default `ALPHAS` in mode per_sample, and the recipe's own in phased. 0 is always tried in per_sample.
        ratios: real to synthetic, in the modes that have a ratio; default: the recipe's own.
        seeds: each store and selection must exist for each of them.

    Raises:
        RecipeError: no store, or several in the recipe; shares that the mode does not have; a selection that leaves a class empty; nothing to choose from.
        StoreError: a store that is missing or damaged.
    """
    if not stores and not isinstance(mix.get('store'), str):
        what = 'mixes several stores' if mix.get('stores') else 'names no store to mix in'
        raise RecipeError(f'The recipe {what}.', 'Name one with --mix STORE; several --mix are tried one against the other.')
    stores = list(dict.fromkeys(stores or [mix['store']]))
    if mix.get('stores'):
        raise RecipeError('The recipe mixes several stores at fixed weights, and a search tries one at a time.', 'Remove synthaug.mix.stores from the recipe.')
    rule = mix_rule(**{key: mix[key] for key in _RULE if mix.get(key) is not None})
    key, shares = _shares(rule.mode, alphas, ratios)
    own: dict[str, Any] = {STORE: stores[0], SELECT: mix.get('select')}
    if key is not None:
        given = mix.get(key.removeprefix('mix.'))
        own[key] = given if given is not None else rule.alpha(0) if key == ALPHA else rule.ratio
        shares = shares or [own[key]]
    notes: list[str] = []
    grids: list[dict[str, Sequence[Any]]] = [{name: [value] for name, value in own.items()}]
    without = {**own, ALPHA: 0} if rule.mode == 'per_sample' else None
    if without:
        grids.append({name: [value] for name, value in without.items()})
    for store in stores:
        told, left_out = _selections(store, mix.get('select'), selects, seeds)
        notes += left_out if len(stores) == 1 else [f'{store}: {sentence}' for sentence in left_out]
        grids.append({STORE: [store], SELECT: told, **({key: shares} if key else {})})
    searched = [name for name in own if len({repr(value) for grid in grids for value in grid[name]}) > 1]
    if not searched:
        cure = 'Name several --mix, --select, --alpha or --ratio, or a store made with several strengths.'
        raise RecipeError(f'There is nothing to choose from: the store {stores[0]!r} varies nothing that could be selected.', cure)
    kept = [{name: grid[name] for name in searched} for grid in grids]
    return Space(
        mix={**mix, **{name.removeprefix('mix.'): value for name, value in own.items()}},
        default={name: own[name] for name in searched},
        grids=tuple(kept),
        without={name: without[name] for name in searched} if without else None,
        notes=tuple(notes),
    )


def _shares(mode: str, alphas: Sequence[float] | None, ratios: Sequence[tuple[int, int]] | None) -> tuple[str | None, list[Any]]:
    """The key of a mode's share of synthetic images, and what is tried of it; nothing for the recipe's own."""
    key = {'per_sample': ALPHA, 'phased': ALPHA, 'per_batch': RATIO, 'two_stream': RATIO}.get(mode)
    for option, given, its in (('--alpha', alphas, ALPHA), ('--ratio', ratios, RATIO)):
        if given is not None and key != its:
            other = {ALPHA: '--alpha', RATIO: '--ratio'}.get(key or '')
            raise RecipeError(f'{option} has no meaning in mode {mode!r}.', f'Use {other}.' if other else 'Leave it out.')
    for alpha in alphas or ():
        if not 0 <= alpha <= 1:
            raise RecipeError(f'--alpha {alpha:g} is outside [0, 1].', 'It is the probability that a sample is synthetic.')
    if mode == 'per_sample':
        alphas = [alpha for alpha in (ALPHAS if alphas is None else alphas) if alpha > 0]  # without synthetic images nothing else makes a difference
    return key, list(alphas or ratios or ())


def _selections(store: str, own: Choice, selects: Sequence[str], seeds: Sequence[int]) -> tuple[list[Choice], list[str]]:
    """The selections to try of a store, and sentences on those that are not."""
    opened = [Store.open(folder) for folder in dict.fromkeys(fill(store, {'seed': seed}) for seed in seeds)]
    if selects:
        told: list[Choice] = [own, *(both(own, condition) for condition in selects)]
        notes: list[str] = []
    else:
        told, notes = choices(opened[0], own)
        for of_seed in opened[1:]:
            theirs, _ = choices(of_seed, own)
            notes += [f'{choice}: not tried, since {str(of_seed.folder)!r} lacks it.' for choice in told if choice not in theirs]
            told = [choice for choice in told if choice in theirs]
    for of_seed in opened:
        for choice in told:
            select(of_seed, **arguments(choice), columns=['id'])  # refuses one that cannot be evaluated, or leaves a class empty
    return told, notes
