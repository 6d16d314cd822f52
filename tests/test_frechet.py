"""The Frechet distance agrees with reference values and with what can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthaug_plugins.evaluation.frechet import frechet_distance, moments


@pytest.mark.parametrize('case', [0, 1])
def test_agrees_with_the_reference_vectors(shared: Path, case: int) -> None:
    misc = np.load(shared / 'golden' / 'misc.npz')
    mu, sigma, mu_ref, sigma_ref, value = (misc[f'fid{case}_{name}'] for name in ('mu', 'sigma', 'mu_ref', 'sigma_ref', 'value'))
    assert frechet_distance(mu, sigma, mu_ref, sigma_ref) == pytest.approx(float(value), rel=1e-9)


def test_moved_and_widened_normals_are_as_far_apart_as_the_formula_says() -> None:
    """Commuting covariances: |mu difference|^2 plus the squared differences of the standard deviations."""
    far = frechet_distance(np.array([0.0, 0.0]), np.diag([1.0, 4.0]), np.array([3.0, 4.0]), np.diag([9.0, 4.0]))
    assert far == pytest.approx(25 + (3 - 1) ** 2)


def test_a_set_is_at_distance_zero_from_itself_even_at_low_rank() -> None:
    features = np.random.default_rng(0).normal(size=(5, 20))
    assert frechet_distance(*moments(features), *moments(features)) == pytest.approx(0, abs=1e-6)


def test_covariance_divides_by_one_less_than_the_number() -> None:
    mu, sigma = moments(np.array([[0.0, 1.0], [2.0, 1.0]]))
    assert mu.tolist() == [1, 1]
    assert sigma.tolist() == [[2, 0], [0, 0]]
