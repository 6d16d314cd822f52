"""Learn an embedding for each image of a data set: Diffusion Inversion (Zhou et al. 2023, "Training on Thin Air").

Of each image, min over c of E |F(c_in(z + sigma n); t, c) - F*|^2 (section 3.1, for whatever the network predicts): z is a draw from the VAE's posterior
of the image, t is uniform over the noise levels that the model was trained at, and c stands in the place of encoded text. Nothing else learns.

The published code learns groups of images, whose embeddings are the columns of one matrix: each step moves them all, those in the batch by their
gradient and the others by their momentum and decay. Here every image has a slot of the batch for as long as it learns, and then the next one has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion.precision import full_float32, network_dtype
from synthaug_plugins.errors import DataError, ModelError, RecipeError, first_line
from synthaug_plugins.learning.checkpoint import load_checkpoint, remove_checkpoint
from synthaug_plugins.learning.embeddings_options import EmbeddingTraining, check_embedding_training
from synthaug_plugins.learning.embeddings_run import EmbeddingRun
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.embedding_shards import EMBEDDINGS, clean_partials, index_path
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.real_images import RealImages


def learn_embeddings(
    model: DenoiserModel | TextModel,
    real_images: RealImages,
    ids: Sequence[str],
    options: EmbeddingTraining,
    folder: Path,
    work_dir: Path,
    device: torch.device,
    *,
    names: Mapping[str, str] | None = None,
    card: Mapping[str, Any] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_shard: Callable[[int], None] | None = None,
) -> Embeddings:
    """Learn the embeddings of the images that have none yet; go on from the checkpoint in `work_dir` if there is one.

    What an image's embedding becomes does not depend on the other images, nor on how often the run was killed: every draw follows from the seed, the
    image's file and its own step, and nothing of an image moves but by its own gradient. Kernels may round differently for another number of images
    in the batch. A killed run ends with the bytes of an unbroken one on a CPU. Embeddings that are in the folder keep their bytes.

    Args:
        model: not loaded. It is loaded if there is anything to learn.
        real_images: the user's images.
        ids: of the images to learn, in this order.
        options: see `EmbeddingTraining`.
        folder: of the embeddings, see `Embeddings`; made if it is missing. No other process may write into it meanwhile.
        work_dir: holds the checkpoint and nothing else; gone at the end.
        device: where to run.
        names: class -> what it is called, for options.initialise_from; the folder names unless given.
        card: further entries for the card of a new folder.
        on_step: called after each step with (steps of all images together so far, those in the folder included as if each had all its steps; mean loss
            of the step as a 0-dim tensor on the device).
        on_shard: called after each published shard with its number.

    Raises:
        RecipeError: an option is out of range or does not fit the model or what the folder holds; `work_dir` belongs to another run, what differs is
            named.
        DataError: an id is there twice, an image cannot be read, or its file is another than the one that its embedding was learned from.
        ModelError: the model cannot be loaded or is not that of the folder; memory is too small; or a loss is not finite: image and step are named. The
            last checkpoint stays.
    """
    known, missing = to_learn(model, real_images, ids, options, folder)
    if known is not None and not missing and load_checkpoint(work_dir) is None:
        return known
    model.load(device, network_dtype(options.precision, device))
    run = EmbeddingRun(model, real_images, options, folder, work_dir, device, names or {}, card or {})
    run.resume(missing, len(ids) - len(missing))
    with _enough_memory(options, device), full_float32():
        run.learn(on_step, on_shard)
    return Embeddings(folder)


class ChunkLearner:
    """Learns embeddings chunk by chunk, a shard each, with one model in memory: what a worker does where several share the images.

    A chunk has its own checkpoint folder and shard number, and its images share batches with each other alone. So what it becomes depends neither on how
    many workers there are nor on which of them learns it. Arguments: see `learn_embeddings`.

    Args:
        work_dir: holds the checkpoint folders of the chunks.
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
    ) -> None:
        self._of = model, real_images
        self._options, self._folder, self._work_dir, self._device, self._names, self._card = options, folder, work_dir, device, names, card
        model.load(device, network_dtype(options.precision, device))

    def learn(self, number: int, ids: Sequence[str], on_step: Callable[[int, Tensor], None] | None = None) -> None:
        """Learn a chunk from its beginning or from its checkpoint, and publish its shard. Nothing is done where the shard is there.

        Args:
            number: of the shard.
            ids: of its images.
            on_step: called after each step with (steps of the chunk's images together, mean loss of the step as a 0-dim tensor on the device).

        Raises:
            RecipeError, DataError, ModelError: see `learn_embeddings`.
        """
        work_dir = chunk_folder(self._work_dir, number)
        if not index_path(self._folder, number).is_file():
            options = replace(self._options, shard_size=len(ids))
            run = EmbeddingRun(*self._of, options, self._folder, work_dir, self._device, self._names, self._card, number)
            run.resume(ids, 0)
            with _enough_memory(options, self._device), full_float32():
                run.learn(on_step, None)
        remove_checkpoint(work_dir)


def chunk_folder(work_dir: Path, number: int) -> Path:
    """The checkpoint folder of a chunk."""
    return work_dir / f'{number:05d}'


def to_learn(
    model: DenoiserModel | TextModel, real_images: RealImages, ids: Sequence[str], options: EmbeddingTraining, folder: Path
) -> tuple[Embeddings | None, list[str]]:
    """The embeddings that are there, if any, and the images that have none; what is there is checked against model and images.

    Files that a killed run left half written go. Arguments and errors: see `learn_embeddings`.
    """
    check_embedding_training(options)
    if twice := len(ids) - len(set(ids)):
        raise DataError(f'{twice} of {len(ids)} images are named twice.', 'Name each once.')
    known = open_embeddings(folder, model, options)
    clean_partials(folder)
    if known is None:
        return None, list(ids)
    missing = known.missing(ids)
    left = set(missing)
    known.check(model, real_images, [i for i in ids if i not in left])
    return known, missing


@contextmanager
def _enough_memory(options: EmbeddingTraining, device: torch.device) -> Iterator[None]:
    """Say (ModelError) what to do where the device's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = f'{options.batch_size} images at a time are more than the memory of {device} holds: {first_line(error)}.'
        raise ModelError(what, 'Lower batch_size: the run goes on from its last checkpoint, and what is learned stays the same.') from error


def open_embeddings(folder: Path, model: DenoiserModel | TextModel, options: EmbeddingTraining) -> Embeddings | None:
    """The embeddings that a run may add to; None where there are none yet.

    Raises:
        RecipeError: they have another shape than the run's would have.
        ModelError: the folder is damaged.
    """
    if not (folder / EMBEDDINGS).is_file():
        return None
    known, shape = Embeddings(folder), model.embedding_shape(options.tokens)
    if known.shape != shape:
        raise RecipeError(f'{str(folder)!r} holds embeddings of the shape {known.shape}, not {shape}.', 'Restore tokens, or give a new folder.')
    return known
