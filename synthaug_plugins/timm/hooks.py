"""What stands in train.py in the place of timm's `create_dataset`, `create_loader` and `ClassificationTask`."""

from __future__ import annotations

import argparse
import os
from types import ModuleType
from typing import Any

from mmengine.logging import print_log

from synthaug_plugins.errors import DataError, RecipeError, first_line
from synthaug_plugins.timm.loader import create_mixed_loader
from synthaug_plugins.timm.mixed_dataset import MixedImageDataset
from synthaug_plugins.timm.options import Options
from synthaug_plugins.timm.script import HOOKS
from synthaug_plugins.timm.task import MixClassificationTask

_CURE = 'Use the unchanged train.py of the installed timm.'
_STREAMS = ('wds', 'tfds', 'hfids')
_READING = {
    'root': 'data_dir',
    'split': 'train_split',
    'class_map': 'class_map',
    'download': 'dataset_download',
    'input_key': 'input_key',
    'target_key': 'target_key',
    'target_format': 'target_format',
    'trust_remote_code': 'dataset_trust_remote_code',
}
"""What decides which images and labels `create_dataset` reads: its argument, and the option of train.py."""


class Hooks:
    """Extends one run of train.py. What can be checked is checked on creation, before train.py builds its model.

    Args:
        script: the loaded train.py.
        args: its parsed command line.
        options: what the launcher was asked for.

    Raises:
        RecipeError, StoreError, DataError: options of train.py that exclude mixing; stores that do not fit the training images.
    """

    def __init__(self, script: ModuleType, args: argparse.Namespace, options: Options) -> None:
        self.options, self.args = options, args
        self.theirs = {name: getattr(script, name) for name in HOOKS}
        self.used: set[str] = set()
        check_args(args, options)
        self._dataset: MixedImageDataset | None = None
        if options.stores:
            name, reading = self._training_set()
            try:
                real = self.theirs['create_dataset'](name, is_training=True, **reading)
            except (RuntimeError, OSError, AssertionError, ImportError, TypeError, ValueError) as error:  # timm and torchvision say it with any of these
                what = f'The training set {name!r} in {reading["root"]!r}, split {reading["split"]!r}, cannot be read: {first_line(error)}.'
                raise DataError(what, 'Correct --data-dir, --dataset, --train-split, --input-key or --target-key.') from error
            self._dataset = MixedImageDataset(real, options.stores, **options.data)
            self._check_head()
        for name in HOOKS:
            setattr(script, name, getattr(self, name))

    def create_dataset(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """timm's for validation; for training the set that was mixed before the model was built."""
        if self._dataset is None or not kwargs.get('is_training'):
            return self.theirs['create_dataset'](name, *args, **kwargs)
        ours, reading = self._training_set()
        asked = {key: kwargs[key] for key in _READING if key in kwargs}
        if args or (name, asked) != (ours, {key: reading.get(key) for key in asked}) or not asked.keys() >= {'root', 'split'}:
            raise RecipeError(f'train.py asks for the training set {name!r} with {asked}, and its options say {ours!r} with {reading}.', _CURE)
        if hasattr(self._dataset.real, 'input_img_mode'):
            self._dataset.image_mode = self._dataset.real.input_img_mode = kwargs.get('input_img_mode', 'RGB')
        self.used.add('create_dataset')
        return self._dataset

    def create_loader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """timm's for every dataset but the mixed one."""
        if self._dataset is None or dataset is not self._dataset:
            return self.theirs['create_loader'](dataset, *args, **kwargs)
        self.used.add('create_loader')
        targets = 'mixed' if self.options.rule.weighs or self.options.soft else 'labels'
        loader = create_mixed_loader(self._dataset, *args, **{**kwargs, **self.options.mix, 'targets': targets})
        loader.batch_sampler.before_first_batch = self.check_used
        return loader

    def ClassificationTask(self, *args: Any, **kwargs: Any) -> Any:
        """timm's task with loss weights, soft labels and frozen BatchNorm."""
        self.used.add('ClassificationTask')
        self.check_used()  # the loader stands by now; had another set gone into it, nothing of ours would run again
        return MixClassificationTask(*args, **{**kwargs, **self.options.task, 'soft_labels': self.options.soft, 'weighs': self.options.rule.weighs})

    def check_used(self) -> None:
        """Refuse (RecipeError) to train where train.py went past a hook: it would train without what was asked for."""
        needed = [*(HOOKS[:2] if self.options.stores else ()), *(HOOKS[2:] if self.options.needs_task else ())]
        missed = [name for name in needed if name not in self.used]
        if missed:
            raise RecipeError(f'train.py did not call {" and ".join(missed)}, so it does not train as asked.', _CURE)

    # --- within

    def _training_set(self) -> tuple[str, dict[str, Any]]:
        """Name of the training set, and how train.py's options say that it is read."""
        args = self.args
        given = {key: getattr(args, option) for key, option in _READING.items() if hasattr(args, option)}
        return args.dataset, {**given, 'root': args.data_dir or args.data}

    def _check_head(self) -> None:
        assert self._dataset is not None
        n_classes, outputs = len(self._dataset.classes), self.args.num_classes
        if outputs is not None and outputs < n_classes:
            raise RecipeError(f'--num-classes {outputs} is less than the {n_classes} classes of the training images.', f'Give --num-classes {n_classes}.')
        if self.options.soft and outputs != n_classes:
            raise RecipeError(f'Soft labels over {n_classes} classes do not fit --num-classes {outputs}.', f'Give --num-classes {n_classes}.')
        print_log(
            f'{self._dataset.offset} real images and {self._dataset.synthetic.end - self._dataset.offset} synthetic ones, mode {self.options.rule.mode}.',
            logger='current',
        )


def check_args(args: argparse.Namespace, options: Options) -> None:
    """Refuse (RecipeError) options of train.py that exclude what the launcher was asked for."""
    mixes = getattr(args, 'mixup', 0) > 0 or getattr(args, 'cutmix', 0) > 0 or getattr(args, 'cutmix_minmax', None) is not None
    alone = 'Leave it out.'
    resume = getattr(args, 'resume', '')
    if resume and not os.path.isfile(resume):
        raise DataError(f'--resume: there is no checkpoint {resume!r}.', 'Paths count from the folder in which the launcher is started.')
    found: list[tuple[bool, str, str]] = [
        (getattr(args, 'task', '') == 'multilabel', '--task multilabel: mixing needs one class per image', alone),
    ]
    if options.stores:
        prefix = args.dataset.partition('/')[0].lower() if '/' in args.dataset else ''
        found += [
            (prefix in _STREAMS, f'--dataset {args.dataset} reads its images as a stream', 'Use a folder of images, or torch/ or hfds/.'),
            (bool(getattr(args, 'naflex_loader', False)), '--naflex-loader composes batches in its own way', alone),
            (getattr(args, 'train_img_sizes', None) is not None, '--train-img-sizes composes batches in its own way', alone),
            (bool(getattr(args, 'aug_splits', 0)), '--aug-splits takes each image several times', alone),
            (bool(getattr(args, 'aug_repeats', 0)), '--aug-repeats takes each image several times', alone),
            (bool(getattr(args, 'use_multi_epochs_loader', False)), '--use-multi-epochs-loader', 'Leave it out: persistent workers do the same.'),
            (not (args.data_dir or args.data), 'No --data-dir names the real images', 'Give --data-dir FOLDER.'),
        ]
        if options.rule.mode in ('per_batch', 'two_stream'):
            options.rule.synthetic_of(args.batch_size)
        if options.rule.mode == 'phased':
            total, trained = sum(epochs for _, epochs in options.mix['phases']), _epochs(args)
            found.append((total != trained, f'the phases last {total} epochs, and train.py trains for {trained}', 'Make the two equal.'))
    why = 'soft labels' if options.soft else 'loss weights' if options.rule.weighs else ''
    if why:
        found.append((mixes, f'Mixup and CutMix blend images whose {why} differ', 'Leave --mixup and --cutmix out, or use a mode without weights.'))
    if options.needs_task:
        kind = why or 'frozen BatchNorm'
        found.append((getattr(args, 'kd_model_name', None) is not None, f'--kd-model-name computes a loss of its own, without {kind}', 'Leave it out.'))
    if options.soft:
        found.append((getattr(args, 'loss', None) not in (None, 'ce', 'bce', 'poly'), f'--loss {getattr(args, "loss", None)} takes no soft labels', 'Use ce.'))
    if options.task.get('frozen_bn') is not None:
        found.append((bool(getattr(args, 'torchscript', False)), '--torchscript hides the BatchNorm layers that are to be frozen', alone))
    for wrong, what, cure in found:
        if wrong:
            raise RecipeError(f'{what}, which --synthaug-* options cannot extend.' if cure == alone else f'{what}.', cure)


def _epochs(args: argparse.Namespace) -> int:
    """How long train.py trains: beside --epochs there are cool-down, cycles and a warm-up that comes before, which timm adds up in its scheduler."""
    from timm.scheduler import create_scheduler_v2, scheduler_kwargs
    from torch import nn, optim

    nobody = optim.SGD([nn.Parameter()], lr=0.1)
    return int(create_scheduler_v2(nobody, **scheduler_kwargs(args, decreasing_metric=False), updates_per_epoch=1)[1])
