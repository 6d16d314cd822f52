"""Commands that train a stock recipe with synthetic images, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthaug_plugins import compat
from synthaug_plugins.cli.app import CfgOptions, Device, Launcher, Recipe, Where, app, class_prompts, parse_numbers, parse_options
from synthaug_plugins.errors import RecipeError

if TYPE_CHECKING:
    from synthaug_plugins.training.stages import Stage


@app.command(rich_help_panel='Train')
def train(
    recipe: Recipe,
    work_dir: Annotated[Path, typer.Option(help='Where checkpoints and logs go.', show_default=False)],
    mix: Annotated[str | None, typer.Option(metavar='STORE', help='Mix this store into the training set.')] = None,
    alpha: Annotated[float | None, typer.Option(help='Probability that a sample is synthetic, 0 to 1.')] = None,
    store: Annotated[str | None, typer.Option(metavar='STORE', help="Train on this store alone, in the place of the recipe's training set.")] = None,
    cfg_options: CfgOptions = None,
    resume: Annotated[bool, typer.Option(help='Go on from the newest checkpoint in the work folder.')] = False,
    launcher: Launcher = 'none',
) -> None:
    """Train a stock MMPretrain recipe, with synthetic images mixed in if asked for. The recipe file stays as it is.

    synthaug train mmpretrain::resnet/resnet18_8xb16_cifar10.py --work-dir runs/a --mix stores/x --alpha 0.3

    synthaug train mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py --work-dir runs/b --store stores/x

    A recipe with stages trains one after the other, each in its folder below the work folder; killed, the same command goes on.

    synthaug train pretrain_then_finetune_digits --work-dir runs/c
    """
    from synthaug_plugins.training.run import train as run

    stages = _stages(recipe, mix, alpha, cfg_options, store)
    if stages[0].single:
        run(stages[0].cfg, work_dir, resume, launcher)
    else:
        from synthaug_plugins.training.stage_run import train_stages  # loads MMEngine, which is to be mended first

        train_stages(stages, work_dir, launcher)


@app.command(rich_help_panel='Train')
def test(
    recipe: Recipe,
    checkpoint: Annotated[Path, typer.Argument(help='A checkpoint that training wrote.', show_default=False)],
    work_dir: Annotated[Path, typer.Option(help='Where the log goes.', show_default=False)],
    cfg_options: CfgOptions = None,
    launcher: Launcher = 'none',
) -> None:
    """Evaluate a checkpoint on the recipe's test set; of a recipe with stages, on that of the last one.

    synthaug test my_recipe.py runs/a/epoch_10.pth --work-dir runs/a-test
    """
    from synthaug_plugins.training.run import test as run

    for name, value in run(_stages(recipe, None, None, cfg_options)[-1].cfg, checkpoint, work_dir, launcher).items():
        print(f'{name}: {value}')


@app.command(rich_help_panel='Train')
def explain(
    recipe: Recipe,
    mix: Annotated[str | None, typer.Option(metavar='STORE', help='As for train.')] = None,
    alpha: Annotated[float | None, typer.Option(help='As for train.')] = None,
    store: Annotated[str | None, typer.Option(metavar='STORE', help='As for train.')] = None,
    cfg_options: CfgOptions = None,
    out: Annotated[Path | None, typer.Option(metavar='FOLDER', help='Write the stages of a recipe into a new folder, a file each.')] = None,
    work_dir: Annotated[Path | None, typer.Option(help="Of a recipe with stages: where the stages' folders will be; default work_dirs/<recipe name>.")] = None,
) -> None:
    """Print what a short recipe becomes: plain registry entries that any MMPretrain launcher runs.

    synthaug explain my_recipe.py > explicit.py

    The stages of a recipe become a file each, to be trained in order.

    synthaug explain pretrain_then_finetune_digits --out explicit
    """
    from synthaug_plugins.training.run import explain as text
    from synthaug_plugins.training.stage_text import stage_texts, write_stages
    from synthaug_plugins.training.stages import check_stages

    stages = _stages(recipe, mix, alpha, cfg_options, store)
    if stages[0].single:
        if out is not None or work_dir is not None:
            raise RecipeError(f'{recipe!r} has no stages, which --out and --work-dir are for.', 'Redirect what is printed: synthaug explain ... > file.py')
        print(text(stages[0].cfg))
        return
    check_stages(stages, data_too=False)
    folder = work_dir or Path('work_dirs') / Path(recipe).stem
    if out is None:
        print('\n'.join(f'# ===== {name}\n{content}' for name, content in stage_texts(stages, folder).items()))
        return
    for path in write_stages(stages, out, folder):
        print(path)


def _stages(recipe: str, mix: str | None, alpha: float | None, cfg_options: list[str] | None, store: str | None = None) -> Sequence[Stage]:
    """The trainings that the plugins made of a recipe and the command line."""
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns
    from synthaug_plugins.recipes import find_recipe
    from synthaug_plugins.training.stages import read_stages

    if alpha is not None and not 0 <= alpha <= 1:
        raise RecipeError(f'--alpha {alpha} is outside [0, 1].', 'It is the probability that a sample is synthetic.')
    extra: dict[str, Any] = {}
    if mix is not None:
        extra['mix'] = {'store': mix}
    if alpha is not None:
        extra.setdefault('mix', {})['alpha'] = alpha
    if store is not None:
        extra['train_on'] = {'store': store}
    register_nouns()
    return read_stages(find_recipe(recipe, 'train'), parse_options(cfg_options), get_plugin_manager(), extra)


@app.command(rich_help_panel='Train')
def export_backbone(
    checkpoint: Annotated[Path, typer.Argument(help='A checkpoint that training wrote.', show_default=False)],
    to: Annotated[str, typer.Option(help='Whose names the weights get: mmdet, mmseg, timm or torchvision.')],
    out: Annotated[Path, typer.Option(help='The new file: .pth; for timm and torchvision also .safetensors.')],
    ema: Annotated[bool, typer.Option('--ema', help='Take the average that an EMAHook kept.')] = False,
    name: Annotated[str | None, typer.Option(help='The model of timm or torchvision that they are for; default: by their shapes.')] = None,
) -> None:
    """Write a trained backbone (ResNet, DeiT, ViT) for another library, checked against its model, and print how it loads there.

    synthaug export-backbone runs/pretrain/epoch_90.pth --to torchvision --out resnet50.pth
    """
    from synthaug_plugins.training.export_backbone import export_backbone as run

    print(run(checkpoint, to, out, ema, name))


@app.command(rich_help_panel='Train')
def compare(
    recipe: Recipe,
    data: Annotated[
        Path | None, typer.Option(metavar='FOLDER', help='For a recipe that draws shots: train/ and test/ (and val/, if there is one), a folder per class.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help='Where runs, results and the report go; default runs/<recipe name>.')] = None,
    jobs: Annotated[int, typer.Option(min=1, help='Training runs at the same time.')] = 1,
    values: Annotated[list[str] | None, typer.Option('--set', metavar='NAME=VALUE', help="Change one of the recipe's values; may be repeated.")] = None,
    device: Device = 'auto',
) -> None:
    """Train with and without synthetic images at equal compute, choose on validation, report on test with every seed.

    synthaug compare my_comparison.py --out runs/comparison --jobs 2

    A recipe with shots draws few images per class, learns words, generates stores and compares, for all shots and seeds, in this one command; killed,
    the same command goes on.

    synthaug compare dafusion_digits --data my/digits --out runs/ablation
    """
    from synthaug_plugins.evaluation.ablation.run import REPORT, ablate
    from synthaug_plugins.evaluation.ablation.table import MARKDOWN
    from synthaug_plugins.evaluation.compare import command_of, format_table
    from synthaug_plugins.evaluation.compare import run as run_comparison
    from synthaug_plugins.evaluation.protocol import read_comparison
    from synthaug_plugins.evaluation.report import write_report
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns
    from synthaug_plugins.recipes import find_recipe

    compat.apply()
    register_nouns()
    path = find_recipe(recipe, 'compare')
    folder = out or Path('runs') / Path(path).stem
    comparison = read_comparison(path, parse_options(values, '--set'), None if data is None else str(data))
    if comparison.shots:
        ablate(comparison, folder, get_plugin_manager(), jobs=jobs, device=device, setup=register_nouns, quiet=False)
        print((folder / MARKDOWN).read_text(encoding='utf-8'))
    else:
        if device != 'auto':
            raise RecipeError(f'--device {device} says where a recipe with shots makes things, and this one makes none.', 'Leave it out.')
        results = run_comparison(comparison, folder, get_plugin_manager(), command_of(comparison, folder, jobs), jobs, register_nouns)
        write_report([results], folder / REPORT, get_plugin_manager())
        print(format_table(results))
    print(folder / REPORT)


@app.command(rich_help_panel='Train')
def fewshot(
    data: Annotated[Path, typer.Option(metavar='FOLDER', help='Real images: train/ and test/ (and val/, if there is one), a folder per class in each.')],
    out: Annotated[Path, typer.Option(help='Where table, curve and runs go.')],
    model: Annotated[str, typer.Option(help="The CLIP: 'RN50/openai', 'ViT-B-16/...', a folder in open_clip's layout, 'embedded:digits_clip'.")],
    shots: Annotated[str, typer.Option(metavar='N,N,...', help='Real images per class.')] = '1,2,4,8,16',
    seeds: Annotated[str, typer.Option(metavar='N,N,...', help='Draws of the shots.')] = '1,2,3',
    store: Annotated[str | None, typer.Option(metavar='STORE', help='Synthetic images of the same classes, to mix in.')] = None,
    where: Where = None,
    dataset: Annotated[str | None, typer.Option(help="Class names and wording of one of the paper's data sets, such as eurosat.")] = None,
    templates: Annotated[str | None, typer.Option(help="A template with {}, or the name of an ensemble; default: the data set's own.")] = None,
    names: Annotated[str | None, typer.Option(metavar='FILE', help='A file of class names.')] = None,
    steps: Annotated[int | None, typer.Option(help='Optimiser steps of every tuned head; default: 30 passes over the store.')] = None,
    val_shots: Annotated[int | None, typer.Option(help='Validation images per class where there is no val/; default min(shots, 4).')] = None,
    lr_scales: Annotated[
        str, typer.Option(metavar='X,X,...', help='Factors on the published learning rate of tuned heads; validation chooses among several.')
    ] = '1',
    cache: Annotated[str | None, typer.Option(metavar='FOLDER', help='Where features are kept; default ~/.cache/synthaug/features.')] = None,
    jobs: Annotated[int, typer.Option(min=1, help='Tunings at the same time.')] = 1,
    device: Device = 'auto',
) -> None:
    """Compare few-shot methods with one CLIP, with and without synthetic images: from a folder of images to a table and a curve.

    synthaug fewshot --data my/digits --shots 1,2,4 --seeds 1,2,3 --model embedded:digits_clip --out runs/fewshot --store stores/lecf
    """
    from synthaug_plugins.curation.feature_cache import DEFAULT_FOLDER
    from synthaug_plugins.evaluation.fewshot.study import CURVE, study
    from synthaug_plugins.evaluation.fewshot.table import table_text
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns

    register_nouns()
    prompts = class_prompts(dataset, templates, names)
    found = study(
        data,
        out,
        model,
        get_plugin_manager(),
        parse_numbers(shots, '--shots'),
        parse_numbers(seeds, '--seeds'),
        store,
        where,
        prompts,
        steps,
        val_shots,
        parse_numbers(lr_scales, '--lr-scales', float),
        cache or DEFAULT_FOLDER,
        device,
        jobs,
        setup=register_nouns,
    )
    print(table_text(found.results, found.classes, found.real))
    print(out / CURVE)
