"""timm's classification task, with loss weights per sample, soft labels and frozen BatchNorm statistics."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from timm.task import ClassificationTask

from synthaug_plugins.errors import RecipeError, first_line
from synthaug_plugins.model_parts import find_batch_norms
from synthaug_plugins.timm.target import MixedTarget


class MixClassificationTask(ClassificationTask):
    """A `ClassificationTask` for the targets of `create_mixed_loader`; with plain labels it is timm's own.

    The loss is sum_i(weight_i * loss_i) / B for any criterion of timm that is a mean over samples; where all weights are 1 it is computed exactly
    as timm does. With soft labels the criterion gets (B, K) targets, smoothed as timm's Mixup smooths them: for cross-entropy and labels that are
    not soft this is the loss of label smoothing.

    Args:
        model, criterion, criterion_kwargs, **options: as in timm.
        soft_labels: whether targets carry soft labels; the criterion is then made for dense targets.
        weighs: check at once, not at the first weighted batch, that the criterion is a mean over samples.
        frozen_bn: keep the running statistics of all BatchNorm layers (True), or of those in whose names one of these regular expressions is found:
            He et al. (ICLR 2023, Table 6) lost 10 points to statistics that followed batches with synthetic images.
        freeze_affine: keep their scale and shift too.

    Raises:
        RecipeError: a criterion that does not fit; a regular expression that finds no layer; `freeze_affine` alone. A model without any BatchNorm layer is said
            in the log: there is nothing to hold.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        criterion: Any = None,
        criterion_kwargs: dict[str, Any] | None = None,
        soft_labels: bool = False,
        weighs: bool = False,
        frozen_bn: bool | Sequence[str] = False,
        freeze_affine: bool = False,
        **options: Any,
    ) -> None:
        smoothing = 0.0
        if soft_labels and criterion is None:  # as for Mixup: the targets are smoothed, not the loss
            smoothing = float((criterion_kwargs or {}).get('smoothing') or 0.0)
            criterion_kwargs = {**(criterion_kwargs or {}), 'soft_targets': True, 'smoothing': 0.0}
        try:
            super().__init__(model, criterion=criterion, criterion_kwargs=criterion_kwargs, **options)
        except ValueError as error:
            raise RecipeError(f'The loss does not fit: {first_line(error)}.', 'Use the loss ce or bce.') from error
        self._smoothing, self._takes_soft, self._checked = smoothing, soft_labels, False
        if weighs:
            self._check_mean(int(getattr(model, 'num_classes', 0)) or 4)
        self._frozen = self._freeze(model, frozen_bn, freeze_affine)

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> ClassificationTask:
        """As timm; on a CPU without `device_ids`, which DistributedDataParallel takes for a device that it does not have."""
        return super().prepare_distributed(device_ids=None if self.device.type == 'cpu' else device_ids, **ddp_kwargs)

    def forward(self, input: torch.Tensor, target: torch.Tensor | MixedTarget) -> dict[str, torch.Tensor]:
        """Loss and logits of a batch."""
        for layer in self._frozen:  # here, since train.py puts the model into train mode with every epoch
            layer.training = False
        if not isinstance(target, MixedTarget):
            return super().forward(input, target)
        wanted = target.label if target.soft is None else self._smoothed(target.soft)
        if not target.parts:
            return super().forward(input, wanted)
        output = self.trainable_module(input)
        if not self._checked:
            self._check_mean(output.shape[1])
        parts = [weight * len(places) / len(wanted) * self.criterion(output[places], wanted[places]) for weight, places in target.parts]
        return {'loss': torch.stack(parts).sum(), 'output': output}

    # --- within

    def _smoothed(self, soft: torch.Tensor) -> torch.Tensor:
        if not self._takes_soft:
            raise RecipeError('The targets carry soft labels, and the task was not made for them.', 'Make it with soft_labels=True.')
        return soft if self._smoothing == 0 else soft * (1 - self._smoothing) + self._smoothing / soft.shape[1]

    def _check_mean(self, n_classes: int) -> None:
        """Refuse a criterion that is no mean over samples: a part of a batch would not weigh what it should."""
        generator = torch.Generator().manual_seed(0)
        count = min(max(3, n_classes), 64)
        output = torch.randn(count, n_classes, generator=generator)
        target = torch.arange(count) % n_classes  # of different classes: where these weigh differently, a mean over samples is none
        wanted = torch.nn.functional.one_hot(target, n_classes).float() if self._takes_soft else target
        output, wanted = output.to(self.device), wanted.to(self.device)
        name = type(self.criterion).__name__
        try:
            with torch.no_grad():
                whole = float(self.criterion(output, wanted))
                each = [float(self.criterion(output[i : i + 1], wanted[i : i + 1])) for i in range(count)]
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise RecipeError(f'The loss {name} cannot weigh samples: {first_line(error)}.', 'Use the loss ce or bce.') from error
        if not math.isclose(whole, sum(each) / count, rel_tol=1e-4, abs_tol=1e-6):
            raise RecipeError(f'The loss {name} is not a mean over the samples of a batch, so they cannot be weighted.', 'Use the loss ce or bce.')
        self._checked = True

    def _freeze(self, model: torch.nn.Module, frozen_bn: bool | Sequence[str], freeze_affine: bool) -> list[Any]:
        if frozen_bn is False:
            if freeze_affine:
                raise RecipeError('freeze_affine needs frozen_bn.', 'Set frozen_bn=True.')
            return []
        layers = find_batch_norms(model, None if frozen_bn is True or not frozen_bn else list(frozen_bn))
        if not layers:
            print_log(f'frozen_bn: {type(model).__name__} has no BatchNorm layer (models with LayerNorm need none frozen).', 'current', logging.WARNING)
        else:
            what = ' and their scale and shift' if freeze_affine else ''
            print_log(f'{len(layers)} BatchNorm layers keep their statistics{what}.', logger='current')
        if freeze_affine:
            for layer in layers:
                layer.requires_grad_(False)
        return layers
