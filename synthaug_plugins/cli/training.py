"""Commands that train a stock recipe with synthetic images, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthaug_plugins.cli.app import CfgOptions, Launcher, Recipe, app, parse_options
from synthaug_plugins.errors import RecipeError


@app.command(rich_help_panel='Train')
def train(
    recipe: Recipe,
    work_dir: Annotated[Path, typer.Option(help='Where checkpoints and logs go.', show_default=False)],
    mix: Annotated[Path | None, typer.Option(metavar='STORE', help='Mix this store into the training set.')] = None,
    alpha: Annotated[float | None, typer.Option(help='Probability that a sample is synthetic, 0 to 1.')] = None,
    cfg_options: CfgOptions = None,
    resume: Annotated[bool, typer.Option(help='Go on from the newest checkpoint in the work folder.')] = False,
    launcher: Launcher = 'none',
) -> None:
    """Train a stock MMPretrain recipe, with synthetic images mixed in if asked for. The recipe file stays as it is.

    synthaug train mmpretrain::resnet/resnet18_8xb16_cifar10.py --work-dir runs/a --mix stores/x --alpha 0.3
    """
    from synthaug_plugins.training.run import train as run

    run(_configured(recipe, mix, alpha, cfg_options), work_dir, resume, launcher)


@app.command(rich_help_panel='Train')
def test(
    recipe: Recipe,
    checkpoint: Annotated[Path, typer.Argument(help='A checkpoint that training wrote.', show_default=False)],
    work_dir: Annotated[Path, typer.Option(help='Where the log goes.', show_default=False)],
    cfg_options: CfgOptions = None,
    launcher: Launcher = 'none',
) -> None:
    """Evaluate a checkpoint on the recipe's test set.

    synthaug test my_recipe.py runs/a/epoch_10.pth --work-dir runs/a-test
    """
    from synthaug_plugins.training.run import test as run

    for name, value in run(_configured(recipe, None, None, cfg_options), checkpoint, work_dir, launcher).items():
        print(f'{name}: {value}')


@app.command(rich_help_panel='Train')
def explain(
    recipe: Recipe,
    mix: Annotated[Path | None, typer.Option(metavar='STORE', help='As for train.')] = None,
    alpha: Annotated[float | None, typer.Option(help='As for train.')] = None,
    cfg_options: CfgOptions = None,
) -> None:
    """Print what a short recipe becomes: plain registry entries that any MMPretrain launcher runs.

    synthaug explain my_recipe.py > explicit.py
    """
    from synthaug_plugins.training.run import explain as text

    print(text(_configured(recipe, mix, alpha, cfg_options)))


def _configured(recipe: str, mix: Path | None, alpha: float | None, cfg_options: list[str] | None) -> Any:
    """The trainer config that the plugins made of a recipe and the command line."""
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns
    from synthaug_plugins.recipes import find_recipe
    from synthaug_plugins.training.run import configure, load_recipe

    if alpha is not None and not 0 <= alpha <= 1:
        raise RecipeError(f'--alpha {alpha} is outside [0, 1].', 'It is the probability that a sample is synthetic.')
    extra: dict[str, Any] = {}
    if mix is not None:
        extra['mix'] = {'store': str(mix)}
    if alpha is not None:
        extra.setdefault('mix', {})['alpha'] = alpha
    register_nouns()
    return configure(load_recipe(find_recipe(recipe, 'train'), parse_options(cfg_options)), get_plugin_manager(), extra)


@app.command(rich_help_panel='Train')
def compare(
    recipe: Recipe,
    out: Annotated[Path | None, typer.Option(help='Where runs, results and the report go; default runs/<recipe name>.')] = None,
    jobs: Annotated[int, typer.Option(min=1, help='Training runs at the same time.')] = 1,
    values: Annotated[list[str] | None, typer.Option('--set', metavar='NAME=VALUE', help="Change one of the recipe's values; may be repeated.")] = None,
) -> None:
    """Train with and without synthetic images at equal compute, choose on validation, report on test with every seed.

    synthaug compare my_comparison.py --out runs/comparison --jobs 2
    """
    from synthaug_plugins.evaluation.compare import compare as run
    from synthaug_plugins.evaluation.compare import format_table
    from synthaug_plugins.evaluation.report import write_report
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns
    from synthaug_plugins.recipes import find_recipe

    register_nouns()
    path = find_recipe(recipe, 'compare')
    folder = out or Path('runs') / Path(path).stem
    results = run(path, folder, get_plugin_manager(), jobs, parse_options(values, '--set'), setup=register_nouns)
    write_report([results], folder / 'report.html', get_plugin_manager())
    print(format_table(results))
    print(folder / 'report.html')
