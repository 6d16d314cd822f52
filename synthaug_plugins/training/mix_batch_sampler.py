"""Composes every batch in the main process, so that it is the same for any number of workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info
from mmengine.logging import print_log

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.registry import DATA_SAMPLERS
from synthaug_plugins.training import draws
from synthaug_plugins.training.mix_rule import mix_rule
from synthaug_plugins.training.partners import PartnerTable
from synthaug_plugins.training.schedule import Alpha

Entry = int | tuple[int, float]


@DATA_SAMPLERS.register_module()
class MixBatchSampler:
    """Batches of real and synthetic indices around the recipe's own sampler.

    The sampler yields real indices in the very order it would without mixing; some of them then give their place to a
    synthetic partner, or synthetic images join the batch. Each decision is a hash of (seed, epoch, global position), so
    with `alpha=0` the batches equal those of a stock loader, and a resumed run continues with the batches it would have
    had. Positions count over all processes, hence 'per_sample' draws do not depend on how many there are; 'per_batch' and
    'two_stream' hold their ratio in the batch of every process.

    Args:
        sampler: the recipe's sampler over a `MixedDataset`.
        batch_size: of the recipe.
        mode, alpha, partner, ratio, phases, synthetic_weight: see `mix_rule`.
        drop_last: as in a stock loader; without it the last batch of an epoch is shorter and 'per_batch' rounds its share.
        epoch_steps: batches per epoch and process. Default: one pass over the real set, as without mixing. With a number,
            epochs of that length follow each other through pass after pass of the real set.
        seed: default: the sampler's.

    Raises:
        RecipeError: options that do not fit, no seed, or real images without partners where the mode needs them.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        mode: str = 'per_sample',
        alpha: Alpha | None = None,
        partner: str | None = None,
        ratio: Sequence[int] | None = None,
        phases: Sequence[tuple[str, int]] | None = None,
        synthetic_weight: float = 1.0,
        drop_last: bool = False,
        epoch_steps: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.rule = mix_rule(mode, alpha, partner, ratio, phases, synthetic_weight)
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        if not hasattr(getattr(sampler, 'dataset', None), 'partner_table'):
            raise RecipeError(
                f'MixBatchSampler needs a sampler over a MixedDataset, got {type(sampler).__name__}.',
                "Set type='synthaug_plugins.MixedDataset' in the dataset.",
            )
        self.dataset = sampler.dataset
        self.seed: int = getattr(sampler, 'seed', None) if seed is None else seed  # type: ignore[assignment]
        if self.seed is None:
            raise RecipeError(f'The sampler {type(sampler).__name__} has no seed.', 'Give batch_sampler a seed=0.')
        if epoch_steps is not None and (isinstance(epoch_steps, bool) or not isinstance(epoch_steps, int) or epoch_steps < 1):
            raise RecipeError(f'epoch_steps = {epoch_steps!r} is not a number of batches.', 'Use a whole number, 1 or more.')
        self.epoch_steps = epoch_steps
        rank, world = get_dist_info()
        self.rank, self.world = getattr(sampler, 'rank', rank), getattr(sampler, 'world_size', world)
        self.offset: int = self.dataset.offset
        self._n_synthetic = self.rule.synthetic_of(batch_size) if mode in ('per_batch', 'two_stream') else 0
        self._table = self._partners()
        self._walk = self.dataset.walk(self.seed)
        self._skip = 0
        self._passes = 0

    def __len__(self) -> int:
        if self.epoch_steps is not None:
            return self.epoch_steps
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def skip_batches(self, n: int) -> None:
        """Leave out the first `n` batches of the next iteration: the rest of an epoch that was interrupted there."""
        self._skip = n

    def __iter__(self) -> Iterator[Sequence[Entry]]:
        # A generator on purpose: DataLoader asks for an iterator twice and uses one; nothing may happen before its first batch.
        skip, self._skip = self._skip, 0
        # A sampler without an epoch (InfiniteSampler) counts on from pass to pass.
        epoch = int(getattr(self.sampler, 'epoch', 0))
        start = 0 if hasattr(self.sampler, 'epoch') else self._passes * self._real_per_epoch
        self._passes += 1
        yield from self._batches(epoch, start, skip)

    # --- within

    @property
    def _real_per_epoch(self) -> int:
        """Indices that one epoch takes from this process's sampler."""
        return len(self.sampler) if self.epoch_steps is None and not self.drop_last else len(self) * self.batch_size

    def _partners(self) -> PartnerTable | None:
        rule = self.rule
        if rule.mode in ('concat', 'two_stream') or rule.partner == 'any':
            return None
        table = self.dataset.partner_table(rule.partner)
        lacking = int((~table.available()).sum())
        what = 'variants' if rule.partner == 'source' else 'synthetic images of their class'
        if lacking == self.offset:
            raise RecipeError(
                f'partner={rule.partner!r}: none of the {lacking} real images has {what} in the store.',
                "Check source_root and select, or use partner='class' or 'any'.",
            )
        if lacking and rule.mode == 'per_batch':
            raise RecipeError(
                f"mode 'per_batch' needs a partner for every real image, but {lacking} of {self.offset} have no {what}.",
                "Use partner='any'.",
            )
        if lacking:
            print_log(f'{lacking} of {self.offset} real images have no {what} and stay real whenever they are drawn.', logger='current', level=30)
        return table

    def _batches(self, epoch: int, start: int, skip: int) -> Iterator[Sequence[Entry]]:
        indices = itertools.islice(self._real_indices(epoch), skip * self.batch_size, None)
        for step in itertools.count(skip):
            if step == self.epoch_steps:
                return
            real = list(itertools.islice(indices, self.batch_size))
            if not real or (self.drop_last and len(real) < self.batch_size):
                return
            first = start + step * self.batch_size
            yield self._compose(real, epoch, (first + np.arange(len(real))) * self.world + self.rank, step + start // self.batch_size)

    def _real_indices(self, epoch: int) -> Iterator[int]:
        if self.epoch_steps is None:
            yield from self.sampler
            return
        number, done = divmod(epoch * self.epoch_steps * self.batch_size, len(self.sampler))
        while True:
            if hasattr(self.sampler, 'epoch'):
                self.sampler.set_epoch(number)
                one_pass: Any = list(self.sampler)
                self.sampler.set_epoch(epoch)
            else:
                one_pass, done = self.sampler, 0
            yield from itertools.islice(one_pass, done, None)
            number, done = number + 1, 0

    def _compose(self, real: list[int], epoch: int, positions: np.ndarray, step: int) -> Sequence[Entry]:
        """One batch. `positions` (N,) count the real indices of this epoch over all processes, `step` its batches."""
        rule, w = self.rule, self.rule.synthetic_weight
        if rule.mode == 'concat':
            return real if w == 1 else [(i, w) if i >= self.offset else i for i in real]
        if rule.mode == 'two_stream':
            return self._two_streams(real, epoch, step)
        if rule.mode == 'per_batch':
            swap = self._exact_swap(len(real), epoch, positions)
        else:
            alpha = rule.alpha(epoch if hasattr(self.sampler, 'epoch') else int(positions[0]) // self.offset)
            if alpha == 0:
                return real
            swap = draws.uniform(positions, self.seed, draws.SWAP, epoch) < alpha
        batch = np.array(real)
        if self._table is not None:
            swap &= self._table.available_of(batch)
        batch[swap] = self._draw(batch[swap], epoch, positions[swap])
        entries = batch.tolist()
        return entries if w == 1 else [(i, w) if s else i for i, s in zip(entries, swap.tolist(), strict=True)]

    def _exact_swap(self, n: int, epoch: int, positions: np.ndarray) -> np.ndarray:
        r, s = self.rule.ratio
        wanted = self._n_synthetic if n == self.batch_size else round(n * s / (r + s))
        swap = np.zeros(n, bool)
        swap[np.argsort(draws.hashes(positions, self.seed, draws.SWAP, epoch), kind='stable')[:wanted]] = True
        return swap

    def _draw(self, real: np.ndarray, epoch: int, positions: np.ndarray) -> np.ndarray:
        u_store = draws.uniform(positions, self.seed, draws.STORE, epoch)
        if self._table is not None:
            return self._table.draw(real, u_store, draws.uniform(positions, self.seed, draws.MEMBER, epoch))
        return self._walk.at(epoch * self._real_per_epoch * self.world + positions, u_store)

    def _two_streams(self, real: list[int], epoch: int, step: int) -> Sequence[Entry]:
        r, s = self.rule.ratio
        n_syn = self._n_synthetic if len(real) == self.batch_size else round(len(real) * s / r)
        if n_syn == 0:
            return real
        whole, rest = divmod(self._real_per_epoch, self.batch_size)
        before = epoch * (whole * self._n_synthetic + round(rest * s / r)) + step * self._n_synthetic
        slots = (before + np.arange(n_syn)) * self.world + self.rank
        synthetic = self._walk.at(slots, draws.uniform(slots, self.seed, draws.STORE)).tolist()
        # The head averages weight * loss over all N samples: N / r and w * N / s make it mean(real) + w * mean(synthetic).
        n = len(real) + n_syn
        return [(i, n / len(real)) for i in real] + [(i, self.rule.synthetic_weight * n / n_syn) for i in synthetic]
