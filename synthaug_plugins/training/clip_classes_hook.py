"""Refuses to train or test a CLIP head on a data set whose classes are others, or in another order."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.registry import HOOKS
from synthaug_plugins.training.bare_model import bare
from synthaug_plugins.training.class_folders import refuse_turned_folders
from synthaug_plugins.training.clip_head import ClipHead
from synthaug_plugins.training.few_shot_dataset import FewShotDataset
from synthaug_plugins.training.mixed_dataset import inner_datasets


@HOOKS.register_module()
class ClipClassesHook(Hook):
    """Compares the class names of `ClipHead` with those of every data set that meets it: a label is a position in their order.

    Raises:
        DataError: they differ, or folders are labelled in another order than `classes` says; or shots are validation images at once.
        RecipeError: the model has no ClipHead.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the training set, and that no shot is among the images to choose on."""
        self._check(runner, runner.train_dataloader, 'training')
        if runner.val_loop is not None:
            _refuse_shared_shots(runner.train_dataloader.dataset, runner.val_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        """Check the validation set."""
        self._check(runner, runner.val_dataloader, 'validation')

    def before_test(self, runner: Runner) -> None:
        """Check the test set."""
        self._check(runner, runner.test_dataloader, 'test')

    def _check(self, runner: Runner, loader: Any, which: str) -> None:
        head = getattr(bare(runner.model), 'head', None)
        if not isinstance(head, ClipHead):
            raise RecipeError(f'ClipClassesHook checks a ClipHead, and the head is a {type(head).__name__}.', 'Remove the hook.')
        refuse_turned_folders(loader.dataset)
        found = (getattr(loader.dataset, 'metainfo', None) or {}).get('classes')
        if found is None:
            raise DataError(f'The {which} set does not name its classes.', 'Set metainfo=dict(classes=[...]) in its config.')
        if tuple(found) != head.classes:
            raise DataError(f'The classes of the {which} set {list(found)} are not those of the head {list(head.classes)}, in that order.', _cure(found, head))


def _refuse_shared_shots(train: Any, val: Any) -> None:
    """Refuse (DataError) draws that overlap: shots and seed stand in two loaders, and one of them is easily forgotten."""
    drawn = [
        {inner.get_data_info(i)['img_path'] for inner in inner_datasets(dataset) if isinstance(inner, FewShotDataset) for i in range(len(inner))}
        for dataset in (train, val)
    ]
    if shared := drawn[0] & drawn[1]:
        raise DataError(
            f'{len(shared)} images are shots and validation images at once, such as {min(shared)!r}.',
            'Give train_dataloader.dataset and val_dataloader.dataset the same shots and seed.',
        )


def _cure(found: Any, head: ClipHead) -> str:
    if sorted(found) == sorted(head.classes):
        return 'Give the head the order of the data set: a label is a position in it.'
    missing, foreign = sorted(set(head.classes) - set(found)), sorted(set(found) - set(head.classes))
    return f'Make the names equal: only in the head {missing}, only in the data {foreign}.'
