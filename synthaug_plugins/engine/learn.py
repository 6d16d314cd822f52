"""Train a denoiser on the user's images: from a recipe to a model folder that generators read."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins import __version__
from synthaug_plugins.device import choose_device, device_name
from synthaug_plugins.diffusion import Precond, SampleNoise, build_denoiser, full_float32, sample
from synthaug_plugins.diffusion.networks import parameter_count
from synthaug_plugins.engine.learn_folder import MARK, LearnFolder
from synthaug_plugins.engine.learn_output import draw_sheet, read_log, write_log, write_losses
from synthaug_plugins.engine.learn_recipe import augmentation, decisive, model_config, training_options
from synthaug_plugins.engine.progress import TrainingProgress
from synthaug_plugins.engine.recipe_checks import named_data
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.denoiser_generator import to_uint8
from synthaug_plugins.learning.calibrate import loss_per_sigma, pixel_rms
from synthaug_plugins.learning.checkpoint import load_snapshots, saved_step
from synthaug_plugins.learning.convert import check_new_folder
from synthaug_plugins.learning.data import DecodedImages, check_classes, decode
from synthaug_plugins.learning.edm import Trained, save_trained, train_edm
from synthaug_plugins.learning.ema import reconstruct
from synthaug_plugins.learning.options import noise_distribution
from synthaug_plugins.own_folder import refuse_among_images
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.weights import CARD, load_weights, model_folder, read_config, save_model

MODEL = 'model'
"""In a training's folder: the model, for `generator.model` of a generation recipe."""
_LOSS_VALUES, _FEWEST = 2**18, 16
"""Without a GPU the loss per noise level is taken from so many pixel values: 256 small images, 21 of 64 pixels in RGB, 16 at least."""
_SIGMAS = np.exp(np.linspace(np.log(0.005), np.log(80), 24)).tolist()


def learn(recipe: Mapping[str, Any], out: str | Path, device: str = 'auto', quiet: bool = False) -> Trained:
    """Train the model of a complete recipe into the folder `out`; continue a training that is there.

    The folder receives model/ (for `generator.model` of a generation recipe), checkpoints/, data/ (the decoded images),
    samples/<images shown>.png, loss_per_sigma.png and .csv, and log.jsonl with one line per checkpoint: images_shown, loss,
    seconds, images_per_s.

    Args:
        recipe: as `engine.learn_recipe.load_learn_recipe` returns it.
        out: new, empty, or the folder of an earlier call with a recipe that differs in length, samples and names only.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quiet: no progress on standard error.

    Returns: the averaged weights and the course of the training, as they are written.

    Raises:
        RecipeError: the recipe names no data; or `out` lies within it, is not ours or holds a training of another recipe or other images; the
            keys that differ are named.
        DataError: the images do not fit the recipe, or one cannot be read.
        ModelError: the loss is not finite.
        StoreError: the disk is full; the last checkpoint is sound.
        Stopped: Ctrl-C.
    """
    folder, where = Path(out).expanduser(), choose_device(device)
    real_images = RealImages(named_data(recipe))
    classes = list(recipe['classes'] or real_images.classes)
    check_classes(real_images, classes)
    refuse_among_images(folder, real_images.root)
    ours = LearnFolder(folder, 'edm', recipe, decisive)
    with ours.at_work(lambda: _how_far(folder, recipe)):
        images = decode(real_images, classes, recipe['model']['resolution'], recipe['model']['channels'], folder / 'data', None if quiet else _SayDecoded())
        if images.enlarged and not quiet:
            print(f'{images.enlarged} of {len(images.labels)} images are smaller than the model and were enlarged.', file=sys.stderr)
        ours.remember_data(images.sha256)
        return _Learning(recipe, folder, images, where).train(quiet)


def save_stand_in(recipe: Mapping[str, Any], folder: Path, classes: Sequence[str]) -> None:
    """Write a model of zeros in place of the one that a training will give: what uses it can be checked before there is any.

    Args:
        recipe: complete.
        folder: in place of `MODEL` of the training.
        classes: of the images.

    Raises:
        RecipeError: the recipe names no data.
    """
    named_data(recipe)  # refuses
    config = model_config(recipe, list(recipe['classes'] or classes), 0.5)
    with torch.device('meta'):
        weights = build_denoiser(config).state_dict()
    zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in weights.items()}
    save_model(folder, config, zeros, {'what': 'stand-in without training'})


def _how_far(folder: Path, recipe: Mapping[str, Any]) -> str:
    """How far a stopped training got, by its last checkpoint."""
    return f'has seen {saved_step(folder / "checkpoints") * training_options(recipe).batch_size:,} images'


def reconstruct_model(out: str | Path, std: float, target: str | Path, step: int | None = None) -> None:
    """Write a model folder with a power-function average of another width than those that a training tracked.

    Args:
        out: the folder of a training (see `learn`) with `power_ema_stds`.
        std: relative width, see `PowerEMA`.
        target: the new model folder.
        step: the step at which the average ends; default: the last snapshot's.

    Raises:
        RecipeError, ModelError: see `learning.ema.reconstruct`; or `out` is no training, or `target` holds something.
    """
    training, folder = Path(out).expanduser(), Path(target).expanduser()
    if not (training / MARK).is_file():
        raise RecipeError(f'{str(training)!r} holds no training.', 'Give the folder that `synthaug learn edm` wrote, not its model folder.')
    check_new_folder(folder)
    model = model_folder(str(training / MODEL))
    parameters = reconstruct(load_snapshots(training / 'checkpoints'), std, step)
    weights = {**load_weights(model), **{k: v.half() for k, v in parameters.items()}}
    card = json.loads((model / CARD).read_text(encoding='utf-8'))
    card['weights'] = f'power-function average of relative width {std:g}' + (f' after {step} steps' if step else '') + ', float16'
    save_model(folder, read_config(model), weights, card)


class _SayDecoded:
    """Says how far decoding is, every ten seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            print(f'{done:,}/{total:,} images decoded', file=sys.stderr, flush=True)


class _Learning:
    """One call of `learn`, from decoded images on."""

    def __init__(self, recipe: Mapping[str, Any], folder: Path, images: DecodedImages, device: torch.device) -> None:
        self.recipe, self.folder, self.images, self.device = recipe, folder, images, device
        self.options, self.augment = training_options(recipe), augmentation(recipe)
        self.config = model_config(recipe, list(images.classes), round(pixel_rms(images.pixels), 4))
        self.labels = images.labels if self.config['label_conditioning'] else None
        self.log = read_log(folder)
        self.every = recipe['samples']['every'] or max(self.options.images_shown // 10, 1)
        self._seconds = self.log[-1]['seconds'] if self.log else 0.0
        self._since = self.log[-1]['images_shown'] if self.log else 0, time.monotonic()
        # From the files, not the log: a sheet that a kill cut off is drawn at the next checkpoint.
        self._drawn = max((int(p.stem) for p in (folder / 'samples').glob('*.png') if p.stem.isdigit()), default=0)
        self._denoiser: Precond | None = None

    def train(self, quiet: bool) -> Trained:
        """Train to the end and write the results."""
        labels = self.images.labels if self.options.class_balance else self.labels
        with nullcontext() if quiet else TrainingProgress(self.options.images_shown) as progress:
            trained = train_edm(
                self.images.pixels,
                labels,
                self.config,
                self.options,
                self.folder / 'checkpoints',
                self.device,
                augment=self.augment,
                on_step=progress.step if progress else None,
                on_checkpoint=self._checkpoint,
            )
        self._results(trained.images_shown, trained.weights)
        return trained

    def _checkpoint(self, images_shown: int, loss: float, weights: Mapping[str, Tensor]) -> None:
        before, started = self._since
        now = time.monotonic()
        self._seconds += now - started
        entry = {'images_shown': images_shown, 'loss': round(loss, 6), 'seconds': round(self._seconds, 1)}
        self.log.append({**entry, 'images_per_s': round((images_shown - before) / max(now - started, 1e-9), 1)})
        write_log(self.folder, self.log)
        if images_shown // self.every > self._drawn // self.every and images_shown < self.options.images_shown:
            self._results(images_shown, weights)
        self._since = images_shown, time.monotonic()  # drawing sheets is no training

    def _results(self, images_shown: int, weights: Mapping[str, Tensor]) -> None:
        """Write the model folder, the loss per noise level and, last, a sheet of samples for averaged weights."""
        losses = [(e['images_shown'], e['loss']) for e in self.log]
        trained = Trained(dict(weights), losses, images_shown, images_shown // self.options.batch_size)
        save_trained(self.folder / MODEL, self.config, trained, self._card(trained))
        if self._denoiser is None:
            self._denoiser = build_denoiser(self.config).to(self.device).eval().requires_grad_(False)
        self._denoiser.load_state_dict(dict(weights))
        pixels = self.images.pixels
        most = 256 if self.device.type == 'cuda' else max(_FEWEST, min(256, _LOSS_VALUES // pixels[0].size))
        limit = min(most, len(pixels))
        with full_float32():
            table = loss_per_sigma(self._denoiser, pixels, self.labels, _SIGMAS, limit=limit, batch_size=self._network_batch())
            sheet = self._samples(self._denoiser)
        title = f'{self.recipe["name"] or self.folder.name}: loss on {limit} training images after {images_shown:,} images shown'
        write_losses(self.folder, table, noise_distribution(self.config, self.options), title)
        draw_sheet(self.folder / 'samples' / f'{images_shown:09d}.png', sheet)
        self._drawn = images_shown

    def _network_batch(self) -> int:
        """Images per network call that fit into memory, since they do in training."""
        return self.options.batch_size // self.options.accumulation

    @torch.no_grad()
    def _samples(self, denoiser: Precond) -> list[tuple[str, np.ndarray]]:
        """Rows of the sheet: always the same noise, so that sheets show the training's course."""
        samples, classes = self.recipe['samples'], list(self.images.classes) if self.config['label_conditioning'] else ['']
        shown: Sequence[str] = classes[: samples['max_classes']]
        n = samples['per_class'] * len(shown)
        size = (self.config['channels'], self.config['resolution'], self.config['resolution'])
        latents = SampleNoise(range(n), size, self.device).latents()
        labels = torch.arange(len(shown), device=self.device).repeat_interleave(samples['per_class']) if self.config['label_conditioning'] else None
        pixels = []
        for i in range(0, n, self._network_batch()):
            part = slice(i, i + self._network_batch())
            x = sample(denoiser, latents[part], cond=None if labels is None else labels[part], num_steps=samples['num_steps'])
            pixels.append(to_uint8(x))
        images = np.concatenate(pixels).reshape(len(shown), samples['per_class'], *pixels[0].shape[1:])
        return list(zip(shown, images, strict=True))

    def _card(self, trained: Trained) -> dict[str, Any]:
        counts = np.bincount(self.images.labels, minlength=len(self.images.classes)).tolist()
        return {
            'name': self.recipe['name'] or self.folder.name,
            'what': f'{self.config["kind"]} denoiser of {self.config["resolution"]} pixel images',
            'licence': self.recipe['licence'],
            'data': {
                'sha256': self.images.sha256,
                'images_per_class': dict(zip(self.images.classes, counts, strict=True)),
                'enlarged': self.images.enlarged,
                'preprocessing': 'centre square, bicubic with antialiasing; uint8 / 127.5 - 1',
            },
            'training': {
                'parameters': parameter_count(self.config),
                'steps': trained.steps,
                'images_shown': trained.images_shown,
                'seconds': round(self._seconds),
                'device': device_name(self.device),
                'options': asdict(self.options),
                'augment': self.recipe['augment'],
                'loss_curve': trained.losses,
            },
            'weights': 'average of the training (EMA), float16',
            'made_by': f'synthaug_plugins {__version__}',
        }
