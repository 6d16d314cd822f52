"""What Diffusion Inversion does to digits: how near an embedding brings the model to its image, and whether perturbed embeddings make more diverse images.

    python tools/check_inversion.py --out runs/inversion [--shots 5] [--variants 4] [--data FOLDER] [--cfg-options training.steps=600 ...]

Embeddings are learned by the shipped recipe for a few digits of each class, of writers that `embedded:digits_sd` never saw. Each image is then made again
from its embedding, from the prompt of its class with the same noise, and by the VAE alone. After that the generator DiffusionInversion makes variants of
every image: with noise lambda on the embedding and no partner, and with a share alpha of a partner of its class and no noise. All settings start from the
same noise, so that what differs between them is the perturbation. Diversity is the mean distance between two variants of one image; with lambda = alpha = 0
the starting noise alone makes it. A support vector machine trained on real digits says how many variants still show their class.

FOLDER holds one folder per class, named as tools/demo.py names them; unless given, digits from position 1200 on are written.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo import CLASSES, SEEN, write_digits
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from synthaug_plugins.cli.app import parse_options, spread_cfg_options
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.learn_embeddings import learn_image_embeddings
from synthaug_plugins.engine.learn_embeddings_recipe import load_embeddings_recipe
from synthaug_plugins.engine.learn_output import draw_sheet
from synthaug_plugins.engine.recipe import load_recipe
from synthaug_plugins.few_shot import copy_shots, draw_shots
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.plugins import register_nouns
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.store import Store

LAMBDAS, ALPHAS = (0.1, 0.2, 0.4, 0.8, 1.6), (0.1, 0.3, 0.5)
NOTHING = (0.0, 0.0)
SETTINGS = (NOTHING, *((value, 0.0) for value in LAMBDAS), *((0.0, value) for value in ALPHAS))
"""(lambda, alpha); one of them differs from nothing at a time."""


class Judge:
    """What is measured of images of 8 x 8: the digit that they show, and features of them."""

    def __init__(self) -> None:
        digits = load_digits()
        self._machine = SVC(gamma=0.256).fit(digits.data[:SEEN] / 16, digits.target[:SEEN])  # as tools/digits_check.py
        self._clip = ClipModel('embedded:digits_clip')
        self._clip.load(torch.device('cpu'))

    def recognised(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which images (n, 8, 8, 3) uint8 show their class, (n,)."""
        grey = np.stack([np.asarray(Image.fromarray(image).convert('L')).reshape(-1) for image in images])
        return self._machine.predict(grey / 255) == labels

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of CLIP, (n, d), of length 1."""
        found = self._clip.batch_features(list(images)).double().numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def pairwise(vectors: np.ndarray) -> float:
    """Mean Euclidean distance between two of (m, d)."""
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    return float(apart[np.triu_indices(len(vectors), 1)].mean())


def said(values: np.ndarray, digits: int) -> str:
    """Mean and its standard error."""
    return f'{values.mean():.{digits}f} +- {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}'


def learn(given: argparse.Namespace, data: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of embeddings, and the figures of how near they bring the model to their images."""
    count = sum(1 for _ in data.glob('*/*.png'))
    options = {'data': str(data), 'samples.images': count, **parse_options(given.cfg_options)}
    folder = learn_image_embeddings(load_embeddings_recipe(find_recipe('inversion_digits', 'learn'), options), given.out / 'learned')
    return folder, json.loads((given.out / 'learned' / 'samples.json').read_text())['figures']


def variants(store: Store) -> dict[str, np.ndarray]:
    """Source -> its variants (m, 8, 8, 3) uint8, in the order of their requests."""
    reader, found = StoreReader(store.folder), dict[str, list[np.ndarray]]()
    for row in store.index().to_pylist():
        found.setdefault(row['source'], []).append(np.asarray(Image.open(io.BytesIO(reader.read_image(row))).convert('RGB')))
    return {source: np.stack(images) for source, images in sorted(found.items())}


def make(given: argparse.Namespace, data: Path, embeddings: Path, lam: float, alpha: float) -> dict[str, np.ndarray]:
    """Variants of every image under one setting."""
    options = {'data': str(data), 'per_source': given.variants, 'inspectors': [], 'seed': 0}
    options |= {f'generator.{key}': value for key, value in (('embeddings', str(embeddings)), ('lambdas', [lam]), ('alphas', [alpha]))}
    options['generator.guidance_scales'] = [given.guidance_scale]
    recipe = load_recipe(find_recipe('inversion_digits', 'generate'), options)
    return variants(generate(recipe, given.out / 'stores' / f'lambda-{lam:g}-alpha-{alpha:g}', quiet=True))


def pixels(images: np.ndarray) -> np.ndarray:
    """Images (n, H, W, 3) uint8 as vectors whose Euclidean distance is the root mean square difference of pixels, 0 to 255."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    return flat / flat.shape[1] ** 0.5


def report(made: dict[tuple[float, float], dict[str, np.ndarray]], real: dict[str, np.ndarray], judge: Judge) -> list[str]:
    """The table, and what it says."""
    lines = ['lambda  alpha   distance between variants     of their features    distance to the source    recognised']
    diversity = {}
    for setting, sets in made.items():
        apart, features, away, right = (np.zeros(len(sets)) for _ in range(4))
        for k, (source, images) in enumerate(sets.items()):
            apart[k], features[k] = pairwise(pixels(images)), pairwise(judge.features(images))
            away[k] = np.linalg.norm(pixels(images) - pixels(real[source][None]), axis=1).mean()
            right[k] = judge.recognised(images, np.full(len(images), CLASSES.index(source.split('/')[0]))).mean()
        diversity[setting] = apart
        figures = f'{said(apart, 2):>22}    {said(features, 4):>19}    {said(away, 2):>17}      {said(100 * right, 1)} %'
        lines.append(f'{setting[0]:6g} {setting[1]:6g}   {figures}')
    of_class = [np.stack([image for source, image in real.items() if source.startswith(f'{name}/')]) for name in CLASSES]
    between = np.array([pairwise(pixels(images)) for images in of_class])
    lines.append(f'\nFor comparison, two real images of one class are {said(between, 2)} apart (mean over classes).\n')
    for name, place in (('lambda', 0), ('alpha', 1)):
        for before, after in itertools.pairwise(s for s in diversity if s[1 - place] == 0):
            change = diversity[after] - diversity[before]
            error = change.std(ddof=1) / len(change) ** 0.5
            verdict = 'grows' if change.mean() > 2 * error else 'falls' if change.mean() < -2 * error else 'does not change beyond two standard errors'
            lines.append(f'{name} {before[place]:g} -> {after[place]:g}: {change.mean():+.2f} +- {error:.2f} over the sources; diversity {verdict}')
    return lines


def sheet(path: Path, made: dict[tuple[float, float], dict[str, np.ndarray]], real: dict[str, np.ndarray]) -> None:
    """One source of each class in a column: the real image, then its first two variants under every setting."""
    sources = [next(source for source in real if source.startswith(f'{name}/')) for name in CLASSES]
    rows = [('real', np.stack([real[source] for source in sources]))]
    for (lam, alpha), sets in made.items():
        rows += [(f'lambda {lam:g}, alpha {alpha:g}', np.stack([sets[source][k] for source in sources])) for k in (0, 1)]
    draw_sheet(path, rows)


def main(arguments: Sequence[str] = sys.argv[1:]) -> None:
    """Learn, make, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder of everything that is made; a second call goes on')
    parser.add_argument('--data', type=Path, help='digits, a folder per class; default: those that the model did not see')
    parser.add_argument('--shots', type=int, default=5, help='images per class')
    parser.add_argument('--variants', type=int, default=4, help='of each image, under every setting')
    parser.add_argument('--guidance-scale', type=float, default=2.0)
    parser.add_argument('--cfg-options', action='append', default=[], metavar='KEY=VALUE ...', help='of the recipe inversion_digits of synthaug learn')
    given = parser.parse_args(spread_cfg_options(arguments))
    register_nouns()
    if given.data is None:
        write_digits(given.out / 'data')
        given.data = given.out / 'data' / 'val'
    images, data = RealImages(given.data), given.out / f'{given.shots}-shot'
    if not data.exists():
        copy_shots(images.root, draw_shots({name: images.ids(name) for name in images.classes}, given.shots, 0, 0).train, data)
    embeddings, near = learn(given, data)
    taken = RealImages(data)
    real = {i: taken.load(i) for name in taken.classes for i in taken.ids(name)}
    made = {setting: make(given, data, embeddings, *setting) for setting in SETTINGS}
    sheet(given.out / 'sheet.png', made, real)
    ways = {'by the VAE and back': 'round_trip', 'from its embedding': 'embedding', 'from the prompt of its class': 'class'}
    lines = [f'{near["images"]} real images and their reconstructions (root mean square difference of pixels, 0 to 255, at the size of the model):\n']
    lines += [f'  {what:29} {near[way][0]:6.2f} +- {near[way][1]:.2f}' for what, way in ways.items()]
    lines += [f'  nearer from the embedding than from the prompt: {near["closer"]} of {near["images"]}\n']
    values, _ = Embeddings(embeddings).read(range(len(real)))
    spread = (values - values.mean(dim=0)).square().mean().sqrt()
    lines.append(
        f'Values of the embeddings: root mean square {values.square().mean().sqrt():.2f}, {spread:.2f} around their mean; lambda compares with that.\n'
    )
    lines += [f'{given.variants} variants of each of {len(real)} images, guidance scale {given.guidance_scale:g}, pixels 0 to 255, +- one standard error:\n']
    text = '\n'.join([*lines, *report(made, real, Judge())])
    (given.out / 'result.txt').write_text(text + '\n')
    print(text)


if __name__ == '__main__':
    main()
