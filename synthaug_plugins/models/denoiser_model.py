"""A denoiser in a model folder of our own, as generators use it: checked without its weights, then loaded onto a device."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.models.base import EmbeddingShape, check_embedding, check_token_count
from synthaug_plugins.weights import check_fits, folder_identity, load_weights, model_folder, read_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion import Precond
    from synthaug_plugins.diffusion.unet import EncoderDecoder


class DenoiserModel:
    """What is known of a model before its weights are read, and the way to read them.

    Args:
        name: `embedded:NAME` or a model folder.

    Attributes:
        name: as given.
        config: see `diffusion.check_denoiser_config`.
        inpaints: never: our networks see no mask.

    Raises:
        ModelError: no such model, or a config that cannot be built.
    """

    inpaints = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = model_folder(name)
        self.config: dict[str, Any] = read_config(self.folder)
        self._denoiser: Precond | None = None
        self._shape_only = _shape_only(json.dumps(self.config))  # refuses a wrong config

    @property
    def classes(self) -> list[str]:
        """Names of the classes in label order; empty when it was trained without."""
        return list(self.config['classes'])

    @property
    def takes_labels(self) -> bool:
        """Whether the network is told the class."""
        return bool(self.config['label_conditioning'])

    @property
    def runs_without_labels(self) -> bool:
        """Whether a call without a label is something the network was trained for."""
        return not self.takes_labels or self.config.get('label_dropout', 0) > 0

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.config['channels'], self.config['resolution'], self.config['resolution']

    @property
    def feature_size(self) -> tuple[int, int, int]:
        """(C, h, w) of what its network makes in its middle, see `diffusion.MiddleFeatures`."""
        return _network(self._shape_only).middle_size

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of its images."""
        return self.size[1:]

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that it supports."""
        return self._shape_only.sigma_min, self._shape_only.sigma_max

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """See `diffusion.Denoiser.round_sigma`."""
        return self._shape_only.round_sigma(sigma)

    def unconditional(self) -> int | None:
        """See `Model.unconditional`: the index that means "no label"; None where the network takes none."""
        return len(self.classes) if self.takes_labels else None

    def sampler_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `Model.sampler_options`: EDM's defaults.

        Raises:
            RecipeError: an option is unknown or out of range.
        """
        from synthaug_plugins.diffusion import sampler_options

        return sampler_options(options, *self.sigma_range, self.round_sigma)

    def start_scale(self, sigma: float) -> float:
        """See `Model.start_scale`: none."""
        return 1.0

    def embedding_shape(self, tokens: int | None = None) -> EmbeddingShape:
        """See `Model.embedding_shape`: one vector, which takes the place of a class's label vector.

        Raises:
            RecipeError: another number of tokens than 1.
        """
        if check_token_count(tokens, 1) != 1:
            raise RecipeError(f'tokens = {tokens!r}: {self.name!r} is told a single vector.', 'Leave tokens out, or set it to 1.')
        return EmbeddingShape(1, _network(self._shape_only).label_width)

    def embedded(self, tokens: Tensor, pooled: Tensor | None = None, guidance_scale: float | Sequence[float] | Tensor | None = None) -> Tensor:
        """See `Model.embedded`: label vectors (B, d). Such a model is told no guidance scale."""
        check_embedding(self.name, self.embedding_shape(), tokens, pooled)
        return tokens[:, 0].to(next(self._loaded().parameters()).device)

    def embedding_of(self, text: str, tokens: int | None = None) -> tuple[Tensor, None]:
        """See `Model.embedding_of`: the label vector of a class by its name; of no label, for the empty text."""
        import torch

        self.embedding_shape(tokens)
        if text and not (self.takes_labels and text in self.classes):
            cure = nearest(text, self.classes if self.takes_labels else ())
            raise ModelError(f'The model {self.name!r} is told no class {text!r}.', f'{cure} The empty text is the vector of no label.')
        network = _network(self._loaded())
        label = torch.tensor([self.classes.index(text)]) if text else None
        like = next(network.parameters())
        vector = network.label_vector(None if label is None else label.to(like.device), like)
        return vector.detach().float().cpu(), None

    @property
    def is_loaded(self) -> bool:
        """Whether `load` was called."""
        return self._denoiser is not None

    @property
    def denoiser(self) -> Precond:
        """What `load` returned."""
        return self._loaded()

    def _loaded(self) -> Precond:
        if self._denoiser is None:
            raise ModelError(f'model = {self.name!r}: its weights are not loaded.', 'Call load first.')
        return self._denoiser

    def encode(self, images: Tensor) -> Tensor:
        """What is sampled, of images (B, C, H, W) in [-1, 1]: these, since the model works in pixels."""
        return images

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Model.posterior`: the images, without any spread."""
        return images, images.new_zeros(()).expand_as(images)

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return x

    def check_weights(self) -> None:
        """Compare the names and shapes in the weights' header with those that the config builds.

        Raises:
            ModelError: the first that differs.
        """
        check_fits(self.folder, repr(self.name), self._shape_only)

    def identity(self) -> dict[str, Any]:
        """Name, hashes of weights and config, licence: plain JSON.

        Raises:
            ModelError: the card is not JSON.
        """
        return folder_identity(self.name, self.folder, self.config)

    def origin(self, contents: bool = False) -> dict[str, Any]:
        """See `Model.origin`: name and hashes of weights and config."""
        return {key: value for key, value in self.identity().items() if key != 'licence'}

    def has_origin(self, known: Mapping[str, Any]) -> bool:
        """See `Model.has_origin`."""
        now = self.origin()
        return all(known.get(key) == now[key] for key in ('sha256', 'config_sha256'))

    def run_as(self) -> dict[str, Any]:
        """See `Model.run_as`: nothing else."""
        return {}

    def load(self, device: torch.device, dtype: torch.dtype) -> Precond:
        """The denoiser with its weights, for sampling only.

        Raises:
            ModelError: the weights cannot be read.
        """
        from synthaug_plugins.diffusion import build_denoiser

        denoiser = build_denoiser(self.config)
        denoiser.load_state_dict(load_weights(self.folder))
        self._denoiser = denoiser.eval().requires_grad_(False).to(device, dtype)
        return self._denoiser


@functools.lru_cache(maxsize=16)
def _shape_only(config: str) -> Precond:
    """The denoiser of a config without memory for its weights, built once: recipes name a model many times. Not to be changed."""
    import torch

    from synthaug_plugins.diffusion import build_denoiser

    with torch.device('meta'):
        return build_denoiser(json.loads(config))


def _network(denoiser: Precond) -> EncoderDecoder:
    return cast('EncoderDecoder', denoiser.network)  # all that a config can name
