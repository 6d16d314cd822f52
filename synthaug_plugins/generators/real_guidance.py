"""Variants of real images: noise is added up to some level, and the model takes it away again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import DataError, ModelError, RecipeError, nearest
from synthaug_plugins.generators.base import Made
from synthaug_plugins.generators.conditions import Conditions, LabelConditions
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.guidance import build_guidance
from synthaug_plugins.generators.prompt_conditions import PromptConditions
from synthaug_plugins.generators.strength import T_STAR, Strength, Strengths, check_shots, numbers, t_star
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.text_model import TextModel, open_model
from synthaug_plugins.real_images import in_threads
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Part, Request

if TYPE_CHECKING:
    from torch import Tensor

FITS = ('crop', 'squash')
_ENCODED_BYTES = 256 * 2**20  # of encoded sources that are kept


@GENERATORS.register_module()
class RealGuidance(DenoiserGenerator):
    """Start from a real image of the class plus noise (SDEdit, Meng et al. 2022; "real guidance", He et al. 2023).

    Low strength returns the image almost as it was; high strength forgets it. The requests of a class go through its real
    images first, then through the strengths, then on with new seeds: n images times m strengths are covered evenly, and 800 images of
    16 shots are 50 variants of each.

    The model is one of our own folders (pixels, class labels) or a text-to-image pipeline (latents, prompts). The latter encodes each
    real image once, as the mean of the VAE's posterior, so that a source has one start whatever the seed.

    Args:
        model: `embedded:digits_edm` or a folder with config.json and model.safetensors; or `embedded:digits_sd`, a folder in diffusers'
            layout or a name on the hub, see `TextToImage`.
        sigma: noise level at the start, in units of the model's pixels in [-1, 1] or of its latents; a number or a list. The sampler
            gets a grid that begins exactly there (at the nearest level of a model that knows only some), with as many steps as the
            full grid spends below that level, so that a step has the same size.
        t0: share in (0, 1] of the sampler's steps that run, rounded, at least one; a number or a list.
        strength: as in the img2img pipelines of diffusers: int(num_steps * strength) steps run; a number or a list.
        shots: He et al.'s strength for so many real images per class: 16 (t* = 15 of 100), 8 (20), 4 (35), 2 (40), 1 (50); the
            nearest for others; 'auto' counts them. Exactly one of sigma, t0, strength and shots.
        strength_map: how t* is taken over, with shots only: 'paper' runs t* / 100 of the steps; 'snr_matched' begins at the noise level
            of GLIDE's cosine schedule at t*, a far lower strength for latent models. Default: 'paper'.
        use_labels: tell a model folder's model the class. False needs an unconditional model, or one trained with label dropout; it
            works for classes that the model never saw.
        fit: how a real image becomes one of the model's shape: 'crop' the centre, or 'squash'. Smaller ones are enlarged (bicubic),
            and that is said.
        sampler, precision: see `EDM`, and for a pipeline `TextToImage`; num_steps is that of the full grid, from sigma_max down, of
            which a strength below full runs fewer, and churn per step is that of the full grid.
        guidance: see `EDM`; not for a pipeline.
        prompts, words, negative_prompt, guidance_scale, guidance_interval, image_size, revision, variant, few_step, tiny_vae, compile,
            channels_last, safety: see `TextToImage`; for a pipeline only. He et al. use the plain class prompt, which is the default.

    Raises:
        RecipeError: not exactly one way to say the strength, a value out of range, or an option for the other kind of model.
        ModelError: see `DenoiserModel` and `TextModel`; or labels that the model does not take, or cannot do without.
        DataError: in `prepare`, shots='auto' for classes with different numbers of images.
    """

    needs_sources = True

    def __init__(
        self,
        model: str,
        sigma: float | Sequence[float] | None = None,
        t0: float | Sequence[float] | None = None,
        strength: float | Sequence[float] | None = None,
        shots: int | str | None = None,
        strength_map: str | None = None,
        use_labels: bool = True,
        fit: str = 'crop',
        sampler: Mapping[str, Any] | None = None,
        guidance: Sequence[Mapping[str, Any]] = (),
        precision: str = 'fp32',
        prompts: Mapping[str, Any] | None = None,
        words: str | None = None,
        negative_prompt: str = '',
        guidance_scale: float | Mapping[str, float] | Sequence[float] | None = None,
        guidance_interval: Sequence[float] | None = None,
        image_size: int | Sequence[int] | None = None,
        revision: str | None = None,
        variant: str | None = None,
        few_step: bool | None = None,
        tiny_vae: str | None = None,
        compile: bool = False,
        channels_last: bool = False,
        safety: str = 'off',
    ) -> None:
        of_pipelines = {'image_size': image_size, 'revision': revision, 'variant': variant, 'few_step': few_step, 'tiny_vae': tiny_vae, 'words': words}
        of_pipelines |= {'compile': compile or None, 'channels_last': channels_last or None}
        opened = open_model(model, **{k: v for k, v in of_pipelines.items() if v is not None})
        told: Conditions
        if isinstance(opened, TextModel):
            if not use_labels or guidance:
                key, value = ('guidance', guidance) if use_labels else ('use_labels', use_labels)
                cure = 'Use guidance_scale.' if use_labels else "Use prompts=dict(type='synthaug_plugins.ClassNameFree') to say nothing of the class."
                raise RecipeError(f'{key} = {value!r}: {model!r} is a text-to-image pipeline, which takes prompts.', cure)
            told = PromptConditions(opened, prompts, negative_prompt, guidance_scale, guidance_interval, safety=safety)
        else:
            given: dict[str, Any] = {'prompts': prompts, 'negative_prompt': negative_prompt or None, 'guidance_scale': guidance_scale}
            given |= {'guidance_interval': guidance_interval, 'safety': None if safety == 'off' else safety}
            for key, option in given.items():
                if option is not None:
                    raise RecipeError(f'{key} = {option!r}: the model {model!r} takes class labels, no prompts.', f'Leave {key} out, or use a pipeline.')
            told = LabelConditions(opened, use_labels, build_guidance(guidance), without_labels=True)
        super().__init__(told, sampler, precision)
        for key in ('sigmas', 'first_step'):
            if (sampler or {}).get(key) or (isinstance(opened, DenoiserModel) and self.sampler[key]):
                raise RecipeError(f'RealGuidance has sampler.{key} = {self.sampler[key]!r}.', 'Leave it out: the strength says where to begin.')
        if isinstance(opened, DenoiserModel):
            _check_labels(opened, use_labels)
        if fit not in FITS:
            raise RecipeError(f'fit = {fit!r} is unknown.', nearest(str(fit), FITS))
        self.fit, self.whole_source = fit, fit == 'squash'
        self._options = (
            {'use_labels': use_labels, 'fit': fit} if isinstance(opened, DenoiserModel) else {'fit': fit, 'compile': compile, 'channels_last': channels_last}
        )
        ways = {'sigma': sigma, 't0': t0, 'strength': strength, 'shots': shots}
        said = {key: value for key, value in ways.items() if value is not None}
        if len(said) != 1:
            raise RecipeError(
                f'RealGuidance has {", ".join(f"{k} = {v!r}" for k, v in (said or ways).items())}.', 'Set exactly one of sigma, t0, strength and shots.'
            )
        if strength_map is not None and shots is None:
            raise RecipeError(f'strength_map = {strength_map!r} goes with shots only.', 'Leave it out, or set shots.')
        self._shots, self._strength_map = shots, strength_map or 'paper'
        self.strengths: list[Strength] = []
        make = Strengths(self.model, self.sampler)
        if sigma is not None:
            self.strengths = [make.by_sigma(s) for s in numbers('sigma', sigma)]
        elif t0 is not None:
            self.strengths = [make.by_t0(t) for t in numbers('t0', t0)]
        elif strength is not None:
            self.strengths = [make.by_strength(s) for s in numbers('strength', strength)]
        else:
            check_shots(shots, self._strength_map)
            # With 'auto' the number is known in `prepare`; the strongest is tried now, so that an impossible sampler is refused early.
            self.strengths = [make.by_shots(1 if shots == 'auto' else int(shots or 1), self._strength_map)]
        self._prepared: tuple[str, ...] | None = None
        self._encoded: OrderedDict[bytes, Tensor] = OrderedDict()
        self._encoded_bytes = 0

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        if self._prepared == tuple(classes):
            return
        super().prepare(classes, say)
        self._prepared = tuple(classes)
        if self._shots is not None:
            shots = self._count_shots(classes) if self._shots == 'auto' else int(self._shots)
            if shots not in T_STAR:
                table = ', '.join(map(str, sorted(T_STAR)))
                say(f'shots = {shots} is not in the table of He et al. ({table}): its nearest entry is taken, t* = {t_star(shots)}.')
            self.strengths = [Strengths(self.model, self.sampler).by_shots(shots, self._strength_map)]
            if self._shots == 'auto':
                say(f"shots = 'auto': {shots} real images per class, t* = {t_star(shots)} of 100, sigma = {self.strengths[0].params['sigma']:.4g}.")
        if self.real_images is not None:
            self._note_small_sources(classes, say)

    def _count_shots(self, classes: Sequence[str]) -> int:
        if self.real_images is None:
            raise DataError("shots = 'auto' counts the real images, but there are none.", 'Give the folder of real images.')
        counts = {name: len(self.real_images.ids(name)) for name in classes}
        fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[fewest] != counts[most]:
            what = f"shots = 'auto', but the class {fewest!r} has {counts[fewest]} real images and {most!r} has {counts[most]}."
            raise DataError(what, 'Set shots to a number, or give every class as many images.')
        return counts[most]

    def _note_small_sources(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        assert self.real_images is not None
        height, width = self.told.image_shape[1:]
        sizes = list(in_threads(self.real_images.size, [i for name in classes for i in self.real_images.ids(name)]))
        small = [size for size in sizes if size[0] < width or size[1] < height]
        if small:
            w, h = min(small)
            say(
                f'{len(small)} of {len(sizes)} real images are smaller than the {width} x {height} pixels of the model (the smallest has {w} x {h}) and are '
                "enlarged for it (bicubic). image.size = 'source' stores variants in their real image's size."
            )

    def identity(self) -> Mapping[str, Any]:
        strengths = [dict(s.params) for s in self.strengths]
        return {**super().identity(), 'strengths': strengths, **self._options}

    def requests(self, part: Part, recipe_seed: int) -> Iterator[Request]:
        if not part.sources:
            raise DataError(f'The class {part.class_name!r} has no real images to start from.', 'Add some, or leave the class out.')
        number = 0
        while True:
            round_, source = divmod(part.first + number, len(part.sources))
            yield self.request(part, number, recipe_seed, part.sources[source], self.strengths[round_ % len(self.strengths)].params)
            number += 1

    def bucket(self, request: Request) -> Hashable:
        return self._strength(request)[0]

    def _strength(self, request: Request) -> tuple[int, Strength]:
        return next((k, s) for k, s in enumerate(self.strengths) if s.params.items() <= request.params.items())

    def generate(self, requests: Sequence[Request]) -> np.ndarray | Made:
        import torch

        with ThreadPoolExecutor(4) as pool:
            sources = list(pool.map(self._load, requests))
        self.denoiser()  # the model encodes only when it is loaded
        start = torch.stack([self._encode(source) for source in sources])
        return self.sample(requests, start, **self._strength(requests[0])[1].sampler)

    def _encode(self, pixels: np.ndarray) -> Tensor:
        """What the model begins from, (C, h, w), for (C, H, W) uint8. Kept by the hash of the pixels, the latest 256 MB of them.

        One image at a time: in a batch the last bits would depend on its neighbours, and a resumed run has others.
        """
        import torch

        from synthaug_plugins.diffusion import full_float32

        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in self._encoded:
            image = torch.tensor(pixels, device=self.device).float() / 127.5 - 1
            with torch.no_grad(), full_float32():
                self._encoded[key] = self.model.encode(image[None])[0].clone()
            self._encoded_bytes += self._encoded[key].nbytes
            while self._encoded_bytes > _ENCODED_BYTES and len(self._encoded) > 1:
                self._encoded_bytes -= self._encoded.popitem(last=False)[1].nbytes
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def _load(self, request: Request) -> np.ndarray:
        """The request's real image as the model wants it: (C, H, W) uint8."""
        from PIL import Image, ImageOps

        if self.real_images is None or request.source is None:
            raise DataError(f'The request {request.id} has no real image to start from.', 'Give the folder of real images.')
        image = Image.fromarray(self.real_images.load(request.source))
        channels, height, width = self.told.image_shape
        filter_ = Image.Resampling.BICUBIC  # antialiased when it shrinks
        image = ImageOps.fit(image, (width, height), filter_) if self.fit == 'crop' else image.resize((width, height), filter_)
        pixels = np.asarray(image.convert('L') if channels == 1 else image)
        return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def _check_labels(model: DenoiserModel, use_labels: bool) -> None:
    if use_labels and not model.takes_labels:
        raise ModelError(f'The model {model.name!r} takes no class labels.', 'Set use_labels=False.')
    if not use_labels and not model.runs_without_labels:
        raise ModelError(f'The model {model.name!r} was trained without label dropout and cannot run without labels.', 'Set use_labels=True.')
