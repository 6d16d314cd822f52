"""Guidance: a denoiser whose output is moved by a sum of terms, each with its own weight and interval of noise levels.

D_guided = D + sum_k weight_k delta_k(x; sigma). In EDM coordinates the score is (D - x) / sigma^2 (EDM, eq. 3), so whatever adds
g to the score adds sigma^2 g to D, and every term works with every sampler and every denoiser.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from synthaug_plugins.diffusion.denoiser import Denoiser
from synthaug_plugins.errors import RecipeError


def check_strength(name: str, weight: Any, interval: Any, key: str = 'weight') -> None:
    """Refuse (RecipeError) a weight that is no finite number (nor (B,) of them), and an interval that is reversed, negative or no pair."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    if isinstance(weight, Tensor):
        if weight.ndim != 1 or not bool(torch.isfinite(weight).all()):
            raise RecipeError(f'{name}: {key} = {weight!r} is not one finite number per sample.', 'Give (B,) numbers; between 0 and 4 is usual.')
    elif not number(weight) or not math.isfinite(weight):
        raise RecipeError(f'{name}: {key} = {weight!r} is not a finite number.', 'Between 0 and 4 is usual.')
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(map(number, interval)) or not 0 <= interval[0] <= interval[1]:
        raise RecipeError(f'{name}: interval = {interval!r} is not (lowest sigma, highest sigma).', 'Write for example interval=(0.2, 5).')


@dataclass(frozen=True)
class Term(ABC):
    """One term of `Guided`.

    Args:
        weight: strength: one number, or (B,), one per sample. Where all are 0 the term is never worked out, and a sample of weight 0 is
            never moved. Read once, when `Guided` is made.
        interval: (sigma_lo, sigma_hi); the term acts where sigma_lo <= sigma <= sigma_hi and costs nothing elsewhere. Guidance at
            high noise harms diversity, at low noise it does nothing (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    Raises:
        RecipeError: a weight that is not finite, or an interval that is reversed, negative or no pair.
    """

    differentiates: ClassVar[bool] = False
    """Whether it takes gradients through D itself: then `delta` is given a D with a graph to an x that requires gradients."""

    weight: float | Tensor
    interval: tuple[float, float] = field(default=(0.0, math.inf), kw_only=True)

    def __post_init__(self) -> None:
        check_strength(type(self).__name__, self.weight, self.interval)

    def inside(self, sigma: Tensor) -> Tensor:
        """Whether the term acts at these noise levels: bool, of sigma's shape and device."""
        return (sigma >= self.interval[0]) & (sigma <= self.interval[1])

    def second_cond(self, x: Tensor, cond: Any) -> Any:
        """A condition under which the term needs the same denoiser at the same place too; None where it needs none.

        Where it fits under `cond` (tensors, or mappings of tensors, of equal shapes), one call with twice the rows answers both.
        """
        return None

    def sharing(self, entries: Mapping[str, Any]) -> Term:
        """This term for conditions that hold these entries as well, which say nothing of the class (such as the image that is painted into)."""
        return self

    @abstractmethod
    def delta(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Any, D: Tensor, second: Tensor | None) -> Tensor:
        """What to add to D, before the weight.

        Args:
            denoiser: the unguided one.
            x, sigma, cond: as in `Denoiser.__call__`.
            D: the unguided denoiser's output there, (B, C, H, W); with its graph for a term that `differentiates`.
            second: its output under `second_cond`, (B, C, H, W); None where there is none, or where it did not fit into the same call.

        Returns: (B, C, H, W).
        """


@dataclass(frozen=True)
class ClassifierFree(Term):
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): delta = D(x; sigma, cond) - D(x; sigma, uncond).

    The usual "guidance scale" is 1 + weight: weight 0 is the conditional model, weight 6.5 is a scale of 7.5.

    Args:
        uncond: the condition to move away from: None; a null class index; a tensor with one row or one row per sample; or a
            mapping of these, complete (what the condition shares with it must be in it too). One row stands for the whole batch.
            For our networks None and the index "number of classes" both mean "no label"; the index costs one call with twice the rows,
            None a call of its own.
    """

    uncond: Any = None

    def sharing(self, entries: Mapping[str, Any]) -> Term:
        """See `Term.sharing`: they stand in both conditions.

        Raises:
            RecipeError: the condition to move away from is no mapping.
        """
        if entries and not isinstance(self.uncond, Mapping):
            raise RecipeError(f'ClassifierFree: uncond = {self.uncond!r} cannot share {", ".join(entries)} with the condition.', 'Give a mapping.')
        return replace(self, uncond={**self.uncond, **entries}) if entries else self

    def second_cond(self, x: Tensor, cond: Any) -> Any:
        """See `Term.second_cond`."""
        return _for_batch(self.uncond, x)

    def delta(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Any, D: Tensor, second: Tensor | None) -> Tensor:
        """See `Term.delta`. At most one call of the denoiser.

        Raises:
            RecipeError: cond is None.
        """
        if cond is None:
            raise RecipeError('ClassifierFree guidance was asked for without a condition.', 'Pass cond, or leave the term out.')
        return D - (denoiser(x, sigma, _for_batch(self.uncond, x)).to(D.dtype) if second is None else second)


@dataclass(frozen=True)
class Autoguidance(Term):
    """Autoguidance (Karras et al. 2024, arXiv 2406.02507): delta = D(x; sigma, cond) - D_weak(x; sigma, cond).

    Args:
        weak: a smaller or less trained denoiser of the same images and conditions. The paper's w is 1 + weight.
    """

    weak: Denoiser

    def delta(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Any, D: Tensor, second: Tensor | None) -> Tensor:
        """See `Term.delta`. One call of the weak denoiser."""
        return D - self.weak(x, sigma, cond).to(D.dtype)


class Guided:
    """A denoiser with guidance: D + sum_k weight_k delta_k. Every delta is taken against the same unguided D.

    Args:
        denoiser: the one to guide; `sigma_min`, `sigma_max` and `round_sigma` are its own.
        terms: at least one.

    Raises:
        RecipeError: no terms.
    """

    def __init__(self, denoiser: Denoiser, terms: Sequence[Term]) -> None:
        if not terms:
            raise RecipeError('Guided got no terms.', 'Give at least one, or use the denoiser itself.')
        self.denoiser, self.terms = denoiser, tuple(terms)
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        # Read once: weights that lie on a device would make every call wait for it.
        self._working = [term for term in self.terms if (bool((term.weight != 0).any()) if isinstance(term.weight, Tensor) else term.weight != 0)]

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """See `Denoiser.__call__`. Where no term acts, this is the unguided D to the bit.

        Whether a term runs is read from sigma: at no cost when it is on the CPU (as the sampler's is), else the device is waited
        for. With one sigma per sample a term runs if any sample lies in its interval, and moves only those.

        What classifier-free guidance asks for goes into the same call as D, twice the rows at once: half the launches, which is what
        counts for small batches; large ones cost the same either way.
        """
        acting = [(term, inside) for term in self._working if bool((inside := term.inside(sigma)).any())]
        seconds_wanted = [term.second_cond(x, cond) for term, _ in acting]
        if any(term.differentiates for term, _ in acting):
            # Copies, since tensors that were made in inference mode take no part in gradients.
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x.detach().clone().requires_grad_()
                traced, seconds = self._together(leaf, sigma.clone(), copied(cond), seconds_wanted)
            D, seconds = traced.detach(), [None if second is None else second.detach() for second in seconds]
        else:
            D, seconds = self._together(x, sigma, cond, seconds_wanted)
            leaf, traced = x, D
        guided = D
        for (term, inside), second in zip(acting, seconds, strict=True):
            at, found = (leaf, traced) if term.differentiates else (x, D)
            step, moved = term.delta(self.denoiser, at, sigma, cond, found, second), inside
            if isinstance(term.weight, Tensor):
                step, moved = column(term.weight.to(D.dtype), D) * step, inside & (term.weight.to(x.device) != 0)
            else:
                step = term.weight * step
            if moved.ndim:
                # Chosen, not multiplied: what is not finite outside of the interval must not reach the sum.
                step = torch.where(column(moved, D), step, torch.zeros_like(step))
            guided = guided + step
        return guided

    def _together(self, x: Tensor, sigma: Tensor, cond: Any, second_conds: Sequence[Any]) -> tuple[Tensor, list[Tensor | None]]:
        """D under `cond` and under those other conditions that fit below it, in one call."""
        rows, fits = cond, []
        for second in second_conds:
            taller = None if second is None or cond is None else _below(rows, second)
            fits.append(taller is not None)
            rows = rows if taller is None else taller
        times = 1 + sum(fits)
        if times == 1:
            return self.denoiser(x, sigma, cond), [None] * len(fits)
        D = self.denoiser(torch.cat([x] * times), torch.cat([sigma] * times) if sigma.ndim else sigma, rows)
        first, *others = D.split(len(x))
        return first, [others.pop(0) if fit else None for fit in fits]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """See `Denoiser.round_sigma`."""
        return self.denoiser.round_sigma(sigma)


def copied(cond: Any) -> Any:
    """A condition that may take part in gradients, even where it was made in inference mode."""
    if isinstance(cond, Mapping):
        return {name: copied(value) for name, value in cond.items()}
    with torch.inference_mode(False):
        return cond.clone() if isinstance(cond, Tensor) else cond


def column(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1) on the device of `like`; a 0-dim tensor stays where it is, it meets every device."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.device) if values.ndim else values


def _for_batch(cond: Any, x: Tensor) -> Any:
    """A condition with one row per sample of x: single rows are repeated (without copies), mappings entry by entry."""
    if isinstance(cond, Mapping):
        return {name: _for_batch(value, x) for name, value in cond.items()}
    if isinstance(cond, int):
        return torch.full((len(x),), cond, dtype=torch.int64, device=x.device)
    if isinstance(cond, Tensor) and (cond.ndim == 0 or len(cond) == 1):
        return cond.to(x.device).expand(len(x), *cond.shape[1:])
    return cond


def _below(rows: Any, more: Any) -> Any:
    """Conditions with the rows of `more` below those of `rows`; None where they are of another kind or shape."""
    if isinstance(rows, Mapping) and isinstance(more, Mapping):
        if set(rows) != set(more):
            return None
        both = {name: _below(rows[name], more[name]) for name in rows}
        return None if any(value is None for value in both.values()) else both
    if isinstance(rows, Tensor) and isinstance(more, Tensor) and rows.shape[1:] == more.shape[1:] and rows.dtype == more.dtype:
        return torch.cat([rows, more.to(rows.device)])
    return None
