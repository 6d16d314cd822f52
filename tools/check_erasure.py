"""What erasing a digit does to the embedded pipeline: how many images of each prompt a classifier of real digits still takes for what was asked for.

OMP_NUM_THREADS=1 python tools/check_erasure.py runs/erasure

Each setting is learned by `synthaug learn erasure esd_digits` with the options shown (kill it any time; the same command goes on), then applied as
generators apply it. Recognised: 40 images per prompt 'a photo of a {class}', guidance scale 2, 15 steps, the same noise in all rows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo import CLASSES
from digits_check import judge

from synthaug_plugins.diffusion import ClassifierFree, Guided, SampleNoise, sample
from synthaug_plugins.engine.learn_erasure import FOLDER, learn_erasure
from synthaug_plugins.engine.learn_erasure_recipe import load_erasure_recipe
from synthaug_plugins.generators.denoiser_generator import to_uint8
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.recipes import find_recipe

PER_CLASS, STEPS, SCALE = 40, 15, 2.0
GENTLE = {'training.learning_rate': 3e-4}  # so many more layers that the recipe's rate harms every class
SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    'esd-x, lora (the recipe)': ({}, ['three', 'seven', 'zero']),
    'esd-x, full weights': ({'training.weights': 'full', 'training.learning_rate': 1e-4, 'training.iterations': 200}, ['three', 'seven']),
    'esd-u, lora': ({'training.method': 'esd-u', **GENTLE}, ['three', 'seven']),
    'full, lora': ({'training.method': 'full', **GENTLE}, ['three', 'seven']),
}


@torch.no_grad()
def recognised(model: TextModel) -> dict[str, float]:
    """Share of images that are taken for what they were asked for, by class."""
    denoiser = model._loaded()
    guided = Guided(denoiser, [ClassifierFree(SCALE - 1, uncond=model.conditions([''], negative=True))])
    sigmas, images = model.visited_sigmas(STEPS), []
    for name in CLASSES:
        noise = SampleNoise(range(PER_CLASS), model.size).latents().double() * ((1 + sigmas[0] ** 2) ** 0.5 / sigmas[0])
        x = sample(guided, noise, cond=model.conditions([f'a photo of a {name}'] * PER_CLASS), sigmas=sigmas, solver='euler')
        images.append(to_uint8(model.decode(x.float()))[..., 0])
    small = np.concatenate(images).reshape(-1, 8, 2, 8, 2).mean((2, 4)).round().astype(np.uint8)
    found: dict[str, float] = judge(small, np.repeat(np.arange(len(CLASSES)), PER_CLASS))['accuracy_per_class']
    return found


def row(setting: str, erased: str, found: dict[str, float]) -> str:
    others = [100 * share for name, share in found.items() if name != erased]
    first = f'{100 * found[erased]:5.0f}' if erased in found else '    -'
    return f'{setting:26} {erased:7} {first} {np.mean(others):7.1f} {min(others):6.0f}   ' + ' '.join(f'{100 * share:5.0f}' for share in found.values())


def main(work: Path) -> None:
    torch.set_num_threads(1)
    print(f'{"setting":26} {"erased":7} {"class":>5} {"others":>7} {"worst":>6}   ' + ' '.join(f'{name:>5}' for name in CLASSES))
    plain = TextModel('embedded:digits_sd')
    plain.load(torch.device('cpu'), torch.float32)
    print(row('as it is', '-', recognised(plain)), flush=True)
    for setting, (options, classes) in SETTINGS.items():
        out = work / setting.split(' (')[0].replace(', ', '-').replace(' ', '-')
        for erased in classes:
            learn_erasure(load_erasure_recipe(find_recipe('esd_digits'), {**options, 'classes': [erased]}), out, 'cpu', quiet=True)
            model = TextModel('embedded:digits_sd', erasures=str(out / FOLDER))
            model.load(torch.device('cpu'), torch.float32)
            model.erase(erased)
            print(row(setting, erased, recognised(model)), flush=True)


if __name__ == '__main__':
    main(Path(sys.argv[1]))
