"""Does minority guidance make rarer digits, the more the higher the level and the larger the weight, and do they keep their label?

    python tools/check_minority.py --out runs/minority [--per-level 1000] [--per-strength 300] [--features pixels --features embedded:digits_clip]

First, on the real digits: how well the minority score, at several noise levels, with and without the class, goes with the distance to a digit's nearest
neighbours (Spearman's rank correlation), and that two scorings with one seed give equal columns. Then the shipped recipes learn the levels and their
classifier and make four stores: every level at one weight, the rarest level at every weight, and the two methods without a classifier at several strengths.
`evaluate` measures them against the 1,200 real digits that the model was trained on; the metrics and the label agreement of each level and weight are printed
with whether they rise, and stand with their curves in OUT/report-FEATURES/report.html.

Everything that is finished is kept; a second call goes on.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo import write_digits
from scipy.stats import spearmanr

from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.learn_minority import FOLDER, learn_minority
from synthaug_plugins.engine.learn_minority_recipe import load_minority_recipe
from synthaug_plugins.engine.recipe import load_recipe
from synthaug_plugins.engine.score import load_score_recipe
from synthaug_plugins.engine.score_folder import read_folder_scores, score_folder
from synthaug_plugins.evaluation.evaluate import evaluate
from synthaug_plugins.evaluation.evaluation_files import write_evaluation
from synthaug_plugins.evaluation.metrics.features import feature_network
from synthaug_plugins.evaluation.metrics.neighbours import nearest
from synthaug_plugins.evaluation.metrics.sets import real_set
from synthaug_plugins.evaluation.metrics.table import Row, table_text
from synthaug_plugins.models.level_classifier import LevelClassifierModel
from synthaug_plugins.plugins import register_nouns
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.recipes import find_recipe

DEVICE = torch.device('cpu')
SCORED = [*((sigma, True, 5) for sigma in (0.25, 0.5, 1.0, 2.0, 4.0, 6.5)), (1.0, False, 5), (1.0, True, 20)]
"""Noise level, whether the model is told the class, draws."""
LEVEL, WEIGHT = 'params.minority_level', 'params.minority_weight'
SHOWN = ('avg_knn', 'lof', 'rarity', 'excluded', 'precision', 'recall', 'agreement', 'zero_shot')


def scores(data: Path, out: Path, **options: Any) -> np.ndarray:
    """The minority score of every digit, by the shipped recipe with these options; scored anew each time."""
    changes = {f'inspectors.0.{key}': value for key, value in options.items()}
    recipe = load_score_recipe(find_recipe('minority_digits', 'score'), changes)
    score_folder(data, recipe, out, 'cpu', overwrite=True, quiet=True)
    return read_folder_scores(out)['minority_score'].to_numpy()


def about_scores(data: Path, out: Path, features: Sequence[str]) -> list[str]:
    """How the score goes with the distance to neighbours, and whether it repeats."""
    images, lines, distances = RealImages(data), [], []
    for text in features:
        network, reals = feature_network(text), real_set(RealImages(data), 'real')
        network.check()
        network.setup(DEVICE)
        reals.encode(network, lambda n: None)
        points = torch.from_numpy(np.asarray(reals.features)).double()
        distances.append(nearest(points, points, 5, same=True)[0].mean(1).numpy())
    lines.append(
        f'Rank correlation of the minority score of {sum(len(images.ids(c)) for c in images.classes)} real digits with AvgkNN (k = 5, itself left out) of'
    )
    lines.append('  sigma   told the class   draws  ' + '  '.join(f'{text:>22}' for text in features) + '    and with itself, another seed')
    for sigma, told, draws in SCORED:
        asked = {'sigma': sigma, 'use_labels': told, 'draws': draws}
        found, other = (scores(data, out / 'scores.parquet', **asked, seed=seed) for seed in (0, 1))
        near = '  '.join(f'{spearmanr(found, d).statistic:22.3f}' for d in distances)
        lines.append(f'{sigma:7g}   {"yes" if told else "no":14} {draws:6}   {near} {spearmanr(found, other).statistic:22.3f}')
    again = scores(data, out / 'scores.parquet', **asked)
    lines.append(f'The last line scored twice with one seed: {"equal to the bit" if np.array_equal(found, again) else "DIFFERENT"}.\n')
    return lines


def make(recipe: str, folder: Path, per_class: int, options: Mapping[str, Any]) -> Path:
    """A store by a shipped recipe: every image is kept, whatever inspectors think of its label, since that is what is measured."""
    changes = {'per_class': per_class, 'inspectors': [], 'block_size': 1000, 'batch_size': 250, **options}
    generate(load_recipe(find_recipe(recipe, 'generate'), changes), folder, 'cpu', quiet=True)
    return folder


def rises(rows: Sequence[Row], metric: str) -> str:
    """Whether a metric rises from value to value."""
    of = [(float(row.value), row.measures.values[metric]) for row in rows]  # type: ignore[arg-type]
    of.sort(key=lambda pair: pair[0])
    steps = [(b.mean - a.mean, (a.se or 0, b.se or 0)) for (_, a), (_, b) in itertools.pairwise(of)]
    down = sum(step < 0 for step, _ in steps)
    beyond = sum(step < -2 * float(np.hypot(*error)) for step, error in steps)
    rank = spearmanr([value for value, _ in of], [value.mean for _, value in of]).statistic
    verdict = 'rises at every step' if not down else f'falls at {down} of {len(steps)} steps, {beyond} of them beyond two standard errors'
    return f'{metric}: {verdict}; rank correlation of the means {rank:.3f}; first {of[0][1].mean:.4g}, last {of[-1][1].mean:.4g}'


def main(arguments: Sequence[str] = sys.argv[1:]) -> None:
    """Score, learn, make, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder of everything that is made; a second call goes on')
    parser.add_argument('--per-level', type=int, default=1000, help='images at each level, about: neighbouring levels differ little')
    parser.add_argument('--per-strength', type=int, default=300, help='images at each weight or boost, about')
    parser.add_argument('--features', action='append', help='networks whose features are compared; default: pixels and embedded:digits_clip')
    parser.add_argument('--weight', type=float, default=2.0, help='at which levels are compared')
    parser.add_argument('--weights', type=float, nargs='+', default=[0, 1, 2, 3.5, 5])
    parser.add_argument('--self-guided', type=float, nargs='+', default=[0, 0.4, 0.8, 1.6])
    parser.add_argument('--boosts', type=float, nargs='+', default=[1, 1.1, 1.2, 1.4])
    given = parser.parse_args(arguments)
    features = given.features or ['pixels', 'embedded:digits_clip']
    register_nouns()
    write_digits(given.out / 'data')
    data = given.out / 'data' / 'train'
    lines = about_scores(data, given.out, features)
    learned = learn_minority(load_minority_recipe(find_recipe('minority_digits', 'learn'), {'data': str(data)}), given.out / 'learned', 'cpu', quiet=True)
    assert learned == given.out / 'learned' / FOLDER
    levels = LevelClassifierModel(str(learned)).levels.count
    told = {'generator.guidance.0.classifier': str(learned)}
    weighed, selves, boosted = (given.per_strength * len(strengths) for strengths in (given.weights, given.self_guided, given.boosts))
    made = {
        'levels': (
            'minority_digits',
            given.per_level * levels,
            {**told, 'generator.guidance.0.level': list(range(levels)), 'generator.guidance.0.weight': given.weight},
        ),
        'weights': ('minority_digits', weighed, {**told, 'generator.guidance.0.level': levels - 1, 'generator.guidance.0.weight': given.weights}),
        'self_guided': ('minority_digits_self_guided', selves, {'generator.guidance.0.weight': given.self_guided}),
        'boost_and_skip': ('minority_digits_boost_and_skip', boosted, {'generator.guidance.0.boost': given.boosts}),
    }
    stores = [make(recipe, given.out / 'stores' / name, images // 10, options) for name, (recipe, images, options) in made.items()]
    lines.append((given.out / 'learned' / 'validation.csv').read_text())
    command = f'python tools/check_minority.py --out {given.out} --per-level {given.per_level} --per-strength {given.per_strength}'
    for text in features:
        found = evaluate(stores, data, text, by=[LEVEL, WEIGHT], held_out=given.out / 'data' / 'test', device='cpu', quiet=True)
        write_evaluation(found, given.out / f'report-{text.replace(":", "-")}', command)
        lines += [f'== {text}', found.about, *found.notes, table_text(found.rows), '']
        for name, by in (('levels', LEVEL), ('weights', WEIGHT), ('self_guided', WEIGHT), ('boost_and_skip', WEIGHT)):
            rows = [row for row in found.rows if row.name == name and row.by == by]
            lines += [f'{name}, over {by}:', *(f'  {rises(rows, metric)}' for metric in SHOWN if metric in rows[0].measures.values), '']
    text = '\n'.join(lines)
    (given.out / 'result.txt').write_text(text + '\n')
    print(text)


if __name__ == '__main__':
    main()
