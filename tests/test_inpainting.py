"""Outside of a mask an image stays what it is, in any sampler; networks for inpainting do what diffusers does with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from mixture import small_mixture
from torch import Tensor

from synthaug_plugins.diffusion import Blended, ClassifierFree, Guided, Region, SampleNoise, cover, sample
from synthaug_plugins.diffusion.adapters import DiffusersDenoiser
from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.learning.erasure import check_model
from synthaug_plugins.models.text_model import TextModel

CPU = torch.device('cpu')
PROMPTS = ['a photo of a cat', 'the digit two']


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def halves() -> Tensor:
    """Of a batch of three: the left half, the lower half, a single cell."""
    mask = torch.zeros(3, 1, 4, 4)
    mask[0, :, :, :2], mask[1, :, 2:], mask[2, :, 1, 1] = 1, 1, 1
    return mask


SOLVERS: list[dict[str, Any]] = [
    {'solver': 'heun'},
    {'solver': 'heun', 'alpha': 0.5},
    {'solver': 'euler'},
    {'solver': 'euler', 'schedule': 'flow', 'scaling': 'flow'},
    {'solver': 'dpmpp_2m'},
    {'solver': 'unipc'},
]


@pytest.mark.parametrize('guided', [False, True])
@pytest.mark.parametrize('options', SOLVERS, ids=lambda o: '-'.join(map(str, o.values())))
def test_the_state_outside_of_the_mask_is_the_known_image_with_its_noise_at_every_step(options: dict[str, Any], guided: bool) -> None:
    mixture, mask = small_mixture(0.002, 80.0), halves().double()
    known, noise = 0.3 * normal(3, 2, 4, 4, seed=1).double(), normal(3, 2, 4, 4).double()
    cond = torch.eye(4)[[0, 1, 2]]
    inner: Any = Guided(mixture, [ClassifierFree(1.5, torch.eye(4)[3:])]) if guided else mixture
    denoiser = Blended(inner, mask, known)
    states: list[Tensor] = []
    run = {'num_steps': 8, 'cond': cond, 'start': known, 'first_step': 2, 'sigma_max': 20.0, **options}
    x = sample(denoiser, noise, callback=lambda i, x, D: states.append(x), **run)
    outside = (mask == 0).expand_as(x)
    assert len(states) == 6
    sigmas = [((s - known)[outside] / noise[outside]) for s in states]
    for sigma in sigmas:
        assert torch.allclose(sigma, sigma[0], rtol=1e-6, atol=1e-9), 'one noise level everywhere'
    assert float(sigmas[0][0]) > float(sigmas[-2][0]) > 0
    assert torch.allclose(x[outside], known[outside], atol=1e-12)
    free = sample(inner, noise, **run)
    inside = ~outside
    assert (x - known)[inside].abs().min() > 1e-4
    assert distance(free[outside], known[outside]) > 0.1, 'the test could fail'
    assert distance(x[inside], free[inside]) > 1e-3, 'what is made fits to what is known'


def test_where_the_way_is_curved_solvers_come_near_to_the_known_image_with_many_steps() -> None:
    known, noise, outside = 0.3 * normal(3, 2, 4, 4, seed=1).double(), normal(3, 2, 4, 4).double(), (halves() == 0).expand(3, 2, 4, 4)

    def error(steps: int) -> float:
        options: dict[str, Any] = {'solver': 'euler', 'schedule': 've', 'sigma_max': 5.0, 'num_steps': steps}
        x = sample(Blended(small_mixture(0.002, 80.0), halves().double(), known), noise, start=known, **options)
        return float((x - known)[outside].abs().max())

    assert 0.2 > error(8) > 4 * error(16) > 16 * error(64)


def test_churn_and_soft_masks_end_at_the_known_image_too() -> None:
    mixture, known, noise = small_mixture(0.002, 80.0), 0.3 * normal(3, 2, 4, 4, seed=1).double(), SampleNoise([1, 2, 3], (2, 4, 4))
    soft = 0.5 * halves()
    denoiser = Blended(mixture, soft, known)
    x = sample(denoiser, noise.latents(), noise=noise.step, start=known, num_steps=8, S_churn=4.0, sigma_max=5.0)
    outside = (soft == 0).expand_as(x)
    assert torch.allclose(x[outside], known[outside], atol=1e-12)
    assert (x - known)[~outside].abs().max() > 1e-3


def test_what_is_not_finite_outside_of_the_mask_stays_there() -> None:
    class Broken:
        sigma_min, sigma_max = 0.0, 80.0

        def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            return torch.where(torch.arange(4) < 2, 0.0, torch.nan).expand_as(x)

        def round_sigma(self, sigma: Tensor) -> Tensor:
            return sigma

    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    assert torch.equal(Blended(Broken(), mask, torch.ones(1, 2, 4, 4))(torch.ones(1, 2, 4, 4), torch.tensor(1.0)), (1 - mask).expand(1, 2, 4, 4))


@pytest.mark.parametrize('shape', [(3, 2, 4, 4), (2, 1, 4, 4), (3, 1, 4, 8), (3, 4, 4)])
def test_a_mask_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match='The mask has the shape'):
        Blended(small_mixture(), torch.zeros(shape), torch.zeros(3, 2, 4, 4))


def test_a_coarse_cell_is_covered_when_any_of_its_pixels_is() -> None:
    mask = torch.zeros(1, 1, 8, 16)
    mask[0, 0, 3, 4] = 1
    assert cover(mask, 2, 4)[0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(cover(mask, 8, 16), mask)
    with pytest.raises(RecipeError, match='16 x 8 pixels does not lie on a grid of 5 x 2'):
        cover(mask, 2, 5)


# --- diffusers' own pipelines ------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[TextModel, Any]]:
    made: dict[str, tuple[TextModel, Any]] = {}
    makers: dict[str, Callable[[Path], Path]] = {
        'sd': lambda folder: tiny_pipelines.sd(folder),
        'sd inpaint': lambda folder: tiny_pipelines.sd(folder, inpaint=True),
        'sdxl inpaint': lambda folder: tiny_pipelines.sdxl(folder, scheduler=tiny_pipelines.ddim(), inpaint=True),
    }

    def get(name: str) -> tuple[TextModel, Any]:
        if name not in made:
            model = TextModel(str(makers[name](tmp_path_factory.mktemp('pipeline'))))
            made[name] = model, model.load(CPU, torch.float32)
        return made[name]

    return get


def pieces(model: TextModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Known latents, masks of pixels and of latents (cells of which all pixels are in it or none), latents of the masked images."""
    images = normal(2, 3, *model.image_size, seed=5).clamp(-1, 1)
    latent_mask = torch.zeros(2, 1, *model.size[1:])
    latent_mask[0, :, 2:6, 1:5], latent_mask[1, :, :, 4:] = 1, 1
    pixel_mask = torch.nn.functional.interpolate(latent_mask, model.image_size)
    return model.encode(images), pixel_mask, latent_mask, model.encode(images * (1 - pixel_mask))


def stock(model: TextModel, known: Tensor, pixel_mask: Tensor, masked: Tensor, steps: int, strength: float, scale: float, negative: str) -> Tensor:
    """The latents of diffusers' inpainting pipeline, whose noise is that of seed 3. It makes one picture of an ordinary model, too."""
    cls = diffusers.StableDiffusionXLInpaintPipeline if model.family == 'sdxl' else diffusers.StableDiffusionInpaintPipeline
    pipeline = cls.from_pretrained(model.files.folder)
    pipeline.set_progress_bar_config(disable=True)
    height, width = model.image_size
    inputs = {'image': known, 'mask_image': pixel_mask, 'masked_image_latents': masked, 'height': height, 'width': width}
    options = {'num_inference_steps': steps, 'strength': strength, 'guidance_scale': scale, 'negative_prompt': [negative] * 2}
    return pipeline(PROMPTS, **inputs, **options, generator=torch.Generator().manual_seed(3), output_type='latent')[0]


@pytest.mark.parametrize(('strength', 'scale', 'negative'), [(0.6, 3.0, 'blurred'), (0.99, 1.0, '')])
@pytest.mark.parametrize('name', ['sd', 'sd inpaint', 'sdxl inpaint'])
def test_edited_latents_are_those_of_the_stock_inpainting_pipeline(loaded: Any, name: str, strength: float, scale: float, negative: str) -> None:
    """Of a network for inpainting, and of an ordinary one, which diffusers blends as we do. Same noise, same steps of DDIM."""
    model, denoiser = loaded(name)
    assert model.inpaints == (name != 'sd')
    known, pixel_mask, latent_mask, masked = pieces(model)
    steps = 10
    region = Region(latent_mask, masked if model.inpaints else None)
    cond, terms = {**model.conditions(PROMPTS), **region.condition()}, []
    if scale > 1:
        terms = [ClassifierFree(scale - 1, model.conditions([negative], negative=True)).sharing(region.condition())]
    edited = region.around(Guided(denoiser, terms) if terms else denoiser, known)
    sigmas, first = model.visited_sigmas(steps), steps - int(steps * strength)
    ours = sample(edited, normal(*known.shape, seed=3), start=known, first_step=first, cond=cond, sigmas=sigmas, solver='euler')
    theirs = stock(model, known, pixel_mask, masked, steps, strength, scale, negative)
    assert distance(ours, theirs) < 1e-5
    outside = (latent_mask == 0).expand_as(known)
    if name == 'sd':
        assert torch.allclose(ours[outside].float(), known[outside], atol=1e-6)
    assert distance(ours[~outside], known[~outside]) > 0.05


def test_guidance_of_an_inpainting_network_shares_one_call(loaded: Any) -> None:
    """Mask and masked image stand in both halves of the batch, so that guidance is one call with twice the rows."""
    model, denoiser = loaded('sd inpaint')
    known, _, mask, masked = pieces(model)
    region, rows = Region(mask, masked), []

    class Watched(DiffusersDenoiser):
        def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            rows.append((len(x), torch.equal(cond['concat'][:2], cond['concat'][2:])))
            return super().__call__(x, sigma, cond)

    watched = Watched(denoiser.model, model._scheduler_config)
    term = ClassifierFree(2.0, model.conditions([''], negative=True)).sharing(region.condition())
    Guided(watched, [term])(known, torch.tensor(1.0), {**model.conditions(PROMPTS), **region.condition()})
    assert rows == [(4, True)]


def test_an_inpainting_network_is_never_run_without_its_mask(loaded: Any) -> None:
    model, denoiser = loaded('sd inpaint')
    known, _, mask, masked = pieces(model)
    with pytest.raises(ModelError, match=r"needs the condition 'concat'"):
        denoiser(known, torch.tensor(1.0), model.conditions(PROMPTS))
    with pytest.raises(ModelError, match=r"'concat' has the shape \(2, 4, 8, 8\).*\(B, 5, h, w\)"):
        denoiser(known, torch.tensor(1.0), {**model.conditions(PROMPTS), 'concat': masked})
    with pytest.raises(RecipeError, match='cannot share concat'):
        ClassifierFree(1.0, None).sharing(Region(mask, masked).condition())
    ordinary, network = loaded('sd')
    with pytest.raises(ModelError, match="takes no condition 'concat'"):
        network(known, torch.tensor(1.0), {**ordinary.conditions(PROMPTS), 'concat': masked})


def test_nothing_is_learned_on_an_inpainting_network(loaded: Any) -> None:
    with pytest.raises(ModelError, match=r'erasure: .* paints into masked images'):
        check_model(loaded('sd inpaint')[0])
    check_model(loaded('sd')[0])
