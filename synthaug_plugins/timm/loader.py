"""timm's own loader, with batches of real and synthetic images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.mixing.batch_sampler import Entry, MixBatchSampler
from synthaug_plugins.mixing.rule import mix_rule
from synthaug_plugins.mixing.schedule import Alpha
from synthaug_plugins.timm.mixed_dataset import MixedImageDataset
from synthaug_plugins.timm.target import MixCollate

TARGETS = {
    'mixed': 'a `MixedTarget`: labels, soft labels, loss weights, and which samples are synthetic',
    'labels': "labels alone, as timm's own loops, Mixup and CutMix take them; for modes without loss weights and without soft labels",
}
_NOT_HERE = {
    'num_aug_repeats': 'repeated augmentation',
    'num_aug_splits': 'augmentation splits',
    'use_multi_epochs_loader': 'the multi-epochs loader (persistent workers do the same)',
    'input_size_choices': 'scheduled input sizes',
}


class EpochSampler(DistributedSampler):
    """Real indices in the order of torch's DistributedSampler, in one process too, so that an epoch's order follows from seed and number alone."""

    @property
    def world_size(self) -> int:
        """Processes that share the epoch."""
        return self.num_replicas


class EpochBatchSampler(MixBatchSampler):
    """A `MixBatchSampler` that timm's loops can drive: they set the epoch before each pass; where nobody does, epochs follow each other."""

    before_first_batch: Callable[[], None] | None = None
    """Called in the main process before the first batch of every pass, if set."""
    _told = True

    def set_epoch(self, epoch: int) -> None:
        """Number of the next pass, from 0."""
        self.sampler.set_epoch(epoch)
        self._told = True

    def resume_at(self, epoch: int, batches: int) -> None:
        """Let the next pass be `epoch` after its first `batches`: where a run was interrupted. Its batches are those that it would have had."""
        super().resume_at(epoch, batches)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[Sequence[Entry]]:
        if self.before_first_batch is not None:
            self.before_first_batch()
        if not self._told:
            self.sampler.set_epoch(self.sampler.epoch + 1)
        self._told = False
        yield from super().__iter__()


def create_mixed_loader(
    dataset: MixedImageDataset,
    input_size: Any,
    batch_size: int,
    mode: str = 'per_sample',
    alpha: Alpha | None = None,
    partner: str | None = None,
    ratio: Sequence[int] | None = None,
    phases: Sequence[tuple[str, int]] | None = None,
    synthetic_weight: float = 1.0,
    epoch_steps: int | str | None = None,
    seed: int = 0,
    targets: str = 'mixed',
    distributed: bool | None = None,
    **options: Any,
) -> Any:
    """A training loader of mixed batches: `timm.data.create_loader` with `MixBatchSampler` in the place of its sampler.

    It gives (images, targets) like timm's: images (B, C, H, W), normalised on the device unless `use_prefetcher=False`. Batches follow from (seed,
    epoch, position) for any number of workers; `loader.batch_sampler.set_epoch(n)` chooses the epoch, else they are counted, and
    `loader.batch_sampler.resume_at(epoch, batches)` goes on in the middle of one. The last, incomplete batch of an epoch is dropped, as timm does.

    Args:
        dataset: from `create_mixed_dataset`.
        input_size: (C, H, W) in pixels, or a side.
        batch_size: per process; mode 'two_stream' adds synthetic images to it.
        mode, alpha, partner, ratio, phases, synthetic_weight: see `mixing.rule.mix_rule`.
        epoch_steps: batches per epoch, or 'synthetic', see `MixBatchSampler`.
        seed: of the order of the real images and of the mixing.
        targets: one of `TARGETS`.
        distributed: share the epoch among the processes of torch.distributed. Default: where it is initialised.
        **options: of `timm.data.create_loader` (scale, hflip, auto_augment, re_prob, num_workers, device, use_prefetcher, collate_fn, ...).

    Raises:
        RecipeError: options that do not fit together, or an epoch without a batch.
    """
    from timm.data import create_loader

    rule = mix_rule(mode, alpha, partner, ratio, phases, synthetic_weight)
    _check(dataset, rule.weighs, mode, targets, options)
    if mode in ('per_batch', 'two_stream'):
        rule.synthetic_of(batch_size)
    if distributed is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    place: dict[str, Any] = {} if distributed else {'num_replicas': 1, 'rank': 0}
    sampler = EpochBatchSampler(
        EpochSampler(dataset, shuffle=True, seed=seed, **place),
        batch_size,
        mode,
        alpha,
        partner,
        ratio,
        phases,
        synthetic_weight,
        drop_last=True,
        epoch_steps=epoch_steps,
        seed=seed,
    )
    if len(sampler) == 0:
        raise RecipeError(f'{len(sampler.sampler)} images per process give no whole batch of {batch_size}.', 'Use a smaller batch size.')
    options['device'] = torch.device(options.get('device') or ('cuda' if torch.cuda.is_available() else 'cpu'))
    # What timm builds shows the transform, the collate function and the loader's own options; only the batches are others.
    built: Any = create_loader(dataset, input_size, batch_size, is_training=True, distributed=False, **options)  # type: ignore[arg-type]
    stock = built if isinstance(built, DataLoader) else built.loader
    dataset.labels_only = targets == 'labels'
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,  # type: ignore[arg-type]
        num_workers=stock.num_workers,
        collate_fn=stock.collate_fn if dataset.labels_only else MixCollate(stock.collate_fn),
        pin_memory=stock.pin_memory,
        worker_init_fn=stock.worker_init_fn,
        persistent_workers=stock.persistent_workers,
    )
    if built is stock:
        return loader
    built.loader = loader
    return built


def _check(dataset: Any, weighs: bool, mode: str, targets: str, options: dict[str, Any]) -> None:
    if not isinstance(dataset, MixedImageDataset):
        raise RecipeError(f'create_mixed_loader needs a MixedImageDataset, got {type(dataset).__name__}.', 'Make one with create_mixed_dataset.')
    if targets not in TARGETS:
        raise RecipeError(f'targets = {targets!r} is unknown.', nearest(str(targets), TARGETS))
    if dataset.concat != (mode == 'concat'):
        raise RecipeError(f'mode {mode!r} with a dataset of concat={dataset.concat}.', "Set concat=True in create_mixed_dataset for mode 'concat' alone.")
    for key, what in _NOT_HERE.items():
        if options.get(key):
            raise RecipeError(f'{key} = {options[key]!r}: {what} composes batches in its own way.', f'Leave {key} out.')
    if options.get('is_training') is False:
        raise RecipeError('create_mixed_loader is for training.', 'Validate on real images with timm.data.create_loader.')
    options.pop('is_training', None)
    if targets == 'labels' and (weighs or dataset.soft is not None):
        raise RecipeError("targets='labels' carries neither loss weights nor soft labels.", "Use targets='mixed' with MixClassificationTask.")
    if targets == 'mixed' and options.get('collate_fn') is not None and type(options['collate_fn']).__name__ == 'FastCollateMixup':
        raise RecipeError('Mixup and CutMix blend labels, and know no loss weights and no soft labels.', "Use targets='labels', in a mode without either.")
