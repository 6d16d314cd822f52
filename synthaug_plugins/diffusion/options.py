"""The options of `sample`: completed, checked and refused in one place, before any model loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from synthaug_plugins.diffusion.grid import DISCRETIZATIONS, sigma_range
from synthaug_plugins.diffusion.presets import PRESETS
from synthaug_plugins.diffusion.schedules import SCALINGS, SCHEDULES
from synthaug_plugins.diffusion.steps import option_levels, plan_steps
from synthaug_plugins.errors import RecipeError, nearest

SOLVERS = ('heun', 'euler', 'dpmpp_2m', 'unipc')
MULTISTEP = ('dpmpp_2m', 'unipc')
DEFAULTS: dict[str, Any] = {
    'num_steps': 18,
    'sigma_min': None,
    'sigma_max': None,
    'rho': 7.0,
    'solver': 'heun',
    'discretization': 'edm',
    'schedule': 'linear',
    'scaling': 'none',
    'epsilon_s': 1e-3,
    'C_1': 0.001,
    'C_2': 0.008,
    'M': 1000,
    'alpha': 1.0,
    'S_churn': 0.0,
    'S_min': 0.0,
    'S_max': math.inf,
    'S_noise': 1.0,
    'eta': 0.0,
    'sigmas': None,
    'first_step': 0,
}
_CHOICES = {'solver': SOLVERS, 'discretization': DISCRETIZATIONS, 'schedule': SCHEDULES, 'scaling': SCALINGS}
_COUNTS = {'num_steps': 1, 'M': 1, 'first_step': 0}
# Lowest and highest value, whether each may be taken, and what works.
_RANGES: dict[str, tuple[float, bool, float, bool, str]] = {
    'rho': (0.5, True, 1000, True, 'Use 7; 5 to 10 works.'),
    'epsilon_s': (0, False, 1, False, 'Use 0.001.'),
    'C_1': (0, False, 1, False, 'Use 0.001.'),
    'C_2': (0, True, math.inf, False, 'Use 0.008.'),
    'alpha': (0, False, math.inf, False, 'Use 1 (Heun), 2/3 (Ralston) or 0.5 (midpoint).'),
    'S_churn': (0, True, math.inf, False, 'Use 0 for no fresh noise.'),
    'S_min': (0, True, math.inf, False, 'Use 0 or more.'),
    'S_max': (0, True, math.inf, True, 'Use 0 or more.'),
    'S_noise': (0, True, math.inf, False, 'Use 1; 1.003 to 1.007 works.'),
    'eta': (0, True, 1, True, 'Use 0 for the ODE (DDIM), 1 for the noise of DDPM.'),
}


def sampler_options(
    options: Mapping[str, Any],
    supported_min: float = 0.0,
    supported_max: float = math.inf,
    round_sigma: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """Every option of `sample`, explicit and checked, from those that a user gave. Idempotent.

    Args:
        options: any of the options of `sample`, and `preset`: a name of `PRESETS`, whose options hold unless given here.
        supported_min, supported_max: the noise levels that the model supports; the range is cut to them.
        round_sigma: of the model, see `Denoiser`: a step that its few levels forbid is refused here too.

    Returns: all keys of `DEFAULTS`: plain numbers and words, `sigmas` a list or None.

    Raises:
        RecipeError: an unknown key, a value of the wrong kind or out of range, or options that do not go together.
    """
    if not isinstance(options, Mapping):
        raise RecipeError(f'The sampler options are {options!r}.', 'Write them as dict(num_steps=18, ...).')
    given = {**_preset(options), **{k: v for k, v in options.items() if k != 'preset'}}
    for key in given:
        if key not in DEFAULTS:
            raise RecipeError(f'The sampler has no option {key!r}.', nearest(str(key), [*DEFAULTS, 'preset']))
    o = {key: _plain(key, value) for key, value in {**DEFAULTS, **given}.items()}
    if o['sigmas'] is not None:
        _check_sigmas(o, given, supported_min, supported_max)
    else:
        o['sigma_min'], o['sigma_max'] = sigma_range(supported_min, supported_max, o['sigma_min'], o['sigma_max'], o['discretization'], o['epsilon_s'])
    if o['first_step'] >= o['num_steps']:
        raise RecipeError(f'first_step = {o["first_step"]} is outside [0, {o["num_steps"] - 1}].', 'At least one step must run.')
    if o['S_min'] > o['S_max']:
        raise RecipeError(f'S_min = {o["S_min"]:g} is above S_max = {o["S_max"]:g}.', 'Exchange them.')
    if o['solver'] != 'heun' and o['alpha'] != 1:
        raise RecipeError(f'alpha = {o["alpha"]:g} has no meaning with solver = {o["solver"]!r}.', "Use solver = 'heun'.")
    if o['eta'] > 0:
        _check_eta(o)
    if o['solver'] in MULTISTEP:
        for key in ('schedule', 'scaling', 'S_churn'):
            if o[key] != DEFAULTS[key]:
                raise RecipeError(f'solver = {o["solver"]!r} does not take {key} = {o[key]!r}.', f"Leave out {key}, or use solver = 'heun' or 'euler'.")
        if not bool((option_levels(o, round_sigma).diff() < 0).all()):
            raise RecipeError(
                f'solver = {o["solver"]!r} visits a noise level twice, since the model knows few.', "Use fewer steps, or discretization = 'iddpm'."
            )
    plan_steps(o, round_sigma)
    return o


def nfe(options: Mapping[str, Any]) -> int:
    """Network calls per image ("number of function evaluations") of options of `sample`, guidance not counted.

    2 n - 1 for 'heun', n for the others, with n = num_steps - first_step.
    """
    o = sampler_options(options)
    n = int(o['num_steps'] - o['first_step'])
    return 2 * n - 1 if o['solver'] == 'heun' else n


def _preset(options: Mapping[str, Any]) -> Mapping[str, Any]:
    name = options.get('preset')
    if name is None:
        return {}
    if str(name) not in PRESETS:
        raise RecipeError(f'The sampler has no preset {name!r}.', nearest(str(name), PRESETS))
    return PRESETS[name].options


def _plain(key: str, value: Any) -> Any:
    """The value as a plain int, float, str or list of floats, within its range."""
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise RecipeError(f'{key} = {value!r} is unknown.', nearest(str(value), _CHOICES[key]))
        return value
    if key in _COUNTS:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < _COUNTS[key]:
            raise RecipeError(f'{key} = {value!r} is not a whole number of {_COUNTS[key]} or more.', f'The default is {DEFAULTS[key]}.')
        return int(value)
    if key in ('sigma_min', 'sigma_max'):
        return None if value is None else _number(key, value)
    if key == 'sigmas':
        return None if value is None else [_number('sigmas', v) for v in _iterate(value)]
    number = _number(key, value)
    low, with_low, high, with_high, cure = _RANGES[key]
    if not (low < number < high or (with_low and number == low) or (with_high and number == high)):
        raise RecipeError(f'{key} = {number:g} is outside {"[" if with_low else "("}{low:g}, {high:g}{"]" if with_high else ")"}.', cure)
    return number


def _check_eta(o: Mapping[str, Any]) -> None:
    """Ancestral noise is worked out for Euler's step in sigma; together with churn one draw would serve twice."""
    for key, wanted in (('solver', 'euler'), ('schedule', 'linear'), ('scaling', 'none'), ('S_churn', 0.0)):
        if o[key] != wanted:
            raise RecipeError(f'eta = {o["eta"]:g} does not go with {key} = {o[key]!r}.', f'Use {key} = {wanted!r}, or eta = 0.')


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise RecipeError(f'{key} = {value!r} is not a number.', 'Give a plain number.')
    return float(value)


def _iterate(value: Any) -> list[Any]:
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not value:
        raise RecipeError(f'sigmas = {value!r} is not a list of noise levels.', 'Give them from the highest to the lowest, without the final 0.')
    return list(value)


def _check_sigmas(o: dict[str, Any], given: Mapping[str, Any], supported_min: float, supported_max: float) -> None:
    """Explicit noise levels: falling, positive, supported; the options that they replace are set to agree with them."""
    sigmas = o['sigmas']
    for i, sigma in enumerate(sigmas):
        if not 0 < sigma < (sigmas[i - 1] if i else math.inf):
            raise RecipeError(
                f'sigmas[{i}] = {sigma:g} is not positive and below the one before.', 'Give them from the highest to the lowest, without a final 0.'
            )
        # The ends of a model's table may come back from float32.
        if not supported_min * (1 - 1e-6) <= sigma <= supported_max * (1 + 1e-6):
            raise RecipeError(f'sigmas[{i}] = {sigma:g} is outside what the model supports.', f'It supports {supported_min:g} to {supported_max:g}.')
    for key, value in (('num_steps', len(sigmas)), ('sigma_min', sigmas[-1]), ('sigma_max', sigmas[0])):
        if given.get(key) is not None and o[key] != value:
            raise RecipeError(f'{key} = {o[key]:g} contradicts sigmas, which says {value:g}.', f'Leave out {key} or sigmas.')
        o[key] = value
