"""Levels of rarity: exact shares, limits, the published rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.models.levels import Levels, assign_levels, propose_level_count


@pytest.fixture(scope='module')
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / 'golden' / 'minority.npz'))


@pytest.mark.parametrize(('number', 'count'), [(0, 10), (1, 100), (2, 4)])
@pytest.mark.parametrize('kind', ['cont', 'ties'])
def test_published_levels_come_out(golden: dict[str, np.ndarray], number: int, count: int, kind: str) -> None:
    scores, limits, wanted = (golden[f'q{number}_{kind}_{what}'] for what in ('ms', 'thr', 'labels'))
    # The paper's limits: the quantile at (j + 1) / L, linear between scores. Ties leave levels empty, which assign_levels does not.
    levels = Levels(count, 'all', tuple(np.quantile(scores, np.arange(1, count) / count).tolist()))
    np.testing.assert_allclose(levels.thresholds, limits[:-1], atol=2e-6)
    assert (Levels(count, 'all', tuple(map(float, limits[:-1]))).of(scores) == wanted).all()
    if kind == 'cont':  # where scores are equal, the float32 of the published limits decides
        assert (levels.of(scores) == wanted).all()


def test_every_level_has_its_share_also_among_equal_scores() -> None:
    rng = np.random.default_rng(0)
    for n, count, kinds in ((103, 10, 1000), (50, 50, 3), (1000, 7, 4), (2, 2, 2)):
        scores = rng.integers(0, kinds, n).astype(float)
        scores[:2] = 0, kinds
        levels, limits = assign_levels(scores, count, 0)
        sizes = np.bincount(levels, minlength=count)
        assert len(sizes) == count
        assert sizes.max() - sizes.min() <= 1
        assert (np.diff(levels[np.argsort(scores, kind='stable')][np.r_[True, np.diff(np.sort(scores)) > 0]]) >= 0).all()
        assert Levels.from_json(limits.to_json()) == limits
        assert (assign_levels(scores, count, 0)[0] == levels).all()
    ties = np.r_[np.zeros(99), 1.0]
    assert (assign_levels(ties, 10, 1)[0] != assign_levels(ties, 10, 2)[0]).any()


def test_levels_of_new_images_follow_the_limits() -> None:
    scores = np.random.default_rng(1).normal(size=200)
    levels, limits = assign_levels(scores, 8, 0)
    assert (limits.of(scores) == levels).all()
    assert limits.of(np.array([-99.0, 99.0])).tolist() == [0, 7]


def test_a_class_is_ranked_by_itself() -> None:
    rng = np.random.default_rng(2)
    names = ['cat'] * 30 + ['dog'] * 50
    scores = np.r_[rng.normal(size=30), 100 + rng.normal(size=50)]
    levels, limits = assign_levels(scores, 5, 3, names)
    assert np.bincount(levels[:30]).tolist() == [6] * 5
    assert np.bincount(levels[30:]).tolist() == [10] * 5
    assert (limits.of(scores, names) == levels).all()
    assert Levels.from_json(limits.to_json()) == limits
    alone, own = assign_levels(scores[30:], 5, 3, names[30:])
    assert (alone == levels[30:]).all()
    assert own.thresholds['dog'] == limits.thresholds['dog']  # type: ignore[index]
    with pytest.raises(DataError, match="'cow' has no levels"):
        limits.of(scores[:1], ['cow'])
    with pytest.raises(DataError, match='class of each image was not given'):
        limits.of(scores)


def test_what_has_no_levels_is_refused() -> None:
    with pytest.raises(DataError, match=r"10 levels were asked for, but the class 'cat' has 3 images\. Use 3 levels or fewer"):
        assign_levels(np.arange(23.0), 10, 0, ['cat'] * 3 + ['dog'] * 20)
    with pytest.raises(DataError, match=r'All 5 scores of the data are 0\.25'):
        assign_levels(np.full(5, 0.25), 2, 0)
    with pytest.raises(DataError, match='1 of 3 scores are not finite'):
        assign_levels(np.array([1, np.nan, 2]), 2, 0)
    with pytest.raises(RecipeError, match='1 is no number of levels'):
        assign_levels(np.arange(5.0), 1, 0)
    for wrong in (
        {},
        {'count': 3, 'rank': 'all', 'thresholds': [1]},
        {'count': 3, 'rank': 'all', 'thresholds': [2, 1]},
        {'count': 2, 'rank': 'own', 'thresholds': [1]},
    ):
        with pytest.raises(ModelError, match='cannot be read'):
            Levels.from_json(wrong)


def test_the_number_of_levels_follows_the_data() -> None:
    assert [propose_level_count(n) for n in (2, 60, 1200, 50_000)] == [2, 2, 24, 100]
    with pytest.raises(DataError, match='1 images'):
        propose_level_count(1)
