"""The run that learns embeddings: which image is next, when one is finished, checkpoints and shards."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion.precision import network_dtype
from synthaug_plugins.errors import DataError, ModelError
from synthaug_plugins.learning.batches import mix_seed
from synthaug_plugins.learning.checkpoint import remove_checkpoint, save_checkpoint, take_up
from synthaug_plugins.learning.embedding_slots import AtWork, Slots, State, row_length, split_rows
from synthaug_plugins.learning.embeddings_options import START, EmbeddingTraining, decisive_options
from synthaug_plugins.learning.latents import posteriors
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.embedding_shards import EMBEDDINGS, create_embeddings, next_shard, publish_shard
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.prompts.templates import fill
from synthaug_plugins.real_images import RealImages

_CHECK_STEPS = 100  # between two looks at whether all is finite, each of which waits for the device


@dataclass(frozen=True)
class Finished:
    """An image that is learned and waits for its shard.

    Attributes:
        image_id, sha256: as `AtWork`.
        steps: how many it took.
        loss_first, loss_last: mean over its first and its last `EmbeddingTraining.window` steps.
    """

    image_id: str
    sha256: str
    steps: int
    loss_first: float
    loss_last: float


class EmbeddingRun:
    """One call of `learn_embeddings`, or one chunk, from checked options on; starts the folder if there is none. Arguments: see there.

    Args:
        model: after `load`.
        number: of the one shard that is to be published; None: shards are numbered as they come.
    """

    def __init__(
        self,
        model: DenoiserModel | TextModel,
        real_images: RealImages,
        options: EmbeddingTraining,
        folder: Path,
        work_dir: Path,
        device: torch.device,
        names: Mapping[str, str],
        card: Mapping[str, Any],
        number: int | None = None,
    ) -> None:
        self._number = number
        self.model, self.real_images, self.options, self.folder, self.work_dir, self.device = model, real_images, options, folder, work_dir, device
        self.names, self.shape, self.dtype = names, model.embedding_shape(options.tokens), network_dtype(options.precision, device)
        facts = {'model': model.identity(), 'device': device.type, 'dtype': str(self.dtype)}
        self.identity = json.loads(json.dumps({**decisive_options(options), **facts}))  # through JSON, to compare with what a checkpoint holds
        if not (folder / EMBEDDINGS).is_file():
            about = {'model': model.origin(contents=True), 'shape': self.shape, 'image_size': list(model.image_size)}
            create_embeddings(folder, {**card, **about, 'options': decisive_options(options)})
        self.waiting: list[tuple[Finished, Tensor]] = []
        self.begun: deque[tuple[AtWork, State]] = deque()
        self.new: deque[str] = deque()
        self.image_steps = self._saved = 0
        self._starts: dict[str, Tensor] = {}

    def resume(self, missing: Sequence[str], there: int) -> None:
        """Take up what the checkpoint holds, and line up the images that are not begun.

        Args:
            missing: the images without an embedding.
            there: how many have one.

        Raises:
            RecipeError: the checkpoint is another run's.
            DataError: one of the images that is learned, and not in a shard yet, is another one now.
        """
        cure = 'Restore these values, or remove that folder: the images in it begin anew, and those in a shard stay.'
        found = take_up(self.work_dir, self.identity, 'learning of embeddings', cure)
        if found is not None:
            self._restore(*found)
        waiting = {image.image_id: image for image, _ in self.waiting}
        begun = waiting.keys() | {image.image_id for image, _ in self.begun}
        for i in missing:
            if i in waiting:
                self._check_unchanged(waiting[i])
            elif i not in begun:
                self.new.append(i)
        self.image_steps = (there + len(self.waiting)) * self.options.steps + sum(image.step for image, _ in self.begun)

    def _restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        known = Embeddings(self.folder)  # what is published is done, also where a kill came before the next checkpoint
        left = set(known.missing([entry['image_id'] for key in ('waiting', 'at_work') for entry in state[key]]))
        self.waiting = [(Finished(**entry), tensors['waiting'][k]) for k, entry in enumerate(state['waiting']) if entry['image_id'] in left]
        for k, entry in enumerate(state['at_work']):
            if entry['image_id'] in left:
                self.begun.append((AtWork(**entry), State(*(tensors[name][k] for name in ('rows', 'first', 'second', 'losses')))))
        self._saved = int(state['step'])

    def learn(self, on_step: Callable[[int, Tensor], None] | None, on_shard: Callable[[int], None] | None) -> None:
        """Learn all images to the end. After `resume`."""
        o = self.options
        count = min(o.batch_size, len(self.begun) + len(self.new))
        slots = self.slots = Slots(self.model, self.shape, o, count, self.device, self.dtype)
        self._publish(o.shard_size, on_shard)  # a kill may have come between the checkpoint and its shard
        self._refill(range(count))
        unchecked = unsaved = 0
        while slots.images:
            count = min(o.checkpoint_steps - unsaved, slots.at_once, *(self._until_look(image) for image in slots.images))
            for loss in slots.steps(count):
                self.image_steps += len(slots.images)
                if on_step is not None:
                    on_step(self.image_steps, loss)
            unchecked, unsaved = unchecked + count, unsaved + count
            look = [k for k, image in enumerate(slots.images) if image.step % o.window == 0 or image.step == o.steps]
            ended = self._ended(look)
            if ended or unchecked >= _CHECK_STEPS or unsaved == o.checkpoint_steps:
                self._check()
                unchecked = 0
            if ended:
                self._finish(ended)
            if unsaved == o.checkpoint_steps or len(self.waiting) >= o.shard_size:
                self._save()
                self._publish(o.shard_size, on_shard)
                unsaved = 0
        if self.waiting:
            self._save()
            self._publish(1, on_shard)
        remove_checkpoint(self.work_dir)

    def _until_look(self, image: AtWork) -> int:
        """Steps until an image may be finished."""
        left = self.options.steps - image.step
        return min(left, self.options.window - image.step % self.options.window) if self.options.plateau else left

    def _ended(self, look: Sequence[int]) -> list[int]:
        """Which of these slots hold an image that is finished."""
        o, images = self.options, self.slots.images
        ended = {k for k in look if images[k].step == o.steps}
        if o.plateau:
            asked = [k for k in look if k not in ended and images[k].step >= 2 * o.window]
            for k, (before, last) in zip(asked, self._means(asked, lambda step: (step - 2 * o.window, step - o.window)), strict=True):
                if before - last <= o.plateau['tolerance'] * before:
                    ended.add(k)
        return sorted(ended)

    def _means(self, places: Sequence[int], starts: Callable[[int], tuple[int, int]]) -> list[list[float]]:
        """Mean losses of slots over two windows each, which begin where `starts` says for an image's steps. Waits for the device once."""
        if not places:
            return []
        losses, w = self.slots.tensors()['losses'], self.options.window
        found = [torch.stack([losses[k, a : a + w].mean() for a in starts(self.slots.images[k].step)]) for k in places]
        return torch.stack(found).tolist()  # type: ignore[no-any-return]

    def _finish(self, ended: Sequence[int]) -> None:
        """Take finished images out of their slots, and give these to the next ones."""
        o, images, rows = self.options, self.slots.images, self.slots.tensors()['rows']
        embeddings = rows[torch.tensor(ended, device=self.device)].half().cpu()
        means = self._means(ended, lambda step: (0, step - o.window))
        for k, row, (first, last) in zip(ended, embeddings, means, strict=True):
            image = images[k]
            self.image_steps += o.steps - image.step
            self.waiting.append((Finished(image.image_id, image.sha256, image.step, round(first, 6), round(last, 6)), row))
        self._refill(ended)

    def _refill(self, places: Sequence[int]) -> None:
        """Give slots to the next images; those that nobody is left for go."""
        for number, place in enumerate(places):
            if self.begun:
                image, state = self.begun.popleft()
                self._check_unchanged(image)
            elif self.new:
                image_id = self.new.popleft()
                image = AtWork(image_id, self.real_images.file_hash(image_id))
                state = self._start(image)
            else:
                self.slots.remove([p for p in places[number:] if p < len(self.slots.images)])
                return
            mean, deviation = posteriors(self.model, [self.real_images.load(image.image_id)], self.options.fit, self.device)
            self.slots.put(place, image, state, mean[0], deviation[0])

    def _check_unchanged(self, image: AtWork | Finished) -> None:
        """Refuse (DataError) an image that changed, or went, before its embedding was in a shard."""
        try:
            same = self.real_images.file_hash(image.image_id) == image.sha256
        except DataError:
            same = False
        if not same:
            what = f'The image {image.image_id!r}, whose embedding is in the checkpoint, is gone or another one now.'
            raise DataError(what, f'Restore it, or remove {str(self.work_dir)!r}: the images in it begin anew, and those in a shard stay.')

    def _start(self, image: AtWork) -> State:
        """What an image starts from."""
        n, text = row_length(self.shape), self.options.initialise_from
        if text is None:
            row = torch.rand(n, generator=torch.Generator().manual_seed(mix_seed(self.options.seed, image.sha256, 'start'))) * (2 * START) - START
        else:
            class_name = image.image_id.split('/')[0]
            told = fill(text, self.names.get(class_name, class_name))
            if told not in self._starts:
                parts = [part.detach().float().cpu().flatten() for part in self.model.embedding_of(told, self.shape.tokens) if part is not None]
                self._starts[told] = torch.cat(parts)
            row = self._starts[told]
        return State(row, torch.zeros(n), torch.zeros(n), torch.zeros(self.options.steps))

    def _check(self) -> None:
        """Refuse (ModelError) a loss that is not finite, or an embedding that float16 does not hold."""
        state, images = self.slots.tensors(), self.slots.images
        if bool(state['losses'].isfinite().all() & state['rows'].half().isfinite().all()):
            return
        losses, rows = (~state['losses'].isfinite()).cpu(), (~state['rows'].half().isfinite()).any(dim=1).cpu()
        k = int((losses.any(dim=1) | rows).nonzero()[0, 0])
        bad = losses[k].nonzero().flatten().tolist()
        what = f'gave the loss {float(state["losses"][k, bad[0]])}' if bad else 'left an embedding that is not finite in float16'
        raise ModelError(
            f'Step {bad[0] + 1 if bad else images[k].step} of {self.options.steps} for the image {images[k].image_id!r} {what}.',
            f'Lower learning_rate = {self.options.learning_rate:g} or use precision fp32; the last checkpoint in {str(self.work_dir)!r} is sound.',
        )

    def _save(self) -> None:
        """Write a checkpoint: the images at work, those begun before but not at work now, and those that wait for their shard."""
        states = [state for _, state in self.begun]
        held = {name: torch.cat([t.cpu(), *(getattr(state, name)[None] for state in states)]) for name, t in self.slots.tensors().items()}
        waiting = torch.stack([row for _, row in self.waiting]) if self.waiting else torch.zeros(0, row_length(self.shape), dtype=torch.float16)
        at_work = [asdict(image) for image in (*self.slots.images, *(image for image, _ in self.begun))]
        state = {'identity': self.identity, 'at_work': at_work, 'waiting': [asdict(image) for image, _ in self.waiting]}
        self._saved += 1
        save_checkpoint(self.work_dir, self._saved, {**held, 'waiting': waiting}, state)

    def _publish(self, least: int, on_shard: Callable[[int], None] | None) -> None:
        """Write shards of the images that wait, as long as there are so many. The checkpoint on disk must hold them."""
        while len(self.waiting) >= least:
            size = self.options.shard_size
            images, rows = zip(*self.waiting[:size], strict=True)
            tokens, pooled = split_rows(torch.stack(rows), self.shape)
            number = next_shard(self.folder) if self._number is None else self._number
            columns = {name: [getattr(image, name) for image in images] for name in ('steps', 'loss_first', 'loss_last')}
            columns['network'] = [str(self.dtype).removeprefix('torch.')] * len(images)
            publish_shard(self.folder, number, [i.image_id for i in images], [i.sha256 for i in images], tokens, pooled, columns)
            del self.waiting[:size]
            if on_shard is not None:
                on_shard(number)
