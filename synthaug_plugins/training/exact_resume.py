"""A training that was killed ends with the bits of one that was not: what it draws at random depends on where it stands, not on how it came there.

Stock MMEngine resumes weights, optimiser and the order of images. What augmentations (in the loader's processes) and the model (dropout, Mixup) draw
starts anew after a resume. Here each sample and each step has random numbers of its own.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS as ALL_DATA_SAMPLERS
from mmengine.registry import DATASETS as ALL_DATASETS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import BatchSampler, Dataset

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.mixing import draws
from synthaug_plugins.mixing.batch_sampler import reseed
from synthaug_plugins.registry import DATA_SAMPLERS, DATASETS, HOOKS

_GRADIENTS = 'synthaug_gradients'


class SeededBatch(list[Any]):
    """What a batch sampler gives for a batch, and the `key` of integers that its samples' random numbers follow from."""

    def __init__(self, entries: Iterable[Any], key: tuple[int, ...]) -> None:
        super().__init__(entries)
        self.key = key


@DATA_SAMPLERS.register_module()
class SeededBatches:
    """The batches of the recipe, each with a key of (seed, epoch, its number, rank) for `SeededDataset`; goes on in the middle of an epoch.

    Args:
        sampler: the recipe's.
        batch_size: of the recipe.
        drop_last: as in a stock loader.
        base: config of the batch sampler that composes the batches; default: the sampler's indices, batch_size at a time, as in a stock loader.
        seed: of the random numbers; default: the sampler's.

    Raises:
        RecipeError: no seed.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False, base: Mapping[str, Any] | None = None, seed: int | None = None) -> None:
        self.base: Any = BatchSampler(sampler, batch_size, drop_last)
        if base is not None:
            self.base = ALL_DATA_SAMPLERS.build(dict(base), default_args={'sampler': sampler, 'batch_size': batch_size})
        self.sampler, self.batch_size = getattr(self.base, 'sampler', sampler), batch_size
        found = getattr(self.sampler, 'seed', None) if seed is None else seed
        if found is None:
            raise RecipeError(f'The sampler {type(self.sampler).__name__} has no seed.', 'Write exact_resume=dict(seed=0).')
        self.seed = int(found)
        self.rank, _ = get_dist_info()
        self._by_itself = hasattr(self.base, 'resume_at')
        self._passes = self._skip = 0

    def __len__(self) -> int:
        return len(self.base)

    def seeds(self) -> dict[str, int | None]:
        """As `MixBatchSampler.seeds`, with that of augmentations."""
        own = getattr(self.sampler, 'seed', None)
        others = self.base.seeds() if self._by_itself else {'sampler': None if own is None else int(own)}
        return {**others, 'augmentation': self.seed}

    def restore_seeds(self, seeds: Mapping[str, int | None]) -> bool:
        """As `MixBatchSampler.restore_seeds`."""
        if dict(seeds) == self.seeds():
            return False
        others = {key: value for key, value in seeds.items() if key != 'augmentation'}
        if self._by_itself:
            self.base.restore_seeds(others)
        elif others.get('sampler') is not None:
            reseed(self.sampler, int(others['sampler']))  # type: ignore[arg-type]
        found = seeds.get('augmentation')
        self.seed, self._passes = self.seed if found is None else int(found), 0
        return True

    def resume_at(self, epoch: int, batches: int) -> None:
        """As `MixBatchSampler.resume_at`."""
        self._passes, self._skip = epoch, batches
        if self._by_itself:
            self.base.resume_at(epoch, batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        # A generator: nothing happens before its first batch (DataLoader asks for an iterator twice and uses one).
        skip, self._skip = self._skip, 0
        number = int(getattr(self.sampler, 'epoch', self._passes))
        self._passes += 1
        batches = iter(self.base) if self._by_itself else itertools.islice(self.base, skip, None)
        for place, batch in enumerate(batches, skip):
            yield SeededBatch(batch, (self.seed, draws.SAMPLE, number, place, self.rank))


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Another data set, whose transforms draw from Python's, NumPy's and torch's global generators what the batch's key says: the same for any number of
    loader processes, and after any resume. Transforms with generators of their own (Albumentations) are not reached.

    Args:
        dataset: config of the inner data set.
        first_batches: use only so many batches of `batch_size` per process, as the loader option num_batch_per_epoch does.
        batch_size: see there.
    """

    def __init__(self, dataset: Any, first_batches: int | None = None, batch_size: int = 1) -> None:
        self.dataset = ALL_DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        self._first = None if first_batches is None else first_batches * batch_size * get_dist_info()[1]

    def __getattr__(self, name: str) -> Any:
        """What samplers, hooks and wrappers ask of the inner data set (metainfo, get_cat_ids, partner_table, ...)."""
        # While being unpickled it has nothing yet; and whoever looks for a pipeline shall find the data set inside.
        if name.startswith('__') or name == 'pipeline' or 'dataset' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def full_init(self) -> None:
        """Nothing is left to do."""

    def __len__(self) -> int:
        return len(self.dataset) if self._first is None else min(self._first, len(self.dataset))

    def __getitem__(self, index: Any) -> Any:
        """A sample as the inner data set gives it, outside of any batch."""
        return self.dataset[index]

    def __getitems__(self, batch: list[Any]) -> list[Any]:
        """The samples of a batch, each with random numbers of its own; torch's loader calls this."""
        if not isinstance(batch, SeededBatch):
            return [self.dataset[index] for index in batch]
        samples = []
        for index, number in zip(batch, draws.hashes(np.arange(len(batch)), *batch.key).tolist(), strict=True):
            random.seed(number)
            np.random.seed(number & 0xFFFFFFFF)  # noqa: NPY002  transforms draw from it
            torch.default_generator.manual_seed(number >> 1)  # torch.manual_seed, a hundred times slower, looks at all devices
            samples.append(self.dataset[index])
        return samples


def _accumulates(runner: Any) -> bool:
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1) > 1


@HOOKS.register_module()
class SeededStepsHook(Hook):
    """Gives every training step random numbers of (seed, iteration, rank): what the model and batch augments draw survives a resume. So do gradients
    that are accumulated over several steps (`optim_wrapper.accumulative_counts`), in one process.

    It takes the seed from `SeededBatches`.

    Raises:
        RecipeError: gradients are accumulated in several processes: MMEngine saves what the first of them holds.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._gradients: dict[str, torch.Tensor] = {}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the gradients of which the optimiser has not made a step yet."""
        if _accumulates(runner):
            checkpoint[_GRADIENTS] = {name: p.grad.cpu().clone() for name, p in runner.model.named_parameters() if p.grad is not None}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Remember them until training begins."""
        self._gradients = checkpoint.get(_GRADIENTS) or {}

    def before_train(self, runner: Any) -> None:
        """Give them back to the model."""
        if _accumulates(runner) and get_dist_info()[1] > 1:
            raise RecipeError(
                'exact_resume does not go with optim_wrapper.accumulative_counts in several processes.',
                'Take a larger batch, or set synthaug.exact_resume=None: gradients that are under way are then lost in a resume, as in stock MMEngine.',
            )
        gradients, self._gradients = self._gradients, {}
        if runner.iter > 0 and gradients:
            for name, parameter in runner.model.named_parameters():
                if name in gradients:
                    parameter.grad = gradients[name].to(parameter.device)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed Python's, NumPy's and torch's generators, those of all devices included."""
        batches = runner.train_dataloader.batch_sampler
        number = int(draws.hashes(np.array([runner.iter]), batches.seed, draws.STEP, batches.rank)[0])
        random.seed(number)
        np.random.seed(number & 0xFFFFFFFF)  # noqa: NPY002  batch augments draw from it
        torch.manual_seed(number >> 1)


@HOOKS.register_module()
class ResumedValidationHook(Hook):
    """Validates where a run that is resumed should have, after its checkpoint was saved: so the best checkpoint is that of an unbroken run.

    MMEngine saves a checkpoint, validates, and saves the score with the next checkpoint.
    """

    priority = 'LOWEST'  # after the CheckpointHook is ready

    def before_train(self, runner: Any) -> None:
        """Run the validation that follows the checkpoint, if one does."""
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        at = loop.epoch if by_epoch else loop.iter
        if runner.iter == 0 or runner.val_loop is None or (by_epoch and runner.iter != loop.epoch * len(loop.dataloader)):
            return
        loop._decide_current_val_interval()
        if at >= loop.val_begin and (at % loop.val_interval == 0 or at == (loop.max_epochs if by_epoch else loop.max_iters)):
            runner.val_loop.run()
