"""Diffusion Inversion (Zhou et al. 2023, "Training on Thin Air", arXiv 2305.15316): images from perturbed embeddings of real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthaug_plugins.generators.base import Images, Made, finished
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.embedding_conditions import EmbeddingConditions
from synthaug_plugins.generators.pipeline_options import ModelOptions
from synthaug_plugins.generators.source_generator import OfSources
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.fit import frame
from synthaug_plugins.registry import GENERATORS, options_of
from synthaug_plugins.store.plan import Part, Request


@GENERATORS.register_module()
class DiffusionInversion(OfSources, DenoiserGenerator):
    """Sample from noise, told not a prompt or a label but the embedding that was learned for a real image, perturbed.

    `synthaug learn embeddings` finds for every real image the embedding with which the model makes it again. Here a request takes the embedding
    c of its source and makes it c + alpha (c_partner - c) + lambda n with n unit normal: near its image, and not the same. Guidance leads away from
    a mean of embeddings m, D(m) + s (D(c') - D(m)), which the paper writes (1 + w) D(c') - w D(m) with s = 1 + w. A class's requests go through its
    real images evenly; each draws lambda, alpha and s from their pools by its seed, every value equally often, and records them and its partner:
    `select='params.lambda <= 0.1 and params.alpha = 0'` trains on some.

    Embeddings are as good as copies of their images. What is made from them may show a training image nearly as it is: look at it before giving it
    away.

    Args:
        model: any pipeline that `TextToImage` takes, or a model folder of our own, such as `embedded:digits_edm`. The one that embeddings were
            learned with.
        embeddings: the folder `embeddings` that `synthaug learn embeddings` wrote, with every real image of the recipe in it.
        lambdas: pool of standard deviations of the noise, 0 or more. One number is the same for all. Published runs have 0.1.
            How much that is depends on how long embeddings became: those of learn/inversion_digits have a standard deviation of 2.8.
        alphas: pool of shares of the partner, in [0, 1]. Published runs have 0.1.
        guidance_scales: pool of s; 1 is no guidance and half the cost. 1 only for few-step models; a model that is distilled to be told a scale is told
            its default throughout, and s acts beside it.
        guidance_interval: (lowest, highest) sigma at which guidance acts, see `TextToImage`.
        unconditional: the mean that guidance leads away from: that of 'all' embeddings of the recipe, as the paper says; of those of the 'class', which
            leads away from what the class has in common, and may lose it; of those of a 'group', as the published code does; or 'empty': no mean, but the
            empty prompt, or no label, as guidance is otherwise.
        group_size: images of a group: the first group_size / classes images of every class, at least one, then the next, and so on.
        partners: 'class': any other image of the class. 'all': any other image, and then the column `mixed_label` has class probabilities, alpha
            of the partner's class: train with soft_labels=dict(column='mixed_label').
        sampler, precision: see `TextToImage`, and for a model folder `EDM`. The paper takes 100 steps.
        image_size: that for which embeddings were learned; see `TextToImage`.
        revision, variant, few_step, tiny_vae, compile, channels_last: see `TextToImage`; for a pipeline only.

    Raises:
        RecipeError: a pool that is empty, repeats a value or leaves its range, or an unknown choice.
        ModelError: see `TextToImage`; no such embeddings, or such of another model or image size; an inpainting pipeline.
        DataError: a real image without embedding, or that changed since; a class with one image where partners are of the class and some alpha > 0.
    """

    @options_of(ModelOptions)
    def __init__(
        self,
        model: str,
        embeddings: str,
        lambdas: float | Sequence[float] = (0.1,),
        alphas: float | Sequence[float] = (0.1,),
        guidance_scales: float | Sequence[float] = (2.0,),
        guidance_interval: Sequence[float] | None = None,
        unconditional: str = 'all',
        group_size: int = 100,
        partners: str = 'class',
        sampler: Mapping[str, Any] | None = None,
        precision: str = 'fp32',
        **pipeline: Any,
    ) -> None:
        shared = ModelOptions(**pipeline)
        found = Embeddings(embeddings)
        told = EmbeddingConditions(
            shared.open(model), found, lambdas, alphas, guidance_scales, guidance_interval, unconditional, group_size=group_size, partners=partners
        )
        super().__init__(told, sampler, precision)
        self._layout = shared.layout()
        self._fit = str(found.card.get('options', {}).get('fit', 'squash'))

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), **self._layout}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str | None, dict[str, Any]]:
        return self.told.tell(part, number, recipe_seed, seed)

    def whole_source(self, request: Request) -> bool:
        """See `Generator.whole_source`: what learning cropped away is not made."""
        return self._fit != 'crop'

    def generate(self, requests: Sequence[Request]) -> Images | Made:
        if self._fit != 'pad':
            return self.sample(requests)
        return finished(lambda: self.sample(requests), lambda canvases: [self._cut(r, c) for r, c in zip(requests, canvases, strict=True)])

    def _cut(self, request: Request, canvas: np.ndarray) -> np.ndarray:
        """The canvas without what learning filled in around the source."""
        assert self.real_images is not None  # checked before
        width, height = self.real_images.size(str(request.source))
        return frame((height, width), (canvas.shape[0], canvas.shape[1]), 'pad').cut(canvas)
