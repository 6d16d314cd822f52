"""Selections: any condition that a user means, none that reaches beyond the table, and no class lost in silence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_store import MADE_BY, make_plan, make_rows, make_store, store_of_lists

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = make_store(tmp_path_factory.mktemp('selection') / 'store', keep_rejected=True)
    ids = store.index()['id'].to_pylist()
    store.add_scores('quality', pa.table({'id': ids[1:], 'quality': [float(i) for i in range(1, len(ids))]}))
    return store


def rows(store: Store, **options: Any) -> list[dict[str, Any]]:
    return select(store, **options).table.to_pylist()


def test_all_kept_rows_in_the_order_of_their_ids(store: Store) -> None:
    selection = select(store)
    expected = [r for r in store.index().to_pylist() if r['verdict'] == 'kept']
    assert selection.table.to_pylist() == sorted(expected, key=lambda r: r['id'])
    assert selection.counts == {'one': 6, 'two': 6, 'three': 6}
    assert selection.undecided == 0
    assert 'verdict' in selection.table.column_names


@pytest.mark.parametrize(
    ('where', 'expected'),
    [
        ('clip_p > 1/10', lambda r: r['clip_p'] > 0.1),
        ("class = 'two'", lambda r: r['label'] == 1),
        ("class_name in ('one', 'three') and label <> 2", lambda r: r['label'] == 0),
        ('params.sigma <= 0.3', lambda r: json.loads(r['params'])['sigma'] == 0.3),
        ("-params.sigma >= -0.3 and params.sampler = 'heun'", lambda r: json.loads(r['params'])['sigma'] == 0.3),
        ("source like 'one/%'", lambda r: r['source'].startswith('one/')),
        ('clip_p > 0 -- no zeros', lambda r: r['clip_p'] > 0),
        ('shard = 0 or seed is null', lambda r: r['shard'] == 0),
    ],
)
def test_conditions_select_what_they_say(store: Store, where: str, expected: Callable[[dict[str, Any]], bool]) -> None:
    chosen = rows(store, where=where, allow_empty=True)
    assert chosen == [r for r in rows(store) if expected(r)]
    assert chosen


def test_thresholds_per_class_are_one_expression(store: Store) -> None:
    chosen = rows(store, where='clip_p >= quantile_cont(clip_p, 0.5) over (partition by class)')
    for label in range(3):
        values = sorted(r['clip_p'] for r in rows(store) if r['label'] == label)
        median = (values[2] + values[3]) / 2
        assert sorted(r['clip_p'] for r in chosen if r['label'] == label) == [v for v in values if v >= median]


def test_missing_values_are_left_out_and_counted(store: Store) -> None:
    selection = select(store, 'quality >= 0')
    assert selection.undecided == 1
    assert '00000_000000' not in selection.table['id'].to_pylist()
    assert '17 of 18 images; 1 left out since a value is missing (one 5, two 6, three 6)' in selection.describe()


def test_top_k_takes_the_best_of_every_class(store: Store) -> None:
    for top_k, n in ((2, 2), (0.5, 3), (1.0, 6), (99, 6)):
        chosen = rows(store, top_k=top_k, by='clip_p')
        for label in range(3):
            values = sorted((r['clip_p'] for r in rows(store) if r['label'] == label), reverse=True)
            assert sorted((r['clip_p'] for r in chosen if r['label'] == label), reverse=True) == values[:n]
    lowest = rows(store, top_k=1, by='-clip_p')
    assert {r['clip_p'] for r in lowest} == {0.0}
    assert '00000_000000' not in [r['id'] for r in rows(store, top_k=1.0, by='quality')]


def test_samples_are_seeded_and_nested(store: Store) -> None:
    def ids(**options: Any) -> set[str]:
        return {r['id'] for r in rows(store, **options)}

    assert Counter(r['label'] for r in rows(store, sample=3, seed=1)) == {0: 3, 1: 3, 2: 3}
    assert ids(sample=3, seed=1) == ids(sample=3, seed=1)
    assert ids(sample=2, seed=1) < ids(sample=3, seed=1)
    assert len({frozenset(ids(sample=3, seed=seed)) for seed in range(10)}) > 5
    assert ids(sample=99) == ids()


def test_rejected_rows_come_only_when_asked_for(store: Store, tmp_path: Path) -> None:
    assert {r['verdict'] for r in rows(store)} == {'kept'}
    assert {r['verdict'] for r in rows(store, rejected=True)} == {'kept', 'rejected'}
    without_images = make_store(tmp_path / 'store', keep_rejected=False)
    assert {r['verdict'] for r in rows(without_images, rejected=True)} == {'kept'}


@pytest.mark.parametrize(
    ('where', 'what'),
    [
        ('clp_p > 1', "Did you mean 'clip_p'"),
        ('params.sgma > 1', "Did you mean 'params.sigma'"),
        ('class = "two"', 'single quotes'),
        ('label', 'gives int32, not true or false'),
        ('clip_p >', 'not one SQL expression'),
        ('foo(clip_p)', 'cannot be evaluated'),
        ("clip_p = 'x'", 'cannot be evaluated'),
        ('sum(clip_p) > 1', 'cannot be evaluated'),
        ('unnest([true, true])', r'gives 36 values for 18'),
        ('', 'not one SQL expression'),
    ],
)
def test_wrong_conditions_are_refused_with_a_cure(store: Store, where: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        select(store, where)
    assert caught.value.cure


@pytest.mark.parametrize(
    'where',
    [
        'true; drop table images',
        'true; select 1',
        'true union select 1',
        'true) or (true',
        'true, false',
        "(select count(*) from read_csv('/etc/passwd')) > 0",
        "(select count(*) from read_text('/etc/passwd')) > 0",
        "(select count(*) from '/etc/passwd') > 0",
        "exists (from glob('/*'))",
        "exists (from read_parquet('http://127.0.0.1:1/x.parquet'))",
        "copy (select 1) to '{tmp}/x'",
        "attach '{tmp}/x.db'",
        'install httpfs',
        'set enable_external_access = true',
        'pragma database_list',
        '(select count(*) from rows) > 0',
        '(select count(*) from store) > 0',
        "getenv('HOME') = 'x'",
    ],
)
def test_hostile_conditions_reach_nothing(store: Store, tmp_path: Path, where: str) -> None:
    for option in ({'where': where}, {'top_k': 1, 'by': where}):
        with pytest.raises(RecipeError):
            select(store, **{k: v.replace('{tmp}', str(tmp_path)) if isinstance(v, str) else v for k, v in option.items()})
    assert list(tmp_path.iterdir()) == []


def test_an_emptied_class_is_refused_by_name(store: Store) -> None:
    with pytest.raises(RecipeError, match=r"leaves no image for 'two', 'three'"):
        select(store, "class = 'one'")
    assert select(store, "class = 'one'", allow_empty=True).counts == {'one': 6, 'two': 0, 'three': 0}


def test_a_class_that_the_plan_leaves_out_is_no_reason_to_refuse(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store', make_plan({'one': 3, 'three': 3}))
    assert select(store).counts == {'one': 3, 'two': 0, 'three': 3}


def test_an_unfinished_store_says_so(tmp_path: Path) -> None:
    store = Store.create(tmp_path / 'store', make_plan(), MADE_BY)
    with pytest.raises(RecipeError, match='Finish the store first'):
        select(store, 'clip_p > 0 or params.sigma > 0', allow_empty=False)
    for block in store.plan.blocks[:5]:
        store.publish(block, make_rows(block), False)
    assert '[unfinished store: 1 of 6 blocks missing]' in select(store).describe()


def test_an_empty_store_selects_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / 'store', make_plan(), MADE_BY)
    assert len(select(store, sample=3, allow_empty=True).table) == 0


@pytest.mark.parametrize(
    'options', [{'top_k': 3}, {'by': 'clip_p'}, {'top_k': 0, 'by': 'clip_p'}, {'top_k': 1.5, 'by': 'clip_p'}, {'top_k': 1, 'by': 'source'}, {'sample': 0}]
)
def test_wrong_options_are_refused(store: Store, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        select(store, **options)


def test_conditions_reach_into_lists(tmp_path: Path) -> None:
    """Half precision, which DuckDB does not read, included; lists that a condition does not name are not handed over."""
    store = store_of_lists(tmp_path / 'lists')
    every = select(store)
    assert select(store, 'logits[1] >= 3').table['logits'].to_pylist() == [row['logits'] for row in every.table.to_pylist() if row['logits'][0] >= 3]
    assert select(store, 'list_max(LOGITS) = logits[2]', allow_empty=True).table['clip_p'].to_pylist() == [0.0] * 6
    assert select(store, 'labels = [2, 0] and clip_p >= 0').table.num_rows == every.table.num_rows
    assert every.table.schema.field('logits').type.value_type == pa.float16()
    with pytest.raises(RecipeError, match=r"no 'logit' in the store .* Did you mean 'logits'"):
        select(store, 'logit[1] > 0')
