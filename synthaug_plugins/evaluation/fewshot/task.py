"""What a few-shot method is given and what it gives back. Test images are in neither: the study reads them once, through `Fitted.logits`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from synthaug_plugins.errors import DataError

UNIT_TOLERANCE = 1e-3
"""How far a vector's length may be from 1: features that went through float16 are that far."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images as an encoder sees them.

    Args:
        features: (n, d) float32 unit vectors.
        labels: (n,) int64, positions in the order of the classes.

    Raises:
        DataError: other shapes or types, nothing in it, not finite, not of unit length.
    """

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        _check_vectors(self.features, 'The image features')
        if self.labels.dtype != torch.int64 or self.labels.shape != self.features.shape[:1]:
            raise DataError(
                f'{len(self.features)} features come with labels of shape {tuple(self.labels.shape)} and type {self.labels.dtype}.',
                'Give one int64 label for each feature.',
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Task:
    """One few-shot task: shots, validation images and what the text encoder says of the classes.

    Args:
        classes: N names in label order.
        train: the real shots.
        val: a few more real images. Options and epochs are chosen on them, nothing else.
        prompts: for each class (t_k, d) float32 unit vectors, one for each of its templates.
        logit_scale: exp(logit_scale) of the CLIP, about 100.

    Raises:
        DataError: fewer than two classes, a name twice, labels outside of the classes, a class without shots or prompts, dimensions that differ,
            a scale that is not a positive number.
    """

    classes: tuple[str, ...]
    train: Labelled
    val: Labelled
    prompts: tuple[Tensor, ...]
    logit_scale: float

    def __post_init__(self) -> None:
        N, d = len(self.classes), self.train.features.shape[1]
        if N < 2 or len(set(self.classes)) < N:
            raise DataError(f'The classes {list(self.classes)} cannot be told apart.', 'Name two or more classes, each once.')
        for part, what in ((self.train, 'shot'), (self.val, 'validation image')):
            if part.features.shape[1] != d:
                raise DataError(f'The shots have {d} dimensions, the validation images {part.features.shape[1]}.', 'Encode both with one model.')
            if not 0 <= int(part.labels.min()) <= int(part.labels.max()) < N:
                raise DataError(f'The labels of the {what}s go from {int(part.labels.min())} to {int(part.labels.max())}.', f'There are {N} classes, from 0.')
        shots = torch.bincount(self.train.labels, minlength=N)
        if (shots == 0).any():
            missing = ', '.join(repr(name) for name, n in zip(self.classes, shots.tolist(), strict=True) if n == 0)
            raise DataError(f'No shots of {missing}.', 'Every class needs at least one real training image.')
        if len(self.prompts) != N:
            raise DataError(f'{N} classes come with prompts of {len(self.prompts)}.', 'Give each class its own text features.')
        for name, vectors in zip(self.classes, self.prompts, strict=True):
            _check_vectors(vectors, f'The text features of {name!r}')
            if vectors.shape[1] != d:
                raise DataError(
                    f'Images have {d} dimensions, the texts of {name!r} {vectors.shape[1]}.',
                    'Encode both with the two towers of one CLIP, after its projection.',
                )
        if not (math.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise DataError(f'The logit scale {self.logit_scale} is no positive number.', 'Give exp(logit_scale) of the CLIP, about 100.')

    @cached_property
    def text(self) -> Tensor:
        """(N, d) unit vectors: for each class the mean over its templates, normalised."""
        return normalize(torch.stack([vectors.mean(0) for vectors in self.prompts]), dim=1)

    def zero_shot(self, features: Tensor) -> Tensor:
        """z_k = s * cos(f, text_k) (Radford et al. 2021, section 3.1): unit features (n, d) -> logits (n, N)."""
        return self.logit_scale * features @ self.text.T


@dataclass(frozen=True, eq=False)
class Fitted:
    """A classifier that a method made.

    Args:
        logits: unit features (n, d) float32 -> logits (n, N) float32, of any n.
        chosen: options that validation chose, for the table; empty when there was nothing to choose.
        val_top1: top-1 accuracy on the validation images, percent. It was chosen for, so it flatters.
    """

    logits: Callable[[Tensor], Tensor]
    chosen: dict[str, float]
    val_top1: float


def linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """The classifier f -> f W^T + b of weights (N, d) and biases (N,), computed in the type of the weights, given in float32."""
    weight = weight.detach().clone()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
    return lambda features: (features.to(weight.dtype) @ weight.T + bias).float()


def _check_vectors(vectors: Tensor, what: str) -> None:
    if vectors.dtype != torch.float32 or vectors.ndim != 2 or 0 in vectors.shape:
        raise DataError(f'{what} have shape {tuple(vectors.shape)} and type {vectors.dtype}.', 'Give (n, d) float32 with at least one row.')
    off = float((vectors.norm(dim=1) - 1).abs().max())
    if not off <= UNIT_TOLERANCE:  # also true of NaN
        raise DataError(f'{what} are not unit vectors: a length is {off:.3g} from 1.', 'Divide each by its length.')
