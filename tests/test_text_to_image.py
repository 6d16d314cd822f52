"""TextToImage, and RealGuidance on latents: what they make, record, say and refuse, on small pipelines with random weights."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
import transformers
from PIL import Image

from synthaug_plugins.diffusion import SampleNoise
from synthaug_plugins.diffusion.minority import timestep_sigma
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, prepare
from synthaug_plugins.errors import DataError, ModelError, RecipeError, Stopped
from synthaug_plugins.generators.base import Generator, Made, NonFiniteImages
from synthaug_plugins.generators.denoiser_generator import to_uint8
from synthaug_plugins.generators.strength import T_STAR, snr_matched_sigma, t_star
from synthaug_plugins.models.fit import channels_first, place
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import GENERATORS, build_strict
from synthaug_plugins.store.plan import Block, Part, Request

CLASSES = ['cat', 'dog', 'table']


@pytest.fixture(scope='module')
def sd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stable Diffusion 1 in shape: images of 16 x 16, 20 tokens."""
    return str(tiny_pipelines.sd(tmp_path_factory.mktemp('sd')))


@pytest.fixture(scope='module')
def sd3(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_pipelines.sd3(tmp_path_factory.mktemp('sd3')))


@pytest.fixture(scope='module')
def lcm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A distilled model, which is told its guidance scale."""
    return str(tiny_pipelines.sd(tmp_path_factory.mktemp('lcm'), lcm=True))


@pytest.fixture(scope='module')
def turbo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A few-step model, by its scheduler."""
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing='trailing', **tiny_pipelines.SCALED)
    return str(tiny_pipelines.sd(tmp_path_factory.mktemp('turbo'), scheduler))


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def real(tmp_path: Path) -> RealImages:
    """Four images of 20 x 16 pixels per class."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / 'real' / name).mkdir(parents=True)
        for k in range(4):
            coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((20, 16), Image.Resampling.BICUBIC).save(tmp_path / 'real' / name / f'{k}.png')
    return RealImages(tmp_path / 'real')


def build(type_: str, model: str, real: RealImages | None = None, classes: Sequence[str] = CLASSES, **options: Any) -> Any:
    """A generator as the engine has it when generation begins, and what it said, in `.said`."""
    if type_ == 'TextToImage':
        options = {'num_steps': 3, **options}
    generator: Any = GENERATORS.build({'type': f'synthaug_plugins.{type_}', 'model': model, **options})
    generator.real_images, generator.said = real, []
    generator.check(classes)
    generator.prepare(classes, generator.said.append)
    generator.setup(torch.device('cpu'), real)
    return generator


def part(name: str = 'cat', first: int = 0, sources: Sequence[str] = ()) -> Part:
    return Part(CLASSES.index(name), CLASSES.index(name), name, 10, 40, first, tuple(sources))


def asked(generator: Generator, n: int, name: str = 'cat', seed: int = 0, **where: Any) -> list[Request]:
    return list(islice(generator.requests(part(name, **where), seed), n))


def of_all_classes(generator: Generator, n: int = 2) -> list[Request]:
    sources = {name: generator.real_images.ids(name) if generator.real_images else () for name in CLASSES}
    return [r for name in CLASSES for r in asked(generator, n, name, sources=sources[name])]


# --- images --------------------------------------------------------------------------------------------------------------


def test_same_request_gives_the_same_image_in_any_batch_of_any_classes(sd: str, one_thread: None) -> None:
    """One grey level: sums inside the network are taken in another order in batches of another size."""
    generator = build('TextToImage', sd, guidance_scale=[1.0, 8.0], negative_prompt='blurred')
    requests = of_all_classes(generator, 3)
    assert len({generator.bucket(r) for r in requests}) == 1
    whole = generator.generate(requests)
    assert whole.shape == (9, 16, 16, 3) and whole.dtype == np.uint8
    assert len(np.unique(whole.reshape(9, -1), axis=0)) == 9
    assert np.array_equal(generator.generate(requests), whole)
    for size in (1, 2, 4):
        parts = np.concatenate([generator.generate(requests[i : i + size]) for i in range(0, 9, size)])
        assert np.abs(parts.astype(int) - whole).max() <= 1
    assert np.abs(generator.generate(requests[::-1])[::-1].astype(int) - whole).max() <= 1


@pytest.mark.parametrize('family', ['sd', 'sd3'])
def test_defaults_make_the_image_of_the_stock_pipeline_from_the_same_noise(family: str, sd: str, sd3: str) -> None:
    """DDIM for Stable Diffusion, flow Euler for SD 3."""
    folder = {'sd': sd, 'sd3': sd3}[family]
    generator = build('TextToImage', folder, num_steps=5, guidance_scale=4.0, negative_prompt='a blurred drawing')
    (request,) = asked(generator, 1)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    latents = SampleNoise([request.seed], generator.model.size).latents()
    stock = pipeline(request.prompt, negative_prompt='a blurred drawing', guidance_scale=4.0, num_inference_steps=5, latents=latents, output_type='pt').images
    assert np.abs(generator.generate([request])[0].astype(int) - to_uint8(stock * 2 - 1)[0]).max() <= 1


@pytest.mark.parametrize('sampler', [{'solver': 'dpmpp_2m'}, {'discretization': 've', 'sigma_min': 0.1, 'sigma_max': 10}, {'solver': 'heun', 'S_churn': 1.0}])
@pytest.mark.parametrize('family', ['sd', 'sd3'])
def test_other_samplers_run_on_both_kinds_of_models(family: str, sampler: dict[str, Any], sd: str, sd3: str) -> None:
    generator = build('TextToImage', {'sd': sd, 'sd3': sd3}[family], num_steps=4, sampler=sampler)
    assert generator.sampler['num_steps'] == 4
    assert (generator.sampler['sigmas'] is None) == ('discretization' in sampler)
    assert generator.generate(asked(generator, 1)).std() > 0


@pytest.mark.parametrize('family', ['sdxl', 'flux', 'pixart', 'sana'])
def test_other_families_make_images_and_variants_of_mixed_classes(family: str, tmp_path: Path, real: RealImages, one_thread: None) -> None:
    folder = str(getattr(tiny_pipelines, family)(tmp_path))
    size = {'image_size': 16 if family in ('sdxl', 'sana') else 32}
    generator = build('TextToImage', folder, num_steps=2, guidance_scale=[1.5, 4.0], **size)
    requests = of_all_classes(generator, 1)
    images = generator.generate(requests)
    assert images.shape == (3, size['image_size'], size['image_size'], 3)
    assert len(np.unique(images.reshape(3, -1), axis=0)) == 3
    assert np.abs(generator.generate(requests[1:2])[0].astype(int) - images[1]).max() <= 1
    variants = build('RealGuidance', folder, real, strength=0.5, sampler={'num_steps': 4}, **size)
    assert variants.generate(of_all_classes(variants, 1)).std() > 0


@pytest.mark.parametrize('options', [{'precision': 'bf16'}, {'tiny_vae': True}, {'channels_last': True, 'image_size': [16, 32]}], ids=str)
def test_layout_options_keep_the_picture(sd: str, real: RealImages, tmp_path: Path, options: dict[str, Any]) -> None:
    if 'tiny_vae' in options:
        options = {'tiny_vae': str(tiny_pipelines.tiny_vae(tmp_path / 'tiny'))}
    plain, other = build('TextToImage', sd, guidance_scale=2.0), build('TextToImage', sd, guidance_scale=2.0, **options)
    one, two = (g.generate(asked(g, 1))[0].astype(int) for g in (plain, other))
    assert two.shape[:2] == other.model.image_size
    if 'precision' in options:
        assert 0 < np.abs(one - two).mean() < 10
    variants = build('RealGuidance', sd, real, strength=0.5, sampler={'num_steps': 4}, **options)
    assert variants.generate(asked(variants, 1, sources=real.ids('cat')))[0].shape == two.shape


def test_not_finite_images_say_whether_a_step_or_the_decoder_made_them(sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = build('TextToImage', sd)
    requests = asked(generator, 3)
    good = generator.generate(requests)
    decode = generator.model.decode
    monkeypatch.setattr(generator.model, 'decode', lambda x: decode(x).index_fill(0, torch.tensor([1]), torch.inf))
    with pytest.raises(NonFiniteImages) as caught:
        generator.generate(requests)
    assert caught.value.bad == {1: f'request {requests[1].id} when it was decoded'}
    assert np.array_equal(caught.value.images[[0, 2]], good[[0, 2]])


# --- guidance ------------------------------------------------------------------------------------------------------------


def test_guidance_scale_is_fixed_per_class_or_drawn_and_recorded(sd: str) -> None:
    fixed = build('TextToImage', sd)
    assert {r.params['guidance_scale'] for r in of_all_classes(fixed)} == {7.5}, 'the default of the stock pipeline'
    scales = {'cat': 1, 'dog': 3.0, 'table': 6.0}
    per_class = build('TextToImage', sd, guidance_scale=scales)
    assert [r.params['guidance_scale'] for r in of_all_classes(per_class, 1)] == [1.0, 3.0, 6.0]
    drawn = build('TextToImage', sd, guidance_scale=[2.0, 6.0])
    values = [r.params['guidance_scale'] for r in asked(drawn, 400)]
    assert min(values) >= 2 and max(values) <= 6 and len(set(values)) > 300
    assert abs(np.mean(values) - 4) < 0.3
    assert values == [r.params['guidance_scale'] for r in asked(build('TextToImage', sd, guidance_scale=[2.0, 6.0]), 400)]


def test_each_request_of_a_batch_has_its_own_scale(sd: str, one_thread: None) -> None:
    mixed = build('TextToImage', sd, guidance_scale={'cat': 1, 'dog': 3.0, 'table': 6.0})
    requests = of_all_classes(mixed, 1)
    together = mixed.generate(requests)
    for k, scale in enumerate((1, 3.0, 6.0)):
        alone = build('TextToImage', sd, guidance_scale=scale).generate([requests[k]])[0]
        assert np.abs(alone.astype(int) - together[k]).max() <= 1
    stronger = Request(**{**vars(requests[1]), 'params': {'guidance_scale': 6.0}})
    assert not np.array_equal(mixed.generate([stronger])[0], together[1])


def test_guidance_costs_one_call_of_twice_the_rows_and_nothing_outside_its_interval_or_at_scale_one(sd: str) -> None:
    def cost(**options: Any) -> tuple[int, int]:
        generator = build('TextToImage', sd, num_steps=6, **options)
        generator.generate(asked(generator, 2))
        counter = generator.denoiser()
        assert generator.network_images == counter.images
        return counter.calls, counter.images

    assert cost() == (6, 24)
    assert cost(guidance_scale=1) == (6, 12)
    levels = build('TextToImage', sd, num_steps=6).sampler['sigmas']
    assert cost(guidance_interval=[levels[4], levels[2]]) == (6, 12 + 3 * 2)
    assert cost(guidance_interval=[100.0, 200.0]) == (6, 12)


def test_negative_prompt_changes_guided_images_alone(sd: str) -> None:
    requests = asked(build('TextToImage', sd), 2)
    plain, blurred, spelt = (build('TextToImage', sd, negative_prompt=n).generate(requests) for n in ('', 'blurred', 'a photo'))
    assert not np.array_equal(plain, blurred) and not np.array_equal(blurred, spelt)


def test_distilled_models_are_told_their_scale_and_run_once_per_step(lcm: str) -> None:
    generator = build('TextToImage', lcm, guidance_scale=[2.0, 9.0])
    requests = asked(generator, 2)
    images = generator.generate(requests)
    assert generator.network_images == 2 * generator.sampler['num_steps']
    other = [Request(**{**vars(r), 'params': {'guidance_scale': 1.0}}) for r in requests]
    assert not np.array_equal(generator.generate(other), images)
    for option in ({'negative_prompt': 'blurred'}, {'guidance_interval': [0.1, 2.0]}):
        with pytest.raises(RecipeError, match=f'{next(iter(option))}.*told its guidance scale'):
            build('TextToImage', lcm, **option)


def test_few_step_models_run_without_guidance_and_refuse_it(turbo: str) -> None:
    generator = build('TextToImage', turbo, num_steps=None)
    generator.generate(asked(generator, 2))
    assert (generator.sampler['num_steps'], generator.network_images) == (4, 8)
    for scale in (7.5, 0.0, [1.0, 2.0], {'cat': 1, 'dog': 1, 'table': 2}):
        with pytest.raises(RecipeError, match=r'few-step model.*guidance_scale=1'):
            build('TextToImage', turbo, guidance_scale=scale)
    assert build('TextToImage', turbo, few_step=False, guidance_scale=7.5).model.guidance == 'free'


# --- prompts -------------------------------------------------------------------------------------------------------------


def test_requests_carry_the_prompts_of_their_place_in_the_class(sd: str, tmp_path: Path) -> None:
    (tmp_path / 'p.txt').write_text('a photo of a {}\na drawing of a {}\na picture of a {}\n')
    prompts = {'type': 'FromFile', 'file': str(tmp_path / 'p.txt')}
    generator = build('TextToImage', sd, prompts=prompts, images_per_prompt=2)
    found = [r.prompt for r in asked(generator, 12)]
    assert found[::2] == found[1::2]
    assert set(found[:6]) == {'a photo of a cat', 'a drawing of a cat', 'a picture of a cat'}
    cut_in_blocks = [r.prompt for k in (0, 3, 8) for r in asked(generator, {0: 3, 3: 5, 8: 4}[k], first=k)]
    assert cut_in_blocks == found
    assert [r.prompt for r in asked(generator, 12, seed=5)] != found
    free = build('TextToImage', sd, prompts={'type': 'synthaug_plugins.ClassNameFree', 'templates': 'a photo'})
    assert {r.prompt for r in of_all_classes(free)} == {'a photo'}


def test_prompts_over_the_token_limit_are_cut_and_that_is_said_once(sd: str) -> None:
    long = 'a photo of a {} on the table ' + 'and a small dog ' * 8
    generator = build('TextToImage', sd, prompts={'type': 'Basic', 'templates': [long, 'a photo of a {}']})
    (said,) = generator.said
    assert '3 of 6 prompts' in said and 'small dog' in said
    requests = of_all_classes(generator, 4)
    assert len(generator.said) == 1
    cut = [r.prompt for r in requests if r.prompt.startswith('a photo of a cat on')]
    assert cut and all(long.format('cat').startswith(prompt) and generator.model.fit_prompt(prompt) == (prompt, []) for prompt in cut)
    generator.prepare(CLASSES, generator.said.append)
    assert len(generator.said) == 1
    with pytest.raises(RecipeError, match='negative_prompt is over the token limit'):
        build('TextToImage', sd, negative_prompt=long)


FILLER = 'a small dog on the table of ' * 3
"""Twenty-one words, more than the twenty tokens of these pipelines."""


@pytest.mark.parametrize('family', ['sd', 'sd3'])
def test_a_prompt_cut_before_its_class_name_is_refused_before_weights_load(
    family: str, sd: str, sd3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('synthaug_plugins.models.text_model.TextModel.load', lambda *args: pytest.fail('weights were loaded'))
    folder = {'sd': sd, 'sd3': sd3}[family]
    prompts: dict[str, list[str]] = {
        'template': [f'a picture of the {FILLER} and a {{}}', 'a photo of a {}'],
        'inflected': [f'{FILLER} and {{}}s'],
    }
    for templates in prompts.values():
        with pytest.raises(RecipeError, match=r"class 'cat' is over the token limit of .* without the class name\. Put the class name nearer"):
            build('TextToImage', folder, prompts={'type': 'Basic', 'templates': templates}, classes=['cat', 'bed'])
    # In the last of many prompts of a file, by the name that prompts say, and by a part of it.
    (tmp_path / 'names.json').write_text('{"n1": "table cat", "n2": {"prompt": "crane", "hint": "bird"}, "n3": {"prompt": "crane", "hint": "machine"}}')
    for label, last in {
        'n1': 'a photo of the digit one of the digit two of the digit three on the table table cat',
        'n2': f'a photo of {"the " * 15} crane, bird',
    }.items():
        said = {'n1': ['a table cat'], 'n2': ['a crane, bird'], 'n3': ['a crane, machine']}
        said[label] = [*(f'{said[label][0]} {"on " * k}' for k in range(5)), last]
        (tmp_path / 'p.json').write_text(json.dumps(said))
        source = {'type': 'FromFile', 'file': str(tmp_path / 'p.json'), 'names': str(tmp_path / 'names.json')}
        with pytest.raises(RecipeError, match=f"class '{label}' is over"):
            build('TextToImage', folder, prompts=source, classes=['n1', 'n2', 'n3'])


def test_a_cut_behind_the_class_name_or_in_a_prompt_without_it_is_said_not_refused(sd: str, tmp_path: Path) -> None:
    free = build('TextToImage', sd, prompts={'type': 'ClassNameFree', 'templates': 'a photo of the ' + 'drawing ' * 20})
    assert [said.split(' over')[0] for said in free.said] == ['1 of 1 prompts are']
    # The plural counts, so does the first of two mentions, and the kitty was never called a cat.
    (tmp_path / 'p.json').write_text(json.dumps({'cat': [f'three cats {FILLER}', f'cat {FILLER} cat', f'a kitty {FILLER}'], 'bed': ['a bed']}))
    named = build('TextToImage', sd, prompts={'type': 'FromFile', 'file': str(tmp_path / 'p.json')}, classes=['cat', 'bed'])
    assert [said.split(' over')[0] for said in named.said] == ['3 of 4 prompts are']


def test_a_source_of_unknown_length_is_refused_at_the_request_that_loses_its_name(sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthaug_plugins.prompts.sources import Basic

    monkeypatch.setattr(Basic, 'cycle', lambda self, label: None)
    monkeypatch.setattr('synthaug_plugins.generators.prompt_conditions._PROMPTS_LOOKED_AT', 3)
    monkeypatch.setattr(Basic, 'prompt', lambda self, label, seed, n: f'a photo of a {label}' if n < 2 else f'{FILLER} and a {label}')
    generator = build('TextToImage', sd)
    assert len(asked(generator, 2)) == 2
    with pytest.raises(RecipeError, match='without the class name'):
        asked(generator, 3)


def test_notes_of_the_prompt_source_are_said_once(sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthaug_plugins.prompts.sources import Basic

    monkeypatch.setattr(Basic, 'notes', lambda self: ['a shortfall'])
    generator = build('TextToImage', sd)
    generator.prepare(CLASSES, generator.said.append)
    assert generator.said == ['a shortfall']


def test_identity_holds_all_that_decides_the_pixels(sd: str, tmp_path: Path) -> None:
    tiny = str(tiny_pipelines.tiny_vae(tmp_path / 'tiny'))
    base = {'guidance_scale': 3.0}
    changes: list[dict[str, Any]] = [
        {},
        {'prompts': {'type': 'Basic', 'templates': 'a drawing of a {}'}},
        {'negative_prompt': 'blurred'},
        {'guidance_scale': 4.0},
        {'guidance_scale': [3.0, 4.0]},
        {'guidance_scale': dict.fromkeys(CLASSES, 3.0)},
        {'guidance_interval': [0.1, 3.0]},
        {'num_steps': 4},
        {'sampler': {'solver': 'dpmpp_2m'}},
        {'precision': 'bf16'},
        {'images_per_prompt': 2},
        {'image_size': 32},
        {'tiny_vae': tiny},
        {'compile': True},
        {'channels_last': True},
    ]
    found = [json.dumps(build('TextToImage', sd, **{**base, **c}).identity(), sort_keys=True, allow_nan=False) for c in changes]
    assert len(set(found)) == len(changes)
    assert json.loads(found[0])['model']['sha256']


# --- refusals ------------------------------------------------------------------------------------------------------------

GUIDED = [
    ({'guidance_scale': -1.0}, 'guidance_scale = -1'),
    ({'guidance_scale': '7.5'}, "guidance_scale = '7.5'"),
    ({'guidance_scale': float('nan')}, 'guidance_scale = nan'),
    ({'guidance_scale': [6.0, 2.0]}, 'guidance_scale'),
    ({'guidance_scale': [1.0, 2.0, 3.0]}, 'guidance_scale'),
    ({'guidance_scale': {}}, 'guidance_scale'),
    ({'guidance_scale': {'cat': 3.0, 'dog': 3.0}}, "'table'"),
    ({'guidance_scale': {'cat': 3.0, 'dgo': 3.0, 'table': 1}}, "'dgo'.*'dog'"),
    ({'guidance_scale': 1, 'negative_prompt': 'blurred'}, 'negative_prompt.*no effect'),
    ({'guidance_scale': 1, 'guidance_interval': [0, 1]}, 'guidance_interval.*no effect'),
    ({'guidance_interval': [5, 1]}, 'interval'),
    ({'negative_prompt': ['blurred']}, 'negative_prompt'),
    ({'prompts': {'type': 'Basc'}}, "'Basic'"),
    ({'prompts': {'type': 'Basic', 'templates': 'no place'}}, 'no place'),
    ({'safety': 'on'}, "safety = 'on'"),
    ({'precision': 'fp8'}, 'precision'),
    ({'image_size': 17}, 'image_size = 17'),
    ({'sampler': {'solver': 'rk4'}}, 'solver'),
]


@pytest.mark.parametrize(('type_', 'more'), [('TextToImage', {}), ('RealGuidance', {'strength': 0.5})])
@pytest.mark.parametrize(('options', 'named'), GUIDED, ids=str)
def test_wrong_options_are_refused_before_any_weights_load(sd: str, type_: str, more: dict[str, Any], options: dict[str, Any], named: str) -> None:
    with no_weights(), pytest.raises(RecipeError, match=named):
        build(type_, sd, **{**more, **options})


class no_weights:
    """Loading fails the test."""

    def __enter__(self) -> None:
        from synthaug_plugins.models.files import ModelFiles

        self.before, ModelFiles.load = ModelFiles.load, self._loaded  # type: ignore[method-assign]

    def _loaded(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError('weights were loaded')

    def __exit__(self, *error: Any) -> None:
        from synthaug_plugins.models.files import ModelFiles

        ModelFiles.load = self.before  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'num_steps': 0}, 'num_steps = 0'),
        ({'prompts': {'type': 'Basic', 'templates': 3}}, 'templates = 3'),
        ({'num_steps': 4, 'sampler': {'num_steps': 5}}, 'contradicts'),
        ({'images_per_prompt': 0}, 'images_per_prompt'),
        ({'step': 5}, "'step'"),
    ],
    ids=str,
)
def test_wrong_options_of_text_to_image_are_refused(sd: str, options: dict[str, Any], named: str) -> None:
    with no_weights(), pytest.raises(RecipeError, match=named):
        build('TextToImage', sd, **options)


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'model': None}, 'model = None.*Give text'),
        ({'compile': 'no'}, "compile = 'no'.*Give True or False"),
        ({'few_step': 1}, 'few_step = 1.*Give True or False'),
        ({'variant': 3}, 'variant = 3.*Give text'),
        ({'images_per_prompt': 1.5}, 'images_per_prompt = 1.5.*Give a whole number'),
        ({'prompts': 'Basic'}, "prompts = 'Basic'.*Give a dict"),
        ({'sampler': [25]}, r'sampler = \[25\].*Give a dict'),
        ({'prompts': {'type': 'Enhanced', 'temperature': '1'}}, "temperature = '1'.*Give a number"),
        ({'prompts': {'type': 'Enhanced', 'seed': True}}, 'seed = True.*Give a whole number'),
        ({'prompts': {'type': 'Enhanced', 'device': 'gpu'}}, "device = 'gpu' of the language model"),
    ],
    ids=str,
)
def test_an_option_of_the_wrong_kind_is_named_with_what_to_give(sd: str, options: dict[str, Any], named: str) -> None:
    with no_weights(), pytest.raises(RecipeError, match=named):
        build_strict({'type': 'TextToImage', 'model': sd, **options}, GENERATORS)


def test_incomplete_folder_and_missing_checker_are_refused_before_any_weights_load(sd: str, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / 'p')
    (tmp_path / 'p' / 'unet' / 'diffusion_pytorch_model.safetensors').unlink()
    with no_weights(), pytest.raises(ModelError, match=r'unet/diffusion_pytorch_model\.safetensors is missing'):
        build('TextToImage', str(tmp_path / 'p'))
    with no_weights(), pytest.raises(ModelError, match='no safety checker'):
        build('TextToImage', sd, safety='flag')
    with no_weights(), pytest.raises(DataError, match='repeated'):
        build('TextToImage', sd, classes=['cat', 'cat'])


@pytest.mark.parametrize(
    'options', [{'prompts': {'type': 'Basic'}}, {'guidance_scale': 3.0}, {'negative_prompt': 'x'}, {'safety': 'flag'}, {'tiny_vae': 'x'}], ids=str
)
def test_options_of_pipelines_are_refused_for_models_of_labels(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        GENERATORS.build({'type': 'RealGuidance', 'model': 'embedded:digits_edm', 'sigma': 0.5, **options})


@pytest.mark.parametrize('options', [{'use_labels': False}, {'guidance': [{'type': 'ClassifierFree', 'weight': 1.0}]}], ids=str)
def test_options_of_label_models_are_refused_for_pipelines(sd: str, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f'{next(iter(options))}.*takes prompts'):
        build('RealGuidance', sd, strength=0.5, **options)


# --- safety --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def guarded(sd: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pipeline with a safety checker of random weights."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    folder = tmp_path_factory.mktemp('guarded') / 'p'
    shutil.copytree(sd, folder)
    torch.manual_seed(0)
    vision = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'image_size': 16, 'patch_size': 8}
    config = transformers.CLIPConfig(vision_config={**vision, 'projection_dim': 8}, text_config={'hidden_size': 16}, projection_dim=8)
    StableDiffusionSafetyChecker(config).save_pretrained(folder / 'safety_checker')
    size = {'size': {'shortest_edge': 16}, 'crop_size': {'height': 16, 'width': 16}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder / 'feature_extractor')
    index = json.loads((folder / 'model_index.json').read_text())
    index |= {'safety_checker': ['stable_diffusion', 'StableDiffusionSafetyChecker'], 'feature_extractor': ['transformers', 'CLIPImageProcessor']}
    (folder / 'model_index.json').write_text(json.dumps(index))
    return str(folder)


def test_safety_verdicts_are_recorded_and_no_image_is_blackened(guarded: str, sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = asked(build('TextToImage', sd), 4)
    plain = build('TextToImage', guarded).generate(requests)
    flagging, dropping = build('TextToImage', guarded, safety='flag'), build('TextToImage', guarded, safety='drop')
    assert flagging.identity()['safety_sha256']
    own = flagging.generate(requests)
    assert isinstance(own, Made) and own.reasons == {}
    assert np.array_equal(own.images, plain)
    assert set(own.scores['nsfw']) <= {0.0, 1.0}
    for generator in (flagging, dropping):
        monkeypatch.setattr(generator.model, 'flagged', lambda images: np.array([False, True, False, True]))
    flagged, dropped = flagging.generate(requests), dropping.generate(requests)
    assert flagged.reasons == {} and set(dropped.reasons) == {1, 3}
    assert flagged.scores['nsfw'].tolist() == dropped.scores['nsfw'].tolist() == [0, 1, 0, 1]
    assert np.array_equal(dropped.images, plain)


def test_safety_verdicts_reach_the_store(guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthaug_plugins.models.text_model import TextModel

    monkeypatch.setattr(TextModel, 'flagged', lambda self, images: images.sum(axis=(1, 2, 3), dtype=int) % 2 == 0)
    store = generate(recipe(guarded, generator={'safety': 'drop'}, tries_per_image=8), tmp_path / 'store', 'cpu', quiet=True)
    counts = store.counts()
    assert all(c['kept'] == 4 and c['reasons']['flagged by the safety checker'] > 0 for c in counts.values())


# --- a whole run ---------------------------------------------------------------------------------------------------------


def recipe(model: str, generator: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    what = {'type': 'synthaug_plugins.TextToImage', 'model': model, 'num_steps': 2, 'guidance_scale': [1.0, 5.0], **(generator or {})}
    return complete({'generator': what, 'classes': CLASSES, 'per_class': 4, 'block_size': 2, 'batch_size': 2, 'inspectors': [], **keys})


class StopAfter:
    """Hooks that stand for Ctrl-C after some blocks."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks

    def synthaug_before_block(self, block: Block) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def synthaug_after_block(self, **made: Any) -> None:
        pass


@pytest.mark.parametrize('type_', ['TextToImage', 'RealGuidance'])
def test_killed_generation_ends_with_the_same_bytes_and_no_network(
    type_: str, sd: str, real: RealImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError('the network was asked for')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    how: dict[str, Any] = {'type': type_}
    todo = recipe(sd, how)
    if type_ == 'RealGuidance':
        todo['generator'] = {'type': type_, 'model': sd, 'shots': 'auto', 'sampler': {'num_steps': 4}}
        todo['data'] = str(real.root)
    whole = generate(todo, tmp_path / 'whole', 'cpu', quiet=True)
    with pytest.raises(Stopped, match='3 of 6'):
        generate(todo, tmp_path / 'killed', 'cpu', StopAfter(3), quiet=True)  # type: ignore[arg-type]
    resumed = generate(todo, tmp_path / 'killed', 'cpu', quiet=True)
    assert len(whole.finished()) == len(resumed.finished()) == 6
    for path in sorted((tmp_path / 'whole').glob('shards/*.tar')):
        assert path.read_bytes() == (tmp_path / 'killed' / 'shards' / path.name).read_bytes(), path.name


# --- RealGuidance on latents ---------------------------------------------------------------------------------------------


def guided_by(model: str, real: RealImages, steps: int = 10, **options: Any) -> Any:
    return build('RealGuidance', model, real, **{'sampler': {'num_steps': steps}, **options})


def test_tiny_strength_returns_what_the_vae_makes_of_the_real_image(sd: str, real: RealImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the noise level at the start, in latents: that is what the network may move, and this one has random weights."""
    generator = guided_by(sd, real, sigma=[0.03, 5.0], guidance_scale=1)
    requests = asked(generator, 8, sources=real.ids('cat'))
    generator.denoiser()
    placed = [channels_first(place(real.load(r.source), 16, 16, 'crop').pixels, 3) for r in requests[:4]]
    sources = torch.from_numpy(np.stack(placed)).float() / 127.5 - 1
    encoded, decoded, decode = generator.model.encode(sources), [], generator.model.decode
    monkeypatch.setattr(generator.model, 'decode', lambda x: decoded.append(x) or decode(x))
    images = [generator.generate(requests[k : k + 4]).astype(int) for k in (0, 4)]
    near, far = ((x - encoded).square().mean().sqrt() for x in decoded)
    assert near < 4 * 0.03 and far > 20 * near
    through = to_uint8(decode(encoded)).astype(int)
    assert 2 * np.abs(images[0] - through).mean() < np.abs(images[1] - through).mean()


def test_variants_of_latents_do_not_depend_on_the_batch(sd: str, real: RealImages, one_thread: None) -> None:
    generator = guided_by(sd, real, strength=0.5)
    requests = of_all_classes(generator, 3)
    assert len({generator.bucket(r) for r in requests}) == 1
    whole = generator.generate(requests)
    for size in (1, 4):
        parts = np.concatenate([generator.generate(requests[i : i + size]) for i in range(0, 9, size)])
        assert np.abs(parts.astype(int) - whole).max() <= 1


def test_each_source_is_encoded_once_and_kept_by_its_content(sd: str, real: RealImages, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = guided_by(sd, real, strength=0.3)
    shutil.copy(real.root / 'cat' / '0.png', real.root / 'cat' / '9.png')
    generator.real_images = real = RealImages(real.root)
    generator.denoiser()
    calls, encode = [], generator.model.encode
    monkeypatch.setattr(generator.model, 'encode', lambda images: calls.append(len(images)) or encode(images))
    requests = asked(generator, 12, sources=real.ids('cat'))
    generator.generate(requests[:7])
    generator.generate(requests[7:])
    assert calls == [1] * 4, 'five files, two of which hold the same image'
    monkeypatch.setattr('synthaug_plugins.generators.sdedit._ENCODED_BYTES', 3 * 4 * 8 * 8 * 4)
    generator._encoded.clear()
    generator._encoded_bytes = 0
    generator.generate(requests[:5])
    assert len(generator._encoded) == 3, 'no more than fits'


def test_quota_of_800_makes_50_variants_of_each_of_16_shots(sd: str, real: RealImages) -> None:
    ids = [f'cat/{k:02d}.png' for k in range(16)]
    generator = guided_by(sd, real, shots=16)
    sources = [r.source for first in range(0, 800, 160) for r in asked(generator, 160, first=first, sources=ids)]
    assert {sources.count(i) for i in ids} == {50}


def test_t_star_by_shots_is_that_of_the_paper_and_its_snr_that_of_glide() -> None:
    """Timesteps of Stable Diffusion 1 with the same signal-to-noise ratio."""
    table = diffusers.DDIMScheduler(**tiny_pipelines.SCALED).alphas_cumprod.double()
    sigmas = ((1 - table) / table).sqrt()
    found = {shots: int((sigmas.log() - np.log(snr_matched_sigma(t))).abs().argmin()) for shots, t in T_STAR.items()}
    assert found == {16: 55, 8: 91, 4: 216, 2: 261, 1: 353}
    assert [t_star(n) for n in (1, 2, 3, 4, 5, 6, 8, 11, 12, 16, 500)] == [50, 40, 35, 35, 35, 20, 20, 20, 15, 15, 15]
    db = [-20 * np.log10(snr_matched_sigma(t)) for t in (15, 20, 35, 40, 50)]
    assert [snr_matched_sigma(t) for t in range(1, 100)] == pytest.approx([timestep_sigma(t - 1, 100, 'cosine') for t in range(1, 100)], rel=1e-9)
    assert [round(x, 1) for x in db] == [12.5, 9.8, 4.3, 2.8, 0.0]


@pytest.mark.parametrize(('shots', 'steps'), [(16, 15), (8, 20), (4, 35), (2, 40), (1, 50)])
def test_shots_run_t_star_of_100_steps_or_begin_at_the_matched_noise_level(sd: str, real: RealImages, shots: int, steps: int) -> None:
    paper = guided_by(sd, real, 100, shots=shots)
    (strength,) = paper.strengths
    assert 100 - strength.sampler['first_step'] == steps
    assert strength.params == {'sigma': pytest.approx(paper.sampler['sigmas'][100 - steps]), 't0': steps / 100}
    matched = guided_by(sd, real, 100, shots=shots, strength_map='snr_matched')
    (strength,) = matched.strengths
    assert strength.params == {'sigma': pytest.approx(snr_matched_sigma(steps), rel=1e-12)}
    assert strength.sampler['sigmas'][0] == pytest.approx(snr_matched_sigma(steps))
    assert paper.identity() != matched.identity()


def test_shots_are_counted_and_classes_of_different_counts_refused(sd: str, real: RealImages) -> None:
    generator = guided_by(sd, real, shots='auto')
    assert generator.strengths[0].params['t0'] == 0.35
    assert any('4 real images per class' in sentence for sentence in generator.said)
    again = guided_by(sd, real, shots=3)
    assert again.strengths == generator.strengths and any('nearest' in sentence for sentence in again.said)
    (real.root / 'dog' / '0.png').unlink()
    with pytest.raises(DataError, match=r"'dog' has 3.*4"):
        guided_by(sd, RealImages(real.root), shots='auto')


@pytest.mark.parametrize('to_one', [True, False], ids=['ends at 0', 'ends above 0'])
def test_strength_runs_the_steps_that_diffusers_runs(sd: str, real: RealImages, tmp_path: Path, to_one: bool) -> None:
    """Also where the config says that the pipeline ends at the first noise level of its table, as Stable Diffusion's does."""
    sd = str(shutil.copytree(sd, tmp_path / 'p'))
    config = tmp_path / 'p' / 'scheduler' / 'scheduler_config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'set_alpha_to_one': to_one}))
    strengths = [0.05, 0.1, 0.35, 0.29, 0.5, 0.75, 1.0]
    generator = guided_by(sd, real, 20, strength=strengths, guidance_scale=1)
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(sd)
    pipeline.scheduler.set_timesteps(20)
    for strength, found in zip(strengths, generator.strengths, strict=True):
        timesteps, _ = pipeline.get_timesteps(20, strength, 'cpu')
        assert found.sampler['num_steps'] - found.sampler['first_step'] == len(timesteps)
        assert found.params == {'sigma': pytest.approx(generator.model.sigma_of(int(timesteps[0]))), 'strength': strength}
    requests = asked(generator, 9, sources=real.ids('cat'))
    generator.generate(requests[8:])
    assert generator.network_images == 7, 'int(20 * 0.35) steps of one image'


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({}, 'exactly one'),
        ({'sigma': 0.5, 'strength': 0.5}, 'exactly one'),
        ({'t0': 0.5, 'shots': 16}, 'exactly one'),
        ({'strength': 0.5, 'strength_map': 'paper'}, 'strength_map'),
        ({'shots': 0}, 'shots = 0'),
        ({'shots': 'all'}, "shots = 'all'"),
        ({'shots': 16, 'strength_map': 'snr'}, 'snr_matched'),
        ({'strength': 0.0}, 'strength = 0'),
        ({'strength': 1.5}, 'strength = 1.5'),
        ({'strength': 0.05}, 'runs none'),
        ({'sigma': 50.0}, 'sigma = 50'),
        ({'strength': [0.5, 0.5]}, 'repeats'),
        ({'strength': 0.5, 'sampler': {'sigmas': [3.0, 1.0]}}, 'sampler.sigmas'),
    ],
    ids=str,
)
def test_strength_is_said_in_exactly_one_way_that_works(sd: str, real: RealImages, options: dict[str, Any], named: str) -> None:
    with no_weights(), pytest.raises(RecipeError, match=named):
        guided_by(sd, real, **options)


def test_real_images_smaller_than_the_models_are_enlarged_and_that_is_said(sd: str, real: RealImages) -> None:
    assert guided_by(sd, real, strength=0.5).said == []
    generator = guided_by(sd, real, strength=0.5, image_size=32)
    assert any('12 of 12 real images are smaller than the 32 x 32' in sentence and '20 x 16' in sentence for sentence in generator.said)
    assert generator.generate(asked(generator, 1, sources=real.ids('cat'))).shape == (1, 32, 32, 3)


def _rotated(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned to the right
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


STRANGE: dict[str, Callable[[Image.Image, Path], None]] = {
    'alpha.png': lambda image, path: image.convert('RGBA').save(path),
    'palette.png': lambda image, path: image.quantize(256).save(path),
    'exif.png': _rotated,
    'cmyk.tif': lambda image, path: Image.merge('CMYK', [c.point(lambda v: 255 - v) for c in image.split()] + [Image.new('L', image.size, 0)]).save(path),
}


@pytest.mark.parametrize('name', STRANGE)
def test_sources_with_alpha_palette_rotation_or_cmyk_give_the_variant_of_the_plain_image(sd: str, tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    plain = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((16, 16), Image.Resampling.NEAREST)
    (tmp_path / 'r' / 'cat').mkdir(parents=True)
    plain.save(tmp_path / 'r' / 'cat' / 'a_plain.png')
    STRANGE[name](plain, tmp_path / 'r' / 'cat' / f'b_{name}')
    real = RealImages(tmp_path / 'r')
    generator = build('RealGuidance', sd, real, classes=['cat'], strength=0.5, sampler={'num_steps': 4})
    one, two = asked(generator, 2, sources=real.ids('cat'))
    same_seed = Request(**{**vars(two), 'seed': one.seed})
    assert np.abs(generator.generate([one]).astype(int) - generator.generate([same_seed])).max() <= 2


def test_engine_counts_shots_before_the_plan_and_the_strength_is_part_of_it(sd: str, real: RealImages) -> None:
    said: list[str] = []
    todo = recipe(sd) | {'generator': {'type': 'RealGuidance', 'model': sd, 'shots': 'auto'}, 'data': str(real.root)}
    run = prepare(todo, said.append)
    assert run.plan.recipe['generator']['strengths'][0]['t0'] == 0.35
    assert any('4 real images per class' in sentence for sentence in said)
