"""The two generators that run our own model folders: what they make, record and refuse."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthaug_plugins.diffusion import build_denoiser, edm_sigmas
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.generators.base import Generator, NonFiniteImages
from synthaug_plugins.models.fit import FITS, channels_first, place
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Part, Request
from synthaug_plugins.weights import save_model

DIGITS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
CONFIG: dict[str, Any] = {
    'kind': 'edm',
    'resolution': 8,
    'channels': 1,
    'classes': ['cat', 'dog', 'owl'],
    'label_conditioning': True,
    'label_dropout': 0.1,
    'sigma_data': 0.5,
    'network': {'type': 'ddpmpp', 'channels': 16, 'channel_mult': [1, 2], 'blocks_per_level': 1, 'attention_resolutions': []},
}


def make_model(folder: Path, **change: Any) -> str:
    """A model folder whose network is random but has no zero layer."""
    config = {**CONFIG, **change}
    if not config['label_conditioning']:
        del config['label_dropout']
    save_model(folder, config, weights(json.dumps(config)), {'licence': 'CC0-1.0'})
    return str(folder)


@functools.cache
def weights(config: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {k: v + 0.1 * torch.randn_like(v) for k, v in build_denoiser(json.loads(config)).state_dict().items()}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return make_model(tmp_path / 'model')


@pytest.fixture
def real_images(tmp_path: Path) -> RealImages:
    """Three colour images of 12 x 16 pixels per class, dark left and bright right."""
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / 'real' / name).mkdir(parents=True)
        for k in range(3):
            ramp = np.linspace(0, 200, 16)[None, :, None] + rng.integers(0, 50, (12, 16, 3))
            Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / 'real' / name / f'{k}.png')
    return RealImages(tmp_path / 'real')


def build(type_: str, real: RealImages | None = None, **options: Any) -> Any:
    generator: Generator = GENERATORS.build(dict(type=f'synthaug_plugins.{type_}', **options))
    generator.setup(torch.device('cpu'), real)
    return generator


def part(name: str = 'dog', label: int = 0, first: int = 0, sources: Sequence[str] = ()) -> Part:
    return Part(0, label, name, 10, 40, first, tuple(sources))


def first(generator: Generator, n: int, where: Part | None = None, seed: int = 0) -> list[Request]:
    return list(islice(generator.requests(where or part(), seed), n))


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- EDM -----------------------------------------------------------------------------------------------------------------


def test_same_request_gives_the_same_image_in_any_batch(model: str, one_thread: None) -> None:
    """The noise is equal to the bit; sums inside the network may be taken in another order, which showed in no pixel here."""
    generator = build('EDM', model=model, sampler={'num_steps': 6, 'S_churn': 2.0})
    requests = first(generator, 7)
    whole = generator.generate(requests)
    assert whole.dtype == np.uint8
    assert whole.shape == (7, 8, 8, 3)
    assert len(np.unique(whole.reshape(7, -1), axis=0)) == 7
    assert np.array_equal(generator.generate(requests), whole)
    assert np.array_equal(generator.generate(requests[::-1])[::-1], whole)
    for size in (1, 4):
        parts = np.concatenate([generator.generate(requests[i : i + size]) for i in range(0, 7, size)])
        assert np.abs(parts.astype(int) - whole).max() <= 1


@pytest.mark.parametrize('solver', ['heun', 'dpmpp_2m', 'unipc'])
def test_same_request_gives_the_same_guided_image_in_any_batch(tmp_path: Path, model: str, solver: str, one_thread: None) -> None:
    weak = make_model(tmp_path / 'weak', network={**CONFIG['network'], 'channels': 8})
    terms = [{**GUIDANCE, 'interval': [0.1, 10]}, {'type': 'Autoguidance', 'weight': 1.0, 'weak': weak}]
    generator = build('EDM', model=model, sampler={'num_steps': 6, 'solver': solver}, guidance=terms)
    requests = [*first(generator, 3), *first(generator, 2, part('cat'), seed=1)]
    whole = generator.generate(requests)
    for size in (1, 3):
        parts = np.concatenate([generator.generate(requests[i : i + size]) for i in range(0, 5, size)])
        assert np.abs(parts.astype(int) - whole).max() <= 1


def test_grey_models_give_three_equal_channels_and_rgb_models_three_own(tmp_path: Path) -> None:
    grey = build('EDM', model=make_model(tmp_path / 'grey'), sampler={'num_steps': 2})
    images = grey.generate(first(grey, 2))
    assert (images == images[..., :1]).all()
    rgb = build('EDM', model=make_model(tmp_path / 'rgb', channels=3), sampler={'num_steps': 2})
    images = rgb.generate(first(rgb, 2))
    assert not (images == images[..., :1]).all()


def test_classes_find_the_models_labels_by_name_not_by_position(model: str) -> None:
    """'dog' is label 1 of the model; in a store it may be label 0 or 2."""
    generator = build('EDM', model=model, sampler={'num_steps': 3})
    requests = [Request('0', label, name, seed=3) for label, name in [(0, 'dog'), (2, 'dog'), (1, 'cat')]]
    as_0, as_2, cat = generator.generate(requests)
    assert np.array_equal(as_0, as_2)
    assert not np.array_equal(as_0, cat)
    assert generator.model_classes() == ['cat', 'dog', 'owl']


def test_requests_are_a_function_of_seed_and_part_alone(model: str) -> None:
    generator = build('EDM', model=model)
    a, b = first(generator, 50), first(build('EDM', model=model), 50)
    assert a == b
    assert len({r.seed for r in a} | {r.seed for r in first(generator, 50, seed=1)}) == 100
    assert [r.id for r in a[:2]] == ['00000_000000', '00000_000001']


def test_unknown_class_is_refused_with_the_nearest_name(model: str) -> None:
    generator = build('EDM', model=model)
    generator.check(['owl', 'cat'])
    with pytest.raises(ModelError, match=r"'dgo'.*'dog'"):
        generator.check(['cat', 'dgo'])


def test_unconditional_model_is_refused_for_more_than_one_class(tmp_path: Path) -> None:
    anything = build('EDM', model=make_model(tmp_path / 'a', label_conditioning=False, classes=[]), sampler={'num_steps': 2})
    anything.check(['owl'])
    assert anything.generate(first(anything, 2, part('owl'))).shape == (2, 8, 8, 3)
    with pytest.raises(ModelError, match='which class'):
        anything.check(['owl', 'cat'])
    mixed = build('EDM', model=make_model(tmp_path / 'b', label_conditioning=False))
    with pytest.raises(ModelError, match='which class'):
        mixed.check(['owl'])
    owls = build('EDM', model=make_model(tmp_path / 'c', label_conditioning=False, classes=['owl']))
    owls.check(['owl'])
    with pytest.raises(ModelError, match="'cat'"):
        owls.check(['cat'])


def test_not_finite_images_name_request_and_step(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = build('EDM', model=model, sampler={'num_steps': 5})
    requests = first(generator, 3)
    good, denoiser, calls = generator.generate(requests), generator.denoiser().denoiser, []

    def poisoned(x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        calls.append(sigma)
        d = type(denoiser).forward(denoiser, x, sigma, cond)
        if len(calls) > 4:  # two steps of Heun are through
            d[1] = torch.inf
        return d

    monkeypatch.setattr(denoiser, 'forward', poisoned)
    with pytest.raises(NonFiniteImages) as caught:
        generator.generate(requests)
    assert list(caught.value.bad) == [1]
    assert requests[1].id in caught.value.bad[1]
    assert 'step 2 of 5' in caught.value.bad[1]
    assert np.array_equal(caught.value.images[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize(
    ('type_', 'options', 'step', 'solver', 'network'),
    [
        *(('RealGuidance', {'t0': 0.5}, '3 of 6', solver, network) for solver in ('heun', 'dpmpp_2m', 'unipc') for network in ('model', 'weak')),
        ('EDM', {}, '0 of 6', 'heun', 'model'),
        ('RealGuidance', {'sigma': 0.6}, '0 of 3', 'dpmpp_2m', 'weak'),
    ],
)
def test_nan_of_any_network_in_any_solver_names_request_and_step(
    tmp_path: Path, model: str, real_images: RealImages, type_: str, options: dict[str, Any], step: str, solver: str, network: str
) -> None:
    """The second call of the network goes wrong: Heun's second slope of its first step, or the next step of a multistep solver."""
    weak = make_model(tmp_path / 'weak', network={**CONFIG['network'], 'channels': 8})
    guidance = [{'type': 'Autoguidance', 'weight': 1.0, 'weak': weak}]
    generator = build(type_, real_images, model=model, sampler={'num_steps': 6, 'solver': solver}, guidance=guidance, **options)
    requests = first(generator, 3, part(sources=real_images.ids('dog')))
    good, guided, calls = generator.generate(requests), generator.guided(requests), []

    def poison(module: Any, arguments: Any, D: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return D if len(calls) < 2 else D.index_fill(0, torch.tensor([1]), torch.nan)

    {'model': guided.denoiser, 'weak': guided.terms[0].weak}[network].denoiser.register_forward_hook(poison)
    with pytest.raises(NonFiniteImages) as caught:
        generator.generate(requests)
    number, _, total = step.split()
    assert caught.value.bad == {1: f'request {requests[1].id} from step {int(number) + (solver != "heun")} of {total} on'}
    assert np.array_equal(caught.value.images[[0, 2]], good[[0, 2]])


def test_weights_load_at_the_first_image_and_only_then(model: str) -> None:
    weights = Path(model) / 'model.safetensors'
    generator = build('EDM', model=model, sampler={'num_steps': 2})
    content = weights.read_bytes()
    generator.check(['cat'])  # reads the header
    weights.write_bytes(b'not safetensors')
    generator.identity()
    requests = first(generator, 1)
    with pytest.raises(ModelError, match='safetensors'):
        generator.generate(requests)
    weights.write_bytes(content)
    generator.generate(requests)
    weights.unlink()
    generator.generate(requests)


def test_steps_that_a_discrete_model_cannot_take_are_refused_before_any_weights_load(tmp_path: Path) -> None:
    few = make_model(tmp_path / 'few', kind='iddpm', M=20)
    with pytest.raises(RecipeError, match='twice'):
        build('EDM', model=few, sampler={'solver': 'dpmpp_2m'})


def test_damaged_card_is_refused_by_its_name(model: str) -> None:
    (Path(model) / 'card.json').write_text('{')
    with pytest.raises(ModelError, match=r'card\.json'):
        build('EDM', model=model).identity()


def test_weights_of_another_network_are_refused(model: str) -> None:
    config = json.loads((Path(model) / 'config.json').read_text())
    config['network']['channels'] = 32
    (Path(model) / 'config.json').write_text(json.dumps(config))
    generator = build('EDM', model=model)
    with pytest.raises(ModelError, match='do not fit'):
        generator.check(['cat'])


SAMPLER_CHANGES = {'num_steps': 9, 'solver': 'euler', 'sigma_min': 0.01, 'sigma_max': 20.0, 'rho': 5.0, 'S_churn': 1.0, 'S_min': 0.1, 'S_max': 10.0}
SAMPLER_CHANGES |= {'S_noise': 1.01, 'alpha': 0.5, 'discretization': 've', 'schedule': 'vp', 'scaling': 'vp', 'epsilon_s': 0.01, 'preset': 'vp'}
GUIDANCE = {'type': 'synthaug_plugins.ClassifierFree', 'weight': 1.0}


def test_identity_holds_all_that_decides_the_pixels(model: str) -> None:
    identity = json.loads(json.dumps(build('EDM', model=model).identity(), allow_nan=False))
    assert identity['sampler']['sigma_min'] == 0.002
    assert identity['sampler']['sigma_max'] == 80
    assert identity['model']['licence'] == 'CC0-1.0'
    changes: list[dict[str, Any]] = [
        *({'sampler': {key: value}} for key, value in SAMPLER_CHANGES.items()),
        {'guidance': [GUIDANCE]},
        {'guidance': [{**GUIDANCE, 'weight': 2.0}]},
        {'guidance': [{**GUIDANCE, 'interval': [0.1, 5]}]},
        {'precision': 'bf16'},
    ]
    seen = [identity, *(build('EDM', model=model, **c).identity() for c in changes)]
    config = json.loads((Path(model) / 'config.json').read_text())
    (Path(model) / 'config.json').write_text(json.dumps({**config, 'classes': ['dog', 'cat', 'owl']}))
    seen.append(build('EDM', model=model).identity())
    assert len({json.dumps(i, sort_keys=True) for i in seen}) == len(changes) + 2


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'precision': 'fp8'}, 'precision'),
        ({'sampler': {'solver': 'rk4'}}, 'solver'),
        ({'sampler': {'num_steps': 0}}, 'num_steps'),
        ({'sampler': {'sigma_min': 90.0}}, 'sigma_min'),
        ({'sampler': {'step': 5}}, "'step'"),
        ({'sampler': {'preset': 'vq'}}, "'vp'"),
        ({'step': 5}, "'step'"),
        ({'guidance': [{'type': 'synthaug_plugins.ClassifierFree'}]}, 'weight'),
        ({'guidance': [{**GUIDANCE, 'interval': [5, 1]}]}, 'interval'),
        ({'guidance': [{**GUIDANCE, 'weight': float('nan')}]}, 'weight'),
        ({'guidance': GUIDANCE}, 'not a list'),
        ({'guidance': [{'type': 'ClassifierFre', 'weight': 1.0}]}, 'ClassifierFree'),
    ],
)
def test_wrong_option_is_refused_before_any_weights_load(model: str, options: dict[str, Any], named: str) -> None:
    (Path(model) / 'model.safetensors').write_bytes(b'')
    with pytest.raises(RecipeError, match=named):
        build('EDM', model=model, **options)


def test_network_images_are_counted_guidance_and_weak_model_included(tmp_path: Path, model: str) -> None:
    weak = make_model(tmp_path / 'weak', network={**CONFIG['network'], 'channels': 8})
    plain = build('EDM', model=model, sampler={'num_steps': 5})
    plain.generate(first(plain, 3))
    assert plain.network_images == 3 * (2 * 5 - 1)
    terms = [{**GUIDANCE, 'interval': [0.1, 10]}, {'type': 'synthaug_plugins.Autoguidance', 'weight': 0.5, 'weak': weak, 'interval': [0, 0.1]}]
    guided = build('EDM', model=model, sampler={'num_steps': 5}, guidance=terms)
    guided.check(['cat'])
    guided.generate(first(guided, 3))
    calls = [*edm_sigmas(5).tolist()[:-1], *edm_sigmas(5).tolist()[1:-1]]
    extra = sum(0.1 <= s <= 10 for s in calls) + sum(s <= 0.1 for s in calls)
    assert 0 < extra < len(calls)
    assert guided.network_images == 3 * (len(calls) + extra)


def test_guidance_that_does_not_fit_the_model_is_refused_before_its_weights_load(tmp_path: Path, model: str, real_images: RealImages) -> None:
    always = make_model(tmp_path / 'always', label_dropout=0.0)
    with pytest.raises(ModelError, match='label dropout'):
        build('EDM', model=always, guidance=[GUIDANCE]).check(['cat'])
    with pytest.raises(ModelError, match='without labels'):
        build('RealGuidance', real_images, model=model, sigma=0.3, use_labels=False, guidance=[GUIDANCE]).check(['cat'])
    small = make_model(tmp_path / 'small', resolution=4)
    with pytest.raises(ModelError, match='size'):
        build('EDM', model=model, guidance=[{'type': 'Autoguidance', 'weight': 1.0, 'weak': small}]).check(['cat'])
    by_labels = [{'type': 'Autoguidance', 'weight': 1.0, 'weak': always}]
    build('RealGuidance', real_images, model=model, sigma=0.3, guidance=by_labels).check(['cat'])
    with pytest.raises(ModelError, match='without label dropout'):
        build('RealGuidance', real_images, model=model, sigma=0.3, use_labels=False, guidance=by_labels).check(['cat'])
    narrow = {'type': 'Autoguidance', 'weight': 1.0, 'weak': make_model(tmp_path / 'narrow', kind='ve')}
    build('EDM', model=model, guidance=[{**narrow, 'interval': [0.02, 100]}]).check(['cat'])
    for interval in ([0, 100], [0.02, 101]):
        with pytest.raises(ModelError, match=r'interval within \(0.02, 100.0\)'):
            build('EDM', model=model, guidance=[{**narrow, 'interval': interval}]).check(['cat'])
    with pytest.raises(ModelError, match='nowhere'):
        build('EDM', model=model, guidance=[{'type': 'Autoguidance', 'weight': 1.0, 'weak': str(tmp_path / 'nowhere')}])


def test_classifier_free_guidance_with_weight_zero_changes_no_pixel(model: str) -> None:
    requests = first(build('EDM', model=model), 4)
    images = {w: build('EDM', model=model, sampler={'num_steps': 4}, guidance=[{**GUIDANCE, 'weight': w}]).generate(requests) for w in (0.0, 3.0)}
    unguided = build('EDM', model=model, sampler={'num_steps': 4}).generate(requests)
    assert np.array_equal(images[0.0], unguided)
    assert not np.array_equal(images[3.0], unguided)


# --- RealGuidance --------------------------------------------------------------------------------------------------------


def test_strength_decides_how_far_an_image_goes(model: str, real_images: RealImages) -> None:
    generator = build('RealGuidance', real_images, model=model, sigma=[0.01, 0.5, 20.0])
    requests = first(generator, 9, part(sources=real_images.ids('dog')))
    distance = []
    for k in range(3):
        batch = requests[3 * k : 3 * k + 3]
        assert len({generator.bucket(r) for r in batch}) == 1
        sources = np.stack([channels_first(place(real_images.load(r.source), 8, 8, 'crop').pixels, 1) for r in batch]).transpose(0, 2, 3, 1)
        distance.append(np.abs(generator.generate(batch).astype(float) - sources).mean())
    assert distance[0] < 2
    assert distance[0] < distance[1] < distance[2]
    assert len({generator.bucket(r) for r in requests}) == 3


def test_a_class_is_covered_evenly_whatever_the_block_size(model: str, real_images: RealImages) -> None:
    generator = build('RealGuidance', real_images, model=model, sigma=[0.3, 0.6])
    ids = real_images.ids('dog')
    one = [(r.source, r.params['sigma']) for r in first(generator, 12, part(sources=ids))]
    assert one[:6] == [(i, s) for s in (0.3, 0.6) for i in ids]
    assert all(one.count(pair) == 2 for pair in one)
    two = [(r.source, r.params['sigma']) for k in (0, 4, 8) for r in first(generator, 4, part(first=k, sources=ids))]
    assert two == one
    seeds = {r.seed for r in first(generator, 12, part(sources=ids))}
    assert len(seeds) == 12


def test_t0_is_the_share_of_steps_that_run(model: str, real_images: RealImages) -> None:
    generator = build('RealGuidance', real_images, model=model, t0=[0.01, 0.5, 1], sampler={'num_steps': 8})
    requests = first(generator, 9, part(sources=real_images.ids('dog')))
    grid = edm_sigmas(8).tolist()
    assert [(r.params['t0'], r.params['sigma']) for r in requests[::3]] == [(0.01, grid[7]), (0.5, grid[4]), (1, grid[0])]
    denoiser, calls = generator.denoiser().denoiser, []
    denoiser.register_forward_pre_hook(lambda module, arguments: calls.append(float(arguments[1])))
    generator.generate(requests[3:6])
    assert calls[0] == pytest.approx(grid[4])
    assert len(calls) == 2 * 4 - 1


def test_sigma_begins_exactly_there_with_the_steps_of_the_full_grid(model: str, real_images: RealImages) -> None:
    generator = build('RealGuidance', real_images, model=model, sigma=0.6)
    requests = first(generator, 1, part(sources=real_images.ids('dog')))
    assert requests[0].params == {'sigma': 0.6}
    denoiser, calls = generator.denoiser().denoiser, []
    denoiser.register_forward_pre_hook(lambda module, arguments: calls.append(float(arguments[1])))
    generator.generate(requests)
    below = sum(0 < s < 0.6 for s in edm_sigmas(18).tolist())
    assert calls[0] == pytest.approx(0.6, abs=1e-12)
    assert len(calls) == 2 * (below + 1) - 1
    full = build('RealGuidance', real_images, model=model, sigma=80.0)
    assert full.strengths[0].sampler['num_steps'] == 18


@pytest.mark.parametrize('options', [{'sigma': 0.6}, {'t0': 0.5}], ids=str)
def test_recorded_sigma_is_the_one_at_which_a_discrete_model_begins(tmp_path: Path, real_images: RealImages, options: dict[str, float]) -> None:
    generator = build('RealGuidance', real_images, model=make_model(tmp_path / 'few', kind='iddpm', M=50), sampler={'num_steps': 8}, **options)
    requests = first(generator, 1, part(sources=real_images.ids('dog')))
    calls: list[float] = []
    generator.denoiser().denoiser.register_forward_pre_hook(lambda module, arguments: calls.append(float(arguments[1])))
    generator.generate(requests)
    assert requests[0].params['sigma'] == calls[0]


def test_models_of_labels_take_strength_and_shots_too_and_small_sources_are_said(tmp_path: Path, model: str, real_images: RealImages) -> None:
    by_strength = build('RealGuidance', model=model, strength=0.5, sampler={'num_steps': 9})
    assert by_strength.strengths[0].params == {'sigma': edm_sigmas(9).tolist()[5], 'strength': 0.5}, 'int(4.5) steps run'
    matched = build('RealGuidance', model=model, shots=1, strength_map='snr_matched')
    assert matched.strengths[0].params['sigma'] == pytest.approx(1.0, abs=0.01), 'as much noise as image'
    said: list[str] = []
    large = build('RealGuidance', real_images, model=make_model(tmp_path / 'large', resolution=16), shots='auto')
    large.prepare(['cat', 'dog'], said.append)
    assert large.strengths[0].params['t0'] == 0.35
    assert len(said) == 3 and "'auto'" in said[1] and '6 of 6 real images are smaller than the 16 x 16' in said[2]
    large.prepare(['cat', 'dog'], said.append)
    assert len(said) == 3


def test_variants_of_a_request_do_not_depend_on_the_batch(model: str, real_images: RealImages, one_thread: None) -> None:
    generator = build('RealGuidance', real_images, model=model, sigma=0.6, sampler={'S_churn': 3.0})
    requests = first(generator, 7, part(sources=real_images.ids('dog')))
    whole = generator.generate(requests)
    for k in range(7):
        assert np.abs(generator.generate(requests[k : k + 1])[0].astype(int) - whole[k]).max() <= 1


def test_sources_are_cropped_squashed_or_padded_to_the_models_size() -> None:
    """A wide image: black, but for white thirds at its ends, which a centre crop never sees."""
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, :8] = wide[:, 16:] = 255
    on = {fit: place(wide, 8, 8, fit) for fit in FITS}
    assert all(one.pixels.shape == (8, 8, 3) for one in on.values())
    assert on['crop'].pixels.max() == 0
    assert on['squash'].pixels[:, 0].min() > 200
    assert on['pad'].frame.box == (2, 0, 3, 8), 'a third of the height, in the middle'
    assert (on['pad'].pixels == on['pad'].pixels[:1]).all(), 'mirrored up and down'


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('size', [(1, 1), (1, 5), (8, 1), (3, 3), (8, 8), (1, 5000), (5000, 2), (7, 8), (640, 481)], ids=str)
def test_an_image_of_any_size_fits_and_keeps_its_shape_where_it_is_padded(fit: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    one = place(image, 16, 24, fit)
    assert one.pixels.shape == (16, 24, 3)
    height, width = one.frame.cut(one.pixels).shape[:2]
    if fit != 'pad':
        assert (height, width) == (16, 24)
        return
    scale = min(16 / size[0], 24 / size[1])
    assert (height, width) == tuple(max(1, round(side * scale)) for side in size)
    assert height == 16 or width == 24, 'as large as the canvas allows'
    shown = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    assert np.array_equal(one.frame.cut(one.pixels), shown), 'the part that is cut out is the image, and nothing that was filled in'


def test_padded_variants_have_the_shape_of_their_source_and_share_a_batch(model: str, tmp_path: Path) -> None:
    (tmp_path / 'r' / 'dog').mkdir(parents=True)
    sizes = {'a': (16, 12), 'b': (1, 1), 'c': (3, 30), 'd': (8, 8)}  # width, height
    for name, size in sizes.items():
        Image.new('RGB', size, (90, 120, 200)).save(tmp_path / 'r' / 'dog' / f'{name}.png')
    real = RealImages(tmp_path / 'r')
    generator = build('RealGuidance', real, model=model, sigma=0.01, fit='pad')
    requests = first(generator, 4, part(sources=real.ids('dog')))
    made = generator.generate(requests)
    assert [image.shape for image in made] == [(6, 8, 3), (8, 8, 3), (8, 1, 3), (8, 8, 3)]
    assert all(generator.whole_source(r) for r in requests)
    assert max(np.abs(image.astype(int) - round(0.299 * 90 + 0.587 * 120 + 0.114 * 200)).max() for image in made) < 12, 'the source, hardly changed'


def test_padded_images_that_are_not_finite_are_named_in_their_own_shape(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'r' / 'dog').mkdir(parents=True)
    for name, size in (('a', (16, 12)), ('b', (8, 8))):
        Image.new('RGB', size).save(tmp_path / 'r' / 'dog' / f'{name}.png')
    real = RealImages(tmp_path / 'r')
    generator = build('RealGuidance', real, model=model, sigma=0.3, fit='pad')
    decode = generator.model.decode
    monkeypatch.setattr(generator.model, 'decode', lambda x: torch.cat([decode(x[:1]) * float('nan'), decode(x[1:])]))
    with pytest.raises(NonFiniteImages) as found:
        generator.generate(first(generator, 2, part(sources=real.ids('dog'))))
    assert list(found.value.bad) == [0]
    assert [image.shape for image in found.value.images] == [(6, 8, 3), (8, 8, 3)]


def test_source_of_the_models_size_passes_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert all(np.array_equal(place(pixels, 8, 8, fit).pixels, pixels) for fit in FITS)


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({}, 'exactly one'),
        ({'sigma': 0.3, 't0': 0.5}, 'exactly one'),
        ({'sigma': 0.0}, 'sigma = 0'),
        ({'sigma': 100}, 'sigma = 100'),
        ({'sigma': []}, 'empty'),
        ({'sigma': [0.3, 0.3]}, 'repeats'),
        ({'sigma': '0.3'}, 'no number'),
        ({'t0': 0}, 't0 = 0'),
        ({'t0': [0.5, 1.5]}, 't0 = 1.5'),
        ({'t0': True}, 'no number'),
        ({'sigma': 0.3, 'fit': 'crp'}, "'crop'"),
        ({'sigma': 0.3, 'sampler': {'first_step': 2}}, 'first_step'),
        ({'sigma': 0.3, 'sampler': {'S_churn': 5, 'S_min': 1, 'S_max': 50}}, 'S_min = 1'),
    ],
)
def test_wrong_strength_or_fit_is_refused(model: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        build('RealGuidance', model=model, **options)


def test_class_unknown_to_the_model_works_without_labels_only(model: str, tmp_path: Path, real_images: RealImages) -> None:
    with pytest.raises(ModelError, match='use_labels=False'):
        build('RealGuidance', model=model, sigma=0.3).check(['yak'])
    generator = build('RealGuidance', real_images, model=model, sigma=0.3, use_labels=False)
    generator.check(['yak'])
    assert generator.model_classes() is None
    assert generator.generate(first(generator, 2, part('yak', sources=real_images.ids('dog')))).shape == (2, 8, 8, 3)
    with pytest.raises(ModelError, match='label dropout'):
        build('RealGuidance', model=make_model(tmp_path / 'a', label_dropout=0.0), sigma=0.3, use_labels=False)
    with pytest.raises(ModelError, match='use_labels=False'):
        build('RealGuidance', model=make_model(tmp_path / 'b', label_conditioning=False), sigma=0.3)


def test_class_without_real_images_is_refused(model: str) -> None:
    generator = build('RealGuidance', model=model, sigma=0.3)
    with pytest.raises(DataError, match="'dog'"):
        next(generator.requests(part(), 0))


# --- the embedded model and its recipes ----------------------------------------------------------------------------------


def test_embedded_digits_are_the_digits_they_are_asked_for() -> None:
    """Judged by a classifier of real digits by other writers than the model saw."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    digits = load_digits()
    judge = SVC(gamma=0.001).fit(digits.data[1200:], digits.target[1200:])
    generator = build('EDM', model='embedded:digits_edm')
    requests = [r for label, name in enumerate(DIGITS) for r in first(generator, 10, Part(label, label, name, 10, 20))]
    generator.check(DIGITS)
    images = generator.generate(requests)
    said = judge.predict(images[..., 0].reshape(len(images), -1) / 255 * 16)
    assert (said == [r.label for r in requests]).mean() > 0.9
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@pytest.mark.parametrize('name', ['edm_digits', 'digits_real_guidance'])
def test_shipped_recipe_builds_a_generator_that_knows_the_digits(name: str) -> None:
    from mmengine.config import Config

    path = Path(__file__).parents[1] / 'registry_configs' / 'generate' / f'{name}.py'
    recipe = Config.fromfile(path).to_dict()
    generator = GENERATORS.build(dict(recipe['generator']))
    generator.check(sorted(DIGITS))
    assert set(recipe) <= {'generator', 'data', 'classes', 'per_class', 'block_size', 'batch_size', 'tries_per_image', 'seed', 'inspectors', 'image'}
    text = path.read_text()
    assert all(text.split(f'\n{key} = ')[0].splitlines()[-1].startswith('#') for key in recipe)
