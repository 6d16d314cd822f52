"""Real images through a pipeline's autoencoder and back: what its latents alone cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import ModelError
from synthaug_plugins.generators.base import Images, Made, NonFiniteImages
from synthaug_plugins.generators.denoiser_generator import to_uint8
from synthaug_plugins.generators.pipeline_options import ModelOptions
from synthaug_plugins.generators.source_generator import SourceGenerator
from synthaug_plugins.models.base import check_precision
from synthaug_plugins.models.fit import check_fit, place_all
from synthaug_plugins.registry import GENERATORS, options_of
from synthaug_plugins.store.plan import Part, Request

if TYPE_CHECKING:
    from synthaug_plugins.diffusion.latents import Latents


@GENERATORS.register_module()
class RoundTrip(SourceGenerator):
    """Encode a real image by a pipeline's autoencoder and decode it again: a control for whatever the pipeline makes.

    Every image of such a pipeline went through its decoder. Trained on round trips of the real images, a classifier shows what that alone costs, and what
    is left is the generator's. Only the autoencoder is loaded.

    Args:
        model: a pipeline, see `TextToImage`.
        sample: draw the latents from what the encoder thinks likely, by the request's seed. Without it they are its mean, so that all round trips of an
            image are equal: set per_source=1.
        fit: how a real image becomes one of the model's shape: 'squash', 'crop' or 'pad', see `RealGuidance`.
        precision: 'fp32', 'bf16' or 'fp16', in which the autoencoder runs.
        image_size, revision, variant, tiny_vae, channels_last: see `TextToImage`.

    Raises:
        ModelError: see `TextToImage`; a model without an autoencoder, or one that does not draw latents.
        RecipeError: an option that is out of range.
    """

    @options_of(ModelOptions)
    def __init__(self, model: str, sample: bool = False, fit: str = 'squash', precision: str = 'fp32', **pipeline: Any) -> None:
        self._options = ModelOptions(**pipeline)
        self.model = self._options.text_model(model)
        if sample and not self.model.draws_latents:
            raise ModelError(f'sample = True: the autoencoder of {model!r} makes one point of an image, nothing to draw from.', 'Leave sample out.')
        check_fit(fit)
        check_precision(precision)
        self._draws, self.fit, self.precision = sample, fit, precision
        self._latents: Latents | None = None

    @property
    def keeps_shape(self) -> bool:  # type: ignore[override]
        """See `SourceGenerator.keeps_shape`."""
        return self.fit != 'crop'

    def check(self, classes: Sequence[str]) -> None:
        self.model.check_weights()

    def identity(self) -> Mapping[str, Any]:
        options = {'sample': self._draws, 'fit': self.fit, 'precision': self.precision}
        return {'type': type(self).__name__, 'model': self.model.identity(), **options, **self._options.layout()}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[None, dict[str, Any]]:
        return None, {}

    def whole_source(self, request: Request) -> bool:
        return self.keeps_shape

    def edit(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Images | Made:
        import torch

        from synthaug_plugins.diffusion import SampleNoise, full_float32
        from synthaug_plugins.diffusion.pixels import from_uint8
        from synthaug_plugins.diffusion.precision import network_dtype

        if self._latents is None:
            self._latents = self.model.load_autoencoder(self.device, network_dtype(self.precision, self.device))
        placed = place_all(images, *self.model.image_size, self.fit)
        pixels = from_uint8(torch.tensor(np.stack([one.pixels for one in placed]), device=self.device).permute(0, 3, 1, 2))
        noise = SampleNoise([r.seed for r in requests], self.model.size, self.device).latents() if self._draws else None
        with full_float32(), torch.no_grad():
            x = self._latents.decode(self._latents.encode(pixels, noise))
        canvases = to_uint8(x)
        made = [one.frame.cut(canvas) for one, canvas in zip(placed, canvases, strict=True)] if self.fit == 'pad' else canvases
        bad = (~torch.isfinite(x).flatten(1).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteImages(made, {k: f'request {requests[k].id} in the autoencoder' for k in bad})
        return made
