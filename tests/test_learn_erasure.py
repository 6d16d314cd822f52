"""Erasing concepts: what is learned, that it works on a trained pipeline, and that a killed run ends with the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from conftest import Say, kill_in_training
from synthaug_plugins.diffusion import DiffusersDenoiser, SampleNoise
from synthaug_plugins.engine.learn_erasure import learn_erasure
from synthaug_plugins.engine.learn_erasure_recipe import Concepts, complete_erasure_recipe, decisive
from synthaug_plugins.engine.learn_samples import LoadedPipeline
from synthaug_plugins.engine.learn_words import learn_class_words
from synthaug_plugins.engine.learn_words_recipe import complete_words_recipe
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.learning.erasure import PRESETS, ConceptEraser, check_model, training_options
from synthaug_plugins.models.erasure import Eraser, Erasures
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.models.words import Words

CPU = torch.device('cpu')
SHORT = {'iterations': 4, 'num_steps': 3, 'batch_size': 1, 'checkpoint_steps': 2, 'learning_rate': 1e-2}
RECIPE: dict[str, Any] = {
    'classes': ['cat', 'a dog'],
    'training': SHORT,
    'samples': {'per_class': 2, 'others': 1, 'num_steps': 2, 'guidance_scale': 2.0},
}


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('pipelines')
    found = {
        'epsilon': tiny.sd(folder / 'epsilon'),
        'v_prediction': tiny.sd(folder / 'v', tiny.ddim(prediction_type='v_prediction')),
        'sdxl': tiny.sdxl(folder / 'xl'),
    }
    return {name: str(path) for name, path in found.items()}


def recipe(model: str, **changes: Any) -> dict[str, Any]:
    return complete_erasure_recipe({**RECIPE, 'model': {'name': model}, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction', 'sdxl'])
def test_the_loss_is_that_of_the_paper_in_the_networks_own_prediction(pipelines: dict[str, str], tmp_path: Path, kind: str) -> None:
    """Written out with the network's raw outputs and with x_t made by diffusers' own DDIM where the pipeline has it."""
    options = training_options('lora', {**SHORT, 'iterations': 1, 'eta': 0.7, 'learning_rate': 1e-9}, 3)
    eraser = ConceptEraser(TextModel(pipelines[kind]), options, CPU)
    seen: list[tuple[Tensor, float, Tensor]] = []
    network = eraser.denoiser.model
    hook = network.register_forward_hook(lambda _, args, kwargs, out: seen.append((args[0], float(kwargs['timestep'][0]), out[0])), with_kwargs=True)
    losses: list[float] = []
    eraser.erase('cat', ['a photo of a cat'], tmp_path / 'w', on_step=lambda done, loss: losses.append(float(loss)))
    hook.remove()
    F_concept, F_null, F_edited = (out.detach() for _, _, out in seen[-3:])
    target = F_null - 0.7 * (F_concept - F_null)
    assert losses[0] == pytest.approx(float((F_edited - target).square().mean()), rel=1e-3)
    x_t, t = seen[-1][:2]
    assert all(torch.equal(x, x_t) and other == t for x, other, _ in seen[-3:])
    calls = seen[:-3]
    assert all(len(x) == 2 for x, _, _ in calls)  # guided: with and without the prompt
    if kind != 'sdxl':
        scheduler = tiny.ddim(prediction_type='epsilon' if kind == 'epsilon' else kind)
        scheduler.set_timesteps(3)
        x = (calls[0][0][:1] if calls else x_t).double()
        for (_, at, out), timestep in zip(calls, scheduler.timesteps, strict=False):
            assert at == pytest.approx(float(timestep), abs=1e-3)
            with_prompt, without = out.double().chunk(2)
            x = scheduler.step(without + 3 * (with_prompt - without), timestep, x).prev_sample
        assert torch.allclose(x.float(), x_t, atol=1e-4)


def test_erasing_from_a_wider_concept_keeps_that_as_the_anchor(pipelines: dict[str, str], tmp_path: Path) -> None:
    options = training_options('lora', {**SHORT, 'iterations': 1, 'eta': 2.0, 'learning_rate': 1e-9}, 3)
    eraser = ConceptEraser(TextModel(pipelines['epsilon']), options, CPU)
    outputs: list[Tensor] = []
    hook = eraser.denoiser.model.register_forward_hook(lambda _, args, out: outputs.append(out[0]))
    losses: list[float] = []
    eraser.erase('cat', ['a photo of a cat'], tmp_path / 'w', 'a photo', lambda done, loss: losses.append(float(loss)))
    hook.remove()
    F_concept, F_null, F_from, F_edited = (out.detach() for out in outputs[-4:])
    assert torch.allclose(F_from, F_edited, atol=1e-4)  # trained under the wider prompt, and hardly yet
    assert losses[0] == pytest.approx(float((F_edited - (F_from - 2 * (F_concept - F_null))).square().mean()), rel=1e-3)


@pytest.mark.parametrize(('method', 'weights'), [('esd-x-strict', 'lora'), ('selfattn', 'lora'), ('esd-u', 'lora'), ('full', 'full')])
def test_every_method_learns_and_leaves_the_model_itself_alone(pipelines: dict[str, str], tmp_path: Path, method: str, weights: str) -> None:
    rate = (1e-2 if weights == 'lora' else 1e-3) / (10 if method in ('esd-u', 'full') else 1)  # these change many more layers
    options = training_options('lora', {**SHORT, 'iterations': 8, 'method': method, 'weights': weights, 'learning_rate': rate, 'x_t_from': 'base'}, 0)
    model = TextModel(pipelines['epsilon'])
    eraser = ConceptEraser(model, options, CPU)
    cond, x = model.conditions(['a photo of a cat']), SampleNoise([0], model.size).latents()

    def gap() -> float:
        """How far the concept's prediction is from the target."""
        with torch.no_grad():
            D_c, D_0 = (eraser.denoiser(x, torch.tensor(2.0), c) for c in (cond, model.conditions([''])))
            with eraser.edited():
                D = eraser.denoiser(x, torch.tensor(2.0), cond)
        return float((D - (D_0 - (D_c - D_0))).square().mean())

    with torch.no_grad():
        before = eraser.denoiser(x, torch.tensor(2.0), cond)
        start = gap()
    eraser.erase('cat', ['a photo of a cat'], tmp_path / 'w')
    assert gap() < 0.9 * start
    with torch.no_grad():
        assert torch.equal(eraser.denoiser(x, torch.tensor(2.0), cond), before)


def test_what_is_learned_depends_neither_on_the_order_of_classes_nor_on_checkpointing(pipelines: dict[str, str], tmp_path: Path) -> None:
    def erase(names: list[str], **more: Any) -> dict[str, dict[str, Tensor]]:
        eraser = ConceptEraser(TextModel(pipelines['epsilon']), training_options('lora', {**SHORT, **more}, 0), CPU)
        folder = tmp_path / '-'.join([*names, *more])
        return {n: {k: v.clone() for k, v in eraser.erase(n, [f'a photo of a {n}'], folder / n)[0].items()} for n in names}

    forth, back, spared = erase(['cat', 'dog']), erase(['dog', 'cat']), erase(['cat'], gradient_checkpointing=True)
    for name, tensors in forth.items():
        assert all(torch.equal(v, back[name][k]) for k, v in tensors.items())
    assert all(torch.allclose(v, spared['cat'][k], atol=1e-3) for k, v in forth['cat'].items())
    assert any(not torch.equal(v, forth['dog'][k]) for k, v in forth['cat'].items())


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_a_half_precision_network_learns_in_float32(pipelines: dict[str, str], tmp_path: Path, precision: str) -> None:
    made = {}
    for name in ('fp32', precision):
        eraser = ConceptEraser(
            TextModel(pipelines['epsilon']), training_options('lora', {**SHORT, 'iterations': 1, 'method': 'full', 'precision': name}, 0), CPU
        )
        made[name] = {k: v.clone() for k, v in eraser.erase('cat', ['a photo of a cat'], tmp_path / name)[0].items()}
    B = [k for k in made['fp32'] if 'lora_B' in k]
    assert all(made[precision][k].dtype == torch.float32 and torch.isfinite(made[precision][k]).all() for k in B)
    # Adam's first step is the sign of the gradient: most signs are equal.
    agree = torch.cat([(made['fp32'][k].sign() == made[precision][k].sign()).flatten() for k in B]).float().mean()
    assert agree > 0.9


def test_presets_say_what_was_published() -> None:
    paper, late, da_fusion = (training_options(name, {}) for name in ('paper', 'diffusers2024', 'da_fusion'))
    assert (paper.learning_rate, paper.iterations, paper.eta, paper.x_t_from, paper.batch_size, paper.weights) == (1e-5, 1000, 1, 'edited', 1, 'full')
    assert (late.learning_rate, late.iterations, late.eta, late.x_t_from) == (5e-5, 200, 1, 'base')  # eta 2 from the concept's own prediction
    assert (da_fusion.method, da_fusion.start_guidance, da_fusion.eta, da_fusion.iterations, da_fusion.learning_rate) == ('full', 3, 1, 1000, 1e-5)
    assert training_options('lora', {}).weights == 'lora'
    assert all(training_options(name, {}).num_steps == 50 for name in PRESETS)


def test_killed_erasing_resumes_to_the_same_bytes(pipelines: dict[str, str], tmp_path: Path) -> None:
    """Killed in the middle of the second class, after a checkpoint."""
    done = recipe(pipelines['v_prediction'])
    learn_erasure(done, tmp_path / 'unbroken', 'cpu', quiet=True)
    out = tmp_path / 'killed'
    kill_in_training(lambda: learn_erasure(done, out, 'cpu'), 4 + 3)
    assert Erasures(out / 'erasures').classes == ('cat',)
    assert [p.name for p in (out / 'checkpoints').iterdir()] == ['a-dog~7dbdf68a']
    learn_erasure(done, out, 'cpu', quiet=True)
    one, other = (files(tmp_path / name) for name in ('unbroken', 'killed'))
    assert one.keys() == other.keys()
    assert {k for k in one if one[k] != other[k]} <= {'log.jsonl'}  # which holds times
    assert sorted(k for k in one if k.startswith(('erasures', 'samples'))) == [
        'erasures/a-dog~7dbdf68a.safetensors',
        'erasures/cat.safetensors',
        'erasures/erasures.json',
        'samples/a-dog~7dbdf68a.png',
        'samples/cat.png',
    ]


def test_finished_classes_stay_and_more_can_be_added(pipelines: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / 'out'
    learn_erasure(recipe(pipelines['epsilon'], classes=['cat']), out, 'cpu', quiet=True)
    first = files(out / 'erasures')['cat.safetensors']
    found = learn_erasure(recipe(pipelines['epsilon'], classes=['dog']), out, 'cpu', quiet=True)
    assert found.classes == ('cat', 'dog')
    assert files(out / 'erasures')['cat.safetensors'] == first
    assert [json.loads(line)['class'] for line in (out / 'log.jsonl').read_text().splitlines()] == ['cat', 'dog']
    assert not any((out / 'checkpoints').iterdir())
    model = TextModel(pipelines['epsilon'], erasures=str(out / 'erasures'))
    model.check_learned(['dog', 'cat'])
    with pytest.raises(RecipeError, match=r'differs in training\.eta'):
        learn_erasure(recipe(pipelines['epsilon'], training={**SHORT, 'eta': 0.5}), out, 'cpu', quiet=True)
    with pytest.raises(RecipeError, match=r'differs in model\.name'):
        learn_erasure(recipe(pipelines['v_prediction']), out, 'cpu', quiet=True)


@pytest.mark.parametrize('kind', ['epsilon', 'sdxl'])
def test_the_word_of_a_class_is_learned_on_the_model_that_has_this_class_erased(pipelines: dict[str, str], tmp_path: Path, kind: str) -> None:
    classes, erased = ['cat', 'a dog'], tmp_path / 'erased' / 'erasures'
    for k, name in enumerate(classes):
        (tmp_path / 'data' / name).mkdir(parents=True)
        Image.new('RGB', (16, 16), (60 + 120 * k, 90, 140)).save(tmp_path / 'data' / name / '0.png')
    found = learn_erasure(recipe(pipelines[kind], training={**SHORT, 'learning_rate': 0.1}), erased.parent, 'cpu', quiet=True)

    def learned(model: str, out: str, classes: list[str], **options: str) -> Path:
        training = {'steps': 2, 'batch_size': 2, 'vectors': 1, 'templates': ['a photo of a {}']}
        told = {'model': {'name': model, **options}, 'classes': classes, 'training': training, 'samples': {'per_class': 1, 'num_steps': 1}}
        return learn_class_words(complete_words_recipe({**told, 'data': str(tmp_path / 'data')}), tmp_path / out, 'cpu', quiet=True)

    file, plain = learned(pipelines[kind], 'words', classes, erasures=str(erased)), learned(pipelines[kind], 'plain', classes)
    for name in classes:  # against a pipeline whose weights are those of the erased one
        network = diffusers.UNet2DConditionModel.from_pretrained(pipelines[kind], subfolder='unet')
        Eraser(found, network)(name)
        own = shutil.copytree(pipelines[kind], tmp_path / 'own' / name)
        network.save_pretrained(own / 'unet')
        for tensor, rows in load_file(learned(str(own), f'{name} alone', [name])).items():
            assert torch.equal(rows, load_file(file)[tensor])
            assert not torch.equal(rows, load_file(plain)[tensor])
    assert Words(file).card['erasures'] == found.hashes(classes)
    TextModel(pipelines[kind], words=str(file), erasures=str(erased)).check_learned(classes)
    card = file.with_name('card.md').read_text()
    assert f"words='words.safetensors', erasures={str(erased)!r})" in card  # the one is refused without the other
    assert 'load_textual_inversion' not in card
    assert 'load_textual_inversion' in plain.with_name('card.md').read_text()


def test_a_sample_that_is_not_finite_is_refused_in_words(pipelines: dict[str, str]) -> None:
    model = TextModel(pipelines['epsilon'])
    model.load(CPU, torch.float32)
    with torch.no_grad():
        next(model.denoiser.model.parameters()).fill_(float('nan'))
    with pytest.raises(ModelError, match=r"a sample of 'a photo of a cat' is not finite \(request cat 0 from step 0 of 2 on\)"):
        LoadedPipeline(model, {'num_steps': 2, 'guidance_scale': 2.0}, CPU).draw('cat', 'a photo of a cat', [0])


def test_erasing_lowers_the_share_of_the_erased_digit_and_leaves_another(tmp_path: Path) -> None:
    """On the embedded pipeline, with fewer iterations than its recipe: an erased three is no three any more, an eight stays one."""
    import numpy as np
    from sklearn.svm import SVC

    from conftest import digits
    from synthaug_plugins.diffusion import ClassifierFree, Guided, sample
    from synthaug_plugins.generators.denoiser_generator import to_uint8

    svm = SVC(gamma=0.256).fit(digits().data[:1200] / 16, digits().target[:1200])
    model = TextModel('embedded:digits_sd')
    options = training_options('lora', {'num_steps': 4, 'batch_size': 4, 'learning_rate': 3e-3, 'iterations': 40, 'weights': 'lora', 'x_t_from': 'base'}, 0)
    eraser = ConceptEraser(model, options, CPU)
    sigmas, n = model.visited_sigmas(8), 12

    @torch.no_grad()
    def share(word: str, digit: int) -> float:
        guided = Guided(eraser.denoiser, [ClassifierFree(1.0, uncond=model.conditions([''], negative=True))])
        noise = SampleNoise(range(n), model.size).latents().double() * ((1 + sigmas[0] ** 2) ** 0.5 / sigmas[0])
        x = sample(guided, noise, cond=model.conditions([f'a photo of a {word}'] * n), sigmas=sigmas, solver='euler')
        small = to_uint8(model.decode(x.float()))[..., 0].reshape(n, 8, 2, 8, 2).mean((2, 4))
        return float(np.mean(svm.predict(small.reshape(n, 64) / 255) == digit))

    assert min(share('three', 3), share('eight', 8)) >= 0.9
    eraser.erase('three', ['a photo of a three'], tmp_path / 'w')
    with eraser.edited():
        after = share('three', 3), share('eight', 8)
    assert after[0] <= 0.25
    assert after[1] >= 0.9


def test_concepts_are_said_by_templates_names_and_synonyms(pipelines: dict[str, str]) -> None:
    pipeline = TextModel(pipelines['epsilon'])
    prompts = {'type': 'Basic', 'templates': ['a photo of a {}', '{}']}
    concepts = Concepts(recipe('x', prompts=prompts, synonyms={'cat': ['small cat']}), pipeline, ['cat', 'a_dog'], ['table'])
    assert {name: set(prompts) for name, prompts in concepts.prompts.items()} == {
        'cat': {'a photo of a cat', 'cat', 'a photo of a small cat', 'small cat'},
        'a_dog': {'a photo of a a dog', 'a dog'},
    }
    assert set(concepts.plain) == {'cat', 'a_dog', 'table'}
    with pytest.raises(RecipeError, match='over the token limit'):
        Concepts(recipe('x', prompts={'type': 'Basic', 'templates': 'photo ' * 30 + '{}'}), pipeline, ['cat'])
    with pytest.raises(RecipeError, match=r"synonyms\.cat: the prompts do not say 'cat'"):
        Concepts(recipe('x', prompts={'type': 'ClassNameFree'}, synonyms={'cat': ['pet']}), pipeline, ['cat'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'modle': 'x'}, "unknown key 'modle'"),
        ({'model': {'name': None}}, r'model\.name = None'),
        ({'model': {'name': 'x', 'revison': 'y'}}, "Did you mean 'revision'"),
        ({'arms': {}}, 'synthaug compare'),
        ({'preset': 'papper'}, "Did you mean 'paper'"),
        ({'training': {'methd': 'esd-x'}}, "Did you mean 'method'"),
        ({'training': {'method': 'esd-y'}}, r'training\.method'),
        ({'training': {'learning_rate': 0}}, r'training\.learning_rate = 0'),
        ({'training': {'iterations': 0}}, r'training\.iterations'),
        ({'training': {'seed': 1}}, 'beside training'),
        ({'samples': {'others': -1}}, r'samples\.others'),
        ({'samples': {'num_steps': 0}}, r'samples\.num_steps'),
        ({'classes': ['cat', 'cat']}, "names 'cat' twice"),
        ({'synonyms': {'cat': 'kitten'}}, r'synonyms\.cat'),
        ({'seed': -1}, 'seed = -1'),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        complete_erasure_recipe({**RECIPE, 'model': {'name': 'embedded:digits_sd'}, **change})


def test_models_that_cannot_be_erased_from_are_refused_before_weights_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextModel, 'load', None)
    with pytest.raises(ModelError, match='no U-Net'):
        learn_erasure(recipe(str(tiny.pixart(tmp_path / 'pixart'))), tmp_path / 'out', 'cpu')
    with pytest.raises(ModelError, match='distilled'):
        check_model(TextModel(str(tiny.sd(tmp_path / 'lcm', lcm=True))))
    assert not (tmp_path / 'out').exists()


def test_a_preset_equals_what_it_sets() -> None:
    short = {'model': {'name': 'x'}, 'preset': 'paper'}
    spelled = {'model': {'name': 'x'}, 'training': {**PRESETS['paper'], 'checkpoint_steps': 7}}
    assert decisive(complete_erasure_recipe(short)) == decisive(complete_erasure_recipe(spelled))


def test_the_command_line_erases_the_classes_of_a_folder(synthaug: Say, pipelines: dict[str, str], tmp_path: Path) -> None:
    data, out = tmp_path / 'data', tmp_path / 'out'
    for name in ('cat', 'dog'):
        (data / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(data / name / '0.png')
    options = [
        'training.iterations=1',
        'training.num_steps=2',
        'samples.per_class=1',
        'samples.num_steps=2',
        'samples.others=1',
        f'model.name={pipelines["epsilon"]}',
    ]
    command = ['learn', 'erasure', 'esd_digits', '--out', out, '--device', 'cpu', '--cfg-options', *options]
    status, said, progress = synthaug(*command, 'classes=None', '--data', data)
    assert status == 0, progress
    assert str(out / 'erasures') in said
    assert '2/2 iterations' in progress
    assert Erasures(out / 'erasures').classes == ('cat', 'dog')
    with Image.open(out / 'samples' / 'cat.png') as sheet:
        assert sheet.height == 4 * 68 + 4  # the class and the other, before and after
    made = tmp_path / 'store'
    generated = ['generate', 'he2023_basic_digits', '--out', made, '--device', 'cpu', '--cfg-options', f'generator.model={pipelines["epsilon"]}']
    status, _, problem = synthaug(*generated, f'generator.erasures={out / "erasures"}', 'per_class=1', "classes=['cat','dog','table']")
    assert status == 2
    assert "nothing for the class 'table'" in problem
    status, _, problem = synthaug(*command, '--data', data, '--classes', 'cat,bird')
    assert status == 2
    assert "'bird' has no folder" in problem
    with pytest.raises(DataError):
        Erasures(out / 'erasures').hashes(['bird'])


def test_the_denoisers_coefficients_are_those_that_it_uses(pipelines: dict[str, str]) -> None:
    for kind in ('epsilon', 'v_prediction'):
        denoiser = TextModel(pipelines[kind]).load(CPU, torch.float32)
        assert isinstance(denoiser, DiffusersDenoiser)
        sigma = torch.tensor(1.5, dtype=torch.float64)
        c_skip, c_out, c_in = (float(c) for c in denoiser.coefficients(sigma))
        assert c_in == pytest.approx(1 / (1 + 1.5**2) ** 0.5)
        assert (c_skip, c_out) == pytest.approx((1, -1.5) if kind == 'epsilon' else (c_in**2, -1.5 * c_in))
