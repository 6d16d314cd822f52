"""The sampler's options: complete, checked before anything runs, refused by key and value, and their cost."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from mixture import small_mixture

from synthaug_plugins.diffusion import PRESETS, CallCounter, edm_sigmas, nfe, sample, sampler_options
from synthaug_plugins.diffusion.options import DEFAULTS
from synthaug_plugins.errors import RecipeError


def latents() -> torch.Tensor:
    return torch.randn((2, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_option_of_sample_has_the_same_default_in_both_places() -> None:
    parameters = inspect.signature(sample).parameters
    assert {k: parameters[k].default for k in DEFAULTS} == DEFAULTS
    tensors = {'denoiser', 'latents', 'noise', 'cond', 'start', 'dtype', 'callback'}
    assert set(parameters) == set(DEFAULTS) | tensors


def test_completed_options_are_explicit_and_stay_as_they_are() -> None:
    for given in ({}, {'preset': 'churn_imagenet64_adm'}, {'sigmas': [5.0, 1.0]}, {'discretization': 'iddpm', 'M': 500}, {'preset': 'vp', 'num_steps': 9}):
        done = sampler_options(given, 0.01, 60.0)
        assert set(done) == set(DEFAULTS)
        assert done['sigma_min'] > 0
        assert sampler_options(done, 0.01, 60.0) == done
        assert all(isinstance(v, (int, float, str, list, type(None))) for v in done.values())


def test_completed_options_can_be_given_to_sample() -> None:
    z = latents()
    given = {'num_steps': 7, 'alpha': 0.5, 'schedule': 've'}
    assert torch.equal(sample(small_mixture(), z, **sampler_options(given)), sample(small_mixture(), z, **given))
    assert torch.equal(sample(small_mixture(), z, **sampler_options({'sigmas': [9, 2, 1]})), sample(small_mixture(), z, sigmas=[9, 2, 1]))


def test_range_is_the_discretization_s_own_and_cut_to_the_model() -> None:
    assert [sampler_options({'discretization': d})['sigma_max'] for d in ('edm', 've', 'iddpm')] == [80, 100, 81]
    assert sampler_options({'discretization': 'vp'})['sigma_min'] == pytest.approx(0.010486, rel=1e-4)
    done = sampler_options({'sigma_min': 0.01, 'sigma_max': 90}, 0.02, 50)
    assert (done['sigma_min'], done['sigma_max']) == (0.02, 50)


def test_numbers_of_numpy_become_plain() -> None:
    done = sampler_options({'num_steps': np.int64(5), 'rho': np.float32(5), 'sigmas': np.array([4.0, 1.0, 0.5, 0.2, 0.1])})
    assert type(done['num_steps']) is int
    assert type(done['rho']) is float
    assert type(done['sigmas'][0]) is float


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'num_step': 5}, "'num_steps'"),
        ({'solver': 'huen'}, "'heun'"),
        ({'solver': ['heun']}, 'solver'),
        ({'discretization': 'emd'}, "'edm'"),
        ({'schedule': 'lin'}, "'linear'"),
        ({'scaling': 'non'}, "'none'"),
        ({'preset': 'churn_cifar'}, "'churn_cifar10_vp'"),
        ({'preset': ['edm']}, 'preset'),
        ('edm', "'edm'"),
        ({'num_steps': 0}, 'num_steps = 0'),
        ({'num_steps': 5.0}, 'num_steps = 5.0'),
        ({'num_steps': True}, 'num_steps = True'),
        ({'first_step': -1}, 'first_step'),
        ({'first_step': 18}, 'first_step'),
        ({'rho': 0.0}, 'rho'),
        ({'eta': 1.5, 'solver': 'euler'}, 'eta = 1.5'),
        ({'eta': 1.0}, "eta = 1 does not go with solver = 'heun'"),
        ({'eta': 1.0, 'solver': 'unipc'}, "solver = 'unipc'"),
        ({'eta': 0.1, 'solver': 'euler', 'S_churn': 1.0}, 'S_churn = 1.0'),
        ({'eta': 0.1, 'solver': 'euler', 'schedule': 'vp'}, "schedule = 'vp'"),
        ({'rho': 0.001}, 'rho'),
        ({'rho': 1e17}, 'rho'),
        ({'rho': '7'}, "rho = '7'"),
        ({'rho': math.nan}, 'rho = nan'),
        ({'S_noise': True}, 'S_noise = True'),
        ({'S_noise': -1.0}, 'S_noise'),
        ({'S_churn': math.inf}, 'S_churn'),
        ({'S_churn': -0.5}, 'S_churn'),
        ({'S_min': 2.0, 'S_max': 1.0}, 'S_min'),
        ({'S_churn': 5.0, 'S_min': 90.0, 'S_max': 95.0}, 'S_max'),
        ({'alpha': 0.0}, 'alpha'),
        ({'alpha': 0.5, 'solver': 'euler'}, 'alpha'),
        ({'alpha': 4.0}, 'alpha = 4 takes step'),
        ({'alpha': 1.3, 'schedule': 'vp', 'num_steps': 8}, 'alpha'),
        ({'epsilon_s': 1.0}, 'epsilon_s'),
        ({'C_1': 0.0}, 'C_1'),
        ({'M': 0}, 'M = 0'),
        ({'sigma_min': 3.0, 'sigma_max': 2.0}, 'sigma_min'),
        ({'sigma_min': 0.0}, 'sigma_min'),
        ({'sigma_max': math.inf}, 'sigma_max'),
        ({'sigma_min': 60.0}, 'sigma_min = 60'),
        ({'sigma_max': 0.005}, 'sigma_max = 0.005'),
        ({'discretization': 'iddpm', 'sigma_min': 0.0101, 'sigma_max': 0.0105}, 'noise levels'),
        ({'discretization': 'iddpm', 'num_steps': 2000}, 'num_steps = 2000'),
        ({'discretization': 'vp', 'sigma_min': 20.0}, 'sigma_min = 20'),
        ({'sigma_min': -1.0}, 'sigma_min = -1'),
        ({'sigmas': []}, 'sigmas'),
        ({'sigmas': 3.0}, 'sigmas'),
        ({'sigmas': [1.0, 2.0]}, r'sigmas\[1\] = 2'),
        ({'sigmas': [2.0, 0.0]}, r'sigmas\[1\] = 0'),
        ({'sigmas': [2.0, 2.0]}, r'sigmas\[1\]'),
        ({'sigmas': [2.0, math.nan]}, 'sigmas'),
        ({'sigmas': [70.0, 1.0]}, r'sigmas\[0\] = 70'),
        ({'sigmas': [3.0, 1.0], 'num_steps': 5}, 'num_steps = 5 contradicts'),
        ({'sigmas': [3.0, 1.0], 'sigma_max': 5.0}, 'sigma_max = 5 contradicts'),
        ({'solver': 'dpmpp_2m', 'S_churn': 3.0}, 'S_churn'),
        ({'solver': 'unipc', 'schedule': 'vp'}, 'schedule'),
        ({'solver': 'unipc', 'scaling': 'vp'}, 'scaling'),
        ({'solver': 'unipc', 'alpha': 0.5}, 'alpha'),
        ({'solver': 'unipc', 'preset': 'vp'}, 'schedule'),
    ],
    ids=str,
)
def test_impossible_options_are_refused_by_key_and_value(options: Any, named: str) -> None:
    with pytest.raises(RecipeError, match=named) as refusal:
        sampler_options(options, 0.01, 50.0)
    assert refusal.value.cure


def test_a_refusal_of_sample_is_the_same() -> None:
    for options in ({'alpha': 4.0}, {'S_min': 2.0, 'S_max': 1.0}, {'solver': 'unipc', 'schedule': 'vp'}, {'sigmas': [1.0, 2.0]}):
        with pytest.raises(RecipeError) as early:
            sampler_options(options)
        with pytest.raises(RecipeError) as late:
            sample(small_mixture(), latents(), **options)
        assert str(early.value) == str(late.value)


@pytest.mark.parametrize('solver', ['euler', 'heun', 'dpmpp_2m', 'unipc'])
def test_cost_is_what_was_said(solver: str) -> None:
    for num_steps, first_step in ((1, 0), (2, 0), (18, 0), (18, 10), (18, 17)):
        for options in ({}, {'discretization': 'iddpm'}, {'alpha': 0.5}, {'S_churn': 5.0}, {'schedule': 'vp', 'scaling': 'vp'}):
            if options and solver != 'heun':
                continue
            o: dict[str, Any] = {'solver': solver, 'num_steps': num_steps, 'first_step': first_step, **options}
            counter = CallCounter(small_mixture())
            sample(counter, latents(), noise=lambda i: latents(), **o)
            assert counter.calls == nfe(o) == nfe(sampler_options(o))
    assert nfe({'sigmas': [3.0, 2.0, 1.0], 'solver': solver}) == (5 if solver == 'heun' else 3)


@pytest.mark.parametrize('name', sorted(PRESETS))
def test_preset_has_the_published_cost_and_runs(name: str) -> None:
    preset = PRESETS[name]
    assert preset.what
    assert preset.source
    assert {calls for _, _, _, calls in preset.published} == {nfe({'preset': name})}
    assert all(1 < fid < 6 for _, _, fid, _ in preset.published)
    x = sample(small_mixture(), latents(), noise=lambda i: latents(), **sampler_options({'preset': name, 'num_steps': 6}))
    assert torch.isfinite(x).all()


def test_options_beside_a_preset_win() -> None:
    done = sampler_options({'preset': 'churn_cifar10_vp', 'num_steps': 20})
    assert (done['num_steps'], done['S_churn'], done['S_noise']) == (20, 30, 1.007)
    assert 'preset' not in done


def test_skipped_steps_do_not_make_a_churn_window_empty() -> None:
    """A weak start may lie below the window; that is no reason to stop in the middle of a run."""
    x = sample(small_mixture(), latents(), start=torch.zeros(2, 2, 4, 4), first_step=17, S_churn=5.0, S_min=1.0, S_max=10.0, noise=lambda i: latents())
    assert torch.isfinite(x).all()
    assert float(edm_sigmas(18)[17]) < 1
