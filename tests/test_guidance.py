"""Guidance on a mixture whose conditional densities are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mixture import small_mixture
from torch import Tensor

from synthaug_plugins.diffusion import CallCounter, Denoiser, GaussianMixture, SampleNoise, noise_levels, sample
from synthaug_plugins.diffusion.gradient_guidance import ClassifierGradient, SelfGuided
from synthaug_plugins.diffusion.guidance import Autoguidance, ClassifierFree, Guided, Term
from synthaug_plugins.errors import ModelError, RecipeError

MIXTURE = small_mixture()
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 0, 2])
ONE_HOT = torch.nn.functional.one_hot(LABELS, 4).double()
SIGMAS = (0.01, 0.3, 1.0, 10.0, 80.0)


def noisy(sigma: float | Tensor, batch_size: int = 6) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return 0.4 * torch.randn(batch_size, 2, 4, 4, generator=g, dtype=torch.float64) + sigma * torch.randn(batch_size, 2, 4, 4, generator=g, dtype=torch.float64)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


def marginal() -> GaussianMixture:
    """The mixture over all four classes, with their prior: the unconditional model of that data, deaf to its condition."""
    assert MIXTURE.class_weights is not None
    weights = PRIOR @ MIXTURE.class_weights
    return GaussianMixture(weights, MIXTURE.means, MIXTURE.stds, weights.expand(4, -1))


def exact_log_prob(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
    """ln p(class | x; sigma) by Bayes' rule."""
    return MIXTURE.log_density(x, sigma, cond) + PRIOR.log()[cond.argmax(dim=1)] - marginal().log_density(x, sigma)


class Other:
    """A denoiser that differs: the mean of all images, whatever its input; `value` is the mean."""

    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        return torch.full_like(x, self.value)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma


@pytest.mark.parametrize('sigma', SIGMAS)
def test_exact_classifier_turns_the_unconditional_denoiser_into_the_conditional_one(sigma: float) -> None:
    x, guided = noisy(sigma), Guided(marginal(), [ClassifierGradient(1.0, exact_log_prob)])
    torch.testing.assert_close(guided(x, level(sigma), ONE_HOT), MIXTURE(x, level(sigma), ONE_HOT), rtol=0, atol=1e-9)
    per_sample = torch.full((6,), sigma, dtype=torch.float64)
    torch.testing.assert_close(guided(x, per_sample, ONE_HOT), MIXTURE(x, per_sample, ONE_HOT), rtol=0, atol=1e-9)


def test_classifier_guidance_samples_what_the_conditional_model_samples() -> None:
    latents = SampleNoise(range(6), (2, 4, 4)).latents()
    guided = sample(Guided(marginal(), [ClassifierGradient(1.0, exact_log_prob)]), latents, cond=ONE_HOT)
    torch.testing.assert_close(guided, sample(MIXTURE, latents, cond=ONE_HOT), rtol=0, atol=1e-8)
    assert not guided.requires_grad


def test_classifier_guidance_has_its_gradient_in_inference_mode_too() -> None:
    guided = Guided(marginal(), [ClassifierGradient(1.0, exact_log_prob)])
    expected = sample(guided, SampleNoise(range(6), (2, 4, 4)).latents(), cond=ONE_HOT, num_steps=4)
    with torch.inference_mode():
        found = sample(guided, SampleNoise(range(6), (2, 4, 4)).latents(), cond=ONE_HOT.clone(), num_steps=4)
        assert torch.equal(found, expected)


@pytest.mark.parametrize('sigma', SIGMAS)
def test_classifier_free_guidance_is_the_implicit_classifier(sigma: float) -> None:
    """D(cond) - D(uncond) = sigma^2 grad ln p(cond | x): both kinds of guidance agree when classifier and denoisers are exact."""

    class Pair(Other):
        def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            return marginal()(x, sigma) if cond is None else MIXTURE(x, sigma, cond)

    x, w = noisy(sigma), 1.5
    free = Guided(Pair(), [ClassifierFree(w, None)])(x, level(sigma), ONE_HOT)
    gradient = Guided(marginal(), [ClassifierGradient(1 + w, exact_log_prob)])(x, level(sigma), ONE_HOT)
    torch.testing.assert_close(free, gradient, rtol=0, atol=1e-9)
    # The usual form, by its scale: D(uncond) + scale (D(cond) - D(uncond)).
    cond, uncond = MIXTURE(x, level(sigma), ONE_HOT), marginal()(x, level(sigma))
    torch.testing.assert_close(free, uncond + (1 + w) * (cond - uncond), rtol=0, atol=1e-12)


def test_autoguidance_moves_away_from_the_weak_denoiser() -> None:
    x, weak = noisy(1.0), Other(0.2)
    D = MIXTURE(x, level(1.0), ONE_HOT)
    torch.testing.assert_close(Guided(MIXTURE, [Autoguidance(0.5, weak)])(x, level(1.0), ONE_HOT), D + 0.5 * (D - 0.2), rtol=0, atol=1e-12)


def test_terms_add_up_in_any_order_against_the_same_unguided_denoiser() -> None:
    x, sigma = noisy(1.0), level(1.0)
    terms = [ClassifierFree(2.0, None), Autoguidance(0.5, Other(0.2)), ClassifierGradient(0.7, exact_log_prob)]
    D = MIXTURE(x, sigma, ONE_HOT)
    apart = D + sum(Guided(MIXTURE, [term])(x, sigma, ONE_HOT) - D for term in terms)
    for order in (terms, terms[::-1]):
        torch.testing.assert_close(Guided(MIXTURE, order)(x, sigma, ONE_HOT), apart, rtol=0, atol=1e-12)


def terms(weight: float, weak: Denoiser, seen: list[int] | None = None, **options: Any) -> list[Term]:
    def log_prob(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        if seen is not None:
            seen.append(len(x))
        return exact_log_prob(x, sigma, cond)

    return [ClassifierFree(weight, None, **options), Autoguidance(weight, weak, **options), ClassifierGradient(weight, log_prob, **options)]


@pytest.mark.parametrize('options', [{'weight': 0.0}, {'weight': 2.0, 'interval': (90.0, 100.0)}], ids=['no weight', 'outside'])
def test_terms_that_do_not_act_change_no_bit_and_cost_no_call(options: dict[str, Any]) -> None:
    latents, base, weak, seen = SampleNoise(range(6), (2, 4, 4)).latents(), CallCounter(MIXTURE), CallCounter(Other()), []
    guided = sample(Guided(base, terms(weak=weak, seen=seen, **options)), latents, cond=ONE_HOT)
    assert torch.equal(guided, sample(MIXTURE, latents, cond=ONE_HOT))
    assert (base.calls, weak.calls, seen) == (35, 0, [])


def test_interval_is_closed_and_decides_what_is_called() -> None:
    latents, sigmas = SampleNoise(range(6), (2, 4, 4)).latents(), [8.0, 4.0, 2.0, 1.0, 0.5]
    base, weak, seen = CallCounter(MIXTURE), CallCounter(Other()), []
    sample(Guided(base, terms(0.1, weak, seen, interval=(1.0, 4.0))), latents, cond=ONE_HOT, sigmas=sigmas, solver='euler')
    # Five calls, and one more by classifier-free guidance at 4, 2 and 1.
    assert (base.calls, base.images, weak.calls, seen) == (8, 48, 3, [6, 6, 6])


def test_interval_is_decided_per_sample() -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0, 50.0], dtype=torch.float64)
    x = noisy(sigma.reshape(-1, 1, 1, 1))
    plain, everywhere = MIXTURE(x, sigma, ONE_HOT), Guided(MIXTURE, terms(0.5, Other()))(x, sigma, ONE_HOT)
    base = CallCounter(MIXTURE)
    guided = Guided(base, terms(0.5, Other(), interval=(0.5, 2.0)))(x, sigma, ONE_HOT)
    inside = torch.tensor([False, True, True, True, False, False])
    assert torch.equal(guided[inside], everywhere[inside])
    assert torch.equal(guided[~inside], plain[~inside])
    assert base.calls == 2
    assert Guided(base, terms(0.5, Other(), interval=(4.0, 40.0)))(x, sigma, ONE_HOT).equal(plain)
    assert base.calls == 3


def test_interval_of_a_sigma_on_the_host_needs_nothing_from_the_device() -> None:
    """The meta device stands for an accelerator: reading a value there raises."""
    guided = Guided(Other(), [Autoguidance(1.0, Other(0.2), interval=(0.5, 2.0)), ClassifierGradient(1.0, lambda x, sigma, cond: x.flatten(1).sum(1) / sigma)])
    latents = torch.zeros(2, 2, 4, 4, device='meta')
    assert sample(guided, latents, sigmas=[3.0, 1.0, 0.1]).device.type == 'meta'


def test_what_is_not_finite_outside_of_the_interval_stays_there() -> None:
    sigma = torch.tensor([0.1, 1.0], dtype=torch.float64)
    guided = Guided(MIXTURE, [Autoguidance(1.0, Other(math.nan), interval=(0.5, 2.0))])(noisy(1.0, 2), sigma, ONE_HOT[:2])
    assert guided[0].isfinite().all()
    assert guided[1].isnan().all()


def test_samples_do_not_depend_on_their_batch() -> None:
    guided = Guided(MIXTURE, terms(0.3, Other(), interval=(0.1, 5.0)))
    latents = SampleNoise(range(6), (2, 4, 4)).latents()
    together = sample(guided, latents, cond=ONE_HOT)
    apart = torch.cat([sample(guided, latents[i : i + 2], cond=ONE_HOT[i : i + 2]) for i in range(0, 6, 2)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('uncond', 'received'),
    [
        (None, None),
        (4, torch.full((3,), 4)),
        (torch.tensor(4), torch.full((3,), 4)),
        (torch.tensor([4]), torch.full((3,), 4)),
        (torch.tensor([4, 5, 6]), torch.tensor([4, 5, 6])),
        (
            {'encoder_hidden_states': torch.ones(1, 2, 5), 'added_cond_kwargs': {'time_ids': torch.zeros(1, 6)}},
            {'encoder_hidden_states': torch.ones(3, 2, 5), 'added_cond_kwargs': {'time_ids': torch.zeros(3, 6)}},
        ),
    ],
    ids=str,
)
def test_one_row_without_a_condition_stands_for_the_batch(uncond: Any, received: Any) -> None:
    seen = []

    class Recorder(Other):
        def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            seen.append(cond)
            return torch.zeros_like(x)

    cond = (
        {k: torch.rand_like(v) if isinstance(v, Tensor) else {n: torch.rand_like(t) for n, t in v.items()} for k, v in received.items()}
        if isinstance(received, dict)
        else torch.tensor([0, 1, 2])
    )
    Guided(Recorder(), [ClassifierFree(1.0, uncond)])(noisy(1.0, 3), level(1.0), cond)
    if received is None:  # no rows to lay under those of the condition: a call of its own
        assert len(seen) == 2
        assert seen[0] is cond and seen[1] is None
    else:
        assert len(seen) == 1
        torch.testing.assert_close(rows_from(seen[0], 3), received)
        torch.testing.assert_close(rows_from(seen[0], 0, 3), cond)


def rows_from(cond: Any, first: int, end: int | None = None) -> Any:
    return {k: rows_from(v, first, end) for k, v in cond.items()} if isinstance(cond, dict) else cond[first:end]


def text_like(sigma: Tensor, x: Tensor, cond: Tensor) -> Tensor:
    """A network that mixes nothing across samples and whose answer depends on its condition's row."""
    return x / (1 + sigma.reshape(-1, *[1] * 3).to(x.dtype)) + cond.reshape(-1, 1, 1, 1).to(x.dtype)


class Told(Other):
    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        return text_like(sigma, x, cond)


@pytest.mark.parametrize('per_sample', [False, True], ids=['one sigma', 'sigmas'])
def test_weights_per_sample_are_those_of_each_sample_alone(per_sample: bool) -> None:
    weights, cond, uncond = torch.tensor([0.0, 1.0, 6.5, -0.5, 2.0, 0.0], dtype=torch.float64), torch.arange(6.0), torch.tensor([9.0])
    sigma = torch.linspace(0.5, 2, 6, dtype=torch.float64) if per_sample else level(1.0)
    x, counter = noisy(1.0), CallCounter(Told())
    guided = Guided(counter, [ClassifierFree(weights, uncond, interval=(0.6, 3.0))])(x, sigma, cond)
    assert (counter.calls, counter.images) == (1, 12)
    for k, w in enumerate(weights.tolist()):
        alone = Guided(Told(), [ClassifierFree(w, uncond, interval=(0.6, 3.0))])(x[k : k + 1], sigma[k : k + 1] if per_sample else sigma, cond[k : k + 1])
        torch.testing.assert_close(guided[k : k + 1], alone, rtol=0, atol=1e-12)
    assert torch.equal(guided[[0, 5]], Told()(x, sigma, cond)[[0, 5]])


def test_weights_per_sample_that_are_all_zero_cost_no_row_and_nan_does_not_reach_a_sample_of_weight_zero() -> None:
    x, counter = noisy(1.0), CallCounter(Told())
    plain = Guided(counter, [ClassifierFree(torch.zeros(6), torch.tensor([9.0]))])(x, level(1.0), torch.arange(6.0))
    assert (counter.calls, counter.images) == (1, 6)
    assert torch.equal(plain, Told()(x, level(1.0), torch.arange(6.0)))
    mixed = Guided(Told(), [ClassifierFree(torch.tensor([0.0, 1, 0, 0, 0, 0]), torch.tensor([math.nan]))])(x, level(1.0), torch.arange(6.0))
    assert torch.isnan(mixed[1]).all()
    assert torch.equal(mixed[[0, 2, 3, 4, 5]], plain[[0, 2, 3, 4, 5]])


def test_conditions_that_do_not_fit_below_each_other_get_a_call_of_their_own() -> None:
    counter = CallCounter(Other(0.3))
    Guided(counter, [ClassifierFree(1.0, torch.zeros(1, 5))])(noisy(1.0), level(1.0), torch.zeros(6, 4))
    assert (counter.calls, counter.images) == (2, 12)


def test_weights_of_single_precision_states_keep_their_dtype() -> None:
    weights = torch.ones(6, dtype=torch.float64)
    assert Guided(Told(), [ClassifierFree(weights, torch.tensor([9.0]))])(noisy(1.0).float(), level(1.0), torch.arange(6.0)).dtype == torch.float32


@pytest.mark.parametrize(('normalise', 'length'), [('norm', lambda g: g.norm()), ('max', lambda g: g.abs().max())])
def test_normalised_gradients_move_every_sample_by_the_same_length_at_all_noise(normalise: Any, length: Any) -> None:
    """The classifier's confidence no longer matters; a gradient of zero moves nothing and brings no NaN."""
    sizes = torch.tensor([0.0, 1e-6, 1.0, 1e3, 1e9, 1.0], dtype=torch.float64)

    def log_prob(x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        return sizes * (x * weights).flatten(1).sum(1)

    weights = noisy(0.0)
    for sigma in (0.01, 1.0, 100.0):
        x = noisy(sigma)
        step = Guided(MIXTURE, [ClassifierGradient(2.0, log_prob, normalise)])(x, level(sigma), ONE_HOT) - MIXTURE(x, level(sigma), ONE_HOT)
        assert torch.equal(step[0], torch.zeros_like(step[0]))
        for k in range(1, 6):
            assert float(length(step[k])) == pytest.approx(2 * sigma**2 / math.sqrt(1 + sigma**2), rel=1e-6)
            torch.testing.assert_close(step[k] / length(step[k]), weights[k] / length(weights[k]), rtol=0, atol=1e-6)
    with pytest.raises(RecipeError, match="normalise = 'l2'"):
        ClassifierGradient(1.0, log_prob, 'l2')  # type: ignore[arg-type]


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)


def self_guided(weight: float | Tensor, levels: dict[int, float], sigma: float = 2.0, **options: Any) -> SelfGuided:
    return SelfGuided(weight, squared, SampleNoise(range(6), (2, 4, 4)).step, levels, sigma, **options)


def test_self_guidance_ascends_the_disagreement_of_the_model_with_itself() -> None:
    x, sigma, noise = noisy(1.0), level(1.0), SampleNoise(range(6), (2, 4, 4)).step(3).double()
    leaf = x.clone().requires_grad_()
    guess = MIXTURE(leaf, sigma, ONE_HOT)
    again = MIXTURE(guess + 2.0 * noise, level(2.0), ONE_HOT).detach()
    (gradient,) = torch.autograd.grad(squared(guess, again).sum(), leaf)
    expected = guess.detach() + 0.3 / math.sqrt(2) * gradient / gradient.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1)
    counter = CallCounter(MIXTURE)
    found = Guided(counter, [self_guided(0.3, {3: 1.0, 7: 0.5})])(x, sigma, ONE_HOT)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert counter.calls == 2
    with torch.inference_mode():
        assert torch.equal(Guided(MIXTURE, [self_guided(0.3, {3: 1.0})])(x.clone(), sigma, ONE_HOT.clone()), found)
    others: list[Term] = [Autoguidance(0.5, Other(0.2)), ClassifierFree(2.0, None), self_guided(0.2, {3: 1.0})]
    apart = guess.detach() + sum(Guided(MIXTURE, [term])(x, sigma, ONE_HOT) - guess.detach() for term in [*others, self_guided(0.3, {3: 1.0})])
    torch.testing.assert_close(Guided(MIXTURE, [self_guided(0.3, {3: 1.0}), *others])(x, sigma, ONE_HOT), apart, rtol=0, atol=1e-12)
    both = torch.tensor([1.0, 0.5, 0.7, 1.0, 0.5, 0.5], dtype=torch.float64)
    mixed = Guided(MIXTURE, [self_guided(0.3, {3: 1.0, 7: 0.5})])(x, both, ONE_HOT)
    torch.testing.assert_close(mixed[[0, 3]], found[[0, 3]], rtol=0, atol=1e-12)
    assert torch.equal(mixed[2], MIXTURE(x, both, ONE_HOT)[2])


@pytest.mark.parametrize(('solver', 'calls'), [('euler', 10 + 2), ('heun', 19 + 3), ('dpmpp_2m', 10 + 2)])
def test_self_guidance_costs_a_call_at_its_steps_and_none_elsewhere(solver: str, calls: int) -> None:
    """Heun meets the level of step 5 twice."""
    options: dict[str, Any] = {'num_steps': 10, 'solver': solver}
    levels = noise_levels('edm', 10, 0.002, 80.0).tolist()
    counter, latents = CallCounter(MIXTURE), SampleNoise(range(6), (2, 4, 4)).latents()
    guided = sample(Guided(counter, [self_guided(0.2, {0: levels[0], 5: levels[5]})]), latents, cond=ONE_HOT, **options)
    assert counter.calls == calls
    weights = torch.tensor([0.2, 0, 0.2, 0, 0.2, 0.2])
    some = sample(Guided(MIXTURE, [self_guided(weights, {0: levels[0], 5: levels[5]})]), latents, cond=ONE_HOT, **options)
    plain = sample(MIXTURE, latents, cond=ONE_HOT, **options)
    assert torch.equal(some[[1, 3]], plain[[1, 3]])
    torch.testing.assert_close(some[[0, 2, 4, 5]], guided[[0, 2, 4, 5]], rtol=0, atol=1e-6)
    assert not torch.equal(guided, plain)


def test_guided_denoiser_keeps_range_rounding_and_dtype_of_its_base() -> None:
    class Coarse(Other):
        sigma_min, sigma_max = 0.1, 50.0

        def round_sigma(self, sigma: Tensor) -> Tensor:
            return sigma.round()

    guided = Guided(Coarse(), [Autoguidance(1.0, Other())])
    assert isinstance(guided, Denoiser)
    assert (guided.sigma_min, guided.sigma_max) == (0.1, 50.0)
    assert float(guided.round_sigma(level(2.3))) == 2.0
    both = Guided(MIXTURE, terms(0.5, Other()))
    assert both(noisy(1.0).float(), level(1.0), ONE_HOT).dtype == torch.float32
    assert both(noisy(1.0).float(), torch.ones(6), ONE_HOT).dtype == torch.float32


@pytest.mark.parametrize(
    'options',
    [
        *({'weight': w} for w in (math.nan, math.inf, '1', None, True, torch.ones(2, 2), torch.tensor([1.0, math.nan]))),
        *({'interval': i} for i in ((2.0, 1.0), (-1.0, 1.0), (1.0,), (math.nan, 1.0), (0.2, None), ('0', 5), 5.0)),
    ],
    ids=str,
)
def test_wrong_weights_and_intervals_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f'Autoguidance: {next(iter(options))}'):
        Autoguidance(**{'weight': 1.0, 'weak': Other(), **options})


def test_guidance_without_anything_to_guide_by_is_refused() -> None:
    with pytest.raises(RecipeError, match='no terms'):
        Guided(MIXTURE, [])
    with pytest.raises(RecipeError, match='without a condition'):
        Guided(MIXTURE, [ClassifierFree(1.0, None)])(noisy(1.0), level(1.0))
    with pytest.raises(ModelError, match='log_prob'):
        Guided(MIXTURE, [ClassifierGradient(1.0, lambda x, sigma, cond: x.sum())])(noisy(1.0), level(1.0), ONE_HOT)
    with pytest.raises(ModelError, match='without a gradient'):
        Guided(MIXTURE, [ClassifierGradient(1.0, lambda x, sigma, cond: x.detach().flatten(1).sum(1))])(noisy(1.0), level(1.0), ONE_HOT)
    with pytest.raises(RecipeError, match='sigma = 0'):
        self_guided(1.0, {0: 1.0}, sigma=0)
