"""`synthaug learn minority`: from images and a denoiser to a classifier of levels that guides it, through kills and mistakes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import Say, digits, kill_in_training
from synthaug_plugins.diffusion import build_denoiser, build_level_classifier
from synthaug_plugins.engine import minority_output
from synthaug_plugins.engine.learn_minority import learn_minority, save_stand_in
from synthaug_plugins.engine.learn_minority_recipe import complete_minority_recipe, load_minority_recipe, prepare_minority, training_options
from synthaug_plugins.errors import DataError, ModelError, RecipeError, Stopped
from synthaug_plugins.learning.minority import split_levels
from synthaug_plugins.learning.minority_options import sigma_range
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.level_classifier import LevelClassifierModel
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.weights import load_weights, read_config, save_json, save_model

CLASSES = ('one', 'seven', 'zero')
MSE = {'type': 'synthaug_plugins.MSE'}
SHORT: dict[str, Any] = {
    'model': 'embedded:digits_edm',
    'score': {'sigma': 1.0, 'draws': 2, 'distance': MSE},
    'levels': {'count': 3, 'rank': 'class'},
    'classifier': {'label_conditioning': True, 'channels': 16, 'channel_mult': [1]},
    'training': {'images_shown': 8 * 6, 'batch_size': 8, 'checkpoint_steps': 2, 'validation_sigmas': 3, 'validation': 0.1},
}


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def _drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `learned` draws is looked at; drawing takes most of so short a run."""
    monkeypatch.setattr(minority_output, '_plot', lambda *_: b'')


def write_digits(root: Path, count: int = 8, first: int = 0) -> Path:
    for name, digit in zip(CLASSES, (1, 7, 0), strict=True):
        (root / name).mkdir(parents=True)
        for i, k in enumerate(np.flatnonzero(digits().target == digit)[first : first + count]):
            Image.fromarray(np.round(digits().images[k] / 16 * 255).astype(np.uint8)).save(root / name / f'{i}.png')
    return root


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


def recipe(data: Path | None, **changes: Any) -> dict[str, Any]:
    done: dict[str, Any] = {**json.loads(json.dumps(SHORT)), 'data': str(data) if data else None}
    for key, value in changes.items():
        outer, _, inner = key.partition('__')
        done[outer] = {**done.get(outer, {}), inner: value} if inner else value
    return complete_minority_recipe(done)


@pytest.fixture(scope='module')
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from start to end in one call."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp('learned') / 'out'
    learn_minority(recipe(data), out, 'cpu', quiet=True)
    torch.set_num_threads(before)
    return out


def test_images_become_levels_and_a_classifier_that_guides_the_model(learned: Path) -> None:
    names = {'checkpoints', 'data', 'learn.json', 'levels.parquet', 'model', 'scores.parquet', 'validation.csv', 'validation.png'}
    assert {p.name for p in learned.iterdir()} == names
    table, scores = pq.read_table(learned / 'levels.parquet').to_pydict(), pq.read_table(learned / 'scores.parquet').to_pydict()
    known = dict(zip(scores['id'], scores['minority_score'], strict=True))
    assert [known[i] for i in table['id']] == table['score']
    assert len(table['id']) == 24
    model = LevelClassifierModel(str(learned / 'model'))
    assert model.levels.of(np.array(table['score']), table['class_name']).tolist() == table['level']
    for name in CLASSES:  # ranked within the class: rarer images score higher
        own = [(score, level) for score, level, c in zip(table['score'], table['level'], table['class_name'], strict=True) if c == name]
        assert [level for _, level in sorted(own)] == sorted(level for _, level in own)
        assert model.counts[name] == [3, 3, 2]
    assert model.counts['two'] == [0, 0, 0]
    assert np.flatnonzero(table['validation']).tolist() == split_levels(np.array(table['level']), 0.1, 0)[1].tolist()
    assert model.classes == DenoiserModel('embedded:digits_edm').classes
    assert model.scored_by['sigma'] == 1.0
    model.check(DenoiserModel('embedded:digits_edm'), (0.01, 50.0))
    model.check_weights()
    classifier = model.load(torch.device('cpu'))
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    log_p = classifier.log_prob(x, torch.tensor(0.5), torch.tensor([2, 0]), torch.tensor([model.label_of('seven'), model.label_of('zero')]))
    assert torch.isfinite(torch.autograd.grad(log_p.sum(), x)[0]).all()
    rows = (learned / 'validation.csv').read_text().splitlines()
    assert rows[0] == 'sigma,accuracy,within_one,rank_error,log_loss'
    assert len(rows) == 4
    card = json.loads((learned / 'model' / 'card.json').read_text())
    assert [row['sigma'] for row in card['validation']['by_sigma']] == pytest.approx([0.002, 0.4, 80.0])
    assert card['validation']['images'] == 3
    assert str(learned.parent) not in json.dumps([card, read_config(learned / 'model')])
    with Image.open(learned / 'validation.png') as picture:
        assert picture.width > 600


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(data: Path, learned: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    kill_in_training(lambda: learn_minority(recipe(data), out, 'cpu'), 8 * 5)
    assert json.loads((out / 'checkpoints' / 'checkpoint.json').read_text())['step'] == 4
    assert not (out / 'model').exists()
    learn_minority(recipe(data, name='again'), out, 'cpu', quiet=True)
    weights = [load_weights(folder / 'model') for folder in (learned, out)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    for name in ('levels.parquet', 'validation.csv'):
        assert (out / name).read_bytes() == (learned / name).read_bytes()
    with pytest.raises(RecipeError, match=r'differs in levels.count, score.sigma'):
        learn_minority(recipe(data, levels__count=2, score__sigma=2.0), out, 'cpu', quiet=True)


def test_scores_that_are_there_are_used_and_others_are_refused(data: Path, learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthaug_plugins.engine import learn_minority as module

    monkeypatch.setattr(module, 'score_folder', None)  # not called
    scores = str(learned / 'scores.parquet')

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, 'validate_levels', stop)
        with pytest.raises(Stopped, match='has seen 48 images'):
            learn_minority(recipe(data, scores=scores), tmp_path / 'out', 'cpu', quiet=True)
    learn_minority(recipe(data, scores=scores), tmp_path / 'out', 'cpu', quiet=True)
    assert (tmp_path / 'out' / 'levels.parquet').read_bytes() == (learned / 'levels.parquet').read_bytes()
    copy = shutil.copytree(DenoiserModel('embedded:digits_edm').folder, tmp_path / 'copy')
    prepare_minority(recipe(data, scores=scores, model=str(copy)))  # a model is known by its content
    with pytest.raises(RecipeError, match='differ from those that the recipe asks for in draws, seed'):
        learn_minority(recipe(data, scores=scores, score__draws=3, score__seed=1), tmp_path / 'a', 'cpu', quiet=True)
    with pytest.raises(DataError, match='cannot be read'):
        learn_minority(recipe(data, scores=str(tmp_path / 'absent.parquet')), tmp_path / 'a', 'cpu', quiet=True)
    assert not (tmp_path / 'a').exists()
    other = write_digits(tmp_path / 'digits', first=8)
    with pytest.raises(DataError, match='scores of other images'):
        learn_minority(recipe(other, scores=scores), tmp_path / 'b', 'cpu', quiet=True)


@pytest.mark.parametrize('classifier', [{'features': 'model'}, {'features': 'embedded:digits_edm', 'label_conditioning': False, 'loss': 'cross_entropy'}])
def test_a_classifier_looks_at_features_of_the_model_or_of_a_named_one(classifier: dict[str, Any], data: Path, tmp_path: Path) -> None:
    done = recipe(data, levels__rank='all', training__images_shown=16)
    done = complete_minority_recipe({**done, 'classifier': {**done['classifier'], **classifier}})
    model, guided = LevelClassifierModel(str(learn_minority(done, tmp_path / 'out', 'cpu', quiet=True))), DenoiserModel('embedded:digits_edm')
    model.check(guided)
    assert model.features is not None
    labels = torch.tensor([1, 7]) if model.label_conditioning else None
    x, sigma, levels = torch.randn(2, 1, 8, 8), torch.tensor(0.5), torch.tensor([0, 2])
    shared = guided.load(torch.device('cpu'), torch.float32)
    alone, beside = (model.load(torch.device('cpu'), denoiser) for denoiser in (None, shared))
    assert torch.equal(alone.log_prob(x, sigma, levels, labels), beside.log_prob(x, sigma, levels, labels))
    assert (beside.features.denoiser is shared) == (classifier['features'] == 'model')  # type: ignore[union-attr]


def test_a_stand_in_is_taken_for_the_classifier_that_a_run_will_learn(data: Path, learned: Path, tmp_path: Path) -> None:
    save_stand_in(prepare_minority(recipe(data)), tmp_path / 'in', CLASSES)
    stand_in, real = LevelClassifierModel(str(tmp_path / 'in')), LevelClassifierModel(str(learned / 'model'))
    stand_in.check(DenoiserModel('embedded:digits_edm'))
    stand_in.check_weights()
    for name in ('size', 'classes', 'label_conditioning', 'sigma_range', 'features', 'scored_by'):
        assert getattr(stand_in, name) == getattr(real, name)
    assert stand_in.levels.count == 3
    assert set(stand_in.counts) == set(real.counts)
    assert torch.isfinite(stand_in.load(torch.device('cpu'))(torch.randn(1, 1, 8, 8), torch.tensor(1.0), torch.tensor([1]))).all()


def tiny_model(folder: Path, **changes: Any) -> DenoiserModel:
    config = {**read_config(DenoiserModel('embedded:digits_edm').folder), 'augment_labels': 0, **changes}
    config['network'] = {'type': 'ddpmpp', 'channels': 16, 'channel_mult': [1, 2], 'blocks_per_level': 1, 'attention_resolutions': []}
    save_model(folder, config, build_denoiser(config).state_dict(), {})
    return DenoiserModel(str(folder))


def test_a_model_that_a_classifier_cannot_guide_is_refused_with_the_reason(data: Path, learned: Path, tmp_path: Path) -> None:
    model, digits_edm = LevelClassifierModel(str(learned / 'model')), DenoiserModel('embedded:digits_edm')
    for name, changes, said in (
        ('large', {'resolution': 16}, r'trained on images of 1x8x8, .* makes 1x16x16'),
        ('others', {'classes': [*model.classes[:9], 'ten']}, 'differ in nine, ten'),
        ('turned', {'classes': model.classes[::-1]}, 'stand in another order'),
        ('clean', {'sigma_min': 1e-4, 'sigma_max': 1e-3}, 'noise levels from 0.002 to 80, and would be asked at 0.0001 to 0.001'),
    ):
        with pytest.raises(ModelError, match=said):
            model.check(tiny_model(tmp_path / name, **changes))
    with pytest.raises(ModelError, match=r'asked at 0.001 to 200. Set interval=\(0.002, 80\)'):
        model.check(digits_edm, (0.001, 200.0))
    for level in (3, -1, True):
        with pytest.raises(ModelError, match='numbered from 0, the most common, to 2, the rarest'):
            model.check_level(level)
    with pytest.raises(ModelError, match=r"knows no class 'sevn'. Did you mean 'seven'"):
        model.label_of('sevn')
    save_stand_in(prepare_minority(recipe(data, classifier__features='model')), tmp_path / 'features')
    with pytest.raises(ModelError, match=r"features of the model 'embedded:digits_edm'; .* is another one, or was changed"):
        LevelClassifierModel(str(tmp_path / 'features')).check(tiny_model(tmp_path / 'same'))


def test_a_folder_that_is_no_classifier_of_levels_is_refused(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"of the kind 'edm', no classifier of levels. Give the folder model"):
        LevelClassifierModel('embedded:digits_edm')
    with pytest.raises(ModelError, match=r"Did you mean '.*/out/model'"):
        LevelClassifierModel(str(learned))
    config = read_config(learned / 'model')
    model_classes = config['classes']
    for change, said in (
        ({'counts': {}}, 'how many images of each class'),
        ({'counts': dict.fromkeys(model_classes, 3)}, 'how many images of each class'),
        ({'levels': {'count': 3}}, 'cannot be read'),
        ({'levels': {'count': 2, 'rank': 'all', 'thresholds': [10**400]}}, 'not valid JSON: a number of 401 digits'),
        ({'network': 1}, 'network = 1'),
        ({'classes': 3}, 'classes = 3'),
        ({'features': {'size': [1, 8]}}, 'says features'),
        ({'features': 'model'}, 'says features'),
        ({'scored_by': 'me'}, 'what the levels are of'),
        ({'found_at': 3}, 'what the levels are of'),
    ):
        save_model(tmp_path / 'model', config, load_weights(learned / 'model'), {})
        save_json(tmp_path / 'model' / 'config.json', {**config, **change})
        with pytest.raises(ModelError, match=said):
            LevelClassifierModel(str(tmp_path / 'model'))
    save_json(tmp_path / 'model' / 'config.json', {**config, 'network': {'channels': 32}})
    with pytest.raises(ModelError, match='do not fit its config'):
        LevelClassifierModel(str(tmp_path / 'model')).check_weights()


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'model': None}, 'model = None is no name'),
        ({'shots': 2}, "unknown key 'shots'"),
        ({'score__model': 'x'}, "score has the key 'model'"),
        ({'score__batch_size': 0}, 'score.batch_size = 0'),
        ({'levels__cuont': 3}, "levels has an unknown key 'cuont'. Did you mean 'count'"),
        ({'levels__count': 1}, 'levels.count = 1'),
        ({'levels__rank': 'classes'}, "rank = 'classes' is unknown"),
        ({'training__seed': 1}, "unknown key 'seed'. It stands beside"),
        ({'training__noise': 'vp'}, "noise = 'vp'"),
        ({'classifier__features': True}, 'classifier.features = True'),
        ({'classifier__label_conditioning': 1}, 'label_conditioning = 1'),
        ({'seed': -1}, 'seed = -1'),
        ({'classes': ['one', 'one']}, "names 'one' twice"),
        ({'score__sigma': math.nan}, 'no plain data'),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(None, **changes)


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'data': None}, 'names no images'),
        ({'levels__count': 9}, r"9 levels were asked for, but the class 'one' has 8 images. Use levels.count=8"),
        ({'levels': {'count': 13, 'rank': 'all'}}, r'13 levels were asked for, but there are 24 images. Use levels.count=12'),
        ({'classes': ['one', 'seven']}, 'only in the folder'),
        ({'classifier__chanels': 3}, "no option 'chanels'"),
        ({'training__sigma_max': 1e9, 'model': '{cut}'}, 'no range within'),
        ({'score__sigmas': 3}, 'sigmas'),
        ({'score__distance': {'type': 'synthaug_plugins.LPIPS', 'network': 'vgg'}}, 'LPIPS'),
        ({'classifier__features': '{large}'}, 'is a model of 16 pixels, the model makes 8'),
        ({'classifier__features': '{told}', 'classifier__label_conditioning': False}, 'need the class'),
    ],
)
def test_what_cannot_be_learned_is_refused_before_weights_load(changes: dict[str, Any], said: str, data: Path, tmp_path: Path) -> None:
    made = {'{cut}': {'sigma_max': 80.0}, '{large}': {'resolution': 16}, '{told}': {'label_dropout': 0.0}}
    for key, value in changes.items():
        if isinstance(value, str) and value in made:
            changes = {**changes, key: tiny_model(tmp_path / 'tiny', **made[value]).name}
    with pytest.raises((RecipeError, DataError, ModelError), match=said):
        learn_minority(recipe(**{'data': data, **changes}), tmp_path / 'out', 'cpu', quiet=True)
    assert not (tmp_path / 'out').exists()


def test_labels_are_those_of_the_network_that_is_told_them(data: Path, tmp_path: Path) -> None:
    tiny_model(tmp_path / 'untold', label_conditioning=False, label_dropout=0.0)  # it knows the names of ten digits
    for model, features, classes in (('{}', None, list(CLASSES)), ('{}', 'embedded:digits_edm', None), ('embedded:digits_edm', '{}', None)):
        changes = {'model': model.format(tmp_path / 'untold'), 'classifier__features': features and features.format(tmp_path / 'untold')}
        config = prepare_minority(recipe(data, **changes)).config
        assert config['classes'] == (classes or DenoiserModel('embedded:digits_edm').classes)


def test_a_model_of_latents_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthaug_plugins.engine import learn_minority_recipe as module

    monkeypatch.setattr(module, 'open_model', lambda name: object())  # a pipeline, which takes seconds to open
    with pytest.raises(ModelError, match='works in latents; a classifier of levels sees pixels'):
        prepare_minority(recipe(data))


def test_classes_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    data = write_digits(tmp_path / 'digits')
    (data / 'seven').rename(data / 'eleven')
    with pytest.raises(DataError, match=r"knows no class 'eleven'. Did you mean 'seven'"):
        prepare_minority(recipe(data))
    with pytest.raises(ModelError, match="does not know the class 'eleven'"):
        prepare_minority(recipe(data, classifier__label_conditioning=False))


@pytest.mark.parametrize(('name', 'size'), [('digits', (1, 8, 8)), ('cifar10', (3, 32, 32)), ('celeba64', (3, 64, 64)), ('lsun_bedroom', (1024, 8, 8))])
def test_every_shipped_recipe_makes_a_classifier(name: str, size: tuple[int, int, int]) -> None:
    done = load_minority_recipe(find_recipe(f'minority_{name}', 'learn'))
    network = {key: value for key, value in done['classifier'].items() if key not in ('label_conditioning', 'features', 'sigma_data')}
    low, high = sigma_range(training_options(done), (0.0, math.inf))
    config = {'kind': 'levels', 'resolution': size[1], 'channels': size[0], 'classes': ['a'], 'label_conditioning': False, 'sigma_data': 0.5}
    with torch.device('meta'):
        build_level_classifier(
            {**config, 'sigma_min': low, 'sigma_max': high, 'levels': {'count': done['levels']['count']}, 'features': None, 'network': network}
        )


def test_the_lsun_recipe_says_what_was_published() -> None:
    from synthaug_plugins.diffusion.minority import timestep_sigma

    done = load_minority_recipe(find_recipe('minority_lsun_bedroom', 'learn'))
    options = training_options(done)
    assert (done['levels']['count'], options.images_shown, options.batch_size, options.learning_rate) == (100, 60_000 * 256, 256, 3e-4)
    assert (options.weight_decay, options.noise, options.validation, done['score']['draws']) == (0.05, 'linear', 0.05, 5)
    assert timestep_sigma(*done['score']['timestep'], done['score']['schedule']) == pytest.approx(6.37, abs=0.005)


def test_the_command_learns_from_a_folder(data: Path, tmp_path: Path, synthaug: Say) -> None:
    options = ['training.images_shown=8', 'training.batch_size=8', 'training.validation_sigmas=1', 'levels.count=2', 'score.draws=1', 'classifier.channels=16']
    said = synthaug('learn', 'minority', 'minority_digits', '--data', data, '--out', tmp_path / 'out', '--device', 'cpu', '--cfg-options', *options)
    assert said.status == 0, said.err
    assert f'{tmp_path / "out" / "model"} is ready' in said.out
    assert LevelClassifierModel(str(tmp_path / 'out' / 'model')).levels.count == 2
