"""A comparison that starts from a data folder, for several numbers of shots: one call from the images to the table and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pluggy

from synthaug_plugins import compat
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.ablation.curves import CURVES_CSV, OF_LARGEST, PER_CLASS, PICTURE, about_curves, write_curves
from synthaug_plugins.evaluation.ablation.drawn import Drawn, copy_draw, shots_label
from synthaug_plugins.evaluation.ablation.making import RECORD, Making
from synthaug_plugins.evaluation.ablation.table import ABOUT, CLASSES_CSV, CSV, MARKDOWN, class_tables, tail_said, write_tables
from synthaug_plugins.evaluation.compare import check_arms, check_jobs, command_of
from synthaug_plugins.evaluation.compare import run as run_comparison
from synthaug_plugins.evaluation.parts import Parts
from synthaug_plugins.evaluation.protocol import Comparison, read_comparison
from synthaug_plugins.evaluation.recipe_text import fill
from synthaug_plugins.evaluation.report import Overview, write_report
from synthaug_plugins.own_folder import alone, refuse_foreign

REPORT = 'report.html'
_OWN_FILES = frozenset({'.lock', 'draws', 'made', RECORD, CSV, CLASSES_CSV, MARKDOWN, CURVES_CSV, PICTURE, REPORT})


def ablate(
    recipe: str | Path | Comparison,
    out: str | Path,
    plugin_manager: pluggy.PluginManager,
    data: str | None = None,
    jobs: int = 1,
    values: Mapping[str, Any] | None = None,
    device: str = 'auto',
    setup: Callable[[], object] | None = None,
    progress: Callable[[str], None] = print,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """Run a compare recipe that draws shots: for each number of shots and each seed draw, make what the arms need, train and test all arms.

    What is finished is not done again: a killed call goes on. Generators and learning see copies of the shots in `out/draws` and nothing else.
    Everything that can be known to be wrong is refused before the first learning begins. `out` receives draws/, made/<name>/ (words, stores, backbones...),
    <k>-shot/ (a comparison each, see `compare`; <k>-shot-imbalance-<ratio>/ of a long tail), and after each of them table.csv, table.md, classes.csv (of a long
    tail), curves.csv, curves.png and report.html anew.

    Args:
        recipe: a compare recipe with `shots`, see `protocol.KEYS`, or what `read_comparison` made of it.
        out: new, or the folder of an earlier call. More shots or seeds may be asked for; a recipe of `made` that changed is refused.
        plugin_manager, jobs, values, setup, progress: as for `compare`.
        data: replaces the recipe's `data`: a folder with train/, test/ and perhaps val/. Without val/, min(shots, 4) images per class of train/ that are
            no shots are validated on.
        device: where things are made; training takes the default one.
        quiet: no progress bars of learning and generation on standard error.

    Returns: the results of the comparison at each number of shots, as `compare` returns them.

    Raises:
        RecipeError, DataError, ModelError, StoreError: what cannot work.
        QuotaShortfall: a store came out short.
        RunFailed: a run failed; its log is named.
        Stopped: Ctrl-C; what is finished is kept.
    """
    compat.apply()
    check_jobs(jobs)
    comparison = recipe if isinstance(recipe, Comparison) else read_comparison(recipe, values, data)
    if not comparison.shots or comparison.data is None:
        raise RecipeError(f'{str(comparison.path)!r} draws no shots.', 'Add shots = [1, 4, 16].')
    out = Path(out)
    refuse_foreign(out, _OWN_FILES | {p.name for p in out.glob('*-shot*')}, 'comparison')
    parts = Parts.of(comparison.data, out)
    imbalance = comparison.imbalance
    chosen = parts.draws(comparison.shots, comparison.seeds, imbalance=imbalance)
    making = Making(comparison.made, parts.train.classes, out, device, plugin_manager, quiet, progress)
    making.check()
    command = command_of(comparison, out, jobs)
    results: list[dict[str, Any]] = []
    with alone(out, 'comparison'):
        drawn = {key: copy_draw(parts, shots, *key, out / 'draws', imbalance) for key, shots in chosen.items()}
        with making.stand_ins(drawn[min(comparison.shots), comparison.seeds[0]]) as places:
            making.refuse_seen(list(drawn.values()), places)
            for k in comparison.shots:
                check_arms(comparison, plugin_manager, {seed: making.with_names(drawn[k, seed], places) for seed in comparison.seeds})
        for number, k in enumerate(comparison.shots, 1):
            draws: dict[int, Drawn] = {}
            for seed in comparison.seeds:
                making.make(drawn[k, seed])
                draws[seed] = making.with_names(drawn[k, seed])
            at = _at(comparison, k, parts.train.classes)
            results.append(run_comparison(at, out / shots_label(k, imbalance), plugin_manager, command, jobs, setup, progress, draws))
            so_far = (results, comparison.shots[:number], comparison.reference)
            table = write_tables(out, *so_far, imbalance)
            title = _with_tail(fill(comparison.title, {'shots': _listed(comparison.shots)}), imbalance)
            axis = PER_CLASS if imbalance is None else OF_LARGEST
            drawn_curves = write_curves(out, comparison.curves, *so_far, title, progress, axis)
            overview = Overview(table, ABOUT, drawn_curves, about_curves(len(comparison.seeds)), class_tables(*so_far, imbalance))
            write_report(results, out / REPORT, plugin_manager, title, overview=overview)
    return results


def _at(comparison: Comparison, k: int, classes: Sequence[str]) -> Comparison:
    """The comparison at one number of shots; its title says which, and of a long tail its notes how many images each class has."""
    title = fill(comparison.title, {'shots': k})
    if title == comparison.title and len(comparison.shots) > 1:
        title = f'{title}, {k} shot{"" if k == 1 else "s"}'
    notes = tuple(fill(comparison.notes, {'shots': _listed(comparison.shots)}))
    if comparison.imbalance is not None:
        notes = (*notes, tail_said(classes, k, comparison.imbalance))
    return replace(comparison, title=_with_tail(title, comparison.imbalance), notes=notes)


def _with_tail(title: str, imbalance: float | None) -> str:
    return title if imbalance is None else f'{title} (imbalance {imbalance:g})'


def _listed(shots: tuple[int, ...]) -> str:
    return ', '.join(map(str, shots))
