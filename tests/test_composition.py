"""Several editing generators as one: drawn per image or one after the other, by the request's seed, with weights that are loaded once."""

from __future__ import annotations

import json
from collections import Counter
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image

from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, prepare
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.base import Made, NonFiniteImages
from synthaug_plugins.generators.composition import Parallel, Sequential
from synthaug_plugins.generators.source_generator import SourceGenerator
from synthaug_plugins.models.files import ModelFiles
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import GENERATORS, build_strict
from synthaug_plugins.store.plan import Part, Request
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

CLASSES = ['cat', 'dog']


class Arithmetic(SourceGenerator):
    """Multiplies, then adds, then maybe draws noise; the largest pixel may be not finite, or rejected."""

    def __init__(self, times: int = 1, plus: int = 0, noise: int = 0, bad: int = 999, flagged: int = 999, whole: bool = True) -> None:
        self.times, self.plus, self.noise, self.bad, self.flagged, self.whole = times, plus, noise, bad, flagged, whole
        self.batches: list[list[str]] = []
        self.asked = 0

    @property
    def network_images(self) -> int:
        return self.asked

    def prepare(self, classes: Any, say: Any) -> None:
        say('Prepared.')

    def identity(self) -> dict[str, Any]:
        return {'type': 'Arithmetic', 'model': {'name': f'times {self.times}'}, 'plus': self.plus}

    def model_classes(self) -> list[str]:
        return ['cat', 'dog', 'owl'][: 3 - self.times % 2]

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str, dict[str, Any]]:
        return f'times {self.times}', {'seed': seed % 1000, 'plus': self.plus}

    def bucket(self, request: Request) -> int:
        return request.label

    def whole_source(self, request: Request) -> bool:
        return self.whole

    def edit(self, requests: Any, images: Any) -> Made:
        self.batches.append([r.id for r in requests])
        self.asked += len(requests)
        assert all(r.params == {'seed': r.seed % 1000, 'plus': self.plus} for r in requests), 'each is told what it was told in `tell`'
        made = []
        for r, image in zip(requests, images, strict=True):
            noise = np.random.default_rng(r.seed).integers(0, self.noise + 1, image.shape)
            made.append((image.astype(int) * self.times + self.plus + noise).clip(0, 255).astype(np.uint8))
        found = Made(made, {k: 'flagged' for k, image in enumerate(made) if image.max() >= self.flagged}, {'largest': np.array([i.max() for i in made], float)})
        if bad := {k: 'too large' for k, image in enumerate(made) if image.max() >= self.bad}:
            raise NonFiniteImages(found, bad)
        return found


@pytest.fixture(autouse=True)
def _arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GENERATORS._module_dict, 'Arithmetic', Arithmetic)


@pytest.fixture(scope='module')
def real(tmp_path_factory: pytest.TempPathFactory) -> RealImages:
    """Three images per class of one grey each, of different shapes."""
    root = tmp_path_factory.mktemp('real')
    for name in CLASSES:
        (root / name).mkdir()
        for k in range(3):
            Image.new('RGB', (4 + k, 5), (10 + k,) * 3).save(root / name / f'{k}.png')
    return RealImages(root)


def plus(n: int, **more: Any) -> dict[str, Any]:
    return {'type': 'synthaug_plugins.Arithmetic', 'plus': n, **more}


def built(type_: str, *members: dict[str, Any], real: RealImages | None = None, **options: Any) -> Any:
    generator = build_strict({'type': f'synthaug_plugins.{type_}', 'generators': list(members), **options}, GENERATORS)
    generator.real_images = real
    generator.setup(torch.device('cpu'), real)
    return generator


def asked(generator: Any, n: int, real: RealImages | None = None, name: str = 'cat') -> list[Request]:
    sources = real.ids(name) if real else ('cat/0.png',)
    return list(islice(generator.requests(Part(0, CLASSES.index(name), name, n, n, 0, tuple(sources)), 0), n))


def grey(images: Any) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


# --- which members act ---------------------------------------------------------------------------------------------------


def test_parallel_picks_by_its_probabilities_from_the_seed_and_records_it() -> None:
    generator = built('Parallel', plus(1), plus(2), plus(3), probs=[0.5, 0.3, 0.2])
    requests = asked(generator, 2000)
    counts = Counter(r.params['member'] for r in requests)
    assert sum((counts[k] - n) ** 2 / n for k, n in enumerate((1000, 600, 400))) < 13.8, 'chi-square with two degrees of freedom, p = 0.001'
    assert all(r.params['plus'] == r.params['member'] + 1 for r in requests), "the member's own params stand beside it"
    assert asked(built('Parallel', plus(1), plus(2), plus(3), probs=[0.5, 0.3, 0.2]), 2000) == requests
    even = Counter(r.params['member'] for r in asked(built('Parallel', plus(1), plus(2)), 2000))
    assert abs(even[0] - 1000) < 3.3 * 500**0.5


def test_members_of_sequential_act_each_with_its_own_probability_independently() -> None:
    requests = asked(built('Sequential', plus(1), plus(2), probs=[0.5, 0.2]), 4000)
    acted = Counter(tuple(step['member'] for step in r.params['steps']) for r in requests)
    expected = {(): 1600, (0,): 1600, (1,): 400, (0, 1): 400}
    assert sum((acted[k] - n) ** 2 / n for k, n in expected.items()) < 16.3, 'chi-square with three degrees of freedom, p = 0.001'
    assert all(len(r.params['steps']) == 2 for r in asked(built('Sequential', plus(1), plus(2)), 20))
    seeds = [tuple(step['params']['seed'] for step in r.params['steps']) for r in requests if len(r.params['steps']) == 2]
    assert all(a != b for a, b in seeds if a) and len(set(seeds)) > 300, 'each member has a seed of its own'


def test_a_composition_within_another_draws_for_itself() -> None:
    inner = {'type': 'synthaug_plugins.Parallel', 'generators': [plus(1), plus(2)]}
    requests = asked(built('Parallel', inner, inner), 2000)
    counts = Counter((r.params['member'], r.params['inner']['member']) for r in requests)
    assert sum((counts[a, b] - 500) ** 2 / 500 for a in (0, 1) for b in (0, 1)) < 16.3, 'four combinations, equally often'


# --- what they make ------------------------------------------------------------------------------------------------------


def test_sequential_edits_in_order_and_parallel_by_one(real: RealImages) -> None:
    ordered = built('Sequential', plus(3), plus(0, times=2), real=real)
    assert grey(ordered.generate(asked(ordered, 3, real)).images) == [26, 28, 30]
    turned = built('Sequential', plus(0, times=2), plus(3), real=real)
    assert grey(turned.generate(asked(turned, 3, real)).images) == [23, 25, 27]
    parallel = built('Parallel', plus(100), plus(200), real=real)
    for request in asked(parallel, 12, real):
        source = int(request.source[-5])
        assert grey(parallel.generate([request]).images) == [10 + source + 100 * (1 + request.params['member'])]


def test_nested_compositions_make_what_their_params_say(real: RealImages) -> None:
    inner = {'type': 'synthaug_plugins.Sequential', 'generators': [plus(20), plus(40)], 'probs': [0.5, 0.5]}
    outer = {'type': 'synthaug_plugins.Parallel', 'generators': [plus(1), inner]}
    generator = built('Parallel', outer, plus(7), inner, real=real)
    seen = set()
    for r in asked(generator, 60, real):
        params = r.params.get('inner', r.params)
        added = sum(step['params']['plus'] for step in params['steps']) if 'steps' in params else params['plus']
        assert grey(generator.generate([r]).images) == [10 + int(r.source[-5]) + added]
        seen.add((r.params['member'], added))
        json.dumps(r.params)
    assert seen == {(0, 1), (0, 0), (0, 20), (0, 40), (0, 60), (1, 7), (2, 0), (2, 20), (2, 40), (2, 60)}


def test_where_no_member_acts_the_image_is_stored_as_it_was(real: RealImages, tmp_path: Path) -> None:
    generator = {'type': 'Sequential', 'generators': [plus(100, noise=9)], 'probs': [0.3]}
    store = generate(complete({'generator': generator, 'data': str(real.root), 'per_source': 8, 'inspectors': []}), tmp_path / 's', 'cpu', quiet=True)
    reader, changed = StoreReader(store.folder), Counter()
    for row in store.index().to_pylist():
        acted = bool(json.loads(row['params'])['steps'])
        image = np.asarray(Image.open(BytesIO(reader.read_image(row))))
        assert np.array_equal(image, real.load(row['source'])) is not acted
        changed[acted] += 1
    assert min(changed.values()) > 5
    found = select(store, 'len(params.steps) = 0').table.num_rows
    assert found == changed[False]


def test_batch_and_block_size_change_no_image(real: RealImages, tmp_path: Path) -> None:
    inner = {'type': 'Sequential', 'generators': [plus(3, noise=50), plus(9, noise=50)], 'probs': [0.5, 0.5]}
    generator = {'type': 'Parallel', 'generators': [inner, plus(1, noise=99)]}

    def made(name: str, **keys: Any) -> dict[str, bytes]:
        recipe = complete({'generator': generator, 'data': str(real.root), 'per_source': 5, 'inspectors': [], 'block_size': 11, **keys})
        store = generate(recipe, tmp_path / name, 'cpu', quiet=True)
        return {row['id']: row['sha256'] for row in store.index().to_pylist()}

    assert made('large', batch_size=32) == made('one', batch_size=1) == made('four', batch_size=4)


def test_a_batch_is_of_one_member_and_one_bucket_of_it(real: RealImages) -> None:
    generator = built('Parallel', plus(1), plus(2), real=real)
    requests = [r for name in CLASSES for r in asked(generator, 30, real, name)]
    buckets: dict[Any, set[Any]] = {}
    for r in requests:
        buckets.setdefault(generator.bucket(r), set()).add((r.params['member'], r.label))
    assert len(buckets) == 4 and all(len(found) == 1 for found in buckets.values())


def test_what_goes_wrong_on_the_way_is_told_of_the_image_that_comes_out(real: RealImages) -> None:
    generator = built('Sequential', plus(0, bad=12), plus(100, flagged=111), real=real)
    with pytest.raises(NonFiniteImages) as found:
        generator.generate(asked(generator, 3, real))
    assert found.value.bad == {2: 'too large'}
    assert isinstance(found.value.images, Made)
    assert grey(found.value.images.images) == [110, 111, 112]
    assert found.value.images.reasons == {1: 'flagged', 2: 'flagged'}
    assert found.value.images.scores['largest'].tolist() == [110, 111, 112], 'of the last member that gives the score'


def test_only_images_that_show_their_whole_source_get_its_shape(real: RealImages) -> None:
    parallel = built('Parallel', plus(1, whole=False), plus(2), real=real)
    assert {(r.params['member'], parallel.whole_source(r)) for r in asked(parallel, 40)} == {(0, False), (1, True)}
    sequential = built('Sequential', plus(1, whole=False), plus(2), probs=[0.5, 0.5], real=real)
    assert all(sequential.whole_source(r) is (0 not in [s['member'] for s in r.params['steps']]) for r in asked(sequential, 40))


# --- what they are -------------------------------------------------------------------------------------------------------


def test_members_count_identify_and_prepare_together(real: RealImages) -> None:
    generator = built('Sequential', plus(1), plus(2, times=2), {'type': 'Sequential', 'generators': [plus(4)]}, real=real)
    generator.generate(asked(generator, 3, real))
    assert generator.network_images == 9
    said: list[str] = []
    generator.prepare(CLASSES, said.append)
    generator.prepare(CLASSES, said.append)
    assert said == ['Prepared.']
    assert generator.model_classes() == ['cat', 'dog'], 'what all know'
    identity = generator.identity()
    assert identity['model'] == {'name': 'times 1 + times 2'}
    assert [m['type'] for m in identity['generators']] == ['Arithmetic', 'Arithmetic', 'Sequential']
    assert built('Sequential', plus(1)).identity()['model'] == {'name': 'times 1'}
    others = [built('Sequential', plus(1), plus(2)), built('Sequential', plus(2), plus(1)), built('Sequential', plus(1), plus(2), probs=[1, 0.5])]
    others.append(built('Parallel', plus(1), plus(2)))
    assert len({json.dumps(other.identity(), sort_keys=True) for other in others}) == 4


@pytest.fixture(scope='module')
def sd(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_pipelines.sd(tmp_path_factory.mktemp('sd')))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each component was read."""
    counted: Counter[str] = Counter()
    load = ModelFiles.load

    def counting(self: ModelFiles, component: str, *arguments: Any, **options: Any) -> Any:
        counted[component] += 1
        return load(self, component, *arguments, **options)

    monkeypatch.setattr(ModelFiles, 'load', counting)
    return counted


def test_equal_weights_are_loaded_once_and_other_words_never_shared(sd: str, real: RealImages, loads: Counter[str], tmp_path: Path) -> None:
    words = [tiny_pipelines.learned_words(tmp_path / f'{k}.safetensors', sd, CLASSES, seed=k) for k in (0, 1)]
    shared = {'model': sd, 'sampler': {'num_steps': 2}, 'guidance_scale': 1}
    members: list[dict[str, Any]] = [{'type': 'DAFusion', 'words': words[0], 't0': t0, **shared} for t0 in (1.0, 0.5)]
    members.append({'type': 'Sequential', 'generators': [{'type': 'DAFusion', 'words': words[0], 't0': 1.0, 'fit': 'crop', **shared}]})
    members.append({'type': 'DAFusion', 'words': words[1], 't0': 1.0, **shared})
    generator = built('Parallel', *members, real=real)
    generator.check(CLASSES)
    generator.prepare(CLASSES, lambda sentence: None)
    requests = {r.params['member']: r for r in asked(generator, 40, real)}
    images = {k: generator.generate([requests[k]]).images[0] for k in (0, 1, 2)}
    assert loads == {'unet': 1, 'vae': 1, 'text_encoder': 1}
    images[3] = generator.generate([requests[3]]).images[0]
    assert loads == {'unet': 2, 'vae': 2, 'text_encoder': 2}
    assert generator.network_images == 2 + 1 + 2 + 2
    again = generator.generate([requests[0]]).images[0]
    assert np.array_equal(again, images[0]), 'what another member loaded in between changes nothing'
    # Each makes what it makes alone: nobody got the words of another.
    for k in (0, 1, 3):
        alone = built('Parallel', members[k], real=real)
        alone.prepare(CLASSES, lambda sentence: None)
        (told,) = [told for _, told in generator.of_members(requests[k])]
        assert np.array_equal(alone.members[0].edit([told], [real.load(told.source)])[0], images[k])


@pytest.mark.parametrize(
    ('type_', 'options', 'named'),
    [
        ('Parallel', {'generators': []}, r'Parallel has generators = \[\]'),
        ('Sequential', {'generators': 'DAFusion'}, "generators = 'DAFusion'"),
        ('Parallel', {'generators': [{'type': 'EDM', 'model': 'embedded:digits_edm'}]}, 'member EDM, which edits no images'),
        ('Parallel', {'generators': [plus(1, pluss=2)]}, "no option 'pluss'"),
        ('Parallel', {'generators': [plus(1), plus(2)], 'probs': [0.5]}, r'probs = \[0.5\] for 2 generators'),
        ('Parallel', {'generators': [plus(1), plus(2)], 'probs': [0.5, 0.6]}, 'add up to 1.1'),
        ('Sequential', {'generators': [plus(1), plus(2)], 'probs': [0.5, 0]}, 'above 0'),
        ('Sequential', {'generators': [plus(1)], 'probs': [1.5]}, 'up to 1'),
        ('Sequential', {'generators': [plus(1)], 'probs': [float('nan')]}, 'probs'),
        ('Sequential', {'generators': ['DAFusion']}, 'has no type'),
    ],
    ids=str,
)
def test_compositions_that_cannot_work_are_refused(type_: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        build_strict({'type': type_, **options}, GENERATORS)


def test_thirds_with_a_few_decimals_are_probabilities() -> None:
    assert isinstance(built('Parallel', plus(1), plus(2), plus(3), probs=[0.3333333, 0.3333333, 0.3333334]), Parallel)


def test_a_member_that_the_classes_do_not_fit_is_refused_before_anything_is_made(real: RealImages, tmp_path: Path) -> None:
    guided = {'type': 'RealGuidance', 'model': 'embedded:digits_edm', 'sigma': 0.5}
    with pytest.raises(Exception, match="does not know the class 'cat'"):
        prepare(complete({'generator': {'type': 'Sequential', 'generators': [plus(1), guided]}, 'data': str(real.root), 'per_source': 1}))


def test_a_store_of_a_composition_names_its_models(real: RealImages, tmp_path: Path) -> None:
    generator = {'type': 'Parallel', 'generators': [plus(1), plus(1, times=2)]}
    store = generate(complete({'generator': generator, 'data': str(real.root), 'per_source': 1, 'inspectors': []}), tmp_path / 's', 'cpu', quiet=True)
    assert Store.open(store.folder).made_by['model']['name'] == 'times 1 + times 2'
    assert isinstance(build_strict(generator | {'type': 'Sequential'}, GENERATORS), Sequential)
