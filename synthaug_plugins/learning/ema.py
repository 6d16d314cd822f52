"""Averages of the weights over training: by half-life, and with a power-function profile whose width is chosen afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.errors import ModelError, RecipeError

_WIDEST = 0.288
"""Just below 1 / sqrt(12), the relative standard deviation of an average that weighs the whole training alike (gamma = 0)."""
_MOST_ERROR = 0.25
"""A reconstructed profile may differ from the wanted one by this share (relative L2 norm)."""


class HalfLifeEMA:
    """Exponential average with a half-life counted in images (Karras et al. 2022, arXiv 2206.00364, appendix F.2).

    Args:
        parameters: name -> parameter; the average starts at their present values.
        half_life_images: images after which a weight's share has halved.
        ramp: the half-life is at most this share of the images shown so far, else early weights would stay in.
    """

    def __init__(self, parameters: Mapping[str, Tensor], half_life_images: float, ramp: float) -> None:
        self.half_life_images, self.ramp = half_life_images, ramp
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    def update(self, parameters: Mapping[str, Tensor], batch_size: int, images_shown: int) -> None:
        """Add the parameters after a step of `batch_size` images, the last of `images_shown`: beta = 0.5^(batch / half-life)."""
        half_life = min(float(self.half_life_images), self.ramp * images_shown)
        _lerp(self.average, parameters, 0.5 ** (batch_size / max(half_life, 1e-8)))


class PowerEMA:
    """Average with the profile tau^gamma over training time 0 < tau <= t (Karras et al. 2024, arXiv 2312.02696, Section 3.1).

    beta_t = (1 - 1/t)^(gamma + 1), t counted in steps from 1. The profile's width grows with t: its standard deviation is
    always the share `std` of the training so far, so that early weights fade without a ramp. Two of these with different
    `std`, kept at several times, span a space of profiles, see `reconstruct`.

    Args:
        parameters: name -> parameter. Their present values have no share in the average: beta_1 is 0.
        std: relative width, 0 < std < 0.288.

    Raises:
        RecipeError: std is out of range.
    """

    def __init__(self, parameters: Mapping[str, Tensor], std: float) -> None:
        self.std, self.gamma = std, power_exponent(std)
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Add the parameters after step number `step` (1, 2, ...)."""
        _lerp(self.average, parameters, (1 - 1 / step) ** (self.gamma + 1))


@dataclass(frozen=True)
class Snapshot:
    """A `PowerEMA` as it was after `step` steps.

    Attributes:
        step, std: when, and the relative width of its profile.
        load: returns name -> weights, on the CPU; called only when the snapshot has a share in what is asked for.
    """

    step: int
    std: float
    load: Callable[[], Mapping[str, Tensor]]


def power_exponent(std: float) -> float:
    """gamma of the profile with the relative standard deviation std: std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Raises:
        RecipeError: std is not in (0, 0.288].
    """
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std <= _WIDEST:
        raise RecipeError(f'The relative width std = {std!r} of a power-function average is out of range.', f'Use more than 0 and at most {_WIDEST}.')
    # Multiplied out: gamma^3 + 7 gamma^2 + (16 - 1/std^2) gamma + 12 - 1/std^2 = 0; one root is above 0.
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real.max())


def reconstruction_weights(profiles: Sequence[tuple[float, float]], std: float, step: float | None = None) -> tuple[np.ndarray, float]:
    """Shares of snapshots in the best imitation of another profile (arXiv 2312.02696, Section 3.2).

    The L2 distance between the profiles is made smallest, with the shares summing to 1: a symmetric linear system in the
    inner products of the profiles, which are known in closed form.

    Args:
        profiles: (step, std) of each snapshot.
        std: the wanted relative width.
        step: the step at which the wanted profile ends; default: the last snapshot's. Later snapshots get the share 0.

    Returns: the shares (n,) float64, summing to 1, and the relative L2 distance of the profiles (0: reproduced exactly).

    Raises:
        RecipeError: no snapshots, std out of range, or a step outside the snapshots'.
    """
    if not profiles:
        raise RecipeError('There are no snapshots of power-function averages.', 'Train with power_ema_stds=(0.05, 0.10).')
    steps = np.array([s for s, _ in profiles], dtype=np.float64)
    end = float(steps.max() if step is None else step)
    if not steps.min() <= end <= steps.max():
        raise RecipeError(f'step = {end:g} is outside the snapshots, {steps.min():g} to {steps.max():g}.', 'Choose a step between them.')
    used = steps <= end
    t, gamma = steps[used], np.array([power_exponent(s) for (_, s), u in zip(profiles, used, strict=True) if u])
    t_all, gamma_all = np.append(t, end), np.append(gamma, power_exponent(std))
    gram = _inner(t_all[:, None], gamma_all[:, None], t_all[None], gamma_all[None])
    A, b, c = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
    n, scale = len(t), float(np.diag(A).mean())
    bordered = np.full((n + 1, n + 1), scale)  # the last row and column hold the sum to 1, scaled like the rest
    bordered[:n, :n], bordered[n, n] = A, 0
    x = np.linalg.lstsq(bordered, np.append(b, scale), rcond=1e-13)[0][:n]
    shares = np.zeros(len(profiles))
    shares[used] = x / x.sum()
    x = shares[used]
    return shares, math.sqrt(max(x @ A @ x - 2 * x @ b + c, 0.0) / c)


def reconstruct(snapshots: Sequence[Snapshot], std: float, step: int | None = None) -> dict[str, Tensor]:
    """The weights that a `PowerEMA` of width `std` would hold after `step` steps, though it was never tracked.

    Args:
        snapshots: see `reconstruction_weights`; more of them, and nearer to `step`, make narrow profiles possible.
        std, step: see `reconstruction_weights`.

    Returns: name -> weights, float32 on the CPU.

    Raises:
        RecipeError: see `reconstruction_weights`.
        ModelError: the snapshots cannot imitate the profile.
    """
    shares, error = reconstruction_weights([(s.step, s.std) for s in snapshots], std, step)
    if error > _MOST_ERROR:
        what = f'The {len(snapshots)} snapshots imitate the profile std = {std:g} with an error of {100 * error:.0f} %.'
        raise ModelError(what, 'Ask for a std nearer to the tracked ones, or train with smaller snapshot_steps.')
    total: dict[str, Tensor] = {}
    for share, snapshot in zip(shares.tolist(), snapshots, strict=True):
        if share:
            for name, value in snapshot.load().items():
                term = share * value.double()  # shares of both signs: float32 would lose digits
                total[name] = total[name] + term if name in total else term
    return {name: value.float() for name, value in total.items()}


def _inner(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """Integral of p_a p_b, p = (gamma + 1) tau^gamma / t^(gamma + 1) on (0, t]; written with ratios, which cannot overflow."""
    low, high = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (low / t_a) ** gamma_a * (low / t_b) ** gamma_b / high


@torch.no_grad()
def _lerp(average: Mapping[str, Tensor], parameters: Mapping[str, Tensor], beta: float) -> None:
    """average = beta average + (1 - beta) parameters, in a few kernels for all of them."""
    torch._foreach_lerp_(list(average.values()), [parameters[name] for name in average], 1 - beta)
