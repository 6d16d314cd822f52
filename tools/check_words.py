"""Whether words are learned of digits that a text-to-image model was never told by name: a check of textual inversion from end to end.

    python tools/check_words.py --out runs/words [--per-class 50] [--cfg-options training.steps=600 ...]

`embedded:digits_sd_unnamed` has seen twos, fours and sevens, but no caption names them. Their words are learned from 8 images each of writers that
it never saw, by the shipped recipe; then images are drawn from noise with the word, and with the class name. A support vector machine trained on
real digits says which digit each is. A model that draws any of the three unnamed digits when it is told a word that it does not know is at 33 %.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from demo import CLASSES, SEEN
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from synthaug_plugins.cli.app import parse_options, spread_cfg_options
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.learn_words import learn_class_words
from synthaug_plugins.engine.learn_words_recipe import load_words_recipe
from synthaug_plugins.engine.recipe import complete
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.store import Store

MODEL, UNNAMED, SHOTS = 'embedded:digits_sd_unnamed', ('two', 'four', 'seven'), 8


def write_shots(folder: Path) -> None:
    """The first 8 images of each unnamed digit from position 1200 on, which the model did not see."""
    digits = load_digits()
    for name in UNNAMED:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in SEEN + np.flatnonzero(digits.target[SEEN:] == CLASSES.index(name))[:SHOTS]:
            Image.fromarray(np.round(digits.images[i] / 16 * 255).astype(np.uint8)).save(folder / name / f'{i:04d}.png')


def recognised(store: Store, label_of: dict[str, int]) -> dict[str, np.ndarray]:
    """Class -> the digit that a support vector machine of real digits takes each of its images for."""
    digits = load_digits()
    machine = SVC(gamma=0.256).fit(digits.data[:SEEN] / 16, digits.target[:SEEN])  # as tools/digits_check.py
    reader, found = StoreReader(store.folder), {name: [] for name in label_of}
    for row in store.index().to_pylist():
        image = Image.open(io.BytesIO(reader.read_image(row))).convert('L').resize((8, 8), Image.Resampling.BOX)
        found[store.classes[row['label']]].append(np.asarray(image).reshape(-1) / 255)
    return {name: machine.predict(np.stack(pixels)) for name, pixels in found.items()}


def main() -> None:
    """Learn, draw, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder of everything that is made; a second call goes on')
    parser.add_argument('--per-class', type=int, default=100, help='images from noise')
    parser.add_argument('--guidance-scale', type=float, default=6.0)
    parser.add_argument('--cfg-options', action='append', default=[], metavar='KEY=VALUE ...', help='of the recipe dafusion_words_digits')
    given = parser.parse_args(spread_cfg_options(sys.argv[1:]))
    write_shots(given.out / 'shots')
    options = {'model.name': MODEL, 'data': str(given.out / 'shots'), **parse_options(given.cfg_options)}
    words = learn_class_words(load_words_recipe(find_recipe('dafusion_words_digits', 'learn'), options), given.out / 'words')
    label_of = {name: CLASSES.index(name) for name in UNNAMED}
    for kind, told in (('word', {'words': str(words)}), ('class name', {})):
        generator = {'type': 'synthaug_plugins.TextToImage', 'model': MODEL, 'num_steps': 25, 'guidance_scale': given.guidance_scale, **told}
        recipe = complete({'generator': generator, 'classes': list(UNNAMED), 'per_class': given.per_class, 'batch_size': 50, 'inspectors': []})
        store = generate(recipe, given.out / f'by-{kind.replace(" ", "-")}')
        for name, said in recognised(store, label_of).items():
            counts = ', '.join(f'{CLASSES[c]} {n}' for c, n in enumerate(np.bincount(said, minlength=10)) if n)
            print(f'{name:6} by its {kind:10} {100 * (said == label_of[name]).mean():5.1f} % recognised   ({counts})', flush=True)


if __name__ == '__main__':
    main()
