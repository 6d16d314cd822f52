"""Commands that make images, check them and look at them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import CFG_OPTIONS, Address, CfgOptions, Device, ExecutorName, Recipe, StallTimeout, StoreArg, Where, Workers, app, recipe_options
from synthaug_plugins.errors import RecipeError, StoreError


@app.command(rich_help_panel='Make images')
def generate(
    recipe: Recipe,
    out: Annotated[
        str,
        typer.Option(help='The store: a folder or s3://bucket/name; new, empty, or one of the same recipe to go on with.', show_default=False),
    ],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
    executor: ExecutorName = None,
    workers: Workers = None,
    address: Address = None,
    stall_timeout: StallTimeout = None,
) -> None:
    """Make the images of a recipe into a store; the same command again goes on where a killed run stopped.

    synthaug generate edm_digits --out stores/digits

    synthaug generate edm_digits --out stores/digits --workers 2

    torchrun --nproc-per-node 2 -m synthaug_plugins.cli generate edm_digits --out stores/digits --executor torchrun

    synthaug generate digits_real_guidance --data my/images --out stores/mine --cfg-options per_class=50 seed=1
    """
    from synthaug_plugins.engine.generate import generate as run
    from synthaug_plugins.engine.recipe import load_recipe
    from synthaug_plugins.executors import make_executor
    from synthaug_plugins.plugins import hooks_of_process
    from synthaug_plugins.recipes import find_recipe

    path = find_recipe(recipe, 'generate')
    workforce = make_executor(executor, device, workers, address, stall_timeout)
    hook = hooks_of_process()
    options = recipe_options(cfg_options, data)
    command = _command(recipe, out, data, cfg_options or (), device, executor, workers, address)
    store = run(load_recipe(path, options), out, hook=hook, executor=workforce, in_worker=hooks_of_process, command=command)
    if not getattr(workforce, 'leads', True):
        return  # a rank of torchrun that only works
    cost = store.made_by.get('cost', {})
    nfe = f', {cost["network_images"] / cost["images"]:.4g} network evaluations each' if cost.get('network_images') else ''
    print(f'{sum(c["kept"] for c in store.counts().values())} images of {len(store.classes)} classes in {out}{nfe}')


def _command(
    recipe: str, out: str, data: Path | None, pairs: Sequence[str], device: str, executor: str | None, workers: int | None, address: str | None
) -> str:
    """The command line that makes the store; what is as it is anyway is left out."""
    values = (('--data', data), ('--device', None if device == 'auto' else device), ('--executor', executor), ('--workers', workers), ('--address', address))
    words = ['synthaug', 'generate', recipe, '--out', out]
    for option, value in values:
        words += [] if value is None else [option, str(value)]
    return shlex.join([*words, *([CFG_OPTIONS, *pairs] if pairs else [])])


@app.command(rich_help_panel='Make images')
def shots(
    data: Annotated[Path, typer.Argument(metavar='FOLDER', help='Your images: a folder with one folder per class.', show_default=False)],
    out: Annotated[Path, typer.Option(help='New folder for the copies.', show_default=False)],
    shots: Annotated[int, typer.Option(help='Images per class.', show_default=False)],
    seed: Annotated[int, typer.Option(help='Of the draw; `fewshot` and FewShotDataset draw the same with it.')] = 1,
    split_file: Annotated[Path | None, typer.Option(help="Draw from what this file lists under 'train' only.")] = None,
    imbalance: Annotated[
        float | None,
        typer.Option(help='Long tail: the first class (by name) has --shots images, the last one 1/RATIO of them.', metavar='RATIO', show_default=False),
    ] = None,
) -> None:
    """Copy a few images per class into a folder, for a generator that may see nothing but the shots.

    synthaug shots data/train --shots 16 --seed 1 --out data/shots-16-1

    synthaug shots data/train --shots 4500 --imbalance 100 --out data/long-tail
    """
    from synthaug_plugins.few_shot import copy_shots, draw_shots, long_tail_counts, read_split
    from synthaug_plugins.real_images import RealImages

    images = RealImages(data)
    pool = {name: images.ids(name) for name in images.classes}
    if split_file is not None:
        pool = read_split(split_file, 'train', pool)
    wanted = shots if imbalance is None else long_tail_counts(images.classes, shots, imbalance)
    chosen = draw_shots(pool, wanted, seed, 0).train
    print(f'{copy_shots(images.root, chosen, out)} images of {len(images.classes)} classes in {out}')
    if imbalance is not None:
        print(', '.join(f'{name} {len(ids)}' for name, ids in chosen.items()))


@app.command(rich_help_panel='Make images')
def split(
    data: Annotated[Path, typer.Argument(metavar='FOLDER', help='Your images: a folder with one folder per class.', show_default=False)],
    out: Annotated[Path, typer.Option(help='New folder for train/, val/ and test/.', show_default=False)],
    val: Annotated[float, typer.Option(metavar='SHARE', help='Of each class, to choose on; 0 for none.')] = 0.15,
    test: Annotated[float, typer.Option(metavar='SHARE', help='Of each class, to report on once; 0 for none.')] = 0.25,
    seed: Annotated[int, typer.Option(help='Of the draw.')] = 0,
) -> None:
    """Copy images into train/, val/ and test/, class by class in the same shares; equal files stay in one part.

    synthaug split my/images --out data/mine
    """
    from synthaug_plugins.data_split import split_folder
    from synthaug_plugins.real_images import RealImages

    for part, classes in split_folder(RealImages(data), out, val, test, seed).items():
        print(f'{out / part}: {sum(classes.values())} images, {min(classes.values())} to {max(classes.values())} of a class')


@app.command(rich_help_panel='Make images')
def verify(folder: Annotated[str, typer.Argument(metavar='STORE', help='A store, or a folder of learned embeddings.', show_default=False)]) -> None:
    """Check every byte of a store, or of learned embeddings; ends with status 4 when something is damaged or missing.

    synthaug verify stores/digits

    synthaug verify learned/inversion/embeddings
    """
    from synthaug_plugins.models.embedding_shards import EMBEDDINGS
    from synthaug_plugins.models.embedding_verify import verify_embeddings
    from synthaug_plugins.store.store import Store
    from synthaug_plugins.store.verify import verify as check

    if (learned := Path(folder)).joinpath(EMBEDDINGS).is_file():
        cure = 'Remove the shards and indexes that are named, and run the same `synthaug learn embeddings` again: their images are learned anew.'
        return _report_faults(folder, verify_embeddings(learned), cure)
    _report_faults(folder, check(Store.open(folder)), f'Run: synthaug repair {folder}')


def _report_faults(folder: str, faults: Sequence[object], cure: str) -> None:
    from synthaug_plugins.errors import FaultsFound

    for fault in faults:
        print(fault)
    if faults:
        raise FaultsFound(f'{len(faults)} {"fault" if len(faults) == 1 else "faults"} in {folder!r}.', cure)
    print(f'{folder}: no fault')


@app.command(rich_help_panel='Make images')
def repair(folder: StoreArg, device: Device = 'auto') -> None:
    """Make the damaged and missing blocks of a store again, and only those.

    The store itself says how: registered names and plain data, never code. The model and the images that it names are read, a model of the hub is
    fetched; so look into store.json before you repair a stranger's store.

    synthaug repair stores/digits
    """
    from synthaug_plugins.engine.generate import repair as run
    from synthaug_plugins.plugins import hooks_of_process

    _report_faults(folder, run(folder, device, hooks_of_process()), 'Remove these files yourself if you do not need them.')


@app.command(rich_help_panel='Make images')
def score(
    target: Annotated[str, typer.Argument(metavar='TARGET', help='A store, or with --out a folder of images with one folder per class.', show_default=False)],
    recipe: Annotated[str, typer.Argument(metavar='RECIPE', help='A file with inspectors = [...], or a shipped score recipe by name.', show_default=False)],
    name: Annotated[str | None, typer.Option(help='Of the scores, and first part of their verdict columns; default: the name of the recipe.')] = None,
    out: Annotated[Path | None, typer.Option(help='For a folder of images: the Parquet file to write.')] = None,
    data: Annotated[Path | None, typer.Option(help='Real images to compare with: a folder with one folder per class.')] = None,
    prefix: Annotated[str, typer.Option(help='Put before the names of the score columns, where the store has such columns already.')] = '',
    rejected: Annotated[bool, typer.Option(help='Look at rejected images too (if the recipe of the store kept them).')] = False,
    overwrite: Annotated[bool, typer.Option(help='Replace scores of that name, or the file.')] = False,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
) -> None:
    """Let inspectors look at a finished store, or at real images: adds score columns and NAME_kept to select by. Images stay as they are.

    The same command again goes on where a killed run stopped.

    synthaug score stores/digits clip_filter

    synthaug score stores/digits clip_filter --name strict --prefix strict_ --cfg-options inspectors.0.threshold=0.5

    synthaug score my/images minority --out my/scores.parquet
    """
    from synthaug_plugins.engine.score import load_score_recipe
    from synthaug_plugins.engine.score import score as run
    from synthaug_plugins.engine.score_folder import score_folder
    from synthaug_plugins.plugins import register_nouns
    from synthaug_plugins.recipes import find_recipe
    from synthaug_plugins.store.store import Store

    path = find_recipe(recipe, 'score')
    is_store = Store.is_one(target)
    if not is_store and out is None:
        raise StoreError(f'{target!r} is not a store.', 'Give one, or for a folder of images the file to write: --out scores.parquet.')
    if is_store and out is not None:
        raise RecipeError(f'{target!r} is a store, which takes its scores itself.', 'Leave --out out.')
    if out is not None and (prefix or rejected):
        raise RecipeError(f'{"--prefix" if prefix else "--rejected"} is for the columns of a store; {target!r} is none.', 'Leave it out.')
    register_nouns()
    options = recipe_options(cfg_options, data)
    loaded, name = load_score_recipe(path, options), name or Path(path).stem
    if out is not None:
        done = score_folder(target, loaded, out, device, name=name, overwrite=overwrite)
    else:
        done = run(target, loaded, name, device, prefix=prefix, rejected=rejected, overwrite=overwrite)
    print(done.table())
    print(f'columns: {", ".join(done.columns)}')
    if is_store and any(one.rejected for one in done.per_class.values()) and any(one.kept for one in done.per_class.values()):
        print(f"train on what was kept with select='{done.select}' in mix; look at it with: synthaug show {target} --out kept.png --where {done.select}")


@app.command(rich_help_panel='Look and hand over')
def show(
    folder: StoreArg,
    out: Annotated[Path, typer.Option(help='The picture to write, a PNG.', show_default=False)],
    where: Where = None,
    data: Annotated[Path | None, typer.Option(help='The real images that the variants started from: each is shown beside its variants.')] = None,
    columns: Annotated[int, typer.Option(min=1, help='Images per row.')] = 12,
    rows: Annotated[int, typer.Option(min=1, help='Rows per class.')] = 2,
    rejected: Annotated[bool, typer.Option(help='Show rejected images too, with the reason (if the recipe kept them).')] = False,
) -> None:
    """Draw a contact sheet of a store or of a selection, a few images per class.

    synthaug show stores/digits --out sheet.png --where "class_name = 'three'"
    """
    from synthaug_plugins.real_images import RealImages
    from synthaug_plugins.store.selection import select
    from synthaug_plugins.store.sheet import contact_sheet
    from synthaug_plugins.store.store import Store

    store = Store.open(folder)
    selection = select(store, where, rejected=rejected, allow_empty=True)
    contact_sheet(store, out, selection, rows=rows, columns=columns, real_images=RealImages(data) if data else None)
    print(selection.describe())
    print(out)
