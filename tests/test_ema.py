"""Averages of weights: half-lives are half-lives, and profiles of other widths come back from snapshots."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.learning.ema import HalfLifeEMA, PowerEMA, Snapshot, power_exponent, reconstruct, reconstruction_weights

STEPS = 400


def path(step: int) -> dict[str, Tensor]:
    """Parameters after a step: a drift, a decaying start and a wobble, as in a training."""
    t = step / STEPS
    return {'a': torch.tensor([t, math.exp(-4 * t), math.sin(12 * t)]), 'b': torch.tensor([[math.sqrt(t)]])}


def tracked(*stds: float, every: int = 20) -> tuple[list[Snapshot], dict[float, PowerEMA]]:
    emas = {std: PowerEMA(path(0), std) for std in stds}
    snapshots = []
    for step in range(1, STEPS + 1):
        for std, ema in emas.items():
            ema.update(path(step), step)
            if step % every == 0:
                copy = {k: v.clone() for k, v in ema.average.items()}
                snapshots.append(Snapshot(step, std, lambda copy=copy: copy))
    return snapshots, emas


def test_half_life_is_the_time_after_which_half_is_left() -> None:
    ema = HalfLifeEMA({'w': torch.ones(1)}, half_life_images=640, ramp=1e9)
    for step in range(1, 11):
        ema.update({'w': torch.zeros(1)}, 64, 64 * step)
    assert float(ema.average['w']) == pytest.approx(0.5, rel=1e-6)


def test_half_life_is_short_at_the_start() -> None:
    ema = HalfLifeEMA({'w': torch.ones(1)}, half_life_images=10**6, ramp=0.05)
    ema.update({'w': torch.zeros(1)}, 64, 64)
    assert float(ema.average['w']) == pytest.approx(0.5**20, rel=1e-3)


def test_average_leaves_the_parameters_alone() -> None:
    parameters = {'w': torch.ones(2)}
    ema = PowerEMA(parameters, 0.1)
    ema.update({'w': torch.zeros(2)}, 1)
    assert parameters['w'].tolist() == [1, 1]
    assert ema.average['w'].tolist() == [0, 0]  # the first step's weights, not the fresh ones


@pytest.mark.parametrize('std', [0.01, 0.05, 0.1, 0.25])
def test_profile_has_the_width_that_was_asked_for(std: float) -> None:
    n = 2000
    ema = PowerEMA({'w': torch.zeros(n, dtype=torch.float64)}, std)
    for step, row in enumerate(torch.eye(n, dtype=torch.float64), 1):
        ema.update({'w': row}, step)
    weights, t = ema.average['w'].numpy(), (np.arange(n) + 0.5) / n
    assert weights.sum() == pytest.approx(1)
    mean = (weights * t).sum()
    assert math.sqrt((weights * (t - mean) ** 2).sum()) == pytest.approx(std, rel=2e-3)
    gamma = power_exponent(std)
    assert std**2 == pytest.approx((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def test_published_exponents() -> None:
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize('std', [0.05, 0.10])
@pytest.mark.parametrize('step', [100, 400])
def test_a_tracked_profile_is_reproduced(std: float, step: int) -> None:
    snapshots, _ = tracked(0.05, 0.10)
    assert reconstruction_weights([(s.step, s.std) for s in snapshots], std, step)[1] < 1e-6
    wanted = next(s for s in snapshots if (s.step, s.std) == (step, std)).load()
    found = reconstruct(snapshots, std, step)
    assert all(torch.allclose(found[k], wanted[k], atol=1e-6) for k in wanted)


@pytest.mark.parametrize(('std', 'most'), [(0.03, 2e-3), (0.07, 2e-4), (0.15, 2e-3), (0.20, 5e-3)])
def test_an_untracked_profile_comes_back_from_snapshots(std: float, most: float) -> None:
    """Errors against a directly tracked average, whose values are of order 1; 20 snapshots of two widths."""
    snapshots, _ = tracked(0.05, 0.10)
    _, direct = tracked(std)
    shares, _ = reconstruction_weights([(s.step, s.std) for s in snapshots], std)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    found, wanted = reconstruct(snapshots, std), direct[std].average
    error = max(float((found[k] - wanted[k]).abs().max()) for k in wanted)
    nearest = min(max(float((s.load()[k] - wanted[k]).abs().max()) for k in wanted) for s in snapshots)
    assert error < most
    assert error < nearest / 5  # far better than taking the nearest snapshot


def test_later_snapshots_have_no_share_in_an_earlier_average() -> None:
    profiles = [(step, 0.1) for step in (100, 200, 300)]
    shares, _ = reconstruction_weights(profiles, 0.08, 200)
    assert shares[2] == 0
    assert shares.sum() == pytest.approx(1)


def test_what_snapshots_cannot_give_is_refused() -> None:
    snapshots, _ = tracked(0.05, 0.10, every=200)
    with pytest.raises(ModelError, match=r'std = 0\.01'):
        reconstruct(snapshots, 0.01)
    with pytest.raises(RecipeError, match='step = 500'):
        reconstruct(snapshots, 0.1, 500)
    with pytest.raises(RecipeError, match='power_ema_stds'):
        reconstruct([], 0.1)
    for std in (0, 0.3, -1, math.nan):
        with pytest.raises(RecipeError, match='std'):
            power_exponent(std)
