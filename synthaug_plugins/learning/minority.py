"""Train a classifier of levels on noisy images (Um et al. 2024, arXiv 2301.12334), and measure it at each noise level."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.diffusion import LevelClassifier, SampleNoise, build_level_classifier, full_float32
from synthaug_plugins.diffusion.level_classifier import Features
from synthaug_plugins.diffusion.precision import network_dtype
from synthaug_plugins.errors import DataError, ModelError
from synthaug_plugins.learning.batches import Order, Pixels, data_hash, mix_seed
from synthaug_plugins.learning.checkpoint import adam_tensors, load_adam_tensors, save_checkpoint, take_up
from synthaug_plugins.learning.minority_options import FREE, LevelTraining, check_level_training, noise_levels

_DRAWS = 4
"""Noises of each validation image at each noise level."""
_AT_ONCE = 256  # validation images


@dataclass(frozen=True)
class RatedImages:
    """What a classifier of levels learns from.

    Attributes:
        pixels: (N, C, H, W) uint8; a memory-mapped array may be larger than memory.
        levels: (N,) int64, from 0 to L - 1.
        labels: (N,) int64 class indices, or None for a classifier that is not told the class.
    """

    pixels: np.ndarray
    levels: np.ndarray
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class TrainedLevels:
    """The result: the trained classifier, the loss curve as (images shown, mean loss since the last point), and steps."""

    classifier: LevelClassifier
    losses: list[tuple[int, float]]
    steps: int


@dataclass(frozen=True)
class LevelAccuracy:
    """How good a classifier is at one noise level, on images that it was not trained on.

    Attributes:
        sigma: the noise level.
        accuracy: share of noisy images whose likeliest level is their own.
        within_one: share of those whose likeliest level is their own or beside it.
        rank_error: mean distance of the likeliest level from their own, in levels.
        log_loss: mean of -log p of their own level, in nats.
    """

    sigma: float
    accuracy: float
    within_one: float
    rank_error: float
    log_loss: float


def split_levels(levels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the images to train on and of those to validate on, both sorted: of every level the same share, at least one image of each.

    Args:
        levels: (N,) int64, from 0 on; every level up to the highest has images.
        share: of the images of a level that are validated on.
        seed: decides which.

    Raises:
        DataError: a level of fewer than two images.
    """
    chosen = []
    for level in range(int(levels.max()) + 1):
        places = np.flatnonzero(levels == level)
        if len(places) < 2:
            raise DataError(f'Level {level} has {len(places)} images: one to train on and one to validate on are needed.', 'Use fewer levels, or more images.')
        count = min(max(round(share * len(places)), 1), len(places) - 1)
        chosen.append(np.random.default_rng(mix_seed(seed, 'split', level)).permutation(places)[:count])
    validation = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(levels)), validation), validation


def train_levels(
    images: RatedImages,
    config: Mapping[str, Any],
    options: LevelTraining,
    work_dir: Path,
    device: torch.device,
    *,
    features: Features | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> TrainedLevels:
    """Train the classifier of `config` on the images of `split_levels`; continue from the checkpoint in `work_dir` if there is one.

    Every draw of a step depends on the seed and the step alone, the order of an epoch's images on the seed and the epoch: a killed training ends with the
    bits of an unbroken one (on CPU).

    Args:
        images: all of them, those for validation too.
        config: see `diffusion.build_level_classifier`.
        options: see `LevelTraining`; sigma_min and sigma_max are those of the config.
        work_dir: holds the checkpoint and nothing else.
        device: where to train.
        features: on that device, for a config that has features.
        on_step: called after each step with (images shown, its loss as a 0-dim tensor on the device).

    Raises:
        DataError: images, levels and config do not fit together, or a level has fewer than two images.
        RecipeError: an option is out of range, or `work_dir` belongs to another training; the keys that differ are named.
        ModelError: the loss is not finite; the last checkpoint stays as it was.
    """
    check_level_training(options)
    _check_images(images, config)
    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []), full_float32():
        torch.manual_seed(options.seed)
        run = _Run(build_level_classifier(config, features).to(device).train(), images, config, options, work_dir, device)
        run.resume()
        while run.steps < run.total:
            loss = run.step()
            if on_step is not None:
                on_step(run.steps * options.batch_size, loss)
            if run.steps % options.checkpoint_steps == 0 or run.steps == run.total:
                run.save()
    return TrainedLevels(run.classifier.eval().requires_grad_(False), run.losses, run.steps)


@torch.no_grad()
def validate_levels(
    classifier: LevelClassifier, images: RatedImages, places: np.ndarray, sigmas: Sequence[float], seed: int, device: torch.device
) -> list[LevelAccuracy]:
    """How good a classifier is at each of some noise levels. The noise of an image depends on the seed, its place and the noise level alone.

    Args:
        places: of the images to look at, in `images`.
        sigmas: noise levels.
    """
    pixels, found = Pixels(images.pixels, device), []
    levels = torch.from_numpy(images.levels)
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    with full_float32():
        for i, sigma in enumerate(sigmas):
            sums = torch.zeros(4, dtype=torch.float64)
            for start in range(0, len(places), _AT_ONCE):
                index = torch.from_numpy(places[start : start + _AT_ONCE])
                y, own = pixels.fetch(index), levels[index]
                noise = SampleNoise([mix_seed(seed, 'validation', int(place)) for place in index], tuple(y.shape[1:]), device)
                for draw in range(_DRAWS):
                    x = y + sigma * noise.step(i * _DRAWS + draw)
                    log_p = classifier(x, torch.tensor(sigma, dtype=torch.float64), None if labels is None else labels[index].to(device)).cpu()
                    off = (log_p.argmax(1) - own).abs()
                    sums += torch.stack([(off == 0).sum(), (off <= 1).sum(), off.sum(), -log_p.double().gather(1, own[:, None]).sum()])
            found.append(LevelAccuracy(float(sigma), *(sums / (_DRAWS * len(places))).tolist()))
    return found


class _Run:
    """The state of a training."""

    def __init__(
        self, classifier: LevelClassifier, images: RatedImages, config: Mapping[str, Any], options: LevelTraining, work_dir: Path, device: torch.device
    ) -> None:
        self.classifier, self.options, self.work_dir, self.device = classifier, options, work_dir, device
        self.total = -(-options.images_shown // options.batch_size)
        train, _ = split_levels(images.levels, options.validation, options.seed)
        self.train, self.pixels, self.order = torch.from_numpy(train), Pixels(images.pixels, device), Order(options.seed, np.zeros(len(train)), False)
        self.levels = torch.from_numpy(images.levels)
        self.labels = None if images.labels is None else torch.from_numpy(images.labels)
        self.distribution = noise_levels(options.noise, config['sigma_min'], config['sigma_max'])
        parameters = dict(classifier.named_parameters())
        self.names: dict[Tensor, str] = {p: n for n, p in parameters.items()}
        self.optimizer = torch.optim.AdamW(parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay)
        self.steps, self.losses = 0, list[tuple[int, float]]()
        self.loss_sum, self.loss_steps = torch.zeros((), dtype=torch.float64, device=device), 0
        settings = {k: v for k, v in asdict(options).items() if k not in FREE}
        levels = np.stack([images.levels, np.zeros_like(images.levels) if images.labels is None else images.labels])
        facts = {'config': dict(config), 'data': data_hash(images.pixels, levels), 'device': device.type}
        self.identity = json.loads(json.dumps({**settings, **facts}))  # through JSON, as a checkpoint holds it
        self.bf16 = network_dtype(options.precision, device) == torch.bfloat16

    def step(self) -> Tensor:
        """One optimizer step; returns its loss."""
        o = self.options
        index = self.train[self.order.indices(self.steps * o.batch_size, o.batch_size)]
        torch.manual_seed(mix_seed(o.seed, 'step', self.steps))  # also decides dropout inside the network
        y = self.pixels.fetch(index)
        sigma, noise = self.distribution.draw(len(y), self.device), torch.randn(y.shape, device=self.device)
        if o.flip:
            mirrored = torch.rand(len(y), device=self.device) < 0.5
            y = torch.where(mirrored[:, None, None, None], y.flip(-1), y)
        labels = None if self.labels is None else self.labels[index].to(self.device)
        for group in self.optimizer.param_groups:
            group['lr'] = o.learning_rate * (1 - self.steps / self.total)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            log_p = self.classifier.log_prob(y + sigma[:, None, None, None] * noise, sigma, self.levels[index], labels)
        loss = -log_p.mean()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        self.loss_sum += loss.detach()
        self.loss_steps += 1
        return loss.detach()

    def save(self) -> None:
        """Write a checkpoint. A loss that is not finite is found here, so that no step waits for the device.

        Raises:
            ModelError: a loss since the last checkpoint is not finite; that one stays.
        """
        loss = float(self.loss_sum) / self.loss_steps
        if not np.isfinite(loss):
            what = f'Between two checkpoints, up to step {self.steps}, the loss became {loss}.'
            raise ModelError(what, f'Lower learning_rate = {self.options.learning_rate:g}; the last checkpoint in {str(self.work_dir)!r} is sound.')
        self.losses.append((self.steps * self.options.batch_size, round(loss, 5)))
        self.loss_sum.zero_()
        self.loss_steps = 0
        tensors = {f'model.{k}': v for k, v in self.classifier.state_dict().items()} | adam_tensors(self.optimizer, self.names)
        save_checkpoint(self.work_dir, self.steps, tensors, {'identity': self.identity, 'losses': self.losses})

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        found = take_up(self.work_dir, self.identity)
        if found is None:
            return
        tensors, state = found
        self.classifier.load_state_dict({k.removeprefix('model.'): v for k, v in tensors.items() if k.startswith('model.')})
        load_adam_tensors(self.optimizer, self.names, tensors)
        self.steps, self.losses = state['step'], [(n, loss) for n, loss in state['losses']]


def _check_images(images: RatedImages, config: Mapping[str, Any]) -> None:
    shape = (config['channels'], config['resolution'], config['resolution'])
    n, count = len(images.pixels), config['levels']['count']
    if images.pixels.dtype != np.uint8 or images.pixels.shape != (n, *shape) or not n:
        raise DataError(f'The images are {images.pixels.dtype} {images.pixels.shape}.', f'The classifier needs uint8 (N, {", ".join(map(str, shape))}).')
    if images.levels.shape != (n,) or set(np.unique(images.levels)) != set(range(count)):
        raise DataError(f'The levels of {n} images are not all of 0 to {count - 1}.', 'Give one per image, and every level an image.')
    if (images.labels is not None) != config['label_conditioning']:
        given = 'missing' if images.labels is None else 'given'
        raise DataError(f'label_conditioning = {config["label_conditioning"]}, but labels are {given}.', 'Make them agree.')
    if images.labels is not None and (images.labels.shape != (n,) or images.labels.min() < 0 or images.labels.max() >= len(config['classes'])):
        raise DataError(f'The labels do not fit {n} images of {len(config["classes"])} classes.', 'Use one index per image, 0 to classes - 1.')
