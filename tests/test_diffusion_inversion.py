"""Diffusion Inversion's generator: what is told for each image, guidance around a mean, partners and mixed labels, all kinds of models; and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from learned_embeddings import all_ids, folder_of_images, made_up
from PIL import Image

from synthaug_plugins.diffusion import SampleNoise
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, load_recipe, prepare
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.generators.denoiser_generator import to_uint8
from synthaug_plugins.generators.diffusion_inversion import DiffusionInversion
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.embedding_shards import create_embeddings, publish_shard
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.files import ModelFiles
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.recipes import find_recipe, shipped_recipes
from synthaug_plugins.registry import GENERATORS, build_strict
from synthaug_plugins.store.plan import Part, Request
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

EDM, SD = 'embedded:digits_edm', 'embedded:digits_sd'
COUNTS = {'cat': 4, 'dog': 3, 'owl': 2}


@pytest.fixture(scope='module')
def real(tmp_path_factory: pytest.TempPathFactory) -> RealImages:
    return folder_of_images(tmp_path_factory.mktemp('real'), COUNTS)


@pytest.fixture(scope='module')
def edm(real: RealImages, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Embeddings for the EDM network, and beside them far larger ones of images that the recipe has not."""
    folder = made_up(tmp_path_factory.mktemp('edm') / 'embeddings', EDM, real)
    shape = Embeddings(folder).shape
    publish_shard(Path(folder), 1, ['cat/other.png', 'yak/0.png'], ['0' * 64] * 2, torch.full((2, shape.tokens, shape.width), 1000.0))
    return folder


@pytest.fixture(scope='module')
def sd(real: RealImages, tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_up(tmp_path_factory.mktemp('sd') / 'embeddings', SD, real)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*arguments: Any, **options: Any) -> None:
        raise AssertionError('weights were loaded')

    monkeypatch.setattr(ModelFiles, 'load', loaded)
    monkeypatch.setattr(DenoiserModel, 'load', loaded)


def built(model: str, embeddings: str, real: RealImages | None, **options: Any) -> DiffusionInversion:
    """A generator as the engine makes it ready."""
    generator: DiffusionInversion = build_strict({'type': 'DiffusionInversion', 'model': model, 'embeddings': embeddings, **options}, GENERATORS)
    generator.real_images = real
    classes = list(COUNTS if real is None else real.classes)
    generator.check(classes)
    generator.prepare(classes, lambda sentence: None)
    generator.setup(torch.device('cpu'), real)
    return generator


def asked(generator: DiffusionInversion, n: int, name: str = 'cat', block: int = 0, first: int = 0, recipe_seed: int = 0) -> list[Request]:
    assert generator.real_images is not None
    label = generator.real_images.classes.index(name)
    return list(islice(generator.requests(Part(block, label, name, n, n, first, generator.real_images.ids(name)), recipe_seed), n))


def recipe(model: str, embeddings: str, real: RealImages, generator: dict[str, Any] = {}, **keys: Any) -> dict[str, Any]:  # noqa: B006
    options = {'type': 'DiffusionInversion', 'model': model, 'embeddings': embeddings, 'sampler': {'num_steps': 2}, **generator}
    return complete({'generator': options, 'data': str(real.root), 'inspectors': [], 'per_source': 2, 'block_size': 10, 'batch_size': 4, **keys})


def rows_of(embeddings: str, ids: list[str]) -> torch.Tensor:
    """(n, d) float64, of networks that are told one vector."""
    found = Embeddings(embeddings)
    return found.read(found.find(ids))[0][:, 0].double()


# --- what a request is told -----------------------------------------------------------------------------------------------


def test_requests_go_through_a_class_evenly_whatever_the_blocks_and_follow_from_the_seed(edm: str, real: RealImages) -> None:
    generator = built(EDM, edm, real)
    requests = [r for block, first in ((0, 0), (1, 3), (2, 5)) for r in asked(generator, (3, 2, 7)[block], block=block, first=first)]
    assert Counter(r.source for r in requests) == dict.fromkeys(real.ids('cat'), 3)
    assert asked(built(EDM, edm, real), 20) == asked(generator, 20)
    assert [r.params for r in asked(generator, 20, recipe_seed=1)] != [r.params for r in asked(generator, 20)]
    assert {r.prompt for r in requests} == {None}
    json.dumps([dict(r.params) for r in requests])


def test_each_request_draws_from_every_pool_equally_often_and_independently(edm: str, real: RealImages) -> None:
    generator = built(EDM, edm, real, lambdas=[0, 0.1], alphas=[0, 0.1, 0.5], guidance_scales=[1, 2])
    requests = asked(generator, 2400)
    counts = Counter((r.params['lambda'], r.params['alpha'], r.params['guidance_scale']) for r in requests)
    assert len(counts) == 12
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 31.3, 'chi-square with eleven degrees of freedom, p = 0.001'
    assert all(('partner' in r.params) is (r.params['alpha'] > 0) for r in requests)


def test_a_partner_is_any_other_image_of_the_class_and_never_the_image_itself(edm: str, real: RealImages) -> None:
    requests = asked(built(EDM, edm, real), 2400)
    pairs = Counter((r.source, r.params['partner']) for r in requests)
    assert set(pairs) == {(a, b) for a in real.ids('cat') for b in real.ids('cat') if a != b}
    assert sum((n - 200) ** 2 / 200 for n in pairs.values()) < 31.3
    (one,) = {r.params['partner'] for r in asked(built(EDM, edm, real), 50, 'owl')[::2]}
    assert one == 'owl/1.png', 'of two images each has the other'


def test_partners_of_all_classes_are_any_other_image_of_the_recipe(edm: str, real: RealImages) -> None:
    requests = asked(built(EDM, edm, real, partners='all'), 2400, 'dog')
    pairs = Counter((r.source, r.params['partner']) for r in requests)
    assert set(pairs) == {(a, b) for a in real.ids('dog') for b in all_ids(real) if a != b}, 'none of the images that others learned'
    assert sum((n - 100) ** 2 / 100 for n in pairs.values()) < 49.8, 'chi-square with 23 degrees of freedom, p = 0.001'


def test_an_embedding_is_moved_towards_its_partner_and_by_noise_of_unit_variance(edm: str, real: RealImages) -> None:
    generator = built(EDM, edm, real, lambdas=[0, 0.25], alphas=[0, 0.5, 1])
    requests = asked(generator, 400)
    told, pooled = generator.told.perturbed(requests, torch.device('cpu'))
    assert pooled is None
    own = rows_of(edm, [str(r.source) for r in requests])
    partners = rows_of(edm, [r.params.get('partner', r.source) for r in requests])
    alpha, lam = (torch.tensor([r.params[name] for r in requests])[:, None] for name in ('alpha', 'lambda'))
    left = told[:, 0].double() - (own + alpha * (partners - own))
    assert left[lam[:, 0] == 0].abs().max() < 1e-6
    noise = left[lam[:, 0] > 0] / 0.25
    assert len(noise) > 150
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03
    assert torch.corrcoef(noise)[~torch.eye(len(noise), dtype=torch.bool)].abs().max() < 0.9, 'every request has noise of its own'


def test_noise_depends_on_the_seed_alone_and_is_not_that_of_the_image(edm: str, real: RealImages) -> None:
    generator = built(EDM, edm, real, lambdas=1.0, alphas=0)
    requests = asked(generator, 8)
    together, _ = generator.told.perturbed(requests, torch.device('cpu'))
    for k, request in enumerate(requests):
        alone, _ = generator.told.perturbed([request], torch.device('cpu'))
        assert torch.equal(alone[0], together[k])
    noise = (together[:, 0] - rows_of(edm, [str(r.source) for r in requests])).flatten(1).float()
    of_image = SampleNoise([r.seed for r in requests], (noise.shape[1],)).latents()
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), of_image.flatten()]))[0, 1])) < 0.15


def test_pooled_vectors_are_perturbed_and_averaged_alike(real: RealImages, tmp_path: Path) -> None:
    sdxl = str(tiny_pipelines.sdxl(tmp_path / 'sdxl'))
    folder = made_up(tmp_path / 'embeddings', sdxl, real, tokens=3)
    generator = built(sdxl, folder, real, lambdas=0.5, alphas=0.25, sampler={'num_steps': 2})
    requests = asked(generator, 40)
    _, told = generator.told.perturbed(requests, torch.device('cpu'))
    found = Embeddings(folder)
    own, partners = (found.read(found.find(ids))[1] for ids in ([str(r.source) for r in requests], [r.params['partner'] for r in requests]))
    noise = (told - own - 0.25 * (partners - own)) / 0.5
    assert abs(float(noise.mean())) < 0.15 and abs(float(noise.std()) - 1) < 0.1
    generator.denoiser()
    (term,) = generator.told.terms(requests, torch.device('cpu'), lambda model: None, generator.sampler)
    torch.testing.assert_close(term.uncond['added_cond_kwargs']['text_embeds'][0], found.read(found.find(all_ids(real)))[1].mean(0))
    assert generator.generate(requests[:3]).shape == (3, 16, 16, 3)


# --- guidance -------------------------------------------------------------------------------------------------------------


class ClosedForm:
    """D of images that are N(m(c), 1/4): (x / 4 + sigma^2 m) / (1/4 + sigma^2), with m a fixed function of the condition, -1/2 without one."""

    sigma_min, sigma_max = 0.002, 80.0

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        self.shape, self.to_mean = shape, torch.randn(width, int(np.prod(shape)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, cond: Any = None) -> torch.Tensor:
        if cond is None or not cond.is_floating_point():
            mean = torch.full_like(x, -0.5, dtype=torch.float64)
        else:
            mean = torch.tanh(cond.double() @ self.to_mean / len(self.to_mean) ** 0.5).reshape(-1, *self.shape)
        s = torch.as_tensor(sigma).double().reshape(-1, 1, 1, 1)
        return (x.double() / 4 + s**2 * mean) / (0.25 + s**2)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma


@pytest.fixture
def closed_form(monkeypatch: pytest.MonkeyPatch) -> ClosedForm:
    """In place of the EDM network."""
    model, original = DenoiserModel(EDM), DenoiserModel.load
    denoiser = ClosedForm(model.embedding_shape().width, model.size)

    def load(self: DenoiserModel, device: torch.device, dtype: torch.dtype) -> Any:
        original(self, device, dtype)
        return denoiser

    monkeypatch.setattr(DenoiserModel, 'load', load)
    return denoiser


def mean_of(unconditional: str, edm: str, real: RealImages, request: Request) -> torch.Tensor | None:
    """The mean that a request is led away from, in groups of 6 images; None for 'empty'."""
    place = real.ids(request.class_name).index(str(request.source)) // 2
    of_group = [i for name in real.classes for i in real.ids(name)[2 * place : 2 * place + 2]]
    ids = {'all': all_ids(real), 'class': list(real.ids(request.class_name)), 'group': of_group}.get(unconditional)
    return None if ids is None else rows_of(edm, ids).mean(0, keepdim=True)


@pytest.mark.parametrize('unconditional', ['all', 'class', 'group', 'empty'])
def test_guidance_around_a_mean_is_the_papers_formula(edm: str, real: RealImages, closed_form: ClosedForm, unconditional: str) -> None:
    """(1 + w) D(c') - w D(m) with s = 1 + w, each request by its own scale and mean."""
    generator = built(EDM, edm, real, unconditional=unconditional, guidance_scales=[1, 2, 4.5], lambdas=[0, 0.3], alphas=[0, 0.4], group_size=6)
    requests = [r for name in real.classes for r in asked(generator, 8, name, block=len(name))]
    assert len({r.params['guidance_scale'] for r in requests}) == 3
    device = torch.device('cpu')
    guided, cond = generator.guided(requests), generator.told.cond(requests, device)
    told = generator.told.perturbed(requests, device)[0][:, 0].double()
    x = torch.randn(len(requests), *generator.model.size, dtype=torch.float64)
    for sigma in (0.05, 1.0, 40.0):
        at = torch.tensor(sigma, dtype=torch.float64)
        found = guided(x, at, cond)
        for k, request in enumerate(requests):
            w, m = request.params['guidance_scale'] - 1, mean_of(unconditional, edm, real, request)
            expected = (1 + w) * closed_form(x[k : k + 1], at, told[k : k + 1]) - w * closed_form(x[k : k + 1], at, m)
            torch.testing.assert_close(found[k : k + 1], expected, rtol=0, atol=2e-6)


def test_groups_are_the_first_images_of_every_class_then_the_next(edm: str, real: RealImages) -> None:
    generator = built(EDM, edm, real, unconditional='group', group_size=6)
    keys = {str(r.source): generator.told._mean_of(r) for name in real.classes for r in asked(generator, 4, name)}
    assert keys == {i: real.ids(name).index(i) // 2 for name in real.classes for i in real.ids(name)}
    one = built(EDM, edm, real, unconditional='group', group_size=2)
    assert one.told._of_group == 1, 'as the published groups of ImageNet, one image of each of 1000 classes'


def test_it_is_said_where_all_images_are_one_group(edm: str, real: RealImages) -> None:
    for size, said in ((12, ['all 9 images are one group of 12']), (9, []), (100, ['all 9 images are one group of 100'])):
        sentences: list[str] = []
        prepare(recipe(EDM, edm, real, {'unconditional': 'group', 'group_size': size}), sentences.append)
        assert len(sentences) == len(said) and all(words in sentence for words, sentence in zip(said, sentences, strict=True))


@pytest.mark.parametrize('guidance', [1.0, 3.0])
def test_images_are_those_of_the_formula_and_without_perturbation_and_guidance_of_the_embedding_alone(
    edm: str, real: RealImages, closed_form: ClosedForm, guidance: float
) -> None:
    levels = [40.0, 5.0, 1.0, 0.1]
    options = {'sampler': {'sigmas': levels, 'solver': 'euler'}, 'guidance_scales': guidance, 'lambdas': 0, 'alphas': 0}
    generator = built(EDM, edm, real, **options)
    requests = asked(generator, 4)
    c, m = rows_of(edm, [str(r.source) for r in requests]), mean_of('all', edm, real, requests[0])
    x = 40.0 * SampleNoise([r.seed for r in requests], generator.model.size).latents().double()
    for sigma, after in zip(levels, [*levels[1:], 0.0], strict=True):
        at = torch.tensor(sigma, dtype=torch.float64)
        D = closed_form(x, at, c)
        D = guidance * D - (guidance - 1) * closed_form(x, at, m) if guidance != 1 else D
        x = x + (after - sigma) * (x - D) / sigma
    made = generator.generate(requests)
    assert np.abs(made.astype(int) - to_uint8(x)).max() <= 1, 'rounded at another last bit'
    assert len({image.tobytes() for image in made}) == 4


def test_guidance_acts_within_its_interval_only(edm: str, real: RealImages, closed_form: ClosedForm) -> None:
    generator = built(EDM, edm, real, guidance_scales=3, guidance_interval=(0.5, 2))
    requests = asked(generator, 2)
    guided, cond = generator.guided(requests), generator.told.cond(requests, torch.device('cpu'))
    x = torch.randn(2, *generator.model.size, dtype=torch.float64)
    for sigma, acts in ((0.1, False), (1.0, True), (5.0, False)):
        at = torch.tensor(sigma, dtype=torch.float64)
        assert torch.equal(guided(x, at, cond), closed_form(x, at, cond)) is not acts


# --- stores and selections -------------------------------------------------------------------------------------


def test_what_was_drawn_can_be_selected(sd: str, real: RealImages, tmp_path: Path) -> None:
    options = {'lambdas': [0, 0.1, 0.2], 'alphas': [0, 0.5], 'guidance_scales': [1, 2]}
    store = generate(recipe(SD, sd, real, options, per_source=6), tmp_path / 's', 'cpu', quiet=True)
    params = [json.loads(p) for p in store.index()['params'].to_pylist()]
    for where, wanted in (
        ('params.lambda <= 0.1 and params.alpha = 0', lambda p: p['lambda'] <= 0.1 and p['alpha'] == 0),
        ('params.lambda = 0.2 or params.guidance_scale > 1', lambda p: p['lambda'] == 0.2 or p['guidance_scale'] > 1),
        ("params.partner is null or params.partner = 'cat/0.png'", lambda p: p.get('partner', 'cat/0.png') == 'cat/0.png'),
    ):
        assert 0 < len(select(store, where, allow_empty=True).table) == sum(map(wanted, params)) < len(params)


def test_mixed_labels_are_in_the_class_order_of_the_recipe(sd: str, real: RealImages, no_weights: None) -> None:
    classes = ['owl', 'dog', 'cat']
    run = prepare(recipe(SD, sd, real, {'partners': 'all', 'alphas': 0.25}, classes=classes))
    requests = [r for part in run.plan.parts for r in islice(run.generator.requests(part, 0), 6)]
    assert isinstance(run.generator, DiffusionInversion)
    said = run.generator.told.judge(requests, np.zeros((len(requests), 16, 16, 3), np.uint8))
    assert said is not None and said[0] == {}
    for row, request in zip(said[1]['mixed_label'], requests, strict=True):
        other = request.params['partner'].split('/')[0]
        assert row.tolist() == [0.75 * (name == request.class_name) + 0.25 * (name == other) for name in classes]


def test_a_block_that_is_made_again_has_the_same_bytes(sd: str, real: RealImages, tmp_path: Path) -> None:
    again = recipe(SD, sd, real, {'guidance_scales': [1, 2], 'partners': 'all', 'unconditional': 'class'})
    store = generate(again, tmp_path / 's', 'cpu', quiet=True)
    before = {p.name: p.read_bytes() for p in sorted((tmp_path / 's').glob('*/0*'))}
    assert len(before) == 4
    (tmp_path / 's' / 'index' / '00001.parquet').unlink()
    assert len(Store.open(tmp_path / 's').unfinished()) == 1
    generate(again, tmp_path / 's', 'cpu', quiet=True)
    assert {p.name: p.read_bytes() for p in sorted((tmp_path / 's').glob('*/0*'))} == before
    assert not store.unfinished()


def test_identity_holds_what_decides_pixels_and_does_not_change_when_images_are_added(sd: str, real: RealImages, tmp_path: Path) -> None:
    def fingerprint(embeddings: str = sd, **options: Any) -> str:
        return prepare(recipe(SD, embeddings, real, options)).plan.fingerprint

    folder = made_up(tmp_path / 'embeddings', SD, real)
    first = fingerprint(folder)
    assert first == fingerprint(), 'wherever they lie'
    shape = Embeddings(folder).shape
    publish_shard(Path(folder), 1, ['yak/0.png'], ['0' * 64], torch.ones(1, shape.tokens, shape.width))
    assert fingerprint(folder) == first
    others = [{'lambdas': 0.2}, {'alphas': 0.2}, {'guidance_scales': 3}, {'guidance_interval': (0.1, 5)}, {'unconditional': 'class'}, {'partners': 'all'}]
    others += [{'unconditional': 'group'}, {'unconditional': 'group', 'group_size': 9}, {'precision': 'bf16'}, {'sampler': {'num_steps': 3}}]
    found = [fingerprint(**options) for options in others] + [fingerprint(made_up(tmp_path / 'other', SD, real, seed=1)), first]
    assert len(set(found)) == len(found)


# --- kinds of models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['digits_sd', 'digits_edm', 'sdxl', 'sd3', 'flux', 'lcm'])
def test_every_kind_of_model_makes_images_that_depend_on_their_embedding(real: RealImages, tmp_path: Path, kind: str) -> None:
    tiny = {'sdxl': tiny_pipelines.sdxl, 'sd3': tiny_pipelines.sd3, 'flux': tiny_pipelines.flux, 'lcm': lambda folder: tiny_pipelines.sd(folder, lcm=True)}
    model = str(tiny[kind](tmp_path / kind)) if kind in tiny else f'embedded:{kind}'
    size = {'image_size': 16} if kind == 'flux' else {}  # its own would take long
    folder = made_up(tmp_path / 'embeddings', model, real, **size)
    generator = built(model, folder, real, sampler={'num_steps': 2}, guidance_scales=[1, 3], lambdas=[0, 0.1], **size)
    requests = asked(generator, 4)
    assert {r.params['guidance_scale'] for r in requests} == {1, 3}
    made = generator.generate(requests)
    assert made.shape == (4, *generator.model.image_size, 3) and made.dtype == np.uint8
    others = generator.generate(
        [Request(**{**vars(r), 'params': {**r.params, 'alpha': 1.0, 'partner': 'cat/3.png' if r.source != 'cat/3.png' else 'cat/0.png'}}) for r in requests]
    )
    assert all((a != b).any() for a, b in zip(made, others, strict=True))
    alone = generator.generate([requests[2]])
    assert np.abs(alone[0].astype(int) - made[2]).max() <= 1, 'whatever it shares a batch with'


@pytest.mark.parametrize('model', [SD, EDM])
@pytest.mark.parametrize('unconditional', ['all', 'empty'])
def test_in_half_precision_images_are_nearly_the_same(real: RealImages, sd: str, edm: str, model: str, unconditional: str) -> None:
    found = []
    for precision in ('fp32', 'bf16'):
        generator = built(model, sd if model == SD else edm, real, precision=precision, unconditional=unconditional, sampler={'num_steps': 2})
        found.append(generator.generate(asked(generator, 3)).astype(int))
    assert 0 < np.abs(found[1] - found[0]).mean() < 3


def test_variants_of_an_image_differ_the_more_the_larger_lambda_and_alpha_are(tmp_path: Path) -> None:
    """Embeddings are those of words that the model knows, and the noise of the images is the same for all settings."""
    real = folder_of_images(tmp_path / 'real', {'a': 4})
    model, ids = TextModel(SD), all_ids(real)
    model.load(torch.device('cpu'), torch.float32)
    rows = torch.stack([model.embedding_of(name)[0] for name in ('zero', 'one', 'three', 'four')])
    card = {'model': model.origin(contents=True), 'shape': model.embedding_shape(), 'image_size': model.image_size}
    create_embeddings(tmp_path / 'embeddings', card)
    publish_shard(tmp_path / 'embeddings', 0, ids, list(real.file_hashes(ids)), rows)

    def spread(**pools: float) -> float:
        generator = built(SD, str(tmp_path / 'embeddings'), real, sampler={'num_steps': 4}, **{'lambdas': 0, 'alphas': 0, 'guidance_scales': 1, **pools})
        requests = asked(generator, 16, 'a')
        made = generator.generate(requests).astype(float)
        of_source = [[image for image, r in zip(made, requests, strict=True) if r.source == i] for i in ids]
        return float(np.mean([((a - b) ** 2).mean() ** 0.5 for images in of_source for a, b in combinations(images, 2)]))

    none = spread()
    assert none < spread(lambdas=0.5) < spread(lambdas=1.5)
    assert none < spread(alphas=0.25) < spread(alphas=0.5)


def test_few_step_models_run_without_guidance(real: RealImages, tmp_path: Path, no_weights: None) -> None:
    schnell = str(tiny_pipelines.flux(tmp_path / 'flux', dev=False))
    folder = made_up(tmp_path / 'embeddings', schnell, real)
    with pytest.raises(RecipeError, match=r'guidance_scale = 2.*few-step'):
        built(schnell, folder, real)
    built(schnell, folder, real, guidance_scales=1)


@pytest.mark.parametrize(('fit', 'shapes', 'whole'), [('squash', {(16, 16)}, True), ('crop', {(16, 16)}, False), ('pad', {(8, 16)}, True)])
def test_images_have_the_part_of_their_source_that_learning_showed(tmp_path: Path, fit: str, shapes: set[tuple[int, int]], whole: bool) -> None:
    real = folder_of_images(tmp_path / 'real', {'cat': 2}, (10, 20))
    generator = built(SD, made_up(tmp_path / 'embeddings', SD, real, fit=fit), real, sampler={'num_steps': 1})
    requests = asked(generator, 2)
    assert {image.shape[:2] for image in generator.generate(requests)} == shapes
    assert generator.whole_source(requests[0]) is whole


# --- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'lambdas': -0.1}, r'lambdas = -0.1: -0.1 is no finite number of 0 or more'),
        ({'lambdas': [0.1, float('inf')]}, 'inf is no finite number'),
        ({'lambdas': float('nan')}, 'nan is no finite number'),
        ({'lambdas': []}, 'empty'),
        ({'lambdas': [0.1, 0.1]}, 'repeats'),
        ({'lambdas': '0.1'}, 'no number'),
        ({'alphas': 1.1}, r'alphas = 1.1: 1.1 is outside \[0, 1\]'),
        ({'alphas': [-0.1]}, r'-0.1 is outside \[0, 1\]'),
        ({'alphas': True}, 'no number'),
        ({'guidance_scales': -1}, 'guidance_scales = -1'),
        ({'guidance_interval': (5, 1)}, 'guidance_interval'),
        ({'unconditional': 'mean'}, "unconditional = 'mean' is unknown"),
        ({'partners': 'others'}, "partners = 'others' is unknown"),
        ({'group_size': 0}, 'group_size = 0'),
        ({'precision': 'fp8'}, "precision = 'fp8'"),
        ({'prompts': {'type': 'Basic'}}, "no option 'prompts'"),
        ({'words': 'w.safetensors'}, "no option 'words'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_weights_load(sd: str, real: RealImages, no_weights: None, options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        built(SD, sd, real, **options)


def test_a_class_with_one_image_has_no_partner_in_it(tmp_path: Path, no_weights: None) -> None:
    real = folder_of_images(tmp_path / 'real', {'cat': 2, 'dog': 1})
    folder = made_up(tmp_path / 'embeddings', SD, real)
    with pytest.raises(DataError, match=r"the class 'dog' has one image.*alphas=0.*partners='all'"):
        built(SD, folder, real, alphas=[0, 0.1])
    built(SD, folder, real, alphas=0)
    built(SD, folder, real, partners='all')


def test_embeddings_that_do_not_fit_are_refused_before_weights_load(sd: str, edm: str, real: RealImages, tmp_path: Path, no_weights: None) -> None:
    with pytest.raises(ModelError, match='embeddings'):
        built(SD, str(tmp_path / 'nowhere'), real)
    with pytest.raises(ModelError, match='pixels'):
        built(SD, edm, real)
    with pytest.raises(ModelError, match='pixels'):
        built(SD, sd, real, image_size=32)
    tiny = str(tiny_pipelines.sd(tmp_path / 'sd', cross_attention_dim=16))
    with pytest.raises(ModelError, match=r'learned for|width'):
        built(tiny, sd, real)
    more = folder_of_images(tmp_path / 'more', {**COUNTS, 'dog': 4})
    with pytest.raises(DataError, match=r"'dog/3.png' has no embedding"):
        built(SD, sd, more)
    changed = folder_of_images(tmp_path / 'changed', COUNTS)
    Image.new('RGB', (8, 8)).save(changed.root / 'cat' / '0.png')
    with pytest.raises(DataError, match=r"'cat/0.png'"):
        built(SD, sd, changed)
    shard = Path(made_up(tmp_path / 'short', SD, real)) / 'shards' / '00000.safetensors'
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r'00000\.safetensors'):
        built(SD, str(tmp_path / 'short'), real)


def test_without_real_images_and_for_models_that_cannot_there_is_nothing_to_make(sd: str, edm: str, real: RealImages, tmp_path: Path, no_weights: None) -> None:
    with pytest.raises(RecipeError, match='--data'):
        built(SD, sd, None)
    with pytest.raises(RecipeError, match='starts from real images'):
        prepare(complete({'generator': {'type': 'DiffusionInversion', 'model': SD, 'embeddings': sd}}))
    inpaint = str(tiny_pipelines.sd(tmp_path / 'inpaint', inpaint=True))
    with pytest.raises(ModelError, match='masked images'):
        built(inpaint, sd, real)
    with pytest.raises(RecipeError, match='image_size = 8'):
        built(EDM, edm, real, image_size=8)


# --- recipes -------------------------------------------------------------------------------------------------------------

RECIPES = {'cifar10': (128, 32), 'cifar100': (128, 32), 'stl10': (256, 96), 'imagenette': (256, 'source'), 'medmnist': (128, 28), 'eurosat': (128, 64)}


def test_every_data_set_has_its_recipe() -> None:
    found = {Path(r).stem for r in shipped_recipes() if r.startswith('generate/inversion')}
    assert found == {f'inversion_{name}' for name in (*RECIPES, 'digits')}


@pytest.mark.parametrize('name', [*RECIPES, 'digits'])
def test_recipes_have_the_papers_setting_and_size_and_name_the_folder_that_learning_writes(
    real: RealImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_weights: None, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = find_recipe(f'inversion_{name}', 'generate')
    found = load_recipe(path, {'data': str(real.root)})
    options = found['generator']
    assert options['embeddings'] == f'embeddings/{name}/embeddings'
    assert f'--out embeddings/{name}\n' in Path(path).read_text()
    model = SD if name == 'digits' else str(tiny_pipelines.sd(tmp_path / 'sd'))
    options |= {'model': model, 'revision': None, 'variant': None, 'precision': 'fp32'}
    with pytest.raises(ModelError, match=rf'no such folder.*synthaug learn embeddings RECIPE --data FOLDER --out embeddings/{name}'):
        prepare(found)
    if name == 'digits':
        made_up(tmp_path / 'embeddings/digits/embeddings', SD, real)
    else:
        size, stored = RECIPES[name]
        assert (options['image_size'], found['image']['size']) == (size, stored)
        made_up(tmp_path / options['embeddings'], model, real, image_size=size)
    done = prepare(found)
    identity = done.generator.identity()
    assert (identity['guidance_scales'], identity['unconditional'], identity['partners'], identity['lambdas']) == ([2.0], 'all', 'class', [0.1])
    assert identity['alphas'] == ([0.0, 0.05, 0.1] if name == 'medmnist' else [0.1])
    assert identity['sampler']['num_steps'] == (25 if name == 'digits' else 100)
    assert sum(block.target for block in done.plan.blocks) == 5 * len(all_ids(real))


def test_the_command_says_how_to_learn_what_is_missing(synthaug: Any, real: RealImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = synthaug('generate', 'inversion_digits', '--data', real.root, '--out', tmp_path / 'store')
    assert said.status == 2
    assert 'synthaug learn embeddings RECIPE --data FOLDER --out embeddings/digits' in ' '.join(said.err.split())
    assert not (tmp_path / 'store').exists()
