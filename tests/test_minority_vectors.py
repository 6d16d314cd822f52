"""Guided sampling against outputs of the official code of minority guidance: single steps and whole loops, DDIM and DDPM."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug_plugins.diffusion import ClassifierGradient, GaussianMixture, Guided, sample

STEPS, SCALE = 20, 3.5


class Vectors:
    """The vectors of one file, and the model, classifier and process of 20 steps that belong to them."""

    def __init__(self, folder: Path) -> None:
        arrays = np.load(folder / 'golden' / 'minority.npz')
        self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        told = json.loads((folder / 'golden' / 'minority.json').read_text())['meta']['single_step']
        assert (told['respacing'], told['guidance_scale']) == (str(STEPS), SCALE)
        self.t_index: list[int] = told['t_index']
        self.timesteps = [round(i * 999 / (STEPS - 1)) for i in range(STEPS)]
        self.alpha_bar = self['abar0'][self.timesteps]
        self.sigmas = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        self.mixture = GaussianMixture(self['mix_weights'], self['mix_means'], self['mix_stds'])

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def index(self, sigma: Tensor) -> int:
        return int((self.sigmas - sigma).abs().argmin())

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """ln p of the toy classifier, which sees variance-preserving states and timesteps."""
        t = self.timesteps[self.index(sigma)]
        logits = (x / (1 + sigma**2).sqrt()).flatten(1) @ self['cls_W'] * (1 - t / 2000)
        return logits.log_softmax(dim=1).gather(1, self['y'][:, None])[:, 0]

    def denoiser(self, clip: bool) -> Clipped:
        return Clipped(self.mixture, clip)

    def guided(self, clip: bool, weight: float = SCALE) -> Guided:
        return Guided(self.denoiser(clip), [ClassifierGradient(weight, self.log_prob)])

    def before(self, k: int) -> float:
        """alpha_bar of the step after this one (k counts down)."""
        return float(self.alpha_bar[k - 1]) if k else 1.0


class Clipped:
    """The mixture's D, clamped to [-1, 1] before guidance, as the official code clips."""

    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, mixture: GaussianMixture, clip: bool) -> None:
        self.mixture, self.clip = mixture, clip

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        D = self.mixture(x, sigma)
        return D.clamp(-1, 1) if self.clip else D

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma


@pytest.fixture(scope='module')
def shared_folder(request: pytest.FixtureRequest) -> Path:
    from conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip(f'reference data absent: {SHARED} does not exist')
    return SHARED


@pytest.fixture(scope='module')
def v(shared_folder: Path) -> Vectors:
    return Vectors(shared_folder)


CASES = [(j, clip) for j in range(4) for clip in (0, 1)]


@pytest.mark.parametrize(('j', 'clip'), CASES)
@pytest.mark.parametrize('eta', [0, 1])
def test_guided_ddim_step_is_a_step_of_the_sampler(v: Vectors, j: int, clip: int, eta: int) -> None:
    """A two-step run, seen after its first step; states of theirs are sqrt(alpha_bar) times ours."""
    k = v.t_index[j]
    sigmas = [float(s) for s in v.sigmas[[k, k - 1]]] if k else [float(v.sigmas[0])]
    latents = v[f's{j}_x'] / math.sqrt(float(v.alpha_bar[k])) / sigmas[0]
    noise, states = v[f's{j}_noise'].expand(len(sigmas), -1, -1, -1, -1), []
    sample(v.guided(bool(clip)), latents, noise=noise, sigmas=sigmas, solver='euler', eta=eta, callback=lambda i, x, D: states.append(x))
    torch.testing.assert_close(states[0] * math.sqrt(v.before(k)), v[f's{j}_c{clip}_ddim_eta{eta}'], rtol=0, atol=1e-9)


def test_guided_ddim_loop_is_one_run_of_the_sampler(v: Vectors) -> None:
    sigmas = v.sigmas.flip(0)
    x = sample(v.guided(True), v['loop_init'] / math.sqrt(float(v.alpha_bar[-1])) / sigmas[0], sigmas=sigmas, solver='euler')
    torch.testing.assert_close(x, v['loop_ddim'], rtol=0, atol=1e-9)


def learned_variance(v: Vectors, x_vp: Tensor, k: int) -> Tensor:
    """The variance that the vectors' model predicts: between beta_t and the posterior's, in logarithms, both of the respaced process."""
    beta = 1 - v.alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), v.alpha_bar[:-1]])
    posterior = beta * (1 - torch.cat([torch.ones(1, dtype=torch.float64), v.alpha_bar[:-1]])) / (1 - v.alpha_bar)
    share = (0.5 * x_vp.tanh() + 1) / 2
    return (share * beta[k].log() + (1 - share) * posterior[max(k, 1)].log()).exp()


def ddpm(v: Vectors, x_vp: Tensor, k: int, noise: Tensor, clip: bool, weight: float = SCALE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A guided ancestral step: mean, variance, the mean that guidance moved, and the next state; the gradient comes out of our term."""
    root, sigma = math.sqrt(float(v.alpha_bar[k])), v.sigmas[k]
    D = v.denoiser(clip)(x_vp / root, sigma)
    before, now = v.before(k), float(v.alpha_bar[k])
    beta = 1 - now / before
    mean = beta * math.sqrt(before) / (1 - now) * D + (1 - before) * math.sqrt(now / before) / (1 - now) * x_vp
    variance = learned_variance(v, x_vp, k)
    delta = v.guided(clip, 1.0)(x_vp / root, sigma) - D
    # delta = sigma^2 grad_x, and grad_vp = grad_x / root.
    moved = mean + weight * variance * delta / sigma**2 / root
    return mean, variance, moved, moved + (k > 0) * variance.sqrt() * noise


@pytest.mark.parametrize(('j', 'clip'), CASES)
def test_gradient_of_the_term_moves_the_ancestral_mean(v: Vectors, j: int, clip: int) -> None:
    mean, variance, moved, after = ddpm(v, v[f's{j}_x'], v.t_index[j], v[f's{j}_noise'], bool(clip))
    for name, found, atol in (('mean', mean, 1e-9), ('var', variance, 1e-9), ('cmean', moved, 1e-6), ('ddpm', after, 1e-6)):
        torch.testing.assert_close(found, v[f's{j}_c{clip}_{name}'], rtol=0, atol=atol)


@pytest.mark.parametrize(('name', 'weight', 'atol'), [('loop_ddpm', SCALE, 1e-6), ('loop_ddpm_unguided', 0.0, 1e-9)])
def test_ancestral_loop_comes_out(v: Vectors, name: str, weight: float, atol: float) -> None:
    x = v['loop_init']
    for i, k in enumerate(reversed(range(STEPS))):
        x = ddpm(v, x, k, v['loop_noise'][i], True, weight)[3]
    torch.testing.assert_close(x, v[name], rtol=0, atol=atol)
