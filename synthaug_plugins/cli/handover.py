"""Commands that hand a store over: in another library's layout, with a card, to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import StoreArg, Where, app, say

AllowEmpty = Annotated[bool, typer.Option(help='Let a class be left without images.')]


@app.command(rich_help_panel='Look and hand over')
def export(
    folder: StoreArg,
    out: Annotated[Path, typer.Option(help='Folder to write; new or empty.', show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            help='imagefolder: one folder per class, as torchvision, timm and MMPretrain read it; hf: Parquet shards with images, for Hugging Face datasets; '
            'fiftyone: a FiftyOneImageClassificationDataset.'
        ),
    ] = 'imagefolder',
    where: Where = None,
    allow_empty: AllowEmpty = False,
) -> None:
    """Write the images of a store in the layout of another library; hf and fiftyone take prompts, params and scores along.

    synthaug export stores/digits --to imagefolder --out digits_folder

    synthaug export stores/digits --to hf --out digits_hf --where "clip_p > 0.5"
    """
    from synthaug_plugins.handover.export import export as run
    from synthaug_plugins.handover.export import layout
    from synthaug_plugins.store.selection import select
    from synthaug_plugins.store.store import Store

    found = layout(to)
    store = Store.open(folder)
    selection = select(store, where, allow_empty=allow_empty, columns=found.columns)
    run(store, out, to, selection)
    print(f'{selection.table.num_rows} images in {out}')
    print(f'read it with: {found.reads.format(str(out))}')


Licence = Annotated[
    str | None,
    typer.Option(metavar='NAME', help="Of the images: an identifier of the hub such as cc-by-4.0, or any name. It is never taken from a model's."),
]
Figures_ = Annotated[
    list[Path] | None,
    typer.Option('--figures', metavar='FOLDER', help='What `synthaug evaluate` or `audit` wrote about this store with --out; may be repeated.'),
]


@app.command(rich_help_panel='Look and hand over')
def card(
    folder: StoreArg,
    out: Annotated[Path | None, typer.Option(metavar='FILE', help='The card to write, such as README.md.', show_default='print it')] = None,
    where: Where = None,
    licence: Licence = None,
    figures: Figures_ = None,
) -> None:
    """Write the data card of a store: models with revision and licence, real images, prompts, counts, rejections, cost, figures, limits.

    synthaug card stores/digits --licence cc-by-4.0 --figures runs/measured --out README.md
    """
    from synthaug_plugins.handover.card import COLUMNS, data_card, write_card
    from synthaug_plugins.handover.figures import read_figures
    from synthaug_plugins.store.selection import select
    from synthaug_plugins.store.store import Store

    store = Store.open(folder)
    found = [one for path in figures or () for one in read_figures(path, store)]
    text = data_card(store, select(store, where, allow_empty=True, columns=COLUMNS), licence, found)
    if out is None:
        print(text)
    else:
        write_card(text, out)
        print(out)


@app.command(rich_help_panel='Look and hand over')
def push(
    folder: StoreArg,
    repo: Annotated[str, typer.Argument(metavar='REPO', help='A data set repository of the hub: owner/name, or name for one of yours.', show_default=False)],
    where: Where = None,
    allow_empty: AllowEmpty = False,
    licence: Licence = None,
    figures: Figures_ = None,
    public: Annotated[bool, typer.Option('--public', help='Let everybody see it. By default only you and whom you name.')] = False,
) -> None:
    """Send a finished store to the hub as a data set, with its card, in one commit. Log in before: hf auth login.

    A repository that is there is written to only if it holds an earlier push of the same store.

    synthaug push stores/digits me/digits --licence cc-by-4.0
    """
    from synthaug_plugins.handover.figures import read_figures
    from synthaug_plugins.handover.push import check_login
    from synthaug_plugins.handover.push import push as run
    from synthaug_plugins.store.selection import select
    from synthaug_plugins.store.store import Store

    check_login(repo)
    store = Store.open(folder)
    found = [one for path in figures or () for one in read_figures(path, store)]
    selection = select(store, where, allow_empty=allow_empty)
    print(run(store, repo, selection, licence, found, public, say))
