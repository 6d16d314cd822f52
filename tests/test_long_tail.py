"""Long tails: classes are filled up to a number, copies are what they are, and a comparison of unequal classes says so wherever it reports."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learned_embeddings import folder_of_images
from test_ablation import change, nouns, result_of, run, write_data  # noqa: F401

from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, load_recipe, prepare
from synthaug_plugins.errors import DataError, RecipeError, SynthAugError
from synthaug_plugins.evaluation.ablation.drawn import copy_draw
from synthaug_plugins.evaluation.ablation.making import Making
from synthaug_plugins.evaluation.ablation.table import class_tables, tail_said
from synthaug_plugins.evaluation.compare import check_arms
from synthaug_plugins.evaluation.parts import Parts
from synthaug_plugins.evaluation.protocol import read_comparison
from synthaug_plugins.mixing.records import read_records
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.real_images import RealImages, decode_rgb
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.store import Store

EDM = {'type': 'EDM', 'model': 'embedded:digits_edm', 'sampler': {'num_steps': 2}}
COPIES = {'type': 'Copies'}


@pytest.fixture(scope='module')
def real(tmp_path_factory: pytest.TempPathFactory) -> RealImages:
    return folder_of_images(tmp_path_factory.mktemp('real'), {'five': 7, 'one': 4, 'two': 2}, (9, 12))


def recipe(real: RealImages | None, generator: dict[str, Any] = COPIES, **keys: Any) -> dict[str, Any]:
    return complete({'generator': generator, 'data': str(real.root) if real else None, 'inspectors': [], **keys})


def wanted(run: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in run.plan.parts:
        total[part.class_name] += part.target
    return dict(total)


# --- fill_to


@pytest.mark.parametrize('generator', [COPIES, EDM], ids=['of sources', 'from noise'])
@pytest.mark.parametrize(('fill_to', 'lacking'), [('largest', {'one': 3, 'two': 5}), (5, {'one': 1, 'two': 3}), (9, {'five': 2, 'one': 5, 'two': 7})])
def test_every_class_gets_what_its_real_images_lack(real: RealImages, generator: dict[str, Any], fill_to: Any, lacking: dict[str, int]) -> None:
    run = prepare(recipe(real, generator, fill_to=fill_to, block_size=4))
    assert wanted(run) == lacking
    assert run.plan.classes == real.classes  # a full class keeps its label


@pytest.mark.parametrize(
    ('keys', 'says'),
    [
        ({'fill_to': 0}, 'fill_to = 0 is no number'),
        ({'fill_to': True}, 'fill_to = True is no number'),
        ({'fill_to': 'most'}, "fill_to = 'most' is no number"),
        ({'fill_to': 5, 'per_class': 3}, 'per_class = 3 and fill_to = 5'),
        ({'fill_to': 5, 'per_source': 3}, 'per_source = 3 and fill_to = 5'),
        ({'per_class': None}, 'neither per_class nor per_source nor fill_to'),
    ],
)
def test_only_one_way_to_say_how_many_is_taken(real: RealImages, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe(real, **keys)


def test_nothing_to_fill_and_nothing_to_count_are_refused(real: RealImages) -> None:
    with pytest.raises(DataError, match=r'no class of .* lacks images, the smallest has 2'):
        prepare(recipe(real, fill_to=2))
    with pytest.raises(RecipeError, match='counts real images, but the recipe names none'):
        prepare(recipe(None, EDM, fill_to='largest'))


# --- copies


def test_copies_are_the_real_images_in_turn_to_the_pixel(real: RealImages, tmp_path: Path) -> None:
    options = {'data': str(real.root)}
    store = generate(load_recipe(find_recipe('oversampling', 'generate'), options), tmp_path / 's', 'cpu', quiet=True)
    rows = store.index().to_pylist()
    # 5 of the 2 twos: each twice, one of them once more
    assert Counter(row['source'] for row in rows if row['source'].startswith('two/')) == dict(zip(real.ids('two'), (3, 2), strict=True))
    reader = StoreReader(store.folder)
    for row in rows:
        assert np.array_equal(decode_rgb(io.BytesIO(reader.read_image(row))), real.load(row['source']))
    assert len(read_records({'store': str(store.folder)}, real.classes)) == 8  # ready to be trained on, the full class without any


def test_what_would_change_the_pixels_of_copies_is_said(real: RealImages) -> None:
    said: list[str] = []
    prepare(recipe(real, per_source=1, image={'format': 'jpg', 'size': 8}), said.append)
    assert len(said) == 2 and 'only' in said[0]
    with pytest.raises(SynthAugError, match='starts from real images'):
        prepare(recipe(None, per_class=1))


def test_a_trainer_recipe_takes_no_tail_and_says_where_it_is_drawn() -> None:
    from synthaug_plugins.training.few_shot_dataset import FewShotDataset

    with pytest.raises(RecipeError, match='synthaug shots --imbalance'):
        FewShotDataset('data/train', shots={'cat': 1})  # type: ignore[arg-type]


# --- comparisons

RECIPE = """
title = 'digits'
train = 'digits_resnet'
shots = [6]
imbalance = 3
seeds = [0]
cfg_options = {
    'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2, 'param_scheduler': [], 'train_dataloader.batch_size': 8,
    'model.backbone.stem_channels': 4, 'model.backbone.base_channels': 4, 'model.head.in_channels': 32,
}
made = dict(
    copies=dict(kind='store', recipe='oversampling', cfg_options={'fill_to': 6}),
    levels=dict(kind='minority', recipe='minority_digits', cfg_options={
        'levels.count': 3, 'score.draws': 1, 'training.images_shown': 64, 'training.batch_size': 32,
    }),
    rare=dict(kind='store', recipe='long_tail_digits_minority', cfg_options={
        'generator.sampler.num_steps': 2, 'generator.guidance.0.classifier': '{levels}', 'inspectors': [],
    }),
)
arms = dict(
    real_only=dict(),
    oversampling=dict(synthaug=dict(mix=dict(store='{copies}', mode='concat'))),
    minority=dict(synthaug=dict(mix=dict(store='{rare}', mode='concat'))),
)
reference = 'oversampling'
"""


@pytest.fixture
def compare_recipe(tmp_path: Path) -> Path:
    path = tmp_path / 'recipe.py'
    path.write_text(RECIPE)
    return path


def test_a_long_tail_is_drawn_filled_and_reported_against_oversampling(compare_recipe: Path, copied_workers: None, tmp_path: Path) -> None:
    data, out = write_data(tmp_path / 'data', train=range(100), test=range(1400, 1440), val=range(1200, 1240)), tmp_path / 'out'
    (result,) = run(compare_recipe, data)
    draw = out / 'draws' / '6-shot-imbalance-3-0' / 'train'
    drawn = RealImages(draw)
    assert {name: len(drawn.ids(name)) for name in drawn.classes} == {'three': 6, 'two': 2}
    for name, sources in (('copies', drawn.ids('two')), ('rare', (None,))):
        store = Store.open(out / 'made' / name / '6-shot-imbalance-3-0')
        assert {n: c['kept'] for n, c in store.counts().items()} == {'three': 0, 'two': 4}  # six of each class, with the real ones
        assert {row['source'] for row in store.index().to_pylist()} == set(sources)
    # levels were learned from the draw, and what fills a class up was told one of them
    learned = json.loads((out / 'made' / 'levels' / '6-shot-imbalance-3-0' / 'model' / 'config.json').read_text())
    assert np.sum(list(learned['counts'].values())) == 8 and learned['levels']['count'] == 3
    told = [json.loads(row['params']) for row in Store.open(out / 'made' / 'rare' / '6-shot-imbalance-3-0').index().to_pylist()]
    assert all(0 <= params['minority_level'] < 3 and params['minority_weight'] == 2.0 for params in told)
    assert {arm['steps'] for arm in result['arms']} == {4} and {arm['images'] for arm in result['arms']} == {4 * 8}

    said = 'Long tail, imbalance 3: three 6, two 2 real training images.'
    assert result['title'] == 'digits (imbalance 3)' and result['notes'] == [said]
    assert json.loads((out / '6-shot-imbalance-3' / 'results.json').read_text())['title'] == result['title']
    markdown, html = (out / 'table.md').read_text(), (out / 'report.html').read_text()
    for text in (markdown, html):
        assert said in text
        assert 'against oversampling: points of the mean that classes gained and lost' in text
        assert 'in brackets the difference to oversampling' in text
    rows = {(row['arm'], row['class']): row for row in csv.DictReader((out / 'classes.csv').open())}
    assert [rows['minority', name]['real_images'] for name in ('three', 'two')] == ['6', '2']
    recall = {arm['name']: arm['recall'][1]['mean'] for arm in result['arms']}
    assert float(rows['minority', 'two']['difference_vs_oversampling']) == pytest.approx(recall['minority'] - recall['oversampling'], abs=1e-3)


@pytest.mark.parametrize(
    ('old', 'new', 'says'),
    [
        ('imbalance = 3', 'imbalance = 0.5', 'imbalance = 0.5 is out of range'),
        ('imbalance = 3', "imbalance = '3'", "imbalance = '3' is out of range"),
        ('imbalance = 3', 'imbalances = 3', "Did you mean 'imbalance'"),
        ('shots = [6]', '', 'The compare recipe has data, but no shots'),
        ("'fill_to': 6", "'fill_to': 2", r'no class of .* lacks images, the smallest has 2'),
        ("'fill_to': 6", "'fill_to': 6, 'per_class': 5", 'per_class = 5 and fill_to = 6'),
        ("'levels.count': 3", "'levels.count': 5", '5 levels were asked for, but there are 8 images'),
        ("'score.draws': 1", "'score.draws': 0", 'draws = 0'),
        (
            "'generator.guidance.0.classifier': '{levels}'",
            "'generator.guidance.0.classifier': '{levels}', 'generator.guidance.0.level': 3",
            'has 3 levels, and no level 3',
        ),
        ("kind='minority'", "kind='minor'", "Did you mean 'minority'"),
        ("recipe='oversampling',", "recipe='oversampling', once=True,", 'names none'),
    ],
)
def test_a_tail_that_cannot_be_compared_is_refused_before_anything_is_made(compare_recipe: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    data = write_data(tmp_path / 'data', train=range(100), test=range(1400, 1440), val=range(1200, 1240))
    with pytest.raises(SynthAugError, match=says):
        run(change(compare_recipe, old, new), data)
    assert not (tmp_path / 'out' / 'made').exists()


def test_the_tables_of_classes_hold_gain_and_harm_against_both_arms() -> None:
    one = result_of(real=[[50, 60], [10, 20]], copies=[[50, 50], [30, 30]], new=[[40, 40], [50, 60]])
    of_real, of_copies, tail = class_tables([one], [8], 'copies', 4)
    assert of_real[1][2] == ['new', '+20.0', '−7.5', '1 of 2', '1 of 2', 'cat (−15.0)']
    assert of_copies[1][1:] == [['real', '+2.5', '−7.5', '1 of 2', '1 of 2', 'dog (−15.0)'], ['new', '+12.5', '−5.0', '1 of 2', '1 of 2', 'cat (−10.0)']]
    assert tail[1] == [
        ['class', 'real images', 'real', 'copies', 'new'],
        ['cat', '8', '55.0 (+5.0)', '50.0', '40.0 (−10.0)'],
        ['dog', '2', '15.0 (−15.0)', '30.0', '55.0 (+25.0)'],
    ]
    assert len(class_tables([one], [8], None)) == 1  # without a tail and without an arm that others vary
    assert '..., c97 1, c98 1, c99 1 real' in tail_said([f'c{i}' for i in range(100)], 20, 20)


# --- shipped comparisons


@pytest.mark.parametrize('name', ['long_tail_digits', 'long_tail_cifar10'])
def test_arms_of_a_shipped_tail_differ_in_what_fills_the_classes_and_in_nothing_else(name: str) -> None:
    comparison = read_comparison(find_recipe(name, 'compare'), data='x')
    made, (real_only, *filled) = {entry.name: entry for entry in comparison.made}, comparison.arms
    assert comparison.reference == 'oversampling' and real_only.synthaug == {'mix': None} and comparison.imbalance
    assert [arm.synthaug['mix']['mode'] for arm in filled] == ['concat'] * len(filled)
    recipes = {}
    for arm in filled:
        assert not arm.cfg_options and set(arm.synthaug['mix']) == {'store', 'mode'}
        entry = made[arm.synthaug['mix']['store'].strip('{}')]
        recipes[arm.name] = load_recipe(entry.recipe, entry.cfg_options)
    assert {r['fill_to'] for r in recipes.values()} == {'largest'} and {r['seed'] for r in recipes.values()} == {0}
    for arm, r in recipes.items():
        checks = [i['type'].rpartition('.')[2] for i in r['inspectors']]
        assert checks == ([] if arm == 'oversampling' else ['ImageSanity'] if arm == 'minority_unchecked' else ['ImageSanity', 'ClipFilter']), arm
        # one method each, of the same model and sampler
        assert len(r['generator'].get('guidance', [])) == (arm not in ('oversampling', 'edm'))
        if arm != 'oversampling':
            assert {**r['generator'], 'guidance': []} == recipes['edm']['generator'] | {'guidance': []}
    assert {**recipes['minority'], 'inspectors': []} == {**recipes['minority_unchecked'], 'inspectors': []}


def test_the_shipped_tail_of_digits_passes_every_check_that_needs_no_weights(tmp_path: Path) -> None:
    parts = Parts.of(write_data(tmp_path / 'data', train=range(300), test=range(1400, 1440), val=range(1200, 1240)), tmp_path / 'out')
    comparison = read_comparison(find_recipe('long_tail_digits', 'compare'), data=str(parts.root))
    shots = parts.draws([20], [0], imbalance=comparison.imbalance)[20, 0]
    drawn = copy_draw(parts, shots, 20, 0, tmp_path / 'draws', comparison.imbalance)
    making = Making(comparison.made, parts.train.classes, tmp_path / 'out', 'cpu', None, True, print)
    making.check()
    with making.stand_ins(drawn) as places:
        check_arms(replace(comparison, seeds=(0,)), get_plugin_manager(), {0: making.with_names(drawn, places)})
