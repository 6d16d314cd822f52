"""The samplers: reference outputs, order of convergence, and what they promise about noise, starts and callbacks."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixture import small_mixture
from torch import Tensor, nn

from synthaug_plugins.diffusion import (
    CallCounter,
    Denoiser,
    EDMPrecond,
    GaussianMixture,
    IDDPMPrecond,
    Precond,
    SampleNoise,
    VEPrecond,
    VPPrecond,
    edm_sigmas,
    sample,
    sampler_options,
)
from synthaug_plugins.diffusion.steps import plan_steps
from synthaug_plugins.errors import RecipeError


def latents(seed: int = 0, shape: tuple[int, ...] = (3, 2, 4, 4)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: float = 0.3, std: float = 0.5) -> GaussianMixture:
    """One Gaussian: the flow of its ODE is known."""
    return GaussianMixture(torch.ones(1), torch.full((1, 2, 4, 4), mean), torch.tensor([std]))


def flow(x: Tensor, sigma: float, to: float, mean: float = 0.3, std: float = 0.5) -> Tensor:
    """Exact solution of the probability-flow ODE of `gaussian`: distances to the mean shrink as the total standard deviation does."""
    return mean + (x - mean) * math.sqrt((std**2 + to**2) / (std**2 + sigma**2))


def before_last(denoiser: Denoiser, z: Tensor, **options: Any) -> Tensor:
    """The state before the last step, which is Euler's by definition and would hide a higher order."""
    states: list[Tensor] = []
    sample(denoiser, z, callback=lambda i, x, d: states.append(x), **options)
    return states[-2]


COORDINATES = [('linear', 'none'), ('ve', 'none'), ('vp', 'vp'), ('flow', 'flow'), ('vp', 'flow')]


@pytest.fixture(scope='module')
def fine() -> Tensor:
    return before_last(small_mixture(), latents(), num_steps=1000, solver='unipc', sigma_min=0.1, sigma_max=10)


@pytest.mark.parametrize(('schedule', 'scaling'), COORDINATES)
@pytest.mark.parametrize(('solver', 'alpha', 'order'), [('euler', 1, 1), ('heun', 1, 2), ('heun', 0.5, 2), ('heun', 2 / 3, 2)])
def test_solver_has_its_order_of_convergence_in_every_schedule(solver: str, alpha: float, order: int, schedule: str, scaling: str, fine: Tensor) -> None:
    options: dict[str, Any] = {'solver': solver, 'alpha': alpha, 'schedule': schedule, 'scaling': scaling, 'sigma_min': 0.1, 'sigma_max': 10}
    steps = {1: (128, 256, 512), 2: (64, 128, 256)}[order]  # from which on the leading term of the error is nearly all of it
    errors = [float((before_last(small_mixture(), latents(), num_steps=n, **options) - fine).abs().max()) for n in steps]
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([order, order], abs=0.2)


def test_closed_form_solution_is_found() -> None:
    x = before_last(gaussian(), latents(), num_steps=400, sigma_min=0.1, sigma_max=10)
    assert float((x - flow(10 * latents(), 10, 0.1)).abs().max()) < 1e-4


def test_all_solvers_and_schedules_find_the_same_image() -> None:
    denoiser, z = small_mixture(), latents()
    fine = sample(denoiser, z, num_steps=400, sigma_min=0.01)
    for schedule, scaling in COORDINATES:
        assert float((sample(denoiser, z, num_steps=150, sigma_min=0.01, schedule=schedule, scaling=scaling) - fine).abs().max()) < 0.01
    for solver in ('dpmpp_2m', 'unipc'):
        assert float((sample(denoiser, z, num_steps=150, sigma_min=0.01, solver=solver) - fine).abs().max()) < 0.01


def test_euler_does_not_depend_on_the_flow_coordinates() -> None:
    """Euler of flow matching is DDIM: the same points on the way, to the last bits."""
    z, options = latents(), {'solver': 'euler', 'num_steps': 12}
    x = sample(small_mixture(), z, **options)
    torch.testing.assert_close(sample(small_mixture(), z, schedule='flow', scaling='flow', **options), x, rtol=1e-11, atol=1e-11)


def test_euler_in_flow_coordinates_is_the_step_of_flow_matching() -> None:
    """x_f = (1 - t) y + t n moves along u = (x_f - D) / t."""
    denoiser, z = small_mixture(), latents()
    sigmas = [20.0, 3.0, 0.5, 0.1]
    x = sample(denoiser, z, sigmas=sigmas, solver='euler', schedule='flow', scaling='flow')
    t = [s / (1 + s) for s in sigmas] + [0.0]
    x_f = t[0] * z
    for now, after in itertools.pairwise(t):
        D = denoiser(x_f / (1 - now), torch.tensor(now / (1 - now), dtype=torch.float64))
        x_f = x_f + (after - now) * (x_f - D) / now
    torch.testing.assert_close(x, x_f, rtol=1e-11, atol=1e-11)


def test_skipped_steps_cost_nothing() -> None:
    denoiser = CallCounter(gaussian())
    sample(denoiser, latents(), start=torch.zeros(3, 2, 4, 4), first_step=10)
    assert (denoiser.calls, denoiser.images) == (2 * 8 - 1, 3 * (2 * 8 - 1))


def test_the_work_of_a_network_is_counted_and_changes_no_bit() -> None:
    network = nn.Conv2d(2, 2, 3, padding=1)

    class Convolving:
        sigma_min, sigma_max, seen = 0.0, math.inf, 0

        def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            self.seen += 1
            return network(x)

    x, sigma = latents().float(), torch.tensor(1.0)
    counter, plain = CallCounter(Convolving(), count_work=True), CallCounter(Convolving())
    with torch.no_grad():
        for batch in (x, x, x[:2]):
            assert torch.equal(counter(batch, sigma), plain(batch, sigma))
    assert counter.flop == 8 * 2 * (4 * 4) * (2 * 2 * 3 * 3) and plain.flop is None  # 8 images; a multiplication and an addition per weight and place
    assert (counter.images, counter.denoiser.seen, plain.denoiser.seen) == (8, 4, 3)  # type: ignore[attr-defined]  # one call more for a shape
    counter(x.requires_grad_(), sigma)
    assert counter.flop is None  # its gradient would be work, too


def test_denoiser_is_asked_with_a_host_number_that_needs_no_waiting() -> None:
    seen: list[Tensor] = []

    class Watched(GaussianMixture):
        def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
            seen.append(sigma)
            return super().__call__(x, sigma, cond)

    m = gaussian()
    for solver in ('heun', 'unipc'):
        sample(Watched(m.weights, m.means, m.stds), latents(), num_steps=4, solver=solver)
    assert all(s.ndim == 0 and s.dtype == torch.float64 and s.device.type == 'cpu' for s in seen)
    assert len(seen) == 7 + 4


@pytest.mark.parametrize('precond', [EDMPrecond, VPPrecond, VEPrecond, IDDPMPrecond])
@pytest.mark.parametrize(('solver', 'scaling'), [('euler', 'none'), ('heun', 'none'), ('heun', 'vp'), ('dpmpp_2m', 'none')])
def test_no_step_reads_the_device_back(precond: type[Precond], solver: str, scaling: str) -> None:
    """On the meta device there is nothing to read: any such attempt raises."""
    network = nn.Conv2d(2, 2, 3, padding=1, device='meta')
    network.forward = lambda x, c_noise, labels: nn.Conv2d.forward(network, x) + c_noise[:, None, None, None]  # type: ignore[method-assign]
    z = torch.empty(3, 2, 4, 4, device='meta')
    churn = {} if solver == 'dpmpp_2m' else {'S_churn': 5.0, 'noise': lambda i: z}
    x = sample(precond(network), z, num_steps=5, solver=solver, scaling=scaling, start=z, first_step=1, callback=lambda i, x, d: None, **churn)
    assert x.shape == z.shape


@pytest.mark.parametrize(('schedule', 'scaling'), [('linear', 'none'), ('vp', 'vp')])
def test_samples_follow_the_data_distribution(schedule: str, scaling: str) -> None:
    denoiser, seeds = gaussian(mean=-0.2, std=0.4), range(1000)
    noise = SampleNoise(seeds, (2, 4, 4))
    plain = (schedule, scaling) == ('linear', 'none')
    for options in ({}, {'S_churn': 5.0, 'noise': noise.step}, *[{'eta': 1.0, 'noise': noise.step, 'solver': 'euler', 'num_steps': 300}] * plain):
        x = sample(denoiser, noise.latents(), **{'num_steps': 80, 'schedule': schedule, 'scaling': scaling, **options})
        assert float(x.mean()) == pytest.approx(-0.2, abs=0.01)
        assert float(x.std()) == pytest.approx(0.4, rel=0.02)


def test_churned_samples_depend_on_the_step_noise_that_they_use() -> None:
    z, noise = latents(), torch.stack([latents(9 + i) for i in range(8)])
    options: dict[str, Any] = {'num_steps': 8, 'S_churn': 4.0, 'S_min': 0.1, 'S_max': 1.0}
    used = [i for i, s in enumerate(edm_sigmas(8).tolist()[:-1]) if 0.1 <= s <= 1.0]
    base = sample(gaussian(), z, noise=noise, **options)
    for i in range(8):
        other = noise.clone()
        other[i] += 1
        same = torch.equal(sample(gaussian(), z, noise=other, **options), base)
        assert same == (i not in used)
    asked: list[int] = []
    by_function = sample(gaussian(), z, noise=lambda i: asked.append(i) or noise[i], **options)  # type: ignore[func-returns-value]
    assert asked == used
    assert torch.equal(by_function, base)


def test_start_image_is_kept_at_low_strength_and_lost_at_full() -> None:
    denoiser, z, start = gaussian(), latents(), torch.full((3, 2, 4, 4), 0.9)
    near = sample(denoiser, z, start=start, sigma_max=0.01, num_steps=5)
    assert (near - start).abs().max() < 0.05
    far = sample(denoiser, z, start=start)
    assert (far - sample(denoiser, z)).abs().max() < 0.01


@pytest.mark.parametrize(
    ('solver', 'schedule', 'scaling'),
    [(s, *c) for s in ('euler', 'heun') for c in COORDINATES] + [('dpmpp_2m', 'linear', 'none'), ('unipc', 'linear', 'none')],
)
def test_start_and_callback_are_in_edm_coordinates_under_every_solver(solver: str, schedule: str, scaling: str) -> None:
    denoiser, z, start = gaussian(), latents(), torch.full((3, 2, 4, 4), 0.9)
    states: list[Tensor] = []
    denoised: list[Tensor] = []
    numbers: list[int] = []

    def note(i: int, x: Tensor, d: Tensor) -> None:
        numbers.append(i)
        states.append(x)
        denoised.append(d)

    x = sample(denoiser, z, start=start, num_steps=200, first_step=150, solver=solver, schedule=schedule, scaling=scaling, callback=note)
    sigmas = edm_sigmas(200)
    torch.testing.assert_close(denoised[0], denoiser(start + sigmas[150] * z, sigmas[150]))
    assert numbers == list(range(150, 200))
    assert torch.equal(states[-1], x)
    exact = flow(start + sigmas[150] * z, float(sigmas[150]), float(sigmas[171]))
    assert float((states[20] - exact).abs().max()) < (1e-2 if solver == 'euler' else 3e-4)


def test_explicit_noise_levels_replace_the_grid() -> None:
    z = latents()
    torch.testing.assert_close(sample(gaussian(), z, sigmas=edm_sigmas(9)[:-1]), sample(gaussian(), z, num_steps=9), rtol=0, atol=0)
    x = sample(gaussian(), z, sigmas=[7.0])
    torch.testing.assert_close(x, gaussian()(7 * z, torch.tensor(7.0)))


@pytest.mark.parametrize('solver', ['euler', 'heun', 'dpmpp_2m', 'unipc'])
@pytest.mark.parametrize('discretization', ['edm', 'vp', 've', 'iddpm'])
def test_one_step_gives_the_denoised_image(discretization: str, solver: str) -> None:
    denoiser, z = gaussian(), latents()
    x = sample(denoiser, z, num_steps=1, discretization=discretization, solver=solver)
    high = {'edm': 80, 'vp': 152.16696, 've': 100, 'iddpm': 80.20429}[discretization]
    torch.testing.assert_close(x, denoiser(high * z, torch.tensor(high)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('discretization', ['edm', 'vp', 've', 'iddpm'])
@pytest.mark.parametrize(('schedule', 'scaling'), COORDINATES, ids='-'.join)
def test_one_step_and_few_steps_never_bring_nan(discretization: str, schedule: str, scaling: str) -> None:
    z = latents()
    for num_steps in (1, 2, 3):
        for options in ({}, {'solver': 'euler'}, {'S_churn': 50.0, 'noise': [z] * 3}):
            given: dict[str, Any] = {'discretization': discretization, 'schedule': schedule, 'scaling': scaling, 'num_steps': num_steps, **options}
            noise = torch.stack(given.pop('noise')) if 'noise' in given else None
            assert torch.isfinite(sample(small_mixture(), z, noise=noise, **given)).all()


def test_one_bad_sample_leaves_the_others_alone() -> None:
    class Broken(GaussianMixture):
        def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
            d = super().__call__(x, sigma)
            d[1] = math.nan
            return d

    m, z = gaussian(), latents()
    for solver in ('heun', 'dpmpp_2m', 'unipc'):
        x, good = sample(Broken(m.weights, m.means, m.stds), z, solver=solver), sample(m, z, solver=solver)
        assert torch.isnan(x[1]).all()
        assert torch.equal(x[[0, 2]], good[[0, 2]])


def test_state_keeps_the_precision_that_is_asked() -> None:
    z = latents()
    for solver in ('heun', 'dpmpp_2m', 'unipc'):
        double, single = sample(small_mixture(), z, solver=solver), sample(small_mixture(), z.float(), solver=solver, dtype=torch.float32)
        assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
        assert 0 < float((double - single).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'S_churn': 5.0}, 'noise'),
        ({'eta': 0.5, 'solver': 'euler'}, 'eta = 0.5 needs noise'),
        ({'S_churn': 5.0, 'noise': torch.zeros(17, 3, 2, 4, 4)}, 'noise'),
        ({'S_churn': 5.0, 'noise': torch.zeros(18, 1, 2, 4, 4)}, 'noise'),
        ({'S_churn': 5.0, 'noise': lambda i: torch.zeros(2, 4, 4)}, 'noise of step 0'),
        ({'start': torch.zeros(1, 2, 4, 4)}, 'start'),
        ({'first_step': 18}, 'first_step'),
        ({'solver': 'huen'}, "'heun'"),
    ],
)
def test_impossible_calls_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        sample(gaussian(), latents(), **options)


# --- reference outputs ---------------------------------------------------------------------------------------------------


class Recorded(GaussianMixture):
    """The mixture of the reference vectors: notes the noise levels; 'disc' rounds them to a table."""

    def __init__(self, arrays: Any, net: str) -> None:
        low, high = {'cont': (0.0, math.inf), 'bounded': (0.02, 50.0), 'disc': (0.006422337144613266, 20291.171875)}[net]
        super().__init__(*(torch.from_numpy(arrays[f'mix_{k}']) for k in ('weights', 'means', 'stds', 'class_weights')), low, high)
        self.table = torch.from_numpy(arrays['disc_table_u']).double() if net == 'disc' else None
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        self.sigmas.append(float(sigma))
        return super().__call__(x, sigma, cond)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma if self.table is None else self.table[(sigma[..., None] - self.table).abs().argmin(-1)]


@pytest.mark.parametrize(('file', 'count'), [('edm_sampler', 27), ('ablation_sampler', 236)])
def test_sampler_gives_the_reference_outputs(shared: Path, file: str, count: int) -> None:
    """Final images within the vectors' tolerance and the noise level of every call, for each combination of the design space."""
    arrays = np.load(shared / 'golden' / f'{file}.npz')
    cases = json.loads((shared / 'golden' / f'{file}.json').read_text())['cases']
    assert len(cases) == count
    wrong = []
    z, noise = torch.from_numpy(arrays['latents']), torch.from_numpy(arrays['noise'])
    for case in cases:
        denoiser = Recorded(arrays, case['net'])
        kwargs = {k: math.inf if v == 'inf' else v for k, v in case['kwargs'].items()}
        cond = torch.from_numpy(arrays['class_labels']) if case['class_labels'] else None
        x = sample(denoiser, z, noise=noise, cond=cond, **kwargs)
        exact = '64' if case['has64'] else ''
        out, sigmas = (torch.from_numpy(arrays[case[k].replace('_', f'{exact}_')]) for k in ('out', 'sigmas'))
        error = float((x - out).abs().max())
        if not error <= max(case['atol'], 1e-6 * max(1, case['out_absmax'])) or denoiser.sigmas != pytest.approx(sigmas.tolist(), rel=1e-9):
            wrong.append((case['id'], kwargs, error))
    assert not wrong


def test_plan_says_what_the_reference_sampler_asks(shared: Path) -> None:
    """The host-side plan alone, without running: the noise level of every call of every churned case."""
    arrays = np.load(shared / 'golden' / 'ablation_sampler.npz')
    cases = json.loads((shared / 'golden' / 'ablation_sampler.json').read_text())['cases']
    churned = [c for c in cases if c['kwargs'].get('S_churn') and c['net'] == 'cont' and not c['has64']]
    assert len(churned) > 50
    for case in churned:
        steps = plan_steps(sampler_options({k: math.inf if v == 'inf' else v for k, v in case['kwargs'].items()}))
        asked = [p.sigma for s in steps for p in (s.hat, s.probe) if p is not None]
        assert asked == pytest.approx(arrays[case['sigmas']].tolist(), rel=1e-9)
