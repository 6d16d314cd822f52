"""How real and synthetic images meet in a batch: the modes and their options, checked in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.mixing.partners import PARTNERS
from synthaug_plugins.mixing.schedule import Alpha, alpha_schedule, phase_schedule

MODES = {
    'per_sample': 'each drawn image is synthetic with probability alpha (DA-Fusion, eqs. 7-8); options alpha, partner',
    'per_batch': 'in every batch exactly s of r + s images are synthetic; options ratio=(r, s), partner',
    'two_stream': "to the recipe's batch of real images come s synthetic ones per r real; "
    'loss = mean(real) + synthetic_weight * mean(synthetic) (He et al.); option ratio=(r, s)',
    'concat': 'one set of all real and all synthetic images; an epoch sees each once',
    'phased': 'one after the other; options phases=[(what, epochs), ...] with real, synthetic or mix, alpha, partner',
}
_OPTIONS = {
    'per_sample': ('alpha', 'partner'),
    'per_batch': ('ratio', 'partner'),
    'two_stream': ('ratio',),
    'concat': (),
    'phased': ('phases', 'alpha', 'partner'),
}


@dataclass(frozen=True)
class MixRule:
    """A mode with its options filled in.

    Attributes:
        mode: one of `MODES`.
        alpha: share of synthetic images at an epoch (per_sample, phased).
        partner: one of `PARTNERS`: what may take a real image's place.
        ratio: (r, s), real to synthetic (per_batch, two_stream).
        synthetic_weight: factor on the loss of synthetic images.
    """

    mode: str
    alpha: Callable[[int], float]
    partner: str
    ratio: tuple[int, int]
    synthetic_weight: float

    @property
    def weighs(self) -> bool:
        """Whether samples get loss weights other than 1."""
        return self.mode == 'two_stream' or self.synthetic_weight != 1

    def synthetic_of(self, batch_size: int) -> int:
        """How many synthetic images a batch of `batch_size` holds (per_batch) or gets on top (two_stream).

        Raises:
            RecipeError: the ratio does not come out even.
        """
        r, s = self.ratio
        whole = r + s if self.mode == 'per_batch' else r
        if batch_size * s % whole:
            raise RecipeError(f'ratio = {self.ratio} does not divide a batch of {batch_size}.', f'Use a batch size that is a multiple of {whole}.')
        return batch_size * s // whole


def mix_rule(
    mode: str = 'per_sample',
    alpha: Alpha | None = None,
    partner: str | None = None,
    ratio: Sequence[int] | None = None,
    phases: Sequence[tuple[str, int]] | None = None,
    synthetic_weight: float = 1.0,
) -> MixRule:
    """Check the options of a mode and fill in its defaults: alpha 0.5, partner 'class', ratio (1, 1).

    Raises:
        RecipeError: an unknown mode or partner, an option that the mode does not have, a value out of range.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise RecipeError(f'mode = {mode!r} is unknown.', nearest(str(mode), MODES))
    given: dict[str, Any] = {'alpha': alpha, 'partner': partner, 'ratio': ratio, 'phases': phases}
    for key, value in given.items():
        if value is not None and key not in _OPTIONS[mode]:
            takers = ' or '.join(repr(m) for m in MODES if key in _OPTIONS[m])
            raise RecipeError(f'{key} has no meaning in mode {mode!r}.', f'Remove it, or use mode {takers}.')
    if partner is not None and (not isinstance(partner, str) or partner not in PARTNERS):
        raise RecipeError(f'partner = {partner!r} is unknown.', nearest(str(partner), PARTNERS))
    if isinstance(synthetic_weight, bool) or not isinstance(synthetic_weight, int | float) or not 0 <= synthetic_weight < float('inf'):
        raise RecipeError(f'synthetic_weight = {synthetic_weight!r} is not a weight.', 'Use a number, 0 or more.')
    share: Alpha = 0.5 if alpha is None else alpha
    if mode == 'phased':
        if phases is None:
            raise RecipeError("mode 'phased' needs phases.", "Write phases=[('synthetic', 30), ('real', 30)].")
        at = phase_schedule(phases, share)
    else:
        at = alpha_schedule(share)
    default = 'any' if mode == 'two_stream' else 'class'
    return MixRule(mode, at, partner or default, _ratio((1, 1) if ratio is None else ratio, mode), float(synthetic_weight))


def _ratio(ratio: Sequence[int], mode: str) -> tuple[int, int]:
    wrong = isinstance(ratio, str) or not isinstance(ratio, Sequence) or len(ratio) != 2
    if wrong or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in ratio) or sum(ratio) == 0:
        raise RecipeError(f'ratio = {ratio!r} is not two counts.', 'Write ratio=(real, synthetic), such as (1, 1).')
    r, s = ratio
    if mode == 'two_stream' and r == 0:
        raise RecipeError(f"ratio = {ratio!r}: mode 'two_stream' needs real images.", "Use mode='per_batch' for synthetic images alone.")
    return r, s
