"""Keeps BatchNorm statistics where they are while the rest trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.model_parts import find_batch_norms
from synthaug_plugins.registry import HOOKS
from synthaug_plugins.training.bare_model import bare


@HOOKS.register_module()
class FrozenBNHook(Hook):
    """Holds BatchNorm layers in eval mode during training: running statistics are used and never updated.

    He et al. (ICLR 2023, Table 6): with synthetic images in the batch, statistics that follow the batch cost 10 points on
    EuroSAT. It acts before every iteration, because MMEngine's loops call `model.train()` after `before_train_epoch`.

    Args:
        modules: regular expressions; a BatchNorm layer is frozen if one is found in its name, such as 'backbone' or
            'layer4.*bn1'. Default: all of them.
        freeze_affine: also keep the layers' scale and shift.

    A model without any BatchNorm layer is said once in the log: there is nothing to hold.

    Raises:
        RecipeError: an expression that finds none of the model's BatchNorm layers or is not one; `freeze_affine` where DistributedDataParallel
            would wait for the gradients; PreciseBNHook beside it.
    """

    priority = 'LOWEST'  # after every hook that might put modules into train mode

    def __init__(self, modules: str | Sequence[str] | None = None, freeze_affine: bool = False) -> None:
        self.modules = [modules] if isinstance(modules, str) else None if modules is None else list(modules)
        self.freeze_affine = freeze_affine
        self._frozen: list[_BatchNorm] = []

    def before_train(self, runner: Runner) -> None:
        """Find the layers."""
        if any(type(hook).__name__ == 'PreciseBNHook' for hook in runner.hooks):
            raise RecipeError('PreciseBNHook recomputes the statistics that FrozenBNHook keeps.', 'Remove one of the two.')
        self._frozen = find_batch_norms(bare(runner.model), self.modules)
        if not self._frozen:
            runner.logger.warning('frozen_bn: the model has no BatchNorm layer (models with LayerNorm need none frozen): there is nothing to hold.')
            return
        if self.freeze_affine:
            if is_model_wrapper(runner.model) and not getattr(runner.model, 'find_unused_parameters', False):
                raise RecipeError('freeze_affine: DistributedDataParallel waits for gradients of the frozen layers.', 'Set find_unused_parameters = True.')
            for module in self._frozen:
                module.requires_grad_(False)
        runner.logger.info(f'{len(self._frozen)} BatchNorm layers keep their statistics{" and their scale and shift" if self.freeze_affine else ""}.')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Put the layers back into eval mode."""
        for module in self._frozen:
            module.eval()
