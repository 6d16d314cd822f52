"""Diversity within class, class by class, what a CLIP says of labels, and what classifiers learn: against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthaug_plugins.errors import DataError
from synthaug_plugins.evaluation.metrics.diversity import pair_distance, vendi_score, within_classes
from synthaug_plugins.evaluation.metrics.held_out import RightAnswers, linear_probe
from synthaug_plugins.evaluation.metrics.labels import clip_agreement
from synthaug_plugins.evaluation.metrics.measure import Reference
from synthaug_plugins.evaluation.metrics.per_class import ClassReferences

CPU = torch.device('cpu')


def plain_vendi(features: np.ndarray) -> float:
    """exp(- sum of l log l) over the eigenvalues of K / n, K_ij the cosine of i and j."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    eigenvalues = eigenvalues[eigenvalues > 1e-15]
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


@pytest.mark.parametrize('shape', [(30, 7), (7, 30)])
def test_diversity_is_what_the_formulas_say(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape) + 1
    x = torch.from_numpy(features)
    apart = np.sqrt(((features[:, None] - features) ** 2).sum(-1))
    expected = apart.sum() / (len(features) * (len(features) - 1))
    assert pair_distance(x) == pytest.approx(expected) == pair_distance(x, tile=3 * len(features))
    assert vendi_score(x) == pytest.approx(plain_vendi(features))


def test_copies_are_one_image_and_orthogonal_ones_are_many() -> None:
    copies = torch.ones(5, 3, dtype=torch.float64)
    assert vendi_score(copies) == pytest.approx(1) and pair_distance(copies) == pytest.approx(0, abs=1e-7)
    assert vendi_score(3 * torch.eye(4, dtype=torch.float64)) == pytest.approx(4)
    assert vendi_score(torch.zeros(3, 2, dtype=torch.float64)) == 0  # black images as pixels: no direction at all


def test_each_class_counts_once_and_one_image_is_no_class() -> None:
    x = torch.tensor([[0.0], [2.0], [0.0], [4.0], [8.0], [99.0]], dtype=torch.float64) + 1
    found = within_classes(x, x, np.array([0, 0, 1, 1, 1, 2]))
    assert found['spread'] == pytest.approx((2 + (4 + 8 + 4) / 3) / 2) and found['vendi'] == pytest.approx(1)
    assert within_classes(x, x, np.arange(6)) == {}


@pytest.fixture(scope='module')
def clusters() -> tuple[np.ndarray, np.ndarray]:
    """Three classes of 4 features: 30 images, 30 images, and 4."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [30, 30, 4])
    return (rng.normal(size=(64, 4)) + 3 * np.eye(4)[labels]).astype(np.float32), labels


def test_a_class_is_measured_against_its_own_real_images_where_there_are_enough(clusters: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = clusters
    real, made = (features[::2], labels[::2]), (features[1::2], labels[1::2])
    whole = Reference(*real, 'pixels', 5, 14, CPU)
    told = {'zero_shot': np.arange(32) % 2 == 0, 'clip_score': np.arange(32.0)}
    references = ClassReferences(*real, ('a', 'b', 'c'), 'pixels', 5, 14, CPU)
    seen = whole.see(*made, told)
    found = references.measure('store', seen)
    assert set(found) == {0, 1}
    of_b = np.flatnonzero(made[1] == 1)
    direct = Reference(real[0][real[1] == 1], np.ones(15, int), 'pixels', 5, 14, CPU)
    expected = direct.measure(direct.see(made[0][of_b], np.ones(15, int)))
    for name in ('avg_knn', 'lof', 'precision', 'recall', 'density', 'coverage', 'fid', 'kid', 'spread', 'vendi'):
        assert found[1].values[name] == expected.values[name], name
    assert (found[1].n, found[1].n_real) == (15, 15)
    # Labels are asked among all classes, not among the one.
    assert found[1].values['agreement'].mean == pytest.approx(100 * seen.each['agreement'][of_b].mean())
    assert found[1].values['clip_score'].mean == pytest.approx(of_b.mean())
    assert found[1].values['zero_shot'].mean == pytest.approx(100 * (of_b % 2 == 0).mean())
    own = references.of_real(whole.of_real, real[1])
    assert set(own) == {0, 1} and 'fid' not in own[0].values and own[0].n == 15
    assert references.left_out == ['No line of a class with k = 5 images or fewer: c (real: 2).']


def test_what_few_images_do_not_settle_is_left_out_and_said(clusters: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = clusters
    wide = np.random.default_rng(2).normal(size=(64, 20)).astype(np.float32)
    wide[:, :4] = features
    wide[labels == 0] = wide[0]  # copies
    real, made = (wide[::2], labels[::2]), (wide[1::2], labels[1::2])
    references = ClassReferences(*real, ('a', 'b', 'c'), 'pixels', 3, 20, CPU)
    found = references.measure('store', Reference(*real, 'pixels', 1, 5, CPU).see(*made))
    assert set(found) == {1} and {'fid', 'lof'}.isdisjoint(found[1].values) and 'kid' in found[1].values and found[1].lof_k is None
    copies, small, no_fid, no_lof = references.left_out
    assert copies.startswith('No lines of a. Every real image has 3 others with the same features')
    assert small.endswith('c (real: 2).') and 'more than 20 images' in no_fid and no_fid.endswith('So for b.') and no_lof.endswith('b.')


def test_what_a_clip_says_of_labels() -> None:
    found = clip_agreement(np.array([[0.3, 0.2], [0.3, 0.1], [-0.2, -0.1]]), np.array([0, 1, 0]))
    assert found['zero_shot'].tolist() == [True, False, False]
    np.testing.assert_allclose(found['clip_score'], [30, 10, 0])


def test_the_probe_is_the_logistic_regression_of_scikit_learn(clusters: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = clusters
    (made, m), (test, t) = (features[::2], labels[::2]), (features[1::2], labels[1::2])
    origin = made.mean(0)

    def unit(x: np.ndarray) -> np.ndarray:
        return (x - origin) / np.linalg.norm(x - origin, axis=1, keepdims=True)

    answers = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(unit(made), m).predict(unit(test))
    found = linear_probe(made, m, test, t, origin, 3)
    assert found.right.tolist() == [int(((answers == t) & (t == c)).sum()) for c in range(3)] and found.images.tolist() == [15, 15, 2]
    assert 50 < found.value().mean < 100
    without = linear_probe(made[m != 1], m[m != 1], test, t, origin, 3)
    assert without.right[1] == 0 and without.value(1).mean == 0 and without.images.tolist() == [15, 15, 2]


def test_right_answers_as_a_share_with_its_error() -> None:
    tested = RightAnswers(np.array([3, 0]), np.array([4, 0]))
    assert tested.value() == tested.value(0) and tested.value().mean == 75
    assert tested.value().se == pytest.approx(np.std([0, 100, 100, 100], ddof=1) / 2)
    with pytest.raises(DataError, match='no held-out images'):
        tested.value(1)
