"""The recipes of He et al. (ICLR 2023) and the recommended ones: complete, offline, true to the paper's numbers; those for digits run."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthaug_plugins.curation.base import Inspector
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import load_recipe
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.prompt_conditions import PromptConditions
from synthaug_plugins.prompts.datasets import DATASETS, dataset_names
from synthaug_plugins.recipes import ROOT, copy_recipe, find_recipe, shipped_recipes
from synthaug_plugins.registry import GENERATORS, INSPECTORS, build_strict
from synthaug_plugins.store.plan import make_blocks
from synthaug_plugins.store.store import Store

RECIPES = [r for r in shipped_recipes() if r.startswith(('generate/he2023_', 'generate/recommended_'))]
ON_HUB = [r for r in RECIPES if 'digits' not in r]
FEW_SHOT = {'imagenet', 'caltech101', 'pets', 'cars', 'aircraft', 'sun397', 'dtd', 'eurosat'}
DIGITS = ('eight', 'five', 'four', 'nine', 'one', 'seven', 'six', 'three', 'two', 'zero')  # as class folders are sorted


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to reach the network fails the test, also one whose error somebody catches."""

    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail(f'network access: {arguments[-1]!r}')

    for name in ('connect', 'connect_ex'):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ('getaddrinfo', 'create_connection'):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture(scope='session')
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Stable Diffusion's shape with small random weights, in place of the one on the hub."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp('pipeline')
    vocabulary = ['<|startoftext|>', '<|endoftext|>', *(chr(c) for c in range(33, 127)), *(f'{chr(c)}</w>' for c in range(33, 127))]
    (folder / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / 'merges.txt').write_text('#version: 0.2\n')
    torch.manual_seed(0)
    text = CLIPTextConfig(vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
    )
    parts = {'safety_checker': None, 'feature_extractor': None, 'requires_safety_checker': False}
    parts |= {'vae': AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4), 'text_encoder': CLIPTextModel(text), 'unet': unet}
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    scheduler = DDIMScheduler(beta_schedule='scaled_linear', clip_sample=False, steps_offset=1)
    StableDiffusionPipeline(tokenizer=tokenizer, scheduler=scheduler, **parts).save_pretrained(folder / 'model')
    return folder / 'model'


def recipe_of(name: str, **options: Any) -> dict[str, Any]:
    return load_recipe(find_recipe(name, 'generate'), options)


def generator_of(recipe: dict[str, Any], pipeline: Path) -> DenoiserGenerator:
    """The recipe's generator, on another model of the same kind."""
    options = {k: v for k, v in recipe['generator'].items() if k not in ('revision', 'variant')}
    return build_strict(options | {'model': str(pipeline)}, GENERATORS)


def data_set_of(name: str) -> str:
    return Path(name).stem.removeprefix('he2023_').removeprefix('zeroshot_').removeprefix('fewshot_rg_').removeprefix('basic_')


@pytest.mark.parametrize('name', ON_HUB)
def test_every_option_of_a_recipe_exists_and_every_class_can_be_said(name: str, pipeline: Path) -> None:
    recipe = recipe_of(name)
    generator = generator_of(recipe, pipeline)
    inspectors: list[Inspector] = [build_strict(i, INSPECTORS) for i in recipe['inspectors']]
    assert type(inspectors[0]).__name__ == 'ImageSanity'
    assert isinstance(generator.told, PromptConditions)
    if data_set_of(name) in DATASETS:
        assert recipe['classes'] in (None, list(dataset_names(data_set_of(name))))
    generator.check(recipe['classes'] or ['red fox', 'grey wolf'])
    assert generator.needs_sources is ('fewshot' in name)


def test_every_data_set_of_the_paper_has_its_recipe_and_says_its_name_throughout() -> None:
    zero_shot = {data_set_of(r) for r in RECIPES if 'zeroshot' in r and 'he2023' in r}
    assert zero_shot == {*DATASETS, 'digits'}
    assert {data_set_of(r) for r in RECIPES if 'fewshot_rg' in r} == {*FEW_SHOT, 'digits'}
    for name in (r for r in ON_HUB if 'he2023' in r):
        recipe = recipe_of(name)
        named = [entry for entry in (recipe['generator']['prompts'], *recipe['inspectors']) if entry['type'] != 'synthaug_plugins.ImageSanity']
        assert {entry['dataset'] for entry in named} == {data_set_of(name)}
        assert not any(entry['hints'] for entry in named)  # the paper says no more than the name


def test_zero_shot_recipes_try_2000_images_per_class_for_800(pipeline: Path) -> None:
    recipe = recipe_of('he2023_zeroshot_eurosat')
    blocks = make_blocks(recipe['classes'], recipe['per_class'], None, recipe['block_size'], recipe['tries_per_image'])
    parts = [part for block in blocks for part in block.parts if part.label == 3]
    assert sum(part.target for part in parts) == 800
    assert sum(part.max_tries for part in parts) == 2000
    assert recipe['generator']['guidance_scale'] == 3.0
    # The position of a request decides its sentence; when all tries are spent, each of 200 has had about 10.
    from synthaug_plugins.prompts.base import pick

    sentences = [f'sentence {i}' for i in range(recipe['generator']['prompts']['sentences'])]
    used = Counter(pick(sentences, 0, 'Highway', part.first + number) for part in parts for number in range(part.max_tries))
    assert len(used) == 200
    assert 8 <= min(used.values()) <= max(used.values()) <= 12


@pytest.mark.parametrize(('shots', 'steps'), [(16, 15), (8, 20), (4, 35), (2, 40), (1, 50)])
def test_real_guidance_recipes_run_the_papers_share_of_100_steps(pipeline: Path, shots: int, steps: int) -> None:
    recipe = recipe_of('he2023_fewshot_rg_eurosat', **{'generator.shots': shots})
    generator = generator_of(recipe, pipeline)
    generator.prepare(['Forest', 'River'], lambda sentence: None)
    (strength,) = generator.strengths  # type: ignore[attr-defined]
    assert len(strength.sampler['sigmas']) - strength.sampler['first_step'] == steps
    (block,) = make_blocks(['Forest'], recipe['per_class'], {'Forest': [f'{i}.png' for i in range(shots)]}, recipe['per_class'])
    requests = generator.requests(block.parts[0], recipe['seed'])
    first = [next(requests) for _ in range(recipe['per_class'])]
    assert {r.prompt for r in first} == {'a centered satellite photo of Forest'}
    assert set(Counter(r.source for r in first).values()) == {800 // shots}


def test_recommended_recipes_guide_little_and_say_much() -> None:
    for name in ('recommended_zeroshot', 'recommended_fewshot'):
        assert recipe_of(name)['generator']['guidance_scale'] == 2.0
    assert recipe_of('recommended_fewshot')['generator']['prompts']['templates'] == 'diverse'


def test_an_initialised_recipe_brings_the_files_that_it_inherits(tmp_path: Path) -> None:
    target = copy_recipe('he2023_zeroshot_flowers', tmp_path / 'mine')
    assert load_recipe(str(target)) == recipe_of('he2023_zeroshot_flowers')
    assert {p.relative_to(tmp_path / 'mine').as_posix() for p in (tmp_path / 'mine').rglob('*.py')} == {
        *('he2023_zeroshot_flowers.py', '_base_/he2023.py', '_base_/he2023_zeroshot.py')
    }
    copy_recipe('he2023_zeroshot_food', tmp_path / 'mine')  # shares the bases
    (tmp_path / 'mine' / '_base_' / 'he2023.py').write_text('mine')
    with pytest.raises(RecipeError, match=r'_base_/he2023\.py.* exists already'):
        copy_recipe('he2023_zeroshot_pets', tmp_path / 'mine')
    assert (tmp_path / 'mine' / '_base_' / 'he2023.py').read_text() == 'mine'
    assert not (tmp_path / 'mine' / 'he2023_zeroshot_pets.py').exists()


def test_shared_bases_are_no_recipes() -> None:
    assert list((ROOT / 'generate' / '_base_').glob('*.py'))
    assert not [r for r in shipped_recipes() if '_base_' in r]
    with pytest.raises(RecipeError, match='neither a file nor a shipped recipe'):
        find_recipe('he2023')


# --- the recipes for digits, on the embedded models ---------------------------------------------------------------------


@pytest.fixture
def few_digits(tmp_path: Path) -> Iterator[Path]:
    """Two real digits per class, 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label, name in enumerate(DIGITS):
        (tmp_path / 'few' / name).mkdir(parents=True)
        for i in np.flatnonzero(digits.target[:1200] == label)[:2]:
            Image.fromarray(np.round(digits.images[i] / 16 * 255).astype(np.uint8)).save(tmp_path / 'few' / name / f'{i}.png')
    return tmp_path / 'few'


def make(kind: str, out: Path, per_class: int, **options: Any) -> tuple[Store, list[dict[str, Any]]]:
    """Generate a few images of a recipe for digits, in few steps; the store, and its rows."""
    few = {'generator.sampler.num_steps': 20} if kind == 'fewshot_rg' else {'generator.num_steps': 8}
    store = generate(recipe_of(f'he2023_{kind}_digits', per_class=per_class, **few, **options), out, 'cpu', quiet=True)
    rows = store.index().to_pylist()
    assert sum(row['verdict'] == 'kept' for row in rows) == 10 * per_class
    return store, rows


def test_basic_digits_are_made_from_their_names(tmp_path: Path) -> None:
    _, rows = make('basic', tmp_path / 'store', 2)
    assert {row['prompt'] for row in rows} == {f'a photo of a {name}' for name in DIGITS}
    assert len({row['sha256'] for row in rows}) == 20


def test_le_digits_are_made_from_sentences_that_name_them(tmp_path: Path) -> None:
    _, rows = make('le', tmp_path / 'store', 3, **{'generator.prompts.cache': str(tmp_path / 'cache'), 'generator.prompts.sentences': 4})
    assert len(list((tmp_path / 'cache').glob('*.jsonl'))) == 1
    for row in rows:
        assert row['prompt'].startswith('a photo of ')
        assert DIGITS[row['label']] in row['prompt'].replace(',', '').split()
    assert len({row['prompt'] for row in rows}) > 20


def test_zero_shot_digits_keep_exactly_what_clip_gives_more_than_the_limit(tmp_path: Path) -> None:
    cache = {'generator.prompts.cache': str(tmp_path / 'cache'), 'generator.prompts.sentences': 4}
    # 1/10 would let nearly every digit pass; at 0.95 both verdicts occur.
    _, rows = make('zeroshot', tmp_path / 'store', 2, tries_per_image=20, **{'inspectors.1.times_chance': 9.5}, **cache)
    assert {row['verdict'] for row in rows} == {'kept', 'rejected'}
    for row in rows:
        assert (row['verdict'] == 'kept') == (row['clip_p'] > 0.95)


def test_real_guidance_digits_start_from_the_users_images(tmp_path: Path, few_digits: Path) -> None:
    store, rows = make('fewshot_rg', tmp_path / 'store', 2, data=str(few_digits))
    assert all(row['source'].split('/')[0] == store.classes[row['label']] for row in rows)
    assert len({row['source'] for row in rows}) == 20
