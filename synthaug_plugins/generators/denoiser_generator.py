"""What the generators share that run a denoiser of our own model folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.generators.base import Generator, NonFiniteImages
from synthaug_plugins.generators.denoiser_model import DenoiserModel, finite_json
from synthaug_plugins.generators.guidance import build_guidance
from synthaug_plugins.store.plan import Request

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion import CallCounter, Denoiser

PRECISIONS = ('fp32', 'bf16', 'fp16')


class DenoiserGenerator(Generator):
    """A denoiser, guidance, the options of `diffusion.sample`, and the way from requests to images.

    Args:
        model: `embedded:NAME` or a model folder.
        use_labels: whether the model is told the class of each request.
        sampler: options of `diffusion.sample`, `preset` among them; see `diffusion.sampler_options`.
        guidance: registry entries of `GUIDANCE`.
        precision: in which the networks run; the sampler's state is float64 (float32 where the device has none).

    Raises:
        ModelError: no such model, or a config that cannot be built.
        RecipeError: an option is unknown or out of range.
    """

    def __init__(self, model: str, use_labels: bool, sampler: Mapping[str, Any] | None, guidance: Sequence[Mapping[str, Any]], precision: str) -> None:
        from synthaug_plugins.diffusion import sampler_options

        if precision not in PRECISIONS:
            raise RecipeError(f'precision = {precision!r} is unknown.', nearest(str(precision), PRECISIONS))
        self.use_labels, self.precision = use_labels, precision
        self.model = DenoiserModel(model)
        self.sampler = sampler_options(sampler or {}, *self.model.sigma_range, self.model.round_sigma)
        self.guidance = build_guidance(guidance)
        self._denoiser: Denoiser | None = None
        self._counters: list[CallCounter] = []

    def model_classes(self) -> Sequence[str] | None:
        return self.model.classes if self.use_labels and self.model.classes else None

    def check(self, classes: Sequence[str]) -> None:
        self.model.check_weights()
        for guidance in self.guidance:
            guidance.check(self.model, self.use_labels)
        if not self.use_labels:
            return
        for name in classes:
            if name not in self.model.classes:
                raise ModelError(f'The model {self.model.name!r} does not know the class {name!r}.', self._unknown_class_cure(name))

    def _unknown_class_cure(self, name: str) -> str:
        return nearest(name, self.model.classes)

    def identity(self) -> Mapping[str, Any]:
        return {
            'type': type(self).__name__,
            'model': self.model.identity(),
            'precision': self.precision,
            'sampler': finite_json(self.sampler),
            'guidance': [g.identity() for g in self.guidance],
        }

    @property
    def network_images(self) -> int:
        """See `Generator.network_images`; calls that guidance makes are included."""
        return sum(counter.images for counter in self._counters)

    def denoiser(self) -> Denoiser:
        """The guided model on the device; weights are read at the first call.

        Raises:
            ModelError: the weights cannot be read.
        """
        if self._denoiser is None:
            from synthaug_plugins.diffusion import Guided

            denoiser = self._load_model(self.model)
            terms = [g.term(self.model, self._load_model) for g in self.guidance]
            self._denoiser = Guided(denoiser, terms) if terms else denoiser
        return self._denoiser

    def _load_model(self, model: DenoiserModel) -> Denoiser:
        import torch

        from synthaug_plugins.diffusion import CallCounter

        dtype = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[self.precision]
        self._counters.append(CallCounter(model.load(self.device, dtype)))
        return self._counters[-1]

    def sample(self, requests: Sequence[Request], start: Tensor | None = None, **changes: Any) -> np.ndarray:
        """Run the sampler for a batch.

        Args:
            requests: the batch.
            start: clean images (B, C, H, W) in [-1, 1] to begin from.
            **changes: options of `diffusion.sample` that differ from this generator's.

        Returns: (B, H, W, 3) uint8.

        Raises:
            NonFiniteImages: with the id and the step at which each bad image went bad.
        """
        import torch

        from synthaug_plugins.diffusion import SampleNoise, full_float32, sample

        noise = SampleNoise([r.seed for r in requests], self.model.size, self.device)
        cond = None
        if self.use_labels and self.model.takes_labels:
            cond = torch.tensor([self.model.classes.index(r.class_name) for r in requests], device=self.device)
        options = {**self.sampler, **changes}
        bad_from = _BadFrom()
        dtype = torch.float32 if self.device.type == 'mps' else torch.float64
        with full_float32():
            x = sample(self.denoiser(), noise.latents(), noise=noise.step, cond=cond, start=start, dtype=dtype, callback=bad_from, **options)
        images = to_uint8(x)
        bad = {k: f'request {requests[k].id} from step {step} of {options["num_steps"]} on' for k, step in bad_from.steps().items()}
        if bad:
            raise NonFiniteImages(images, bad)
        return images


def to_uint8(x: Tensor) -> np.ndarray:
    """(B, 1 or 3, H, W) in [-1, 1] to (B, H, W, 3) uint8 on the CPU, rounded; undoes uint8 / 127.5 - 1. NaN becomes 0."""
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
