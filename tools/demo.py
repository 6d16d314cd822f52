"""The demo: few labelled digits, variants of them from the embedded generator, a fair comparison, one report. CPU, offline.

    python tools/demo.py --out runs/demo

Finished steps are skipped: a second call, or one after a kill, goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

os.environ.setdefault('OMP_NUM_THREADS', '1')  # images of 8 x 8 gain nothing from threads, and lose much on a busy machine

CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SEEN, VALIDATION = 1200, 197  # by position: the file is ordered by writer, so a random split would leak handwriting
DRAWS, SHOTS = (0, 1, 2), (1, 5)
STRENGTHS, VARIANTS = (0.3, 0.6, 2.4), 8  # per source and strength


def write_digits(out: Path) -> None:
    """Write scikit-learn's digits as 8 x 8 PNG: `train`, `val`, `test`, `draw-<n>/1-shot` and `draw-<n>/5-shot`, one folder per class.

    `train` is what the embedded models were trained on. The one-shot set of a draw is part of its five-shot set. Nothing is
    written where `out` exists.
    """
    if out.exists():
        return
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images / 16 * 255).astype(np.uint8)
    partial = out.with_name(f'.partial-{out.name}')
    shutil.rmtree(partial, ignore_errors=True)

    def save(folder: str, positions: np.ndarray) -> None:
        for i in positions:
            path = partial / folder / CLASSES[digits.target[i]] / f'{i:04d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey[i]).save(path)

    save('train', np.arange(SEEN))
    save('val', np.arange(SEEN, SEEN + VALIDATION))
    save('test', np.arange(SEEN + VALIDATION, len(grey)))
    for draw in DRAWS:
        rng = np.random.default_rng(draw)
        order = [rng.permutation(np.flatnonzero(digits.target[:SEEN] == label)) for label in range(10)]
        for shots in SHOTS:
            save(f'draw-{draw}/{shots}-shot', np.concatenate([o[:shots] for o in order]))
    partial.rename(out)


def generate_command(recipe: str, store: Path, options: dict[str, Any], data: str | None = None) -> str:
    """The command line that makes the same store."""
    text = [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
    return shlex.join(['synthaug', 'generate', recipe, *(['--data', data] if data else []), '--out', str(store), '--cfg-options', *text])


def main() -> None:
    """Make data, stores, comparisons and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('runs/demo'), help='folder of everything that the demo makes')
    parser.add_argument('--only-data', action='store_true', help='write the digits as folders and stop')
    parser.add_argument('--jobs', type=int, default=2, help='training runs at the same time')
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.only_data:
        write_digits(out / 'data')
        print(out / 'data')
        return
    started = time.monotonic()

    from synthaug_plugins import compat
    from synthaug_plugins.engine.generate import generate
    from synthaug_plugins.engine.recipe import load_recipe
    from synthaug_plugins.evaluation.compare import compare, format_table
    from synthaug_plugins.evaluation.protocol import read_comparison
    from synthaug_plugins.evaluation.report import write_report
    from synthaug_plugins.evaluation.statistics import sentences
    from synthaug_plugins.plugins import get_plugin_manager, register_nouns
    from synthaug_plugins.real_images import RealImages
    from synthaug_plugins.recipes import find_recipe
    from synthaug_plugins.store.selection import select
    from synthaug_plugins.store.sheet import contact_sheet
    from synthaug_plugins.store.store import Store

    compat.apply()
    register_nouns()
    manager = get_plugin_manager()
    recipe = find_recipe('compare/digits_demo.py')
    print(*read_comparison(recipe).notes, '', sep='\n')
    write_digits(out / 'data')

    made = {'per_class': max(SHOTS) * len(STRENGTHS) * VARIANTS, 'generator.sigma': list(STRENGTHS)}
    commands = [f'python tools/demo.py --out {shlex.quote(str(out))}    # all of the following, and the digits as folders']
    for draw in DRAWS:
        for told, suffix in ((False, ''), (True, '-class-told')):
            data, store = str(out / 'data' / f'draw-{draw}' / f'{max(SHOTS)}-shot'), out / 'stores' / f'draw-{draw}{suffix}'
            options = {**made, 'generator.use_labels': told, 'seed': draw}
            generate(load_recipe(find_recipe('generate/digits_real_guidance.py'), {**options, 'data': data}), store, hook=manager.hook, quiet=True)
            commands.append(generate_command('digits_real_guidance', store, options, data))
            print(f'{store}: {made["per_class"]} variants of {max(SHOTS)} digits per class ({time.monotonic() - started:.0f} s)')

    store = out / 'stores' / 'text-to-image'
    options = {'per_class': made['per_class'], 'generator.prompts.cache': str(out / 'sentences')}
    generate(load_recipe(find_recipe('generate/he2023_zeroshot_digits.py'), options), store, hook=manager.hook, quiet=True)
    commands.append(generate_command('he2023_zeroshot_digits', store, options))
    print(f'{store}: {made["per_class"]} images per class from sentences ({time.monotonic() - started:.0f} s)')

    # One picture to look at: ten variants of one real digit per class, at the two lower strengths.
    store = Store.open(out / 'stores' / f'draw-{DRAWS[0]}-class-told')
    data = RealImages(out / 'data' / f'draw-{DRAWS[0]}' / f'{max(SHOTS)}-shot')
    title = 'Real digits (blue) and variants of them'
    contact_sheet(store, out / 'variants.png', select(store, 'params.sigma < 1'), columns=12, title=title, real_images=data)
    print(out / 'variants.png')

    results = []
    for shots in SHOTS:
        values = {'root': str(out), 'shots': shots}
        results.append(compare(recipe, out / f'{shots}-shot', manager, arguments.jobs, values, setup=register_nouns))
        print(f'\n{results[-1]["title"]} ({time.monotonic() - started:.0f} s)\n{format_table(results[-1])}')
    report = out / 'report.html'
    write_report(results, report, manager, title='Do made digits help a small classifier?', commands=commands)
    for result in results:
        print(f'\n{result["title"]}', *sentences(result), sep='\n  ')
    print(f'\nLook at {report} ({time.monotonic() - started:.0f} s)')


if __name__ == '__main__':
    main()
