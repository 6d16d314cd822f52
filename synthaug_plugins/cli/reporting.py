"""The command that puts all that is known of a store on one page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import StoreArg, Where, app

_Folders = list[Path] | None


@app.command(rich_help_panel='Look and hand over')
def report(
    folder: StoreArg,
    out: Annotated[Path, typer.Option(metavar='FILE', help='The page to write, such as report.html, or a folder for it.', show_default=False)],
    evaluation: Annotated[_Folders, typer.Option(metavar='FOLDER', help='What `synthaug evaluate` wrote about this store; may be repeated.')] = None,
    audit: Annotated[_Folders, typer.Option(metavar='FOLDER', help='What `synthaug audit` wrote about this store; may be repeated.')] = None,
    comparison: Annotated[_Folders, typer.Option(metavar='FOLDER', help='What `synthaug compare` wrote, with arms on this store; may be repeated.')] = None,
    where: Where = None,
    worst: Annotated[
        list[str] | None,
        typer.Option(metavar='COLUMN', help='Show the images with its largest values; -COLUMN for the smallest; may be repeated.', show_default='known scores'),
    ] = None,
) -> None:
    """Write one page on a store: images, rejections, metrics, copies, worst images, gain and harm, cost, commands. Loads no model, makes no request.

    synthaug report stores/mine --out runs/report.html

    synthaug report stores/mine --evaluation runs/measured --audit runs/audit --comparison runs/comparison --out runs/report.html
    """
    from synthaug_plugins.evaluation.onepage.report import Given
    from synthaug_plugins.evaluation.onepage.report import report as run
    from synthaug_plugins.plugins import get_plugin_manager

    words = ['synthaug', 'report', folder]
    for option, values in (('--evaluation', evaluation), ('--audit', audit), ('--comparison', comparison), ('--worst', worst)):
        words += [word for value in values or () for word in (option, str(value))]
    words += [*(['--where', where] if where is not None else []), '--out', str(out)]
    given = Given(folder, evaluation or (), audit or (), comparison or (), where, worst or (), shlex.join(words))
    print(run(given, out, get_plugin_manager()))
