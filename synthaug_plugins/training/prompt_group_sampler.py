"""Batches of several images of each of several prompts, for losses in which images of one prompt belong together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.logging import print_log

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.mixing import draws
from synthaug_plugins.mixing.records import Groups
from synthaug_plugins.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class PromptGroupSampler:
    """n prompts and m images of each in every batch (StableRep, Tian et al., NeurIPS 2023: 6 of the 10 images of a caption).

    An epoch shows every prompt once, in a random order, whatever the number of its images; which m of them is drawn anew each time, without
    repetition. A batch of all processes together never holds a prompt twice; what does not fill such a batch waits for the next epoch. Order and
    draws are hashes of (seed, pass over the prompts, place): so processes share the prompts without overlap, two with n prompts each draw what one
    with 2n draws, and a resumed run goes on with the batches it would have had. The images of a prompt stand side by side.

    Args:
        sampler: over a data set that has `prompt_groups`, such as `PromptDataset`; it lends seed and epoch. With InfiniteSampler batches never end.
        batch_size: of the recipe, for each process: n * m.
        images_per_prompt: m. Prompts with fewer images are left out, and the log says how many.
        epoch_steps: batches per epoch and process. Default: one pass over the prompts.
        seed: default: the sampler's.

    Raises:
        RecipeError: options that do not fit, no seed, a data set without prompts, an image without one.
        DataError: too few prompts with m images for a batch.
    """

    def __init__(self, sampler: Any, batch_size: int, images_per_prompt: int = 6, epoch_steps: int | None = None, seed: int | None = None) -> None:
        for name, value, least in (('images_per_prompt', images_per_prompt, 2), ('epoch_steps', epoch_steps, 1)):
            if (value is not None or name != 'epoch_steps') and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise RecipeError(f'{name} = {value!r} is not a whole number of at least {least}.', 'StableRep takes 6 images of each prompt.')
        if batch_size % images_per_prompt:
            cure = f'Use a batch_size that is a multiple of {images_per_prompt}.'
            raise RecipeError(f'batch_size = {batch_size} does not hold {images_per_prompt} images of each prompt.', cure)
        dataset = getattr(sampler, 'dataset', None)
        if dataset is None or not hasattr(dataset, 'prompt_groups'):
            raise RecipeError(
                f'PromptGroupSampler needs images that know their prompts; {type(dataset).__name__} has none.',
                "Set type='synthaug_plugins.PromptDataset' in the dataset.",
            )
        if seed is None and getattr(sampler, 'seed', None) is None:
            raise RecipeError(f'The sampler {type(sampler).__name__} has no seed.', 'Give batch_sampler a seed=0.')
        rank, world = get_dist_info()
        self.rank, self.world = getattr(sampler, 'rank', rank), getattr(sampler, 'world_size', world)
        self.sampler, self.batch_size, self.images_per_prompt = sampler, batch_size, images_per_prompt
        self.prompts_per_batch = batch_size // images_per_prompt
        self.seed = int(sampler.seed if seed is None else seed)
        self._groups, self._prompts = self._usable(dataset.prompt_groups())
        self._order: tuple[Any, np.ndarray] | None = None  # of the pass that was asked last
        self._pass_steps = len(self._prompts) // (self.prompts_per_batch * self.world)
        self._by_epoch, self._endless = hasattr(sampler, 'epoch'), isinstance(sampler, InfiniteSampler) and epoch_steps is None
        self._epoch_steps = epoch_steps
        self._skip = self._passes = 0

    def __len__(self) -> int:
        return self._pass_steps if self._epoch_steps is None else self._epoch_steps

    def seeds(self) -> dict[str, int | None]:
        """What decides the batches beside the recipe, for a checkpoint."""
        return {'prompts': self.seed}

    def restore_seeds(self, seeds: Mapping[str, int | None]) -> bool:
        """Take the seed of another run, from `seeds()`; without one it stays. True if it differs: iterators made before are worthless then."""
        if dict(seeds) == self.seeds():
            return False
        found = seeds.get('prompts')
        self.seed, self._passes = self.seed if found is None else int(found), 0
        return True

    def resume_at(self, epoch: int, batches: int) -> None:
        """Let the next iteration, of `epoch`, begin after its first `batches`: where a run was interrupted."""
        self._skip, self._passes = batches, epoch

    def __iter__(self) -> Iterator[list[int]]:
        # A generator on purpose: DataLoader asks for an iterator twice and uses one; nothing may happen before its first batch.
        skip, self._skip = self._skip, 0
        epoch = int(self.sampler.epoch) if self._by_epoch else self._passes
        self._passes += 1
        for step in itertools.count(skip) if self._endless else range(skip, len(self)):
            yield self._batch(epoch * len(self) + step)

    # --- within

    def _usable(self, group_of: np.ndarray) -> tuple[Groups, np.ndarray]:
        """The images of every prompt, and the prompts that have enough of them."""
        n_prompts = int(group_of.max(initial=-1)) + 1
        groups, m = Groups.of(group_of, n_prompts), self.images_per_prompt
        counts = groups.count(np.arange(n_prompts))
        usable = np.flatnonzero(counts >= m)
        wanted = self.prompts_per_batch * self.world
        if len(usable) < wanted:
            raise DataError(
                f'{len(usable)} of the {n_prompts} prompts have {m} images or more, and a batch needs {wanted} such prompts; they have '
                f'{counts.mean() if n_prompts else 0:.3g} images on average.',
                'Use a smaller batch_size or images_per_prompt, or generate more images of each prompt (generator.images_per_prompt=10).',
            )
        if len(usable) < n_prompts:
            print_log(f'{n_prompts - len(usable)} of {n_prompts} prompts have fewer than {m} images and are left out.', logger='current', level=30)
        return groups, usable

    def _batch(self, number: int) -> list[int]:
        """Batch `number` of this process, counted over the whole run."""
        lap, step = divmod(number, self._pass_steps)
        share = self.prompts_per_batch * self.world
        if self._order is None or self._order[0] != (self.seed, lap):
            self._order = (self.seed, lap), self._prompts[draws.permutation(len(self._prompts), self.seed, draws.ORDER, lap)]
        order = self._order[1][step * share : (step + 1) * share]
        return [image for prompt in order[self.rank :: self.world].tolist() for image in self._images(prompt, lap)]

    def _images(self, prompt: int, lap: int) -> list[int]:
        """m images of a prompt, drawn without repetition."""
        members = self._groups.order[self._groups.start[prompt] : self._groups.start[prompt + 1]]
        drawn = np.argsort(draws.hashes(members, self.seed, draws.MEMBER, lap), kind='stable')[: self.images_per_prompt]
        return members[drawn].tolist()
