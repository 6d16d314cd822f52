"""Train the embedded model `digits_edm` from nothing: `synthaug learn edm edm_digits`, then a check and a card.

    python tools/train_digits_edm.py      # 10 to 25 minutes on one CPU core; a second call goes on

It sees scikit-learn's digits 0 to 1199 only. The file is ordered by writer, so the rest (1200 to 1796) is the work of other
hands, and is left for testing. How the recipe's length, dropout and augmentation were chosen: tools/benchmarks/results/digits_edm_trial.txt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from demo import CLASSES, SEEN, write_digits
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import synthaug_plugins
from synthaug_plugins.diffusion import SampleNoise, build_denoiser, full_float32, sample
from synthaug_plugins.engine.learn import learn
from synthaug_plugins.engine.learn_recipe import load_learn_recipe
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.weights import CARD, load_weights, read_config, read_json, save_model

OUT = Path(synthaug_plugins.__file__).parent / 'assets' / 'digits_edm'


def generate(folder: Path, per_class: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (10 * per_class, 8, 8) uint8 and labels from the saved model, by the sampler's defaults (Heun, 18 steps)."""
    denoiser = build_denoiser(read_config(folder))
    denoiser.load_state_dict(load_weights(folder))
    labels = torch.arange(10).repeat_interleave(per_class)
    latents = SampleNoise([seed * 10**6 + i for i in range(len(labels))], (1, 8, 8)).latents()
    with full_float32():
        x = torch.cat([sample(denoiser.eval(), z, cond=c) for z, c in zip(latents.split(500), labels.split(500), strict=True)])
    return ((x[:, 0] * 127.5 + 127.5).round().clamp(0, 255).byte().numpy(), labels.numpy())


def check(folder: Path, per_class: int = 200) -> dict[str, object]:
    """What a classifier of real digits says of generated ones, and how near they come to single training images."""
    digits = load_digits()
    real_flat, real_labels = digits.data[:SEEN] / 16, digits.target[:SEEN]
    fake, labels = generate(folder, per_class)
    fake_flat = fake.reshape(len(fake), -1) / 255.0
    said = SVC(gamma=0.256).fit(real_flat, real_labels).predict(fake_flat)  # 0.001 on the usual scale of 0..16
    square = (real_flat**2).sum(1)
    to_real = np.sqrt(np.maximum((fake_flat**2).sum(1)[:, None] + square - 2 * fake_flat @ real_flat.T, 0)).min(1)
    among = np.maximum(square[:, None] + square - 2 * real_flat @ real_flat.T, 0)
    np.fill_diagonal(among, np.inf)
    return {
        'classifier': 'support vector machine (RBF), trained on the 1200 real training images only',
        'generated_per_class': per_class,
        'accuracy': round(float((said == labels).mean()), 4),
        'accuracy_per_class': {name: round(float((said == labels)[labels == c].mean()), 3) for c, name in enumerate(CLASSES)},
        'nearest_training_image': {
            'what': 'Euclidean distance over pixels in 0..1 to the nearest training image, median over images',
            'generated': round(float(np.median(to_real)), 4),
            'training_images_to_each_other': round(float(np.median(np.sqrt(among.min(1)))), 4),
            'generated_nearer_than_0.2': round(float((to_real < 0.2).mean()), 4),
        },
        'spread': {
            'what': 'standard deviation over the images of a class, mean over pixels and classes, pixels in 0..1',
            'generated': round(float(np.mean([fake_flat[labels == c].std(0).mean() for c in range(10)])), 4),
            'training_images': round(float(np.mean([real_flat[real_labels == c].std(0).mean() for c in range(10)])), 4),
        },
    }


def draw_sheet(folder: Path, scale: int = 5) -> None:
    """sheet.png: one row per class, ten images each, enlarged without smoothing."""
    images, _ = generate(folder, 10, seed=1)
    padded = np.pad(images.repeat(scale, 1).repeat(scale, 2), ((0, 0), (1, 1), (1, 1)), constant_values=64)
    rows = [np.concatenate(padded[10 * c : 10 * c + 10], axis=1) for c in range(10)]
    Image.fromarray(np.concatenate(rows)).save(folder / 'sheet.png', optimize=True)


def complete_card(card: dict, check: dict) -> dict:
    """The card that `synthaug learn edm` wrote, with what is known of these data and the check."""
    return {
        **card,
        'what': 'Class-conditional EDM denoiser of 8x8 grey handwritten digits (white on black), 10 classes.',
        'data': {
            **card['data'],
            'name': 'Optical Recognition of Handwritten Digits, as shipped with scikit-learn (load_digits)',
            'origin': 'E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, CC BY 4.0; scikit-learn is BSD-3-Clause',
            'split': f'images 0 to {SEEN - 1} by position (the file is ordered by writer); {SEEN} to 1796 were never seen',
            'preprocessing': 'grey level 0..16 times 255/16, rounded to uint8; then uint8 / 127.5 - 1',
        },
        'training': {**card['training'], 'script': 'tools/train_digits_edm.py'},
        'check': check,
    }


def describe(card: dict) -> str:
    """card.md: the card for a reader."""
    found, training = card['check'], card['training']
    near = found['nearest_training_image']
    return f"""# digits_edm

{card['what']}

![ten images of each class](sheet.png)

- Data: {card['data']['name']}.
  {card['data']['origin']}.
- Seen: {card['data']['split']}.
  It knows 1200 labels. A classifier that is given fewer gets help that it could not have made from its own data: here the
  model stands in for one trained on the web.
- Training: {training['parameters']:,} parameters; {training['images_shown']:,} images shown in {training['steps']:,} steps;
  {training['seconds'] / 60:.0f} minutes (wall clock) on one CPU core of a shared machine;
  loss {training['loss_curve'][0][1]:.3f} at first, {training['loss_curve'][-1][1]:.3f} at last.
- Augmentation: non-leaking, p = {training['augment']['p']}, mirrored, turned, scaled, stretched or shifted, told to the network by 9
  numbers. Label dropout 0.1, so it runs without a class, too.
- Class: a support vector machine trained on the real training images calls {100 * found['accuracy']:.1f} % of
  {10 * found['generated_per_class']} generated ones by the class they were asked for;
  the worst class is at {100 * min(found['accuracy_per_class'].values()):.1f} %.
- Copies: the nearest training image of a generated one is {near['generated']:.2f} away (median, Euclidean, pixels in 0..1); that of
  a training image {near['training_images_to_each_other']:.2f}. Nearer than 0.2: {100 * near['generated_nearer_than_0.2']:.1f} %.
- Spread within a class: {found['spread']['generated']:.3f}; of the training images {found['spread']['training_images']:.3f}.
- Licence of the weights: {card['licence']}. Made from nothing by `{training['script']}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=OUT, help='the model folder')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digits_edm'), help='data, checkpoints, sample sheets')
    args = parser.parse_args()
    write_digits(args.work_dir / 'digits')
    options = {'data': str(args.work_dir / 'digits' / 'seen'), 'classes': list(CLASSES), 'name': 'digits_edm', 'licence': 'Apache-2.0'}
    learn(load_learn_recipe(find_recipe('learn/edm_digits.py'), options), args.work_dir / 'run', 'cpu')
    model = args.work_dir / 'run' / 'model'
    card = complete_card(read_json(model / CARD), check(model))
    save_model(args.out, read_config(model), load_weights(model), card)
    draw_sheet(args.out)
    (args.out / 'card.md').write_text(describe(card), encoding='utf-8')
    print(json.dumps(card['check'], indent=2))


if __name__ == '__main__':
    main()
