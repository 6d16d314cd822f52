"""What a search leaves behind: a table of its candidates, curves over the share of synthetic images, a recipe with the winner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.csv_text import csv_bytes, rounded
from synthaug_plugins.evaluation.panels import Line, Panel, places
from synthaug_plugins.evaluation.picture import STYLES
from synthaug_plugins.evaluation.recipe_text import fill
from synthaug_plugins.evaluation.report import Overview
from synthaug_plugins.evaluation.statistics import options_text, paired
from synthaug_plugins.evaluation.tune.space import ALPHA, Space
from synthaug_plugins.training.run import KEY, explain

if TYPE_CHECKING:
    from mmengine.config import Config


def candidate_rows(results: Mapping[str, Any], space: Space) -> bytes:
    """The table of all candidates as CSV, best first: options, accuracy on validation (percent) and difference to the default (points), every seed.

    Args:
        results: of the comparison.
        space: what was tried.
    """
    (search,) = results['search']
    candidates, seeds = search['candidates'], results['seeds']
    default = candidates[0]['val']['points']
    rows: list[Sequence[Any]] = [[*space.default, 'what', 'chosen', 'val', 'sd', 'n', 'difference', 'se', *(f'val_seed_{seed}' for seed in seeds)]]
    for i in sorted(range(len(candidates)), key=lambda i: (-candidates[i]['val']['mean'], i)):
        options, val = candidates[i]['options'], candidates[i]['val']
        against = paired(val['points'], default)
        what = 'default' if i == 0 else 'without synthetic images' if options == space.without else ''
        figures = [rounded(val['mean']), rounded(val['sd']), val['n'], rounded(against['mean']), rounded(against['se'])]
        rows.append([*options.values(), what, 'yes' if i == search['chosen'] else '', *figures, *map(rounded, val['points'])])
    return csv_bytes(rows)


def overview(results: Mapping[str, Any], space: Space) -> Overview:
    """Validation accuracy over alpha, a line for each other setting, for the report; nothing where fewer than two alphas above 0 were tried.

    Args:
        results, space: as for `candidate_rows`.
    """
    candidates = results['search'][0]['candidates']
    lines: dict[str, dict[float, Mapping[str, Any]]] = {}
    level = None
    for candidate in candidates:
        alpha, rest = candidate['options'].get(ALPHA), {key: value for key, value in candidate['options'].items() if key != ALPHA}
        if candidate['options'] == space.without:
            level = candidate['val']
        elif isinstance(alpha, int | float) and alpha > 0:
            lines.setdefault(options_text(rest) or 'all images', {})[float(alpha)] = candidate['val']
    alphas = sorted({alpha for points in lines.values() for alpha in points})
    if len(alphas) < 2:
        return Overview()
    at = dict(zip(alphas, places(alphas)[0], strict=True))
    best = sorted(lines, key=lambda name: -max(val['mean'] for val in lines[name].values()))[: len(STYLES)]
    drawn = [Line(name, [(at[alpha], lines[name][alpha]) for alpha in sorted(lines[name])]) for name in lines if name in best]
    if level is not None:
        drawn.append(Line('without synthetic images', level=level))
    panel = Panel('Validation', 'alpha, the share of synthetic images', [(place, f'{alpha:g}') for alpha, place in at.items()], True, drawn)
    left_out = '' if len(best) == len(lines) else f' The {len(best)} settings with the highest best point, of {len(lines)}.'
    return Overview(panels=[panel], about_panels=f'Accuracy on validation, means over {len(results["seeds"])} seeds, bars: one standard deviation.{left_out}')


def recipe_with(cfg: Config, own: Mapping[str, Any], options: Mapping[str, Any], space: Space, seed: int, about: Sequence[str]) -> bytes:
    """The text of a trainer recipe with a candidate's options, complete: it inherits from no file.

    Args:
        cfg: the recipe, as read, with the changes of the command line.
        own: its `synthaug` dict.
        options: of the candidate, by dotted key.
        space: what was tried.
        seed: stands for `{seed}` in the options.
        about: sentences for its head.

    Raises:
        RecipeError: the recipe cannot be written as text.
    """
    mix = fill({**space.mix, **{key.removeprefix('mix.'): value for key, value in options.items()}}, {'seed': seed})
    cfg = copy.deepcopy(cfg)
    cfg[KEY] = {**own, 'mix': {key: value for key, value in mix.items() if value is not None}}
    lines = (''.join(c if c.isprintable() else ' ' for c in sentence) for sentence in about)
    try:
        text = ''.join(f'# {line}\n' for line in lines) + '\n' + explain(cfg)
        compile(text, '<recipe>', 'exec')
    except Exception as error:  # MMEngine lays the text out and parses it for that
        raise RecipeError(f'The recipe cannot be written as text: {type(error).__name__}: {error}.', 'Keep functions and objects out of it.') from error
    return text.encode()
