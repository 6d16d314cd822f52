"""What a denoiser is, and one that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Denoiser(Protocol):
    """D(x; sigma): the expected clean image given a noisy one. Every sampler runs on every denoiser.

    Attributes:
        sigma_min, sigma_max: the noise levels that the model supports; 0 and infinity when it has no limits.
    """

    sigma_min: float
    sigma_max: float

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """Denoise a batch.

        Args:
            x: (B, C, H, W) clean image in [-1, 1] plus sigma times unit normal noise, float32 or float64.
            sigma: noise levels, (B,) on the device of x, or a 0-dim tensor. The samplers pass a 0-dim float64 tensor on the
                CPU: host code reads it without waiting for the device.
            cond: what the model is conditioned on: class indices (B,) int64 for this package's networks (the number of
                classes means "no label") or label vectors (B, d) float, a mapping of tensors for diffusers models, None for nothing.

        Returns: (B, C, H, W) in the dtype of x. Non-finite values are returned as they are.
        """
        ...

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the model can be asked for; the identity for a continuous model."""
        ...


class CallCounter:
    """A denoiser that counts how often it was asked: what sampling costs.

    Args:
        on_call: called before each call.
        count_work: also count floating-point operations. The first call with inputs of a shape is made twice then, once to be counted: torch's counter takes
            operations apart on their way, and what is sampled should never come from under it. Not for a network that `torch.compile` made.

    Attributes:
        calls: calls so far.
        images: images in them, the sum of the batch sizes.
        flop: floating-point operations of their forward passes (matrix products, convolutions, attention; a multiplication and an addition are two); None where
            they are not counted, or after a call whose gradient was wanted, which takes more than its forward pass.
    """

    def __init__(self, denoiser: Denoiser, on_call: Callable[[], None] = lambda: None, count_work: bool = False) -> None:
        self.denoiser, self.calls, self.images, self._on_call = denoiser, 0, 0, on_call
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.flop: float | None = 0.0 if count_work else None
        self._flop_each: dict[Any, float] = {}  # of one image, by the shapes of what the network sees

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """See `Denoiser.__call__`."""
        self._on_call()
        self.calls, self.images = self.calls + 1, self.images + len(x)
        if self.flop is not None:
            self._count_work(x, sigma, cond)
        return self.denoiser(x, sigma, cond)

    def _count_work(self, x: Tensor, sigma: Tensor, cond: Any) -> None:
        assert self.flop is not None
        if torch.is_grad_enabled() and x.requires_grad:
            self.flop = None
            return
        shapes = _shapes(x), _shapes(cond)
        if shapes not in self._flop_each:
            from torch.utils.flop_counter import FlopCounterMode

            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.denoiser(x, sigma, cond)
            self._flop_each[shapes] = counter.get_total_flops() / len(x)
        self.flop += len(x) * self._flop_each[shapes]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """See `Denoiser.round_sigma`."""
        return self.denoiser.round_sigma(sigma)


def _shapes(value: Any) -> Any:
    """The shapes of all tensors in a condition, without the batch; hashable."""
    if isinstance(value, Mapping):
        return tuple((key, _shapes(inner)) for key, inner in value.items())
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else None
