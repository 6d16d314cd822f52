"""What a list of inspectors says of a batch of images, during generation and on a finished store alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from synthaug_plugins.curation.base import Inspector
from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.store.plan import Request
from synthaug_plugins.store.table import Score


@dataclass(frozen=True)
class Verdict:
    """What became of one image: the first inspector's reason against it, None if it is kept; and the scores of all inspectors."""

    reason: str | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)


def judge(inspectors: Sequence[Inspector], requests: Sequence[Request], images: Sequence[np.ndarray], made: Sequence[Verdict] = ()) -> list[Verdict]:
    """Show a batch to every inspector, also what an earlier one rejects: its scores are wanted all the same.

    Args:
        made: per image, what its generator says of it; its reason goes before the inspectors'.

    Raises:
        RecipeError: an inspector's answer is not one per image, or two write the same score column.
        ModelError: memory does not suffice for an inspector.
    """
    reasons = [verdict.reason for verdict in made] or [None] * len(images)
    scores = [dict(verdict.scores) for verdict in made] or [{} for _ in images]
    written = {column: 'the generator' for own in scores for column in own}
    for inspector in inspectors if images else ():
        name = type(inspector).__name__
        try:
            said = inspector.inspect(requests, images)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise ModelError(f'Memory does not suffice for {name} and {len(images)} images.', 'Lower batch_size, or use another device.') from error
            raise
        if len(said.reasons) != len(images):
            raise RecipeError(f'{name} gives {len(said.reasons)} reasons for {len(images)} images.', 'Correct the inspector.')
        reasons = [own or new for own, new in zip(reasons, said.reasons, strict=True)]
        for column, values in said.scores.items():
            if column in written:
                raise RecipeError(f'{written[column]} and {name} both write the score column {column!r}.', 'Remove one of them.')
            if np.ndim(values) not in (1, 2) or len(values) != len(images):
                raise RecipeError(f'{name} gives {column!r} with the shape {np.shape(values)} for {len(images)} images.', 'Correct the inspector.')
            written[column] = name
            for i, own in enumerate(scores):
                own[column] = score_of(values, i)
    return [Verdict(reason, own) for reason, own in zip(reasons, scores, strict=True)]


def score_of(values: np.ndarray, i: int) -> Score:
    """An image's score out of a batch's, (B,) or (B, k): a number or a (k,) array."""
    return values[i] if np.ndim(values) == 2 else float(values[i])


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out. Except for CUDA's own allocator, only the text tells."""
    texts = ('out of memory', 'not enough memory', "can't allocate memory", 'ALLOC_FAILED')
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)
