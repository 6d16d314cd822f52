"""The `synthaug` command: thin shells over the functions of the rooms below. Heavy imports happen inside each command."""

from __future__ import annotations

import ast
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from synthaug_plugins import __version__
from synthaug_plugins.errors import RecipeError, Stopped, SynthAugError

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
StoreArg = Annotated[Path, typer.Argument(metavar='FOLDER', help='A store: a folder that `synthaug generate` made.', show_default=False)]
CfgOptions = Annotated[list[str] | None, typer.Option(CFG_OPTIONS, metavar='KEY=VALUE ...', help='Set recipe keys, dotted: seed=1 image.format=webp.')]
Device = Annotated[str, typer.Option(help='auto, cpu, cuda, cuda:1, ...')]
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
        except (ValueError, SyntaxError):
            options[key] = {'true': True, 'false': False, 'none': None}.get(text.lower(), text)
    return options


def spread_cfg_options(arguments: Sequence[str]) -> list[str]:
    """Let one `--cfg-options` take several pairs, as MMPretrain's own tools do: the option is repeated before each."""
    spread: list[str] = []
    taking = False
    for argument in arguments:
        if argument == CFG_OPTIONS:
            taking = True
            continue
        taking = taking and '=' in argument and not argument.startswith('-')
        spread += [CFG_OPTIONS, argument] if taking else [argument]
    return spread


@app.command(rich_help_panel='Make images')
def generate(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help='Folder of the store: new, empty, or one of the same recipe to go on with.', show_default=False)],
    data: Annotated[Path | None, typer.Option(help='Your images: a folder with one folder per class.')] = None,
    cfg_options: CfgOptions = None,
    device: Device = 'auto',
) -> None:
    """Make the images of a recipe into a store; the same command again goes on where a killed run stopped.

    synthaug generate digits_edm --out stores/digits

    synthaug generate digits_real_guidance --data my/images --out stores/mine --cfg-options per_class=50 seed=1
    """
    from synthaug_plugins.engine.generate import generate as run
    from synthaug_plugins.engine.recipe import load_recipe
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns
    from synthaug_plugins.recipes import find_recipe

    if '::' in recipe:
        raise RecipeError(f'{recipe!r} is a training recipe.', 'Use `synthaug train`.')
    register_nouns()
    options = parse_options(cfg_options)
    if data is not None:
        options['data'] = str(data)
    store = run(load_recipe(find_recipe(recipe), options), out, device, get_plugin_manager().hook)
    print(f'{sum(c["kept"] for c in store.counts().values())} images of {len(store.classes)} classes in {out}')


@app.command(rich_help_panel='Make images')
def verify(folder: StoreArg) -> None:
    """Check every byte of a store; ends with status 4 when something is damaged or missing.

    synthaug verify stores/digits
    """
    from synthaug_plugins.store.store import Store
    from synthaug_plugins.store.verify import verify as check

    _report_faults(folder, check(Store.open(folder)), f'Run: synthaug repair {folder}')


def _report_faults(folder: Path, faults: Sequence[object], cure: str) -> None:
    from synthaug_plugins.errors import FaultsFound

    for fault in faults:
        print(fault)
    if faults:
        raise FaultsFound(f'{len(faults)} {"fault" if len(faults) == 1 else "faults"} in {str(folder)!r}.', cure)
    print(f'{folder}: no fault')


@app.command(rich_help_panel='Make images')
def repair(folder: StoreArg, device: Device = 'auto') -> None:
    """Make the damaged and missing blocks of a store again, and only those.

    synthaug repair stores/digits
    """
    from synthaug_plugins.engine.generate import repair as run
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns

    register_nouns()
    _report_faults(folder, run(folder, device, get_plugin_manager().hook), 'Remove these files yourself if you do not need them.')


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


@app.command(rich_help_panel='Look and hand over')
def export(
    folder: StoreArg,
    out: Annotated[Path, typer.Option(help='Folder to write; new or empty.', show_default=False)],
    to: Annotated[str, typer.Option(help='imagefolder: one folder per class, as torchvision and MMPretrain read it.')] = 'imagefolder',
    where: Where = None,
    allow_empty: Annotated[bool, typer.Option(help='Let a class be left without images.')] = False,
) -> None:
    """Write the images of a store in another layout.

    synthaug export stores/digits --to imagefolder --out digits_folder
    """
    from synthaug_plugins.errors import nearest
    from synthaug_plugins.store.export import export_imagefolder
    from synthaug_plugins.store.selection import select
    from synthaug_plugins.store.store import Store

    if to != 'imagefolder':
        raise RecipeError(f'--to {to}: unknown layout.', nearest(to, ['imagefolder']))
    store = Store.open(folder)
    selection = select(store, where, allow_empty=allow_empty)
    export_imagefolder(store, out, selection)
    print(f'{selection.table.num_rows} images in {out}')


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
    return configure(load_recipe(find_recipe(recipe), parse_options(cfg_options)), get_plugin_manager(), extra)


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
    path = find_recipe(recipe)
    folder = out or Path('runs') / Path(path).stem
    results = run(path, folder, get_plugin_manager(), jobs, parse_options(values, '--set'), setup=register_nouns)
    write_report([results], folder / 'report.html', get_plugin_manager())
    print(format_table(results))
    print(folder / 'report.html')


@app.command(rich_help_panel='Look and hand over')
def init(
    name: Annotated[str, typer.Argument(help='A shipped recipe; `synthaug list` names them.', show_default=False)],
    out: Annotated[Path, typer.Option(help='Folder to copy it into.')] = Path(),
) -> None:
    """Copy a shipped recipe into your folder, to edit it.

    synthaug init digits_real_guidance
    """
    from synthaug_plugins.recipes import copy_recipe

    print(copy_recipe(name, out))


@app.command('list', rich_help_panel='Know your installation')
def list_names(pattern: Annotated[str, typer.Argument(help='Show only names that match, with * and ?.')] = '*') -> None:
    """List everything that a recipe can name: generators, inspectors, recipes, embedded models, recipe keys.

    synthaug list '*guidance*'
    """
    from synthaug_plugins.inventory import inventory

    for section, entries in inventory(pattern).items():
        print(section)
        for name, text in entries.items():
            print(f'  {name:34} {text}')


@app.command(rich_help_panel='Know your installation')
def plugins() -> None:
    """List the loaded plugins: where each comes from and which hooks it implements.

    SYNTHAUG_TRACE_PLUGINS=1 synthaug plugins
    """
    from synthaug_plugins.plugins import list_plugins

    for plugin in list_plugins():
        print(f'{plugin.name:16} {plugin.origin:28} {", ".join(plugin.hooks)}')


@app.command(rich_help_panel='Know your installation')
def doctor() -> None:
    """Explain the environment: versions, which OpenMMLab family, what would break and what it costs; status 1 if anything must be mended.

    synthaug doctor
    """
    from synthaug_plugins.doctor import examine

    findings = examine()
    for finding in findings:
        print(finding)
    if any(f.level == 'error' for f in findings):
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command line: refusals become one line on standard error and their own exit status."""
    from synthaug_plugins.plugins import get_plugin_manager

    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):  # cluster schedulers send the first: end as Ctrl-C does
        signal.signal(number, stop)
    get_plugin_manager().hook.synthaug_add_commands(app=app)
    try:
        app(spread_cfg_options(sys.argv[1:] if arguments is None else arguments))
    except SynthAugError as error:
        print(f'synthaug: {str(error).removeprefix("synthaug: ")}', file=sys.stderr)
        sys.exit(128 + received[0] if received and isinstance(error, Stopped) else error.exit_code)


if __name__ == '__main__':
    main()
