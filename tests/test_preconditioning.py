"""The four ways to make a denoiser of a network, and the losses that train them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthaug_plugins.diffusion import (
    CallCounter,
    Denoiser,
    EDMPrecond,
    IDDPMPrecond,
    IDDPMUniform,
    LogNormal,
    LogUniform,
    Precond,
    VEPrecond,
    VPPrecond,
    VPUniform,
    denoising_error,
    denoising_loss,
    full_float32,
    iddpm_table,
    sample,
)

KINDS: dict[str, Callable[..., Precond]] = {'edm': EDMPrecond, 'vp': VPPrecond, 've': VEPrecond, 'iddpm': IDDPMPrecond}
DISTRIBUTIONS = {'edm': LogNormal(), 'vp': VPUniform(), 've': LogUniform(), 'iddpm': IDDPMUniform()}


class Recording(nn.Module):
    """A raw network, zero unless told otherwise, that keeps what it was given."""

    def __init__(self, gain: float = 0.0, dtype: torch.dtype = torch.float32, channels: int = 3) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=dtype))
        self.channels, self.seen = channels, {}

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        self.seen: dict[str, Any] = {'x': x, 'c_noise': c_noise, 'labels': labels, 'augment_labels': augment_labels}
        return self.gain * x.repeat(1, self.channels // x.shape[1], 1, 1)


def images(n: int = 4, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize('kind', KINDS)
def test_wrapper_is_a_denoiser_for_one_noise_level_and_for_many(kind: str) -> None:
    denoiser, x = KINDS[kind](Recording(0.5, torch.float64)), images()
    assert isinstance(denoiser, Denoiser)
    many = denoiser(x, torch.full((4,), 0.7, dtype=torch.float64))
    for sigma in (torch.tensor(0.7, dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)):
        assert torch.equal(denoiser(x, sigma), many)
    assert tuple(denoiser.network.seen['c_noise'].shape) == (4,)
    mixed = denoiser(x, torch.tensor([0.1, 0.7, 3.0, 20.0], dtype=torch.float64))
    assert torch.equal(mixed[1], many[1])
    assert not torch.equal(mixed[0], many[0])


@pytest.mark.parametrize('kind', KINDS)
def test_coefficients_are_those_of_the_table_in_float64(kind: str) -> None:
    denoiser, s = KINDS[kind](Recording()), torch.tensor([0.03, 1.0, 40.0])
    c_skip, c_out, c_in, c_noise = (c.tolist() for c in denoiser.coefficients(s))
    weight = denoiser.loss_weight(s)
    assert weight.dtype == torch.float64
    for i, sigma in enumerate(s.double().tolist()):
        if kind == 'edm':
            total = sigma**2 + 0.25
            expected = [0.25 / total, sigma * 0.5 / math.sqrt(total), 1 / math.sqrt(total), math.log(sigma) / 4]
            assert float(weight[i]) == pytest.approx(total / (sigma * 0.5) ** 2, rel=1e-14)
        else:
            t = (math.sqrt(0.01 + 39.8 * math.log1p(sigma**2)) - 0.1) / 19.9
            table = iddpm_table()[:-1]
            noise = {'vp': 999 * t, 've': math.log(sigma / 2), 'iddpm': 999 - int((table - sigma).abs().argmin())}[kind]
            expected = [1, sigma if kind == 've' else -sigma, 1 if kind == 've' else 1 / math.sqrt(sigma**2 + 1), noise]
            assert float(weight[i]) == pytest.approx(sigma**-2, rel=1e-14)
        assert [c_skip[i], c_out[i], c_in[i], c_noise[i]] == pytest.approx(expected, rel=1e-12)


def test_supported_ranges_are_the_published_ones() -> None:
    ranges = {k: (p.sigma_min, p.sigma_max) for k, p in ((k, make(Recording())) for k, make in KINDS.items())}
    assert ranges['edm'] == (0, math.inf)
    assert ranges['vp'] == pytest.approx((0.001, 152.167), rel=1e-3)
    assert ranges['ve'] == (0.02, 100)
    assert ranges['iddpm'] == pytest.approx((0.0064254, 20291.2), rel=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_network_runs_in_its_own_precision_and_knows_the_noise_level_in_full(kind: str, dtype: torch.dtype) -> None:
    denoiser = KINDS[kind](Recording(0.5)).to(dtype)
    exact = KINDS[kind](Recording(0.5, torch.float64))
    for x in (images(), images().float()):
        D = denoiser(x, torch.tensor(0.37, dtype=torch.float64))
        assert D.dtype == x.dtype
        assert denoiser.network.seen['x'].dtype == dtype
        assert denoiser.network.seen['c_noise'].dtype == torch.promote_types(dtype, torch.float32)
        reference = exact(images(), torch.tensor(0.37, dtype=torch.float64))
        torch.testing.assert_close(denoiser.network.seen['c_noise'].double(), exact.network.seen['c_noise'], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(D.double(), reference, rtol=1e-2, atol=1e-2)


def test_discrete_model_keeps_its_table_when_the_network_is_cast_and_moved() -> None:
    denoiser = IDDPMPrecond(Recording()).to(torch.bfloat16)
    sigma = torch.tensor([0.0065, 0.5, 80.0, 30000.0], dtype=torch.float64)
    rounded = denoiser.round_sigma(sigma)
    assert rounded.dtype == torch.float64
    assert torch.equal(rounded, IDDPMPrecond(Recording()).round_sigma(sigma))
    assert torch.equal(denoiser.round_sigma(rounded), rounded)
    assert torch.equal(iddpm_table()[:-1], denoiser.round_sigma(iddpm_table()[:-1]))
    assert not denoiser.state_dict().keys() - {'network.gain'}
    with torch.device('meta'):
        assert IDDPMPrecond(Recording()).sigma_min == pytest.approx(0.0064254, rel=1e-5)


def test_discrete_model_never_asks_beyond_its_steps() -> None:
    """Nearly no noise is step 0, not step -1; learned variance is dropped."""
    denoiser, x = IDDPMPrecond(Recording(0.1, channels=6)), images()
    assert denoiser(x, torch.tensor([1e-6, 0.0064, 0.0065, 1e6], dtype=torch.float64)).shape == x.shape
    assert denoiser.network.seen['c_noise'].tolist() == [0, 0, 0, 999]


def test_augmentation_labels_reach_the_network_in_its_precision() -> None:
    denoiser = EDMPrecond(Recording()).to(torch.bfloat16)
    denoiser(images(), torch.tensor(1.0), None, torch.ones(4, 9))
    assert denoiser.network.seen['augment_labels'].dtype == torch.bfloat16
    denoiser(images(), torch.tensor(1.0))
    assert denoiser.network.seen['augment_labels'] is None


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_can_be_sampled(kind: str) -> None:
    torch.manual_seed(0)
    counter = CallCounter(KINDS[kind](Recording(0.3)))
    x = sample(counter, images(), num_steps=6)
    assert torch.isfinite(x).all()
    assert (counter.calls, counter.images) == (11, 44)


@pytest.mark.parametrize('kind', KINDS)
def test_initial_loss_of_every_kind_is_what_its_weight_says(kind: str) -> None:
    """Of a zero network: EDM 1 at every noise level; the others, whose D is then x itself, 1 as well."""
    torch.manual_seed(0)
    y = 0.5 * torch.randn(2000, 1, 4, 4)
    for sigma in (0.03, 0.5, 20.0):
        with torch.no_grad():
            loss = denoising_loss(KINDS[kind](Recording(channels=1)), y, torch.full((2000,), sigma), torch.randn_like(y))
        assert float(loss.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize('kind', KINDS)
def test_noise_levels_to_train_at_lie_where_the_model_is_defined(kind: str) -> None:
    torch.manual_seed(0)
    sigma = DISTRIBUTIONS[kind].draw(20_000, 'cpu')
    assert sigma.shape == (20_000,)
    assert sigma.dtype == torch.float32
    denoiser = KINDS[kind](Recording())
    assert float(sigma.min()) >= denoiser.sigma_min * (1 - 1e-2)
    assert float(sigma.max()) <= denoiser.sigma_max * (1 + 1e-6)
    torch.manual_seed(0)
    assert torch.equal(DISTRIBUTIONS[kind].draw(20_000, 'cpu'), sigma)


def test_noise_level_distributions_have_their_quantiles() -> None:
    half = torch.tensor([0.0, 0.5, 1 - 1e-7])
    assert VPUniform()(half).tolist() == pytest.approx([152.167, 3.413, 0.001], rel=0.03)
    assert LogUniform()(half).tolist() == pytest.approx([0.02, math.sqrt(2), 100], rel=1e-5)
    assert IDDPMUniform()(half).tolist() == pytest.approx([float(iddpm_table()[j]) for j in (0, 500, 999)], rel=1e-6)
    assert LogNormal()(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([math.exp(-1.2), 1.0])


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, 'fp32_precision'), reason='torch before 2.9 has one kind of switch')
def test_float32_is_full_whichever_of_torchs_switches_the_process_uses() -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    with full_float32():
        assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = 'tf32'
    try:
        with full_float32():
            assert (matmul.fp32_precision, conv.fp32_precision) == ('ieee', 'ieee')
        assert (matmul.fp32_precision, conv.fp32_precision) == ('tf32', before[1])
    finally:
        matmul.fp32_precision = before[0]
    assert matmul.allow_tf32 is False


def test_float32_stays_full_until_the_last_who_asked_has_ended() -> None:
    """Two threads, a sampler and an inspector, overlap in any way; the switches are the process's."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = True
    try:
        sampler, inspector = full_float32(), full_float32()
        with ExitStack() as late:
            with sampler:
                assert not cudnn.allow_tf32
                late.enter_context(inspector)
            assert not cudnn.allow_tf32
        assert cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = before


# --- reference outputs ---------------------------------------------------------------------------------------------------


class TinyNetwork(nn.Module):
    """The raw network of the reference vectors."""

    def __init__(self, arrays: Any, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        which = 'iddpm' if kind == 'iddpm' else 'std'
        for name in ('W', 'b', 'A', 'E', 'Gm'):
            self.register_parameter(name, nn.Parameter(torch.from_numpy(arrays[f'tiny_{which}_{name}']).to(dtype), requires_grad=False))
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        self.seen = {'x': x, 'c_noise': c_noise}
        c_noise = c_noise.to(x.dtype)
        shift = self.A * (c_noise.sign() * c_noise.abs().log1p())[:, None]
        if labels is not None:
            shift = shift + self.E[labels]
        if augment_labels is not None:
            shift = shift + augment_labels @ self.Gm
        return nn.functional.conv2d(x, self.W, self.b, padding=1) + shift[:, :, None, None]


def test_preconditioning_gives_the_reference_outputs(shared: Path) -> None:
    """All four kinds, with and without labels, in float64 and float32. iDDPM's reference rounds to a float32 table."""
    arrays = np.load(shared / 'golden' / 'precond.npz')
    cases = json.loads((shared / 'golden' / 'precond.json').read_text())['cases']
    assert len(cases) == 20
    for case in cases:
        key, kind = case['key'], case['kind']
        get = {k: torch.from_numpy(arrays[f'{key}_{k}']) for k in ('x', 'sigma', 'D64', 'D32', 'netx64', 'cnoise64')}
        cond = torch.from_numpy(arrays[f'{key}_cls']).argmax(1) if case['variant'] in ('class', 'class_aug') else None
        augment = torch.from_numpy(arrays[f'{key}_aug']) if case['variant'] == 'class_aug' else None
        network = TinyNetwork(arrays, kind, torch.float64)
        denoiser = KINDS[kind](network, **case['kwargs'])
        torch.testing.assert_close(denoiser(get['x'], get['sigma'], cond, augment), get['D64'], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(network.seen['x'], get['netx64'], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(network.seen['c_noise'], get['cnoise64'].double(), rtol=1e-10, atol=1e-12)
        assert (denoiser.sigma_min, denoiser.sigma_max) == pytest.approx((float(case['sigma_min']), float(case['sigma_max'])), rel=3e-2)
        single = KINDS[kind](TinyNetwork(arrays, kind, torch.float32), **case['kwargs'])(get['x'].float(), get['sigma'].float(), cond, augment)
        assert single.dtype == torch.float32
        assert ((single - get['D32']).abs() <= 1e-4 * get['D32'].abs() + 1e-3 * get['sigma'].float().reshape(-1, 1, 1, 1)).all(), key


def test_losses_and_noise_levels_give_the_reference_outputs(shared: Path) -> None:
    arrays = np.load(shared / 'golden' / 'losses.npz')
    cases = json.loads((shared / 'golden' / 'losses.json').read_text())['cases']
    assert len(cases) == 6
    for case in cases:
        key, kind = case['key'], case['kind']
        get = {k: torch.from_numpy(arrays[f'{key}_{k}']) for k in ('y', 'n', 'cls', 'sigma', 'loss64')}
        draws = torch.from_numpy(arrays[f'{key}_{"normal" if kind == "edm" else "uniform"}']).flatten()
        sigma = DISTRIBUTIONS[kind](draws)
        torch.testing.assert_close(sigma, get['sigma'].flatten(), rtol=1e-9, atol=0)
        augment = torch.from_numpy(arrays[f'{key}_auglab']) if case['augment'] else None
        y = 0.9 * get['y'] if case['augment'] else get['y']
        denoiser = KINDS[kind](TinyNetwork(arrays, kind, torch.float64))
        error = denoising_error(denoiser, y, sigma, get['n'], get['cls'].argmax(1), augment)
        torch.testing.assert_close(error, get['loss64'], rtol=1e-9, atol=1e-12)
        loss = denoising_loss(denoiser, y, sigma, get['n'], get['cls'].argmax(1), augment)
        torch.testing.assert_close(loss, get['loss64'].mean(dim=(1, 2, 3)), rtol=1e-9, atol=0)
