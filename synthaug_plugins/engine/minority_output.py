"""What a run of `synthaug learn minority` writes for a reader: how good the classifier is at each noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np

from synthaug_plugins.engine.learn_output import new_figure, png_of, write_csv
from synthaug_plugins.learning.minority import LevelAccuracy
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.store.sheet import BLUE, GREEN, GREY, INK

VALIDATION = 'validation'


def by_chance(levels: np.ndarray) -> dict[str, float]:
    """What the best answer that is the same for every image reaches: share of right levels, share within one, mean distance in levels.

    Args:
        levels: (N,) int64 of the images that are validated on.
    """
    off = np.abs(levels[:, None] - np.arange(int(levels.max()) + 1))
    return {'accuracy': float((off == 0).mean(0).max()), 'within_one': float((off <= 1).mean(0).max()), 'rank_error': float(off.mean(0).min())}


def write_validation(folder: Path, found: Sequence[LevelAccuracy], chance: Mapping[str, float], title: str) -> None:
    """Write validation.csv and validation.png: accuracy, accuracy within one level, and mean distance in levels over the noise level."""
    rows = [[f'{value:.6g}' for value in astuple(row)] for row in found]
    write_csv(folder / f'{VALIDATION}.csv', [[f.name for f in fields(LevelAccuracy)], *rows])
    write_whole(folder / f'{VALIDATION}.png', _plot(found, chance, title))


def _plot(found: Sequence[LevelAccuracy], chance: Mapping[str, float], title: str) -> bytes:
    from matplotlib.ticker import NullLocator

    sigma = [row.sigma for row in found]
    figure = new_figure(9, 3.8)
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.14, top=0.89, wspace=0.12)
    shares, ranks = figure.subplots(1, 2)
    for axes, name, said, colour in (
        (shares, 'accuracy', 'own level', INK),
        (shares, 'within_one', 'own level or beside it', BLUE),
        (ranks, 'rank_error', 'mean distance from the own level, in levels', GREEN),
    ):
        axes.plot(sigma, [getattr(row, name) for row in found], color=colour, marker='o', markersize=3, label=said)
        axes.axhline(chance[name], color=colour, linewidth=0.8, linestyle='--')
        axes.set_xscale('log')
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.set_xlabel('noise level sigma (pixels in -1 to 1)')
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    shares.set_ylim(0, 1)
    shares.set_ylabel('share of validation images')
    ranks.text(sigma[-1], 0, 'dashed: the best answer without looking ', color=GREY, fontsize=8, va='bottom', ha='right')
    figure.suptitle(title, fontsize=10, x=0.01, ha='left')
    return png_of(figure)
