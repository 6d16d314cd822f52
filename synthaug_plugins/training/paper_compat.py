"""Quirks of published code, by name, for those who want its numbers. No default recipe uses them."""

from __future__ import annotations

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.runner import Runner

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.model_parts import find_batch_norms
from synthaug_plugins.registry import HOOKS, PARAM_SCHEDULERS
from synthaug_plugins.training.bare_model import bare


@PARAM_SCHEDULERS.register_module()
class SawtoothCosineLR(LRSchedulerMixin, _ParamScheduler):
    """The learning rate as the official code of He et al. (ICLR 2023) really sets it in few-shot training.

    Its cosine is as long as `epochs` passes in batches of 512, but its loaders give batches of 128, so an epoch has four times the steps. In step i
    of epoch e the position is e * n + i of epochs * n, n the steps of a pass in batches of 512: within each epoch the rate runs ahead by four epochs
    and then jumps back, and at the end it rises again, since the cosine goes on past its length.

    Args:
        optimizer: as every scheduler of MMEngine takes it.
        epochs: of the training.
        batches_per_counted: steps taken for each one that is counted: 4 for 128 in place of 512.
        epoch_length: steps of an epoch; set by MMEngine where the recipe says `convert_to_iter_based=True`.

    Raises:
        RecipeError: a number below 1, or no epoch_length.
    """

    def __init__(self, optimizer: Any, epochs: int, batches_per_counted: int = 4, epoch_length: int | None = None, **options: Any) -> None:
        if epoch_length is None:
            raise RecipeError('SawtoothCosineLR counts steps within epochs.', 'Set convert_to_iter_based=True.')
        if min(epochs, batches_per_counted, epoch_length) < 1:
            raise RecipeError(f'SawtoothCosineLR: epochs = {epochs}, batches_per_counted = {batches_per_counted} are out of range.', 'Use 1 or more.')
        self.epochs, self.epoch_length = epochs, epoch_length
        self.counted = math.ceil(epoch_length / batches_per_counted)
        super().__init__(optimizer, by_epoch=False, **options)

    @classmethod
    def build_iter_from_epoch(cls, **options: Any) -> SawtoothCosineLR:
        """As MMEngine calls it for `convert_to_iter_based=True`."""
        return cls(**{key: value for key, value in options.items() if key not in ('by_epoch', 'begin', 'end')})

    def _get_value(self) -> list[float]:
        epoch, i = divmod(self.last_step, self.epoch_length)
        position = (epoch * self.counted + i) / (self.epochs * self.counted)
        return [base * 0.5 * (1 + math.cos(math.pi * position)) for base in self.base_values]


@HOOKS.register_module()
class TrainModeBNHook(Hook):
    """BatchNorm as the official code of DA-Fusion (ICLR 2024) has it in its frozen trunk: in train mode.

    The weights get no gradient, but the layers normalise with the statistics of the batch, synthetic images included, and their running
    statistics follow them. FrozenBNHook is the opposite.

    Raises:
        RecipeError: the model has no BatchNorm layer, or a FrozenBNHook too.
    """

    priority = 'LOWEST'  # after every hook that might put modules into eval mode

    def __init__(self) -> None:
        self._layers: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Find the layers."""
        if any(type(hook).__name__ == 'FrozenBNHook' for hook in runner.hooks):
            raise RecipeError('FrozenBNHook keeps the statistics that TrainModeBNHook lets go.', 'Remove one of the two: synthaug.frozen_bn=None.')
        self._layers = find_batch_norms(bare(runner.model), None)
        if not self._layers:
            raise RecipeError('TrainModeBNHook: the model has no BatchNorm layer.', 'Remove the hook.')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Put the layers into train mode: MMPretrain's `frozen_stages` has put them into eval mode."""
        for module in self._layers:
            module.train()
