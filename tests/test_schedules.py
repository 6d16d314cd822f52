"""Schedules, scalings, grids and the table of discrete models: inverses, derivatives, ends, exactness."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from synthaug_plugins.diffusion import edm_sigmas, iddpm_table, nearest_sigma, noise_levels
from synthaug_plugins.diffusion.schedules import FlowSchedule, LinearSchedule, Schedule, VESchedule, VPSchedule, scale
from synthaug_plugins.errors import RecipeError

SIGMAS = torch.logspace(-3, 2, 41, dtype=torch.float64)
SCHEDULES: list[Schedule] = [
    VPSchedule(),
    VPSchedule.through(0.002, 80, 1e-3),
    VPSchedule.through(0.5, 80, 1e-1),
    VESchedule(),
    LinearSchedule(),
    FlowSchedule(),
]


@pytest.mark.parametrize('schedule', SCHEDULES, ids=lambda s: type(s).__name__)
def test_time_is_the_inverse_and_the_derivative_is_one(schedule: Schedule) -> None:
    t = schedule.time(SIGMAS)
    torch.testing.assert_close(schedule.sigma(t), SIGMAS, rtol=1e-10, atol=0)
    t = t.clone().requires_grad_()
    schedule.sigma(t).sum().backward()
    torch.testing.assert_close(schedule.derivative(t.detach()), t.grad, rtol=1e-9, atol=0)


@pytest.mark.parametrize('scaling', ['none', 'vp', 'flow'])
def test_scaling_and_its_derivative(scaling: str) -> None:
    sigma = SIGMAS.clone().requires_grad_()
    s, slope = scale(scaling, sigma)
    torch.testing.assert_close(slope, torch.autograd.grad(s.log().sum(), sigma, allow_unused=True)[0] if scaling != 'none' else torch.zeros_like(SIGMAS))
    assert float(scale(scaling, torch.zeros(()))[0]) == 1


def test_published_ranges_are_met() -> None:
    vp = VPSchedule()
    assert float(vp.sigma(torch.tensor(1e-3, dtype=torch.float64))) == pytest.approx(0.010486, rel=1e-4)
    assert float(vp.sigma(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(152.17, rel=1e-4)
    table = iddpm_table()
    assert [float(table[j]) for j in (0, 1, 7, 8, 9, 1000)] == pytest.approx([20291.2, 641.66, 91.66, 80.204, 71.291, 0], rel=1e-4)


def test_small_noise_levels_keep_their_digits() -> None:
    """sigma(t) for t -> 0 is sqrt(beta_min t): log and exp without 1p and m1 would lose half of the digits."""
    t = torch.tensor(1e-14, dtype=torch.float64)
    assert float(VPSchedule().sigma(t)) == pytest.approx(math.sqrt(0.1 * 1e-14), rel=1e-9)
    assert float(VPSchedule().time(VPSchedule().sigma(t))) == pytest.approx(1e-14, rel=1e-9)


def test_table_is_the_recursion_in_exact_arithmetic() -> None:
    """u_{j-1}^2 + 1 = (u_j^2 + 1) / max(abar_{j-1} / abar_j, C_1), with fractions in place of float64, abar to 17 digits."""
    M, C_1, C_2 = 60, 0.3, 0.008
    abar = [Fraction(math.sin(math.pi / 2 * j / (M * (C_2 + 1)))) ** 2 for j in range(M + 1)]
    squares = [Fraction(0)]
    for j in range(M, 0, -1):
        squares.append((squares[-1] + 1) / max(abar[j - 1] / abar[j], Fraction(C_1)) - 1)
    assert iddpm_table(M, C_1, C_2).tolist() == pytest.approx([math.sqrt(u) for u in reversed(squares)], rel=1e-11)


def test_grids_have_their_ends_and_fall() -> None:
    for discretization in ('edm', 'vp', 've', 'iddpm'):
        for n in (1, 2, 3, 50):
            levels = noise_levels(discretization, n, 0.01, 90.0)
            assert len(levels) == n
            assert torch.isfinite(levels).all()
            assert (levels[1:] < levels[:-1]).all()
            if discretization != 'iddpm':
                assert float(levels[0]) == pytest.approx(90)
                assert n == 1 or float(levels[-1]) == pytest.approx(0.01)
    assert edm_sigmas(1).tolist() == pytest.approx([80, 0])


def test_iddpm_grid_rounds_half_to_even_and_needs_entries() -> None:
    table = iddpm_table(M=10)
    inside = table[(table >= 0.1) & (table <= 5)]
    n = len(inside)
    assert noise_levels('iddpm', n, 0.1, 5, M=10).tolist() == inside.tolist()
    index = [round((n - 1) / 2 * i) for i in range(3)]
    assert noise_levels('iddpm', 3, 0.1, 5, M=10).tolist() == inside[index].tolist()
    with pytest.raises(RecipeError, match=f'{n} noise levels'):
        noise_levels('iddpm', n + 1, 0.1, 5, M=10)


def test_nearest_entry_is_exact_and_of_two_the_larger() -> None:
    table = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    sigma = torch.tensor([[100.0, 6.0, 5.9999999], [3.0, 2.9999999, 0.0]], dtype=torch.float64)
    values, index = nearest_sigma(table, sigma)
    assert index.tolist() == [[0, 0, 1], [1, 2, 3]]
    assert torch.equal(values, table[index])
    assert nearest_sigma(table, torch.tensor(1.4, dtype=torch.float64))[1].item() == 3
    probes = torch.logspace(-3, 5, 4001, dtype=torch.float64)
    u = iddpm_table()
    assert torch.equal(nearest_sigma(u, probes)[1], (probes[:, None] - u).abs().argmin(1))


@pytest.mark.parametrize(('k', 'options'), [(0, {}), (1, {'M': 500}), (2, {'C_2': 0.02})])
def test_table_and_rounding_agree_with_the_reference(shared: Path, k: int, options: dict[str, float]) -> None:
    """The reference table comes from float32 cosines: up to 5e-4 off; rounding is compared on its own table, exactly."""
    arrays = np.load(shared / 'golden' / 'misc.npz')
    u = torch.from_numpy(arrays[f'u{k}']).double()
    ours = iddpm_table(**options)
    torch.testing.assert_close(ours[:-1], u[:-1], rtol=1e-3, atol=0)
    assert float(ours[-1]) == float(u[-1]) == 0
    values, index = nearest_sigma(u, torch.from_numpy(arrays[f'round_in{k}']))
    assert torch.equal(index, torch.from_numpy(arrays[f'round_idx{k}']))
    assert torch.equal(values, torch.from_numpy(arrays[f'round_out{k}']))
