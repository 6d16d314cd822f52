"""How to train a denoiser: the options, what of them fits a model, and the noise levels to train at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synthaug_plugins.diffusion import IDDPMUniform, LogNormal, LogUniform, VPUniform, check_denoiser_config
from synthaug_plugins.diffusion.augmentation import Augmentation
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.learning.checks import AUTOCAST, check_flag, check_number, check_precision, check_seed, check_whole
from synthaug_plugins.learning.ema import power_exponent


@dataclass(frozen=True)
class EDMTraining:
    """How to train. Amounts of training are counted in images shown, so that they keep their meaning at another batch size.

    Attributes:
        images_shown: length of the training; a finished training continues when it is raised.
        batch_size: images per step.
        accumulation: parts in which a step's batch goes through the network, to save memory; every image has the same draws
            in any number of parts, dropout masks inside the network excepted.
        learning_rate: of AdamW, constant after the warm-up.
        warmup_images: linear ramp of the learning rate. It starts above zero: the first step counts.
        weight_decay: decoupled.
        grad_clip: largest gradient norm (of the pixel-mean loss), or None.
        ema_half_life_images: half-life of the weight average, which is the result of the training.
        ema_ramp: the half-life is at most this share of the images shown so far, else early weights would stay in.
        power_ema_stds: relative widths of power-function averages to track besides, such as (0.05, 0.10); see `PowerEMA`.
        snapshot_steps: steps between the snapshots of these that are kept in the work folder, for `reconstruct`.
        class_balance: every class equally often, whatever its number of images.
        P_mean, P_std: of ln sigma, see `LogNormal`; for models of kind 'edm'. Other kinds train at their own distribution.
        seed: decides the initial weights, the order of the images and every random draw.
        precision: 'fp32', 'bf16' (autocast; the loss stays float32), or 'auto': bf16 on GPUs that have it, else fp32.
        compile: run the network through torch.compile.
        checkpoint_steps: steps between checkpoints.
    """

    images_shown: int
    batch_size: int = 128
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_images: int = 20_000
    weight_decay: float = 0.01
    grad_clip: float | None = 1.0
    ema_half_life_images: int = 100_000
    ema_ramp: float = 0.05
    power_ema_stds: tuple[float, ...] = ()
    snapshot_steps: int = 5000
    class_balance: bool = False
    P_mean: float = -1.2
    P_std: float = 1.2
    seed: int = 0
    precision: str = 'auto'
    compile: bool = False
    checkpoint_steps: int = 500


FREE = {'images_shown', 'checkpoint_steps', 'snapshot_steps', 'compile'}
"""Options that may differ between the run that wrote a checkpoint and the one that continues it."""


def noise_distribution(config: Mapping[str, Any], options: EDMTraining) -> LogNormal | VPUniform | LogUniform | IDDPMUniform:
    """The noise levels that a model of this kind trains at (EDM, Table 1, "Noise distribution")."""
    if config['kind'] == 'edm':
        return LogNormal(options.P_mean, options.P_std)
    kind, keys = {
        'vp': (VPUniform, ('beta_d', 'beta_min', 'epsilon_t')),
        've': (LogUniform, ('sigma_min', 'sigma_max')),
        'iddpm': (IDDPMUniform, ('C_1', 'C_2', 'M')),
    }[config['kind']]
    return kind(**{k: config[k] for k in keys if k in config})


def check_noise(options: EDMTraining) -> None:
    """Refuse (RecipeError) a P_mean or P_std that is out of range."""
    check_number('P_std', options.P_std, 'It is the standard deviation of ln sigma, such as 1.2.', above=True)
    check_number('P_mean', options.P_mean, 'It is the mean of ln sigma, such as -1.2.', low=-math.inf)


def check_training(config: Mapping[str, Any], options: EDMTraining, augment: Augmentation | None = None) -> None:
    """Refuse a model, options and augmentation that cannot be trained together, before any data is read.

    Raises:
        ModelError: see `check_denoiser_config`.
        RecipeError: an option is out of range, or the network does not take the augmentation's labels; the key is named.
    """
    check_denoiser_config(config)
    for name in ('images_shown', 'batch_size', 'accumulation', 'snapshot_steps', 'checkpoint_steps', 'ema_half_life_images'):
        check_whole(name, getattr(options, name))
    for name in ('learning_rate', 'ema_ramp', *(() if options.grad_clip is None else ('grad_clip',))):
        check_number(name, getattr(options, name), 'Use a number above 0.', above=True)
    for name in ('warmup_images', 'weight_decay'):
        check_number(name, getattr(options, name), 'Use 0 or more.')
    check_seed(options.seed)
    check_noise(options)
    for name in ('class_balance', 'compile'):
        check_flag(name, getattr(options, name))
    if options.batch_size % options.accumulation:
        raise RecipeError(f'batch_size = {options.batch_size} does not divide into accumulation = {options.accumulation} parts.', 'Choose a divisor.')
    check_precision(options.precision, AUTOCAST)
    for std in options.power_ema_stds:
        power_exponent(std)
    taken, given = config.get('augment_labels', 0), augment.label_dim if augment else 0
    if taken != given:
        raise RecipeError(f'The model takes augment_labels = {taken}, the augmentation gives {given}.', f'Set augment_labels = {given} in the model.')
