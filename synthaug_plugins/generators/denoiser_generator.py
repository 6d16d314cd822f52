"""What the generators share that run a denoiser of our own model folders."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.generators.base import Generator, NonFiniteImages
from synthaug_plugins.store.plan import Request
from synthaug_plugins.weights import CARD, EMBEDDED, load_weights, model_folder, read_config, weights_hash, weights_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion import EDMPrecond

PRECISIONS = ('fp32', 'bf16', 'fp16')


class DenoiserGenerator(Generator):
    """A denoiser, the options of `diffusion.sample`, and the way from requests to images.

    Args:
        model: `embedded:NAME` or a model folder.
        use_labels: whether the model is told the class of each request.
        precision: in which the network runs; the sampler's state is float64 (float32 where the device has none).
        sampler: num_steps, solver, sigma_min, sigma_max, rho, S_churn, S_min, S_max, S_noise of `diffusion.sample`.

    Raises:
        ModelError: no such model, or a config that cannot be built.
        RecipeError: an option is out of range.
    """

    def __init__(self, model: str, use_labels: bool, precision: str, sampler: Mapping[str, Any]) -> None:
        from synthaug_plugins.diffusion import check_denoiser_config, check_sampler, sigma_range

        if precision not in PRECISIONS:
            raise RecipeError(f'precision = {precision!r} is unknown.', nearest(precision, PRECISIONS))
        self.model, self.use_labels, self.precision = model, use_labels, precision
        self.folder = model_folder(model)
        self.config = read_config(self.folder)
        check_denoiser_config(self.config)
        low, high = sigma_range(self.config.get('sigma_min', 0.0), self.config.get('sigma_max', math.inf), sampler['sigma_min'], sampler['sigma_max'])
        self.sampler = {**sampler, 'sigma_min': low, 'sigma_max': high}
        check_sampler(**self.sampler)
        self._denoiser: EDMPrecond | None = None

    def model_classes(self) -> Sequence[str] | None:
        return list(self.config['classes']) if self.use_labels and self.config['classes'] else None

    def check(self, classes: Sequence[str]) -> None:
        self._check_weights()
        if not self.use_labels:
            return
        for name in classes:
            if name not in self.config['classes']:
                raise ModelError(f'The model {self.model!r} does not know the class {name!r}.', self._unknown_class_cure(name))

    def _check_weights(self) -> None:
        """Compare the names and shapes in the weights' header with those that the config builds."""
        import torch

        from synthaug_plugins.diffusion import build_denoiser

        with torch.device('meta'):
            wanted = {name: tuple(t.shape) for name, t in build_denoiser(self.config).state_dict().items()}
        found = weights_shapes(self.folder)
        for name in sorted({*wanted, *found}):
            if wanted.get(name) != found.get(name):
                what = f'{name!r} is {found.get(name, "missing")}, the config asks for {wanted.get(name, "no such tensor")}'
                raise ModelError(f'The weights of {self.model!r} do not fit its config: {what}.', 'Save the model again.')

    def _unknown_class_cure(self, name: str) -> str:
        return nearest(name, self.config['classes'])

    def identity(self) -> Mapping[str, Any]:
        card = self.folder / CARD
        licence = json.loads(card.read_text(encoding='utf-8')).get('licence') if card.is_file() else None
        config = json.dumps(self.config, sort_keys=True).encode()
        return {
            'type': type(self).__name__,
            'model': {
                'name': self.model if self.model.startswith(EMBEDDED) else self.folder.resolve().name,
                'sha256': weights_hash(self.folder),
                'config_sha256': hashlib.sha256(config).hexdigest(),
                'licence': licence,
            },
            'precision': self.precision,
            **{k: None if v == math.inf else v for k, v in self.sampler.items()},  # JSON has no infinity
        }

    def denoiser(self) -> EDMPrecond:
        """The model on the device; its weights are read at the first call.

        Raises:
            ModelError: the weights cannot be read.
        """
        if self._denoiser is None:
            import torch

            from synthaug_plugins.diffusion import build_denoiser

            denoiser = build_denoiser(self.config)
            denoiser.load_state_dict(load_weights(self.folder))  # `check` has compared the shapes
            dtype = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[self.precision]
            self._denoiser = denoiser.eval().requires_grad_(False).to(self.device, dtype)
        return self._denoiser

    def sample(self, requests: Sequence[Request], start: Tensor | None = None, **changes: Any) -> np.ndarray:
        """Run the sampler for a batch.

        Args:
            requests: the batch.
            start: clean images (B, C, H, W) in [-1, 1] to begin from.
            **changes: arguments of `diffusion.sample` that differ from this generator's options.

        Returns: (B, H, W, 3) uint8.

        Raises:
            NonFiniteImages: with the id and the step at which each bad image went bad.
        """
        import torch

        from synthaug_plugins.diffusion import SampleNoise, full_float32, sample

        size = (self.config['channels'], self.config['resolution'], self.config['resolution'])
        noise = SampleNoise([r.seed for r in requests], size, self.device)
        cond = None
        if self.use_labels and self.config['label_conditioning']:
            cond = torch.tensor([self.config['classes'].index(r.class_name) for r in requests], device=self.device)
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
