"""The study of Diffusion Inversion: embeddings are learned from each draw, stores are made from them, and every arm finds its own. Offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_ablation import change, files, nouns, run, write_data  # noqa: F401

from synthaug_plugins.engine.recipe import load_recipe as load_generation_recipe
from synthaug_plugins.errors import SynthAugError
from synthaug_plugins.evaluation.protocol import read_comparison
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.recipes import find_recipe, shipped_recipes
from synthaug_plugins.store.store import Store

RECIPE = """
train = 'inversion_digits'
shots = [1]
seeds = [0]
cfg_options = {
    'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2, 'param_scheduler': [], 'train_dataloader.batch_size': 8,
    'model.backbone.stem_channels': 4, 'model.backbone.base_channels': 4, 'model.head.in_channels': 32,
}
_told = {'generator.embeddings': '{embeddings}', 'per_source': 2, 'generator.sampler.num_steps': 2, 'generator.alphas': [0.0]}
made = dict(
    embeddings=dict(kind='embeddings', recipe='inversion_digits', cfg_options={'training.steps': 2, 'samples.images': 2, 'samples.num_steps': 2}),
    variants=dict(kind='store', recipe='inversion_digits', cfg_options=_told),
    round_trips=dict(kind='store', recipe='round_trip_digits'),
)
arms = dict(
    real=dict(synthaug=dict(mix=None)),
    mixed=dict(synthaug=dict(mix=dict(store='{variants}'))),
    synthetic=dict(synthaug=dict(mix=dict(store='{variants}', ratio=(0, 1)))),
    round_trip=dict(synthaug=dict(mix=dict(store='{round_trips}', ratio=(0, 1)))),
)
curves = dict(share=dict(arms={0.5: 'mixed', 1: 'synthetic'}))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / 'data', train=range(60), test=range(1400, 1430), val=range(1200, 1230))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / 'recipe.py'
    path.write_text(RECIPE)
    return path


def test_embeddings_stores_arms_and_curves_follow_from_the_draw(recipe: Path, data: Path, copied_workers: None, tmp_path: Path) -> None:
    (result,) = run(recipe, data)
    out, draw = tmp_path / 'out', '1-shot-0'
    shots = {p.relative_to(out / 'draws' / draw / 'train').as_posix() for p in (out / 'draws' / draw / 'train').rglob('*.png')}
    assert len(shots) == 2
    folder = out / 'made' / 'embeddings' / draw / 'embeddings'
    found = Embeddings(folder)
    assert len(found) == 2 and found.missing(sorted(shots)) == []
    variants, round_trips = (Store.open(out / 'made' / name / draw) for name in ('variants', 'round_trips'))
    assert variants.made_by['recipe']['generator']['embeddings'] == str(folder)
    for store, each in ((variants, 2), (round_trips, 1)):
        assert Counter(row['source'] for row in store.index().to_pylist()) == dict.fromkeys(shots, each)
    assert [arm['name'] for arm in result['arms']] == ['real', 'mixed', 'synthetic', 'round_trip']
    assert {arm['images'] for arm in result['arms']} == {4 * 8}  # equal images at equal steps
    assert {line.split(',')[0] for line in (out / 'curves.csv').read_text().splitlines()[1:]} == {'share'}

    # nothing is learned or made again, and nothing else than was learned goes by its name
    before = files(out / 'made')
    run(recipe, data)
    assert files(out / 'made') == before
    with pytest.raises(SynthAugError, match=r"holds 'embeddings' made by another recipe; these differ: training.steps: 2 -> 3"):
        run(change(recipe, "'training.steps': 2", "'training.steps': 3"), data)


@pytest.mark.parametrize(
    ('old', 'new', 'says'),
    [
        ("'training.steps': 2", "'training.step': 2", "Did you mean 'steps'"),
        ("'training.steps': 2", "'training.steps': 0", 'steps = 0'),
        ("'training.steps': 2", "'training.tokens': 0", 'tokens = 0'),
        ("'training.steps': 2", "'model.name': 'embedded:digits_sd_unnamed'", 'digits_sd'),
        ("'generator.alphas': [0.0]", "'generator.alphas': [0.1]", 'one image'),
        ("'generator.alphas': [0.0]", "'generator.lambdas': [-0.1]", 'lambda'),
        ("kind='embeddings'", "kind='embedding'", "Did you mean 'embeddings'"),
        ("'generator.embeddings': '{embeddings}'", "'generator.embeddings': '{round_trips}'", 'not made before it'),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_learned(recipe: Path, data: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(SynthAugError, match=says):
        run(change(recipe, old, new), data)
    assert not (recipe.parent / 'out' / 'made').exists()


def test_what_the_fewest_shots_cannot_do_is_said_before_more_of_them_are_learned(recipe: Path, data: Path) -> None:
    change(recipe, 'shots = [1]', 'shots = [2, 1]')
    with pytest.raises(SynthAugError, match='one image'):
        run(change(recipe, "'generator.alphas': [0.0]", "'generator.alphas': [0.1]"), data)
    assert not (recipe.parent / 'out' / 'made').exists()


# --- the shipped studies


def changed(options: Mapping[str, Any], main: Mapping[str, Any]) -> set[str]:
    return {key for key in {*options, *main} if options.get(key) != main.get(key)} - {'per_source'}


@pytest.mark.parametrize('name', ['inversion_digits', 'inversion'])
def test_every_arm_of_a_shipped_study_changes_one_thing(name: str) -> None:
    comparison = read_comparison(find_recipe(name, 'compare'), data='x')
    made, arms = {entry.name: entry for entry in comparison.made}, {arm.name: arm for arm in comparison.arms}
    main = arms['inversion'].synthaug['mix']
    assert main['store'] == '{variants}' and comparison.arms[0].name == 'real_only' and comparison.reference == 'inversion'
    varied = [arm for arm in comparison.arms if arm.name not in ('real_only', 'inversion', 'synthetic_only', 'round_trip', 'n1', 'n3', 'n10')]
    assert len(varied) == 13
    for arm in varied:
        mix = arm.synthaug['mix']
        assert changed(mix, main) == {'store'}, arm.name
        differs = changed(made[mix['store'].strip('{}')].cfg_options, made['variants'].cfg_options) - {'generator.group_size'}
        assert len(differs) == 1, arm.name
    for n in ('n1', 'n3', 'n10'):
        assert changed(arms[n].synthaug['mix'], main) == {'select'}
    assert changed(arms['synthetic_only'].synthaug['mix'], main) == {'ratio'}
    # every arm that varies something stands on a curve, at the value that its store was made with
    on_curves = {arm for curve in comparison.curves for arm in curve.arms}
    assert on_curves == {arm.name for arm in varied} | {'inversion', 'n1', 'n3', 'n10'}
    keys = {'guidance': 'guidance_scales', 'noise': 'lambdas', 'interpolation': 'alphas', 'steps': 'sampler.num_steps'}
    base = load_generation_recipe(made['variants'].recipe)['generator']
    for curve in comparison.curves:
        if curve.name not in keys:
            continue
        for value, arm in zip(curve.values, curve.arms, strict=True):
            generator = load_generation_recipe(made['variants'].recipe, made[arms[arm].synthaug['mix']['store'].strip('{}')].cfg_options)['generator']
            head, _, rest = keys[curve.name].partition('.')
            told = generator[head][rest] if rest else generator[head]
            assert (told if rest else list(told)) == (value if rest else [value]), (curve.name, arm)
    assert list(base['guidance_scales']) == [2.0] and list(base['lambdas']) == list(base['alphas']) == [0.1]


def test_the_study_runs_on_every_set_that_has_recipes() -> None:
    sets = {r.removeprefix('train/inversion_').removesuffix('.py') for r in shipped_recipes() if r.startswith('train/inversion_')}
    for name in ('cifar10', 'cifar100', 'stl10', 'imagenette', 'medmnist', 'eurosat'):
        assert name in sets
        comparison = read_comparison(find_recipe('inversion', 'compare'), {'set': name}, data='x')
        kinds = {entry.kind for entry in comparison.made}
        assert kinds == {'embeddings', 'store'}
        inverted, control = (load_generation_recipe(find_recipe(f'{kind}_{name}', 'generate')) for kind in ('inversion', 'round_trip'))
        # what other arms vary is at the value that the curves give the arm they share, whatever pools the set's own recipe has
        of_variants = next(entry for entry in comparison.made if entry.name == 'variants').cfg_options
        told = load_generation_recipe(find_recipe(f'inversion_{name}', 'generate'), of_variants)['generator']
        assert [list(told[key]) for key in ('lambdas', 'alphas', 'guidance_scales')] == [[0.1], [0.1], [2.0]]
        assert (told['unconditional'], told['sampler']['num_steps']) == ('all', 100)
        # the control sees the same autoencoder at the same size
        assert control['generator']['type'].endswith('RoundTrip') and control['per_source'] == 1
        for key in ('model', 'revision', 'variant', 'precision', 'image_size'):
            assert control['generator'][key] == inverted['generator'][key]
        assert control['image'] == inverted['image']
