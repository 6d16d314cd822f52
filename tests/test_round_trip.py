"""Round trips through an autoencoder: what they are, that nothing else is loaded, and what is refused."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from learned_embeddings import folder_of_images

from synthaug_plugins.diffusion import SampleNoise
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, prepare
from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.generators.base import NonFiniteImages
from synthaug_plugins.generators.denoiser_generator import to_uint8
from synthaug_plugins.generators.round_trip import RoundTrip
from synthaug_plugins.models.files import ModelFiles
from synthaug_plugins.models.fit import place
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import GENERATORS, build_strict
from synthaug_plugins.store.plan import Part, Request

SD = 'embedded:digits_sd'


@pytest.fixture(scope='module')
def real(tmp_path_factory: pytest.TempPathFactory) -> RealImages:
    return folder_of_images(tmp_path_factory.mktemp('real'), {'cat': 3, 'dog': 2}, (12, 20))


def built(model: str, real: RealImages, **options: Any) -> RoundTrip:
    generator: RoundTrip = build_strict({'type': 'RoundTrip', 'model': model, **options}, GENERATORS)
    generator.real_images = real
    generator.check(real.classes)
    generator.setup(torch.device('cpu'), real)
    return generator


def asked(generator: RoundTrip, real: RealImages, n: int) -> list[Request]:
    return list(islice(generator.requests(Part(0, 0, 'cat', n, n, 0, real.ids('cat')), 0), n))


def pixels_of(real: RealImages, requests: list[Request], fit: str = 'squash') -> torch.Tensor:
    canvases = [place(real.load(str(r.source)), 16, 16, fit).pixels for r in requests]
    return torch.tensor(np.stack(canvases)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_an_image_goes_through_the_pipelines_own_encoder_and_decoder(real: RealImages) -> None:
    generator = built(SD, real)
    requests = asked(generator, real, 4)
    model = TextModel(SD)
    model.load(torch.device('cpu'), torch.float32)
    with torch.no_grad():
        expected = to_uint8(model.decode(model.encode(pixels_of(real, requests))))
    made = generator.generate(requests)
    assert np.array_equal(made, expected)
    assert np.array_equal(made[0], made[3]), 'the mean of the latents: the same image again'
    assert (made[0] != made[1]).any()


def test_latents_are_drawn_by_the_requests_seed_alone(real: RealImages) -> None:
    generator = built(SD, real, sample=True)
    requests = asked(generator, real, 4)
    latents = TextModel(SD).load_autoencoder(torch.device('cpu'), torch.float32)
    with torch.no_grad():
        mean, deviation = latents.posterior(pixels_of(real, requests))
        noise = SampleNoise([r.seed for r in requests], generator.model.size).latents()
        expected = to_uint8(latents.decode(mean + deviation * noise))
    made = generator.generate(requests)
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert (made[0] != made[3]).any(), 'one source, two seeds'
    assert np.abs(generator.generate(requests[2:3])[0].astype(int) - made[2]).max() <= 1


@pytest.mark.parametrize('tiny', [False, True])
def test_nothing_but_the_autoencoder_is_loaded(real: RealImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: bool) -> None:
    loaded: list[str] = []
    original = ModelFiles.load

    def load(self: ModelFiles, component: str, *arguments: Any, **options: Any) -> Any:
        loaded.append(component)
        return original(self, component, *arguments, **options)

    monkeypatch.setattr(ModelFiles, 'load', load)
    options = {'tiny_vae': str(tiny_pipelines.tiny_vae(tmp_path / 'tiny'))} if tiny else {}
    generator = built(str(tiny_pipelines.sd(tmp_path / 'sd')), real, **options)
    assert loaded == []
    made = generator.generate(asked(generator, real, 2))
    assert made.shape == (2, 16, 16, 3)
    generator.generate(asked(generator, real, 2))
    assert loaded == ([''] if tiny else ['vae'])


@pytest.mark.parametrize(('fit', 'shape', 'whole'), [('squash', (16, 16), True), ('crop', (16, 16), False), ('pad', (10, 16), True)])
def test_what_was_filled_in_is_cut_off(real: RealImages, fit: str, shape: tuple[int, int], whole: bool) -> None:
    generator = built(SD, real, fit=fit)
    requests = asked(generator, real, 2)
    assert {image.shape[:2] for image in generator.generate(requests)} == {shape}
    assert generator.whole_source(requests[0]) is generator.keeps_shape is whole


def test_a_store_of_round_trips_has_one_of_each_image_in_its_size(real: RealImages, tmp_path: Path) -> None:
    recipe = {'generator': {'type': 'RoundTrip', 'model': SD}, 'data': str(real.root), 'per_source': 1, 'image': {'size': 'source'}}
    store = generate(complete(recipe), tmp_path / 's', 'cpu', quiet=True)
    assert sorted(store.index()['source'].to_pylist()) == [i for name in real.classes for i in real.ids(name)]
    found = prepare(complete(recipe)).generator.identity()
    json.dumps(found)
    assert found != prepare(complete({**recipe, 'generator': {**recipe['generator'], 'sample': True}})).generator.identity()
    composed = {**recipe, 'generator': {'type': 'Sequential', 'generators': [recipe['generator'], {'type': 'RealGuidance', 'model': SD, 'strength': 0.2}]}}
    assert prepare(complete(composed)).plan.blocks


def test_images_that_are_not_finite_are_named(real: RealImages) -> None:
    generator = built(SD, real)
    requests = asked(generator, real, 3)
    generator.generate(requests)
    original = generator._latents.decode
    generator._latents.decode = lambda latents: original(latents).index_fill(0, torch.tensor(1), float('nan'))  # type: ignore[method-assign]
    with pytest.raises(NonFiniteImages) as found:
        generator.generate(requests)
    assert found.value.bad == {1: f'request {requests[1].id} in the autoencoder'}


def test_wrong_options_are_refused(real: RealImages, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match='digits_edm'):
        built('embedded:digits_edm', real)
    with pytest.raises(RecipeError, match="fit = 'stretch'"):
        built(SD, real, fit='stretch')
    with pytest.raises(RecipeError, match="precision = 'fp8'"):
        built(SD, real, precision='fp8')
    with pytest.raises(RecipeError, match="no option 'prompts'"):
        built(SD, real, prompts={'type': 'Basic'})
    sd, tiny = str(tiny_pipelines.sd(tmp_path / 'sd')), str(tiny_pipelines.tiny_vae(tmp_path / 'tiny'))
    for model, options in ((sd, {'tiny_vae': tiny}), (str(tiny_pipelines.sana(tmp_path / 'sana')), {})):
        with pytest.raises(ModelError, match='nothing to draw from'):
            built(model, real, sample=True, **options)
