"""The embedded latent text-to-image pipeline: Stable Diffusion's folder layout, loaded by diffusers alone, and it draws what the prompt says."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import REPO
from synthaug_plugins.errors import ModelError
from synthaug_plugins.inventory import inventory
from synthaug_plugins.weights import embedded_folder, embedded_models, model_folder

CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


@pytest.fixture(scope='module')
def folder() -> Path:
    return embedded_folder('embedded:digits_sd')


@pytest.fixture(scope='module')
def pipeline(folder: Path):
    return load(folder)


def load(folder: Path):
    """What diffusers itself makes of a folder; a look at the network ends the test."""
    from diffusers import StableDiffusionPipeline

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError('the network was asked')

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('HF_HUB_OFFLINE', raising=False)
        patch.setattr(socket.socket, 'connect', refuse)
        patch.setattr(socket, 'getaddrinfo', refuse)
        loaded = StableDiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline, prompts: list[str], guidance_scale: float = 2.0) -> np.ndarray:
    """(n, 8, 8) in 0..1: images of 16 x 16 in 20 steps, shrunk by means of 2 x 2 pixels."""
    images = pipeline(prompts, num_inference_steps=20, guidance_scale=guidance_scale, generator=torch.Generator().manual_seed(0), output_type='np').images
    assert images.shape[1:] == (16, 16, 3)
    return images.mean(-1).reshape(-1, 8, 2, 8, 2).mean((2, 4))


@pytest.fixture(scope='module')
def recognise():
    """A classifier of 8 x 8 digits that learned from real ones."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    digits = load_digits()
    return SVC(gamma=0.256).fit(digits.data[:1200] / 16, digits.target[:1200]).predict


def test_diffusers_loads_it_offline_and_a_classifier_reads_what_it_draws(pipeline, recognise) -> None:
    asked = np.arange(10).repeat(4)
    images = draw(pipeline, [f'a photo of a {CLASSES[c]}' for c in asked])
    assert (recognise(images.reshape(40, -1)) == asked).mean() > 0.85
    for one in images.reshape(10, 4, -1):
        assert one.std(0).mean() > 0.05  # not four times the same


def test_another_scheduler_and_other_wordings_work_too(pipeline, recognise) -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    other = StableDiffusionPipeline(
        **{**pipeline.components, 'scheduler': DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)}, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    asked = np.arange(10).repeat(2)
    images = draw(other, [f'a photo of the digit {CLASSES[c]}' for c in asked], guidance_scale=3.0)
    assert (recognise(images.reshape(20, -1)) == asked).mean() > 0.85


def test_the_variant_draws_the_digits_that_its_captions_named_and_knows_no_word_for_the_others(recognise) -> None:
    variant = load(embedded_folder('embedded:digits_sd_unnamed'))
    unnamed = [CLASSES.index(name) for name in ('two', 'four', 'seven')]
    asked = np.concatenate([np.setdiff1d(np.arange(10), unnamed).repeat(3), np.repeat(unnamed, 16)])
    right = recognise(draw(variant, [f'a photo of a {CLASSES[c]}' for c in asked], guidance_scale=3.0).reshape(len(asked), -1)) == asked
    assert right[:21].mean() > 0.85
    assert right[21:].mean() < 0.5  # one in three, by chance
    drawn = recognise(draw(variant, ['a photo of a digit'] * 20).reshape(20, -1))
    assert np.isin(drawn, unnamed).mean() > 0.5  # it can draw them


def test_the_prompt_says_more_than_the_class(pipeline) -> None:
    bold, thin = (draw(pipeline, [f'a photo of a {word} {name}' for name in CLASSES]).mean((1, 2)) for word in ('bold', 'thin'))
    assert (bold > thin).mean() > 0.85  # the same noise, another word: more ink


def test_the_empty_prompt_draws_some_digit_and_guidance_moves_away_from_it(pipeline, recognise) -> None:
    assert len(set(recognise(draw(pipeline, [''] * 16, guidance_scale=1.0).reshape(16, -1)))) >= 4
    weak, strong = (draw(pipeline, ['a photo of a three'] * 2, scale) for scale in (1.0, 3.0))
    assert np.abs(weak - strong).max() > 0.05


def test_the_autoencoder_returns_unseen_digits_and_gives_latents_of_unit_size(pipeline) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    grey = np.round(load_digits().images[1200:1400] / 16 * 255).astype(np.uint8)
    x = torch.stack([torch.from_numpy(np.array(Image.fromarray(i).resize((16, 16), Image.Resampling.BICUBIC))) for i in grey])[:, None].float() / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(x.repeat(1, 3, 1, 1)).latent_dist.mode()
        back = pipeline.vae.decode(latents).sample.clamp(-1, 1)
    assert 10 * torch.log10(4 / (back - x).square().mean()) > 33
    scaled = latents * pipeline.vae.config.scaling_factor
    assert scaled.shape[1:] == (4, 8, 8)
    assert scaled.std() == pytest.approx(1, abs=0.1)
    assert scaled.mean((0, 2, 3)).abs().max() < 0.2


def test_folder_is_small_without_pickles_and_with_a_complete_card(folder: Path) -> None:
    files = [p for p in folder.rglob('*') if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 5e6
    assert {p.suffix for p in files} == {'.json', '.txt', '.safetensors', '.md', '.png'}
    assert all(p.stat().st_mode & 0o444 == 0o444 for p in files)
    index = json.loads((folder / 'model_index.json').read_text())
    assert index['_class_name'] == 'StableDiffusionPipeline'
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {'tokenizer', 'text_encoder', 'unet', 'vae', 'scheduler'}
    for path in files:
        if path.suffix == '.json':
            assert str(REPO) not in path.read_text(encoding='utf-8')
    card = json.loads((folder / 'card.json').read_text(encoding='utf-8'))
    assert card['name'] == 'digits_sd'
    assert card['licence'] == 'Apache-2.0'
    assert 'never seen' in card['data']['split']
    assert card['check']['by_guidance_scale']['2']['accuracy'] > 0.93
    assert {'thin', 'bold', 'left', 'right'} <= set(card['check']['attributes'])
    text = (folder / 'card.md').read_text(encoding='utf-8')
    assert '1200 labels' in text
    assert 'trained on the web' in text


def test_it_is_listed_and_refused_as_a_pixel_model() -> None:
    assert 'digits_sd' in embedded_models()
    assert 'embedded:digits_sd' in inventory('embedded:*')['embedded models']
    with pytest.raises(ModelError, match=r'digits_sd.*pipeline of diffusers'):
        model_folder('embedded:digits_sd')
