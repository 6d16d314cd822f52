"""How far a variant may go from its real image: a noise level to begin at, said in one of four ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.models.base import Model

# He et al. (ICLR 2023), section 4.2: of T = 100 steps the last t* run, by the number of real images per class.
T_STAR = {16: 15, 8: 20, 4: 35, 2: 40, 1: 50}
STRENGTH_MAPS = ('paper', 'snr_matched')


@dataclass(frozen=True)
class Strength:
    """How far from the real image.

    Attributes:
        sampler: all options of `diffusion.sample`.
        params: what is recorded of it: `sigma`, the noise level at the start, rounded as the model rounds it, and `t0` or `strength`
            where the recipe said so.
    """

    sampler: Mapping[str, Any]
    params: Mapping[str, float]


def t_star(shots: int) -> int:
    """t* of the nearest number of shots in He et al.'s table, by ratio: 3 shots are taken as 4, 100 as 16."""
    return T_STAR[min(T_STAR, key=lambda known: abs(math.log(known / shots)))]


def snr_matched_sigma(t: int) -> float:
    """The noise level at which He et al.'s GLIDE begins with t of its 100 steps to go: sigma = sqrt(1 - alpha_bar) / sqrt(alpha_bar).

    GLIDE was trained with T = 1000 and the cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17): alpha_bar_k =
    f(k + 1) / f(0), f(k) = cos^2((k / T + 0.008) / 1.008 * pi / 2). Its 100 steps visit evenly spaced timesteps k, rounded. It is the level of
    `diffusion.minority.timestep_sigma(t - 1, 100, 'cosine')` but for the last bits, which the fingerprints of stores hold.
    """

    def f(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    k = round((t - 1) * 999 / 99)
    alpha_bar = f((k + 1) / 1000) / f(0)
    return math.sqrt((1 - alpha_bar) / alpha_bar)


class Strengths:
    """Turns what a recipe says into strengths of one model and one full grid of noise levels.

    Args:
        model: whose `sigma_range` and `round_sigma` count.
        sampler: all options of `diffusion.sample` for the full grid.
    """

    def __init__(self, model: Model, sampler: Mapping[str, Any]) -> None:
        self.model, self.sampler, self.num_steps = model, sampler, int(sampler['num_steps'])

    def by_sigma(self, sigma: float) -> Strength:
        """Begin exactly at sigma, with as many steps as the full grid spends below.

        Raises:
            RecipeError: outside of the grid.
        """
        from synthaug_plugins.diffusion.steps import option_levels

        listed = self.sampler['sigmas'] is not None
        # A list of levels says nothing of those below its last: the model may begin there, too, with one step.
        low, high = self.model.sigma_range[0] if listed else self.sampler['sigma_min'], self.sampler['sigma_max']
        if not low < sigma <= high:
            raise RecipeError(f'sigma = {sigma:g} is outside ({low:g}, {high:g}].', 'Between 0.1 and 1 is usual.')
        below = [level for level in option_levels(self.sampler).tolist() if level < sigma * (1 - 1e-9)]
        changes: dict[str, Any] = {'num_steps': len(below) + 1, 'sigma_max': sigma}
        if listed:
            changes |= {'sigmas': [sigma, *below], 'sigma_min': [sigma, *below][-1]}
        return self._strength(changes, sigma=sigma)

    def by_t0(self, t0: float) -> Strength:
        """Run that share of the steps, at least one.

        Raises:
            RecipeError: outside (0, 1].
        """
        if not 0 < t0 <= 1:
            raise RecipeError(f't0 = {t0:g} is outside (0, 1].', 'It is the share of the steps that run.')
        n = self.num_steps
        return self._strength({'first_step': n - max(1, math.floor(t0 * n + 0.5))}, t0=t0)

    def by_strength(self, strength: float, called: str = 'strength') -> Strength:
        """Run the last int(num_steps * strength) steps, as the img2img pipelines of diffusers do.

        Args:
            called: what the recipe calls it, for messages and `Strength.params`.

        Raises:
            RecipeError: outside (0, 1], or no step would run.
        """
        n = self.num_steps
        if not 0 < strength <= 1:
            raise RecipeError(f'{called} = {strength:g} is outside (0, 1].', '0.2 to 0.6 is usual.')
        if not int(n * strength):
            raise RecipeError(f'{called} = {strength:g} of {n} steps runs none.', f'Use {1 / n:g} or more, or more steps.')
        return self._strength({'first_step': n - int(n * strength)}, **{called: strength})

    def by_shots(self, shots: int, strength_map: str) -> Strength:
        """What He et al. took for that many real images per class.

        Args:
            shots: 1 or more, see `t_star`.
            strength_map: 'paper': t* / 100 of the steps run. 'snr_matched': begin where the noise drowns the image as much as in the
                paper. The two differ widely, since GLIDE's schedule is not that of latent models: for Stable Diffusion 1 the
                signal-to-noise ratio of 16 shots is that of timestep 55 of 1000, while the share is 0.15.
        """
        return self.by_t0(t_star(shots) / 100) if strength_map == 'paper' else self.by_sigma(snr_matched_sigma(t_star(shots)))

    def _strength(self, changes: Mapping[str, Any], **said: float) -> Strength:
        """The full grid's options with these changes, checked now: a churn window may lie above the start."""
        from synthaug_plugins.diffusion import sampler_options
        from synthaug_plugins.diffusion.steps import option_levels

        churn = self.sampler['S_churn'] * changes.get('num_steps', self.sampler['num_steps']) / self.sampler['num_steps']
        options = sampler_options({**self.sampler, **changes, 'S_churn': churn}, *self.model.sigma_range, self.model.round_sigma)
        start = float(option_levels(options, self.model.round_sigma)[options['first_step']])
        # The recipe's own number, not one that differs in its last digit; another only where the model knows but some levels.
        return Strength(options, {'sigma': start} | {k: v for k, v in said.items() if k != 'sigma' or math.isclose(v, start)})


def check_shots(shots: Any, strength_map: Any) -> None:
    """Refuse (RecipeError) a number of shots or a map that nobody knows."""
    if shots != 'auto' and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 1):
        raise RecipeError(f'shots = {shots!r} is no number of images per class.', "Give 1 to 16, or 'auto' to count them.")
    if strength_map not in STRENGTH_MAPS:
        raise RecipeError(f'strength_map = {strength_map!r} is unknown.', nearest(str(strength_map), STRENGTH_MAPS))


def numbers(key: str, value: float | Sequence[float]) -> list[float]:
    """One number or a list of them, as a list of distinct floats.

    Raises:
        RecipeError: no number, an empty list, or one that repeats a value.
    """
    values: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float):
            raise RecipeError(f'{key} = {value!r} holds {v!r}, which is no number.', 'Give a number or a list of numbers.')
    if not values or len(set(values)) < len(values):
        raise RecipeError(f'{key} = {value!r} is empty or repeats a value.', 'Name each value once.')
    return [float(v) for v in values]
