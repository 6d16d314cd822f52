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
from demo import CLASSES, write_digits
from digits_assets import DATA
from digits_check import describe_data, describe_verdict, draw_sheet, judge

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


def complete_card(card: dict, check: dict) -> dict:
    """The card that `synthaug learn edm` wrote, with what is known of these data and the check."""
    return {
        **card,
        'what': 'Class-conditional EDM denoiser of 8x8 grey handwritten digits (white on black), 10 classes.',
        'data': {
            **card['data'],
            **DATA,
            'preprocessing': 'grey level 0..16 times 255/16, rounded to uint8; then uint8 / 127.5 - 1',
        },
        'training': {**card['training'], 'script': 'tools/train_digits_edm.py'},
        'check': check,
    }


def describe(card: dict) -> str:
    """card.md: the card for a reader."""
    training = card['training']
    return f"""# digits_edm

{card['what']}

![ten images of each class](sheet.png)

{describe_data(card)}
- Training: {training['parameters']:,} parameters; {training['images_shown']:,} images shown in {training['steps']:,} steps;
  {training['seconds'] / 60:.0f} minutes (wall clock) on one CPU core of a shared machine;
  loss {training['loss_curve'][0][1]:.3f} at first, {training['loss_curve'][-1][1]:.3f} at last.
- Augmentation: non-leaking, p = {training['augment']['p']}, mirrored, turned, scaled, stretched or shifted, told to the network by 9
  numbers. Label dropout 0.1, so it runs without a class, too.
{describe_verdict(card['check'])}
- Licence of the weights: {card['licence']}. Made from nothing by `{training['script']}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=OUT, help='the model folder')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digits_edm'), help='data, checkpoints, sample sheets')
    args = parser.parse_args()
    write_digits(args.work_dir / 'digits')
    options = {'data': str(args.work_dir / 'digits' / 'train'), 'classes': list(CLASSES), 'name': 'digits_edm', 'licence': 'Apache-2.0'}
    learn(load_learn_recipe(find_recipe('learn/edm_digits.py'), options), args.work_dir / 'run', 'cpu')
    model = args.work_dir / 'run' / 'model'
    card = complete_card(read_json(model / CARD), judge(*generate(model, per_class=200)))
    save_model(args.out, read_config(model), load_weights(model), card)
    draw_sheet(generate(args.out, 10, seed=1)[0], args.out / 'sheet.png')
    (args.out / 'card.md').write_text(describe(card), encoding='utf-8')
    print(json.dumps(card['check'], indent=2))


if __name__ == '__main__':
    main()
