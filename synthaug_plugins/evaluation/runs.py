"""One run of a comparison: MMPretrain's own Runner under a fixed protocol, with its outcome in its folder.

The best checkpoint is chosen on the validation images by top-1 accuracy. Test images are read by `test_run` alone.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.hooks import Hook

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.registry import HOOKS
from synthaug_plugins.store.files import write_whole

if TYPE_CHECKING:
    from mmengine.config import Config

TRAINED = 'result.json'
METRIC = 'accuracy/top1'
_TEST_KEYS = ('test_dataloader', 'test_cfg', 'test_evaluator')
_TRAIN_KEYS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'val_dataloader', 'val_cfg', 'val_evaluator')


@HOOKS.register_module()
class RunRecord(Hook):
    """Counts what a run really did: optimiser iterations, images, seconds of training without validation, validation curve."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.iterations = self.images = 0
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self._since = 0.0

    def before_train(self, runner: Any) -> None:
        """Start the clock."""
        self._since = _now()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Count the batch."""
        self.iterations += 1
        self.images += len(data_batch['inputs'])

    def before_val_epoch(self, runner: Any) -> None:
        """Stop the clock: validation is no training."""
        self.seconds += _now() - self._since

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Note the accuracy and go on."""
        self.curve.append((self.iterations, float((metrics or {})[METRIC])))
        self._since = _now()

    def after_train(self, runner: Any) -> None:
        """Stop the clock."""
        self.seconds += _now() - self._since


def _now() -> float:
    """Seconds on the clock once the GPU (if one is in use) has done what it was told: it works behind Python's back."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def settle(cfg: Config, seed: int, choose: bool = True) -> Config:
    """Put a configured trainer recipe under the protocol: seed, metrics, one best checkpoint chosen on validation.

    Args:
        choose: False: nothing is validated or chosen, and the weights after the last step are those that count (`train_test_run`).

    Raises:
        RecipeError: no validation or test images.
    """
    cfg = copy.deepcopy(cfg)
    if not choose:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    for key in ('val_dataloader', 'val_cfg', 'test_dataloader', 'test_cfg')[0 if choose else 2 :]:
        if cfg.get(key) is None:
            raise RecipeError(f'The trainer recipe has no {key}.', 'A comparison chooses on validation images and reports on test images: give it both.')
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    if choose:
        cfg.val_evaluator = [{'type': 'mmpretrain.Accuracy', 'topk': (1,)}]
    # thrs=None: the arg max alone decides, as for top-1.
    per_class = {'type': 'mmpretrain.SingleLabelMetric', 'items': ('recall', 'support'), 'average': None, 'thrs': None}
    cfg.test_evaluator = [{'type': 'mmpretrain.Accuracy', 'topk': (1,)}, per_class]
    hooks = dict(cfg.get('default_hooks') or {})
    hooks['checkpoint'] = {
        'type': 'mmengine.CheckpointHook',
        'by_epoch': by_epoch(cfg),
        'interval': -1,
        'save_last': False,
        **({'save_best': METRIC, 'rule': 'greater'} if choose else {}),
    }
    cfg.default_hooks = hooks
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), {'type': 'synthaug_plugins.RunRecord'}]
    cfg.resume = False
    return cfg


def by_epoch(cfg: Config) -> bool:
    """Whether training is counted in epochs."""
    train_cfg = cfg.train_cfg
    return bool(train_cfg.get('by_epoch', 'max_iters' not in train_cfg))


def planned_steps(cfg: Config) -> int:
    """Optimiser steps that a settled recipe will take; builds its training set when it counts in epochs.

    Raises:
        RecipeError: the train_cfg names neither max_iters nor max_epochs.
    """
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    key = 'max_epochs' if by_epoch(cfg) else 'max_iters'
    if not cfg.train_cfg.get(key):
        raise RecipeError(f'train_cfg = {dict(cfg.train_cfg)} has no {key}.', f'Set train_cfg.{key}.')
    iterations = int(cfg.train_cfg[key])
    if by_epoch(cfg):
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        iterations *= len(Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0))
    return optimiser_steps(cfg, iterations)


def optimiser_steps(cfg: Config, iterations: int) -> int:
    """Steps of the optimiser in so many iterations (gradients may be accumulated over several)."""
    return math.ceil(iterations / int(cfg.optim_wrapper.get('accumulative_counts', 1)))


def training_part(cfg: Config) -> Config:
    """A settled recipe without its test images: what decides a trained model."""
    cfg = copy.deepcopy(cfg)
    for key in _TEST_KEYS:
        cfg[key] = None
    return cfg


def testing_part(cfg: Config) -> Config:
    """A settled recipe without training and validation: what decides a test result, given a checkpoint."""
    cfg = copy.deepcopy(cfg)
    for key in _TRAIN_KEYS:
        cfg[key] = None
    cfg.custom_hooks = []
    cfg.default_hooks.pop('checkpoint')
    return cfg


def train_run(cfg: Config, folder: Path, steps: int) -> dict[str, Any]:
    """Train one settled recipe (its training part) in its folder, from the start, and write `result.json` last.

    Returns: steps, images, seconds (training without validation), images_per_second, val (best top-1, percent), best_step,
        curve [[step, top-1], ...], checkpoint (file name), classes.

    Raises:
        RecipeError: it took another number of steps than the comparison was promised.
        DataError: training and validation have other classes, or another order.
    """
    from synthaug_plugins.training.run import train

    shutil.rmtree(folder / 'train', ignore_errors=True)  # of a run that was killed
    runner = train(_named(cfg, folder), str(folder / 'train'))
    record, done = _record(runner, cfg, steps)
    classes, held_out = (list(loader.dataset.metainfo['classes']) for loader in (runner.train_dataloader, runner.val_dataloader))
    _same_classes(training=classes, validation=held_out)
    best_step, val = max(record.curve, key=lambda point: (point[1], -point[0]))
    checkpoint = Path(runner.message_hub.get_info('best_ckpt'))
    result = {
        'steps': done,
        'images': record.images,
        'seconds': record.seconds,
        'images_per_second': record.images / record.seconds,
        'val': val,
        'best_step': best_step,
        'curve': record.curve,
        'checkpoint': checkpoint.name,
        'classes': classes,
    }
    write_json(folder / TRAINED, result)
    return result


def train_test_run(cfg: Config, folder: Path, steps: int) -> dict[str, Any]:
    """Train one recipe that was settled without a choice, test its last weights once, and write `result.json` last.

    Returns: steps, images, seconds (training), top1 (percent), recall (percent per class), support (images per class), classes.

    Raises:
        RecipeError: it took another number of steps than was promised.
        DataError: the test folder's classes are not those that were trained, in the same order.
    """
    from synthaug_plugins.training.run import train

    shutil.rmtree(folder / 'train', ignore_errors=True)  # of a run that was killed
    runner = train(_named(cfg, folder), str(folder / 'train'))
    record, done = _record(runner, cfg, steps)
    result = {'steps': done, 'images': record.images, 'seconds': record.seconds, **_tested(runner, list(runner.train_dataloader.dataset.metainfo['classes']))}
    write_json(folder / TRAINED, result)
    return result


def _record(runner: Any, cfg: Config, steps: int) -> tuple[RunRecord, int]:
    """What a Runner did, and its optimiser steps, which must be as many as were promised."""
    record = next(h for h in runner.hooks if isinstance(h, RunRecord))
    done = optimiser_steps(cfg, record.iterations)
    if done != steps:
        cure = 'Remove what ends it early (EarlyStoppingHook): the arms are compared at equal steps.'
        raise RecipeError(f'Training took {done} optimiser steps instead of {steps}.', cure)
    return record, done


def test_run(cfg: Config, folder: Path, file: str) -> dict[str, Any]:
    """Evaluate the best checkpoint of a finished training once on the test images, and write `file`.

    Returns: top1 (percent), recall (percent per class), support (images per class), classes.

    Raises:
        DataError: the test folder's classes are not those that were trained, in the same order.
    """
    from mmengine.runner import Runner

    trained = json.loads((folder / TRAINED).read_text(encoding='utf-8'))
    cfg = _named(cfg, folder)
    cfg.work_dir = str(folder / 'test')
    cfg.load_from = str(folder / 'train' / trained['checkpoint'])
    result = _tested(Runner.from_cfg(cfg), trained['classes'])
    write_json(folder / file, result)
    return result


def _tested(runner: Any, trained: list[str]) -> dict[str, Any]:
    """What a Runner says of the test images: top1, recall, support, classes."""
    metrics = runner.test()
    classes = list(runner.test_dataloader.dataset.metainfo['classes'])
    _same_classes(training=trained, test=classes)
    return {
        'top1': metrics[METRIC],
        'recall': metrics['single-label/recall_classwise'],
        'support': metrics['single-label/support_classwise'],
        'classes': classes,
    }


def _same_classes(**classes: list[str]) -> None:
    (a, first), (b, second) = classes.items()
    if first != second:
        raise DataError(f'The classes of {a} {first} and of {b} {second} differ.', 'Give both the same class folders: a label is a position in their order.')


def _named(cfg: Config, folder: Path) -> Config:
    """MMEngine keeps loggers and message hubs by experiment name, for the whole process: every run needs its own."""
    cfg = copy.deepcopy(cfg)
    cfg.experiment_name = f'{folder.name}-{time.time_ns()}'
    return cfg


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + '\n').encode())
