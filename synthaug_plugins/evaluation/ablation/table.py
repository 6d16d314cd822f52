"""All shots of a comparison in one table: each arm against the baseline and against the arm that others vary. No tensors here.

Accuracies are means of per-class accuracies (macro recall), in percent; differences are in points, taken draw by draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from synthaug_plugins.evaluation.csv_text import csv_bytes, rounded
from synthaug_plugins.evaluation.statistics import class_gains, gain_and_harm, paired, plus_minus, signed, spread
from synthaug_plugins.few_shot import long_tail_counts
from synthaug_plugins.store.files import write_whole

CSV, MARKDOWN, CLASSES_CSV = 'table.csv', 'table.md', 'classes.csv'
_CLASSES_SAID = 20
"""Of a long tail with more classes than these, a sentence names the ends."""
ALL = 'all'
"""In place of a number of shots: the mean over them, of each seed."""
ABOUT = (
    'Mean of per-class accuracies on the test images in percent, mean ± standard deviation over seeds; differences of the mean over shots in points, '
    'paired by seed, ± their standard error.'
)
_HEAD = ('arm', 'shots', 'seeds', 'mean_recall', 'sd', 'top1', 'top1_sd')
_AGAINST = ('difference', 'se', 'gain', 'harm', 'helped', 'harmed', 'most_harmed', 'by')


@dataclass(frozen=True)
class Cell:
    """One arm at one number of shots, or over all.

    Attributes:
        recalls: per seed, the recall of each class, percent.
        top1: per seed, percent.
    """

    recalls: Sequence[Sequence[float]]
    top1: Sequence[float]

    @property
    def points(self) -> list[float]:
        """Mean of the per-class accuracies, per seed."""
        return [fmean(r) for r in self.recalls]


def table_cells(results: Sequence[Mapping[str, Any]], shots: Sequence[int]) -> dict[tuple[str, int | str], Cell]:
    """Every arm at each of `shots`, and at `ALL`; `results` are the comparisons there."""
    cells: dict[tuple[str, int | str], Cell] = {}
    for k, result in zip(shots, results, strict=True):
        for arm in result['arms']:
            recalls = [list(of_seed) for of_seed in zip(*(r['points'] for r in arm['recall']), strict=True)]
            cells[arm['name'], k] = Cell(recalls, arm['test']['points'])
    for name in [arm['name'] for arm in results[0]['arms']]:
        of_arm = [cells[name, k] for k in shots]
        recalls = [[fmean(of_class) for of_class in zip(*of_seed, strict=True)] for of_seed in zip(*(c.recalls for c in of_arm), strict=True)]
        cells[name, ALL] = Cell(recalls, [fmean(t) for t in zip(*(c.top1 for c in of_arm), strict=True)])
    return cells


def _against(cell: Cell, base: Cell, classes: Sequence[str]) -> dict[str, Any]:
    """A cell against another of the same shots."""
    gains = class_gains(cell.recalls, base.recalls)
    worst, name = min((g['mean'], name) for g, name in zip(gains, classes, strict=True))
    d = paired(cell.points, base.points)
    return {'difference': d['mean'], 'se': d['se'], **gain_and_harm(gains), 'most_harmed': name, 'by': worst}


def write_tables(
    out: Path, results: Sequence[Mapping[str, Any]], shots: Sequence[int], reference: str | None, imbalance: float | None = None
) -> list[list[str]]:
    """Write `table.csv` (a row for each arm and number of shots), `table.md` (to read) and, of a long tail, `classes.csv` (a row for each class, too).

    Args:
        out: folder.
        results: of the comparison at each of `shots`, as `compare` returns them.
        reference: name of the arm that others vary, or None.
        imbalance: of a long tail, or None.

    Returns: the rows of the main table of table.md, its head first.
    """
    cells, classes = table_cells(results, shots), results[0]['classes']
    arms = [arm['name'] for arm in results[0]['arms']]
    bases = _bases(arms, reference)
    columns: list[int | str] = [*shots, ALL]
    rows: list[Sequence[Any]] = [[*_HEAD, *(f'{column}_vs_{base}' for base in bases for column in _AGAINST)]]
    for arm in arms:
        for k in columns:
            cell = cells[arm, k]
            mean, top1 = spread(cell.points), spread(cell.top1)
            row = [arm, k, mean['n'], *(rounded(x) for x in (mean['mean'], mean['sd'], top1['mean'], top1['sd']))]
            for base in bases:
                d = _against(cell, cells[base, k], classes)
                row += [None] * len(_AGAINST) if arm == base else [rounded(d[c]) if isinstance(d[c], float) else d[c] for c in _AGAINST]
            rows.append(row)
    write_whole(out / CSV, csv_bytes(rows))

    main = [['arm', *(f'{k} shot{"" if k == 1 else "s"}' for k in shots), 'mean over shots', *(f'against {base}' for base in bases)]]
    for arm in arms:
        differences = (_difference(cells[arm, ALL], cells[base, ALL], classes) if arm != base else '' for base in bases)
        main.append([arm, *(plus_minus(spread(cells[arm, k].points)) for k in columns), *differences])
    seeds = len(results[0]['seeds'])
    text = [f'{ABOUT} {seeds} seed{"" if seeds == 1 else "s"}.', '', *_table(main)]
    if imbalance is not None:
        text[1:1] = ['', ' '.join(tail_said(classes, k, imbalance) for k in shots)]
        write_whole(out / CLASSES_CSV, csv_bytes(_class_rows(cells, arms, bases, classes, shots, imbalance)))
    for about, of_classes in class_tables(results, shots, reference, imbalance):
        text += ['', about, '', *_table(of_classes)]
    write_whole(out / MARKDOWN, ('\n'.join(text) + '\n').encode())
    return main


def _bases(arms: Sequence[str], reference: str | None) -> list[str]:
    """The arms that others are compared with: the baseline, and the one that others vary."""
    return list(dict.fromkeys([arms[0], *([reference] if reference else [])]))


def class_tables(
    results: Sequence[Mapping[str, Any]], shots: Sequence[int], reference: str | None, imbalance: float | None = None
) -> list[tuple[str, list[list[str]]]]:
    """What became of the classes: gain and harm against the baseline and against `reference`; of a long tail also every class by itself.

    Args:
        results, shots, reference, imbalance: as for `write_tables`.

    Returns: tables, each with a sentence that says what it shows; their rows, head first.
    """
    cells, classes = table_cells(results, shots), results[0]['classes']
    arms = [arm['name'] for arm in results[0]['arms']]
    tables = []
    for base in _bases(arms, reference):
        rows = [['arm', 'gain', 'harm', 'helped', 'harmed', 'most harmed']]
        for arm in arms:
            if arm == base:
                continue
            d = _against(cells[arm, ALL], cells[base, ALL], classes)
            most = f'{d["most_harmed"]} ({signed(d["by"])})' if d['harmed'] else 'none'
            rows.append([arm, signed(d['gain']), signed(d['harm']), f'{d["helped"]} of {len(classes)}', f'{d["harmed"]} of {len(classes)}', most])
        tables.append((f'Classes, mean over shots and seeds, against {base}: points of the mean that classes gained and lost.', rows))
    if imbalance is not None:
        tables.append(_tail_table(cells, arms, _bases(arms, reference)[-1], classes, shots, imbalance))
    return tables


def tail_said(classes: Sequence[str], k: int, imbalance: float) -> str:
    """How many real images each class of a long tail has, in a sentence."""
    counts = [f'{name} {n}' for name, n in long_tail_counts(classes, k, imbalance).items()]
    said = counts if len(counts) <= _CLASSES_SAID else [*counts[:3], '...', *counts[-3:]]
    return f'Long tail, imbalance {imbalance:g}: {", ".join(said)} real training images.'


def _tail_table(
    cells: Mapping[tuple[str, int | str], Cell], arms: Sequence[str], base: str, classes: Sequence[str], shots: Sequence[int], imbalance: float
) -> tuple[str, list[list[str]]]:
    """Every class, from the largest to the smallest: its recall in each arm, and the difference to `base`."""
    counts = [long_tail_counts(classes, k, imbalance) for k in shots]
    gains = {arm: class_gains(cells[arm, ALL].recalls, cells[base, ALL].recalls) for arm in arms}
    rows = [['class', 'real images', *arms]]
    for c, name in enumerate(classes):
        row = [name, ', '.join(str(of[name]) for of in counts)]
        for arm in arms:
            recall = fmean(of_seed[c] for of_seed in cells[arm, ALL].recalls)
            row.append(f'{recall:.1f}' if arm == base else f'{recall:.1f} ({signed(gains[arm][c]["mean"])})')
        rows.append(row)
    return f'Recall of each class in percent, mean over shots and seeds; in brackets the difference to {base} in points.', rows


def _class_rows(
    cells: Mapping[tuple[str, int | str], Cell], arms: Sequence[str], bases: Sequence[str], classes: Sequence[str], shots: Sequence[int], imbalance: float
) -> list[Sequence[Any]]:
    """The rows of classes.csv, its head first."""
    rows: list[Sequence[Any]] = [
        ['arm', 'shots', 'imbalance', 'class', 'real_images', 'recall', 'sd', *(f'{c}_vs_{base}' for base in bases for c in ('difference', 'se'))]
    ]
    for arm in arms:
        for k in shots:
            counts, mine = long_tail_counts(classes, k, imbalance), cells[arm, k].recalls
            gains = {base: class_gains(mine, cells[base, k].recalls) for base in bases}
            for c, name in enumerate(classes):
                of_class = spread([of_seed[c] for of_seed in mine])
                row: list[Any] = [arm, k, imbalance, name, counts[name], rounded(of_class['mean']), rounded(of_class['sd'])]
                for base in bases:
                    row += [None, None] if arm == base else [rounded(gains[base][c]['mean']), rounded(gains[base][c]['se'])]
                rows.append(row)
    return rows


def _difference(cell: Cell, base: Cell, classes: Sequence[str]) -> str:
    d = _against(cell, base, classes)
    return signed(d['difference']) + ('' if d['se'] is None else f' ± {d["se"]:.1f}')


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns stand under each other."""
    safe = [[cell.replace('|', '\\|').replace('\n', ' ') for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    lines = ['| ' + ' | '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + ' |' for row in safe]
    return [lines[0], '|' + '|'.join('-' * (w + 2) for w in widths) + '|', *lines[1:]]
