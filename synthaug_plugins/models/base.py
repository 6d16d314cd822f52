"""What all models that generators run have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from synthaug_plugins.errors import ModelError, RecipeError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion import Denoiser


PRECISIONS = ('fp32', 'bf16', 'fp16')


def check_precision(precision: str) -> None:
    """Refuse (RecipeError) a precision that is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise RecipeError(f'precision = {precision!r} is unknown.', nearest(str(precision), PRECISIONS))


@dataclass(frozen=True)
class EmbeddingShape:
    """The shape of an embedding: what a network sees in place of a prompt or a label, learned for one image.

    Attributes:
        tokens: K; how many states cross-attention sees. 1 for networks that are told a single vector.
        width: d; length of each.
        pooled: p; length of the vector beside them, None where the model has none.
    """

    tokens: int
    width: int
    pooled: int | None = None


def check_token_count(tokens: Any, default: int) -> int:
    """The number of tokens of an embedding, `default` for None; refused (RecipeError) unless it is a whole number of 1 or more."""
    if tokens is None:
        return default
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise RecipeError(f'tokens = {tokens!r} is no whole number of 1 or more.', 'Diffusion Inversion learns 5 per image.')
    return tokens


def check_embedding(name: str, shape: EmbeddingShape, tokens: Tensor, pooled: Tensor | None) -> None:
    """Refuse (ModelError) embeddings that are not (B, K, d), and (B, p) where the model has a pooled vector.

    Args:
        name: of the model.
        shape: what its embeddings have.
    """
    found, wanted = [list(tokens.shape)], [[len(tokens), shape.tokens, shape.width]]
    found += [] if pooled is None else [list(pooled.shape)]
    wanted += [] if shape.pooled is None else [[len(tokens), shape.pooled]]
    if found != wanted or not tokens.is_floating_point():
        shapes = [' and '.join(str(tuple(s)) for s in each) for each in (found, wanted)]
        raise ModelError(f'Embeddings of the shape {shapes[0]}, {tokens.dtype}, were given to {name!r}.', f'It takes {shapes[1]}, floating.')


class KnownModel(Protocol):
    """A model for which something was learned, as what was learned sees it. See `Model`."""

    @property
    def name(self) -> str: ...

    def has_origin(self, known: Mapping[str, Any]) -> bool: ...


class Model(Protocol):
    """What `DenoiserModel` and `TextModel` have in common: known without weights, then loaded."""

    name: str

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of what is sampled: pixels or latents."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels of the images that it makes."""
        ...

    @property
    def inpaints(self) -> bool:
        """Whether it runs only with a mask and the masked image, see `TextModel`."""
        ...

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that it supports."""
        ...

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """See `diffusion.Denoiser.round_sigma`."""
        ...

    def sampler_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of `diffusion.sample` from a recipe's, with this kind of model's defaults."""
        ...

    def start_scale(self, sigma: float) -> float:
        """By what sigma * noise is multiplied where sampling begins with noise alone."""
        ...

    def embedding_shape(self, tokens: int | None = None) -> EmbeddingShape:
        """The shape of an embedding of so many tokens, from the configs alone. tokens: None for this kind of model's default."""
        ...

    def check_weights(self) -> None:
        """Refuse (ModelError) weights that are missing or do not fit, from their headers alone."""
        ...

    def identity(self) -> dict[str, Any]:
        """Plain JSON: name, SHA-256 of what decides pixels, licence."""
        ...

    def origin(self, contents: bool = False) -> dict[str, Any]:
        """Plain JSON: what of `identity` says which model it is, for what is learned for it.

        Args:
            contents: give the SHA-256 of a model of the hub as well, whose weights were fetched: it is then known again in a folder.

        Raises:
            ModelError: a file is missing.
        """
        ...

    def has_origin(self, known: Mapping[str, Any]) -> bool:
        """Whether `known`, what `origin` said once, is this model's: equal content or equal commit, whatever its name."""
        ...

    def run_as(self) -> dict[str, Any]:
        """Plain JSON: what else says how the network runs once it is loaded."""
        ...

    def load(self, device: torch.device, dtype: torch.dtype) -> Denoiser:
        """The denoiser with its weights; reads them."""
        ...

    def unconditional(self) -> Any:
        """The condition of nothing in particular, see `diffusion.ClassifierFree`: the empty prompt, or no label. After `load`."""
        ...

    def embedded(self, tokens: Tensor, pooled: Tensor | None = None, guidance_scale: float | Sequence[float] | Tensor | None = None) -> Any:
        """The condition of the denoiser (see `diffusion.Denoiser`) that holds embeddings in place of text or labels, differentiable. After `load`.

        Args:
            tokens: (B, K, d) on any device, any floating type.
            pooled: (B, p), where `embedding_shape` says so, else None.
            guidance_scale: what a distilled network is told, one number or one per row; the model's default unless given. Others are not told it.

        Raises:
            ModelError: embeddings of another width than the network's, or the weights are not loaded.
        """
        ...

    def embedding_of(self, text: str, tokens: int | None = None) -> tuple[Tensor, Tensor | None]:
        """An embedding to start learning from: the encoded text of a prompt, or a class's own label vector. After `load`.

        Args:
            text: a prompt, or the name of a class.
            tokens: K, None for the default.

        Returns: tokens (K, d) and pooled (p,) or None, float32 on the CPU.

        Raises:
            ModelError: the weights are not loaded, or a class that the model does not know.
        """
        ...

    @property
    def is_loaded(self) -> bool:
        """Whether `load` was called."""
        ...

    @property
    def denoiser(self) -> Denoiser:
        """What `load` returned."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """What is sampled, (B, C, h, w), of images in [-1, 1]. After `load`."""
        ...

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (B, C, h, w) each, of what `encode` may draw of images in [-1, 1]; the latter is 0 in pixels. After `load`."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Images, about [-1, 1], of what was sampled. After `load`."""
        ...
