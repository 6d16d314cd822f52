"""Learning embeddings by chunks of images, which workers share: how images are divided, what a worker does, and the course of such a run.

The division is written down before the first chunk begins, so that a killed run goes on with it whatever the number of workers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, nullcontext
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.embedding_samples import sample_embeddings
from synthaug_plugins.engine.learn_embeddings_recipe import EmbeddingsRun, prepare_embeddings
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.executors.base import Executor, beat
from synthaug_plugins.learning.checkpoint import STATE
from synthaug_plugins.learning.embeddings import ChunkLearner, chunk_folder, to_learn
from synthaug_plugins.learning.embeddings_options import EmbeddingTraining
from synthaug_plugins.models.embedding_shards import index_path, published_shards
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.store.files import write_whole

FOLDER, CHECKPOINTS, CHUNKS = 'embeddings', 'checkpoints', 'chunks.json'
"""In the folder of a run: the embeddings; the checkpoints; and among these the division, shard number -> ids of its images."""
_LEAST = 64
"""Chunks that a run should have at least, for workers to share, as far as each has a full batch."""
_PLATEAU_BATCHES = 8
"""Batches that a chunk should have at least where images are finished early: its last slots stay empty while the last images learn."""


def divide(ids: Sequence[str], options: EmbeddingTraining, taken: Collection[int]) -> dict[int, list[str]]:
    """Shard number -> ids of its images, in their order. Depends on no number of workers.

    A chunk is as many whole batches as a shard holds, fewer where there would be less than `_LEAST` chunks.

    Args:
        taken: numbers of the shards that are there.

    >>> divide(['a', 'b', 'c', 'd', 'e'], EmbeddingTraining(batch_size=2), {1})
    {0: ['a', 'b'], 2: ['c', 'd'], 3: ['e']}
    """
    batch, shard = options.batch_size, options.shard_size
    batches = max(-(-len(ids) // (_LEAST * batch)), _PLATEAU_BATCHES if options.plateau else 1)
    size = min(batches, max(1, shard // batch)) * batch if shard >= batch else shard
    numbers = islice((number for number in count() if number not in taken), -(-len(ids) // size))
    return {number: list(ids[at : at + size]) for number, at in zip(numbers, range(0, len(ids), size), strict=True)}


class Chunks:
    """The division of a run's images, on disk as long as one of its chunks is not learned.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / CHECKPOINTS / CHUNKS

    def __bool__(self) -> bool:
        return self.path.is_file()

    def read(self) -> dict[int, list[str]]:
        """Shard number -> ids of its images; empty where nothing is divided.

        Raises:
            ModelError: the file is damaged.
        """
        if not self:
            return {}
        try:
            return {int(number): list(map(str, ids)) for number, ids in json.loads(self.path.read_text(encoding='utf-8')).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f'{str(self.path)!r} is damaged: {error!r}.', 'Remove its folder: the images at work begin anew.') from error

    def write(self, chunks: Mapping[int, Sequence[str]]) -> None:
        """Write a division down."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(chunks).encode())

    def left(self, chunks: Mapping[int, Sequence[str]]) -> list[int]:
        """Chunks whose shard is not there."""
        return [number for number in chunks if not index_path(self.folder / FOLDER, number).is_file()]

    def forget(self, chunks: Collection[int]) -> None:
        """Remove a division all of whose chunks are learned: its commit mark last, so that a kill leaves nothing foreign."""
        for number in chunks:
            shutil.rmtree(chunk_folder(self.path.parent, number), ignore_errors=True)
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.path.parent, ignore_errors=True)


class EmbeddingsJob:
    """Tasks are numbers of chunks; the result of one is the last loss. A worker leaves the shard, and after the last one the sheet of samples.

    Args:
        recipe: complete.
        folder: of the run.
        card: what embeddings.json says beside what learning knows.
        run: the same recipe prepared, for a worker in this process; others prepare it themselves.
        on_step: called after each step in this process with (steps of the chunk's images together, loss).
    """

    name = 'chunk'

    def __init__(
        self,
        recipe: Mapping[str, Any],
        folder: Path,
        card: Mapping[str, Any],
        run: EmbeddingsRun | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.recipe, self.folder, self.card, self._run, self._on_step = dict(recipe), folder.absolute(), dict(card), run, on_step

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_run': None, '_on_step': None}

    def start(self, device: str) -> Callable[[int], float]:
        """Load the model; the function that learns a chunk."""
        where, run = choose_device(device), self._run or prepare_embeddings(self.recipe)
        chunks, out = Chunks(self.folder), self.folder / FOLDER
        learner = ChunkLearner(run.model, run.real_images, run.options, out, self.folder / CHECKPOINTS, where, run.names, self.card)
        of = chunks.read()

        def work(number: int) -> float:
            last = torch.zeros(())

            def on_step(image_steps: int, loss: Tensor) -> None:
                nonlocal last
                last = loss
                beat()
                if self._on_step is not None:
                    self._on_step(image_steps, loss)

            learner.learn(number, of[number], on_step)
            if not chunks.left(of) and not (found := Embeddings(out)).missing(run.ids[: run.recipe['samples']['images']]):
                sample_embeddings(run, found, self.folder, where)  # the model is at hand here, and may be too large for the machine of the command
            return float(last)

        return work


def learn_chunks(run: EmbeddingsRun, folder: Path, card: Mapping[str, Any], executor: Executor, on_step: Callable[[int, Tensor], None] | None) -> Embeddings:
    """Learn what has no embedding yet, by the workers of an executor; first what an earlier call divided.

    Args:
        folder: of the run.
        card: what embeddings.json says beside what learning knows.
        on_step: called with (steps of all images together, those in the folder included as if each had all its steps; a loss): after each step of a worker
            in this process, and after each chunk.

    Raises:
        RecipeError: an earlier call is not finished that learned without an executor, or whose images are not all among these.
        DataError, ModelError: see `learn_embeddings`.
    """
    _refuse_undivided(folder)
    chunks, out, steps = Chunks(folder), folder / FOLDER, run.options.steps
    known, missing = to_learn(run.model, run.real_images, run.ids, run.options, out)
    while chunks or missing:
        if not chunks:
            chunks.write(divide(missing, run.options, published_shards(out)))
        of = chunks.read()
        todo = chunks.left(of)
        _refuse_others(chunks, [i for number in todo for i in of[number]], run.ids)
        done = len(run.ids) - sum(len(of[number]) for number in todo)

        def told(image_steps: int, loss: Tensor) -> None:
            if on_step is not None:
                on_step(done * steps + image_steps, loss)  # noqa: B023  (used within this turn of the loop)

        job = EmbeddingsJob(run.recipe, folder, card, run, told)
        with closing(executor.run(job, todo)) if todo else nullcontext(()) as results:
            for number, loss in results:
                done += len(of[number])
                told(0, torch.tensor(loss))
        chunks.forget(of)
        known, missing = to_learn(run.model, run.real_images, run.ids, run.options, out)
    assert known is not None
    return known


def how_far(folder: Path, images: int) -> str:
    """How far a stopped run by chunks got."""
    of = (chunks := Chunks(folder)).read()
    begun = sum((chunk_folder(chunks.path.parent, number) / STATE).is_file() for number in chunks.left(of))
    return f'holds {len(Embeddings(folder / FOLDER)) if published_shards(folder / FOLDER) else 0} embeddings of {images} images and {begun} half learned chunks'


def _refuse_undivided(folder: Path) -> None:
    if (folder / CHECKPOINTS / STATE).is_file():
        what = f'{str(folder)!r} holds a run that was not divided among workers, with images at work.'
        cure = f'Go on without --executor and --workers, or remove {str(folder / CHECKPOINTS)!r}: the images in it begin anew, and those in a shard stay.'
        raise RecipeError(what, cure)


def _refuse_others(chunks: Chunks, at_work: Sequence[str], ids: Sequence[str]) -> None:
    """Refuse (DataError) to go on with images that are not among those of this call: they may be gone, or be called otherwise."""
    known = set(ids)
    if others := [i for i in at_work if i not in known]:
        cure = f'Restore data, classes and shots, or remove {str(chunks.path.parent)!r}: the images at work begin anew, and those in a shard stay.'
        raise DataError(f'{len(others)} images at work are not among those of this call, such as {others[0]!r}.', cure)
