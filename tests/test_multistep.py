"""DPM-Solver++(2M) and UniPC on this package's grid: order, and agreement with diffusers' own pipelines of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mixture import small_mixture
from torch import Tensor, nn

from synthaug_plugins.diffusion import CallCounter, EDMPrecond, IDDPMPrecond, sample, sampler_options
from synthaug_plugins.errors import RecipeError


def latents() -> Tensor:
    return torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope='module')
def fine() -> Tensor:
    return state_before_last(2000, 'heun')


def state_before_last(num_steps: int, solver: str) -> Tensor:
    states: list[Tensor] = []
    sample(small_mixture(), latents(), num_steps=num_steps, sigma_min=0.1, sigma_max=10, solver=solver, callback=lambda i, x, d: states.append(x))
    return states[-2]


@pytest.mark.parametrize(('solver', 'order'), [('dpmpp_2m', 2), ('unipc', 3)])
def test_multistep_solver_has_its_order_of_convergence(solver: str, order: int, fine: Tensor) -> None:
    """Before the last step, which is of order 1. UniPC of order 2 gains one by its corrector."""
    errors = [float((state_before_last(n, solver) - fine).abs().max()) for n in (32, 64, 128)]
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([order, order], abs=0.25)


@pytest.mark.parametrize('num_steps', [5, 18])
def test_dpmpp_2m_is_the_edm_scheduler_of_diffusers(num_steps: int) -> None:
    """diffusers' own solver in EDM coordinates, given a raw network instead of D; it keeps its noise levels in float32."""
    from diffusers import EDMDPMSolverMultistepScheduler

    torch.manual_seed(0)
    network = Conv()
    z = latents()
    x = sample(EDMPrecond(network), z, num_steps=num_steps, solver='dpmpp_2m')
    scheduler = EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.5)
    scheduler.set_timesteps(num_steps)
    theirs = 80 * z
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(theirs, t).float(), t.expand(len(z)), None)
        theirs = scheduler.step(out.detach(), t, theirs).prev_sample
    assert float((x - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize('solver', ['dpmpp_2m', 'unipc'])
def test_solver_is_the_scheduler_of_diffusers_at_the_same_noise_levels(solver: str) -> None:
    """A whole chain of the scheduler's public `step` in its own coordinates; DPM-Solver++ rounds its state to float32 there."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    scheduler = {'dpmpp_2m': DPMSolverMultistepScheduler, 'unipc': UniPCMultistepScheduler}[solver](prediction_type='sample', use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    sigmas, z = scheduler.sigmas.double(), latents()
    state = z * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    for sigma, t in zip(sigmas, range(10), strict=False):
        scheduler._step_index = t
        state = scheduler.step(small_mixture()(state * (1 + sigma**2).sqrt(), sigma), t, state).prev_sample
    x = sample(small_mixture(), z, sigmas=sigmas[:-1], solver=solver)
    torch.testing.assert_close(x, state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('solver', ['dpmpp_2m', 'unipc'])
def test_multistep_solver_costs_one_call_per_step(solver: str) -> None:
    for num_steps in (1, 2, 30):
        denoiser = CallCounter(small_mixture())
        assert torch.isfinite(sample(denoiser, latents(), num_steps=num_steps, solver=solver)).all()
        assert denoiser.calls == num_steps


def test_noise_levels_that_a_discrete_model_merges_are_refused() -> None:
    denoiser = IDDPMPrecond(Conv(), M=20)
    with pytest.raises(RecipeError, match='twice'):
        sample(denoiser, latents(), num_steps=18, solver='dpmpp_2m')
    with pytest.raises(RecipeError, match='twice'):
        sampler_options({'solver': 'dpmpp_2m'}, denoiser.sigma_min, denoiser.sigma_max, denoiser.round_sigma)
    assert torch.isfinite(sample(denoiser, latents(), num_steps=18)).all()


def test_multistep_solver_beats_euler_at_equal_cost() -> None:
    exact = sample(small_mixture(), latents(), num_steps=500)
    error = {s: float((sample(small_mixture(), latents(), num_steps=30, solver=s) - exact).abs().max()) for s in ('euler', 'dpmpp_2m', 'unipc')}
    assert error['dpmpp_2m'] < error['euler'] / 2
    assert error['unipc'] < error['euler'] / 2


class Conv(nn.Module):
    """A raw network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        return self.conv(x) + 0.1 * c_noise.to(x)[:, None, None, None].tanh()
