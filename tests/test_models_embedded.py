"""What a network is told in place of text: embeddings of the right shape reach every family as its own prompts do, with gradients to them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

from synthaug_plugins.diffusion import CallCounter
from synthaug_plugins.diffusion.guidance import ClassifierFree, Guided
from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.models.base import EmbeddingShape
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.text_model import TextModel, open_model

CPU = torch.device('cpu')
PROMPT = 'a photo of the digit three'
BUILDERS: dict[str, Callable[[Path], Path]] = {
    'sd': tiny.sd,
    'lcm': lambda folder: tiny.sd(folder, lcm=True),
    'sdxl': tiny.sdxl,
    'sd3': tiny.sd3,
    'flux': tiny.flux,
    'pixart alpha': tiny.pixart,
    'pixart sigma': lambda folder: tiny.pixart(folder, sigma=True),
    'sana': tiny.sana,
}
SHAPES = {
    'sd': EmbeddingShape(5, 16),
    'lcm': EmbeddingShape(5, 16),
    'sdxl': EmbeddingShape(5, 32, 16),
    'sd3': EmbeddingShape(5, 32, 32),
    'flux': EmbeddingShape(5, 32, 16),
    'pixart alpha': EmbeddingShape(5, 32),
    'pixart sigma': EmbeddingShape(5, 32),
    'sana': EmbeddingShape(5, 16),
}
each = pytest.mark.parametrize('name', BUILDERS)
Loaded = Callable[[str], tuple[TextModel, Any]]


@pytest.fixture(scope='module')
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model of 16 x 24 pixels and its denoiser in float32, made when it is first asked for."""
    made: dict[str, tuple[TextModel, Any]] = {}

    def get(name: str) -> tuple[TextModel, Any]:
        if name not in made:
            model = TextModel(str(BUILDERS[name](tmp_path_factory.mktemp('pipelines'))), image_size=(16, 24))
            assert model.embedding_shape() == SHAPES[name]  # before any weights
            made[name] = model, model.load(CPU, torch.float32)
        return made[name]

    return get


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaves(conditions: Any) -> dict[str, Tensor]:
    return {k: v for key, value in conditions.items() for k, v in (leaves(value) if isinstance(value, Mapping) else {key: value}).items()}


def parts(conditions: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The states, the pooled vector and the mask among a network's conditions."""
    found = leaves(conditions)
    return found['encoder_hidden_states'], found.get('text_embeds', found.get('pooled_projections')), found.get('encoder_attention_mask')


def embeddings(shape: EmbeddingShape, rows: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    return normal(rows, shape.tokens, shape.width, seed=seed), None if shape.pooled is None else normal(rows, shape.pooled, seed=seed + 50)


@each
def test_an_encoded_prompt_in_an_embedding_s_place_is_the_prompt(loaded: Loaded, name: str) -> None:
    model, denoiser = loaded(name)
    prompt = model.conditions([PROMPT])
    states, pooled, mask = parts(prompt)
    kept = states if mask is None else states[:, mask[0].bool()]
    told = model.embedded(kept, pooled)
    assert leaves(told).keys() == leaves(prompt).keys()
    for key, value in leaves(told).items():
        wanted = leaves(prompt)[key]
        wanted = wanted if mask is None or not key.startswith('encoder') else wanted[:, mask[0].bool()]
        assert torch.equal(value, wanted), key
        assert value.dtype == wanted.dtype
    x, sigma = normal(1, *model.size), torch.tensor(0.8)
    assert torch.allclose(denoiser(x, sigma, told), denoiser(x, sigma, prompt), atol=1e-5)
    if mask is not None:
        assert kept.shape[1] < states.shape[1]
    assert not torch.allclose(denoiser(x, sigma, model.embedded(kept + 1, pooled)), denoiser(x, sigma, prompt), atol=1e-3)
    if pooled is not None:
        assert not torch.allclose(denoiser(x, sigma, model.embedded(kept, pooled + 1)), denoiser(x, sigma, prompt), atol=1e-3)


@each
def test_gradients_reach_every_value_of_an_embedding_and_no_weight(loaded: Loaded, name: str) -> None:
    model, denoiser = loaded(name)
    told = [t.requires_grad_() for t in embeddings(model.embedding_shape(7), 3) if t is not None]
    D = denoiser(normal(3, *model.size), torch.tensor([0.3, 1.0, 5.0]), model.embedded(*told))
    (D[0] ** 2).sum().backward()
    for t in told:
        assert t.grad is not None
        assert (t.grad[0] != 0).float().mean() > 0.9
        assert not t.grad[1:].any(), 'an image learns from another'
    assert all(p.grad is None and not p.requires_grad for p in denoiser.model.parameters())


@each
def test_learning_begins_from_the_first_states_of_a_text(loaded: Loaded, name: str) -> None:
    model, _ = loaded(name)
    states, pooled, mask = parts(model.conditions([PROMPT]))
    count = states.shape[1] if mask is None else int(mask.sum())
    kept = states[0] if mask is None else states[0][mask[0].bool()]
    tokens, vector = model.embedding_of(PROMPT)
    assert torch.equal(tokens, kept[:5])
    assert vector is None if pooled is None else torch.equal(vector, pooled[0])
    longer, _ = model.embedding_of(PROMPT, count + 2)
    assert torch.equal(longer, torch.cat([kept, kept[-1:], kept[-1:]]))
    assert (tokens.dtype, tokens.device.type) == (torch.float32, 'cpu')
    with pytest.raises(RecipeError, match="holds '<cat>', which is no learned word"):
        model.embedding_of('a photo of a <cat>')


@pytest.mark.parametrize('name', ['flux', 'lcm'])
def test_a_distilled_network_is_told_its_guidance_scale_with_embeddings_too(loaded: Loaded, name: str) -> None:
    model, _ = loaded(name)
    told, key = embeddings(model.embedding_shape(), 2), {'flux': 'guidance', 'lcm': 'timestep_cond'}[name]
    default = model.embedded(*told)[key]
    assert torch.equal(default, model.conditions([PROMPT, PROMPT])[key])
    assert torch.equal(model.embedded(*told, guidance_scale=[model.default_guidance_scale, 2.0])[key][0], default[0])
    assert torch.equal(model.embedded(*told, guidance_scale=[1.0, 2.0])[key], model.conditions([PROMPT, ''], guidance_scale=[1.0, 2.0])[key])
    with pytest.raises(RecipeError, match='guidance_scale has the shape'):
        model.embedded(*told, guidance_scale=[1.0])


@each
def test_embeddings_of_another_shape_are_refused(loaded: Loaded, name: str) -> None:
    model, _ = loaded(name)
    shape = model.embedding_shape()
    tokens, pooled = embeddings(shape, 2)
    for wrong in (
        (tokens[..., 1:], pooled),
        (tokens[0], pooled),
        (tokens.long(), pooled),
        (tokens, normal(2, 3)),
        (tokens, None if shape.pooled else normal(2, 16)),
        *([(tokens, pooled[:1])] if pooled is not None else []),
    ):
        with pytest.raises(ModelError, match=rf'were given to .* It takes \(\d, \d, {shape.width}\)'):
            model.embedded(*wrong)


@pytest.mark.parametrize('tokens', [0, -1, 2.0, True, '5'])
def test_the_number_of_tokens_is_a_whole_number_of_one_or_more(tokens: Any) -> None:
    for name in ('embedded:digits_sd', 'embedded:digits_edm'):
        with pytest.raises(RecipeError, match=r'tokens = .* is no whole number of 1 or more'):
            open_model(name).embedding_shape(tokens)
    assert open_model('embedded:digits_sd').embedding_shape(3) == EmbeddingShape(3, 64)


def test_a_network_that_paints_into_images_takes_no_embeddings(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'embeddings: .* its network runs with a mask only'):
        TextModel(str(tiny.sd(tmp_path, inpaint=True))).embedding_shape()


def test_a_u_net_says_how_wide_its_states_are_before_its_own_projection() -> None:
    from synthaug_plugins.models.families import PIPELINES

    widths = PIPELINES['StableDiffusionPipeline'].widths
    assert widths({'cross_attention_dim': 768}) == (768, None)
    assert widths({'cross_attention_dim': [1024, 1024]}) == (1024, None)
    assert widths({'cross_attention_dim': 768, 'encoder_hid_dim': 4096}) == (4096, None)
    sdxl = {'cross_attention_dim': 2048, 'projection_class_embeddings_input_dim': 2816, 'addition_time_embed_dim': 256}
    assert PIPELINES['StableDiffusionXLPipeline'].widths(sdxl) == (2048, 1280)


@pytest.mark.parametrize('name', ['embedded:digits_sd', 'embedded:digits_edm'])
def test_an_embedding_and_its_opposite_go_through_the_network_in_one_call(name: str) -> None:
    model = open_model(name)
    denoiser, shape = CallCounter(model.load(CPU, torch.float32)), model.embedding_shape()
    told, mean = model.embedded(embeddings(shape, 3)[0]), model.embedded(embeddings(shape, 1, seed=9)[0])
    x, sigma = normal(3, *model.size), torch.tensor(1.0)
    guided = Guided(denoiser, [ClassifierFree(1.5, uncond=mean)])(x, sigma, told)
    assert (denoiser.calls, denoiser.images) == (1, 6)
    everywhere = model.embedded(embeddings(shape, 1, seed=9)[0].expand(3, -1, -1))
    D, away = denoiser(x, sigma, told), denoiser(x, sigma, everywhere)
    assert torch.allclose(guided, D + 1.5 * (D - away), atol=1e-5)


# --- models of our own ---------------------------------------------------------------------------------------------------


def test_a_class_s_own_vector_says_what_its_label_says() -> None:
    model = DenoiserModel('embedded:digits_edm')
    denoiser = model.load(CPU, torch.float32)
    x, sigma = normal(1, *model.size), torch.tensor(0.7)
    for label, name in [*enumerate(model.classes), (len(model.classes), '')]:
        tokens, pooled = model.embedding_of(name)
        assert pooled is None
        assert tokens.shape == (1, model.embedding_shape().width)
        assert torch.equal(denoiser(x, sigma, model.embedded(tokens[None])), denoiser(x, sigma, torch.tensor([label])))
    with pytest.raises(ModelError, match=r"is told no class 'thre'. Did you mean 'three'"):
        model.embedding_of('thre')
    with pytest.raises(RecipeError, match=r'tokens = 5: .* is told a single vector'):
        model.embedding_shape(5)
    with pytest.raises(ModelError, match=r'It takes \(2, 1, 32\)'):
        model.embedded(normal(2, 5, 32))


@pytest.mark.parametrize('name', ['embedded:digits_sd', 'embedded:digits_edm'])
def test_nothing_is_told_before_loading(name: str) -> None:
    model = open_model(name)
    with pytest.raises(ModelError, match='its weights are not loaded'):
        model.embedded(embeddings(model.embedding_shape(), 1)[0])
    with pytest.raises(ModelError, match='its weights are not loaded'):
        model.embedding_of('')
