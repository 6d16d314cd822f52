"""How to train a classifier of levels: the options, what of them fits a model, and the noise levels to train at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthaug_plugins.diffusion import LogUniform
from synthaug_plugins.diffusion.minority import SCHEDULES, timestep_sigmas
from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.learning.checks import AUTOCAST, check_flag, check_number, check_precision, check_seed, check_whole

NOISES = ('log_uniform', *SCHEDULES)


@dataclass(frozen=True)
class LevelTraining:
    """How to train a classifier of levels. The defaults are the published ones (Um et al. 2024, LSUN Bedrooms), apart from `noise`, and from
    `flip`, which goes with what the images show.

    Attributes:
        images_shown: length of the training: 60,000 steps of 256. The learning rate falls to 0 by then, so a finished training cannot be made longer.
        batch_size: images per step.
        learning_rate: of AdamW, falling in a straight line to 0.
        weight_decay: decoupled.
        flip: mirror every second image; the score of an image was measured unmirrored.
        noise: at which noise levels: 'log_uniform', ln sigma uniform over the range; 'linear' or 'cosine', uniform over the 1000 timesteps of that schedule
            (published: 'linear') as far as they lie in the range.
        sigma_min, sigma_max: the range; None: that of the denoiser, at most 0.002 to 80. Guidance is refused outside of it.
        validation: share of the images of every level that are not trained on.
        validation_sigmas: at how many noise levels the validation is.
        seed: decides the initial weights, the split, the order of the images and every random draw.
        precision: 'fp32', 'bf16' (autocast; the loss stays float32), or 'auto': bf16 on GPUs that have it, else fp32.
        checkpoint_steps: steps between checkpoints.
    """

    images_shown: int = 15_360_000
    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    flip: bool = False
    noise: str = 'log_uniform'
    sigma_min: float | None = None
    sigma_max: float | None = None
    validation: float = 0.05
    validation_sigmas: int = 9
    seed: int = 0
    precision: str = 'auto'
    checkpoint_steps: int = 500


FREE = {'checkpoint_steps', 'validation_sigmas'}
"""Options that may differ between the run that wrote a checkpoint and the one that continues it."""


def check_level_training(o: LevelTraining) -> None:
    """Refuse (RecipeError) an option that is out of range; it is named."""
    for name in ('images_shown', 'batch_size', 'validation_sigmas', 'checkpoint_steps'):
        check_whole(name, getattr(o, name))
    check_number('learning_rate', o.learning_rate, 'Use a number above 0; published: 3e-4.', above=True)
    check_number('weight_decay', o.weight_decay, 'Use 0 or more; published: 0.05.')
    check_flag('flip', o.flip)
    if o.noise not in NOISES:
        raise RecipeError(f'noise = {o.noise!r} is unknown.', nearest(str(o.noise), NOISES))
    for name in ('sigma_min', 'sigma_max'):
        if getattr(o, name) is not None:
            check_number(name, getattr(o, name), "Use a number above 0, or leave it out for the denoiser's own.", above=True)
    check_number('validation', o.validation, 'It is a share above 0 and up to 0.5; published: 0.05.', high=0.5, above=True)
    check_seed(o.seed)
    check_precision(o.precision, AUTOCAST)


def sigma_range(o: LevelTraining, supported: tuple[float, float]) -> tuple[float, float]:
    """The lowest and the highest noise level to train at.

    Args:
        supported: by the denoiser.

    Raises:
        RecipeError: a range that is empty, reaches beyond what the denoiser supports, or holds no timestep of the schedule.
    """
    low = max(supported[0], 0.002) if o.sigma_min is None else float(o.sigma_min)
    high = min(supported[1], 80.0) if o.sigma_max is None else float(o.sigma_max)
    if not supported[0] <= low < high <= supported[1]:
        what = f'sigma_min = {low:g} and sigma_max = {high:g} are no range within {supported[0]:g} to {supported[1]:g}, which the model supports.'
        raise RecipeError(what, "Leave them out for the model's own.")
    noise_levels(o.noise, low, high)
    return low, high


def noise_levels(noise: str, low: float, high: float) -> LogUniform | AnyOf:
    """The noise levels to train at, within a range.

    Raises:
        RecipeError: no timestep of the schedule lies within.
    """
    if noise == 'log_uniform':
        return LogUniform(low, high)
    table = timestep_sigmas(noise)
    table = table[(table >= low) & (table <= high)]
    if not len(table):
        raise RecipeError(f'No timestep of the schedule {noise!r} has a noise level of {low:g} to {high:g}.', 'Widen sigma_min and sigma_max.')
    return AnyOf(table)


class AnyOf:
    """Every entry of a table of noise levels equally often."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def draw(self, n: int, device: torch.device | str) -> Tensor:
        """(n,) float32 from torch's global generator."""
        return self.table.float().to(device)[torch.randint(len(self.table), (n,), device=device)]
