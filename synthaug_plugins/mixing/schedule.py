"""The share of synthetic images over the course of training: alpha as a function of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest

Alpha = float | Sequence[tuple[int, float]] | Mapping[str, Any]
PHASES = ('real', 'synthetic', 'mix')
_RAMP_KEYS = ('start', 'end', 'begin', 'end_epoch', 'shape')


def _share(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RecipeError(f'{key} = {value!r} is not a share.', 'Use a number from 0 (real images only) to 1 (synthetic images only).')
    return float(value)


def _epoch(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RecipeError(f'{key} = {value!r} is not an epoch.', 'Use a whole number, 0 or more; the first epoch is 0.')
    return value


def alpha_schedule(alpha: Alpha) -> Callable[[int], float]:
    """alpha(epoch), epochs counted from 0, constant within an epoch.

    Args:
        alpha: a number; or steps `[(0, 0.0), (10, 0.5)]`, each value from its epoch on; or a ramp
            `dict(start=0.0, end=0.5, begin=0, end_epoch=30, shape='linear')` (or 'cosine') that stays at `start` up to
            epoch `begin` and at `end` from `end_epoch` on.

    Raises:
        RecipeError: a share outside [0, 1], epochs out of order, an unknown key or shape.
    """
    if isinstance(alpha, Mapping):
        return _ramp(alpha)
    if isinstance(alpha, Sequence) and not isinstance(alpha, str):
        return _steps(alpha)
    value = _share(alpha, 'alpha')
    return lambda epoch: value


def _steps(alpha: Sequence[tuple[int, float]]) -> Callable[[int], float]:
    if not alpha or any(isinstance(p, str) or not isinstance(p, Sequence) or len(p) != 2 for p in alpha):
        raise RecipeError(f'alpha = {alpha!r} is not a list of (epoch, share) pairs.', 'Write it like [(0, 0.0), (10, 0.5)].')
    epochs = [_epoch(e, 'alpha: epoch') for e, _ in alpha]
    shares = [_share(a, 'alpha') for _, a in alpha]
    if epochs[0] != 0 or sorted(set(epochs)) != epochs:
        raise RecipeError(f'alpha: the epochs {epochs} do not start at 0 or do not rise.', 'Write it like [(0, 0.0), (10, 0.5)].')

    def at(epoch: int) -> float:
        return next(a for e, a in zip(reversed(epochs), reversed(shares), strict=True) if epoch >= e)

    return at


def _ramp(alpha: Mapping[str, Any]) -> Callable[[int], float]:
    for key in alpha:
        if key not in _RAMP_KEYS:
            raise RecipeError(f'alpha has no key {key!r}.', nearest(key, _RAMP_KEYS))
    missing = [key for key in ('start', 'end', 'end_epoch') if key not in alpha]
    if missing:
        raise RecipeError(f'alpha lacks {", ".join(missing)}.', "Write it like dict(start=0.0, end=0.5, end_epoch=30, shape='linear').")
    a, b = _share(alpha['start'], 'alpha.start'), _share(alpha['end'], 'alpha.end')
    begin, until = _epoch(alpha.get('begin', 0), 'alpha.begin'), _epoch(alpha['end_epoch'], 'alpha.end_epoch')
    shape = alpha.get('shape', 'linear')
    if shape not in ('linear', 'cosine'):
        raise RecipeError(f'alpha.shape = {shape!r} is unknown.', nearest(str(shape), ('linear', 'cosine')))
    if until <= begin:
        raise RecipeError(f'alpha: end_epoch = {until} does not come after begin = {begin}.', 'Let the ramp last at least one epoch.')

    def at(epoch: int) -> float:
        x = min(max((epoch - begin) / (until - begin), 0.0), 1.0)
        return a + (b - a) * (x if shape == 'linear' else 0.5 - 0.5 * math.cos(math.pi * x))

    return at


def phase_schedule(phases: Sequence[tuple[str, int]], alpha: Alpha) -> Callable[[int], float]:
    """alpha(epoch) of a phased run: 0 in a 'real' phase, 1 in a 'synthetic' one, `alpha` in a 'mix' one.

    Args:
        phases: `[('synthetic', 30), ('real', 30)]`: what, and for how many epochs. The last one goes on if training does.
        alpha: the share in 'mix' phases, as in `alpha_schedule`; its epochs count from the start of training.

    Raises:
        RecipeError: no phases, an unknown name, or a length below 1.
    """
    example = "Write it like [('synthetic', 30), ('real', 30)]."
    if not phases or isinstance(phases, str) or any(isinstance(p, str) or not isinstance(p, Sequence) or len(p) != 2 for p in phases):
        raise RecipeError(f'phases = {phases!r} is not a list of (what, epochs) pairs.', example)
    within = alpha_schedule(alpha)
    ends: list[tuple[int, str]] = []
    for what, epochs in phases:
        if what not in PHASES:
            raise RecipeError(f'phases: {what!r} is unknown.', nearest(str(what), PHASES))
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise RecipeError(f'phases: {what!r} lasts {epochs!r} epochs.', example)
        ends.append(((ends[-1][0] if ends else 0) + epochs, what))

    def at(epoch: int) -> float:
        what = next((w for end, w in ends if epoch < end), ends[-1][1])
        return {'real': 0.0, 'synthetic': 1.0}.get(what, within(epoch))

    return at
