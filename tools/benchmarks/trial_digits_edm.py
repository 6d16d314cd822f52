"""What a change of the recipe `learn/edm_digits` does to the loss on digits of other writers: how its length, dropout and augmentation were chosen.

    python tools/benchmarks/trial_digits_edm.py --cfg-options model.network.dropout=0.3 augment=None

Trains on scikit-learn's digits 0 to 999 and prints the mean loss on 1000 to 1199 (other writers; the embedded model sees both, the
demo's validation and test digits are others again), ten fixed draws of noise each, with and without the class told.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from synthaug_plugins.cli import parse_options
from synthaug_plugins.diffusion import build_denoiser, denoising_loss, full_float32
from synthaug_plugins.diffusion.pixels import from_uint8
from synthaug_plugins.engine.learn_recipe import augmentation, load_learn_recipe, model_config, training_options
from synthaug_plugins.learning.calibrate import pixel_rms
from synthaug_plugins.learning.edm import train_edm
from synthaug_plugins.learning.options import noise_distribution
from synthaug_plugins.recipes import find_recipe

TRAIN, HELD_OUT, DRAWS = slice(0, 1000), slice(1000, 1200), 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cfg-options', nargs='*', default=[])
    arguments = parser.parse_args()
    recipe = load_learn_recipe(find_recipe('learn/edm_digits.py'), parse_options(arguments.cfg_options))
    digits = load_digits()
    images, labels = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None], torch.from_numpy(digits.target).long()
    config = model_config(recipe, list(map(str, range(10))), round(pixel_rms(images[TRAIN]), 4))
    options = training_options(recipe)
    denoiser = build_denoiser(config).eval()
    generator = torch.Generator().manual_seed(0)
    y, told = from_uint8(images[HELD_OUT]).repeat(DRAWS, 1, 1, 1), labels[HELD_OUT].repeat(DRAWS)
    sigma = noise_distribution(config, options)(torch.randn(len(y), generator=generator))
    noise = torch.randn(y.shape, generator=generator)
    started = time.process_time()

    def report(images_shown: int, loss: float, weights: Mapping[str, Tensor]) -> None:
        denoiser.load_state_dict(dict(weights))
        with torch.no_grad(), full_float32():
            held_out = [float(denoising_loss(denoiser, y, sigma, noise, cond).mean()) for cond in (told, None)]
        print(f'{images_shown:>9,} images  training loss {loss:.4f}  held out: class told {held_out[0]:.4f}, not told {held_out[1]:.4f}', end='')
        print(f'  {time.process_time() - started:.0f} CPU s', flush=True)

    print(f'{arguments.cfg_options}: {sum(p.numel() for p in denoiser.parameters()):,} parameters')
    with tempfile.TemporaryDirectory() as folder:
        train_edm(images[TRAIN], labels[TRAIN], config, options, Path(folder) / 'run', 'cpu', augment=augmentation(recipe), on_checkpoint=report)


if __name__ == '__main__':
    main()
