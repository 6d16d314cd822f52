"""The command that searches how synthetic images should be mixed in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import CfgOptions, Recipe, app, parse_numbers, parse_options
from synthaug_plugins.errors import RecipeError


@app.command(rich_help_panel='Train')
def tune(
    recipe: Recipe,
    mix: Annotated[
        list[str] | None, typer.Option(metavar='STORE', help="The store to mix in; default: the recipe's own. Several are tried one against the other.")
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar='CONDITION', help='Images to try alone, such as "params.t0 <= 0.5"; may be repeated. Default: each strength and guidance in the store.'
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(metavar='X,X,...', help='Probabilities that a sample is synthetic; 0 is always tried.', show_default='0.25,0.5,0.75'),
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(metavar='R:S,R:S,...', help='Real to synthetic images, in the modes per_batch and two_stream.', show_default="the recipe's")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar='N,N,...', help='Each candidate is trained with each; two or more.')] = '0,1,2',
    out: Annotated[Path | None, typer.Option(help='Where recipe, table, report and runs go; default runs/tune-<recipe name>.')] = None,
    cfg_options: CfgOptions = None,
    jobs: Annotated[int, typer.Option(min=1, help='Training runs at the same time.')] = 1,
) -> None:
    """Search strength, share and guidance of synthetic images on validation, and write the recipe with the winner.

    The recipe as it is and the recipe without synthetic images are among the candidates; test images are read once, by the winner and the default.
    Killed, the same command goes on.

    synthaug tune my_recipe.py --mix stores/variants --alpha 0.25,0.5 --seeds 0,1,2 --out runs/tune

    synthaug train runs/tune/tuned.py --work-dir runs/tuned
    """
    from synthaug_plugins.evaluation.compare import format_table
    from synthaug_plugins.evaluation.tune.run import REPORT
    from synthaug_plugins.evaluation.tune.run import tune as run
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns

    register_nouns()
    folder = out or Path('runs') / f'tune-{Path(recipe).stem}'
    found = run(
        recipe,
        folder,
        get_plugin_manager(),
        mix or (),
        select or (),
        None if alpha is None else parse_numbers(alpha, '--alpha', float),
        None if ratio is None else _ratios(ratio),
        parse_numbers(seeds, '--seeds'),
        parse_options(cfg_options),
        jobs,
        register_nouns,
    )
    print(format_table(found.results))
    print(*found.sentences, folder / REPORT, found.recipe, sep='\n')


def _ratios(text: str) -> list[tuple[int, int]]:
    """`'1:1,1:3'` as `[(1, 1), (1, 3)]`."""
    try:
        return [(int(real), int(made)) for real, made in (pair.split(':') for pair in text.split(','))]
    except ValueError:
        raise RecipeError(f'--ratio {text!r} is no list of ratios.', 'Write 1:1,1:3: real to synthetic images.') from None
