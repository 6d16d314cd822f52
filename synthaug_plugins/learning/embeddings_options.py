"""How to learn an embedding for each image: the options, and what of them is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.learning.checks import check_number, check_precision, check_seed, check_whole
from synthaug_plugins.models.fit import check_fit
from synthaug_plugins.prompts.templates import resolve_templates

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of AdamW."""
MAX_STEPS = 1_000_000
"""Of an image, each of whose losses is kept while it learns."""
START = 0.1
"""Embeddings start from U(-START, START) where no text is given. The published code draws from U(-1 / sqrt(n), 1 / sqrt(n)) for a group of n images that
are learned together, n = 100 in its runs; here no image's start depends on how many there are."""


@dataclass(frozen=True)
class EmbeddingTraining:
    """How the embedding of each image is learned (Zhou et al. 2023, "Training on Thin Air", section 3.1).

    The defaults are those of the published runs.

    Attributes:
        tokens: of an embedding: so many tokens the network's cross-attention sees. None: 5, as published; 1 for EDM networks, which take no other.
        steps: per image, at most.
        batch_size: images at work at a time. How many changes no more than the last bits of an embedding, speed, and memory.
        draws: of noise level and noise for each image and step; their gradients are averaged.
        learning_rate: of AdamW (betas 0.9 and 0.999), constant. Moments and decay touch an image in its own steps only.
        weight_decay: decoupled.
        initialise_from: text whose encoding the embedding starts from, with {} for the class's name, if anywhere: '{}'. No more than its first `tokens`
            states count, the mark of its start among them: five of 'a photo of a {}' by a CLIP hold nothing of the class. None: from noise, see `START`.
        fit: how an image gets the model's shape: 'squash' (as published), 'crop' or 'pad', see `models.fit.place`.
        seed: decides every draw, together with the image's file. What an image's embedding becomes does not depend on the other images.
        precision: in which the networks run: 'fp32', 'bf16', 'fp16', or 'auto': bf16 on GPUs that have it, else fp32. Embeddings are float32 while they
            learn, and float16 on disk.
        plateau: dict(window=..., tolerance=...): an image is finished early when the mean loss of its last `window` steps is not below that of the
            `window` steps before by more than `tolerance` of it, looked at every `window` steps. None: every image gets all its steps.
        checkpoint_steps: steps between checkpoints.
        shard_size: images in a file of the result.
    """

    tokens: int | None = None
    steps: int = 3000
    batch_size: int = 50
    draws: int = 1
    learning_rate: float = 0.03
    weight_decay: float = 1e-2
    initialise_from: str | None = None
    fit: str = 'squash'
    seed: int = 0
    precision: str = 'auto'
    plateau: Mapping[str, float] | None = None
    checkpoint_steps: int = 250
    shard_size: int = 1024

    @property
    def window(self) -> int:
        """Steps whose mean loss is taken: for the plateau, and as an image's first and last loss. A tenth of all steps unless the plateau says."""
        return int(self.plateau['window']) if self.plateau else max(1, self.steps // 10)


FREE = {'batch_size', 'checkpoint_steps', 'shard_size'}
"""Options that may differ between the calls of one run."""


def check_embedding_training(options: EmbeddingTraining) -> None:
    """Refuse options that are out of range, before any data is read.

    Raises:
        RecipeError: the key is named.
    """
    o = options
    wholes = ('steps', 'batch_size', 'draws', 'checkpoint_steps', 'shard_size', *(() if o.tokens is None else ('tokens',)))
    for name in wholes:
        check_whole(name, getattr(o, name))
    if o.steps > MAX_STEPS:
        raise RecipeError(f'steps = {o.steps} are more than {MAX_STEPS}.', 'Published runs have 3000 per image.')
    if o.steps * o.draws >= 2**32:
        raise RecipeError(f'steps = {o.steps} times draws = {o.draws} are too many.', 'Lower them: an image has fewer than 2**32 draws.')
    check_number('learning_rate', o.learning_rate, 'Use a number above 0.', above=True)
    check_number('weight_decay', o.weight_decay, 'Use 0 or more.')
    check_seed(o.seed)
    check_fit(o.fit)
    check_precision(o.precision)
    if o.initialise_from is not None:
        if not isinstance(o.initialise_from, str):
            raise RecipeError(f'initialise_from = {o.initialise_from!r} is no text.', "Write a text such as '{}', or None.")
        resolve_templates([o.initialise_from], placeholder='{}' in o.initialise_from)
    if o.plateau is not None:
        _check_plateau(o)


def _check_plateau(options: EmbeddingTraining) -> None:
    plateau = options.plateau
    if not isinstance(plateau, Mapping) or set(plateau) != {'window', 'tolerance'}:
        raise RecipeError(f'plateau = {plateau!r} is not of its form.', 'Write plateau=dict(window=250, tolerance=0.01), or None.')
    check_whole('plateau.window', plateau['window'])
    tolerance = plateau['tolerance']
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise RecipeError(f'plateau.tolerance = {tolerance!r} is out of range.', 'Use a share of the loss from 0 on and below 1, such as 0.01.')
    if 2 * plateau['window'] > options.steps:
        raise RecipeError(f'plateau.window = {plateau["window"]} never ends an image: two windows are more than steps = {options.steps}.', 'Lower it.')


def decisive_options(options: EmbeddingTraining) -> dict[str, Any]:
    """The options that decide the embeddings: plain JSON."""
    return dict(json.loads(json.dumps({key: value for key, value in asdict(options).items() if key not in FREE})))
