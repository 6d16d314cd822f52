"""Minority guidance: how fast images are scored against the network's own forward rate, and what guided sampling costs against unguided.

python tools/benchmarks/bench_minority.py [--model embedded:digits_edm] [--classifier FOLDER] [--device auto] [--images 200] [--steps 50] [--rounds 3]

Scoring. The inspector MinorityScore, from uint8 images to columns (MSE, 5 draws), against the same number of the network's calls on batches that lie ready.
Two models stand for small and large: the embedded one, whose calls cost little, and one with random weights for 32 pixels (or the one that is named).

Sampling. The generator EDM, from requests to uint8 images, ancestral Euler steps as published; the three methods with the published steps (self-guidance at
every fifth, three steps skipped). The classifier has random weights unless a folder is given: that does not change what it costs.

Contestants take turns, the order is turned round each time, and the median ratio of a round counts. On a CPU these are ratios of CPU seconds: on a machine
that others use, too, wall seconds say more about them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_generation import Stopwatch
from machine import machine

from synthaug_plugins.curation.minority_score import MinorityScore
from synthaug_plugins.device import choose_device
from synthaug_plugins.diffusion import build_denoiser, build_level_classifier, full_float32
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.levels import Levels
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Part, Request
from synthaug_plugins.weights import save_model

MSE = {'type': 'synthaug_plugins.MSE'}
DRAWS, LEVELS = 5, 10
RANDOM = {
    **{'kind': 'edm', 'resolution': 32, 'channels': 3, 'classes': ['thing'], 'label_conditioning': False, 'sigma_data': 0.5},
    'network': {'type': 'ddpmpp', 'channels': 64, 'channel_mult': [1, 2, 2], 'blocks_per_level': 2, 'attention_resolutions': [16]},
}


def random_model(folder: Path) -> str:
    """A model folder for images of 32 pixels with random weights."""
    torch.manual_seed(0)
    save_model(folder, RANDOM, build_denoiser(RANDOM).state_dict(), {'licence': None})
    return str(folder)


def random_classifier(folder: Path, model: DenoiserModel) -> str:
    """A folder with a classifier of levels for a model, of the size that the recipe for digits learns, with random weights."""
    facts = {key: model.config[key] for key in ('resolution', 'channels', 'classes', 'sigma_data')}
    levels = Levels(LEVELS, 'all', tuple(float(k) for k in range(1, LEVELS))).to_json()
    network = {'loss': 'ordinal', 'channels': 16, 'channel_mult': [1, 2], 'blocks_per_level': 1}
    config = {'kind': 'levels', **facts, 'label_conditioning': False, 'sigma_min': 0.002, 'sigma_max': 80.0, 'levels': levels, 'features': None}
    config['network'] = network
    torch.manual_seed(0)
    state = {key: value + 0.1 * torch.randn_like(value) for key, value in build_level_classifier(config).state_dict().items()}
    save_model(folder, {**config, 'counts': {name: [1] * LEVELS for name in model.classes}}, state, {'licence': None})
    return str(folder)


class Rounds:
    """Contestants in turns: their seconds by name.

    Args:
        device: where they work; its CPU seconds count on a CPU, wall seconds on others.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, list[float]]()

    def run(self, contestants: Mapping[str, Callable[[], Any]], rounds: int) -> None:
        """Time each of them, after one run that does not count."""
        for call in contestants.values():
            call()
        for number in range(rounds):
            for name in list(contestants)[:: 1 if number % 2 == 0 else -1]:
                watch = Stopwatch(self.device)
                contestants[name]()
                self.seconds.setdefault(name, []).append(watch.read()[self.device.type == 'cpu'])

    def median(self, name: str) -> float:
        """Seconds of a run."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> str:
        """How many times as long as `base`, as text: the median of the rounds, and the range."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)]
        return f'{statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})'


def scoring(name: str, images: int, rounds: int, device: torch.device) -> None:
    """Print the ratio of scoring over the network's own calls."""
    inspector = MinorityScore(name, sigma=1.0, draws=DRAWS, distance=MSE)
    model = inspector.model
    classes = (model.classes if isinstance(model, DenoiserModel) else []) or ['thing']
    inspector.check(classes, None)
    inspector.setup(device, classes, None)
    height, width = model.image_size
    pixels = list(np.random.default_rng(0).integers(0, 255, (images, height, width, 3), np.uint8))
    requests = [Request(str(k), k % len(classes), classes[k % len(classes)], k) for k in range(images)]
    inspector.inspect(requests[:2], pixels[:2])  # reads the weights
    x, sigma = torch.randn(images, *model.size, device=device), torch.tensor(1.0, dtype=torch.float64)
    told = isinstance(model, DenoiserModel) and model.takes_labels
    cond = torch.arange(images, device=device) % len(classes) if told else None

    @torch.no_grad()
    def forward() -> float:
        with full_float32():
            for _ in range(DRAWS):
                out = model.denoiser(x, sigma, cond)
        return float(out.sum())

    clock = Rounds(device)
    clock.run({'score': lambda: inspector.inspect(requests, pixels), 'forward': forward}, rounds)
    print(f'\nscoring with {Path(name).name}: {images} images of {height} px, {DRAWS} draws')
    print(f'{"network alone":28}{images / clock.median("forward"):9.1f} images/s')
    print(f'{"MinorityScore":28}{images / clock.median("score"):9.1f} images/s, {clock.ratio("score", "forward")} times the time', flush=True)


def sampling(name: str, classifier: str | None, images: int, steps: int, rounds: int, device: torch.device) -> None:
    """Print the time of each method over that of unguided sampling."""
    model = DenoiserModel(name)
    with tempfile.TemporaryDirectory() as folder:
        found = classifier or random_classifier(Path(folder) / 'levels', model)
        ways: dict[str, list[dict[str, Any]]] = {
            'unguided': [],
            'MinorityClassifier': [{'type': 'MinorityClassifier', 'classifier': found, 'level': LEVELS - 1, 'weight': 1.0}],
            'SelfGuided, every 5th step': [{'type': 'SelfGuided', 'weight': 0.1, 'sigma': 1.0, 'distance': MSE}],
            f'BoostAndSkip, 3 of {steps}': [{'type': 'BoostAndSkip', 'boost': 1.2, 'skip': 3}],
        }
        contestants: dict[str, Callable[[], Any]] = {}
        calls: dict[str, float] = {}
        for way, guidance in ways.items():
            options = {'num_steps': steps, 'solver': 'euler', 'eta': 1.0}
            generator = GENERATORS.build({'type': 'synthaug_plugins.EDM', 'model': name, 'sampler': options, 'guidance': guidance})
            generator.setup(device)
            classes = model.classes or ['thing']
            generator.check(classes)
            per_class = -(-images // len(classes))
            parts = [Part(0, label, of, per_class, per_class, offset=label * per_class) for label, of in enumerate(classes)]
            requests = [request for part in parts for request in islice(generator.requests(part, 0), per_class)][:images]
            generator.generate(requests)
            calls[way] = generator.network_images / images
            contestants[way] = lambda generator=generator, requests=requests: generator.generate(requests)
        clock = Rounds(device)
        clock.run(contestants, rounds)
    print(f'\nsampling with {Path(name).name}: {images} images of {model.size[-1]} px, {steps} ancestral steps')
    for way, called in calls.items():
        print(f'{way:28}{images / clock.median(way):9.2f} images/s, {called:5.1f} calls per image, {clock.ratio(way, "unguided")} times the time', flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', help='embedded:NAME or a model folder; default: the embedded digits, and a random one of 32 px for scoring')
    parser.add_argument('--classifier', help='the folder model of `synthaug learn minority`; default: random weights')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--images', type=int, default=200)
    parser.add_argument('--steps', type=int, default=50)
    parser.add_argument('--rounds', type=int, default=3)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    print(machine(device))
    name = arguments.model or 'embedded:digits_edm'
    turns = 2 * arguments.rounds + 1  # a turn is a second: one alone says little
    scoring(name, arguments.images, turns, device)
    if arguments.model is None:
        with tempfile.TemporaryDirectory() as folder:
            scoring(random_model(Path(folder) / 'random_32px'), max(arguments.images // 8, 8), turns, device)
    sampling(name, arguments.classifier, arguments.images, arguments.steps, arguments.rounds, device)


if __name__ == '__main__':
    main()
