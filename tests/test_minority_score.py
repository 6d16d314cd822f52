"""The minority score: the published numbers, its noise, what it is told and measured by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import digits
from synthaug_plugins.curation.minority_score import MinorityScore
from synthaug_plugins.diffusion import GaussianMixture, SampleNoise
from synthaug_plugins.diffusion.minority import minority_scores, timestep_sigma, timestep_sigmas
from synthaug_plugins.engine.learn_minority import save_stand_in
from synthaug_plugins.engine.learn_minority_recipe import load_minority_recipe, prepare_minority
from synthaug_plugins.errors import ModelError, RecipeError, SynthAugError
from synthaug_plugins.learning.data import square
from synthaug_plugins.models.distances import MSE
from synthaug_plugins.models.fit import channels_first, place
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.registry import INSPECTORS
from synthaug_plugins.store.plan import Request, purpose_seed


@pytest.fixture(scope='module')
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / 'golden' / 'minority.npz'))


def test_the_published_score_comes_out(golden: dict[str, np.ndarray]) -> None:
    z = {name: torch.from_numpy(values) for name, values in golden.items() if name.startswith(('ms_', 'mix_'))}
    denoiser = GaussianMixture(z['mix_weights'], z['mix_means'], z['mix_stds'])
    found = minority_scores(denoiser, z['ms_images'], timestep_sigma(60, 100, 'linear'), lambda i: z['ms_noise'][i], MSE(), 5)
    torch.testing.assert_close(found.T, z['ms_score_mse_per_draw'], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.mean(1), z['ms_score_mse'], rtol=0, atol=1e-9)


def test_timesteps_have_the_published_noise_levels(golden: dict[str, np.ndarray]) -> None:
    for number, of in enumerate((1000, 250, 100, 50)):
        sigmas = [timestep_sigma(i, of, 'linear') for i in range(of)]
        np.testing.assert_allclose(sigmas, np.sqrt(1 / golden[f'abar{number}'] - 1), rtol=1e-9)
    assert timestep_sigma(60, 100, 'linear') == pytest.approx(6.37, abs=0.005)
    assert timestep_sigma(90, 100, 'cosine') == pytest.approx(7.00, abs=0.005)
    assert timestep_sigma(60, 100, 'cosine') == pytest.approx(1.42, abs=0.005)
    assert bool((timestep_sigmas('cosine').diff() > 0).all())
    for index, of in ((100, 100), (-1, 100), (0, 1), (0, 1001), (0.5, 100)):
        with pytest.raises(RecipeError, match='timestep = '):
            timestep_sigma(index, of, 'linear')  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="schedule = 'vp'"):
        timestep_sigmas('vp')


def test_in_latents_the_distance_sees_images_and_no_loss_of_the_decoder() -> None:
    seen = []

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append((a, b))
        return (a - b).square().flatten(1).mean(1)

    x0 = torch.tensor([0.2, 0.9]).reshape(2, 1, 1, 1)
    found = minority_scores(lambda x, sigma, cond: x0 + 0.1, x0, 2.0, lambda i: torch.ones_like(x0), distance, 1, decode=lambda x: 2 * x)  # type: ignore[arg-type]
    assert found.flatten().tolist() == pytest.approx([0.04, 0.0])
    assert [t.flatten().tolist() for t in seen[0]] == [pytest.approx([0.4, 1.0]), pytest.approx([0.6, 1.0])]
    assert found.dtype == torch.float32


@pytest.fixture
def requests_and_images() -> tuple[list[Request], list[np.ndarray]]:
    data = digits()
    names = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
    images = [np.repeat((x[..., None] * 255 / 16).astype(np.uint8), 3, 2) for x in data.images[:6]]
    return [Request(f'd/{i}', int(t), names[t], seed=0) for i, t in enumerate(data.target[:6])], images


def ready(**options: Any) -> MinorityScore:
    inspector = INSPECTORS.build({'type': 'synthaug_plugins.MinorityScore', 'model': 'embedded:digits_edm', 'distance': {'type': 'MSE'}, 'draws': 3, **options})
    inspector.check(['zero', 'five'], None)
    inspector.setup(torch.device('cpu'), ['zero', 'five'], None)
    return inspector


def test_scores_follow_from_seed_id_and_image_alone(requests_and_images: Any) -> None:
    requests, images = requests_and_images
    verdicts = ready().inspect(requests, images)
    assert verdicts.reasons == [None] * 6
    score, error = verdicts.scores['minority_score'], verdicts.scores['minority_score_se']
    inspector = ready()
    again = inspector.inspect(requests, images)
    assert (again.scores['minority_score'] == score).all()
    assert (again.scores['minority_score_se'] == error).all()
    parts = [inspector.inspect([r], [image]).scores['minority_score'][0] for r, image in zip(requests, images, strict=True)]
    np.testing.assert_allclose(parts, score, rtol=1e-5)
    draws = inspector.draw(requests, images).double().numpy()
    np.testing.assert_allclose(error, draws.std(1, ddof=1) / np.sqrt(3))
    assert np.isnan(ready(draws=1).inspect(requests, images).scores['minority_score_se']).all()
    for other in (ready(seed=1).inspect(requests, images), inspector.inspect([replace(r, id=f'{r.id}x') for r in requests], images)):
        assert (other.scores['minority_score'] != score).all()
        np.testing.assert_allclose(other.scores['minority_score'], score, atol=0.2)
    assert ready().identity() == inspector.identity() != ready(sigma=5.0).identity()


def test_the_model_is_told_the_class_where_it_takes_labels(requests_and_images: Any) -> None:
    requests, images = requests_and_images
    inspector = ready()
    model = inspector.model
    x0 = torch.from_numpy(np.stack([image[None, ..., 0] for image in images])).float() / 127.5 - 1
    for use_labels in (None, False):
        inspector = ready(use_labels=use_labels)
        found = inspector.draw(requests, images)
        noise = SampleNoise([purpose_seed(0, f'minority {r.id}') for r in requests], (1, 8, 8))
        cond = None if use_labels is False else torch.tensor([r.label for r in requests])
        wanted = minority_scores(model.load(torch.device('cpu'), torch.float32), x0, 6.5, noise.step, MSE(), 3, cond)
        torch.testing.assert_close(found, wanted)
    assert inspector.identity()['labels'] is False


def test_a_pipeline_is_scored_in_latents_and_measured_in_images(requests_and_images: Any) -> None:
    requests, images = (part[:2] for part in requests_and_images)
    seen = []
    inspector = ready(model='embedded:digits_sd', draws=1)
    inspector.distance = type('Watch', (MSE,), {'seen_from': lambda self, a: seen.append(a.shape) or MSE.seen_from(self, a)})()
    assert bool((inspector.draw(requests, images) > 0).all())
    assert seen == [(2, 3, 16, 16)]


@pytest.mark.parametrize('size', [(8, 8), (7, 13), (31, 8), (5, 5)])
@pytest.mark.parametrize('channels', [1, 3])
def test_images_of_any_size_are_cropped_as_training_crops_them(size: tuple[int, int], channels: int) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert (channels_first(place(image, 8, 8, 'crop').pixels, channels) == square(image, 8, channels)[0]).all()


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        ({'sigma': 0.0}, RecipeError, r'sigma = 0\.0'),
        ({'draws': 0}, RecipeError, 'draws = 0'),
        ({'precision': 'fp8'}, RecipeError, "precision = 'fp8'"),
        ({'timestep': (60, 100)}, RecipeError, 'do not say one noise level'),
        ({'timestep': (60, 100), 'schedule': 'linear', 'sigma': 3.0}, RecipeError, 'do not say one noise level'),
        ({'timestep': 60, 'schedule': 'linear'}, RecipeError, 'is no pair'),
        ({'sigma': 1e9, 'model': 'embedded:digits_sd'}, RecipeError, 'knows noise levels from'),
        ({'use_labels': True, 'model': 'embedded:digits_sd'}, RecipeError, 'takes no class labels'),
        ({'model': 'embedded:digit'}, ModelError, 'no embedded model'),
        ({'distance': {'type': 'MES'}}, RecipeError, "'MES' is unknown. Did you mean 'MSE'"),
        ({'distance': {'type': 'LPIPS'}}, RecipeError, r'8 x 8 pixels: its networks need 32 at least\. .*MSE'),
    ],
)
def test_what_cannot_be_scored_is_refused(options: dict[str, Any], error: type[SynthAugError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        ready(**options)
    assert caught.value.cure


def test_a_class_that_the_model_does_not_know_is_refused() -> None:
    inspector = INSPECTORS.build({'type': 'MinorityScore', 'model': 'embedded:digits_edm', 'distance': {'type': 'MSE'}})
    with pytest.raises(ModelError, match=r"does not know the class 'sven'\. Did you mean 'seven'.*use_labels=False"):
        inspector.check(['zero', 'sven'], None)


def test_the_published_timestep_gives_the_noise_level() -> None:
    assert ready(timestep=(60, 100), schedule='linear').sigma == timestep_sigma(60, 100, 'linear')


def test_levels_of_a_classifier_become_a_column(requests_and_images: Any, tmp_path: Path) -> None:
    requests, images = requests_and_images
    for k, (request, image) in enumerate(zip(requests * 2, images * 2, strict=True)):
        (tmp_path / 'data' / request.class_name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / 'data' / request.class_name / f'{k}.png')
    options = {'data': str(tmp_path / 'data'), 'levels.count': 2, 'levels.rank': 'class', 'score.sigma': 6.5, 'score.draws': 3}
    save_stand_in(prepare_minority(load_minority_recipe(find_recipe('minority_digits', 'learn'), options)), tmp_path / 'model')
    inspector = ready(levels=str(tmp_path / 'model'), use_labels=None)
    scores = inspector.inspect(requests, images).scores
    assert scores['minority_level'].tolist() == [1.0] * 6, "a stand-in's only limit is 0"
    assert inspector.identity()['levels']['count'] == 2
    for own in ({'sigma': 3.0}, {'draws': 4}, {'use_labels': False}):
        with pytest.raises(ModelError, match=r'levels = .*: its scores had .*, these have .*Score in the same way'):
            ready(levels=str(tmp_path / 'model'), **own)
