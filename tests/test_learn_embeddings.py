"""`synthaug learn embeddings`: from a recipe and images to embeddings that generators read, through kills, mistakes and more images."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import Say, digits
from synthaug_plugins.engine import learn_embeddings as engine
from synthaug_plugins.engine.learn_embeddings import learn_image_embeddings, save_stand_in
from synthaug_plugins.engine.learn_embeddings_recipe import complete_embeddings_recipe, load_embeddings_recipe, prepare_embeddings, training_options
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.learning.embeddings_options import EmbeddingTraining
from synthaug_plugins.models import embedding_shards
from synthaug_plugins.models.embedding_shards import read_index
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.recipes import find_recipe

CLASSES = ('dog', 'small cat')
# 10 images in 3 slots: they begin in four waves of 4 steps. Shards of 4 images, so that some wait while others learn.
SHORT: dict[str, Any] = {
    'training': {'tokens': 2, 'steps': 4, 'batch_size': 3, 'checkpoint_steps': 3, 'shard_size': 4},
    'samples': {'images': 3, 'num_steps': 2},
}


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp('sd'))


def write_images(root: Path, count: int, first: int = 0) -> Path:
    for k, name in enumerate(CLASSES):
        (root / name).mkdir(exist_ok=True)
        for i in range(first, first + count):
            pixels = np.random.default_rng(100 * k + i).integers(0, 80, (20, 28, 3), np.uint8)
            pixels[:, 14 * k : 14 * k + 14] += 150
            Image.fromarray(pixels).save(root / name / f'{i}.png')
    return root


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('data'), 5)


def recipe(pipeline: Path | str, folder: Path | None, /, **changes: Any) -> dict[str, Any]:
    done = {**SHORT, 'model': {'name': str(pipeline)}, 'data': str(folder) if folder else None}
    for key, value in changes.items():
        outer, _, inner = key.partition('__')
        done[outer] = {**done.get(outer, {}), inner: value} if inner else value
    return complete_embeddings_recipe(done)


@pytest.fixture(scope='module')
def unbroken(sd: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over all images in one call."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp('unbroken') / 'out'
    learn_image_embeddings(recipe(sd, data), out, 'cpu', quiet=True)
    torch.set_num_threads(before)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the mark, which names the folder of the data."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != 'learn.json'}


def killed(recipe: dict[str, Any], out: Path, arm: Callable[[Callable[[], None]], None]) -> None:
    """Learn in a process of its own, a copy of this one, which is killed. arm: given what kills the process, puts it in its place there."""
    child = os.fork()
    if not child:
        arm(lambda: os.kill(os.getpid(), signal.SIGKILL))
        try:
            learn_image_embeddings(recipe, out, 'cpu')
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def in_step(number: int) -> Callable[[Callable[[], None]], None]:
    """Kill at the end of so many steps."""

    def arm(kill: Callable[[], None]) -> None:
        seen: list[int] = []
        engine.EmbeddingProgress.step = lambda self, image_steps, loss: kill() if len(seen) + 1 == number else seen.append(image_steps)  # type: ignore

    return arm


def in_the_middle_of_a_shard(kill: Callable[[], None]) -> None:
    """Kill when a part of a shard is on disk."""
    stage = embedding_shards.files.stage

    def half(path: Path, chunks: Any) -> Path:
        staged = stage(path, chunks)
        return kill() if path.suffix == '.safetensors' else staged  # type: ignore[func-returns-value,return-value]

    embedding_shards.files.stage = half


def between_shard_and_index(kill: Callable[[], None]) -> None:
    """Kill when a shard is on disk and its index is not."""
    embedding_shards.parquet_bytes = lambda *a: kill()  # type: ignore


def test_killed_learning_ends_with_the_same_bytes(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    state = out / 'checkpoints' / 'checkpoint.json'
    killed(recipe(sd, data), out, in_step(7))  # three images wait for their shard, the next three are half learned
    known = json.loads(state.read_text())
    assert (len(known['waiting']), [image['step'] for image in known['at_work']]) == (3, [2, 2, 2])
    killed(recipe(sd, data), out, in_the_middle_of_a_shard)
    assert [p.name[:9] for p in (out / 'embeddings' / 'shards').iterdir()] == ['.partial-']
    killed(recipe(sd, data), out, between_shard_and_index)
    assert len(json.loads(state.read_text())['waiting']) == 6
    assert [p.name for p in (out / 'embeddings' / 'shards').iterdir()] == ['00000.safetensors']
    assert not (out / 'embeddings' / 'index').exists()
    killed(recipe(sd, data), out, in_step(2))  # after the first shard, before the next checkpoint
    assert len(Embeddings(out / 'embeddings')) == 4
    learn_image_embeddings(recipe(sd, data), out, 'cpu', quiet=True)
    assert contents(out) == contents(unbroken)
    assert not (out / 'checkpoints').exists()


def test_a_killed_run_goes_on_with_another_number_of_slots(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    killed(recipe(sd, data), out, in_step(7))
    learn_image_embeddings(recipe(sd, data, training__batch_size=1, training__shard_size=100), out, 'cpu', quiet=True)
    found, known = Embeddings(out / 'embeddings'), Embeddings(unbroken / 'embeddings')
    ids = known.ids(range(10))
    torch.testing.assert_close(found.read(found.find(ids))[0], known.read(range(10))[0], rtol=0.05, atol=0.005)
    assert len(list((out / 'embeddings' / 'shards').iterdir())) == 1


def test_images_that_are_added_are_learned_and_what_was_there_keeps_its_bytes(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    out, more = shutil.copytree(unbroken, tmp_path / 'out'), write_images(shutil.copytree(data, tmp_path / 'data'), 1, first=5)
    before = contents(out / 'embeddings')
    learned: list[str] = []
    from synthaug_plugins.learning import embeddings_run as learning

    put = learning.Slots.put
    learning.Slots.put = lambda self, place, image, *rest: (learned.append(image.image_id), put(self, place, image, *rest))[1]  # type: ignore
    try:
        learn_image_embeddings(recipe(sd, more), out, 'cpu', quiet=True)
    finally:
        learning.Slots.put = put  # type: ignore[method-assign]
    after = contents(out / 'embeddings')
    assert learned == ['dog/5.png', 'small cat/5.png']
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == ['index/00003.parquet', 'shards/00003.safetensors']
    assert read_index(out / 'embeddings', 3)['id'].to_pylist() == learned
    assert '| dog | 6 |' in (out / 'card.md').read_text()


def test_a_finished_run_loads_no_weights_again(sd: Path, data: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = shutil.copytree(unbroken, tmp_path / 'out')
    monkeypatch.setattr(TextModel, 'load', lambda *a: pytest.fail('weights were loaded'))
    learn_image_embeddings(recipe(sd, data), out, 'cpu', quiet=True)
    assert contents(out) == contents(unbroken)


def test_an_image_that_changed_is_refused_by_name(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    out, other = shutil.copytree(unbroken, tmp_path / 'out'), shutil.copytree(data, tmp_path / 'data')
    shutil.copy(other / 'dog' / '0.png', other / 'dog' / '1.png')
    with pytest.raises(DataError, match=r"The image 'dog/1\.png' of .* is not the file that its embedding"):
        learn_image_embeddings(recipe(sd, other), out, 'cpu', quiet=True)
    for name, step in (('half learned', 4), ('waiting for its shard', 7)):
        killed(recipe(sd, data), tmp_path / name, in_step(step))
        with pytest.raises(DataError, match=r"The image 'dog/1\.png', whose embedding is in the checkpoint, is gone or another one now"):
            learn_image_embeddings(recipe(sd, other), tmp_path / name, 'cpu', quiet=True)


def test_a_changed_recipe_is_refused_by_what_differs(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    out = shutil.copytree(unbroken, tmp_path / 'out')
    with pytest.raises(RecipeError, match=r'holds a learning of image embeddings that differs in training\.learning_rate, training\.tokens\.'):
        learn_image_embeddings(recipe(sd, data, training__tokens=3, training__learning_rate=0.1), out, 'cpu', quiet=True)
    with pytest.raises(RecipeError, match=r'differs in model\.image_size'):
        learn_image_embeddings(recipe(sd, data, model__image_size=32), out, 'cpu', quiet=True)
    with pytest.raises(RecipeError, match='where it would become a class'):
        learn_image_embeddings(recipe(sd, data), data / 'dog' / 'out', 'cpu', quiet=True)
    half = tmp_path / 'half'
    killed(recipe(sd, data), half, in_step(4))
    mark = json.loads((half / 'learn.json').read_text())
    mark['recipe']['training']['steps'] = 5
    (half / 'learn.json').write_text(json.dumps(mark))
    with pytest.raises(RecipeError, match=r'holds another learning of embeddings; these differ: steps\.'):
        learn_image_embeddings(recipe(sd, data, training__steps=5), half, 'cpu', quiet=True)


def test_what_was_learned_is_told_to_a_reader(sd: Path, data: Path, unbroken: Path) -> None:
    found = Embeddings(unbroken / 'embeddings')
    assert (found.shape.tokens, found.shape.width, found.image_size) == (2, 16, (16, 16))
    assert found.card['options']['fit'] == 'squash'
    assert found.card['licence'] is None
    found.check(TextModel(str(sd)), RealImages(data), [f'{name}/{i}.png' for name in CLASSES for i in range(5)])
    assert found.ids(range(4)) == ['dog/0.png', 'small cat/0.png', 'dog/1.png', 'small cat/1.png']  # spread over the classes
    log = [json.loads(line) for line in (unbroken / 'log.jsonl').open()]
    assert [(entry['shard'], entry['images'], entry['steps']) for entry in log] == [(0, 4, 4), (1, 4, 4), (2, 2, 4)]
    card = (unbroken / 'card.md').read_text()
    for said in ('Embeddings of 10 images of 2 classes', '2 tokens of 16 values', '| small cat | 5 | 4 |', 'through the VAE and back', 'How far 3 of these'):
        assert said in card
    assert np.asarray(Image.open(unbroken / 'sheet.png')).shape[0] > 4 * 64
    index = read_index(unbroken / 'embeddings', 0)
    assert index['steps'].to_pylist() == [4] * 4
    assert (index['loss_first'].to_numpy() > 0).all()


def test_reconstructions_of_a_trained_pipeline_are_nearer_than_images_of_its_class(tmp_path: Path) -> None:
    grey = np.round(digits().images / 16 * 255).astype(np.uint8)
    for name, label in (('seven', 7), ('two', 2)):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in np.flatnonzero(digits().target[1200:] == label)[:2] + 1200:
            Image.fromarray(grey[i]).save(tmp_path / 'data' / name / f'{i}.png')
    options = {**load_embeddings_recipe(find_recipe('inversion_digits', 'learn'))['training'], 'steps': 100}
    learn_image_embeddings(
        recipe('embedded:digits_sd', tmp_path / 'data', training=options, samples__num_steps=10, samples__images=4), tmp_path / 'out', 'cpu', quiet=True
    )
    figures = json.loads((tmp_path / 'out' / 'samples.json').read_text())['figures']
    assert figures['round_trip'][0] < 5
    assert figures['embedding'][0] < 0.85 * figures['class'][0]
    index = read_index(tmp_path / 'out' / 'embeddings', 0)
    assert index['loss_last'].to_numpy().mean() < 0.9 * index['loss_first'].to_numpy().mean()


def test_of_a_model_in_pixels_the_card_says_labels(data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    changes = {'training__tokens': 1, 'shots': 1, 'name': 'mine'}
    learn_image_embeddings(recipe('embedded:digits_edm', data, **changes), out, 'cpu', quiet=True)
    assert json.loads((out / 'samples.json').read_text())['figures']['round_trip'] is None
    card = (out / 'card.md').read_text()
    for said in ('# mine\n', '1 token of 32 values', '| sampled without a label |', "embeddings='out/embeddings'"):
        assert said in card
    learn_image_embeddings(recipe('embedded:digits_edm', data, **{**changes, 'licence': 'CC0-1.0'}), out, 'cpu', quiet=True)
    assert Embeddings(out / 'embeddings').card['licence'] == 'CC0-1.0'
    assert 'Licence: CC0-1.0.' in (out / 'card.md').read_text()


def test_a_loss_that_is_not_finite_is_refused_with_image_and_step(sd: Path, data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(sd, tmp_path / 'broken')
    file = broken / 'unet' / 'diffusion_pytorch_model.safetensors'
    weights = load_file(file)
    weights['conv_out.bias'][0] = float('inf')
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"Step 1 of 4 for the image 'dog/0\.png' gave the loss inf"):
        learn_image_embeddings(recipe(broken, data), tmp_path / 'out', 'cpu', quiet=True)
    assert not (tmp_path / 'out' / 'checkpoints').exists()


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'training__seed': 3}, "training has an unknown key 'seed'. It stands beside training"),
        ({'training__step': 3}, "training has an unknown key 'step'"),
        ({'training__steps': 0}, 'steps = 0 is no whole number'),
        ({'training__steps': 10**7}, 'steps = 10000000 are more than 1000000'),
        ({'training__draws': 10**10}, 'times draws = 10000000000 are too many'),
        ({'training__tokens': 0}, 'tokens = 0 is no whole number'),
        ({'training__shard_size': 0}, 'shard_size = 0 is no whole number'),
        ({'training__learning_rate': 0}, 'learning_rate = 0 is out of range'),
        ({'training__learning_rate': float('inf')}, 'no plain data'),
        ({'training__weight_decay': -1}, 'weight_decay = -1 is out of range'),
        ({'training__fit': 'stretch'}, "fit = 'stretch' is unknown"),
        ({'training__precision': 'fp8'}, "precision = 'fp8' is unknown"),
        ({'training__initialise_from': 'a {x}'}, 'holds a brace'),
        ({'training__initialise_from': 3}, 'initialise_from = 3 is no text'),
        ({'training__plateau': {'window': 2}}, 'is not of its form'),
        ({'training__plateau': {'window': 0, 'tolerance': 0.1}}, r'plateau\.window = 0'),
        ({'training__plateau': {'window': 2, 'tolerance': 1}}, r'plateau\.tolerance = 1'),
        ({'training__plateau': {'window': 3, 'tolerance': 0.1}}, 'never ends an image'),
        ({'model': {'path': 'x'}}, "model has an unknown key 'path'"),
        ({'samples__images': 0}, 'samples.images = 0'),
        ({'samples__prompt': 'a photo'}, 'lacks the placeholder'),
        ({'shots': 0}, 'shots = 0 is out of range'),
        ({'generator': {}}, 'Use `synthaug generate`'),
    ],
)
def test_a_wrong_recipe_is_refused_by_key(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        recipe('embedded:digits_sd', None, **changes)


@pytest.mark.parametrize(
    ('changes', 'error', 'match'),
    [
        ({'data': None}, RecipeError, 'names no images'),
        ({'classes': ['cat']}, DataError, r"The class 'cat' has no folder in .* Did you mean 'small cat'"),
        ({'shots': 6}, DataError, "The class 'dog' has 5 images, too few for 6 shots"),
        ({'samples__num_steps': 5000}, RecipeError, 'num_steps = 5000'),
        ({'model__name': 'embedded:digits_edm', 'training__tokens': 2}, RecipeError, r'tokens = 2: .* is told a single vector'),
        ({'model__name': 'embedded:digits_edm', 'training__tokens': 1, 'dataset': 'cifar10'}, RecipeError, "dataset = 'cifar10' has no effect"),
        (
            {'model__name': 'embedded:digits_edm', 'training__tokens': 1, 'training__initialise_from': '{}'},
            RecipeError,
            r"initialise_from = '\{\}': .* is told classes, and 'dog' is none of its own",
        ),
    ],
)
def test_what_does_not_fit_model_or_images_is_refused_before_weights_load(
    changes: dict[str, Any], error: type[Exception], match: str, sd: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextModel, 'load', lambda *a: pytest.fail('weights were loaded'))
    with pytest.raises(error, match=match):
        learn_image_embeddings(recipe(sd, data, **changes), tmp_path / 'out', 'cpu', quiet=True)
    assert not (tmp_path / 'out').exists()


def test_an_inpainting_model_is_refused(data: Path, tmp_path: Path) -> None:
    pipeline = tiny.sd(tmp_path / 'inpainting', inpaint=True)
    with pytest.raises(ModelError, match='paints into masked images'):
        prepare_embeddings(recipe(pipeline, data))


def test_a_stand_in_passes_for_what_will_be_learned(sd: Path, data: Path, tmp_path: Path) -> None:
    run = prepare_embeddings(recipe(sd, data, shots=2))
    save_stand_in(run, tmp_path / 'embeddings')
    found = Embeddings(tmp_path / 'embeddings')
    found.check(TextModel(str(sd)), RealImages(data), run.ids)
    assert len(found) == 4
    assert not found.read(range(4))[0].any()


def test_the_defaults_are_the_published_setting() -> None:
    found = training_options(complete_embeddings_recipe({'model': {'name': 'x'}}))
    assert found == EmbeddingTraining()
    assert (found.steps, found.batch_size, found.draws, found.learning_rate, found.weight_decay, found.fit) == (3000, 50, 1, 0.03, 0.01, 'squash')


@pytest.mark.parametrize('name', ['cifar10', 'cifar100', 'stl10', 'imagenette', 'medmnist', 'eurosat', 'digits'])
def test_shipped_recipes_are_complete(name: str) -> None:
    found = load_embeddings_recipe(find_recipe(f'inversion_{name}', 'learn'))
    if name != 'digits':
        at_once = 50 if name in ('stl10', 'imagenette') else 200
        assert training_options(found) == EmbeddingTraining(tokens=5, batch_size=at_once)  # the published setting but for how many are at work
        assert found['model']['image_size'] == (256 if name in ('stl10', 'imagenette') else 128)


def test_the_command_learns_embeddings(sd: Path, data: Path, tmp_path: Path, synthaug: Say) -> None:
    file = tmp_path / 'recipe.py'
    file.write_text('\n'.join(f'{key} = {value!r}' for key, value in {**SHORT, 'model': {'name': str(sd)}}.items()))
    out = tmp_path / 'out'
    learn = ('learn', 'embeddings', file, '--data', data, '--out', out, '--device', 'cpu', '--cfg-options', 'shots=1')
    status, said, progress = synthaug(*learn)
    assert (status, said) == (0, f'{out}/embeddings is ready: name it as embeddings of a generator; {out}/sheet.png shows some\n')
    assert '2/2 images' in progress
    assert len(Embeddings(out / 'embeddings')) == 2
    status, _, error = synthaug(*learn, 'training.steps=5')
    assert status == 2
    assert 'differs in training.steps' in error
