"""A search on validation: every candidate with every seed at equal steps, the best mean wins, and only then winner and default read the test images."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy

from synthaug_plugins import compat
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.compare import check_jobs
from synthaug_plugins.evaluation.compare import run as run_comparison
from synthaug_plugins.evaluation.protocol import Arm, Comparison, Search, whole_numbers
from synthaug_plugins.evaluation.recipe_text import fill
from synthaug_plugins.evaluation.report import write_report
from synthaug_plugins.evaluation.statistics import paired, plus_minus, signed
from synthaug_plugins.evaluation.tune.outcome import candidate_rows, overview, recipe_with
from synthaug_plugins.evaluation.tune.space import Space, search_space
from synthaug_plugins.own_folder import refuse_foreign
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.training.run import load_recipe, own_options

RECIPE, CSV, REPORT = 'tuned.py', 'candidates.csv', 'report.html'
SEARCH = 'search'
"""The folder of the comparison that a search is."""
DEFAULT, TUNED = 'default', 'tuned'
"""The arms of that comparison: the recipe as it is, and the winner of the search."""
SEEDS = (0, 1, 2)
"""Fewer than three show no spread worth the name; two are the least."""


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        recipe: the file with the winner.
        options: the winner's, by dotted key.
        validation: difference to the default on validation (mean, se, n, points; percentage points), 0 where the default won.
        sentences: the outcome in words: what won on validation, what that did on test, what was not tried.
        results: of the comparison, see `compare.compare`.
    """

    recipe: Path
    options: Mapping[str, Any]
    validation: Mapping[str, Any]
    sentences: tuple[str, ...]
    results: Mapping[str, Any]


def tune(
    recipe: str | Path,
    out: str | Path,
    plugin_manager: pluggy.PluginManager,
    stores: Sequence[str] = (),
    selects: Sequence[str] = (),
    alphas: Sequence[float] | None = None,
    ratios: Sequence[tuple[int, int]] | None = None,
    seeds: Sequence[int] = SEEDS,
    cfg_options: Mapping[str, Any] | None = None,
    jobs: int = 1,
    setup: Callable[[], object] | None = None,
    progress: Callable[[str], None] = print,
) -> Tuned:
    """Search how a training recipe should mix synthetic images in, and write the recipe with the winner.

    Candidates are the recipe as `synthaug train RECIPE --mix STORE` trains it (the default), the same without synthetic images, and every store with every
    selection and every share. All take the same number of optimiser steps with every seed; the best mean of the best validation accuracies wins, the
    default where several are equal. Only then are test images read, once, by the winner and the default. Runs that are done are not done again: a killed
    search goes on, and one with more candidates trains those alone.

    Args:
        recipe: a trainer recipe with three different sets of images: a file, a shipped recipe by name, or `mmpretrain::...`.
        out: receives `tuned.py` (complete, with the recipe's own seed; trains with `synthaug train`), `candidates.csv`, `report.html` and `search/`, the
            comparison behind them.
        plugin_manager, jobs, setup, progress: as for `compare.compare`.
        stores, selects, alphas, ratios: what is tried, see `space.search_space`.
        seeds: two or more. `{seed}` in a store's name and in `cfg_options` becomes the number; `tuned.py` has the first.
        cfg_options: changes to the recipe, by dotted key.

    Raises:
        RecipeError, StoreError: before any training, what cannot be searched; see `compare.compare` and `space.search_space`.
        RunFailed: a run failed; its log is named.
        Stopped: Ctrl-C; finished runs are kept.
    """
    compat.apply()
    check_jobs(jobs)
    out, cfg_options = Path(out), dict(cfg_options or {})
    refuse_foreign(out, {RECIPE, CSV, REPORT, SEARCH}, 'search')
    seeds = whole_numbers('seeds', list(seeds), 0)
    if len(seeds) < 2:
        raise RecipeError(f'seeds = {list(seeds)} is one: what it prefers may be chance.', 'Use two or more: --seeds 0,1,2.')
    path = find_recipe(str(recipe), 'train')
    cfg = load_recipe(path, fill(cfg_options, {'seed': seeds[0]}))
    own = own_options(cfg)
    if 'stages' in own:
        raise RecipeError(f'{str(recipe)!r} has stages, and a search trains one recipe.', 'Tune the recipe of the stage that mixes images.')
    space = search_space(own.get('mix') or {}, stores, selects, alphas, ratios, seeds)
    command = command_of(recipe, out, stores, selects, alphas, ratios, seeds, cfg_options, jobs)
    comparison = _comparison(path, cfg_options, seeds, space)
    number = len(comparison.searches[0].candidates())
    for sentence in space.notes:
        progress(sentence)
    progress(f'{number} candidates with {len(seeds)} seeds each: {number * len(seeds)} trainings, less those that are done.')
    results = run_comparison(comparison, out / SEARCH, plugin_manager, command, jobs, setup, progress)
    return _write(out, recipe, cfg, own, space, results, plugin_manager)


def _comparison(recipe: str, cfg_options: Mapping[str, Any], seeds: tuple[int, ...], space: Space) -> Comparison:
    arms = tuple(Arm(name, {}, {'mix': dict(space.mix)}) for name in (DEFAULT, TUNED))
    notes = (
        f'{DEFAULT} is the recipe as it is, {TUNED} the candidate with the best mean over seeds on validation; where several are equal, the default.',
        *space.notes,
    )
    return Comparison(Path(recipe), f'How {Path(recipe).stem} should mix images in', notes, recipe, seeds, {}, cfg_options, arms, (Search(TUNED, space.grids),))


def _write(out: Path, recipe: str | Path, cfg: Any, own: Mapping[str, Any], space: Space, results: dict[str, Any], manager: pluggy.PluginManager) -> Tuned:
    """Write the table, the page and, last, the recipe."""
    (search,) = results['search']
    best, first = search['candidates'][search['chosen']], search['candidates'][0]
    validation = paired(best['val']['points'], first['val']['points'])
    sentences = (*_sentences(space, results, best, validation), *space.notes)
    results = {**results, 'notes': [*sentences, results['notes'][0]]}
    write_whole(out / CSV, candidate_rows(results, space))
    write_report([results], out / REPORT, manager, overview=overview(results, space))
    about = [f'Made of {recipe} by: {results["command"]}', *sentences]
    write_whole(out / RECIPE, recipe_with(cfg, own, best['options'], space, results['seeds'][0], about))
    return Tuned(out / RECIPE, best['options'], validation, sentences, results)


def _sentences(space: Space, results: Mapping[str, Any], best: Mapping[str, Any], validation: Mapping[str, Any]) -> list[str]:
    """The outcome: on validation, and on test."""
    default, tuned = results['arms']
    candidates = results['search'][0]['candidates']
    what = ', '.join(f'{key} = {value!r}' for key, value in best['options'].items())
    if results['search'][0]['chosen'] == 0:
        said = [f'The default is the best of {len(candidates)} candidates on validation ({plus_minus(best["val"])} %): {what}.']
    else:
        against = f'{signed(validation["mean"])} ± {validation["se"]:.1f} points against the default'
        said = [f'The best of {len(candidates)} candidates on validation ({plus_minus(best["val"])} %, {against}, which flatters a winner): {what}.']
        test = tuned['difference']
        said.append(
            f'On test, read once: {plus_minus(tuned["test"])} % against {plus_minus(default["test"])} % of the default, '
            f'{signed(test["mean"])} ± {test["se"]:.1f} points ({test["n"]} seeds).'
        )
    if best['options'] == space.without:
        said.append('No candidate with synthetic images was better on validation than training without them.')
    return said


def command_of(
    recipe: str | Path,
    out: Path,
    stores: Sequence[str],
    selects: Sequence[str],
    alphas: Sequence[float] | None,
    ratios: Sequence[tuple[int, int]] | None,
    seeds: Sequence[int],
    cfg_options: Mapping[str, Any],
    jobs: int,
) -> str:
    """The command line that makes a search again."""
    words = ['synthaug', 'tune', str(recipe), '--out', str(out), '--seeds', ','.join(map(str, seeds)), '--jobs', str(jobs)]
    for option, values in (('--mix', stores), ('--select', selects)):
        for value in values:
            words += [option, value]
    if alphas is not None:
        words += ['--alpha', ','.join(f'{alpha:g}' for alpha in alphas)]
    if ratios is not None:
        words += ['--ratio', ','.join(f'{r}:{s}' for r, s in ratios)]
    if cfg_options:
        words += ['--cfg-options', *(f'{key}={value}' for key, value in cfg_options.items())]
    return shlex.join(words)
