"""The command that looks for copies."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from synthaug_plugins.cli.app import Device, StoreArg, Where, app


@app.command(rich_help_panel='Look and hand over')
def audit(
    folder: StoreArg,
    train: Annotated[
        Path, typer.Option(metavar='FOLDER', help='The real training images, one folder per class: copies of them are memorised.', show_default=False)
    ],
    test: Annotated[
        Path, typer.Option(metavar='FOLDER', help='Held-out images, one folder per class: copies of them contaminate every figure.', show_default=False)
    ],
    features: Annotated[
        str,
        typer.Option(help='What is compared beside a perceptual hash: thumbnails, pixels, clip:NAME, embedded:digits_clip, timm:NAME or timm:NAME=WEIGHTS.'),
    ] = 'thumbnails',
    out: Annotated[Path | None, typer.Option(help='Folder for pairs.csv, audit.json and report.html.')] = None,
    drop: Annotated[
        str | None, typer.Option(metavar='NAME', help='Add the column NAME_kept to select what is no copy by, and NAME_reason. Nothing is deleted.')
    ] = None,
    where: Where = None,
    false_alarms: Annotated[
        float, typer.Option(metavar='SHARE', help='How many new images may be called copies by chance, in each of the three comparisons.')
    ] = 0.005,
    device: Device = 'auto',
) -> None:
    """Find copies, flipped, resized and encoded anew too: of training images, of held-out images, within the store. Adds score columns.

    Ends with status 5 where images look like copies of held-out ones and chance does not explain it. A split that leaks, held-out images among the training
    ones, is no fault of the store: a note says it first, and the pairs stand beside the others.

    synthaug audit stores/mine --train data/train --test data/test --out runs/audit --drop clean

    synthaug audit stores/mine --train data/train --test data/test --where clean_kept
    """
    from synthaug_plugins.columns import aligned
    from synthaug_plugins.errors import ContaminationFound
    from synthaug_plugins.evaluation.audit.comparison import TEST
    from synthaug_plugins.evaluation.audit.writing import REPORT, about, audit_store, table

    words = ['synthaug', 'audit', folder, '--train', str(train), '--test', str(test), '--features', features, '--false-alarms', f'{false_alarms:g}']
    for option, value in (('--out', out), ('--drop', drop), ('--where', where)):
        words += [] if value is None else [option, str(value)]
    options: dict[str, Any] = {'where': where, 'false_alarms': false_alarms, 'device': device}
    found = audit_store(folder, train, test, features, out=out, drop=drop, command=shlex.join(words), **options)
    for note in found.notes:
        print(f'note: {note}', file=sys.stderr)
    print(aligned(table(found)))
    print(about(found))
    print('columns: memorisation, train_p, test_p, store_p' + (f', {drop}_kept, {drop}_reason' if drop else ''))
    if drop and found.stays.any():
        print(f"{int(found.stays.sum())} of {len(found.stays)} images are no copies: train on them with select='{drop}_kept' in mix")
    if out is not None:
        print(out / REPORT)
    if found.contaminated:
        one = found.comparisons[TEST]
        what = f'{one.found} of {len(one.p)} images in {folder!r} look like copies of held-out images, where chance would find {one.expected:.1f} at most.'
        cure = f"Train on the others: select='{drop}_kept'." if drop else 'Look at them with --out FOLDER; select the others with --drop NAME.'
        raise ContaminationFound(what, cure)
