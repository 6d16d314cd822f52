"""Few-shot results as tables: every run, means over seeds, and what each class gained or lost. No tensors here.

All accuracies, recalls and differences are in percent or percentage points.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthaug_plugins.columns import aligned
from synthaug_plugins.errors import DataError, nearest
from synthaug_plugins.evaluation.csv_text import csv_bytes, rounded
from synthaug_plugins.evaluation.statistics import class_gains, gain_and_harm, paired, plus_minus, signed, spread
from synthaug_plugins.store.files import write_whole

ZERO_SHOT = 'zero_shot'
RESULTS, SUMMARY, PER_CLASS = 'results.csv', 'summary.csv', 'per_class.csv'
_HEAD = ('method', 'shots', 'seed', 'top1', 'val_top1', 'chosen')
_RECALL = 'recall '


@dataclass(frozen=True)
class Result:
    """One method on one draw of the shots, read once on the test images.

    Args:
        method: its name; 'zero_shot' is CLIP as it is.
        shots: real images per class; 0 for zero-shot and for a head that was tuned on synthetic images alone.
        seed: of the draw; zero-shot's says nothing.
        top1: percent of the test images.
        recalls: percent for each class, in label order.
        chosen: the options that validation chose.
        val_top1: percent of the validation images that chose them.
    """

    method: str
    shots: int
    seed: int
    top1: float
    recalls: tuple[float, ...]
    chosen: dict[str, float]
    val_top1: float


def check_results(results: Sequence[Result], classes: Sequence[str]) -> None:
    """Refuse results that no table can compare.

    Raises:
        DataError: none at all, a run twice, several of zero-shot or one with shots, shots below 0, other numbers of classes, values that are not percentages.
    """
    if not results:
        raise DataError('There are no results.', 'Run at least one method.')
    seen = set()
    for r in results:
        what = f'The result of {r.method!r} at {r.shots} shots, seed {r.seed},'
        key = (r.method, r.shots, None if r.method == ZERO_SHOT else r.seed)
        if key in seen:
            raise DataError(f'{what} is given twice.', 'Give each run once; zero-shot is one run, whatever the shots and seeds of the others.')
        seen.add(key)
        if r.shots < 0 or (r.method == ZERO_SHOT and r.shots):
            raise DataError(f'{what} has the wrong number of shots.', f'{ZERO_SHOT!r} has 0, like every method that sees no real image.')
        if len(r.recalls) != len(classes):
            raise DataError(f'{what} has the recalls of {len(r.recalls)} classes.', f'There are {len(classes)}.')
        if not all(0 <= value <= 100 for value in (r.top1, r.val_top1, *r.recalls)):
            raise DataError(f'{what} holds values that are no percentages.', 'Give top-1 and recalls from 0 to 100, not NaN.')


def cells(results: Sequence[Result]) -> dict[tuple[str, int], list[Result]]:
    """The results of each (method, shots), by seed; methods as they first appear, shots ascending."""
    methods = list(dict.fromkeys(r.method for r in results))
    found: dict[tuple[str, int], list[Result]] = {}
    for r in sorted(results, key=lambda r: (methods.index(r.method), r.shots, r.seed)):
        found.setdefault((r.method, r.shots), []).append(r)
    return found


def against(results: Sequence[Result], base: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Each (method, shots) but `base` itself against `base` on the same shots and seeds; zero-shot is the base of all shots and seeds.

    Returns: by (method, shots), 'top1' as `statistics.paired` returns it, 'classes' as `class_gains` does, and what `gain_and_harm` finds in
        them. Seeds that the base lacks are left out, and cells without a common seed: what is not paired is not compared.
    """
    base_of = {(r.shots, r.seed): r for r in results if r.method == base}
    alone = next((r for r in results if r.method == base), None) if base == ZERO_SHOT else None
    found = {}
    for (method, shots), runs in cells(results).items():
        pairs = [(r, b) for r in runs if (b := alone or base_of.get((shots, r.seed)))]
        if method in (base, ZERO_SHOT) or not pairs:
            continue
        mine, theirs = zip(*pairs, strict=True)
        gains = class_gains([r.recalls for r in mine], [b.recalls for b in theirs])
        found[method, shots] = {'top1': paired([r.top1 for r in mine], [b.top1 for b in theirs]), 'classes': gains, **gain_and_harm(gains)}
    return found


def write_tables(folder: Path, results: Sequence[Result], classes: Sequence[str], real: str | None = None) -> None:
    """Write results.csv (every run), summary.csv (method and shots) and per_class.csv (class, method, shots and base), each atomically.

    summary.csv holds mean and sample standard deviation over seeds, and against zero-shot and against `real` the paired difference of top-1, its
    standard error, and gain and harm (see `gain_and_harm`). per_class.csv holds the mean paired difference of each class's recall. An empty cell is
    a number that does not exist: the deviation of one seed, a base that did not run.

    Args:
        folder: made if absent; files in it are replaced.
        results: see `check_results`.
        classes: N names in label order.
        real: the method that tuned on the real shots alone, which synthetic images must beat; default: none.

    Raises:
        DataError: results that cannot be compared.
        StoreError: disk full, no permission.
    """
    check_results(results, classes)
    bases = _bases(results, real)
    runs: list[Sequence[Any]] = [[*_HEAD, *(_RECALL + name for name in classes)]]
    runs += [[r.method, r.shots, r.seed, r.top1, r.val_top1, json.dumps(r.chosen), *r.recalls] for r in results]
    write_whole(folder / RESULTS, csv_bytes(runs))

    compared = {base: against(results, base) for base in bases}
    columns = ('difference', 'se', 'gain', 'harm', 'helped', 'harmed')
    summary: list[Sequence[Any]] = [['method', 'shots', 'seeds', 'top1_mean', 'top1_sd', *(f'{c}_{base}' for base in bases for c in columns)]]
    for cell, of_cell in cells(results).items():
        found = spread([r.top1 for r in of_cell])
        row = [*cell, found['n'], rounded(found['mean']), rounded(found['sd'])]
        for base in bases:
            d = compared[base].get(cell)
            row += [rounded(d['top1']['mean']), rounded(d['top1']['se']), *(rounded(d[c]) for c in columns[2:])] if d else [None] * len(columns)
        summary.append(row)
    write_whole(folder / SUMMARY, csv_bytes(summary))

    per_class: list[Sequence[Any]] = [['class', 'method', 'shots', 'against', 'seeds', 'difference', 'se']]
    for base in bases:
        for cell, d in compared[base].items():
            per_class += [[name, *cell, base, g['n'], rounded(g['mean']), rounded(g['se'])] for name, g in zip(classes, d['classes'], strict=True)]
    write_whole(folder / PER_CLASS, csv_bytes(per_class))


def table_text(results: Sequence[Result], classes: Sequence[str], real: str | None = None) -> str:
    """The table for a terminal: mean and standard deviation of top-1 for methods and shots; then gain and harm at the most shots.

    Args:
        results, classes, real: as in `write_tables`.

    Raises:
        DataError: results that cannot be compared.
    """
    check_results(results, classes)
    by_cell = cells(results)
    methods, shots = list(dict.fromkeys(method for method, _ in by_cell)), sorted({s for _, s in by_cell})
    rows = [['shots per class', *map(str, shots)]]
    for method in methods:
        found = [by_cell.get((method, s)) for s in shots]
        rows.append([method, *('' if runs is None else plus_minus(spread([r.top1 for r in runs])) for runs in found)])
    counts = sorted({len(runs) for (method, _), runs in by_cell.items() if method != ZERO_SHOT})
    seeds = f'{counts[0]}' if len(counts) == 1 else f'{counts[0]} to {counts[-1]}' if counts else 'no'
    lines = [f'Top-1 on the test images in percent, mean ± standard deviation of {seeds} seed{"" if seeds == "1" else "s"}', aligned(rows)]
    for base in _bases(results, real):
        compared = {cell: d for cell, d in against(results, base).items() if cell[1] == shots[-1]}
        if not compared:
            continue
        lines += ['', f'Against {base} at {shots[-1]} shots, in points: top-1, what classes gained and lost of the mean recall, and who lost most']
        block = [['', 'top-1', 'gain', 'harm', 'helped', 'harmed', 'most harmed']]
        for (method, _), d in compared.items():
            worst, name = min((g['mean'], name) for g, name in zip(d['classes'], classes, strict=True))
            most = f'{name} ({signed(worst)})' if d['harmed'] else 'none'
            block.append([method, signed(d['top1']['mean']), signed(d['gain']), signed(d['harm']), str(d['helped']), str(d['harmed']), most])
        lines.append(aligned(block, words=1))
    return '\n'.join(lines)


def _bases(results: Sequence[Result], real: str | None) -> list[str]:
    """The methods to compare with: zero-shot if it ran, and `real`."""
    ran = {r.method for r in results}
    if real is not None and real not in ran:
        raise DataError(f'No result is of {real!r}, the method to compare with.', nearest(real, ran))
    return [*([ZERO_SHOT] if ZERO_SHOT in ran else []), *([] if real is None else [real])]
