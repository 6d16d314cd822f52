"""Composes every batch in the main process, so that it is the same for any number of workers."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.logging import print_log

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.mixing import draws
from synthaug_plugins.mixing.partners import PartnerTable
from synthaug_plugins.mixing.rule import mix_rule
from synthaug_plugins.mixing.schedule import Alpha
from synthaug_plugins.mixing.swaps import Swaps
from synthaug_plugins.registry import DATA_SAMPLERS

Entry = int | tuple[int, float]


def reseed(sampler: Any, seed: int) -> None:
    """Give a sampler another seed, from its first index on."""
    sampler.seed = seed
    if isinstance(sampler, InfiniteSampler):
        sampler.indices = sampler._indices_of_rank()  # its only generator may have started with the old seed


@DATA_SAMPLERS.register_module()
class MixBatchSampler:
    """Batches of real and synthetic indices around the recipe's own sampler.

    The sampler yields real indices in the very order it would without mixing; some of them then give their place to a
    synthetic partner, or synthetic images join the batch. Each decision is a hash of (seed, epoch, global position), so
    with `alpha=0` the batches equal those of a stock loader, and a resumed run continues with the batches it would have
    had. Positions count over all processes, hence 'per_sample' draws do not depend on how many there are; 'per_batch' and
    'two_stream' hold their ratio in the batch of every process. With partner 'any' (always in 'two_stream') every store is
    walked through in a random order, over batches, epochs and processes: each of its records once before one comes again.

    Args:
        sampler: the recipe's sampler over a `MixedDataset`.
        batch_size: of the recipe.
        mode, alpha, partner, ratio, phases, synthetic_weight: see `mix_rule`.
        drop_last: as in a stock loader; without it the last batch of an epoch is shorter and 'per_batch' rounds its share.
        epoch_steps: batches per epoch and process. Default: one pass over the real set, as without mixing. With a number,
            epochs of that length follow each other through pass after pass of the real set. 'synthetic', for 'per_batch' and 'two_stream': as
            many as one pass over the synthetic images takes (an epoch of He et al.).
        seed: default: the sampler's.

    Raises:
        RecipeError: options that do not fit, no seed, or real images without partners where the mode needs them; in a pass,
            a sampler that gives no index.
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
        epoch_steps: int | str | None = None,
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
        if seed is None and getattr(sampler, 'seed', None) is None:
            raise RecipeError(f'The sampler {type(sampler).__name__} has no seed.', 'Give batch_sampler a seed=0.')
        rank, world = get_dist_info()
        self.rank, self.world = getattr(sampler, 'rank', rank), getattr(sampler, 'world_size', world)
        self.epoch_steps = self._epoch_steps(epoch_steps)
        self.offset: int = self.dataset.offset
        # A sampler without an epoch (InfiniteSampler) counts on from pass to pass.
        self._by_epoch = hasattr(sampler, 'epoch')
        if self.rule.mode in ('per_batch', 'two_stream'):
            self.rule.synthetic_of(batch_size)
        self._table = self._partners()
        self._draw_with(sampler.seed if seed is None else seed)
        self._stream: Iterator[int] | None = None
        self._skip = 0
        self._passes = 0

    def _draw_with(self, seed: int) -> None:
        self.seed = int(seed)
        self._walk = self.dataset.walk(self.seed)
        epoch_length = self._real_per_epoch * self.world
        pass_length = None if self._by_epoch else self.offset if self.epoch_steps is None else epoch_length
        self._swaps = Swaps(self.rule.alpha, self.seed, epoch_length, pass_length)

    def __len__(self) -> int:
        if self.epoch_steps is not None:
            return self.epoch_steps
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def seeds(self) -> dict[str, int | None]:
        """What decides the batches beside the recipe, as plain numbers for a checkpoint: the seeds of mixing and of the sampler."""
        own = getattr(self.sampler, 'seed', None)
        return {'mix': self.seed, 'sampler': None if own is None else int(own)}

    def restore_seeds(self, seeds: Mapping[str, int | None]) -> bool:
        """Take the seeds of another run, from `seeds()`; what it did not have stays. True if they differ: iterators made before are worthless then."""
        if dict(seeds) == self.seeds():
            return False
        order, mix = seeds.get('sampler'), seeds.get('mix')
        if order is not None:
            reseed(self.sampler, order)
        self._draw_with(self.seed if mix is None else mix)
        self._stream, self._passes = None, 0
        return True

    def resume_at(self, epoch: int, batches: int) -> None:
        """Let the next iteration, of `epoch`, begin after its first `batches`: where a run was interrupted."""
        self._skip, self._passes = batches, epoch

    def __iter__(self) -> Iterator[Sequence[Entry]]:
        # A generator on purpose: DataLoader asks for an iterator twice and uses one; nothing may happen before its first batch.
        skip, self._skip = self._skip, 0
        number = int(self.sampler.epoch) if self._by_epoch else self._passes
        self._passes += 1
        yield from self._batches(number, skip)

    # --- within

    def _epoch_steps(self, given: int | str | None) -> int | None:
        if given == 'synthetic':
            each = self.rule.synthetic_of(self.batch_size) if self.rule.mode in ('per_batch', 'two_stream') else 0
            if each == 0:
                raise RecipeError("epoch_steps = 'synthetic' needs batches that hold synthetic images.", "Use mode='two_stream' or 'per_batch', or a number.")
            return math.ceil(sum(map(len, self.dataset.records)) / (each * self.world))
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise RecipeError(f'epoch_steps = {given!r} is not a number of batches.', "Use a whole number of at least 1, or 'synthetic'.")
        return given

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

    def _batches(self, number: int, skip: int) -> Iterator[Sequence[Entry]]:
        """The batches of an epoch (of pass `number`, for a sampler without epochs) after the first `skip`."""
        indices = itertools.islice(self._epoch_indices(number) if self._by_epoch else self._pass_indices(number), skip * self.batch_size, None)
        epoch, start = (number, 0) if self._by_epoch else (0, number * self._real_per_epoch)
        for step in itertools.count(skip):
            if step == self.epoch_steps:
                return
            real = list(itertools.islice(indices, self.batch_size))
            if not real and (step == 0 or self.epoch_steps is not None):
                raise RecipeError(f'The sampler {type(self.sampler).__name__} gives no index in pass {number + 1}.', "Use sampler=dict(type='DefaultSampler').")
            if not real or (self.drop_last and len(real) < self.batch_size):
                return
            first = start + step * self.batch_size
            yield self._compose(real, epoch, (first + np.arange(len(real))) * self.world + self.rank, self._drawn_before(number, step))

    def _epoch_indices(self, epoch: int) -> Iterator[int]:
        if self.epoch_steps is None:
            yield from self.sampler
            return
        number, done = divmod(epoch * self.epoch_steps * self.batch_size, len(self.sampler))
        while True:
            self.sampler.set_epoch(number)
            one_pass = list(self.sampler)
            self.sampler.set_epoch(epoch)
            yield from itertools.islice(one_pass, done, None)
            number, done = number + 1, 0

    def _pass_indices(self, number: int) -> Iterator[int]:
        # One stream for all passes, never handed to `yield from`: that would end InfiniteSampler's only generator with the first pass.
        if self._stream is None:
            self._stream = iter(self.sampler) if self.epoch_steps is None else self._endless()
            if self.epoch_steps is not None:
                deque(itertools.islice(self._stream, number * self.epoch_steps * self.batch_size), maxlen=0)
        for index in self._stream:  # noqa: UP028
            yield index
        self._stream = None

    def _endless(self) -> Iterator[int]:
        index: int | None = 0
        while index is not None:
            index = None
            for index in self.sampler:
                yield index

    def _synthetic_of(self, n_real: int) -> int:
        """Synthetic images in (per_batch) or beside (two_stream) a batch of `n_real` indices; exact for a whole batch."""
        r, s = self.rule.ratio
        return round(n_real * s / (r + s if self.rule.mode == 'per_batch' else r))

    def _drawn_before(self, number: int, step: int) -> int:
        """Synthetic images that each process has drawn before this batch, in the modes that hold a ratio."""
        whole, rest = divmod(self._real_per_epoch, self.batch_size)
        each = self._synthetic_of(self.batch_size)
        return number * (whole * each + self._synthetic_of(rest)) + step * each

    def _compose(self, real: list[int], epoch: int, positions: np.ndarray, drawn: int) -> Sequence[Entry]:
        """One batch. `positions` (N,) count the real indices of this epoch over all processes; `drawn` as `_drawn_before`."""
        rule, w = self.rule, self.rule.synthetic_weight
        if rule.mode == 'concat':
            return real if w == 1 else [(i, w) if i >= self.offset else i for i in real]
        if rule.mode == 'two_stream':
            return self._two_streams(real, drawn)
        batch = np.array(real)
        if rule.mode == 'per_batch':
            swap = self._exact_swap(len(real), epoch, positions)
            slots = (drawn + np.cumsum(swap) - swap) * self.world + self.rank
        elif self._table is None:
            everyone = np.arange(positions[0] - self.rank, positions[-1] - self.rank + self.world)
            swap, slots = (a[self.rank :: self.world] for a in self._swaps.slots(epoch, everyone))
        else:
            swap = self._swaps.at(epoch, positions) & self._table.available_of(batch)
        if not swap.any():
            return real
        if self._table is None:
            batch[swap] = self._walk.at(slots[swap])
        else:
            u_store, u_member = (draws.uniform(positions[swap], self.seed, what, epoch) for what in (draws.STORE, draws.MEMBER))
            batch[swap] = self._table.draw(batch[swap], u_store, u_member)
        entries = batch.tolist()
        return entries if w == 1 else [(i, w) if s else i for i, s in zip(entries, swap.tolist(), strict=True)]

    def _exact_swap(self, n: int, epoch: int, positions: np.ndarray) -> np.ndarray:
        swap = np.zeros(n, bool)
        swap[np.argsort(draws.hashes(positions, self.seed, draws.SWAP, epoch), kind='stable')[: self._synthetic_of(n)]] = True
        return swap

    def _two_streams(self, real: list[int], drawn: int) -> Sequence[Entry]:
        n_syn = self._synthetic_of(len(real))
        if n_syn == 0:
            return real
        synthetic = self._walk.at((drawn + np.arange(n_syn)) * self.world + self.rank).tolist()
        # The head averages weight * loss over all N samples: N / r and w * N / s make it mean(real) + w * mean(synthetic).
        n = len(real) + n_syn
        return [(i, n / len(real)) for i in real] + [(i, self.rule.synthetic_weight * n / n_syn) for i in synthetic]
