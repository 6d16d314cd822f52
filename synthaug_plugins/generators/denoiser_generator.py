"""What the generators share that run a denoiser, in pixels or latents, told labels or prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import ModelError
from synthaug_plugins.generators.base import Generator, Images, Made, NonFiniteImages
from synthaug_plugins.generators.conditions import Conditions
from synthaug_plugins.generators.guidance import finite_json
from synthaug_plugins.generators.loaded import LoadedModels
from synthaug_plugins.models.base import check_precision
from synthaug_plugins.store.plan import Part, Request, request_id, request_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion import Denoiser, Region


class DenoiserGenerator(Generator):
    """A denoiser, guidance, the options of `diffusion.sample`, and the way from requests to images: from noise, unless a subclass says otherwise.

    Args:
        told: the model and what it is told.
        sampler: options of `diffusion.sample`, `preset` among them; see `diffusion.sampler_options`.
        precision: in which the networks run; the sampler's state is float64 (float32 where the device has none).
        masked: whether images are edited within masks only.

    Attributes:
        loaded: the models with their weights. Generators that work together are given the same before their first image.

    Raises:
        RecipeError: an option is unknown or out of range.
        ModelError: an inpainting pipeline without masks.
    """

    def __init__(self, told: Conditions, sampler: Mapping[str, Any] | None, precision: str, masked: bool = False) -> None:
        if told.model.inpaints and not masked:
            cure = "Use DAFusion or RealGuidance with masks=dict(folder='...'), or give an ordinary pipeline."
            raise ModelError(f'model = {told.model.name!r} paints into masked images: its network needs a mask, and {type(self).__name__} has none.', cure)
        check_precision(precision)
        self.told, self.model, self.precision = told, told.model, precision
        self.sampler = self.model.sampler_options(sampler or {})
        self.loaded = LoadedModels()
        self._denoiser: Denoiser | None = None

    def model_classes(self) -> Sequence[str] | None:
        return self.told.classes()

    def check(self, classes: Sequence[str]) -> None:
        self.told.check(classes, self.real_images)
        self.check_sampling()

    def check_sampling(self) -> None:
        """Refuse (ModelError, RecipeError) guidance that does not go with the sampler."""
        self.told.check_sampling([self.sampler], from_noise=True)

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        self.told.prepare(classes, say)

    def identity(self) -> Mapping[str, Any]:
        return {
            'type': type(self).__name__,
            'model': self.model.identity(),
            'precision': self.precision,
            'sampler': finite_json(self.sampler),
            **self.told.identity(),
        }

    @property
    def network_images(self) -> int:
        """See `Generator.network_images`; calls that guidance makes are included."""
        return self.loaded.images

    @property
    def network_flop(self) -> float | None:
        return self.loaded.flop

    def request(self, part: Part, number: int, recipe_seed: int) -> Request:
        """A part's request of that number, with what the model is told; it starts from noise."""
        seed = request_seed(recipe_seed, part, number)
        prompt, params = self.told.tell(part, number, recipe_seed, seed)
        return Request(request_id(part, number), part.label, part.class_name, seed, None, prompt, params)

    def requests(self, part: Part, recipe_seed: int) -> Iterator[Request]:
        return (self.request(part, number, recipe_seed) for number in count())

    def generate(self, requests: Sequence[Request]) -> Images | Made:
        return self.sample(requests)

    def bucket(self, request: Request) -> Hashable:
        return self.told.bucket(request)

    def denoiser(self) -> Denoiser:
        """The model on the device, unguided; weights are read at the first call.

        Raises:
            ModelError: the weights cannot be read.
        """
        if self._denoiser is None:
            self.model, self._denoiser = self.loaded.get(self.model, self.device, self.precision)
            self.told.model = self.model
        return self._denoiser

    def guided(self, requests: Sequence[Request], shared: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None) -> Denoiser:
        """The model with the guidance of a batch.

        Args:
            shared: entries of the condition that say nothing of the class, see `Term.sharing`.
            options: of `diffusion.sample`, completed, with which the batch runs; the generator's own unless given.
        """
        from synthaug_plugins.diffusion import Guided

        denoiser = self.denoiser()
        terms = self.told.terms(requests, self.device, lambda model: self.loaded.get(model, self.device, self.precision)[1], options or self.sampler)
        return Guided(denoiser, [term.sharing(shared) for term in terms] if shared else terms) if terms else denoiser

    def sample(self, requests: Sequence[Request], start: Tensor | None = None, region: Region | None = None, **changes: Any) -> np.ndarray | Made:
        """Run the sampler for a batch, then the decoder.

        Args:
            requests: the batch.
            start: what to begin from, as the model's `encode` gives it.
            region: of what it begins from, the part that is made anew; the rest is left alone.
            **changes: options of `diffusion.sample` that differ from this generator's.

        Returns: (B, H, W, 3) uint8, or these with the model's verdicts.

        Raises:
            NonFiniteImages: with the id and the step at which each bad image went bad.
        """
        import torch

        from synthaug_plugins.diffusion import SampleNoise, full_float32, sample
        from synthaug_plugins.diffusion.steps import option_levels

        noise = SampleNoise([r.seed for r in requests], self.model.size, self.device)
        options = {**self.sampler, **changes}
        started = self.told.start(requests)
        if started is not None:
            options['first_step'] += started[1]
        bad_from = _BadFrom()
        dtype = torch.float32 if self.device.type == 'mps' else torch.float64
        with full_float32(), torch.no_grad():
            shared = region.condition() if region is not None else {}
            guided, cond, latents = self.guided(requests, shared, options), self.told.cond(requests, self.device), noise.latents()
            if region is not None and start is not None:
                guided, cond = region.around(guided, start), {**cond, **shared} if shared else cond
            self.told.begin(requests)
            if start is None and (scale := self.model.start_scale(float(option_levels(options, self.model.round_sigma)[options['first_step']]))) != 1:
                latents = scale * latents.to(dtype)
            if started is not None:
                latents = torch.tensor(started[0], dtype=latents.dtype, device=self.device).reshape(-1, 1, 1, 1) * latents
            x = sample(guided, latents, noise=noise.step, cond=cond, start=start, dtype=dtype, callback=bad_from, **options)
            x = self.model.decode(x.float())
        images = to_uint8(x)
        undecoded = (~torch.isfinite(x).flatten(1).all(dim=1)).nonzero().flatten().tolist()
        bad = {k: f'request {requests[k].id} when it was decoded' for k in undecoded}
        bad |= {k: f'request {requests[k].id} from step {step} of {options["num_steps"]} on' for k, step in bad_from.steps().items()}
        verdicts = self.told.judge(requests, images)
        made = images if verdicts is None else Made(images, *verdicts)
        if bad:
            raise NonFiniteImages(made, bad)
        return made


def to_uint8(x: Tensor) -> np.ndarray:
    """(B, 1 or 3, H, W) in [-1, 1] to (B, H, W, 3) uint8 on the CPU, rounded; undoes `diffusion.pixels.from_uint8`. NaN becomes grey, 128."""
    pixels = (x.nan_to_num() * 127.5 + 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(pixels.byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy())


class _BadFrom:
    """A sampler callback that notes, without waiting for the device, the first step after which a sample is not finite."""

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None

    def __call__(self, step: int, x: Tensor, denoised: Tensor) -> None:
        import torch

        if self._first is None:
            self._first = torch.full((len(x),), -1, device=x.device)
        finite = torch.isfinite(x).flatten(1).all(dim=1)
        self._first = torch.where((self._first < 0) & ~finite, step, self._first)

    def steps(self) -> dict[int, int]:
        """Place in the batch -> step, for the bad ones."""
        first = [] if self._first is None else self._first.tolist()
        return {k: step for k, step in enumerate(first) if step >= 0}
