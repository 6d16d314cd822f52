"""Resumes an epoch where it was interrupted, instead of starting it again."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.registry import HOOKS
from synthaug_plugins.training.mix_batch_sampler import MixBatchSampler

_KEY = 'synthaug_mix'


@HOOKS.register_module()
class MixResumeHook(Hook):
    """Skips the batches that were trained on before a checkpoint in the middle of an epoch.

    Stock MMEngine runs such an epoch from its first batch again. With a `MixBatchSampler` an epoch-based loop continues
    after the last batch of the checkpoint; iteration-based loops do so by themselves. What an augmentation draws at random
    after a resume still differs, as in stock MMEngine.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note how many batches an epoch has (plain numbers, so that the checkpoint loads with weights_only)."""
        if self._sampler(runner) is not None:
            checkpoint[_KEY] = {'epoch_batches': len(runner.train_dataloader)}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the note until the loop starts."""
        self._saved = checkpoint.get(_KEY)

    def before_train(self, runner: Runner) -> None:
        """Skip what the checkpoint has done of its epoch.

        Raises:
            RecipeError: the checkpoint stands in the middle of an epoch that has another number of batches now.
        """
        saved, self._saved = self._saved, None
        sampler = self._sampler(runner)
        if saved is None or sampler is None or runner.iter == 0 or not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        done = runner.iter - runner.epoch * saved['epoch_batches']
        if done == 0:
            return
        now = len(runner.train_dataloader)
        if now != saved['epoch_batches']:
            raise RecipeError(
                f'The checkpoint stands at batch {done} of an epoch of {saved["epoch_batches"]} batches, but an epoch has {now} now.',
                'Resume with the same data, batch size and number of processes, or from a checkpoint at the end of an epoch.',
            )
        runner.logger.info(f'Epoch {runner.epoch + 1} continues after the {done} of {now} batches that the checkpoint has seen.')
        sampler.skip_batches(done)

    @staticmethod
    def _sampler(runner: Runner) -> MixBatchSampler | None:
        sampler = getattr(runner.train_dataloader, 'batch_sampler', None)
        return sampler if isinstance(sampler, MixBatchSampler) else None
