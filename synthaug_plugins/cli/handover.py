"""Commands that hand a store over: in another library's layout, with a card, to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import StoreArg, Where, app

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
