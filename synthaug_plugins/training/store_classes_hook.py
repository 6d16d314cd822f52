"""Refuses to validate or test on other classes than those of the store that is trained on."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from synthaug_plugins.errors import DataError
from synthaug_plugins.registry import HOOKS
from synthaug_plugins.store.store import Store
from synthaug_plugins.training.class_folders import refuse_turned_folders


@HOOKS.register_module()
class StoreClassesHook(Hook):
    """Compares the classes of a store with those of validation and test: a label is a position in their order.

    Names that only one of them has are logged and no more: one class has many names ('tench', 'tench, Tinca tinca', 'n01440764').

    Args:
        store: folder of the store.

    Raises:
        DataError: another number of classes, or a name that has another place in their order.
    """

    priority = 'VERY_HIGH'

    def __init__(self, store: str) -> None:
        self.store = store

    def before_train(self, runner: Runner) -> None:
        """Check the validation set, before the first step."""
        if runner.val_loop is not None:
            self._check(runner, runner.val_dataloader.dataset, 'validation')

    def before_test(self, runner: Runner) -> None:
        """Check the test set."""
        self._check(runner, runner.test_dataloader.dataset, 'test')

    def _check(self, runner: Runner, dataset: Any, which: str) -> None:
        refuse_turned_folders(dataset)
        theirs = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        if theirs is None:
            return
        classes = Store.open(self.store).classes
        if len(theirs) != len(classes):
            raise DataError(
                f'The {which} set has {len(theirs)} classes, and the store {self.store!r} has {len(classes)}.',
                f'Give a {which} set of its classes, or leave validation and test out with synthaug.train_on.validate=False.',
            )
        different = [(a, b) for a, b in zip(classes, theirs, strict=True) if a != b]
        moved = next((pair for pair in different if pair[0] in theirs or pair[1] in classes), None)
        if moved is not None:
            raise DataError(
                f'The {which} set has classes of the store {self.store!r} in another order: {moved[1]!r} where the store has {moved[0]!r}.',
                'Generate the store with --cfg-options "classes=[...]" in the order of the data set.',
            )
        if different:
            a, b = different[0]
            runner.logger.log(
                logging.WARNING,
                f'{len(different)} classes of the {which} set have other names than in the store {self.store!r}, such as {b!r} for {a!r}: '
                'accuracy there means nothing if these are not the same classes in the same order.',
            )
