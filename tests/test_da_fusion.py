"""DA-Fusion's generator: intensities, even variants, shapes, no class names, kill and resume; and what it refuses."""

from __future__ import annotations

import json
import os
import signal
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
from test_erasure import erasures

from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, load_recipe, prepare
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.generators.da_fusion import DAFusion
from synthaug_plugins.models.erasure import Erasures
from synthaug_plugins.models.files import ModelFiles
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.registry import GENERATORS, build_strict
from synthaug_plugins.store.plan import Part, Request
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import verify

CLASSES = ['cat', 'dog']
SIZES = {'cat': [(16, 16), (20, 10), (9, 30)], 'dog': [(16, 16), (1, 1)]}  # width, height


@pytest.fixture(scope='module')
def sd(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_pipelines.sd(tmp_path_factory.mktemp('sd')))


@pytest.fixture(scope='module')
def words(sd: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_pipelines.learned_words(tmp_path_factory.mktemp('words') / 'words.safetensors', sd, CLASSES)


@pytest.fixture(scope='module')
def real(tmp_path_factory: pytest.TempPathFactory) -> RealImages:
    """Three cats and two dogs of different shapes."""
    root, rng = tmp_path_factory.mktemp('real'), np.random.default_rng(0)
    for name, sizes in SIZES.items():
        (root / name).mkdir()
        for k, (width, height) in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / name / f'{k}.png')
    return RealImages(root)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*arguments: Any, **options: Any) -> None:
        raise AssertionError('weights were loaded')

    monkeypatch.setattr(ModelFiles, 'load', loaded)


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(model: str, real: RealImages | None = None, classes: list[str] = CLASSES, **options: Any) -> DAFusion:
    """A generator as the engine makes it ready."""
    generator: DAFusion = build_strict({'type': 'synthaug_plugins.DAFusion', 'model': model, **options}, GENERATORS)
    generator.real_images = real
    generator.check(classes)
    generator.prepare(classes, lambda sentence: None)
    generator.setup(torch.device('cpu'), real)
    return generator


def asked(generator: DAFusion, n: int, name: str = 'cat', sources: tuple[str, ...] = ('cat/0.png',), block: int = 0, first: int = 0) -> list[Request]:
    return list(islice(generator.requests(Part(block, CLASSES.index(name), name, n, n, first, sources), 0), n))


def recipe(sd: str, words: str, real: RealImages, generator: dict[str, Any] = {}, **keys: Any) -> dict[str, Any]:  # noqa: B006
    options = {'type': 'DAFusion', 'model': sd, 'words': words, 'sampler': {'num_steps': 4}, 'guidance_scale': 1.5, **generator}
    return complete({'generator': options, 'data': str(real.root), 'inspectors': [], 'per_source': 3, 'block_size': 7, 'batch_size': 3, **keys})


def pixels(store: Store) -> dict[str, np.ndarray]:
    """Id -> pixels of every image of a store."""
    reader = StoreReader(store.folder)
    return {row['id']: np.asarray(Image.open(BytesIO(reader.read_image(row)))) for row in store.index().to_pylist()}


# --- intensities ---------------------------------------------------------------------------------------------------------


def test_each_request_draws_t0_from_the_pool_equally_often_by_its_seed_and_records_it(sd: str, words: str) -> None:
    pool = (0.25, 0.5, 0.75, 1.0)
    generator = built(sd, words=words)
    requests = asked(generator, 2000)
    counts = Counter(r.params['t0'] for r in requests)
    assert set(counts) == set(pool)
    assert sum((n - 500) ** 2 / 500 for n in counts.values()) < 16.3, 'chi-square with three degrees of freedom, p = 0.001'
    again = asked(built(sd, words=words), 2000)
    assert again == requests
    other = list(islice(generator.requests(Part(0, 0, 'cat', 9, 9, 0, ('cat/0.png',)), 1), 2000))
    assert [r.params['t0'] for r in other] != [r.params['t0'] for r in requests], 'another seed of the recipe, other draws'
    assert {r.params['guidance_scale'] for r in requests} == {7.5}
    assert {r.prompt for r in requests} == {'a photo of a <cat>'}


def test_of_50_steps_the_last_int_50_t0_run(sd: str, words: str, real: RealImages) -> None:
    generator = built(sd, real, words=words, guidance_scale=1)
    assert [50 - s.sampler['first_step'] for s in generator.strengths] == [12, 25, 37, 50]
    requests = {r.params['t0']: r for r in asked(generator, 40)}
    generator.generate([requests[0.25]])
    assert generator.network_images == 12
    generator.generate([requests[0.75], requests[0.75]])
    assert generator.network_images == 12 + 2 * 37


def test_at_full_intensity_an_edit_still_starts_from_its_real_image(sd: str, words: str, real: RealImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the largest noise: two sources under one seed differ at the start by as much as their latents do."""
    generator = built(sd, real, words=words, t0=1.0, sampler={'num_steps': 2}, guidance_scale=1)
    starts: list[torch.Tensor] = []
    encode = generator._encode
    monkeypatch.setattr(generator, '_encode', lambda pixels: starts.append(encode(pixels)) or starts[-1])
    seen: list[torch.Tensor] = []

    class Watched:
        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, cond: Any = None) -> torch.Tensor:
            seen.append(x.clone())
            return generator.denoiser()(x, sigma, cond)

        def __getattr__(self, name: str) -> Any:
            return getattr(generator.denoiser(), name)

    monkeypatch.setattr(generator, 'guided', lambda requests, shared, options: Watched())
    (one,) = asked(generator, 1)
    for source in ('cat/0.png', 'cat/1.png'):
        generator.generate([Request(**{**vars(one), 'source': source})])
    assert len(seen) == 4
    assert torch.allclose((seen[2] - seen[0])[0].float(), starts[1] - starts[0], atol=1e-4)
    assert (starts[1] - starts[0]).abs().mean() > 0.01


def test_requests_with_equal_intensity_share_a_batch_and_no_others(sd: str, words: str) -> None:
    generator = built(sd, words=words)
    requests = [*asked(generator, 30), *asked(generator, 30, 'dog', ('dog/0.png',))]
    buckets = {(generator.bucket(r), r.params['t0']) for r in requests}
    assert len(buckets) == len({b for b, _ in buckets}) == 4


def test_with_erasures_classes_do_not_share_a_batch_and_each_is_edited_with_itself_erased(
    sd: str, real: RealImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = erasures(tmp_path / 'e', Path(sd), classes=CLASSES)
    words = tiny_pipelines.learned_words(tmp_path / 'w.safetensors', sd, CLASSES, erasures=Erasures(folder).hashes(CLASSES))
    generator = built(sd, real, words=words, erasures=str(folder), sampler={'num_steps': 4}, t0=[0.5, 1.0])
    requests = [*asked(generator, 9), *asked(generator, 9, 'dog', ('dog/0.png',))]
    batches: dict[Any, list[Request]] = {}
    for r in requests:
        batches.setdefault(generator.bucket(r), []).append(r)
    assert len(batches) == 4 and all(len({r.class_name for r in batch}) == 1 for batch in batches.values())
    erased: list[str | None] = []
    generator.denoiser()
    erase = generator.model.erase
    monkeypatch.setattr(generator.model, 'erase', lambda name: erased.append(name) or erase(name))
    for batch in batches.values():
        generator.generate(batch)
    assert erased == [batch[0].class_name for batch in batches.values()]


# --- even, deterministic, killed -----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(sd: str, words: str, real: RealImages, tmp_path_factory: pytest.TempPathFactory) -> Store:
    torch.set_num_threads(1)
    return generate(recipe(sd, words, real), tmp_path_factory.mktemp('whole') / 'store', 'cpu', quiet=True)


def test_every_real_image_gets_exactly_m_variants_whatever_the_block_size(sd: str, words: str, real: RealImages, whole: Store) -> None:
    counts = Counter(row['source'] for row in whole.index().to_pylist())
    assert counts == {i: 3 for name in CLASSES for i in real.ids(name)}
    assert {name: c['target'] for name, c in whole.counts().items()} == {'cat': 9, 'dog': 6}
    assert not verify(whole)
    for block_size in (1, 4, 100):
        run = prepare(recipe(sd, words, real, block_size=block_size))
        taken = [r.source for part in run.plan.parts for r in islice(run.generator.requests(part, 0), part.target)]
        assert Counter(taken) == counts


def test_an_image_depends_on_its_request_alone(sd: str, words: str, real: RealImages, whole: Store, one_thread: None) -> None:
    """Not on the batch, the block or what was made before it."""
    run = prepare(recipe(sd, words, real))
    run.generator.setup(torch.device('cpu'), real)
    stored = pixels(whole)
    requests = [r for part in run.plan.parts for r in islice(run.generator.requests(part, 0), part.target)]
    assert len({r.id.split('_')[0] for r in requests}) > 1
    for request in reversed(requests):
        (alone,) = run.generator.generate([request])
        assert np.abs(alone.astype(int) - stored[request.id]).max() <= 1


def test_a_killed_run_ends_with_the_same_bytes(
    sd: str, words: str, real: RealImages, whole: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_thread: None
) -> None:
    make, calls = DAFusion.edit, [0]

    def dying(self: DAFusion, requests: Any, images: Any) -> Any:
        calls[0] += 1
        if calls[0] == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(self, requests, images)

    for killed_at in (1, 5):
        out = tmp_path / str(killed_at) / 'store'
        if (pid := os.fork()) == 0:
            DAFusion.edit = dying  # type: ignore[method-assign]
            generate(recipe(sd, words, real), out, 'cpu', quiet=True)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        store = generate(recipe(sd, words, real), out, 'cpu', quiet=True)
        for folder in ('shards', 'index'):
            assert {p.name: p.read_bytes() for p in (store.folder / folder).iterdir()} == {p.name: p.read_bytes() for p in (whole.folder / folder).iterdir()}


# --- shapes --------------------------------------------------------------------------------------------------------------


def test_variants_keep_the_shape_of_their_source_and_squashed_ones_get_it_back(sd: str, words: str, real: RealImages, whole: Store, tmp_path: Path) -> None:
    shapes = {row['source']: row['id'] for row in whole.index().to_pylist()}
    images = pixels(whole)
    assert {source: images[i].shape[:2] for source, i in shapes.items()} == {
        **{'cat/0.png': (16, 16), 'cat/1.png': (8, 16), 'cat/2.png': (16, 5)},
        **{'dog/0.png': (16, 16), 'dog/1.png': (16, 16)},
    }
    for fit in ('pad', 'squash'):
        store = generate(recipe(sd, words, real, {'fit': fit, 't0': 0.25}, image={'size': 'source'}, per_source=1), tmp_path / fit, 'cpu', quiet=True)
        images = pixels(store)
        for row in store.index().to_pylist():
            assert images[row['id']].shape[1::-1] == real.size(row['source'])


def test_nothing_that_was_filled_in_reaches_a_variant(sd: str, words: str, real: RealImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that paints white wherever the canvas was filled: nothing of it is left."""
    generator = built(sd, real, words=words, t0=0.5)
    canvas = np.full((3, 16, 16, 3), 255, np.uint8)
    canvas[0], canvas[1, 4:12], canvas[2, :, 5:10] = 7, 7, 7  # 16 x 16, 20 x 10 and 9 x 30 pixels on a canvas of 16 x 16
    monkeypatch.setattr(generator, 'sample', lambda *arguments, **options: canvas)
    made = generator.generate(asked(generator, 3, sources=real.ids('cat')))
    assert [image.shape for image in made] == [(16, 16, 3), (8, 16, 3), (16, 5, 3)]
    assert all((image == 7).all() for image in made)


# --- no class names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'prompts': 'a photo of a cat, {}'}, "prompt 'a photo of a cat, <cat>' names the class 'cat'"),
        ({'prompts': ['a photo of a {}', 'CATS beside {}']}, "'CATS beside <cat>' names the class 'cat'"),
        ({'prompts': 'a {} and no dog'}, "names the class 'dog'"),
        ({'negative_prompt': 'two dogs'}, "negative_prompt 'two dogs' names the class 'dog'"),
        ({'prompts': {'type': 'Basic'}}, "'a photo of a cat' names the class 'cat'"),
        ({'words': None, 'prompts': {'type': 'Basic'}}, "'a photo of a cat' names the class 'cat'"),
        ({'words': None, 'prompts': 'a photo of a {}'}, 'has no words.*synthaug learn words'),
    ],
    ids=str,
)
def test_a_class_name_on_its_way_to_the_text_encoder_is_refused_before_weights_load(
    sd: str, words: str, no_weights: None, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(RecipeError, match=named):
        built(sd, **{'words': words, **options})
    if options.get('prompts') != {'type': 'Basic'} or options.get('words', words) is None:  # words that no prompt says are another refusal
        built(sd, **{'words': words, **options, 'class_names': 'allowed'})


def test_what_a_tokenizer_cannot_tell_from_a_class_name_counts_as_one(sd: str, tmp_path: Path) -> None:
    """This tokenizer knows no umlauts: the two words reach the encoder as the same tokens."""
    words = tiny_pipelines.learned_words(tmp_path / 'w.safetensors', sd, ['kätze', 'hund'])
    with pytest.raises(RecipeError, match="'a kötze, <kätze>' names the class 'kätze' to the model"):
        built(sd, classes=['kätze', 'hund'], words=words, prompts='a kötze, {}')
    built(sd, classes=['kätze', 'hund'], words=words, prompts='a kitten, {}')


def test_words_beside_a_learned_word_make_no_name_together(sd: str, tmp_path: Path) -> None:
    words = tiny_pipelines.learned_words(tmp_path / 'w.safetensors', sd, ['sea lion', 'owl'])
    built(sd, classes=['sea lion', 'owl'], words=words, prompts='a sea {} lion')
    with pytest.raises(RecipeError, match="names the class 'sea lion'"):
        built(sd, classes=['sea lion', 'owl'], words=words, prompts='a sea-lion {}')


def test_words_that_began_from_class_names_are_refused_unless_names_are_allowed(sd: str, tmp_path: Path) -> None:
    words = tiny_pipelines.learned_words(tmp_path / 'w.safetensors', sd, CLASSES, initialised_from={'class_name': True})
    with pytest.raises(RecipeError, match=r"began from the names of the classes.*class_names='allowed'"):
        built(sd, words=words)
    generator = built(sd, words=words, class_names='allowed')
    assert generator.identity()['class_names'] == 'allowed'
    words = tiny_pipelines.learned_words(tmp_path / 'x.safetensors', sd, CLASSES, initialised_from={'word': 'small dog'})
    with pytest.raises(RecipeError, match="began from 'small dog' names the class 'dog'"):
        built(sd, words=words)
    words = tiny_pipelines.learned_words(tmp_path / 'y.safetensors', sd, CLASSES, options={'templates': ['a photo of a {}', 'the cat {}']})
    with pytest.raises(RecipeError, match="learned with 'the cat ' names the class 'cat'"):
        built(sd, words=words)


def test_identity_says_whether_names_were_allowed_and_which_intensities(sd: str, words: str) -> None:
    one, other = built(sd, words=words).identity(), built(sd, words=words, t0=0.5, fit='squash').identity()
    assert (one['class_names'], one['fit']) == ('never', 'pad')
    assert [s['t0'] for s in one['strengths']] == [0.25, 0.5, 0.75, 1.0]
    assert [s['t0'] for s in other['strengths']] == [0.5]
    assert one['model']['words']['sha256'] == other['model']['words']['sha256']
    json.dumps(one)


def test_a_baseline_without_class_names_is_checked_too(sd: str, real: RealImages, no_weights: None) -> None:
    options = {'type': 'RealGuidance', 'model': sd, 'strength': 0.5, 'class_names': 'never'}
    keys = {'data': str(real.root), 'per_source': 1}
    prepare(complete({'generator': {**options, 'prompts': {'type': 'ClassNameFree'}}, **keys}))
    with pytest.raises(RecipeError, match="names the class 'cat'"):
        prepare(complete({'generator': options, **keys}))


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'t0': 0}, r't0 = 0 is outside \(0, 1\]'),
        ({'t0': [0.5, 1.5]}, r't0 = 1.5 is outside'),
        ({'t0': float('nan')}, r't0 = nan is outside'),
        ({'t0': []}, 'empty'),
        ({'t0': [0.5, 0.5]}, 'repeats'),
        ({'t0': True}, 'no number'),
        ({'t0': 0.01}, 't0 = 0.01 of 50 steps runs none'),
        ({'fit': 'stretch'}, "fit = 'stretch'"),
        ({'class_names': 'sometimes'}, "class_names = 'sometimes'"),
        ({'prompts': 'a photo'}, 'lacks the placeholder'),
        ({'sampler': {'sigmas': [3.0, 1.0]}}, 'DAFusion has sampler.sigmas'),
        ({'strengths': 0.5}, "no option 'strengths'"),
        ({'image_size': 15}, 'image_size = 15'),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_weights_load(sd: str, words: str, no_weights: None, options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        built(sd, **{'words': words, **options})


def test_words_for_other_classes_or_another_model_are_refused_before_weights_load(sd: str, words: str, tmp_path: Path, no_weights: None) -> None:
    with pytest.raises(DataError, match="'owl' has no word"):
        built(sd, classes=['cat', 'owl'], words=words)
    other = tiny_pipelines.learned_words(tmp_path / 'w.safetensors', sd, CLASSES, model={'name': 'another', 'sha256': '0' * 64})
    with pytest.raises(ModelError, match="learned for 'another'"):
        built(sd, words=other)
    with pytest.raises(ModelError, match=r'no such file.*synthaug learn words'):
        built(sd, words=str(tmp_path / 'missing.safetensors'))


def test_a_class_without_images_is_refused(sd: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'dog' has no real images"):
        asked(built(sd, words=words), 1, 'dog', ())
    (tmp_path / 'r' / 'cat').mkdir(parents=True)
    with pytest.raises(DataError, match="'cat' has no images"):
        RealImages(tmp_path / 'r')


def test_an_image_too_large_for_memory_is_named_with_a_cure(sd: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_weights: None) -> None:
    for name in CLASSES:
        (tmp_path / 'r' / name).mkdir(parents=True)
        Image.new('L', (16, 16)).save(tmp_path / 'r' / name / 'a.png')
    monkeypatch.setattr('synthaug_plugins.real_images.decode_rgb', lambda path: 1 / 0 if path.name == 'b.png' else (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(DataError, match=r"cat/a\.png' is too large for memory.*Shrink it"):
        generate(recipe(sd, words, RealImages(tmp_path / 'r')), tmp_path / 's', 'cpu', quiet=True)
    monkeypatch.undo()
    Image.new('1', (20_000, 10_000)).save(tmp_path / 'r' / 'dog' / 'b.png')
    with pytest.raises(DataError, match=r"dog/b\.png' is too large for memory.*200000000 pixels.*Shrink it"):
        prepare(recipe(sd, words, RealImages(tmp_path / 'r')))


@pytest.mark.parametrize(
    ('keys', 'named'),
    [
        ({'per_class': 5}, 'per_class = 5 and per_source = 3'),
        ({'per_source': 0}, 'per_source = 0'),
        ({'per_source': True}, 'per_source = True'),
        ({'per_source': 2.5}, 'per_source = 2.5'),
        ({'per_source': None, 'per_class': None}, 'neither'),
    ],
    ids=str,
)
def test_a_quota_is_said_in_exactly_one_way(sd: str, words: str, real: RealImages, keys: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        recipe(sd, words, real, **keys)


def test_a_quota_per_real_image_is_complete_when_completed_again_and_needs_real_images(sd: str, words: str, real: RealImages) -> None:
    once = recipe(sd, words, real)
    assert complete(once) == once
    assert complete({'generator': {'type': 'EDM'}})['per_class'] == 100
    with pytest.raises(RecipeError, match='EDM starts from no real image'):
        prepare(complete({'generator': {'type': 'EDM', 'model': 'embedded:digits_edm'}, 'per_source': 2}))


# --- recipes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['dafusion', 'dafusion_paper_compat', 'dafusion_digits'])
def test_recipes_ask_for_m_variants_and_say_how_to_learn_the_words_that_they_need(sd: str, real: RealImages, name: str, tmp_path: Path) -> None:
    found = load_recipe(find_recipe(name, 'generate'), {'data': str(real.root)})
    assert found['per_source'] == 10 and found['image']['size'] == 'source'
    members = found['generator'].get('generators', [found['generator']])
    assert [m['t0'] for m in members] == ([[0.25, 0.5, 0.75, 1.0]] if len(members) == 1 else [1.0, 0.75, 0.5, 0.25])
    for member in members:
        here = {**member, 'model': sd, 'revision': None, 'variant': None, 'precision': 'fp32'}
        with pytest.raises(ModelError, match=r'no such file.*synthaug learn words'):
            build_strict({**here}, GENERATORS)
        here['words'] = tiny_pipelines.learned_words(tmp_path / 'w.safetensors', sd, CLASSES)
        generator = build_strict(here, GENERATORS)
        assert generator.sampler['num_steps'] == 50
        assert generator.told.scale.given == (2.0 if name == 'dafusion_digits' else 7.5)
