"""Commands that learn what generation needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthaug_plugins.cli.app import Address, CfgOptions, Device, ExecutorName, Recipe, StallTimeout, Workers, app, recipe_options
from synthaug_plugins.errors import RecipeError

if TYPE_CHECKING:
    from synthaug_plugins.executors.base import Executor

learn_app = typer.Typer(
    name='learn',
    help='Learn what generation needs: a denoiser of your own images, words for your classes, embeddings of your images, a model without some of them, how '
    'rare images are.',
    no_args_is_help=True,
)
app.add_typer(learn_app, rich_help_panel='Learn')


def _one_training(context: typer.Context, option: typer.CallbackParam, value: str | None) -> str | None:
    """Refuse an executor, with the reason: without these options a user would read no more than that there is no such option."""
    if value is not None:
        why = 'erases one class after another on one device' if context.info_name == 'erasure' else 'is one training, each step of which follows from the last'
        what = f'--{option.name} {value}: `synthaug learn {context.info_name}` {why}; there is nothing for workers to share.'
        raise RecipeError(what, 'Leave it out. Words and embeddings are learned by several workers.')
    return None


NoExecutor = Annotated[
    str | None, typer.Option('--executor', metavar='NAME', callback=_one_training, hidden=True, help='Refused: there is nothing for workers to share.')
]
NoWorkers = Annotated[str | None, typer.Option('--workers', metavar='N', callback=_one_training, hidden=True, help='Refused, as --executor.')]


def _workforce(executor: str | None, device: str, workers: int | None, address: str | None, stall_timeout: float | None) -> Executor:
    """The executor of a learning whose parts workers share."""
    from synthaug_plugins.executors import make_executor

    if executor == 'torchrun':
        raise RecipeError('--executor torchrun: its ranks share the blocks of `synthaug generate` only.', 'Use local or ray.')
    return make_executor(executor, device, workers, address, stall_timeout)


@learn_app.command()
def edm(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the model, checkpoints, sample sheets and log: new, empty, or one of the same recipe to go on with.')],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
    executor: NoExecutor = None,
    workers: NoWorkers = None,
) -> None:
    """Train a diffusion model on your images (Karras et al. 2022); the same command again goes on where a killed run stopped.

    synthaug learn edm edm_digits --data data/digits/train --out models/digits
    """
    from synthaug_plugins.engine.learn import learn
    from synthaug_plugins.engine.learn_recipe import load_learn_recipe
    from synthaug_plugins.recipes import find_recipe

    options = recipe_options(cfg_options, data)
    learn(load_learn_recipe(find_recipe(recipe, 'learn'), options), out, device)
    print(f'{out / "model"} is ready: name it as model in a generation recipe')


@learn_app.command()
def embeddings(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the embeddings, checkpoints, sheet and log: new, empty, or one of the same recipe to go on with.')],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
    executor: ExecutorName = None,
    workers: Workers = None,
    address: Address = None,
    stall_timeout: StallTimeout = None,
) -> None:
    """Learn an embedding for each of your images (Diffusion Inversion, Zhou et al. 2023), to make variants of it from.

    The same command goes on where a killed run stopped; with images that were added, it learns these.

    With --executor or --workers, workers take a chunk of images at a time, and the result does not depend on how many they are. Without, all images go
    through one batch on one device, which stays full to the end; that differs in the last bits and in the files of the result.

    synthaug learn embeddings inversion_digits --data my/digits --out embeddings/digits

    synthaug learn embeddings inversion_digits --data my/digits --out embeddings/digits --workers 2
    """
    from synthaug_plugins.engine.learn_embeddings import learn_image_embeddings
    from synthaug_plugins.engine.learn_embeddings_recipe import load_embeddings_recipe
    from synthaug_plugins.recipes import find_recipe

    options = recipe_options(cfg_options, data)
    shared = (executor, workers, address, stall_timeout) != (None, None, None, None)
    workforce = _workforce(executor, device, workers, address, stall_timeout) if shared else None
    folder = learn_image_embeddings(load_embeddings_recipe(find_recipe(recipe, 'learn'), options), out, device, executor=workforce)
    print(f'{folder} is ready: name it as embeddings of a generator; {out / "sheet.png"} shows some')


@learn_app.command()
def erasure(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the erasures, checkpoints, sheets and log: new, empty, or one of the same recipe to go on with.')],
    classes: Annotated[str | None, typer.Option(help='Classes to erase, with commas between them: cat,dog. Default: those of the recipe.')] = None,
    data: Annotated[Path | None, typer.Option(help='A folder with one folder per class, whose names are the classes. Its images are not used.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
    executor: NoExecutor = None,
    workers: NoWorkers = None,
) -> None:
    """Erase classes from a text-to-image model, each by itself (ESD, Gandikota et al. 2023); the same command goes on where a killed run stopped.

    synthaug learn erasure esd_digits --classes three,seven --out models/erased
    """
    from synthaug_plugins.engine.learn_erasure import FOLDER, learn_erasure
    from synthaug_plugins.engine.learn_erasure_recipe import load_erasure_recipe
    from synthaug_plugins.recipes import find_recipe

    options = recipe_options(cfg_options, data)
    if classes is not None:
        options['classes'] = [name.strip() for name in classes.split(',')]
    learn_erasure(load_erasure_recipe(find_recipe(recipe, 'learn'), options), out, device)
    print(f'{out / FOLDER} is ready: name it as erasures in a generator; {out / "samples"} shows before and after')


@learn_app.command()
def minority(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the classifier, scores, levels and checkpoints: new, empty, or one of the same recipe to go on with.')],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
    executor: NoExecutor = None,
    workers: NoWorkers = None,
) -> None:
    """Score how rare your images are to a denoiser, rank them into levels and train a classifier of these on noisy images (Um et al. 2024).

    The same command goes on where a killed run stopped.

    synthaug learn minority minority_digits --data data/digits/train --out models/digits-levels
    """
    from synthaug_plugins.engine.learn_minority import learn_minority
    from synthaug_plugins.engine.learn_minority_recipe import load_minority_recipe
    from synthaug_plugins.recipes import find_recipe

    options = recipe_options(cfg_options, data)
    folder = learn_minority(load_minority_recipe(find_recipe(recipe, 'learn'), options), out, device)
    print(f'{folder} is ready: name it as classifier of MinorityClassifier; {out / "validation.png"} shows how good it is at each noise level')


@learn_app.command()
def words(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder for the words, checkpoints, sheet and log: new, empty, or one of the same recipe to go on with.')],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
    executor: ExecutorName = None,
    workers: Workers = None,
    address: Address = None,
    stall_timeout: StallTimeout = None,
) -> None:
    """Learn a word for each class from a few images (textual inversion, Gal et al. 2022); the same command again goes on where a killed run stopped.

    Each worker takes a class at a time. How many there are does not change the words, save for last bits on a CPU if they have other numbers of threads
    (OMP_NUM_THREADS).

    synthaug learn words dafusion_words --data my/images --out words/mine

    synthaug learn words dafusion_words --data my/images --out words/mine --executor ray --workers 2
    """
    from synthaug_plugins.engine.learn_words import learn_class_words
    from synthaug_plugins.engine.learn_words_recipe import load_words_recipe
    from synthaug_plugins.recipes import find_recipe

    options = recipe_options(cfg_options, data)
    workforce = _workforce(executor, device, workers, address, stall_timeout)
    file = learn_class_words(load_words_recipe(find_recipe(recipe, 'learn'), options), out, executor=workforce)
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
