"""Comparisons at equal compute: every arm with every seed, chosen on validation, tested once."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from synthaug_plugins import compat
from synthaug_plugins.columns import aligned
from synthaug_plugins.errors import RecipeError, Stopped
from synthaug_plugins.evaluation.ablation.drawn import Drawn
from synthaug_plugins.evaluation.cache import RunCache, Side
from synthaug_plugins.evaluation.fingerprint import plain, versions
from synthaug_plugins.evaluation.leaks import data_of, refuse_leaks
from synthaug_plugins.evaluation.pool import Pool
from synthaug_plugins.evaluation.protocol import Arm, Comparison, read_comparison
from synthaug_plugins.evaluation.recipe_text import fill
from synthaug_plugins.evaluation.runs import TRAINED, by_epoch, planned_steps, settle
from synthaug_plugins.evaluation.statistics import class_gains, paired, plus_minus, signed, spread
from synthaug_plugins.own_folder import alone, refuse_foreign
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.store.identity import Identity, identity
from synthaug_plugins.store.store import Store
from synthaug_plugins.training.backbone_weights import check_start
from synthaug_plugins.training.run import configure, load_recipe

FORMAT_VERSION = 1
_Result = dict[str, Any]

OWN_FILES = frozenset({'.lock', 'runs', 'results.json', 'report.html'})
"""What a comparison's folder may hold."""


def compare(
    recipe: str | Path,
    out: str | Path,
    plugin_manager: pluggy.PluginManager,
    jobs: int = 1,
    values: Mapping[str, Any] | None = None,
    setup: Callable[[], object] | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a compare recipe and write `out/results.json`. Runs that are done are not done again: a killed comparison goes on.

    Candidates of a search are trained with every seed and compared by their mean best validation accuracy (the first of
    equals wins); test images are read only after that, once per arm and seed.

    Args:
        recipe: a compare recipe, see `protocol.KEYS`.
        out: folder for runs and results. A run's folder is `out/runs/<hash of its resolved config>`.
        plugin_manager: its plugins edit every run's trainer recipe (`synthaug_configure`).
        jobs: runs at a time, each in a process of its own. On a machine with GPUs all of them share the default one (the first
            of CUDA_VISIBLE_DEVICES): its memory must hold them all, and `images_per_second` is then a share of its speed.
        values: replaces some of the recipe's `values`.
        setup: called once in every such process, so that nouns of plugins are known there (`plugins.register_nouns`); a
            function at the top of a module.
        progress: takes one line per finished run.

    Returns: the results, plain JSON; accuracies in percent:
        `arms`: per arm name, options, steps, images, seconds, images_per_second, `val` and `test` (mean, sd, n, points),
            `difference` to the baseline (mean, se, n, points; None for the baseline), `recall` (per class, spread),
            `class_gains` (per class, paired), `curves` (per seed), `stores` (per seed: folder, selection and identity), `runs`.
        `search`: per searched arm, its candidates with `val`, and the number `chosen`.
        `classes`, `support` (test images per class), `seeds`, `title`, `notes`, `command`, `versions`.

    Raises:
        RecipeError: a wrong recipe; training, validation and test images that overlap; arms that take unequal optimiser steps
            or are held to different images.
        RunFailed: a run failed; its log is named.
        Stopped: Ctrl-C; finished runs are kept.
    """
    compat.apply()
    comparison = read_comparison(recipe, values)
    if comparison.shots:
        raise RecipeError(f'{str(recipe)!r} draws shots: it is more than one comparison.', 'Call evaluation.ablation.run.ablate, as `synthaug compare` does.')
    return run(comparison, out, plugin_manager, command_of(comparison, out, jobs), jobs, setup, progress)


def run(
    comparison: Comparison,
    out: str | Path,
    plugin_manager: pluggy.PluginManager,
    command: str,
    jobs: int = 1,
    setup: Callable[[], object] | None = None,
    progress: Callable[[str], None] = print,
    draws: Mapping[int, Drawn] | None = None,
) -> dict[str, Any]:
    """Run a comparison that was read, see `compare`.

    Args:
        command: that makes it again, for the report.
        draws: by seed, for a recipe that draws shots.
    """
    check_jobs(jobs)
    out = Path(out)
    refuse_foreign(out, OWN_FILES, 'comparison')
    fixed, searches = check_arms(comparison, plugin_manager, draws)
    sides = [*fixed.values(), *(side for candidates in searches.values() for side in candidates)]
    steps = _check_equal_steps(sides)
    with alone(out, 'comparison'), Pool(jobs, setup) as pool:
        runs = RunCache(out, pool, progress)
        try:
            trained = dict(zip([s.label for s in sides], runs.train(sides, steps), strict=True))
            search, final = _choose(searches, trained)
            ordered = [{**fixed, **final}[arm.name] for arm in comparison.arms]
            tested = runs.test(ordered)
        except KeyboardInterrupt:
            done = len(list(out.glob(f'runs/*/{TRAINED}')))
            raise Stopped(f'Stopped: {done} trained runs are in {out}.', 'The same command goes on from there.') from None
    known: dict[str, Identity] = {}
    arms = [_arm_result(s, trained[s.label], t, tested[0], runs, draws, known) for s, t in zip(ordered, tested, strict=True)]
    arms[0]['difference'] = arms[0]['class_gains'] = None
    results = {
        'format_version': FORMAT_VERSION,
        'title': comparison.title,
        'notes': list(comparison.notes),
        'seeds': list(comparison.seeds),
        'classes': tested[0][0]['classes'],
        'support': tested[0][0]['support'],
        'arms': arms,
        'search': search,
        'command': command,
        'versions': {'python': platform.python_version(), **versions()},
    }
    write_whole(out / 'results.json', (json.dumps(results, indent=1, ensure_ascii=False) + '\n').encode())
    return results


def check_jobs(jobs: int) -> None:
    """Refuse (RecipeError) fewer than one process."""
    if jobs < 1:
        raise RecipeError(f'jobs = {jobs} is below 1.', 'Use at least one process.')


def check_arms(
    comparison: Comparison, plugin_manager: pluggy.PluginManager, draws: Mapping[int, Drawn] | None = None
) -> tuple[dict[str, Side], dict[str, list[Side]]]:
    """The settled recipes of every arm, and of every candidate of searched arms, by name.

    Raises:
        RecipeError: an option that no plugin takes, images that are shared, arms that are held to different images, or that start from what is
            not there or, with draws, does not fit.
    """
    by_name = {arm.name: arm for arm in comparison.arms}
    listed: dict[str, frozenset[str] | None] = {}
    searches = {s.arm: [_side(comparison, by_name[s.arm], plugin_manager, listed, draws, c) for c in s.candidates()] for s in comparison.searches}
    fixed = {arm.name: _side(comparison, arm, plugin_manager, listed, draws) for arm in comparison.arms if arm.name not in searches}
    sides = [*fixed.values(), *(side for candidates in searches.values() for side in candidates)]
    _check_same_images(sides)
    if not any(by_epoch(cfg) for side in sides for cfg in side.configs.values()):  # else counting needs the images
        _check_equal_steps(sides)
    starts = {plain([cfg.get(key) for key in ('model', 'load_from', 'default_scope')]): cfg for side in sides for cfg in side.configs.values()}
    for cfg in starts.values():  # seeds and arms that start alike are checked once
        check_start(cfg, whole=draws is not None)
    return fixed, searches


def _choose(searches: Mapping[str, Sequence[Side]], trained: Mapping[str, Sequence[_Result]]) -> tuple[list[_Result], dict[str, Side]]:
    """The table of each search, and the candidate with the best mean validation accuracy by arm; the first of equals."""
    tables, final = [], {}
    for name, candidates in searches.items():
        rows = [{'options': dict(c.options), 'val': spread([r['val'] for r in trained[c.label]])} for c in candidates]
        chosen = max(range(len(rows)), key=lambda i: (rows[i]['val']['mean'], -i))
        tables.append({'arm': name, 'candidates': rows, 'chosen': chosen})
        final[name] = candidates[chosen]
    return tables, final


def format_table(results: Mapping[str, Any]) -> str:
    """The results as a small text table: test accuracy, difference to the baseline and every seed, per arm."""
    rows = [('arm', 'test top-1 %', 'difference', 'every seed')]
    for arm in results['arms']:
        d = arm['difference']
        rows.append((arm['name'], plus_minus(arm['test']), signed(d['mean']) if d else 'baseline', '  '.join(f'{p:.1f}' for p in arm['test']['points'])))
    return aligned(rows, words=3)


def _side(
    comparison: Comparison,
    arm: Arm,
    manager: pluggy.PluginManager,
    listed: dict[str, frozenset[str] | None],
    draws: Mapping[int, Drawn] | None,
    options: Mapping[str, Any] | None = None,
) -> Side:
    """The settled config of every seed."""
    options = options or {}
    arm = arm.with_options(options)
    configs = {}
    for seed in comparison.seeds:
        named = fill({'base': comparison.cfg_options, 'arm': arm.cfg_options, 'synthaug': arm.synthaug}, _names(draws, seed))
        cfg = load_recipe(comparison.train, {**named['base'], **named['arm']})
        if draws:
            draws[seed].set_folders(cfg)
        refuse_leaks(cfg, listed)
        configs[seed] = settle(configure(cfg, manager, named['synthaug']), seed)
    return Side(arm, options, configs)


def _names(draws: Mapping[int, Drawn] | None, seed: int) -> Mapping[str, Any]:
    """What stands in braces for a seed."""
    return draws[seed].names if draws else {'seed': seed}


def _check_same_images(sides: Sequence[Side]) -> None:
    """Refuse arms that are chosen or tested on different images."""
    for side in sides[1:]:
        for seed, cfg in side.configs.items():
            for loader in ('val_dataloader', 'test_dataloader'):
                if data_of(cfg[loader]) != data_of(sides[0].configs[seed][loader]):
                    raise RecipeError(
                        f'The arms {sides[0].label} and {side.label} have different images in {loader} (seed {seed}).',
                        'All arms are held to the same images: set them under the cfg_options of the whole comparison.',
                    )


def _check_equal_steps(sides: Sequence[Side]) -> int:
    """The number of optimiser steps that every run takes; refuse unequal ones, with the numbers."""
    steps = {f'{side.label}, seed {seed}': planned_steps(cfg) for side in sides for seed, cfg in side.configs.items()}
    if len(set(steps.values())) > 1:
        first = {n: label for label, n in reversed(steps.items())}
        numbers = '; '.join(f'{n} ({label})' for n, label in sorted(first.items()))
        raise RecipeError(
            f'The runs do not take equal optimiser steps: {numbers}.',
            'Count in iterations (train_cfg = dict(by_epoch=False, max_iters=...)) or set max_epochs per arm so that the numbers agree.',
        )
    return next(iter(steps.values()))


def _arm_result(
    side: Side,
    trained: Sequence[_Result],
    tested: Sequence[_Result],
    baseline: Sequence[_Result],
    runs: RunCache,
    draws: Mapping[int, Drawn] | None,
    known: dict[str, Identity],
) -> _Result:
    top1, recalls = [t['top1'] for t in tested], [t['recall'] for t in tested]
    return {
        'name': side.arm.name,
        'options': dict(side.options),
        'steps': trained[0]['steps'],
        'images': spread([t['images'] for t in trained])['mean'],
        'seconds': spread([t['seconds'] for t in trained]),
        'images_per_second': spread([t['images_per_second'] for t in trained]),
        'val': spread([t['val'] for t in trained]),
        'test': spread(top1),
        'difference': paired(top1, [t['top1'] for t in baseline]),
        'recall': [spread(r) for r in zip(*recalls, strict=True)],
        'class_gains': class_gains(recalls, [t['recall'] for t in baseline]),
        'curves': [t['curve'] for t in trained],
        'stores': [_stores(fill(side.arm.synthaug, _names(draws, seed)), known) for seed in side.configs],
        'runs': [str(runs.out / 'runs' / runs.key(side, seed)) for seed in side.configs],
    }


def _stores(synthaug: Mapping[str, Any], known: dict[str, Identity]) -> list[dict[str, Any]]:
    """Folder, selection and identity of every store that an arm's mix reads. known: identities by folder, each found once."""
    mix = synthaug.get('mix') or {}
    stores = mix.get('stores') or ([{'store': mix['store'], 'select': mix.get('select')}] if mix.get('store') else [])
    for folder in (str(s['store']) for s in stores):
        if folder not in known:
            known[folder] = identity(Store.open(folder))
    return [{'store': str(s['store']), 'select': s.get('select'), **known[str(s['store'])]._asdict()} for s in stores]


def command_of(comparison: Comparison, out: str | Path, jobs: int) -> str:
    """The command line that runs a comparison."""
    words = ['synthaug', 'compare', str(comparison.path), *(['--data', comparison.data] if comparison.data else []), '--out', str(out), '--jobs', str(jobs)]
    for name, value in comparison.values.items():
        words += ['--set', f'{name}={value}']
    return shlex.join(words)
