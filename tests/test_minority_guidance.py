"""Three ways to the rare end, as entries of a recipe's guidance: what they tell requests, what they change, what they cost and refuse."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_generators import CONFIG, build, first, make_model, part, real_images  # noqa: F401

from conftest import REPO
from synthaug_plugins.diffusion import MiddleFeatures, build_level_classifier
from synthaug_plugins.engine.recipe import load_recipe
from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.levels import Levels
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.weights import save_model

COUNTS = {'cat': [4, 1, 1, 0], 'dog': [1, 1, 1, 0], 'owl': [2, 2, 2, 2]}
MSE = {'type': 'synthaug_plugins.MSE'}
CLASSIFIER_FREE = {'type': 'synthaug_plugins.ClassifierFree', 'weight': 0.5}
FEW: dict[str, Any] = {'num_steps': 4, 'solver': 'euler'}


def make_classifier(folder: Path, counts: dict[str, list[int]] | None = None, **change: Any) -> str:
    """A classifier of four levels whose network is random but has no zero layer."""
    facts = {key: CONFIG[key] for key in ('resolution', 'channels', 'classes', 'sigma_data')}
    network = {'loss': 'ordinal', 'channels': 16, 'channel_mult': [1, 2], 'blocks_per_level': 1}
    levels = Levels(4, 'all', (0.1, 0.2, 0.3)).to_json()
    noise = {'sigma_min': 0.002, 'sigma_max': 80.0}
    config = {'kind': 'levels', **facts, 'label_conditioning': True, **noise, 'levels': levels, 'features': None, 'network': network, **change}
    torch.manual_seed(1)
    state = {k: v + 0.3 * torch.randn_like(v) for k, v in build_level_classifier(config).state_dict().items()}
    save_model(folder, {**config, 'counts': counts or COUNTS}, state, {'licence': 'CC0-1.0'})
    return str(folder)


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_classifier(tmp_path_factory.mktemp('levels'))


def by_classifier(classifier: str, **options: Any) -> dict[str, Any]:
    return {'type': 'synthaug_plugins.MinorityClassifier', 'classifier': classifier, 'level': 3, 'weight': 2.0, **options}


def self_guided(**options: Any) -> dict[str, Any]:
    return {'type': 'synthaug_plugins.SelfGuided', 'weight': 0.4, 'every': 2, 'sigma': 1.0, 'distance': MSE, **options}


def boost_and_skip(**options: Any) -> dict[str, Any]:
    return {'type': 'synthaug_plugins.BoostAndSkip', 'boost': 1.5, 'skip': 2, **options}


def edm(model: str, *guidance: dict[str, Any], **sampler: Any) -> Any:
    return build('EDM', model=model, sampler={**FEW, **sampler}, guidance=list(guidance))


def images_of(generator: Any, n: int = 1) -> np.ndarray:
    generator.check(['cat', 'dog'])
    images: np.ndarray = generator.generate([*first(generator, n), *first(generator, n, part('cat'), seed=1)])
    return images


def test_each_way_changes_the_images_at_its_own_cost(model: str, classifier: str) -> None:
    plain = edm(model)
    images = images_of(plain)
    assert plain.network_images == 2 * 4
    for entry, calls in ((by_classifier(classifier), 4), (self_guided(), 4 + 2), (boost_and_skip(), 2)):
        guided = edm(model, entry)
        assert not np.array_equal(images_of(guided), images), entry
        assert guided.network_images == 2 * calls
        assert np.array_equal(images_of(edm(model, entry)), images_of(guided))
        assert guided.identity() != plain.identity()
        json.dumps(guided.identity(), allow_nan=False)
        composed = edm(model, entry, CLASSIFIER_FREE)
        assert not np.array_equal(images_of(composed), images_of(guided))


def test_levels_and_weights_lead_to_the_levels_that_they_name(model: str, classifier: str) -> None:
    """The classifier itself says so of the images."""
    means = []
    for level, weight in ((0, 2.0), (0, 0.0), (3, 2.0)):
        generator = edm(model, by_classifier(classifier, level=level, weight=weight, interval=(0, 10)))
        images = images_of(generator, 8)
        x = torch.from_numpy(images[..., :1]).permute(0, 3, 1, 2).double() / 127.5 - 1
        read = generator.told.guidance[0].classifier.load(torch.device('cpu'))
        labels = torch.tensor([1] * 8 + [0] * 8)
        log_p = read(x, torch.tensor(0.1, dtype=torch.float64), labels)
        means.append(float((log_p.exp() * torch.arange(4.0)).sum(1).mean()))
    assert means[0] < means[1] - 0.01
    assert means[1] < means[2] - 0.01


@pytest.mark.parametrize('entry', ['classifier', 'self', 'boost'])
def test_weight_0_calls_and_reads_no_classifier_and_changes_no_pixel(tmp_path: Path, model: str, entry: str) -> None:
    plain, classifier = edm(model), make_classifier(tmp_path / 'levels')
    quiet = {'classifier': by_classifier(classifier, weight=0), 'self': self_guided(weight=[0, 0.0]), 'boost': boost_and_skip(boost=1, skip=0)}[entry]
    guided = edm(model, quiet)
    requests = first(guided, 4)
    guided.check(['dog'])
    (Path(classifier) / 'model.safetensors').unlink()
    assert np.array_equal(guided.generate(requests), plain.generate(requests))
    assert guided.network_images == plain.network_images


@pytest.mark.parametrize('entry', ['classifier', 'self'])
def test_requests_of_weight_0_in_a_mixed_batch_are_not_moved(model: str, classifier: str, entry: str) -> None:
    several = {'classifier': by_classifier(classifier, weight=[0, 3.0]), 'self': self_guided(weight=[0, 0.5])}[entry]
    guided, plain = edm(model, several), edm(model)
    requests = first(guided, 6)
    still = np.array([r.params['minority_weight'] == 0 for r in requests])
    assert 0 < still.sum() < 6
    moved = (guided.generate(requests) != plain.generate(requests)).any(axis=(1, 2, 3))
    assert not moved[still].any()
    assert moved[~still].all()


def test_requests_say_the_level_and_the_weight_that_their_seed_drew(model: str, classifier: str) -> None:
    generator = edm(model, by_classifier(classifier, level={'dog': [1, 2], 'cat': 0}, weight=[1, 2.5]))
    requests = first(generator, 200)
    assert all(r.params.keys() == {'minority_level', 'minority_weight'} for r in requests)
    drawn = Counter((r.params['minority_level'], r.params['minority_weight']) for r in requests)
    assert set(drawn) == {(1, 1.0), (1, 2.5), (2, 1.0), (2, 2.5)}
    assert min(drawn.values()) > 30
    assert first(generator, 200) == requests
    assert {r.params['minority_level'] for r in first(generator, 20, part('cat'))} == {0}
    assert {r.params['minority_weight'] for r in first(edm(model, boost_and_skip(boost=[1.2, 1.4])), 20)} == {1.2, 1.4}


def test_lacking_draws_levels_in_proportion_to_what_a_class_lacks(model: str, classifier: str) -> None:
    generator = edm(model, by_classifier(classifier, level='lacking'))
    generator.check(['cat', 'dog', 'owl'])
    shares = {}
    for name in ('cat', 'dog', 'owl'):
        drawn = Counter(r.params['minority_level'] for r in first(generator, 1000, part(name)))
        shares[name] = [drawn[level] / 1000 for level in range(4)]
    assert shares['cat'] == pytest.approx([0, 0.3, 0.3, 0.4], abs=0.05)
    assert shares['dog'] == pytest.approx([3 / 13] * 3 + [4 / 13], abs=0.05)
    assert shares['owl'] == pytest.approx([0.25] * 4, abs=0.05)


def test_same_request_gives_the_same_guided_image_in_any_batch(model: str, classifier: str) -> None:
    for entry in (by_classifier(classifier, weight=[1.0, 2.0], normalise='norm'), self_guided(), boost_and_skip(boost=[1.2, 1.5])):
        generator = edm(model, entry, eta=1.0)
        requests = [*first(generator, 2), *first(generator, 1, part('cat'), seed=1)]
        whole = generator.generate(requests)
        apart = np.concatenate([generator.generate([r]) for r in requests])
        assert np.abs(apart.astype(int) - whole).max() <= 1


def test_start_from_real_images_is_guided_too(model: str, classifier: str, real_images: RealImages) -> None:  # noqa: F811
    sources = part(sources=real_images.ids('dog'))
    options: dict[str, Any] = {'model': model, 'sigma': [0.5, 5.0], 'sampler': FEW}
    plain = build('RealGuidance', real_images, **options)
    for entry in (by_classifier(classifier), self_guided()):
        generator = build('RealGuidance', real_images, guidance=[entry], **options)
        generator.check(['cat', 'dog'])
        (request,) = first(generator, 1, sources)
        assert {'sigma', 'minority_weight'} <= set(request.params)
        assert not np.array_equal(generator.generate([request]), plain.generate(first(plain, 1, sources)))
    with pytest.raises(RecipeError, match='starts from images'):
        build('RealGuidance', real_images, guidance=[boost_and_skip()], **options).check(['dog'])
    # By 'auto' the strength is known when the images are counted: three let 4 of 10 steps run, of which none is a fifth one.
    counted = build('RealGuidance', real_images, model=model, shots='auto', sampler={**FEW, 'num_steps': 10}, guidance=[self_guided(every=5)])
    counted.check(['dog'])
    with pytest.raises(RecipeError, match='no step'):
        counted.prepare(['dog'], print)
    # The sampler of a strength counts, not the full grid.
    with pytest.raises(RecipeError, match='no step'):
        build('RealGuidance', real_images, guidance=[self_guided(interval=(10, 80))], **options).check(['dog'])


def test_classifier_of_the_model_s_own_features_shares_its_loaded_network(tmp_path: Path, model: str) -> None:
    opened = DenoiserModel(model)
    size = MiddleFeatures(opened.load(torch.device('cpu'), torch.float32)).size
    of_features = make_classifier(tmp_path / 'features', features={**opened.origin(), 'size': list(size)}, label_conditioning=False)
    guided = edm(model, by_classifier(of_features))
    assert not np.array_equal(images_of(guided), images_of(edm(model)))
    (read,) = guided.told.guidance[0]._loaded.values()
    assert read.features.denoiser is guided.model.denoiser
    other = make_model(tmp_path / 'other', sigma_data=0.6)
    with pytest.raises(ModelError, match='another one'):
        edm(other, by_classifier(of_features)).check(['cat'])


@pytest.mark.parametrize('name', ['minority_digits', 'minority_digits_self_guided', 'minority_digits_boost_and_skip'])
def test_recipes_of_digits_pass_their_checks(tmp_path: Path, name: str) -> None:
    digits = DenoiserModel('embedded:digits_edm')
    entry = load_recipe(str(REPO / 'registry_configs' / 'generate' / f'{name}.py'))['generator']
    if name == 'minority_digits':
        facts = {'classes': digits.classes, 'levels': Levels(10, 'all', tuple(range(9))).to_json(), 'counts': {c: [1] * 10 for c in digits.classes}}
        entry['guidance'][0]['classifier'] = make_classifier(tmp_path / 'levels', **facts)
    GENERATORS.build(entry).check(digits.classes)


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'level': 4}, 'no level 4'),
        ({'level': [1, -1]}, 'no level -1'),
        ({'level': 'rare'}, "level = 'rare'"),
        ({'level': []}, r'level = \[\]'),
        ({'level': {'cat': 1}}, "'dog'"),
        ({'weight': float('nan')}, 'weight = nan'),
        ({'weight': []}, r'weight = \[\]'),
        ({'weight': [1, '2']}, "weight = '2'"),
        ({'interval': (5, 1)}, 'interval'),
        ({'interval': (90, 100)}, 'no step'),
        ({'normalise': 'l2'}, "normalise = 'l2'"),
        ({'classifier': 'embedded:digits_edm'}, "kind 'edm'"),
    ],
)
def test_wrong_options_of_the_classifier_are_refused(model: str, classifier: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises((RecipeError, ModelError), match=named):
        edm(model, {**by_classifier(classifier), **options}).check(['cat', 'dog'])


def test_classifier_that_does_not_fit_is_refused_with_the_cure(tmp_path: Path, model: str) -> None:
    def refused(name: str, match: str, guidance: dict[str, Any] | None = None, **change: Any) -> str:
        entry = by_classifier(make_classifier(tmp_path / name, **change), **(guidance or {}))
        with pytest.raises((ModelError, RecipeError), match=match) as caught:
            edm(model, entry).check(['cat', 'dog'])
        return str(caught.value)

    refused('size', '1x16x16', resolution=16)
    refused('classes', 'differ in cow', classes=['cat', 'dog', 'cow'], counts={'cat': [1] * 4, 'dog': [1] * 4, 'cow': [1] * 4})
    assert 'interval=(0.1, 10)' in refused('noise', 'trained at noise levels', sigma_min=0.1, sigma_max=10.0)
    edm(model, by_classifier(str(tmp_path / 'noise'), interval=(0.1, 10))).check(['cat'])
    refused('even', "rank='all'", {'level': 'lacking'}, counts={name: [2, 2, 1, 2] for name in COUNTS})
    edm(model, by_classifier(str(tmp_path / 'even'), level=[1, 2])).check(['cat'])


@pytest.mark.parametrize(
    ('entry', 'named'),
    [
        (self_guided(every=0), 'every = 0'),
        (self_guided(every=True), 'every = True'),
        (self_guided(sigma=-1), 'sigma = -1'),
        (self_guided(weight='1'), "weight = '1'"),
        (self_guided(distance={'type': 'MES'}), "'MSE'"),
        (self_guided(interval=(0.3, 0.31)), 'no step'),
        (self_guided(distance={'type': 'LPIPS', 'network': 'alex'}), '8'),
        (boost_and_skip(boost=0), 'boost = 0'),
        (boost_and_skip(skip=6), 'skip = 6 leaves nothing of 4 steps'),
        (boost_and_skip(skip=-1), 'skip = -1'),
    ],
    ids=str,
)
def test_wrong_options_of_the_alternatives_are_refused(model: str, entry: dict[str, Any], named: str) -> None:
    with pytest.raises((RecipeError, ModelError), match=named):
        edm(model, entry).check(['cat'])


@pytest.mark.parametrize('sampler', [{'alpha': 0.5}, {'S_churn': 2}])
def test_self_guidance_that_would_reach_one_of_two_slopes_is_refused(model: str, sampler: dict[str, Any]) -> None:
    (key,) = sampler
    with pytest.raises(RecipeError, match=f"SelfGuided does not go with {key} = .* of solver = 'heun'"):
        edm(model, self_guided(), solver='heun', **sampler).check(['cat'])


def test_one_way_at_a_time(model: str) -> None:
    with pytest.raises(RecipeError, match='SelfGuided and BoostAndSkip'):
        edm(model, self_guided(), boost_and_skip())
