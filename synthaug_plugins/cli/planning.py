"""The command that says what a generation run would make and cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import CfgOptions, Device, Recipe, app, recipe_options, say


@app.command(rich_help_panel='Make images')
def plan(
    recipe: Recipe,
    out: Annotated[str | None, typer.Option(help='The store that is meant: what is in it already is not counted, and its disk is looked at.')] = None,
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
    trial: Annotated[float, typer.Option(min=0, help='Seconds in which a few images are made for the estimate; 0: none, and no weights load.')] = 20,
    workers: Annotated[int, typer.Option(min=1, help='Estimate for so many processes too, each with a device like this one.')] = 1,
) -> None:
    """Say what `synthaug generate` would make of a recipe and what it would cost: blocks, images, requests, time, disk, memory. Writes nothing.

    synthaug plan edm_digits

    synthaug plan dafusion --data my/images --out stores/mine --workers 8
    """
    from synthaug_plugins.engine.plan_run import plan_run
    from synthaug_plugins.engine.recipe import load_recipe
    from synthaug_plugins.plugins import register_nouns
    from synthaug_plugins.recipes import find_recipe

    path = find_recipe(recipe, 'generate')
    register_nouns()
    options = recipe_options(cfg_options, data)
    loaded = load_recipe(path, options)
    print(plan_run(loaded, device, trial, out, workers, say).text())
