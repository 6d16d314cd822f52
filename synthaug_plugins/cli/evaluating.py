"""The command that measures images, without training on them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthaug_plugins import compat
from synthaug_plugins.cli.app import CFG_OPTIONS, CfgOptions, Device, app, class_prompts, parse_options, say
from synthaug_plugins.errors import RecipeError

if TYPE_CHECKING:
    from synthaug_plugins.evaluation.classifiers import Classifiers


@app.command(rich_help_panel='Look and hand over')
def evaluate(
    stores: Annotated[list[str], typer.Argument(metavar='STORE...', help='Stores to measure.', show_default=False)],
    real: Annotated[Path, typer.Option(metavar='FOLDER', help='Real images to measure against: a folder with one folder per class.', show_default=False)],
    features: Annotated[
        str,
        typer.Option(
            help='The network whose features are compared: pixels, clip:NAME or clip:FOLDER, embedded:digits_clip, timm:NAME, timm:FOLDER or '
            'timm:NAME=WEIGHTS, inception:FILE (for FID as papers have it).',
            show_default=False,
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
    per_class: Annotated[bool, typer.Option('--per-class', help='Also measure each class against its own real images, where there are enough.')] = False,
    clip: Annotated[str | None, typer.Option(help='The CLIP that labels are asked of; default: the feature network, where it is a CLIP.')] = None,
    dataset: Annotated[str | None, typer.Option(help="What the CLIP is told: names and wording of one of the papers' data sets, such as eurosat.")] = None,
    templates: Annotated[str | None, typer.Option(help='What the CLIP is told: a template with {}, or the name of an ensemble.')] = None,
    names: Annotated[str | None, typer.Option(metavar='FILE', help='What the CLIP is told: a file of class names.')] = None,
    probe: Annotated[bool, typer.Option('--probe', help='Also train a linear probe on the features of each set, and test it on --held-out.')] = False,
    cas: Annotated[
        str | None,
        typer.Option(
            metavar='RECIPE', help='Also train a classifier by this recipe on each store alone, and on the real images, and test it on --held-out; needs --out.'
        ),
    ] = None,
    cfg_options: CfgOptions = None,
    out: Annotated[Path | None, typer.Option(help='Folder for metrics.csv, metrics.json, report.html and curves.png.')] = None,
    device: Device = 'auto',
) -> None:
    """Measure how rare, true, complete, diverse and rightly labelled the images of stores are: AvgkNN, LOF, rarity, precision, recall, density, coverage,
    FID, KID, spread, Vendi score, what neighbours and a CLIP say of labels; and what classifiers learn from them alone.

    synthaug evaluate stores/plain stores/minority --real data/train --features embedded:digits_clip --by params.minority_level --out runs/rare

    synthaug evaluate stores/mine --real data/train --held-out data/test --features embedded:digits_clip --per-class --probe --cas digits_resnet --out runs/e
    """
    from synthaug_plugins.evaluation.evaluate import evaluate as run
    from synthaug_plugins.evaluation.evaluation_files import REPORT, check_out, write_evaluation
    from synthaug_plugins.evaluation.metrics.table import table_text

    if out is not None:
        check_out(out, real, *([held_out] if held_out else []))
    prompts = class_prompts(dataset, templates, names)
    found = run(
        stores,
        real,
        features,
        by=by or (),
        where=where or (),
        k=k,
        lof_k=lof_k,
        held_out=held_out,
        per_class=per_class,
        clip=clip,
        prompts=prompts,
        probe=probe,
        classifiers=_classifiers(cas, cfg_options, out),
        device=device,
    )
    print(table_text(found.rows))
    if found.by_class:
        print(f'\nClass by class, against the real images of that class alone:\n{table_text(found.by_class)}\n')
    for name, selection in found.selections.items():
        if selection != 'all' and not name.endswith(selection):
            print(f'{name}: {selection}')
    for sentence in found.trends:
        print(sentence)
    print(found.about)
    for note in found.notes:
        say(f'note: {note}')
    if out is not None:
        values = [
            *[('--real', real), ('--features', features), *(('--by', text) for text in by or ()), *(('--where', text) for text in where or ())],
            *[('--k', k), ('--lof-k', lof_k), ('--held-out', held_out), ('--per-class', per_class), ('--clip', clip)],
            *[(f'--{key}', value) for key, value in prompts.items()],
            *[('--probe', probe), ('--cas', cas), *((CFG_OPTIONS, text) for text in cfg_options or ()), ('--device', device), ('--out', out)],
        ]
        write_evaluation(found, out, shlex.join(_command(stores, values)), say)
        print(out / REPORT)


def _command(stores: Sequence[str], values: Sequence[tuple[str, object]]) -> list[str]:
    """The words of the command line; an option that is True stands alone, and one that is None or False not at all."""
    words = ['synthaug', 'evaluate', *stores]
    for option, value in values:
        if value is not None and value is not False:
            words += [option] if value is True else [option, str(value)]
    return words


def _classifiers(recipe: str | None, cfg_options: list[str] | None, out: Path | None) -> Classifiers | None:
    """How classifiers are trained, where they are."""
    if recipe is None:
        if cfg_options:
            raise RecipeError(f'{CFG_OPTIONS} {cfg_options[0]} changes the recipe of --cas, and none is given.', 'Add --cas RECIPE, or leave it out.')
        return None
    if out is None:
        raise RecipeError(f'--cas {recipe} trains classifiers, which need a folder.', 'Add --out FOLDER.')
    compat.apply()
    from synthaug_plugins.evaluation.classifiers import Classifiers
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns
    from synthaug_plugins.recipes import find_recipe

    register_nouns()
    options = parse_options(cfg_options)
    return Classifiers(find_recipe(recipe, 'train'), out, get_plugin_manager(), options, register_nouns, say)
