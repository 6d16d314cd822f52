"""`synthaug learn words`: from a recipe and a few images to words that a generator says, through kills and mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from conftest import Say, digits
from synthaug_plugins.diffusion import DiffusersDenoiser
from synthaug_plugins.engine import progress
from synthaug_plugins.engine.learn_words import learn_class_words
from synthaug_plugins.engine.learn_words_recipe import complete_words_recipe, load_words_recipe, prepare_words, training_options
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.generators.text_to_image import TextToImage
from synthaug_plugins.learning.latents import posteriors
from synthaug_plugins.learning.words import ClassImages, learn_words, steps_done
from synthaug_plugins.learning.words_class import first_rows, rows_in_tables
from synthaug_plugins.learning.words_options import WordTraining
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.models.words import Words
from synthaug_plugins.prompts.templates import ENSEMBLES
from synthaug_plugins.recipes import find_recipe

CPU = torch.device('cpu')
CLASSES = ('dog', 'small cat')
SHORT: dict[str, Any] = {
    'preset': 'iclr2024',
    'training': {'steps': 6, 'batch_size': 4, 'vectors': 2, 'templates': ['a photo of a {}', 'a drawing of the {}', '{}'], 'checkpoint_steps': 2},
    'samples': {'per_class': 2, 'num_steps': 2},
}


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp('sd'))


@pytest.fixture(scope='module')
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sdxl(tmp_path_factory.mktemp('sdxl'))


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 80, (20, 28, 3), np.uint8)
            pixels[:, 14 * k : 14 * k + 14] += 150
            Image.fromarray(pixels).save(root / name / f'{i}.png')
    return root


def recipe(pipeline: Path | str, data: Path | None, **changes: Any) -> dict[str, Any]:
    done = {**SHORT, 'model': {'name': str(pipeline)}, 'data': str(data) if data else None}
    for key, value in changes.items():
        outer, _, inner = key.partition('__')
        done[outer] = {**done.get(outer, {}), inner: value} if inner else value
    return complete_words_recipe(done)


@pytest.fixture(scope='module')
def unbroken(sd: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over both classes in one call."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp('unbroken') / 'out'
    learn_class_words(recipe(sd, data), out, 'cpu', quiet=True)
    torch.set_num_threads(before)
    return out


def images_of(data: Path) -> ClassImages:
    return ClassImages(lambda name: [np.asarray(Image.open(p)) for p in sorted((data / name).iterdir())], 'sha')


@pytest.mark.parametrize(
    'scheduler',
    [
        tiny.ddim(),
        tiny.ddim(prediction_type='v_prediction'),
        tiny.ddim(prediction_type='v_prediction', rescale_betas_zero_snr=True),
        tiny.ddim(prediction_type='sample'),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
    ids=['epsilon', 'v', 'v to zero signal', 'sample', 'flow'],
)
def test_the_loss_is_the_squared_error_of_what_the_network_predicts(scheduler: Any) -> None:
    unet = tiny.unet()
    denoiser = DiffusersDenoiser(unet, scheduler)
    g = torch.Generator().manual_seed(0)
    z, noise, text = (torch.randn(shape, generator=g) for shape in ((4, 4, 8, 8), (4, 4, 8, 8), (4, 5, 16)))
    first, last = denoiser.training_timesteps
    assert last - first == 999
    t = torch.tensor([first, 250, 700, last])
    if denoiser.prediction_type == 'flow':
        a = (t / 1000).reshape(-1, 1, 1, 1)
        noisy, target = (1 - a) * z + a * noise, noise - z
    else:
        noisy = scheduler.add_noise(z, noise, t)
        target = {'epsilon': noise, 'v_prediction': scheduler.get_velocity(z, noise, t), 'sample': z}[denoiser.prediction_type]
    with torch.no_grad():
        stock = (unet(noisy, t, encoder_hidden_states=text, return_dict=False)[0] - target).square().mean((1, 2, 3))
        sigma = denoiser.sigma_of(t.double())
        D = denoiser(z + sigma.float().reshape(-1, 1, 1, 1) * noise, sigma, {'encoder_hidden_states': text})
    ours = (D - z).square().mean((1, 2, 3)) * denoiser.loss_weight(sigma)
    torch.testing.assert_close(ours.float(), stock, rtol=2e-3, atol=1e-6)


def test_a_draw_of_latents_from_the_stored_posterior_is_the_vaes_own(sd: Path) -> None:
    model = TextModel(str(sd))
    denoiser = model.load(CPU, torch.float32)
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    mean, deviation = posteriors(model, [image], 'squash', CPU, mirrored=True)
    assert mean.shape == deviation.shape == (2, 4, 8, 8)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for k, pixels in enumerate((image, image[:, ::-1])):
        x = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 127.5 - 1
        with torch.no_grad():
            torch.testing.assert_close(mean[k : k + 1] + deviation[k : k + 1] * noise, denoiser.encode(x, noise))
    assert deviation.min() > 0


def test_of_a_class_one_image_at_a_time_is_held_in_memory(sd: Path) -> None:
    model, rng = TextModel(str(sd)), np.random.default_rng(0)
    pixels, held = rng.integers(0, 255, (4, 16, 24, 3), np.uint8), list[weakref.ref[np.ndarray]]()

    def read() -> Iterator[np.ndarray]:
        for one in pixels:
            assert sum(ref() is not None for ref in held) <= 1  # the last one, whose name the loop still has
            image = one.copy()
            held.append(weakref.ref(image))
            yield image
            del image

    model.load(CPU, torch.float32)
    read_singly = posteriors(model, read(), 'pad', CPU, mirrored=True)
    for found, listed in zip(read_singly, posteriors(model, list(pixels), 'pad', CPU, mirrored=True), strict=True):
        assert found.shape[0] == 8
        assert torch.equal(found, listed)


@pytest.mark.parametrize('family', ['sd', 'sdxl'])
def test_prompts_as_tokens_are_told_as_the_pipeline_tells_them(family: str, sd: Path, sdxl: Path) -> None:
    model = TextModel(str({'sd': sd, 'sdxl': sdxl}[family]))
    model.tokens.add({'<cat>': 2})
    model.load(CPU, torch.float32)
    g = torch.Generator().manual_seed(0)
    model.set_words({e: {'<cat>': torch.randn(2, 16, generator=g)} for e in model.tables()})
    prompts = ['a photo of a <cat>', 'the dog', '<cat> on the table']
    with torch.no_grad():
        for ours, stock in zip(_leaves(model.token_conditions(model.tokenise(prompts))), _leaves(model.conditions(prompts)), strict=True):
            torch.testing.assert_close(ours, stock)


def _leaves(conditions: Any) -> list[Tensor]:
    return [leaf for value in conditions.values() for leaf in _leaves(value)] if isinstance(conditions, dict) else [conditions]


@pytest.mark.parametrize('family', ['sd', 'sdxl'])
def test_only_the_words_rows_learn_and_every_other_weight_keeps_its_bits(family: str, sd: Path, sdxl: Path, data: Path, tmp_path: Path) -> None:
    pipeline = {'sd': sd, 'sdxl': sdxl}[family]
    model, plain = TextModel(str(pipeline)), TextModel(str(pipeline))
    options = WordTraining(vectors=2, steps=3, batch_size=2, templates=('a photo of a {}',))
    rows = learn_words(model, CLASSES, {'dog': 'dog', 'small cat': 'small cat'}, images_of(data), options, tmp_path / 'work', CPU)
    plain.load(CPU, torch.float32)
    for e, table in model.tables().items():
        before = plain.tables()[e].weight
        assert torch.equal(table.weight[: len(before)], before)
        assert torch.equal(table.weight[len(before) :], torch.cat([rows[e]['<dog>'], rows[e]['<small_cat>']]))
        assert table.weight.grad is None
        assert not table._forward_hooks
        start = first_rows(before[plain.tokenizer(e)('dog', add_special_tokens=False).input_ids], 2)
        moved = (rows[e]['<dog>'] - start).abs()
        assert 1e-3 < moved.mean() < 3.5 * options.learning_rate
    for (name, a), b in zip(model.denoiser.model.state_dict().items(), plain.denoiser.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert set(rows) == set(model.tables())


def test_the_gradient_of_a_word_is_that_of_training_the_whole_table(sdxl: Path) -> None:
    model = TextModel(str(sdxl))
    model.tokens.add({'<cat>': 2})
    model.load(CPU, torch.float32)
    ids = {e: model.tokenizer(e).convert_tokens_to_ids(['<cat>', '<cat>_1']) for e in model.tables()}
    g = torch.Generator().manual_seed(0)
    rows = {e: torch.randn(2, 16, generator=g).requires_grad_() for e in model.tables()}
    tokens = model.tokenise(['a photo of a <cat>', 'the <cat> on a table'])

    def loss() -> Tensor:
        return sum(leaf.square().sum() for leaf in _leaves(model.token_conditions(tokens)))

    with rows_in_tables(model.tables(), ids, rows):
        loss().backward()
    model.set_words({e: {'<cat>': r.detach()} for e, r in rows.items()})
    for table in model.tables().values():
        table.weight.requires_grad_()
    loss().backward()
    for e, table in model.tables().items():
        torch.testing.assert_close(rows[e].grad, table.weight.grad[ids[e]])
        assert rows[e].grad.abs().min() > 0


def test_vectors_start_from_any_number_of_tokens() -> None:
    tokens = torch.arange(5.0)[:, None].expand(-1, 3)
    assert first_rows(tokens[:1], 3)[:, 0].tolist() == [0, 0, 0]
    assert first_rows(tokens[:2], 3)[:, 0].tolist() == [0, 1, 0]
    assert first_rows(tokens, 5)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert first_rows(tokens, 2)[:, 0].tolist() == [0.5, 3.0]  # tokens 0 and 1; 2, 3 and 4
    assert first_rows(tokens, 1)[:, 0].tolist() == [2.0]


def test_a_word_does_not_depend_on_the_other_classes_or_their_order(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    file = learn_class_words(recipe(sd, data, classes=['small cat']), tmp_path / 'alone', 'cpu', quiet=True)
    assert torch.equal(load_file(file)['<small_cat>'], load_file(unbroken / 'words.safetensors')['<small_cat>'])
    turned = learn_class_words(recipe(sd, data, classes=['small cat', 'dog'], training__checkpoint_steps=100), tmp_path / 'turned', 'cpu', quiet=True)
    assert torch.equal(load_file(turned)['<dog>'], load_file(unbroken / 'words.safetensors')['<dog>'])
    other = learn_class_words(recipe(sd, data, classes=['dog'], seed=1), tmp_path / 'other', 'cpu', quiet=True)
    assert not torch.equal(load_file(other)['<dog>'], load_file(unbroken / 'words.safetensors')['<dog>'])


def test_parts_of_a_batch_learn_what_the_whole_learns(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    file = learn_class_words(recipe(sd, data, training__accumulation=2), tmp_path / 'out', 'cpu', quiet=True)
    for name, rows in load_file(file).items():
        torch.testing.assert_close(rows, load_file(unbroken / 'words.safetensors')[name], rtol=1e-3, atol=2e-4)


def killed(recipe: dict[str, Any], out: Path, steps: int) -> int:
    """Learn in a process of its own, a copy of this one, and kill it in the last of so many steps; the steps that it began."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        done = []

        def say(self: Any, images_shown: int, loss: Tensor) -> None:
            done.append(images_shown)
            os.write(writing, b'.')
            if len(done) == steps:
                signal.pause()

        progress.TrainingProgress.step = say  # type: ignore[method-assign]
        try:
            learn_class_words(recipe, out, 'cpu')
        finally:
            os._exit(0)
    os.close(writing)
    seen = 0
    while seen < steps and os.read(reading, 1):
        seen += 1
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(reading)
    return seen


def test_killed_learning_of_words_ends_with_the_same_bytes(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    # Progress is told of each step, and of each class that ends: in the third step of the first class, and then in the third of the second.
    for steps, known in ((3, [2, 0]), (8, [6, 2])):
        assert killed(recipe(sd, data), out, steps) == steps
        assert [steps_done(out / 'checkpoints', name) for name in CLASSES] == known
        assert not (out / 'words.safetensors').exists()
    learn_class_words(recipe(sd, data), out, 'cpu', quiet=True)
    for name in ('words.safetensors', 'sheet.png', 'samples/dog.png', 'card.md'):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert [json.loads(line)['loss'] for line in (out / 'log.jsonl').open()] == [json.loads(line)['loss'] for line in (unbroken / 'log.jsonl').open()]
    assert not list(out.rglob('.*'))


def test_what_was_learned_is_written_for_the_generator_and_for_a_reader(sd: Path, data: Path, unbroken: Path) -> None:
    words = Words(unbroken / 'words.safetensors')
    assert (words.classes, words.vectors, words.class_free) == (CLASSES, 2, False)
    assert words.card['initialised_from'] == {'class_name': True, 'names': {'dog': 'dog', 'small cat': 'small cat'}}
    assert words.card['data']['images_per_class'] == {'dog': 3, 'small cat': 3}
    generator = TextToImage(str(sd), words=str(words.file), num_steps=2)
    generator.check(CLASSES)
    generator.prepare(CLASSES, print)
    log = [json.loads(line) for line in (unbroken / 'log.jsonl').open()]
    assert [(e['class'], e['word'], e['steps'], len(e['loss'])) for e in log] == [('dog', '<dog>', 6, 6), ('small cat', '<small_cat>', 6, 6)]
    assert all(e['steps_per_s'] > 0 for e in log)
    sheet = np.asarray(Image.open(unbroken / 'sheet.png'))
    assert sheet.shape[0] > 2 * 64
    assert (sheet.reshape(-1, 3).std(0) > 30).all()
    assert '`<small_cat>` | 3 |' in (unbroken / 'card.md').read_text()


def test_words_learn_what_tells_their_class_apart(data: Path, tmp_path: Path) -> None:
    """On a trained pipeline: the loss of a word falls on its own images, and far less on others."""
    grey = np.round(digits().images / 16 * 255).astype(np.uint8)

    def of(name: str) -> list[np.ndarray]:
        found = np.flatnonzero(digits().target[1200:] == {'seven': 7, 'zero': 0}[name])[:8] + 1200
        return [np.repeat(grey[i][..., None], 3, -1) for i in found]

    model = TextModel('embedded:digits_sd')
    options = WordTraining(vectors=2, initialise_from='digit', templates=('a photo of a {}',), steps=25, hflip=0.0)
    learn_words(model, ['seven'], {'seven': 'seven'}, ClassImages(of, 'sha'), options, tmp_path / 'work', CPU)
    denoiser = model.denoiser
    found = {}
    with torch.no_grad():
        for name in ('seven', 'zero'):
            z = posteriors(model, of(name), 'squash', CPU)[0].repeat(6, 1, 1, 1)
            sigma = denoiser.sigma_of(torch.linspace(300, 900, len(z)).double())
            x = z + sigma.float().reshape(-1, 1, 1, 1) * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
            for prompt in ('a photo of a <seven>', 'a photo of a digit'):
                error = (denoiser(x, sigma, model.conditions([prompt] * len(z))) - z).square().mean((1, 2, 3)) * denoiser.loss_weight(sigma)
                found[name, prompt] = float(error.mean())
    word, none = 'a photo of a <seven>', 'a photo of a digit'
    assert found['seven', word] < 0.93 * found['seven', none]
    assert found['zero', word] > 1.1 * found['zero', none]


def test_a_loss_that_is_not_finite_is_refused_with_class_and_step(sd: Path, data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(sd, tmp_path / 'broken')
    from safetensors.torch import save_file

    file = broken / 'unet' / 'diffusion_pytorch_model.safetensors'
    weights = load_file(file)
    weights['conv_out.bias'][0] = float('inf')
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"Step 1 of 6 for the word of 'dog' gave the loss inf"):
        learn_class_words(recipe(broken, data, training__checkpoint_steps=3), tmp_path / 'out', 'cpu', quiet=True)
    assert not (tmp_path / 'out' / 'checkpoints').exists()


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'steps': 3}, "unknown key 'steps'"),
        ({'training__seed': 3}, "training has an unknown key 'seed'. It stands beside training"),
        ({'training__step': 3}, "training has an unknown key 'step'"),
        ({'training__vectors': 0}, 'vectors = 0 is no whole number'),
        ({'training__learning_rate': float('inf')}, 'no plain data'),
        ({'training__learning_rate': 0}, 'learning_rate = 0 is out of range'),
        ({'training__hflip': 1.5}, 'hflip = 1.5 is out of range'),
        ({'training__fit': 'stretch'}, "fit = 'stretch' is unknown"),
        ({'training__precision': 'fp8'}, "precision = 'fp8' is unknown"),
        ({'training__accumulation': 3}, 'does not divide'),
        ({'training__templates': 'a photo'}, 'lacks the placeholder'),
        ({'training__initialise_from': ' '}, 'is no text'),
        ({'preset': 'iclr'}, "preset = 'iclr' is unknown"),
        ({'model': {'path': 'x'}}, "model has an unknown key 'path'"),
        ({'model': {}}, 'model.name = None'),
        ({'samples__per_class': 0}, 'samples.per_class = 0'),
        ({'samples__prompt': 'a photo'}, 'lacks the placeholder'),
        ({'classes': ['dog', 'dog']}, "names 'dog' twice"),
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
        ({'classes': ['dog', 'cat']}, DataError, r"The class 'cat' has no folder in .* Did you mean 'small cat'"),
        ({'shots': 4}, DataError, "The class 'dog' has 3 images, too few for 4 shots"),
        ({'training__vectors': 18}, RecipeError, 'with 18 tokens for its word is over the token limit'),
        ({'training__initialise_from': 'a dog'}, RecipeError, "initialise_from: 'a dog' names the class 'dog'"),
        ({'training__initialise_from': 'the', 'training__templates': ['a dog {}']}, RecipeError, "templates: 'a dog {}' names the class 'dog'"),
        ({'samples__guidance_scale': -1}, RecipeError, 'guidance_scale = -1'),
        ({'samples__num_steps': 5000}, RecipeError, 'num_steps = 5000'),
    ],
)
def test_what_does_not_fit_model_or_images_is_refused_before_weights_load(
    changes: dict[str, Any], error: type[Exception], match: str, sd: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextModel, 'load', lambda *a: pytest.fail('weights were loaded'))
    with pytest.raises(error, match=match):
        learn_class_words(recipe(sd, data, **changes), tmp_path / 'out', 'cpu', quiet=True)
    assert not (tmp_path / 'out').exists()


def test_classes_whose_words_collide_are_refused_by_name(sd: Path, data: Path, tmp_path: Path) -> None:
    both = shutil.copytree(data, tmp_path / 'data')
    shutil.copytree(data / 'small cat', both / 'Small-Cat')
    with pytest.raises(DataError, match=r"'Small-Cat' and 'small cat' would have the same word '<small_cat>'"):
        prepare_words(recipe(sd, both))
    taken = shutil.copytree(sd, tmp_path / 'taken')
    tokenizer = TextModel(str(sd)).tokens.tokenizers['tokenizer']
    tokenizer.add_tokens(['<dog>_1'])
    tokenizer.save_pretrained(taken / 'tokenizer')
    with pytest.raises(DataError, match="The word '<dog>_1' is a token of the tokenizer of"):
        prepare_words(recipe(taken, data))


def test_a_model_that_takes_no_words_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'words to learn: .* is a flux pipeline'):
        prepare_words(recipe(tiny.flux(tmp_path / 'flux'), data))


def test_shots_are_the_ones_that_synthaug_shots_copies(sd: Path, data: Path) -> None:
    from synthaug_plugins.few_shot import draw_shots
    from synthaug_plugins.real_images import RealImages

    run = prepare_words(recipe(sd, data, shots=2, shots_seed=3))
    assert run.images == draw_shots({name: RealImages(data).ids(name) for name in CLASSES}, 2, 3, 0).train


def test_a_changed_recipe_or_other_images_are_refused_by_what_differs(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    out = shutil.copytree(unbroken, tmp_path / 'out')
    with pytest.raises(RecipeError, match=r'holds a learning of class words that differs in training\.learning_rate, training\.vectors\.'):
        learn_class_words(recipe(sd, data, training__vectors=3, training__learning_rate=0.1), out, 'cpu', quiet=True)
    other = shutil.copytree(data, tmp_path / 'data')
    shutil.copy(other / 'dog' / '0.png', other / 'dog' / '1.png')
    with pytest.raises(RecipeError, match='data changed'):
        learn_class_words(recipe(sd, other), out, 'cpu', quiet=True)
    with pytest.raises(RecipeError, match='where it would become a class'):
        learn_class_words(recipe(sd, other), other / 'dog' / 'out', 'cpu', quiet=True)
    before = (out / 'words.safetensors').read_bytes()
    learn_class_words(recipe(sd, data, samples__max_classes=1, training__accumulation=2), out, 'cpu', quiet=True)  # decides nothing
    assert (out / 'words.safetensors').read_bytes() == before


def test_samples_follow_the_recipe_of_the_last_call_and_words_stay(sd: Path, data: Path, unbroken: Path, tmp_path: Path) -> None:
    out = shutil.copytree(unbroken, tmp_path / 'out')
    learn_class_words(recipe(sd, data), out, 'cpu', quiet=True)
    for name in ('samples/dog.png', 'sheet.png'):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes()
    learn_class_words(recipe(sd, data, samples__per_class=3, samples__prompt='{} at night'), out, 'cpu', quiet=True)
    before, after = (np.asarray(Image.open(folder / 'samples' / 'dog.png')) for folder in (unbroken, out))
    assert after.shape[1] == before.shape[1] // 2 * 3
    assert not np.array_equal(after[:, : before.shape[1]], before)  # the same noise, another prompt
    assert '`{} at night`' in (out / 'card.md').read_text()
    assert (out / 'words.safetensors').read_bytes() == (unbroken / 'words.safetensors').read_bytes()


def test_the_presets_are_the_published_settings() -> None:
    later = training_options(complete_words_recipe({'model': {'name': 'x'}}))
    assert later == WordTraining()
    assert (later.vectors, later.initialise_from, later.steps, later.batch_size, later.learning_rate) == (4, None, 2000, 8, 4e-3)
    first = training_options(complete_words_recipe({'model': {'name': 'x'}, 'preset': 'preprint', 'training': {'steps': 5}}))
    assert (first.vectors, first.initialise_from, first.steps, first.batch_size, first.learning_rate) == (1, 'the', 5, 4, 2e-3)
    assert len(ENSEMBLES['textual_inversion']) == 27
    assert later.templates == first.templates == ENSEMBLES['textual_inversion']


@pytest.mark.parametrize('name', ['dafusion_words', 'dafusion_words_digits'])
def test_shipped_recipes_are_complete(name: str) -> None:
    found = load_words_recipe(find_recipe(name, 'learn'))
    assert found['preset'] == 'iclr2024'
    assert training_options(found).vectors >= 1


def test_the_command_learns_words_that_the_generate_command_says(sd: Path, data: Path, tmp_path: Path, synthaug: Say) -> None:
    file = tmp_path / 'recipe.py'
    file.write_text('\n'.join(f'{key} = {value!r}' for key, value in {**SHORT, 'model': {'name': str(sd)}}.items()))
    learn = ('learn', 'words', file, '--data', data, '--out', tmp_path / 'words', '--device', 'cpu', '--cfg-options', 'training.steps=2')
    assert synthaug(*learn)[:2] == (0, f'{tmp_path}/words/words.safetensors is ready: name it as words of a generator; {tmp_path}/words/sheet.png shows it\n')
    generator = {'type': 'synthaug_plugins.TextToImage', 'model': str(sd), 'words': str(tmp_path / 'words' / 'words.safetensors'), 'num_steps': 2}
    (tmp_path / 'generate.py').write_text(f'generator = {generator!r}\nper_class = 2\ninspectors = []\nclasses = {list(CLASSES)!r}\n')
    generate = ('generate', tmp_path / 'generate.py', '--device', 'cpu', '--out')
    assert synthaug(*generate, tmp_path / 'store').status == 0
    refused = synthaug(*generate, tmp_path / 'none', '--cfg-options', "classes=['dog','table']")
    assert refused.status == 2
    assert "The class 'table' has no word in" in refused.err
