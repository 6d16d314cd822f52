"""What the generators share that edit an image by noising it and having the model take the noise away again (SDEdit)."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.base import Images, Made, NonFiniteImages, with_images
from synthaug_plugins.generators.conditions import Conditions
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.source_generator import SourceGenerator
from synthaug_plugins.generators.strength import Strength
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.fit import check_fit, place
from synthaug_plugins.real_images import in_threads
from synthaug_plugins.store.plan import Part, Request

if TYPE_CHECKING:
    from torch import Tensor

_ENCODED_BYTES = 256 * 2**20  # of encoded sources that are kept


class SDEdit(SourceGenerator, DenoiserGenerator):
    """Start from an image plus noise of some strength (Meng et al. 2022). Subclasses say which strength a request gets.

    A pipeline encodes each image once, as the mean of the VAE's posterior, so that a source has one start whatever the seed.

    Args:
        told, precision: see `DenoiserGenerator`.
        sampler: see there; of the full grid, of which a strength runs the end.
        fit: how an image becomes one of the model's shape, see `fit.place`. What was padded is cut off the result.

    Attributes:
        strengths: all that a request may get.

    Raises:
        RecipeError: an unknown fit, or sampler options that say where to begin.
    """

    def __init__(self, told: Conditions, sampler: Mapping[str, Any] | None, precision: str, fit: str) -> None:
        super().__init__(told, sampler, precision)
        pixels = isinstance(told.model, DenoiserModel)
        for key in ('sigmas', 'first_step'):
            if (sampler or {}).get(key) or (pixels and self.sampler[key]):
                raise RecipeError(f'{type(self).__name__} has sampler.{key} = {self.sampler[key]!r}.', 'Leave it out: the strength says where to begin.')
        check_fit(fit)
        self.fit = fit
        self.strengths: list[Strength] = []
        self._prepared: tuple[str, ...] | None = None
        self._encoded: OrderedDict[bytes, Tensor] = OrderedDict()
        self._encoded_bytes = 0

    @abstractmethod
    def strength_of(self, part: Part, number: int, seed: int) -> Strength:
        """Which of `strengths` a part's request gets, by its number there and its seed."""

    def settle(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        """What a subclass has to do in `prepare`, once."""

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        if self._prepared == tuple(classes):
            return
        super().prepare(classes, say)
        self.settle(classes, say)
        self._prepared = tuple(classes)
        if self.real_images is not None:
            self._note_small_sources(classes, say)

    def _note_small_sources(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        assert self.real_images is not None
        height, width = self.told.image_shape[1:]
        sizes = list(in_threads(self.real_images.size, [i for name in classes for i in self.real_images.ids(name)]))
        # A padded image is enlarged only where neither of its sides fills the canvas.
        enlarged = all if self.fit == 'pad' else any
        small = [size for size in sizes if enlarged((size[0] < width, size[1] < height))]
        if small:
            w, h = min(small)
            say(
                f'{len(small)} of {len(sizes)} real images are smaller than the {width} x {height} pixels of the model (the smallest has {w} x {h}) and are '
                "enlarged for it (bicubic). image.size = 'source' stores variants in their real image's size."
            )

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), 'strengths': [dict(s.params) for s in self.strengths], 'fit': self.fit}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str | None, dict[str, Any]]:
        prompt, said = self.told.tell(part, number, recipe_seed, seed)
        return prompt, {**self.strength_of(part, number, seed).params, **said}

    def bucket(self, request: Request) -> Hashable:
        return self._strength(request)[0], super().bucket(request)

    def _strength(self, request: Request) -> tuple[int, Strength]:
        return next((k, s) for k, s in enumerate(self.strengths) if s.params.items() <= request.params.items())

    def whole_source(self, request: Request) -> bool:
        return self.fit != 'crop'

    def edit(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Images | Made:
        import torch

        _, height, width = self.told.image_shape
        with ThreadPoolExecutor(4) as pool:
            placed = list(pool.map(lambda k: place(images[k], height, width, self.fit), range(len(requests))))

        def cut(canvases: Images) -> Images:
            return [one.cut(canvas) for one, canvas in zip(placed, canvases, strict=True)] if self.fit == 'pad' else canvases

        self.denoiser()  # the model encodes only when it is loaded
        start = torch.stack([self._encode(one.pixels) for one in placed])
        try:
            return with_images(self.sample(requests, start, **self._strength(requests[0])[1].sampler), cut)
        except NonFiniteImages as found:
            raise NonFiniteImages(with_images(found.images, cut), found.bad) from None

    def _encode(self, pixels: np.ndarray) -> Tensor:
        """What the model begins from, (C, h, w), for (H, W, 3) uint8. Kept by the hash of the pixels, the latest 256 MB of them.

        One image at a time: in a batch the last bits would depend on its neighbours, and a resumed run has others.
        """
        import torch

        from synthaug_plugins.diffusion import full_float32

        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in self._encoded:
            image = torch.tensor(self._channels_first(pixels), device=self.device).float() / 127.5 - 1
            with torch.no_grad(), full_float32():
                self._encoded[key] = self.model.encode(image[None])[0].clone()
            self._encoded_bytes += self._encoded[key].nbytes
            while self._encoded_bytes > _ENCODED_BYTES and len(self._encoded) > 1:
                self._encoded_bytes -= self._encoded.popitem(last=False)[1].nbytes
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def _channels_first(self, pixels: np.ndarray) -> np.ndarray:
        """(C, H, W) of (H, W, 3), grey for a model of one channel."""
        from PIL import Image

        if self.told.image_shape[0] == 1:
            pixels = np.asarray(Image.fromarray(pixels).convert('L'))
        return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))
