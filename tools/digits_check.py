"""What the embedded generators of digits are checked by, and how their cards say it. Shared by the scripts that train them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from demo import CLASSES, SEEN
from digits_assets import LABELS_SEEN
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC


def judge(images: np.ndarray, labels: np.ndarray, real: np.ndarray | None = None) -> dict[str, Any]:
    """What a classifier of real digits says of generated ones, and how near they come to single training images.

    Args:
        images: (10 n, 8, 8) uint8, n of each class.
        labels: (10 n,) the class that each was asked for.
        real: the training images (1200, 8, 8) in 0..1 that distance and spread are measured against; default: as they are. The
            classifier always learns from them as they are.
    """
    digits = load_digits()
    seen, real_labels = digits.data[:SEEN] / 16, digits.target[:SEEN]
    real_flat = seen if real is None else real.reshape(SEEN, -1)
    fake_flat = images.reshape(len(images), -1) / 255.0
    said = SVC(gamma=0.256).fit(seen, real_labels).predict(fake_flat)  # 0.001 on the usual scale of 0..16
    square = (real_flat**2).sum(1)
    to_real = np.sqrt(np.maximum((fake_flat**2).sum(1)[:, None] + square - 2 * fake_flat @ real_flat.T, 0)).min(1)
    among = np.maximum(square[:, None] + square - 2 * real_flat @ real_flat.T, 0)
    np.fill_diagonal(among, np.inf)
    return {
        'classifier': 'support vector machine (RBF), trained on the 1200 real training images only',
        'generated_per_class': len(labels) // 10,
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


def describe_verdict(found: dict[str, Any]) -> str:
    """What `judge` found, as lines of a card.md."""
    near = found['nearest_training_image']
    return f"""- Class: a support vector machine trained on the real training images calls {100 * found['accuracy']:.1f} % of
  {10 * found['generated_per_class']} generated ones by the class they were asked for;
  the worst class is at {100 * min(found['accuracy_per_class'].values()):.1f} %.
- Copies: the nearest training image of a generated one is {near['generated']:.2f} away (median, Euclidean, pixels in 0..1); that of
  a training image {near['training_images_to_each_other']:.2f}. Nearer than 0.2: {100 * near['generated_nearer_than_0.2']:.1f} %.
- Spread within a class: {found['spread']['generated']:.3f}; of the training images {found['spread']['training_images']:.3f}."""


def describe_data(card: dict[str, Any]) -> str:
    """What the card says of the data, as lines of a card.md."""
    return f"""- Data: {card['data']['name']}.
  {card['data']['origin']}.
- Seen: {card['data']['split']}.
  {LABELS_SEEN}"""


def draw_sheet(images: np.ndarray, path: Path, scale: int = 5) -> None:
    """Write a sheet of images (rows * 10, H, W) uint8, ten to a row, enlarged without smoothing."""
    padded = np.pad(images.repeat(scale, 1).repeat(scale, 2), ((0, 0), (1, 1), (1, 1)), constant_values=64)
    rows = [np.concatenate(row, axis=1) for row in padded.reshape(-1, 10, *padded.shape[1:])]
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)
