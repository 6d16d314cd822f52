"""What the generators share that edit an image by noising it and having the model take the noise away again (SDEdit)."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.base import Images, Made, finished
from synthaug_plugins.generators.conditions import Conditions
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.masks import build_masks, lay_over
from synthaug_plugins.generators.source_generator import SourceGenerator
from synthaug_plugins.generators.strength import Strength
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.fit import Frame, Placed, channels_first, check_fit, place_all
from synthaug_plugins.real_images import in_threads
from synthaug_plugins.store.plan import Part, Request

if TYPE_CHECKING:
    from torch import Tensor

    from synthaug_plugins.diffusion import Region

_ENCODED_BYTES = 256 * 2**20  # of encoded sources that are kept


class SDEdit(SourceGenerator, DenoiserGenerator):
    """Start from an image plus noise of some strength (Meng et al. 2022). Subclasses say which strength a request gets.

    A pipeline encodes each image once, as the mean of the VAE's posterior, so that a source has one start whatever the seed.

    Args:
        told, precision: see `DenoiserGenerator`.
        sampler: see there; of the full grid, of which a strength runs the end.
        fit: how an image becomes one of the model's shape, see `fit.frame`. What was padded is cut off the result.
        masks: which part of an image is edited, see `Masks`; None for all of it. An edit then has its image's own size, and where the mask leaves
            the image alone, the image's own bytes. An inpainting pipeline is given the mask; with any other model what is known is put back at
            every step, see `diffusion.Blended`.

    Attributes:
        strengths: all that a request may get.

    Raises:
        RecipeError: an unknown fit, sampler options that say where to begin, or see `Masks`.
        ModelError: an inpainting pipeline without masks.
        DataError: no such folder of masks; in `check`, see `Masks.check`.
    """

    def __init__(self, told: Conditions, sampler: Mapping[str, Any] | None, precision: str, fit: str, masks: Mapping[str, Any] | None = None) -> None:
        self.masks = build_masks(masks)
        super().__init__(told, sampler, precision, self.masks is not None)
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

    @property
    def keeps_pixels(self) -> bool:  # type: ignore[override]
        """See `Generator.keeps_pixels`."""
        return self.masks is not None

    @property
    def keeps_shape(self) -> bool:  # type: ignore[override]
        """See `SourceGenerator.keeps_shape`."""
        return self.fit != 'crop' or self.masks is not None

    def check(self, classes: Sequence[str]) -> None:
        super().check(classes)
        if self.masks is not None and self.real_images is not None:
            sources = [i for name in classes for i in self.real_images.ids(name)]
            self.masks.check(self.real_images, sources, self.told.image_shape[1:], self.fit)

    def check_sampling(self) -> None:
        self.told.check_sampling([strength.sampler for strength in self.strengths], from_noise=False)

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
        self.check_sampling()  # of the strengths as they are now
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
            hint = '' if self.masks is not None else " image.size = 'source' stores variants in their real image's size."
            say(
                f'{len(small)} of {len(sizes)} real images are smaller than the {width} x {height} pixels of the model (the smallest has {w} x {h}) and are '
                f'enlarged for it (bicubic).{hint}'
            )

    def identity(self) -> Mapping[str, Any]:
        known = {**super().identity(), 'strengths': [dict(s.params) for s in self.strengths], 'fit': self.fit}
        if self.masks is None:
            return known
        sources = [i for name in self.real_images.classes for i in self.real_images.ids(name)] if self.real_images is not None else []
        return known | {'masks': self.masks.identity(sources)}

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str | None, dict[str, Any]]:
        prompt, said = self.told.tell(part, number, recipe_seed, seed)
        return prompt, {**self.strength_of(part, number, seed).params, **said}

    def bucket(self, request: Request) -> Hashable:
        return self._strength(request)[0], super().bucket(request)

    def _strength(self, request: Request) -> tuple[int, Strength]:
        return next((k, s) for k, s in enumerate(self.strengths) if s.params.items() <= request.params.items())

    def whole_source(self, request: Request) -> bool:
        return self.keeps_shape

    def edit(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Images | Made:
        import torch

        _, height, width = self.told.image_shape
        placed = place_all(images, height, width, self.fit)

        def finish(canvases: Images) -> Images:
            if self.masks is not None:
                return [self._laid_over(request, images[k], canvases[k], placed[k].frame) for k, request in enumerate(requests)]
            return [one.frame.cut(canvas) for one, canvas in zip(placed, canvases, strict=True)] if self.fit == 'pad' else canvases

        self.denoiser()  # the model encodes only when it is loaded
        start = torch.stack([self._encode(one.pixels) for one in placed])
        region = None if self.masks is None else self._region(requests, placed)
        return finished(lambda: self.sample(requests, start, region, **self._strength(requests[0])[1].sampler), finish)

    def _region(self, requests: Sequence[Request], placed: Sequence[Placed]) -> Region:
        """What of the canvases is made anew: all that meets a pixel which the edit may change."""
        import torch

        from synthaug_plugins.diffusion import Region, cover

        assert self.masks is not None
        on_canvas = [one.frame.cover(self.masks.region(self._object(r, one.frame), one.frame)) for r, one in zip(requests, placed, strict=True)]
        mask = torch.tensor(np.stack(on_canvas)[:, None], dtype=torch.float32, device=self.device)
        masked = [self._encode(one.pixels, hidden) for one, hidden in zip(placed, on_canvas, strict=True)] if self.model.inpaints else []
        return Region(cover(mask, *self.model.size[1:]), torch.stack(masked) if masked else None)

    def _object(self, request: Request, where: Frame) -> np.ndarray:
        """The mask of a request's source, in the size of the image that it is edited in: another editor may have been there before."""
        from PIL import Image

        assert self.masks is not None
        mask = self.masks.object(str(request.source))
        if mask.shape == where.size:
            return mask
        return np.asarray(Image.fromarray(mask).resize((where.size[1], where.size[0]), Image.Resampling.NEAREST))

    def _laid_over(self, request: Request, image: np.ndarray, canvas: np.ndarray, where: Frame) -> np.ndarray:
        assert self.masks is not None
        return lay_over(image, canvas, self.masks.alpha(self._object(request, where), where), where)

    def _encode(self, pixels: np.ndarray, hidden: np.ndarray | None = None) -> Tensor:
        """What the model begins from, (C, h, w), for (H, W, 3) uint8, grey where it is `hidden`, (H, W) bool. The latest 256 MB are kept.

        One image at a time: in a batch the last bits would depend on its neighbours, and a resumed run has others.
        """
        import torch

        from synthaug_plugins.diffusion import full_float32
        from synthaug_plugins.diffusion.pixels import from_uint8

        key = hashlib.sha256(pixels.tobytes() + (b'' if hidden is None else hidden.tobytes())).digest()
        if key not in self._encoded:
            image = from_uint8(torch.tensor(channels_first(pixels, self.told.image_shape[0]), device=self.device))
            if hidden is not None:
                image = image * torch.tensor(~hidden, device=self.device)
            with torch.no_grad(), full_float32():
                self._encoded[key] = self.model.encode(image[None])[0].clone()
            self._encoded_bytes += self._encoded[key].nbytes
            while self._encoded_bytes > _ENCODED_BYTES and len(self._encoded) > 1:
                self._encoded_bytes -= self._encoded.popitem(last=False)[1].nbytes
        self._encoded.move_to_end(key)
        return self._encoded[key]
