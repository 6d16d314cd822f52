"""Metrics of rarity, truth and coverage, on sets whose answer is known by hand, and against plain computations on drawn ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.evaluation.frechet import frechet_distance, moments
from synthaug_plugins.evaluation.metrics.coverage import covered, density, in_any
from synthaug_plugins.evaluation.metrics.features import feature_network
from synthaug_plugins.evaluation.metrics.frechet import Distances
from synthaug_plugins.evaluation.metrics.labels import neighbours_label
from synthaug_plugins.evaluation.metrics.measure import Reference
from synthaug_plugins.evaluation.metrics.neighbours import held, nearest, points
from synthaug_plugins.evaluation.metrics.rarity import LocalOutlierFactor, avg_knn, rarity
from synthaug_plugins.evaluation.metrics.sets import ImageSet

CPU = torch.device('cpu')


def line(*places: float) -> torch.Tensor:
    """Points on a line."""
    return torch.tensor(places, dtype=torch.float64)[:, None]


REAL = line(0, 1, 2, 10)
RADII = torch.tensor([1.0, 1.0, 1.0, 8.0], dtype=torch.float64)  # to the nearest other one


@pytest.fixture(scope='module')
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Real features far from zero, of which two are copies, made ones beside them, of which one is a copy, and labels of the real ones."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(150, 12)).astype(np.float32) + 100
    made = 1.5 * rng.normal(size=(120, 12)).astype(np.float32) + 100
    real[:40] += 5  # a part that no made image is near
    real[7], made[3] = real[70], real[45]
    return real, made, rng.integers(0, 4, 150)


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All distances, from differences."""
    return np.sqrt(((a[:, None].astype(np.float64) - b) ** 2).sum(-1))


def radius(features: np.ndarray, k: int) -> np.ndarray:
    return np.sort(apart(features, features), 1)[:, k]  # the first is its own


def test_radii_and_mean_distances_on_a_line() -> None:
    assert nearest(REAL, REAL, 1, same=True)[0][:, 0].tolist() == RADII.tolist()
    assert avg_knn(nearest(line(2.5), REAL, 1)[0]).tolist() == [0.5]
    assert avg_knn(nearest(line(2.5), REAL, 2)[0]).tolist() == [1.0]
    assert avg_knn(nearest(REAL, REAL, 2, same=True)[0]).tolist() == [1.5, 1.0, 1.5, 8.5]


def test_rarity_is_the_smallest_ball_that_holds_an_image_and_images_in_none_have_no_rarity() -> None:
    found = rarity(held(line(2.5, 4, -5, 3), REAL, RADII))
    np.testing.assert_array_equal(found, [1, 8, np.nan, 1])  # 3 lies on an edge: balls are closed
    np.testing.assert_array_equal(rarity(held(REAL, REAL, RADII, same=True)), [1, 1, 1, np.nan])


def test_precision_recall_density_and_coverage_on_a_line() -> None:
    made = line(2.5, 4, -5)
    assert in_any(held(made, REAL, RADII)).tolist() == [True, True, False]
    assert in_any(held(REAL, made, nearest(made, made, 1, same=True)[0][:, 0])).tolist() == [True, True, True, False]
    assert density(held(made, REAL, RADII), 1).tolist() == [2, 1, 0]
    assert covered(made, REAL, RADII).tolist() == [False, False, True, True]


def test_the_label_of_most_neighbours_wins_and_among_equals_the_nearest() -> None:
    assert neighbours_label(np.array([[2, 0, 0], [2, 0, 1], [1, 1, 0]])).tolist() == [0, 2, 1]
    assert neighbours_label(np.array([[3], [0]])).tolist() == [3, 0]


def test_tiles_change_nothing_and_equal_the_distances_from_differences(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    real, made, _ = drawn
    r = points(torch.from_numpy(real))
    m = points(torch.from_numpy(made), torch.from_numpy(real).double().mean(0))
    for queries, same, all_of_them in ((m, False, apart(made, real)), (r, True, apart(real, real))):
        if same:
            np.fill_diagonal(all_of_them, np.inf)
        whole, places = nearest(queries, r, 5, same)
        tiled, tiled_places = nearest(queries, r, 5, same, tile=700)
        assert torch.equal(whole, tiled) and torch.equal(places, tiled_places)
        np.testing.assert_allclose(whole, np.sort(all_of_them, 1)[:, :5], rtol=1e-12, atol=0)
    assert nearest(m, r, 1)[0][3] == 0  # a copy has no distance at all
    radii = nearest(r, r, 5, same=True)[0][:, -1]
    for tiled, whole in zip(held(m, r, radii, tile=700), held(m, r, radii), strict=True):
        assert torch.equal(tiled, whole)
    # The fifth neighbour of a point lies on the edge of the point's ball: none is lost to rounding.
    counts = held(r, r, radii, same=True).counts
    assert counts.tolist() == (all_of_them <= radii.numpy() * (1 + 1e-12)).sum(1).tolist() and counts.sum() >= 150 * 5


def test_measures_equal_plain_computations_and_carry_what_decides_them(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    from sklearn.neighbors import LocalOutlierFactor as Factor

    real, made, labels = drawn
    k, guessed = 5, np.arange(120) % 4
    reference = Reference(real, labels, 'pixels', k, 20, CPU)
    seen = reference.see(made, guessed, {'zero_shot': guessed == guessed})
    found = reference.measure(seen)
    assert (found.features, found.k, found.lof_k, found.n, found.n_real) == ('pixels', k, 20, 120, 150)
    distances, radii, own = apart(made, real), radius(real, k), radius(made, k)
    held = distances <= radii * (1 + 1e-12)
    smallest = np.where(held, radii, np.inf).min(1)
    expected = {
        'avg_knn': np.sort(distances, 1)[:, :k].mean(),
        'lof': -Factor(n_neighbors=20, novelty=True).fit(real.astype(float)).score_samples(made.astype(float)).mean(),
        'rarity': smallest[np.isfinite(smallest)].mean(),
        'excluded': 100 * np.isinf(smallest).mean(),
        'precision': 100 * held.any(1).mean(),
        'recall': 100 * (distances <= own[:, None] * (1 + 1e-12)).any(0).mean(),
        'density': held.sum() / (k * 120),
        'coverage': 100 * held.any(0).mean(),
        'fid': frechet_distance(*moments(made), *moments(real)),
        'zero_shot': 100.0,
    }
    assert 0 < expected['excluded'] < 100 and 0 < expected['recall'] < 100
    for name, value in expected.items():
        assert found.values[name].mean == pytest.approx(value, rel=1e-6), name
    each = np.sort(distances, 1)[:, :k].mean(1)
    assert found.values['avg_knn'].se == pytest.approx(each.std(ddof=1) / 120**0.5)
    assert all(found.values[name].se is None for name in ('recall', 'coverage', 'fid', 'kid'))  # none is a mean over these images
    some = np.arange(0, 120, 3)
    assert reference.measure(seen, some) == reference.measure(reference.see(made[some], guessed[some], {'zero_shot': guessed[some] == guessed[some]}))


def test_real_images_are_measured_without_themselves(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    from sklearn.neighbors import LocalOutlierFactor as Factor

    real, _, labels = drawn
    reference = Reference(real, labels, 'pixels', 5, 20, CPU)
    found = reference.of_itself()
    others = np.sort(apart(real, real), 1)[:, 1:6]
    assert found.values['avg_knn'].mean == pytest.approx(others.mean())
    assert found.values['lof'].mean == pytest.approx(-Factor(n_neighbors=20).fit(real.astype(float)).negative_outlier_factor_.mean())
    assert found.n == found.n_real == 150 and not {'recall', 'coverage', 'fid', 'kid'} & set(found.values)
    assert reference.rarest(3).tolist() == np.argsort(-others.mean(1), kind='stable')[:3].tolist()


def test_fid_and_kid_are_those_of_torchmetrics_and_of_the_formulas(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    real, made = drawn[0] - 100, drawn[1] - 100
    distances = Distances(real)
    assert distances.fid(made) == pytest.approx(frechet_distance(*moments(made), *moments(real)), rel=1e-9)
    assert distances.fid(real) == pytest.approx(0, abs=1e-6)  # the real moments are still there
    x, y = real[:120].astype(float), made.astype(float)
    xx, yy, xy = ((a @ b.T / 12 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    unbiased = sum((m.sum() - np.trace(m)) / (120 * 119) for m in (xx, yy)) - 2 * xy.mean()
    assert Distances(real[:120]).kid(made) == pytest.approx(unbiased, rel=1e-9)
    state = torch.get_rng_state()
    assert distances.kid(made) == distances.kid(made)  # its subsets are drawn by a seed of its own
    assert torch.equal(torch.get_rng_state(), state)


def test_copies_of_a_real_image_are_noticed_where_they_break_the_local_outlier_factor() -> None:
    real = np.random.default_rng(0).normal(size=(40, 3))
    assert not LocalOutlierFactor(real, 5).copies
    real[:8] = real[0]
    assert LocalOutlierFactor(real, 5).copies


def test_more_neighbours_than_images_are_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r'k = 4 .* only 3'):
        nearest(REAL, REAL, 4, same=True)
    with pytest.raises(DataError, match=r'k = 20 .* only 9 other real images'):
        Reference(np.zeros((10, 2), np.float32), np.zeros(10, int), 'pixels', 5, 20, CPU)
    with pytest.raises(DataError, match='k = 0'):
        nearest(REAL, REAL, 0)


def test_features_that_say_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r'Every real image has 5 others with the same features in .*dino'):
        Reference(np.ones((30, 2), np.float32), np.zeros(30, int), 'timm:dino', 5, 20, CPU)
    network = feature_network('pixels')
    monkeypatch.setattr(network, 'encode', lambda images: np.full((len(images), 2), np.nan, np.float32))
    with pytest.raises(ModelError, match=r"not finite for images of 'made'"):
        ImageSet('made', ['a'], ['cat'], lambda i: np.zeros((2, 2, 3), np.uint8)).encode([network], lambda n: None)


def test_a_set_of_no_more_images_than_k_has_no_recall(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    real, made, labels = drawn
    reference = Reference(real, labels, 'pixels', 5, 20, CPU)
    found = reference.measure(reference.see(made[:5], labels[:5]))
    assert 'recall' not in found.values and 'coverage' in found.values


def test_pixels_of_two_sizes_and_unknown_networks_are_refused() -> None:
    network = feature_network('pixels')
    assert network.encode([np.full((2, 2, 3), 255, np.uint8)]).tolist() == [[1.0] * 12]
    with pytest.raises(DataError, match='2 x 2 and 3 x 2'):
        network.encode([np.zeros((2, 3, 3), np.uint8)])
    with pytest.raises(DataError, match='33 x 32 pixels are too large'):
        feature_network('pixels').encode([np.zeros((32, 33, 3), np.uint8)])
    for text in ('inception', 'clip:', 'timm:'):
        with pytest.raises(RecipeError, match='names no feature network'):
            feature_network(text)
