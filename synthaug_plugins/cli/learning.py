"""Commands that learn what generation needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import CfgOptions, Device, Recipe, app, parse_options

learn_app = typer.Typer(
    name='learn',
    help='Learn what generation needs: a denoiser of your own images, words for your classes, embeddings of your images, a model without some of them, how '
    'rare images are.',
    no_args_is_help=True,
)
app.add_typer(learn_app, rich_help_panel='Learn')


@learn_app.command()
def edm(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the model, checkpoints, sample sheets and log: new, empty, or one of the same recipe to go on with.')],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
) -> None:
    """Train a diffusion model on your images (Karras et al. 2022); the same command again goes on where a killed run stopped.

    synthaug learn edm edm_digits --data data/digits/train --out models/digits
    """
    from synthaug_plugins.engine.learn import learn
    from synthaug_plugins.engine.learn_recipe import load_learn_recipe
    from synthaug_plugins.recipes import find_recipe

    options = parse_options(cfg_options)
    if data is not None:
        options['data'] = str(data)
    learn(load_learn_recipe(find_recipe(recipe, 'learn'), options), out, device)
    print(f'{out / "model"} is ready: name it as model in a generation recipe')


@learn_app.command()
def embeddings(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the embeddings, checkpoints, sheet and log: new, empty, or one of the same recipe to go on with.')],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
) -> None:
    """Learn an embedding for each of your images (Diffusion Inversion, Zhou et al. 2023), to make variants of it from.

    The same command goes on where a killed run stopped; with images that were added, it learns these.

    synthaug learn embeddings inversion_digits --data my/digits --out embeddings/digits
    """
    from synthaug_plugins.engine.learn_embeddings import learn_image_embeddings
    from synthaug_plugins.engine.learn_embeddings_recipe import load_embeddings_recipe
    from synthaug_plugins.recipes import find_recipe

    options = parse_options(cfg_options)
    if data is not None:
        options['data'] = str(data)
    folder = learn_image_embeddings(load_embeddings_recipe(find_recipe(recipe, 'learn'), options), out, device)
    print(f'{folder} is ready: name it as embeddings of a generator; {out / "sheet.png"} shows some')


@learn_app.command()
def erasure(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the erasures, checkpoints, sheets and log: new, empty, or one of the same recipe to go on with.')],
    classes: Annotated[str | None, typer.Option(help='Classes to erase, with commas between them: cat,dog. Default: those of the recipe.')] = None,
    data: Annotated[Path | None, typer.Option(help='A folder with one folder per class, whose names are the classes. Its images are not used.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
) -> None:
    """Erase classes from a text-to-image model, each by itself (ESD, Gandikota et al. 2023); the same command goes on where a killed run stopped.

    synthaug learn erasure esd_digits --classes three,seven --out models/erased
    """
    from synthaug_plugins.engine.learn_erasure import FOLDER, learn_erasure
    from synthaug_plugins.engine.learn_erasure_recipe import load_erasure_recipe
    from synthaug_plugins.recipes import find_recipe

    options = parse_options(cfg_options)
    if classes is not None:
        options['classes'] = [name.strip() for name in classes.split(',')]
    if data is not None:
        options['data'] = str(data)
    learn_erasure(load_erasure_recipe(find_recipe(recipe, 'learn'), options), out, device)
    print(f'{out / FOLDER} is ready: name it as erasures in a generator; {out / "samples"} shows before and after')


@learn_app.command()
def minority(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the classifier, scores, levels and checkpoints: new, empty, or one of the same recipe to go on with.')],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
) -> None:
    """Score how rare your images are to a denoiser, rank them into levels and train a classifier of these on noisy images (Um et al. 2024).

    The same command goes on where a killed run stopped.

    synthaug learn minority minority_digits --data data/digits/train --out models/digits-levels
    """
    from synthaug_plugins.engine.learn_minority import learn_minority
    from synthaug_plugins.engine.learn_minority_recipe import load_minority_recipe
    from synthaug_plugins.recipes import find_recipe

    options = parse_options(cfg_options)
    if data is not None:
        options['data'] = str(data)
    folder = learn_minority(load_minority_recipe(find_recipe(recipe, 'learn'), options), out, device)
    print(f'{folder} is ready: name it as classifier of MinorityClassifier; {out / "validation.png"} shows how good it is at each noise level')


@learn_app.command()
def words(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the words, checkpoints, sheet and log: new, empty, or one of the same recipe to go on with.')],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
) -> None:
    """Learn a word for each class from a few images (textual inversion, Gal et al. 2022); the same command again goes on where a killed run stopped.

    synthaug learn words dafusion_words --data my/images --out words/mine
    """
    from synthaug_plugins.engine.learn_words import learn_class_words
    from synthaug_plugins.engine.learn_words_recipe import load_words_recipe
    from synthaug_plugins.recipes import find_recipe

    options = parse_options(cfg_options)
    if data is not None:
        options['data'] = str(data)
    file = learn_class_words(load_words_recipe(find_recipe(recipe, 'learn'), options), out, device)
    print(f'{file} is ready: name it as words of a generator; {out / "sheet.png"} shows it')


@learn_app.command()
def average(
    folder: Annotated[Path, typer.Argument(metavar='FOLDER', help='A folder of `synthaug learn edm` whose recipe has power_ema_stds.', show_default=False)],
    std: Annotated[float, typer.Option(help='Relative width of the average: 0.05 looks back over the last 5 percent of the training, 0.25 over a quarter.')],
    out: Annotated[Path, typer.Option(help='Folder of the new model.', show_default=False)],
    step: Annotated[int | None, typer.Option(help='Optimiser step at which the average ends; default the last one.')] = None,
) -> None:
    """Average the weights of a finished training over another length than it tracked (power-function EMA, Karras et al. 2024).

    synthaug learn average models/digits --std 0.1 --out models/digits-0.1
    """
    from synthaug_plugins.engine.learn import reconstruct_model

    reconstruct_model(folder, std, out, step)
    print(out)


@app.command(rich_help_panel='Learn')
def calibrate(
    folder: Annotated[Path, typer.Argument(metavar='FOLDER', help='Your images: a folder with one folder per class.', show_default=False)],
    resolution: Annotated[int | None, typer.Option(min=2, help='Pixels per side at which the model will see them; default: as they are.')] = None,
    grey: Annotated[bool, typer.Option(help='The model will see them in grey.')] = False,
) -> None:
    """Measure your images and propose sigma_data, P_mean, P_std and the range of sigma for `synthaug learn edm`.

    synthaug calibrate my/images --resolution 32
    """
    from synthaug_plugins.learning.calibrate import calibrate_folder

    found = calibrate_folder(folder, resolution, 1 if grey else 3)
    for name, reason in found.reasons.items():
        print(f'{name:10} {getattr(found, name):8.4g}   {reason}')


@app.command(rich_help_panel='Learn')
def convert(
    source: Annotated[Path, typer.Argument(metavar='FILE', help='A plain state dict: .safetensors, or .pt, .pth, .bin without code.', show_default=False)],
    config: Annotated[Path, typer.Option(help='config.json of the network, as model folders hold it.', show_default=False)],
    out: Annotated[Path, typer.Option(help='Folder of the new model.', show_default=False)],
    licence: Annotated[str | None, typer.Option(help='Licence of these weights, for the card.')] = None,
) -> None:
    """Make a model folder of EDM weights from elsewhere, without running code that a pickle may carry.

    synthaug convert network.pt --config config.json --out models/cifar10 --licence "CC BY-NC-SA 4.0"
    """
    from synthaug_plugins.learning.convert import convert_state_dict
    from synthaug_plugins.weights import read_json

    convert_state_dict(source, read_json(config), out, licence)
    print(out)
