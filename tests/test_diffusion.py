"""The mathematics: against closed forms, published reference outputs and its own promises."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthaug_plugins.diffusion import (
    Denoiser,
    EDMPrecond,
    SampleNoise,
    UNet,
    build_denoiser,
    edm_loss,
    edm_sigmas,
    lognormal_sigmas,
    philox_normal,
    sample,
)
from synthaug_plugins.diffusion.noise import philox
from synthaug_plugins.errors import ModelError, RecipeError

GOLDEN = Path(__file__).parents[2] / 'shared' / 'golden'
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f'REFERENCE VECTORS NOT FOUND: {GOLDEN}')


class GaussianDenoiser:
    """The exact denoiser of N(mean, std^2) pixels; counts its calls."""

    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, mean: float = 0.3, std: float = 0.5) -> None:
        self.mean, self.std, self.calls = mean, std, 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls += 1
        return (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def flow(self, x: Tensor, sigma: float, to: float) -> Tensor:
        """Exact solution of the probability-flow ODE: distances to the mean shrink as the total standard deviation does."""
        return self.mean + (x - self.mean) * math.sqrt((self.std**2 + to**2) / (self.std**2 + sigma**2))


def latents(seed: int = 0, shape: tuple[int, ...] = (4, 1, 4, 4)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- sampler -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('solver', 'order'), [('euler', 1), ('heun', 2)])
def test_solver_has_its_order_of_convergence(solver: str, order: int) -> None:
    """Up to sigma_min: the last step, to 0, is Euler by definition and would hide the order."""
    denoiser, z, errors = GaussianDenoiser(), latents(), []
    for n in (32, 64, 128):
        states: list[Tensor] = []
        sample(denoiser, z, num_steps=n, sigma_min=0.05, sigma_max=10, solver=solver, callback=lambda i, x, d, s=states: s.append(x))
        errors.append(float((states[-2] - denoiser.flow(10 * z, 10, 0.05)).abs().max()))
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert measured == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize(('solver', 'nfe'), [('heun', 2 * 18 - 1), ('euler', 18)])
def test_number_of_network_calls(solver: str, nfe: int) -> None:
    denoiser = GaussianDenoiser()
    sample(denoiser, latents(), solver=solver)
    assert denoiser.calls == nfe


def test_skipped_steps_cost_nothing() -> None:
    denoiser = GaussianDenoiser()
    sample(denoiser, latents(), start=torch.zeros(4, 1, 4, 4), first_step=10)
    assert denoiser.calls == 2 * 8 - 1


def test_samples_follow_the_data_distribution() -> None:
    denoiser, seeds = GaussianDenoiser(mean=-0.2, std=0.4), range(2000)
    noise = SampleNoise(seeds, (1, 4, 4))
    for options in ({}, {'S_churn': 5.0, 'noise': noise.step}):
        x = sample(denoiser, noise.latents(), num_steps=80, **options)
        assert float(x.mean()) == pytest.approx(-0.2, abs=0.01)
        assert float(x.std()) == pytest.approx(0.4, rel=0.02)


def test_churned_samples_depend_on_the_step_noise_that_they_use() -> None:
    z, noise = latents(), torch.stack([latents(9 + i) for i in range(8)])
    options: dict[str, Any] = {'num_steps': 8, 'S_churn': 4.0, 'S_min': 0.1, 'S_max': 1.0}
    used = [i for i, s in enumerate(edm_sigmas(8).tolist()[:-1]) if 0.1 <= s <= 1.0]
    base = sample(GaussianDenoiser(), z, noise=noise, **options)
    for i in range(8):
        other = noise.clone()
        other[i] += 1
        same = torch.equal(sample(GaussianDenoiser(), z, noise=other, **options), base)
        assert same == (i not in used)
    asked: list[int] = []
    by_function = sample(GaussianDenoiser(), z, noise=lambda i: asked.append(i) or noise[i], **options)  # type: ignore[func-returns-value]
    assert asked == used
    assert torch.equal(by_function, base)


def test_start_image_is_kept_at_low_strength_and_lost_at_full() -> None:
    denoiser, z, start = GaussianDenoiser(), latents(), torch.full((4, 1, 4, 4), 0.9)
    near = sample(denoiser, z, start=start, sigma_max=0.01, num_steps=5)
    assert (near - start).abs().max() < 0.05
    states: list[Tensor] = []
    sample(denoiser, z, start=start, first_step=12, solver='euler', callback=lambda i, x, d: states.append(d))
    sigma = edm_sigmas(18)[12]
    torch.testing.assert_close(states[0], denoiser(start + sigma * z, sigma))
    far = sample(denoiser, z, start=start)
    assert (far - sample(denoiser, z)).abs().max() < 0.01


def test_one_step_gives_the_denoised_image() -> None:
    denoiser, z = GaussianDenoiser(), latents()
    assert edm_sigmas(1).tolist() == pytest.approx([80, 0])
    torch.testing.assert_close(sample(denoiser, z, num_steps=1), denoiser(80 * z, torch.tensor(80.0)))


def test_one_bad_sample_leaves_the_others_alone() -> None:
    class Broken(GaussianDenoiser):
        def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
            d = super().__call__(x, sigma)
            d[1] = math.nan
            return d

    z = latents()
    x, good = sample(Broken(), z), sample(GaussianDenoiser(), z)
    assert torch.isnan(x[1]).all()
    assert torch.equal(x[[0, 2, 3]], good[[0, 2, 3]])


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'solver': 'huen'}, "'heun'"),
        ({'num_steps': 0}, 'num_steps'),
        ({'sigma_min': 3.0, 'sigma_max': 2.0}, 'sigma_min'),
        ({'S_churn': 5.0}, 'noise'),
        ({'S_noise': -1.0}, 'S_noise'),
        ({'rho': 0.0}, 'rho'),
        ({'first_step': 18}, 'first_step'),
        ({'start': torch.zeros(1, 1, 4, 4)}, 'start'),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        sample(GaussianDenoiser(), latents(), **options)


# --- reference outputs ---------------------------------------------------------------------------------------------------


class MixtureDenoiser:
    """Exact denoiser of an isotropic Gaussian mixture, as golden/README.md and the JSON files define it."""

    def __init__(self, arrays: Any, net: str) -> None:
        self.w, self.means, self.stds, self.by_class = (
            torch.from_numpy(np.asarray(arrays[k], dtype=np.float64)) for k in ('mix_weights', 'mix_means', 'mix_stds', 'mix_class_weights')
        )
        self.labels = torch.from_numpy(np.asarray(arrays['class_labels'], dtype=np.float64))
        self.sigma_min, self.sigma_max = {'cont': (0.0, math.inf), 'bounded': (0.02, 50.0), 'disc': (0.006422337144613266, 20291.171875)}[net]
        self.table = torch.from_numpy(np.asarray(arrays['disc_table_u'], dtype=np.float64)) if net == 'disc' else None
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        self.sigmas.append(float(sigma))
        w = self.w.expand(len(x), -1) if cond is None else self.labels[cond] @ self.by_class
        v = self.stds**2 + sigma**2
        distance = ((x[:, None] - self.means) ** 2).flatten(2).sum(-1)
        r = torch.softmax(w.log() - x[0].numel() / 2 * v.log() - distance / (2 * v), dim=1)
        k = (slice(None), None, None, None)
        each = (self.stds[k] ** 2 * x[:, None] + sigma**2 * self.means) / v[k]
        return (r[:, :, None, None, None] * each).sum(1)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        if self.table is None:
            return sigma
        return self.table[(sigma[..., None] - self.table).abs().argmin(-1)]


def golden_cases(name: str) -> list[dict[str, Any]]:
    path = GOLDEN / f'{name}.json'
    cases = json.loads(path.read_text())['cases'] if path.is_file() else []
    ours = {'discretization': 'edm', 'schedule': 'linear', 'scaling': 'none', 'alpha': 1.0}
    return [{**c, 'file': name} for c in cases if all(c['kwargs'].get(k, v) == v for k, v in ours.items())]


def test_reference_vectors_are_present_or_their_absence_is_seen() -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f'REFERENCE VECTORS NOT FOUND: {GOLDEN}')
    assert len(golden_cases('edm_sampler')) == 27
    assert len(golden_cases('ablation_sampler')) == 27


@needs_golden
@pytest.mark.parametrize('case', [*golden_cases('edm_sampler'), *golden_cases('ablation_sampler')], ids=lambda c: f'{c["file"]}-{c["id"]}')
def test_sampler_gives_the_reference_output(case: dict[str, Any]) -> None:
    arrays = np.load(GOLDEN / f'{case["file"]}.npz')
    denoiser = MixtureDenoiser(arrays, case['net'])
    assert isinstance(denoiser, Denoiser)
    kwargs = {k: math.inf if v == 'inf' else v for k, v in case['kwargs'].items() if k not in ('discretization', 'schedule', 'scaling', 'alpha')}
    z = torch.from_numpy(arrays['latents'])
    cond = torch.arange(len(z)) if case['class_labels'] else None
    x = sample(denoiser, z, noise=torch.from_numpy(arrays['noise']), cond=cond, **kwargs)
    tolerance = max(case['atol'], 1e-6 * max(1, case['out_absmax']))
    assert denoiser.sigmas == pytest.approx(arrays[case['sigmas']].tolist(), rel=1e-9)
    assert float((x - torch.from_numpy(arrays[case['out']])).abs().max()) <= tolerance


class TinyNetwork(nn.Module):
    """The raw network of golden/precond.json and losses.json; class labels and a fixed offset per sample for augment labels."""

    def __init__(self, arrays: Any, dtype: torch.dtype, augment_labels: Tensor | None = None) -> None:
        super().__init__()
        for name in ('W', 'b', 'A', 'E', 'Gm'):
            self.register_parameter(name, nn.Parameter(torch.from_numpy(arrays[f'tiny_std_{name}']).to(dtype), requires_grad=False))
        self.offset = None if augment_labels is None else augment_labels.to(dtype) @ self.Gm
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        self.seen = {'x': x, 'c_noise': c_noise}
        c_noise = c_noise.to(x.dtype)
        shift = self.A * (c_noise.sign() * c_noise.abs().log1p())[:, None]
        if labels is not None:
            shift = shift + self.E[labels]
        if self.offset is not None:
            shift = shift + self.offset
        return nn.functional.conv2d(x, self.W, self.b, padding=1) + shift[:, :, None, None]


@needs_golden
@pytest.mark.parametrize('key', [f'edm_{k}' for k in range(8)])
def test_preconditioning_gives_the_reference_output(key: str) -> None:
    arrays = np.load(GOLDEN / 'precond.npz')
    case = next(c for c in json.loads((GOLDEN / 'precond.json').read_text())['cases'] if c['key'] == key)
    get = {k: torch.from_numpy(arrays[f'{key}_{k}']) for k in ('x', 'sigma', 'D64', 'D32', 'netx64', 'cnoise64')}
    cond = torch.from_numpy(arrays[f'{key}_cls']).argmax(1) if case['variant'] in ('class', 'class_aug') else None
    augment = torch.from_numpy(arrays[f'{key}_aug']) if case['variant'] == 'class_aug' else None
    network = TinyNetwork(arrays, torch.float64, augment)
    denoiser = EDMPrecond(network, **case['kwargs'])
    torch.testing.assert_close(denoiser(get['x'], get['sigma'], cond), get['D64'], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network.seen['x'], get['netx64'], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network.seen['c_noise'], get['cnoise64'], rtol=1e-10, atol=1e-12)
    D = EDMPrecond(TinyNetwork(arrays, torch.float32, augment), **case['kwargs'])(get['x'].float(), get['sigma'].float(), cond)
    assert D.dtype == torch.float32
    assert ((D - get['D32']).abs() <= 1e-4 * get['D32'].abs() + 1e-3 * get['sigma'].float().reshape(-1, 1, 1, 1)).all()


@needs_golden
@pytest.mark.parametrize('key', ['edm_0_plain', 'edm_0_aug'])
def test_loss_gives_the_reference_output(key: str) -> None:
    """The reference keeps the loss per pixel; ours is its mean per image."""
    arrays = np.load(GOLDEN / 'losses.npz')
    get = {k: torch.from_numpy(arrays[f'{key}_{k}']) for k in ('y', 'n', 'cls', 'sigma', 'loss64', 'normal')}
    augment = torch.from_numpy(arrays[f'{key}_auglab']) if key.endswith('aug') else None
    y = 0.9 * get['y'] if key.endswith('aug') else get['y']
    sigma = lognormal_sigmas(get['normal'].flatten())
    torch.testing.assert_close(sigma, get['sigma'].flatten(), rtol=1e-9, atol=0)
    loss = edm_loss(EDMPrecond(TinyNetwork(arrays, torch.float64, augment)), y, sigma, get['n'], get['cls'].argmax(1))
    torch.testing.assert_close(loss, get['loss64'].mean(dim=(1, 2, 3)), rtol=1e-9, atol=0)


# --- noise ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('counter', 'key', 'words'),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_gives_its_published_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    found = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))  # type: ignore[arg-type]
    assert [int(w) for w in found] == list(words)


def test_noise_of_a_sample_ignores_the_rest_of_its_batch() -> None:
    seeds = [7, 2**53 - 1, 0, 12345, 2**32 + 7]
    batch = SampleNoise(seeds, (3, 5, 5))
    for draw in (lambda n: n.latents(), lambda n: n.step(0), lambda n: n.step(17)):
        whole = draw(batch)
        assert torch.equal(draw(SampleNoise(seeds[::-1], (3, 5, 5))), whole.flip(0))
        for k, seed in enumerate(seeds):
            assert torch.equal(draw(SampleNoise([seed], (3, 5, 5)))[0], whole[k])


def test_seeds_and_steps_give_unrelated_normal_noise() -> None:
    """Seeds that differ by one bit, high ones too, and neighbouring steps."""
    seeds = torch.tensor([0, 1, 2, 2**31, 2**32, 2**52])
    draws = torch.cat([philox_normal(seeds, stream, 20_000) for stream in (0, 1, 2)]).double()
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / math.sqrt(20_000)
    flat = draws.flatten()
    assert float(flat.mean()) == pytest.approx(0, abs=0.01)
    assert float(flat.std()) == pytest.approx(1, abs=0.01)
    assert float((flat**4).mean()) == pytest.approx(3, abs=0.05)
    assert float((flat.abs() > 3).double().mean()) == pytest.approx(0.0027, rel=0.2)


# --- network and loss ----------------------------------------------------------------------------------------------------

CONFIG = {
    'kind': 'edm',
    'resolution': 8,
    'channels': 1,
    'classes': ['a', 'b'],
    'label_conditioning': True,
    'sigma_data': 0.5,
    'network': {'channels': 16, 'channel_mult': [1, 2], 'blocks_per_level': 1, 'attention_resolutions': [4], 'embedding_channels': 32, 'dropout': 0.0},
}


def stirred(config: dict[str, Any] = CONFIG) -> EDMPrecond:
    """A denoiser none of whose layers is zero."""
    torch.manual_seed(0)
    denoiser = build_denoiser(config).eval()
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return denoiser


@pytest.mark.parametrize('sigma', [0.01, 0.5, 20.0])
def test_initial_loss_is_one_at_every_noise_level(sigma: float) -> None:
    torch.manual_seed(0)
    y = 0.5 * torch.randn(2000, 1, 8, 8)
    with torch.no_grad():
        loss = edm_loss(build_denoiser(CONFIG), y, torch.full((2000,), sigma), torch.randn_like(y))
    assert float(loss.mean()) == pytest.approx(1, abs=0.03)


def test_no_label_is_the_null_row_and_labels_matter() -> None:
    denoiser, x, sigma = stirred(), torch.randn(3, 1, 8, 8), torch.tensor(0.7)
    null = denoiser(x, sigma, torch.full((3,), 2))
    assert torch.equal(denoiser(x, sigma), null)
    zeros, ones = denoiser(x, sigma, torch.zeros(3, dtype=torch.long)), denoiser(x, sigma, torch.ones(3, dtype=torch.long))
    assert not torch.allclose(zeros, ones)
    assert not torch.allclose(zeros, null)


def test_network_runs_in_its_own_precision_and_state_keeps_its() -> None:
    denoiser, x, sigma = stirred(), torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.3, 3.0])
    with torch.no_grad():
        full = denoiser(x, sigma)
        low = stirred().to(torch.bfloat16)(x, sigma)
    assert full.dtype == low.dtype == torch.float64
    assert 0 < float((full - low).abs().max()) < 0.05
    assert denoiser(x.float(), sigma).dtype == torch.float32


def test_samples_of_a_network_do_not_depend_on_the_batch() -> None:
    """Noise is equal to the bit. On CPU a convolution may sum in another order at another batch size: at most one grey level apart."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        denoiser, seeds = stirred(), list(range(12))
        noise = SampleNoise(seeds, (1, 8, 8))
        together = sample(denoiser, noise.latents(), cond=torch.zeros(12, dtype=torch.long))
        for size in (1, 5):
            parts = [SampleNoise(seeds[i : i + size], (1, 8, 8)).latents() for i in range(0, 12, size)]
            apart = torch.cat([sample(denoiser, z, cond=torch.zeros(len(z), dtype=torch.long)) for z in parts])
            assert float((apart - together).abs().max()) * 127.5 < 0.01
    finally:
        torch.set_num_threads(threads)


def test_all_parameters_learn() -> None:
    denoiser = stirred()
    y = torch.randn(4, 1, 8, 8)
    edm_loss(denoiser, y, torch.rand(4) + 0.1, torch.randn_like(y), torch.tensor([0, 1, 2, 0])).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'kind': 'vp'}, 'kind'),
        ({'channel': 3}, 'channels'),
        ({'channels': 2}, 'channels'),
        ({'sigma_data': 0}, 'sigma_data'),
        ({'classes': []}, 'classes'),
        ({'resolution': 9}, 'resolution'),
        ({'network': {'droppout': 0.1}}, 'dropout'),
    ],
)
def test_wrong_config_is_refused_by_key(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        build_denoiser({**CONFIG, **change})
    with pytest.raises(ModelError, match='lacks'):
        build_denoiser({k: v for k, v in CONFIG.items() if k != 'network'})


def test_labels_for_an_unconditional_network_are_refused() -> None:
    with pytest.raises(ValueError, match='unconditional'):
        UNet(8, 1, channels=16)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
