"""Takes a backbone over from one training and leaves it for the next, under any launcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.registry import HOOKS
from synthaug_plugins.training.backbone_weights import check_fits, load_backbone, save_backbone
from synthaug_plugins.training.bare_model import bare
from synthaug_plugins.training.checkpoints import newest_checkpoint


@HOOKS.register_module()
class StageHook(Hook):
    """Checks that a training has started from the backbone that it was given, all of it, and saves its own at the end.

    MMEngine's `Pretrained` loads the weights that fit and goes on without the others; some backbones keep weights of their own whatever the recipe
    says. Both are refused before the first step.

    Args:
        start: the file that `model.backbone.init_cfg` names, or None.
        may_differ: see `backbone_weights.check_fits`.
        leave: name of the file, in the work folder, for the backbone of the last checkpoint; None: none.
        ema: leave the average that an EMAHook kept.

    Raises:
        RecipeError: the backbone does not fit, or has not started from `start`; at the end: no checkpoint was saved.
        ModelError: see `load_backbone`.
    """

    priority = 'LOWEST'  # after the last checkpoint

    def __init__(self, start: str | None = None, may_differ: Sequence[str] = (), leave: str | None = None, ema: bool = False) -> None:
        self.start, self.may_differ, self.leave, self.ema = start, tuple(may_differ), leave, ema

    def before_train(self, runner: Any) -> None:
        """Compare the backbone with the file, unless a checkpoint was resumed."""
        if self.start is None or runner.iter > 0:
            return
        given = load_backbone(self.start)
        check_fits(given, runner.cfg.model.backbone, self.may_differ, runner.cfg.get('default_scope') or 'mmpretrain')
        model = bare(runner.model)
        for key, value in model.backbone.state_dict().items():
            there = given.get(key)
            if there is not None and there.shape == value.shape and not torch.equal(there, value.cpu()):
                raise RecipeError(
                    f'The backbone {type(model.backbone).__name__} has not started from {self.start!r}: {key} is another.',
                    'Remove what else gives the model its weights (pretrained, load_from).',
                )

    def after_train(self, runner: Any) -> None:
        """Leave the backbone."""
        if self.leave is not None and is_main_process():
            leave_backbone(Path(runner.work_dir), self.leave, self.ema)


def leave_backbone(folder: Path, name: str, ema: bool) -> None:
    """Write the backbone of the newest checkpoint in a work folder beside it.

    Raises:
        RecipeError: there is none.
        ModelError: see `load_backbone`.
    """
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise RecipeError(f'The training in {str(folder)!r} saved no checkpoint.', 'Set default_hooks.checkpoint.save_last=True.')
    save_backbone(load_backbone(checkpoint, ema), folder / name)
