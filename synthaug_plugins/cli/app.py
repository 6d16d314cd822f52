"""The typer application that the command files add to, and what their options have in common. Loads nothing heavy."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from synthaug_plugins import __version__
from synthaug_plugins.errors import RecipeError

CFG_OPTIONS = '--cfg-options'

app = typer.Typer(
    name='synthaug',
    help='Train image classifiers with diffusion-made data, inside the trainers people already use.',
    epilog='Start with:  synthaug doctor',
    no_args_is_help=True,
    rich_markup_mode='rich',
    pretty_exceptions_enable=False,
    add_completion=False,
)

Recipe = Annotated[str, typer.Argument(metavar='RECIPE', help='A recipe file, a shipped recipe by name, or mmpretrain::CONFIG.', show_default=False)]
StoreArg = Annotated[
    str, typer.Argument(metavar='STORE', help='A store: what `synthaug generate` made in a folder or at s3://bucket/name.', show_default=False)
]
CfgOptions = Annotated[list[str] | None, typer.Option(CFG_OPTIONS, metavar='KEY=VALUE ...', help='Set recipe keys, dotted: seed=1 image.format=webp.')]
Device = Annotated[str, typer.Option(help='auto, cpu, cuda, cuda:1, ...')]
ExecutorName = Annotated[
    str | None, typer.Option('--executor', metavar='NAME', help='Who does the work: local, torchrun (its ranks share it) or ray.', show_default='local')
]
Workers = Annotated[int | None, typer.Option('--workers', metavar='N', help='Worker processes.', show_default='one for each visible GPU')]
Address = Annotated[
    str | None, typer.Option('--address', metavar='ADDRESS', help='Of a running Ray cluster: auto or HOST:PORT.', show_default='one is started and stopped')
]
StallTimeout = Annotated[
    float | None,
    typer.Option('--stall-timeout', metavar='SECONDS', help='A worker without a sign of life for so long is replaced.', show_default='1800'),
]
Launcher = Annotated[str, typer.Option(help='How the processes were started: none, pytorch, slurm or mpi.')]
Where = Annotated[str | None, typer.Option(help='Condition over index and score columns, such as "params.sigma <= 0.3 and class_name = \'three\'".')]


def _version(value: bool) -> None:
    if value:
        print(f'synthaug_plugins {__version__}')
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option('--version', callback=_version, is_eager=True, help='Print the version and stop.')] = False) -> None:
    pass


def parse_options(pairs: Sequence[str] | None, option: str = CFG_OPTIONS) -> dict[str, Any]:
    """`['a.b=1', 'c=[1,2]', 'd=text']` as `{'a.b': 1, 'c': [1, 2], 'd': 'text'}`: Python literals where they are, else text.

    Raises:
        RecipeError: a pair without `=`.
    """
    options: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition('=')
        if not equals or not key:
            raise RecipeError(f'{option} {pair!r} is not KEY=VALUE.', 'Write for example seed=1.')
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # whatever `literal_eval` says of what is no literal
            options[key] = {'true': True, 'false': False, 'none': None}.get(text.lower(), text)
    return options


def recipe_options(pairs: Sequence[str] | None, data: Path | None) -> dict[str, Any]:
    """What a command line sets of a recipe: the pairs of --cfg-options, and over them the folder of --data."""
    return parse_options(pairs) | ({} if data is None else {'data': str(data)})


def class_prompts(dataset: str | None, templates: str | None, names: str | None) -> dict[str, str]:
    """What a CLIP is told of classes, as far as --dataset, --templates and --names say it."""
    return {key: value for key, value in (('dataset', dataset), ('templates', templates), ('names', names)) if value is not None}


def say(sentence: str) -> None:
    """Tell the user something that is no result: on standard error."""
    print(sentence, file=sys.stderr)


def parse_numbers(text: str, option: str, kind: type[int] | type[float] = int) -> list[Any]:
    """`'1,2,4'` as `[1, 2, 4]`.

    Raises:
        RecipeError: a part that is no number.
    """
    try:
        return [kind(part) for part in text.split(',')]
    except ValueError:
        raise RecipeError(f'{option} {text!r} is no list of {"whole " if kind is int else ""}numbers.', 'Write 1,2,4.') from None


def spread_cfg_options(arguments: Sequence[str]) -> list[str]:
    """Let one `--cfg-options` take several pairs, as MMPretrain's own tools do: the option is repeated before each."""
    spread: list[str] = []
    taking = begun = False
    for argument in arguments:
        if argument == CFG_OPTIONS and not begun:
            taking = begun = True
            continue
        # The first is taken whatever it is: `parse_options` says what is wrong with one that is no pair.
        taking = begun or (taking and '=' in argument and not argument.startswith('-'))
        spread += [CFG_OPTIONS, argument] if taking else [argument]
        begun = False
    return [*spread, CFG_OPTIONS] if begun else spread
