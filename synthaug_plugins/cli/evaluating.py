"""The command that measures images, without training on them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import Device, app


@app.command(rich_help_panel='Look and hand over')
def evaluate(
    stores: Annotated[list[str], typer.Argument(metavar='STORE...', help='Stores to measure.', show_default=False)],
    real: Annotated[Path, typer.Option(metavar='FOLDER', help='Real images to measure against: a folder with one folder per class.', show_default=False)],
    features: Annotated[
        str,
        typer.Option(
            help='The network whose features are compared: pixels, clip:NAME, embedded:digits_clip, timm:NAME or timm:NAME=WEIGHTS.', show_default=False
        ),
    ],
    by: Annotated[list[str] | None, typer.Option(metavar='COLUMN', help='Also measure at each value of this column; may be repeated.')] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Condition over index and score columns: one for all stores, or one for each in their order ('' for all images).")
    ] = None,
    k: Annotated[int, typer.Option(help='Neighbours of all metrics but LOF.')] = 5,
    lof_k: Annotated[int, typer.Option(help='Neighbours of LOF, the local outlier factor.')] = 20,
    held_out: Annotated[
        Path | None, typer.Option(metavar='FOLDER', help='Other real images, to measure as a store is: what new real images would have.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help='Folder for metrics.csv, metrics.json, report.html and curves.png.')] = None,
    device: Device = 'auto',
) -> None:
    """Measure how rare, true, complete and rightly labelled the images of stores are: AvgkNN, LOF, rarity, precision, recall, density, coverage, FID, KID.

    synthaug evaluate stores/plain stores/minority --real data/train --features embedded:digits_clip --by params.minority_level --out runs/rare
    """
    from synthaug_plugins.evaluation.evaluate import REPORT, check_out, write_evaluation
    from synthaug_plugins.evaluation.evaluate import evaluate as run
    from synthaug_plugins.evaluation.metrics.table import table_text

    if out is not None:
        check_out(out, real, *([held_out] if held_out else []))
    found = run(stores, real, features, by=by or (), where=where or (), k=k, lof_k=lof_k, held_out=held_out, device=device)
    print(table_text(found.rows))
    for name, selection in found.selections.items():
        if selection != 'all' and not name.endswith(selection):
            print(f'{name}: {selection}')
    for sentence in found.trends:
        print(sentence)
    print(found.about)
    for note in found.notes:
        print(f'note: {note}', file=sys.stderr)
    if out is not None:
        words = ['synthaug', 'evaluate', *stores, '--real', str(real), '--features', features]
        options = [*(('--by', text) for text in by or ()), *(('--where', text) for text in where or ())]
        options += [('--k', str(k)), ('--lof-k', str(lof_k)), *([('--held-out', str(held_out))] if held_out else []), ('--out', str(out))]
        words += [word for option in options for word in option]
        write_evaluation(found, out, shlex.join(words), lambda said: print(said, file=sys.stderr))
        print(out / REPORT)
