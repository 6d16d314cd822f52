"""Models of diffusers, seen as denoisers, do what diffusers does with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from synthaug_plugins.diffusion import Denoiser, sample
from synthaug_plugins.diffusion.adapters import PREDICTION_TYPES, DiffusersDenoiser
from synthaug_plugins.diffusion.guidance import ClassifierFree, Guided
from synthaug_plugins.errors import ModelError, RecipeError

SCALED = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}


def stirred(model: Any) -> Any:
    """None of its layers is zero or nearly so, in eval mode."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model.eval().requires_grad_(False)


@cache
def unet(classes: int | None = None, out_channels: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    blocks = {'down_block_types': ('DownBlock2D', 'AttnDownBlock2D'), 'up_block_types': ('AttnUpBlock2D', 'UpBlock2D')}
    shape = {'sample_size': 8, 'in_channels': 2, 'out_channels': out_channels, 'block_out_channels': (8, 16), 'layers_per_block': 1}
    return stirred(diffusers.UNet2DModel(**shape, **blocks, norm_num_groups=4, attention_head_dim=4, num_class_embeds=classes, **options))


@cache
def text_unet(**options: Any) -> Any:
    torch.manual_seed(0)
    return stirred(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=4,
            **options,
        )
    )


@cache
def dit() -> Any:
    torch.manual_seed(0)
    return stirred(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=5, norm_num_groups=4
        )
    )


@cache
def sd3() -> Any:
    torch.manual_seed(0)
    return stirred(
        diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=8,
        )
    )


@cache
def flux(guidance_embeds: bool = True) -> Any:
    torch.manual_seed(0)
    shape = {'num_layers': 1, 'num_single_layers': 1, 'attention_head_dim': 16, 'num_attention_heads': 2, 'axes_dims_rope': (4, 6, 6)}
    return stirred(diffusers.FluxTransformer2DModel(in_channels=8, joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=guidance_embeds, **shape))


@cache
def pixart(use_additional_conditions: bool = False) -> Any:
    torch.manual_seed(0)
    shape = {'num_attention_heads': 2, 'attention_head_dim': 12, 'cross_attention_dim': 24, 'num_layers': 2, 'sample_size': 8, 'caption_channels': 12}
    options = {'use_additional_conditions': use_additional_conditions, 'interpolation_scale': 1}
    return stirred(diffusers.PixArtTransformer2DModel(in_channels=2, out_channels=4, **shape, **options))


@cache
def sana(timestep_scale: float = 1.0) -> Any:
    torch.manual_seed(0)
    shape = {'num_attention_heads': 2, 'attention_head_dim': 4, 'num_layers': 2, 'sample_size': 8, 'caption_channels': 12}
    cross = {'num_cross_attention_heads': 2, 'cross_attention_head_dim': 4, 'cross_attention_dim': 8}
    return stirred(diffusers.SanaTransformer2DModel(in_channels=2, out_channels=2, timestep_scale=timestep_scale, **shape, **cross))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LATENTS = normal(2, 2, 8, 8)
TEXT = {'encoder_hidden_states': normal(2, 5, 12, seed=1)}
SD3_TEXT = {**TEXT, 'pooled_projections': normal(2, 10, seed=2)}
LABELS = torch.tensor([1, 4])
MASKED = {**TEXT, 'encoder_attention_mask': torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@torch.no_grad()
def chain(model: Any, scheduler: Any, num_inference_steps: int, start: Tensor, first: int = 0, last: int | None = None, **conditions: Any) -> Tensor:
    """The loop of a diffusers pipeline, in float32, or some of its steps."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_inference_steps)
    x = start
    for t in scheduler.timesteps[first:last]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, 'scale_model_input') else x
        output = model(scaled, timestep=t.expand(len(x)), return_dict=False, **conditions)[0][:, : x.shape[1]]
        x = scheduler.step(output, t, x).prev_sample
    return x


def c_in(sigma: Tensor, flow: bool = False) -> Tensor:
    return 1 / (1 + sigma) if flow else 1 / (1 + sigma**2).sqrt()


# --- whole chains against diffusers' own schedulers ----------------------------------------------------------------------

BETAS = [
    {'beta_schedule': 'linear'},
    SCALED,
    {'beta_schedule': 'squaredcos_cap_v2'},
    {'trained_betas': torch.linspace(2e-4, 0.03, 1000).tolist()},
    {**SCALED, 'steps_offset': 1},
]


@pytest.mark.parametrize('timesteps', ['continuous', 'rounded'])
@pytest.mark.parametrize('betas', BETAS, ids=str)
def test_euler_in_edm_coordinates_is_ddim(betas: dict[str, Any], timesteps: str) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **betas)
    denoiser = DiffusersDenoiser(unet(), scheduler, timesteps=timesteps)
    sigmas = denoiser.sigmas_of(10)
    ours = sample(denoiser, LATENTS / (sigmas[0] * c_in(sigmas[0])), sigmas=sigmas, solver='euler')
    assert distance(ours, chain(unet(), scheduler, 10, LATENTS)) < 1e-5


@pytest.mark.parametrize('prediction_type', ['epsilon', 'v_prediction', 'sample'])
@pytest.mark.parametrize(('spacing', 'steps'), [('linspace', 10), ('linspace', 7), ('leading', 7), ('trailing', 8), ('trailing', 7)])
def test_euler_is_diffusers_euler(prediction_type: str, spacing: str, steps: int) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction_type, timestep_spacing=spacing, steps_offset=int(spacing == 'leading'), **SCALED)
    denoiser = DiffusersDenoiser(unet(), scheduler)
    sigmas = denoiser.sigmas_of(steps)
    assert len(sigmas) == steps
    ours = sample(denoiser, LATENTS, sigmas=sigmas, solver='euler')
    assert distance(ours, chain(unet(), scheduler, steps, LATENTS * float(sigmas[0]))) < 1e-5


@pytest.mark.parametrize('options', [{}, {'use_karras_sigmas': True}], ids=str)
def test_heun_is_diffusers_heun(options: dict[str, Any]) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(beta_schedule='linear', **options)
    denoiser = DiffusersDenoiser(unet(), scheduler)
    sigmas = denoiser.sigmas_of(10)
    ours = sample(denoiser, LATENTS, sigmas=sigmas)
    assert distance(ours, chain(unet(), scheduler, 10, LATENTS * float(sigmas[0]))) < 1e-5


@pytest.mark.parametrize('shift', [1.0, 3.0])
@pytest.mark.parametrize('name', ['euler', 'heun'])
def test_flow_chains_are_those_of_diffusers(name: str, shift: float) -> None:
    scheduler = getattr(diffusers, f'FlowMatch{name.title()}DiscreteScheduler')(shift=shift)
    denoiser = DiffusersDenoiser(sd3(), scheduler)
    assert denoiser.prediction_type == 'flow'
    sigmas = denoiser.sigmas_of(8)
    latents = LATENTS / (sigmas[0] * c_in(sigmas[0], flow=True))
    ours = sample(denoiser, latents, cond=SD3_TEXT, sigmas=sigmas, solver=name, schedule='flow', scaling='flow')
    assert distance(ours, chain(sd3(), scheduler, 8, LATENTS, **SD3_TEXT)) < 1e-5


def as_flux_pipelines_call_it(model: Any) -> Callable[..., tuple[Tensor]]:
    """Packed latents, ids, and a thousandth of the timestep, by the pipeline's own functions."""
    pipeline = diffusers.FluxPipeline

    def call(x: Tensor, timestep: Tensor, return_dict: bool, **conditions: Any) -> tuple[Tensor]:
        height, width = x.shape[2:]
        ids = {'img_ids': pipeline._prepare_latent_image_ids(len(x), height // 2, width // 2, 'cpu', torch.float32), 'txt_ids': torch.zeros(5, 3)}
        packed = pipeline._pack_latents(x, *x.shape)
        output = model(hidden_states=packed, timestep=timestep / 1000, return_dict=False, **ids, **conditions)[0]
        return (pipeline._unpack_latents(output, height, width, 1),)

    return call


def as_sana_pipelines_call_it(model: Any) -> Callable[..., tuple[Tensor]]:
    return lambda x, timestep, **options: model(x, timestep=timestep * model.config.timestep_scale, **options)


@pytest.mark.parametrize(
    ('model', 'call', 'scheduler', 'cond'),
    [
        (flux, as_flux_pipelines_call_it, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), {**SD3_TEXT, 'guidance': torch.tensor([2.0, 5.0])}),
        (lambda: flux(False), as_flux_pipelines_call_it, diffusers.FlowMatchEulerDiscreteScheduler(), SD3_TEXT),
        (sana, as_sana_pipelines_call_it, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), MASKED),
        (lambda: sana(0.25), as_sana_pipelines_call_it, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), MASKED),
        (pixart, lambda model: model, diffusers.DDIMScheduler(clip_sample=False), MASKED),
        (
            lambda: pixart(True),
            lambda model: model,
            diffusers.DDIMScheduler(clip_sample=False),
            {**MASKED, 'added_cond_kwargs': {'resolution': torch.tensor([[16.0, 24.0]] * 2), 'aspect_ratio': torch.tensor([[0.5], [0.7]])}},
        ),
        (
            lambda: text_unet(time_cond_proj_dim=6),
            lambda model: model,
            diffusers.DDIMScheduler(clip_sample=False, **SCALED),
            {**TEXT, 'timestep_cond': normal(2, 6, seed=5)},
        ),
    ],
    ids=['FLUX dev', 'FLUX schnell', 'Sana', 'Sana, scaled time', 'PixArt', 'PixArt, told its size', 'LCM'],
)
@pytest.mark.parametrize('shape', [(8, 8), (8, 12)], ids=str)
def test_every_network_is_called_as_its_pipeline_calls_it(model: Any, call: Any, scheduler: Any, cond: dict[str, Any], shape: tuple[int, int]) -> None:
    denoiser, latents = DiffusersDenoiser(model(), scheduler), normal(2, 2, *shape)
    flow = denoiser.prediction_type == 'flow'
    sigmas = denoiser.sigmas_of(5)
    options = {'schedule': 'flow', 'scaling': 'flow'} if flow else {}
    ours = sample(denoiser, latents / (sigmas[0] * c_in(sigmas[0], flow)), cond=cond, sigmas=sigmas, solver='euler', **options)
    assert distance(ours, chain(call(model()), scheduler, 5, latents, **cond)) < 1e-5


@pytest.mark.parametrize('mu', [0.5, 1.15])
def test_levels_that_a_pipeline_gives_its_scheduler_are_visited(mu: float) -> None:
    shares = [1.0, 0.75, 0.5, 0.25]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    sigmas = DiffusersDenoiser(flux(), scheduler).sigmas_of(4, mu=mu, shares=shares)
    scheduler.set_timesteps(sigmas=shares, mu=mu)
    torch.testing.assert_close(sigmas / (1 + sigmas), scheduler.sigmas[:-1].double().clamp(max=1 - 1e-6))


@pytest.mark.parametrize(
    ('model', 'scheduler', 'cond'),
    [
        (lambda: unet(5), diffusers.DDIMScheduler(clip_sample=False), LABELS),
        (lambda: unet(None, 4), diffusers.DDIMScheduler(clip_sample=False), None),
        (text_unet, diffusers.DDIMScheduler(clip_sample=False, prediction_type='v_prediction', **SCALED), TEXT),
        (dit, diffusers.DDIMScheduler(clip_sample=False), LABELS),
    ],
    ids=['classes', 'learned variance', 'text', 'DiT'],
)
def test_conditions_and_learned_variance_reach_the_model_as_in_a_pipeline(model: Callable[[], Any], scheduler: Any, cond: Any) -> None:
    denoiser = DiffusersDenoiser(model(), scheduler)
    sigmas = denoiser.sigmas_of(5)
    ours = sample(denoiser, LATENTS / (sigmas[0] * c_in(sigmas[0])), cond=cond, sigmas=sigmas, solver='euler')
    conditions = {'class_labels': cond} if isinstance(cond, Tensor) else cond or {}
    assert distance(ours, chain(model(), scheduler, 5, LATENTS, **conditions)) < 1e-5


def test_classifier_free_guidance_is_that_of_a_pipeline() -> None:
    """The pipelines' guidance scale 7.5 is a weight of 6.5; one empty prompt stands for the batch."""
    empty = {'encoder_hidden_states': normal(1, 5, 12, seed=4)}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **SCALED)
    denoiser = DiffusersDenoiser(text_unet(), scheduler)
    guided, sigmas = Guided(denoiser, [ClassifierFree(6.5, empty)]), denoiser.sigmas_of(5)
    ours = sample(guided, LATENTS / (sigmas[0] * c_in(sigmas[0])), cond=TEXT, sigmas=sigmas, solver='euler')

    def model(x: Tensor, **options: Any) -> tuple[Tensor]:
        cond, uncond = (
            text_unet()(x, encoder_hidden_states=e, **options)[0] for e in (TEXT['encoder_hidden_states'], empty['encoder_hidden_states'].expand(2, -1, -1))
        )
        return (uncond + 7.5 * (cond - uncond),)

    assert distance(ours, chain(model, scheduler, 5, LATENTS)) < 1e-5


def test_pipeline_that_ends_above_zero_is_passed_through() -> None:
    """set_alpha_to_one=False: the state after the pipeline's last step is ours before the one step more."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **SCALED)
    denoiser = DiffusersDenoiser(unet(), scheduler)
    sigmas, states = denoiser.sigmas_of(5), []
    assert len(sigmas) == 6
    assert float(sigmas[-1]) == denoiser.sigma_min
    sample(denoiser, LATENTS / (sigmas[0] * c_in(sigmas[0])), sigmas=sigmas, solver='euler', callback=lambda i, x, D: states.append(x))
    assert distance(states[4] * c_in(sigmas[-1]), chain(unet(), scheduler, 5, LATENTS)) < 1e-5
    ends = diffusers.EulerDiscreteScheduler(final_sigmas_type='sigma_min', timestep_spacing='trailing', **SCALED)
    assert float(DiffusersDenoiser(unet(), ends).sigmas_of(5)[-1]) == pytest.approx(denoiser.sigma_min, rel=1e-6)


def test_zero_terminal_signal_has_a_finite_last_level() -> None:
    options = {'prediction_type': 'v_prediction', 'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing', **SCALED}
    scheduler = diffusers.EulerDiscreteScheduler(**options)
    denoiser, ddim = DiffusersDenoiser(unet(), scheduler), DiffusersDenoiser(unet(), diffusers.DDIMScheduler(clip_sample=False, **options))
    assert denoiser.sigma_max == pytest.approx(4096, rel=1e-6)
    assert ddim.sigma_max == pytest.approx(131072, rel=1e-6)
    sigmas, states = denoiser.sigmas_of(8), []
    ours = sample(denoiser, LATENTS, sigmas=sigmas, solver='euler', callback=lambda i, x, D: states.append(x))
    # diffusers' first step takes two states of 4096 times the image from each other, in float32; the others agree as everywhere.
    assert float((states[0] - chain(unet(), scheduler, 8, LATENTS * float(sigmas[0]), last=1)).abs().max()) < 4096 * 2**-22
    assert distance(ours, chain(unet(), scheduler, 8, states[0].float(), first=1)) < 1e-5
    # DDIM itself starts from exactly no signal.
    theirs = chain(unet(), diffusers.DDIMScheduler(clip_sample=False, **options), 8, LATENTS)
    assert distance(sample(ddim, LATENTS, sigmas=ddim.sigmas_of(8), solver='euler'), theirs) < 1e-5


# --- the denoiser --------------------------------------------------------------------------------------------------------


class Constant(diffusers.UNet2DModel):
    """Predicts what it is told to, whatever its input."""

    answer: Tensor
    seen: dict[str, Any]

    def forward(self, sample: Tensor, timestep: Any, class_labels: Any = None, return_dict: bool = True) -> tuple[Tensor]:
        self.seen = {'sample': sample, 'timestep': timestep, 'class_labels': class_labels}
        return (self.answer.to(sample.dtype),)


@pytest.mark.parametrize('prediction_type', PREDICTION_TYPES)
def test_perfect_prediction_gives_back_the_clean_image(prediction_type: str) -> None:
    flow = prediction_type == 'flow'
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDPMScheduler(prediction_type=prediction_type)
    model = Constant(sample_size=4, in_channels=2, out_channels=2, block_out_channels=(32,), down_block_types=('DownBlock2D',), up_block_types=('UpBlock2D',))
    denoiser = DiffusersDenoiser(model.double(), scheduler)
    y, n, sigma = normal(3, 2, 4, 4).double(), normal(3, 2, 4, 4, seed=1).double(), torch.tensor([0.02, 1.3, 40.0], dtype=torch.float64)
    s = sigma.reshape(-1, 1, 1, 1)
    model.answer = {'epsilon': n, 'sample': y, 'v_prediction': (n - s * y) / (1 + s**2).sqrt(), 'flow': n - y}[prediction_type]
    torch.testing.assert_close(denoiser(y + s * n, sigma), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.seen['sample'], (y + s * n) * c_in(s, flow))
    assert model.seen['timestep'].dtype == torch.float32
    torch.testing.assert_close(denoiser.sigma_of(model.seen['timestep'].double()), sigma, rtol=1e-4, atol=0)
    model.answer = model.answer[1:2]
    one = torch.tensor(1.3, dtype=torch.float64)
    torch.testing.assert_close(denoiser((y + s * n)[1:2], one), y[1:2], rtol=0, atol=1e-12)


def test_one_sigma_for_all_equals_one_per_sample_and_the_protocol_holds() -> None:
    denoiser = DiffusersDenoiser(unet(), diffusers.DDPMScheduler())
    assert isinstance(denoiser, Denoiser)
    x = 3 * LATENTS.double()
    per_sample = denoiser(x, torch.full((2,), 2.5, dtype=torch.float64))
    assert torch.equal(denoiser(x, torch.tensor(2.5, dtype=torch.float64)), per_sample)
    assert per_sample.dtype == torch.float64
    assert denoiser(x.float(), torch.tensor(2.5)).dtype == torch.float32
    different = denoiser(x, torch.tensor([2.5, 0.3], dtype=torch.float64))
    torch.testing.assert_close(different[:1], denoiser(x[:1], torch.tensor(2.5)), rtol=1e-5, atol=1e-5)


def test_network_runs_in_its_own_precision() -> None:
    low, full = copy.deepcopy(text_unet()).to(torch.bfloat16), text_unet()
    x, sigma = 2 * LATENTS.double(), torch.tensor(2.0, dtype=torch.float64)
    a, b = (DiffusersDenoiser(model, diffusers.DDPMScheduler())(x, sigma, TEXT) for model in (low, full))
    assert a.dtype == b.dtype == torch.float64
    assert 0 < distance(a, b) < 0.05


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ('model', 'scheduler', 'cond'),
    [
        (lambda: unet(5), diffusers.DDPMScheduler(), LABELS),
        (text_unet, diffusers.DDPMScheduler(prediction_type='v_prediction', **SCALED), TEXT),
        (dit, diffusers.DDPMScheduler(), LABELS),
        (sd3, diffusers.FlowMatchEulerDiscreteScheduler(), SD3_TEXT),
    ],
    ids=['classes', 'text', 'DiT', 'flow'],
)
def test_whole_chain_of_a_half_precision_model_is_near_that_of_the_full_one(model: Callable[[], Any], scheduler: Any, cond: Any, dtype: torch.dtype) -> None:
    low, full = (DiffusersDenoiser(m, scheduler) for m in (copy.deepcopy(model()).to(dtype), model()))
    for solver in ('heun', 'unipc'):
        a, b = (sample(denoiser, LATENTS, cond=cond, num_steps=4, solver=solver) for denoiser in (low, full))
        assert 0 < distance(a, b) < (0.005 if dtype == torch.float16 else 0.04)


def test_whatever_is_not_finite_comes_back_as_it_is() -> None:
    x = LATENTS.clone()
    x[0, 0, 0, 0] = math.nan
    D = DiffusersDenoiser(unet(), diffusers.DDPMScheduler())(x, torch.tensor(1.0))
    assert D[0].isnan().any()
    assert D[1].isfinite().all()


@pytest.mark.parametrize('timesteps', ['continuous', 'rounded'])
def test_sigma_on_the_host_meets_images_on_any_device_and_nothing_is_read_back(timesteps: str) -> None:
    """The meta device stands for an accelerator: tensors there mix with CPU numbers only, and reading a value raises."""
    model = copy.deepcopy(unet(5)).to('meta')
    denoiser = DiffusersDenoiser(model, diffusers.DDPMScheduler(), timesteps=timesteps)
    x = LATENTS.to('meta')
    assert denoiser(x, torch.tensor(2.5, dtype=torch.float64), LABELS).device.type == 'meta'
    assert denoiser(x, torch.tensor([2.5, 1.0]).to('meta'), LABELS).device.type == 'meta'
    assert sample(denoiser, x, cond=LABELS, num_steps=3).device.type == 'meta'


def test_gradients_reach_the_image() -> None:
    x = LATENTS.clone().requires_grad_()
    DiffusersDenoiser(unet(), diffusers.DDPMScheduler())(x, torch.tensor(1.0)).square().sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


# --- noise levels and timesteps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scheduler', [diffusers.DDPMScheduler(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)], ids=lambda s: type(s).__name__)
def test_timesteps_and_noise_levels_are_inverse(scheduler: Any) -> None:
    denoiser = DiffusersDenoiser(unet(), scheduler)
    t = torch.tensor([1.0, 2.25, 500.0, 998.5, 999.0])
    torch.testing.assert_close(denoiser.timestep_of(denoiser.sigma_of(t)), t.double(), rtol=1e-9, atol=1e-9)
    outside = denoiser.timestep_of(torch.tensor([0.0, 1e9]))
    torch.testing.assert_close(denoiser.sigma_of(outside), torch.tensor([denoiser.sigma_min, denoiser.sigma_max]).double())


def test_levels_of_whole_timesteps_are_the_schedulers_table() -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule='squaredcos_cap_v2')
    denoiser = DiffusersDenoiser(unet(), scheduler)
    alpha_bar = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(denoiser.sigma_of(torch.arange(1000)), ((1 - alpha_bar) / alpha_bar).sqrt(), rtol=1e-12, atol=0)
    flow = DiffusersDenoiser(unet(), diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0))
    assert float(flow.sigma_of(750)) == pytest.approx(3)


@pytest.mark.parametrize('scheduler', [diffusers.DDPMScheduler(), diffusers.FlowMatchEulerDiscreteScheduler()], ids=lambda s: type(s).__name__)
def test_rounded_denoiser_and_sampler_agree_on_whole_timesteps(scheduler: Any) -> None:
    denoiser = DiffusersDenoiser(unet(), scheduler, timesteps='rounded')
    sigma = torch.tensor([0.05, 0.7, 33.0], dtype=torch.float64)
    snapped = denoiser.round_sigma(sigma)
    t = denoiser.timestep_of(sigma)
    assert torch.equal(t, t.round())
    assert torch.equal(snapped, denoiser.sigma_of(t))
    assert torch.equal(denoiser.round_sigma(snapped), snapped)
    for neighbour in (denoiser.sigma_of(t - 1), denoiser.sigma_of(t + 1)):
        assert ((sigma.log() - snapped.log()).abs() < (sigma.log() - neighbour.log()).abs()).all()
    continuous = DiffusersDenoiser(unet(), scheduler)
    assert torch.equal(continuous.round_sigma(sigma), sigma)
    assert torch.equal(denoiser(LATENTS, snapped[:2]), continuous(LATENTS, snapped[:2]))
    assert torch.isfinite(sample(denoiser, LATENTS, num_steps=4)).all()


def test_learned_time_embedding_works_with_whole_timesteps_only() -> None:
    model = unet(time_embedding_type='learned', num_train_timesteps=1000)
    with pytest.raises(RecipeError, match='rounded'):
        DiffusersDenoiser(model, diffusers.DDPMScheduler())
    denoiser = DiffusersDenoiser(model, diffusers.DDPMScheduler(), timesteps='rounded')
    assert torch.isfinite(denoiser(LATENTS, torch.tensor(1.0))).all()
    assert torch.isfinite(denoiser(LATENTS, torch.tensor([1.0, 5.0]))).all()


def test_config_of_a_scheduler_is_as_good_as_the_scheduler() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type='v_prediction', timestep_spacing='trailing', **SCALED)
    config = {**scheduler.config, '_class_name': 'EulerDiscreteScheduler'}
    a, b = DiffusersDenoiser(unet(), scheduler), DiffusersDenoiser(unet(), config)
    assert (a.sigma_min, a.sigma_max, a.prediction_type) == (b.sigma_min, b.sigma_max, b.prediction_type)
    assert torch.equal(a.sigmas_of(7), b.sigmas_of(7))
    assert DiffusersDenoiser(unet(), config, prediction_type='sample').prediction_type == 'sample'


@pytest.mark.parametrize(
    'name', ['DDPM', 'PNDM', 'LMSDiscrete', 'KDPM2Discrete', 'DPMSolverMultistep', 'UniPCMultistep', 'DEISMultistep', 'LCM', 'EulerAncestralDiscrete']
)
def test_noise_levels_of_other_schedulers_can_be_sampled(name: str) -> None:
    scheduler = getattr(diffusers, f'{name}Scheduler')(**SCALED)
    denoiser = DiffusersDenoiser(unet(), scheduler)
    sigmas = denoiser.sigmas_of(6)
    scheduler.set_timesteps(6)
    # Where its first timestep is.
    assert float(denoiser.timestep_of(sigmas[0])) == pytest.approx(float(scheduler.timesteps[0]), abs=0.01)
    assert torch.isfinite(sample(denoiser, LATENTS, sigmas=sigmas, solver='euler')).all()


def test_dynamic_shifting_needs_mu() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    denoiser = DiffusersDenoiser(sd3(), scheduler)
    with pytest.raises(RecipeError, match='mu'):
        denoiser.sigmas_of(4)
    sigmas = denoiser.sigmas_of(4, mu=0.8)
    scheduler.set_timesteps(4, mu=0.8)
    torch.testing.assert_close(sigmas / (1 + sigmas), scheduler.sigmas[:-1].double(), rtol=0, atol=2e-6)
    with pytest.raises(RecipeError, match='mu'):
        DiffusersDenoiser(sd3(), diffusers.FlowMatchEulerDiscreteScheduler()).sigmas_of(4, mu=0.8)


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('scheduler', 'options', 'named'),
    [
        ({'_class_name': 'DDIMSheduler'}, {}, 'DDIMScheduler'),
        ({'_class_name': 'DDIMShedulerScheduler'}, {}, 'DDIMScheduler'),
        ({'beta_schedule': 'linear'}, {}, '_class_name'),
        (diffusers.EDMEulerScheduler(), {}, 'EDMEulerScheduler'),
        (object(), {}, 'object'),
        (diffusers.RePaintScheduler(), {}, 'prediction_type'),
        (diffusers.DDPMScheduler(), {'prediction_type': 'eps'}, 'epsilon'),
        (diffusers.DDPMScheduler(), {'prediction_type': 'flow'}, 'beta'),
        (diffusers.FlowMatchEulerDiscreteScheduler(), {'prediction_type': 'v_prediction'}, 'flow'),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), {}, 'invert_sigmas'),
        (diffusers.EulerDiscreteScheduler(timestep_type='continuous', prediction_type='v_prediction'), {}, 'timestep_type'),
        (diffusers.DDPMScheduler(trained_betas=[0.1, 0.0, 0.1], num_train_timesteps=3), {}, 'beta'),
        (diffusers.DDPMScheduler(), {'timesteps': 'round'}, 'rounded'),
    ],
)
def test_schedules_that_cannot_be_honoured_are_refused(scheduler: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        DiffusersDenoiser(unet(), scheduler, **options)


@pytest.mark.parametrize(
    ('model', 'named'),
    [
        (lambda: torch.nn.Linear(2, 2), 'Linear'),
        (lambda: diffusers.UNet1DModel(block_out_channels=(32,), down_block_types=('DownBlock1DNoSkip',), up_block_types=('UpBlock1DNoSkip',)), 'UNet2DModel'),
        (lambda: unet(time_embedding_type='fourier'), 'fourier'),
        (lambda: unet(None, 3), 'channels'),
    ],
)
def test_models_without_an_adapter_are_refused(model: Callable[[], Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        DiffusersDenoiser(model(), diffusers.DDPMScheduler())


@pytest.mark.parametrize(
    ('model', 'cond', 'named'),
    [
        (unet, LABELS, 'class_labels'),
        (unet, {'class_label': LABELS}, 'class_label'),
        (lambda: unet(5), None, 'class_labels'),
        (lambda: unet(5), LABELS[:1], 'one row'),
        (lambda: unet(5), torch.tensor([0, 5]), 'label 5 .* 0 to 4'),
        (lambda: unet(5), torch.tensor([-1, 0]), 'label -1 '),
        (lambda: unet(5), torch.eye(5)[:2], 'class index'),
        (lambda: unet(5), [1, 4], 'class_labels'),
        (text_unet, {'encoder_hidden_states': 'a dog'}, 'encoder_hidden_states'),
        (dit, torch.tensor([5, 6]), 'label 6 .* 0 to 5'),
        (text_unet, None, 'encoder_hidden_states'),
        (text_unet, LABELS, 'class_labels'),
        (text_unet, {'encoder_hidden_state': TEXT['encoder_hidden_states']}, 'encoder_hidden_states'),
        (text_unet, {'encoder_hidden_states': TEXT['encoder_hidden_states'][:1]}, 'one row'),
        (lambda: text_unet(addition_embed_type='text_time', addition_time_embed_dim=4, projection_class_embeddings_input_dim=34), TEXT, 'added_cond_kwargs'),
        (dit, None, 'class_labels'),
        (sd3, TEXT, 'pooled_projections'),
        (sd3, LABELS, 'class_labels'),
        (flux, SD3_TEXT, 'guidance'),
        (lambda: flux(False), {**SD3_TEXT, 'img_ids': torch.zeros(16, 3)}, 'img_ids'),
        (lambda: pixart(True), MASKED, 'added_cond_kwargs'),
        (sana, {'encoder_attention_mask': MASKED['encoder_attention_mask']}, 'encoder_hidden_states'),
        (lambda: text_unet(time_cond_proj_dim=6), TEXT, 'timestep_cond'),
    ],
)
def test_conditions_that_do_not_fit_are_refused_before_the_network_runs(model: Callable[[], Any], cond: Any, named: str) -> None:
    network, ran = model(), []
    hook = network.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(ModelError, match=named):
            DiffusersDenoiser(network, diffusers.DDPMScheduler())(LATENTS, torch.tensor(1.0), cond)
    finally:
        hook.remove()
    assert not ran


def test_nested_conditions_reach_the_model() -> None:
    model = text_unet(addition_embed_type='text_time', addition_time_embed_dim=4, projection_class_embeddings_input_dim=34)
    added = {'text_embeds': normal(2, 10), 'time_ids': normal(2, 6, seed=3)}
    denoiser, x, sigma = DiffusersDenoiser(model, diffusers.DDPMScheduler()), LATENTS.double(), torch.tensor(1.0)
    D = denoiser(x, sigma, {**TEXT, 'added_cond_kwargs': added})
    other = denoiser(x, sigma, {**TEXT, 'added_cond_kwargs': {**added, 'text_embeds': -added['text_embeds']}})
    assert distance(other, D) > 1e-4


def test_wrong_numbers_of_channels_and_steps_are_refused() -> None:
    denoiser = DiffusersDenoiser(unet(), diffusers.DDPMScheduler())
    with pytest.raises(ModelError, match='3 channels'):
        denoiser(normal(1, 3, 8, 8), torch.tensor(1.0))
    for steps in (0, 1001, 2.5, True):
        with pytest.raises(RecipeError, match='num_steps'):
            denoiser.sigmas_of(steps)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match='do not fall'):
        DiffusersDenoiser(unet(), diffusers.DDIMInverseScheduler()).sigmas_of(4)


# --- the autoencoder -----------------------------------------------------------------------------------------------------


def vae(**options: Any) -> Any:
    torch.manual_seed(0)
    blocks = {'down_block_types': ('DownEncoderBlock2D',) * 2, 'up_block_types': ('UpDecoderBlock2D',) * 2, 'block_out_channels': (8, 8)}
    return diffusers.AutoencoderKL(latent_channels=2, norm_num_groups=4, **blocks, **options).eval().requires_grad_(False)


IMAGES = normal(2, 3, 16, 16).clamp(-1, 1)


def with_vae(autoencoder: Any) -> DiffusersDenoiser:
    return DiffusersDenoiser(unet(), diffusers.DDPMScheduler(), vae=autoencoder)


@pytest.mark.parametrize(
    ('options', 'to_latents'),
    [
        ({'scaling_factor': 0.18215}, lambda z: z * 0.18215),
        ({'scaling_factor': 1.5305, 'shift_factor': 0.0609}, lambda z: (z - 0.0609) * 1.5305),
        (
            {'scaling_factor': 0.5, 'latents_mean': [0.1, -0.2], 'latents_std': [2.0, 3.0]},
            lambda z: (z - torch.tensor([0.1, -0.2]).reshape(2, 1, 1)) * 0.5 / torch.tensor([2.0, 3.0]).reshape(2, 1, 1),
        ),
    ],
    ids=['factor', 'shift', 'statistics'],
)
def test_latents_are_scaled_as_the_vae_says(options: dict[str, Any], to_latents: Callable[[Tensor], Tensor]) -> None:
    autoencoder = vae(**options)
    denoiser, posterior = with_vae(autoencoder), autoencoder.encode(IMAGES).latent_dist
    latents = denoiser.encode(IMAGES)
    torch.testing.assert_close(latents, to_latents(posterior.mean))
    noise = normal(*posterior.mean.shape)
    torch.testing.assert_close(denoiser.encode(IMAGES, noise), to_latents(posterior.mean + posterior.std * noise))
    torch.testing.assert_close(denoiser.decode(latents), autoencoder.decode(posterior.mean).sample)


def test_vae_runs_in_its_own_precision() -> None:
    denoiser = with_vae(vae().to(torch.bfloat16))
    latents = denoiser.encode(IMAGES.double())
    assert latents.dtype == denoiser.decode(latents).dtype == torch.float64


def test_autoencoder_without_a_posterior_takes_no_noise() -> None:
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=2
    ).eval()
    denoiser = with_vae(tiny)
    torch.testing.assert_close(denoiser.encode(IMAGES), tiny.encode(IMAGES).latents)
    with pytest.raises(ModelError, match='posterior'):
        denoiser.encode(IMAGES, LATENTS)
    with pytest.raises(ModelError, match='no VAE'):
        DiffusersDenoiser(unet(), diffusers.DDPMScheduler()).decode(LATENTS)
