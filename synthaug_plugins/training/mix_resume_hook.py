"""Resumes a run with the batches that it would have had, in the middle of an epoch too."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.registry import HOOKS

_KEY = 'synthaug_mix'


@HOOKS.register_module()
class MixResumeHook(Hook):
    """Goes on with the batches that a run without the interruption would have had.

    Stock MMEngine runs an epoch that was interrupted from its first batch again, and without `randomness.seed` in another
    order. With a `MixBatchSampler` or a `PromptGroupSampler` the seeds of the batches come from the checkpoint, and an epoch-based loop continues
    after the last batch of it; iteration-based loops do so by themselves. What an augmentation draws at random after a
    resume still differs, as in stock MMEngine.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note the seeds and how many batches an epoch has (plain numbers, so that the checkpoint loads with weights_only)."""
        sampler = self._sampler(runner)
        if sampler is not None:
            checkpoint[_KEY] = {'epoch_batches': len(runner.train_dataloader), 'seeds': sampler.seeds()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the note until the loop starts."""
        self._saved = checkpoint.get(_KEY)

    def before_train(self, runner: Runner) -> None:
        """Take the seeds of the checkpoint and skip what it has done of its epoch.

        Raises:
            RecipeError: the checkpoint stands in the middle of an epoch that has another number of batches now.
        """
        saved, self._saved = self._saved, None
        sampler, loop = self._sampler(runner), runner.train_loop
        if saved is None or sampler is None or runner.iter == 0:
            return
        if sampler.restore_seeds(saved['seeds']):
            runner.logger.info(f'The batches go on with the seeds of the checkpoint: {saved["seeds"]}.')
            if isinstance(loop, IterBasedTrainLoop):  # its workers may have fetched batches ahead
                loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        done = runner.iter - runner.epoch * saved['epoch_batches']
        now = len(runner.train_dataloader)
        if done and now != saved['epoch_batches']:
            raise RecipeError(
                f'The checkpoint stands at batch {done} of an epoch of {saved["epoch_batches"]} batches, but an epoch has {now} now.',
                'Resume with the same data, batch size and number of processes, or from a checkpoint at the end of an epoch.',
            )
        if done:
            runner.logger.info(f'Epoch {runner.epoch + 1} continues after the {done} of {now} batches that the checkpoint has seen.')
        sampler.resume_at(runner.epoch, done)

    @staticmethod
    def _sampler(runner: Runner) -> Any:
        sampler = getattr(runner.train_dataloader, 'batch_sampler', None)
        return sampler if hasattr(sampler, 'resume_at') else None  # one of ours
