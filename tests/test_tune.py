"""The search on validation: the default is one of its candidates, test images are read once by two of them, a kill costs little, the recipe is the winner."""

from __future__ import annotations

import csv
import io
import json
import signal
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_evaluation_compare import children

from conftest import Say, command_line, copy_of_this_process, digits
from synthaug_plugins import compat
from synthaug_plugins.errors import RecipeError, SynthAugError
from synthaug_plugins.evaluation.fingerprint import run_key
from synthaug_plugins.evaluation.protocol import Search
from synthaug_plugins.evaluation.runs import settle, training_part
from synthaug_plugins.evaluation.tune.run import tune
from synthaug_plugins.evaluation.tune.space import search_space
from synthaug_plugins.evaluation.tune.varied import choices
from synthaug_plugins.plugins import get_plugin_manager, register_nouns
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store
from synthaug_plugins.training.run import configure, load_recipe

NAMES = {'three': 3, 'two': 2}
RECIPE = """
_base_ = {base!r}
max_iters = 4
train_cfg = dict(max_iters=4, val_interval=2)
param_scheduler = []
model = dict(backbone=dict(stem_channels=4, base_channels=4), head=dict(in_channels=32, num_classes=2))
data_preprocessor = dict(num_classes=2)
train_dataloader = dict(batch_size=8, dataset=dict(data_root={root!r} + '/train'))
val_dataloader = dict(dataset=dict(data_root={root!r} + '/val'))
test_dataloader = dict(dataset=dict(data_root={root!r} + '/test'))
synthaug = dict(mix=dict(partner='source'))
"""


@pytest.fixture(autouse=True, scope='module')
def nouns() -> None:
    compat.apply()
    register_nouns()


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, found = tmp_path_factory.mktemp('data'), digits()
    for part, chosen in (('train', range(60)), ('val', range(1200, 1240)), ('test', range(1400, 1440))):
        for name, label in NAMES.items():
            (root / part / name).mkdir(parents=True)
            for i in np.flatnonzero(found.target[chosen.start : chosen.stop] == label) + chosen.start:
                Image.fromarray((found.images[i] * 15).astype(np.uint8)).save(root / part / name / f'{i}.png')
    return root


def make_store(place: Path, data: Path, params: Sequence[dict[str, Any]], sources: int = 1) -> Store:
    """A store with a variant of the first real images of each class with each of `params`: the image under noise."""
    real, rng = RealImages(data / 'train'), np.random.default_rng(0)
    blocks = make_blocks(real.classes, len(params) * sources, {c: real.ids(c) for c in real.classes}, 64)
    store = Store.create(place, Plan(real.classes, blocks, {'a': 1}), {'recipe': {'data': str(real.root)}})
    for block in blocks:
        rows = []
        for part in block.parts:
            for i, (source, told) in enumerate(product(part.sources[:sources], params)):
                image, file = real.load(source).astype(int), io.BytesIO()
                Image.fromarray((image + rng.integers(-20, 20, image.shape)).clip(0, 255).astype(np.uint8)).save(file, 'PNG')
                rows.append(Row(Request(request_id(part, i), part.label, part.class_name, i, source, None, told), 'kept', None, 'png', file.getvalue()))
        store.publish(block, rows, False)
    return store


@pytest.fixture(scope='module')
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two strengths, each with the noise level that follows from it; one guidance scale."""
    params = [{'sigma': sigma, 't0': t0, 'guidance_scale': 2.0} for sigma, t0 in ((0.4387, 0.2), (3.1, 0.8))]
    return make_store(tmp_path_factory.mktemp('store') / 'variants', data, params, sources=4)


@pytest.fixture
def recipe(data: Path, tmp_path: Path) -> Path:
    path = tmp_path / 'recipe.py'
    path.write_text(RECIPE.format(base=str(Path(__file__).parents[1] / 'registry_configs' / 'train' / 'digits_resnet.py'), root=str(data)))
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_killed_search_goes_on_to_a_recipe_that_is_its_winner(recipe: Path, store: Store, synthaug: Say, copied_workers: None, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    command = ['tune', recipe, '--mix', store.folder, '--alpha', '0.5', '--seeds', '0,1', '--out', out]
    process = copy_of_this_process(lambda: command_line(*command))
    process.wait_until(lambda: list(out.glob('search/runs/*/result.json')))
    workers = children(process.pid)
    assert process.end(signal.SIGKILL).status == -signal.SIGKILL
    while any(Path(f'/proc/{pid}').exists() for pid in workers):  # a copy of the killed process holds its lock until it ends, which it does by itself
        time.sleep(0.05)
    kept = {path: path.stat().st_mtime_ns for path in out.glob('search/runs/*/result.json')}
    assert {path.name for path in out.iterdir()} == {'search'}

    said = synthaug(*command)
    assert said.status == 0, said.err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    results = json.loads((out / 'search' / 'results.json').read_text())
    (search,) = results['search']
    # the default, none, and each selection: the noise level that follows from t0 is no choice of its own, nor is the one guidance scale
    candidates = [(c['options'].get('mix.select'), c['options']['mix.alpha']) for c in search['candidates']]
    assert candidates == [(None, 0.5), (None, 0), ('params.t0 = 0.2', 0.5), ('params.t0 = 0.8', 0.5)]
    assert {arm['steps'] for arm in results['arms']} == {4}

    # on validation the winner is the default or better, and the table says so
    best, default = search['candidates'][search['chosen']], search['candidates'][0]
    assert best['val']['mean'] == max(c['val']['mean'] for c in search['candidates']) >= default['val']['mean']
    rows = read_csv(out / 'candidates.csv')
    assert len(rows) == 4 and [row['chosen'] for row in rows].count('yes') == 1
    assert rows[0]['chosen'] == 'yes' and float(rows[0]['val']) == pytest.approx(best['val']['mean'], abs=1e-3)
    assert [float(rows[0][f'val_seed_{seed}']) for seed in (0, 1)] == pytest.approx(best['val']['points'], abs=1e-3)
    (of_default,) = [row for row in rows if row['what'] == 'default']
    assert float(rows[0]['difference']) == pytest.approx(float(rows[0]['val']) - float(of_default['val']), abs=1e-3)

    # test images: the winner and the default, with every seed, nobody else
    tested = {str(path.parent) for path in out.glob('search/runs/*/test-*.json')}
    assert tested == {run for arm in results['arms'] for run in arm['runs']}
    assert len(list(out.glob('search/runs/*/result.json'))) == 8
    assert all(sentence in said.out for sentence in ('best of 4 candidates on validation', str(out / 'tuned.py')))

    # the recipe is the winner: configured and put under the protocol, what decides its training is what decided the winner's
    cfg = load_recipe(out / 'tuned.py')
    for seed, run in enumerate(results['arms'][1]['runs']):
        assert run_key(training_part(settle(configure(cfg, get_plugin_manager()), seed))) == Path(run).name
    html = (out / 'report.html').read_text()
    assert 'Search on validation: tuned' in html and f'synthaug tune {recipe}' in html

    # it trains by itself
    trained = synthaug('train', out / 'tuned.py', '--work-dir', tmp_path / 'work')
    assert trained.status == 0, trained.err
    # once more: nothing is trained or tested again
    before = {path: path.stat().st_mtime_ns for path in (out / 'search' / 'runs').rglob('*')}
    assert synthaug(*command).status == 0
    assert {path: path.stat().st_mtime_ns for path in (out / 'search' / 'runs').rglob('*')} == before


def test_where_several_are_equal_the_default_wins_and_the_page_says_so(recipe: Path, store: Store, copied_workers: None, tmp_path: Path) -> None:
    # a learning rate of zero: what is mixed in changes nothing
    found = tune(
        recipe,
        tmp_path / 'out',
        get_plugin_manager(),
        [str(store.folder)],
        ['params.t0 < 0.5'],
        [0.5],
        seeds=[0, 1],
        cfg_options={'optim_wrapper.optimizer.lr': 0.0, 'train_cfg.max_iters': 1},
    )
    assert found.options == {'mix.select': None, 'mix.alpha': 0.5}
    assert found.validation['mean'] == 0
    assert found.sentences[0].startswith('The default is the best of 3 candidates')
    assert found.sentences[0].split(':')[0] in (tmp_path / 'out' / 'report.html').read_text()
    cfg = load_recipe(found.recipe)
    assert cfg.synthaug.mix == {'partner': 'source', 'store': str(store.folder), 'alpha': 0.5}
    assert cfg.optim_wrapper.optimizer.lr == 0


def test_every_strength_and_guidance_of_a_store_is_tried_and_what_is_not_is_said(data: Path, store: Store, tmp_path: Path) -> None:
    grid = [{'t0': t, 'guidance_scale': g, 'drawn': i / 7} for i, (t, g) in enumerate(product((0.2, 0.5, 0.8), (2.0, 7.5, 9.0)))]
    varied = make_store(tmp_path / 'grid', data, grid)
    told, notes = choices(varied, None)
    assert len(told) == 4 * 4
    assert told[0] is None and 'params.t0 = 0.5' in told and 'params.guidance_scale = 7.5 and params.t0 = 0.8' in told
    assert notes == ['params.drawn has 9 values: conditions on it are tried if --select names them.']
    # the recipe's own condition holds in every one of them
    assert choices(store, 'label >= 0')[0] == ['label >= 0', '(label >= 0) and (params.t0 = 0.2)', '(label >= 0) and (params.t0 = 0.8)']
    assert choices(store, {'sample': 2, 'seed': 1})[0][1] == {'sample': 2, 'seed': 1, 'where': 'params.t0 = 0.2'}
    # a class without an image of one strength
    lacking = choices(varied, "not (class = 'two' and params.t0 = 0.2) and params.guidance_scale = 2")
    assert len(lacking[0]) == 3
    assert lacking[1][-1] == "params.t0 = 0.2: not tried, since 1 of 2 classes would have no image, such as 'two'."


def test_names_that_are_no_words_are_quoted_and_a_store_of_another_seed_may_lack_a_setting(data: Path, tmp_path: Path) -> None:
    for seed, values in ((0, (1, 2)), (1, (2, 3))):
        make_store(tmp_path / f'draw-{seed}', data, [{'how "far"\n#': value} for value in values])
    space = search_space({}, [f'{tmp_path}/draw-{{seed}}'], [], [0.5], None, [0, 1])
    condition = 'params."how ""far""\n#" = {}'
    assert [c['mix.select'] for c in Search('tuned', space.grids).candidates()] == [None, None, condition.format(2)]
    assert space.notes == (f'{condition.format(1)}: not tried, since {str(tmp_path / "draw-1")!r} lacks it.',)


def test_too_many_settings_are_the_users_to_choose(data: Path, tmp_path: Path) -> None:
    params = [{'a': a, 'b': b, 'c': c} for a, b, c in product((1, 2), (1, 2, 3), (1, 2, 3))]
    with pytest.raises(RecipeError, match=r'params\.a \(2 values\), params\.b \(3 values\).*48 selections') as refused:
        choices(make_store(tmp_path / 'many', data, params), None)
    assert '--select "params.a = 1"' in refused.value.cure


def test_stores_are_tried_one_against_the_other(data: Path, store: Store, tmp_path: Path) -> None:
    """Guidance that is the same all through a store: one store for each."""
    other = make_store(tmp_path / 'other', data, [{'guidance_scale': 7.5}])
    space = search_space({}, [str(store.folder), str(other.folder)], [], [0.5], None, [0, 1])
    tried = [tuple(c.values()) for c in Search('tuned', space.grids).candidates()]
    first, second = str(store.folder), str(other.folder)
    assert tried == [(first, None, 0.5), (first, None, 0), (first, 'params.t0 = 0.2', 0.5), (first, 'params.t0 = 0.8', 0.5), (second, None, 0.5)]


def test_modes_with_a_ratio_are_searched_over_ratios(store: Store) -> None:
    space = search_space({'mode': 'two_stream'}, [str(store.folder)], ['params.t0 < 0.5'], None, [(1, 1), (1, 3)], [0, 1])
    assert Search('tuned', space.grids).candidates() == [
        {'mix.select': select, 'mix.ratio': ratio} for select in (None, 'params.t0 < 0.5') for ratio in ((1, 1), (1, 3))
    ]
    assert space.without is None


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'seeds': [0]}, 'is one: what it prefers may be chance'),
        ({'seeds': [0, 0]}, 'repeats a seed'),
        ({'stores': []}, 'names no store to mix in'),
        ({'stores': ['nowhere']}, 'nowhere'),
        ({'selects': ['params.t0 = 0.3']}, "leaves no image for 'three', 'two'"),
        ({'selects': ['params.to = 0.3']}, "Did you mean 'params.t0'"),
        ({'alphas': [1.5]}, '--alpha 1.5 is outside'),
        ({'ratios': [(1, 1)]}, "--ratio has no meaning in mode 'per_sample'"),
        ({'cfg_options': {'synthaug.mix.mode': 'concat', 'synthaug.mix.partner': None}, 'alphas': [0.5]}, "--alpha has no meaning in mode 'concat'"),
        ({'cfg_options': {'test_dataloader.dataset.data_root': '{data}'}}, 'which has no value'),
        ({'cfg_options': {'synthaug.stages': []}}, 'has stages'),
        ({'cfg_options': {'val_dataloader.dataset.data_root': 'TEST'}}, 'val_dataloader and test_dataloader read the same'),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_training(
    recipe: Path, data: Path, store: Store, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    options = json.loads(json.dumps(options).replace('TEST', str(data / 'test')))
    with pytest.raises(SynthAugError, match=says):
        tune(recipe, tmp_path / 'out', get_plugin_manager(), **{'stores': [str(store.folder)], **options})
    assert not (tmp_path / 'out').exists()


def test_a_folder_of_somebody_is_not_touched(recipe: Path, store: Store, synthaug: Say, tmp_path: Path) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('mine')
    said = synthaug('tune', recipe, '--mix', store.folder, '--out', tmp_path / 'mine')
    assert said.status == 2 and 'not a search' in said.err
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['thesis.txt']
