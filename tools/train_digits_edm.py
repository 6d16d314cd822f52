"""Train the embedded model `digits_edm` from nothing: a class-conditional EDM denoiser of 8x8 handwritten digits.

    python tools/train_digits_edm.py                       # 5 to 8 minutes on one CPU core; a second call continues
    python tools/train_digits_edm.py --images-shown 64000  # a quick look

It sees scikit-learn's digits 0 to 1199 only. The file is ordered by writer, so the rest (1200 to 1796) is the work of other
hands, and is left for testing.

Length and dropout were chosen in a trial that trained on images 0 to 999 and took the loss on 1000 to 1199, other writers again:
with dropout 0.1 that loss is lowest after 100,000 images and then rises, with 0.4 it falls until 160,000 and stays level.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import synthaug_plugins
from synthaug_plugins.diffusion import SampleNoise, build_denoiser, full_float32, sample
from synthaug_plugins.learning.edm import EDMTraining, Trained, save_trained, train_edm
from synthaug_plugins.weights import load_weights, read_config

CLASSES = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
TRAIN_IMAGES = 1200
OUT = Path(synthaug_plugins.__file__).parent / 'assets' / 'digits_edm'


def real_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The training images (1200, 1, 8, 8) uint8 (grey levels 0..16 times 255/16, white on black) and labels (1200,)."""
    digits = load_digits()
    images = np.rint(digits.images[:TRAIN_IMAGES] * 255 / 16).astype(np.uint8)
    return torch.from_numpy(images)[:, None], torch.from_numpy(digits.target[:TRAIN_IMAGES]).long()


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
    (real, real_labels), (fake, labels) = real_digits(), generate(folder, per_class)
    real_flat, fake_flat = real.numpy().reshape(len(real), -1) / 255.0, fake.reshape(len(fake), -1) / 255.0
    said = SVC(gamma=0.256).fit(real_flat, real_labels.numpy()).predict(fake_flat)  # 0.001 on the usual scale of 0..16
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
            'training_images': round(float(np.mean([real_flat[real_labels.numpy() == c].std(0).mean() for c in range(10)])), 4),
        },
    }


def draw_sheet(folder: Path, scale: int = 5) -> None:
    """sheet.png: one row per class, ten images each, enlarged without smoothing."""
    images, _ = generate(folder, 10, seed=1)
    padded = np.pad(images.repeat(scale, 1).repeat(scale, 2), ((0, 0), (1, 1), (1, 1)), constant_values=64)
    rows = [np.concatenate(padded[10 * c : 10 * c + 10], axis=1) for c in range(10)]
    Image.fromarray(np.concatenate(rows)).save(folder / 'sheet.png', optimize=True)


def make_card(trained: Trained, options: EDMTraining, seconds: float, parameters: int) -> dict[str, object]:
    """card.json without the checks."""
    return {
        'name': 'digits_edm',
        'what': 'Class-conditional EDM denoiser of 8x8 grey handwritten digits (white on black), 10 classes.',
        'licence': 'Apache-2.0',
        'data': {
            'name': 'Optical Recognition of Handwritten Digits, as shipped with scikit-learn (load_digits)',
            'origin': 'E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, CC BY 4.0; scikit-learn is BSD-3-Clause',
            'split': f'images 0 to {TRAIN_IMAGES - 1} by position (the file is ordered by writer); 1200 to 1796 were never seen',
            'preprocessing': 'grey level 0..16 times 255/16, rounded to uint8; then uint8 / 127.5 - 1',
        },
        'training': {
            'script': 'tools/train_digits_edm.py',
            'parameters': parameters,
            'steps': trained.steps,
            'images_shown': trained.images_shown,
            'seconds': round(seconds),
            'options': {k: getattr(options, k) for k in options.__dataclass_fields__},
            'loss_curve': trained.losses,
        },
        'weights': 'average of the training (EMA), float16',
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
  {training['seconds'] / 60:.0f} minutes on one CPU core; loss {training['loss_curve'][0][1]:.3f} at first, {training['loss_curve'][-1][1]:.3f} at last.
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
    parser.add_argument('--images-shown', type=float, default=240e3, help='length of the training')
    parser.add_argument('--dropout', type=float, default=0.4)
    parser.add_argument('--out', type=Path, default=OUT, help='the model folder')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digits_edm'), help='checkpoints')
    args = parser.parse_args()

    images, labels = real_digits()
    sigma_data = float((images.double() / 127.5 - 1).square().mean().sqrt())
    config = {
        'kind': 'edm',
        'resolution': 8,
        'channels': 1,
        'classes': CLASSES,
        'label_conditioning': True,
        'label_dropout': 0.1,
        'sigma_data': round(sigma_data, 4),
        'network': {
            'channels': 48,
            'channel_mult': [1, 2],
            'blocks_per_level': 1,
            'attention_resolutions': [4],
            'embedding_channels': 128,
            'dropout': args.dropout,
        },
    }
    # P_mean: the interesting noise levels lie between the grey step of 1/8 (sigma 0.05) and a few times sigma_data.
    options = EDMTraining(images_shown=int(args.images_shown), P_mean=-0.6, P_std=1.2, ema_half_life_images=12_000, checkpoint_steps=125)
    clock = args.work_dir.with_suffix('.seconds.json')
    spent, begin = (json.loads(clock.read_text()) if clock.exists() and args.work_dir.exists() else 0.0), time.process_time()

    def progress(shown: int, loss: float) -> None:
        clock.write_text(json.dumps(spent + time.process_time() - begin))
        print(f'{shown:>9,} images  loss {loss:.4f}  {spent + time.process_time() - begin:.0f} CPU s', flush=True)

    trained = train_edm(images, labels, config, options, args.work_dir, progress=progress)
    parameters = sum(p.numel() for p in build_denoiser(config).parameters())
    card = make_card(trained, options, spent + time.process_time() - begin, parameters)
    save_trained(args.out, config, trained, card)
    card['check'] = check(args.out)
    save_trained(args.out, config, trained, card)
    draw_sheet(args.out)
    (args.out / 'card.md').write_text(describe(card), encoding='utf-8')
    print(json.dumps(card['check'], indent=2))


if __name__ == '__main__':
    main()
