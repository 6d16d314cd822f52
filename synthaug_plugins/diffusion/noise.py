"""Noise that depends on a sample's seed and the step, and on nothing else.

A counter-based generator (Philox4x32-10; Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") turns
(seed, step, element) into bits by integer arithmetic. So a sample gets the same noise in every batch, at every place in
it, on every device and after every resume, all samples of a batch are drawn at once on the device, and the whole seed
counts (torch's CPU generator keeps only its low 32 bits, too few for millions of images).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b; in two halves, since int64 holds no 64-bit unsigned product."""
    upper, lower = a * (b >> 16), a * (b & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & _MASK


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words of a 128-bit counter and a 64-bit key: Philox4x32 with 10 rounds.

    Args:
        counter, key: words, int64 tensors with values in [0, 2**32) that broadcast together.

    Returns: four int64 tensors with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def philox_normal(seeds: Tensor, stream: int | Tensor, n: int) -> Tensor:
    """Unit normal noise by Box and Muller's transform of Philox words.

    Args:
        seeds: (B,) int64, 0 or more. Seeds that differ give unrelated noise.
        stream: which of a seed's streams, 0 <= stream < 2**32; one for all seeds, or (B,) int64.
        n: values per seed.

    Returns: (B, n) float32 on the device of `seeds`. Worked out in float64 and rounded, so that devices whose cosines differ
    in the last bit agree. The largest possible absolute value is 6.8.
    """
    element = torch.arange((n + 3) // 4, device=seeds.device)
    zero = torch.zeros_like(element)
    key = (seeds & _MASK)[:, None], (seeds >> 32)[:, None]
    words = philox((element, zero + (stream[:, None] if isinstance(stream, Tensor) else stream), zero, zero), key)
    u0, u1, u2, u3 = ((word.double() + 0.5) * 2.0**-32 for word in words)
    pairs = []
    for radius, angle in ((u0, u1), (u2, u3)):
        r, phi = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
        pairs += [r * phi.cos(), r * phi.sin()]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :n].float()


class SampleNoise:
    """All noise of one batch: `latents()` to start from and `step(i)` for the steps of a stochastic sampler.

    Args:
        seeds: one per sample, 0 <= seed < 2**63.
        shape: (C, H, W) of a sample.
        device: where the noise is wanted. It is drawn there, except on devices without float64.

    >>> a, b = SampleNoise([3, 4], (1, 2, 2)), SampleNoise([4], (1, 2, 2))
    >>> bool((a.latents()[1] == b.latents()[0]).all())
    True
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = 'cpu') -> None:
        self.shape, self.device = tuple(shape), torch.device(device)
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device='cpu' if self.device.type == 'mps' else self.device)

    def latents(self) -> Tensor:
        """(B, C, H, W) unit normal float32."""
        return self._draw(0)

    def step(self, i: int) -> Tensor:
        """(B, C, H, W) unit normal float32 for step i >= 0, unrelated to the latents and to other steps."""
        return self._draw(i + 1)

    def _draw(self, stream: int) -> Tensor:
        flat = philox_normal(self._seeds, stream, math.prod(self.shape))
        return flat.reshape(-1, *self.shape).to(self.device)


class GeneratorNoise:
    """The official EDM code's convention: one CPU generator of torch per sample, seeded with seed mod 2**32, drawn from in turn.

    For reproducing images that were made that way, on the same torch. Unlike `SampleNoise` it is a stream: latents first, then
    labels if that code drew any, then the noise of every step in order, whether or not the step uses it: skipped steps are drawn
    and thrown away.

    Args:
        seeds: one per sample.
        shape: (C, H, W) of a sample.
        device: where the noise is wanted; it is drawn on the CPU.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = 'cpu') -> None:
        self.shape, self.device = tuple(shape), torch.device(device)
        self._generators = [torch.Generator().manual_seed(int(seed) % 2**32) for seed in seeds]
        self._next_step = 0

    def latents(self) -> Tensor:
        """(B, C, H, W) unit normal float32."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self._generators]).to(self.device)

    def labels(self, num_classes: int) -> Tensor:
        """(B,) int64 in [0, num_classes)."""
        return torch.stack([torch.randint(num_classes, (), generator=g) for g in self._generators]).to(self.device)

    def step(self, i: int) -> Tensor:
        """(B, C, H, W) unit normal float64 for step i, later than any step asked for before.

        Raises:
            ValueError: the stream is past step i.
        """
        if i < self._next_step:
            raise ValueError(f'the noise of step {i} was asked for after that of step {self._next_step - 1}: a stream has one direction')
        for _ in range(self._next_step, i + 1):
            drawn = [torch.randn(self.shape, generator=g, dtype=torch.float64) for g in self._generators]
        self._next_step = i + 1
        return torch.stack(drawn).to(self.device)
