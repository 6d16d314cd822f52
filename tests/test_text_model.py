"""Every family of text-to-image pipelines is known without weights, and makes what the stock pipeline makes of the same noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
import transformers
from torch import Tensor

from synthaug_plugins.diffusion import sample
from synthaug_plugins.diffusion.guidance import ClassifierFree, Guided
from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.models import encoding
from synthaug_plugins.models.text_model import TextModel

CPU = torch.device('cpu')
PROMPTS = ['a photo of the digit three', 'a cat on table']

BUILDERS: dict[str, Callable[[Path], Path]] = {
    'sd': tiny.sd,
    'sd 2': lambda folder: tiny.sd(folder, tiny.ddim(prediction_type='v_prediction')),
    'sd turbo': lambda folder: tiny.sd(folder, diffusers.EulerDiscreteScheduler(timestep_spacing='trailing', **tiny.SCALED)),
    'lcm': lambda folder: tiny.sd(folder, lcm=True),
    'sdxl': tiny.sdxl,
    'sdxl encodes the empty prompt': lambda folder: tiny.sdxl(folder, force_zeros_for_empty_prompt=False),
    'sd3': tiny.sd3,
    'sd3 without T5': lambda folder: tiny.sd3(folder, t5=False),
    'sd3 shifted by size': lambda folder: tiny.sd3(folder, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)),
    'flux dev': tiny.flux,
    'flux schnell': lambda folder: tiny.flux(folder, dev=False),
    'pixart alpha': tiny.pixart,
    'pixart sigma': lambda folder: tiny.pixart(folder, sigma=True),
    'sana': tiny.sana,
}
SIZES = {'flux dev': 16, 'flux schnell': 16, 'pixart alpha': 16}  # whose own size would take long


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pipeline, built when it is first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = BUILDERS[name](tmp_path_factory.mktemp('pipelines'))
        return made[name]

    return get


@pytest.fixture(scope='module')
def loaded(folder: Callable[[str], Path]) -> Callable[[str], tuple[TextModel, Any]]:
    """A model and its denoiser in float32, loaded when it is first asked for."""
    made: dict[str, tuple[TextModel, Any]] = {}

    def get(name: str) -> tuple[TextModel, Any]:
        if name not in made:
            model = TextModel(str(folder(name)), image_size=SIZES.get(name))
            made[name] = model, model.load(CPU, torch.float32)
        return made[name]

    return get


INDEX, UNET = 'model_index.json', 'unet/diffusion_pytorch_model.safetensors'


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def stock(model: TextModel, noise: Tensor, steps: int, scale: float, negative: str | None = None, scheduler: Any = None) -> Tensor:
    """The latents of diffusers' own pipeline."""
    absent = {name: None for name in ('text_encoder_3', 'tokenizer_3') if model.family == 'sd3' and len(model._encoders) == 2}
    pipeline = model.pipeline_class.from_pretrained(model.files.folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler
    options: dict[str, Any] = {'height': model.image_size[0], 'width': model.image_size[1], 'output_type': 'latent'}
    if model.family in ('pixart', 'sana'):
        options['use_resolution_binning'] = False
    if model.family == 'pixart':
        options['clean_caption'] = False
    if negative is not None:
        options['negative_prompt'] = [negative] * len(noise)
    flux = model.family == 'flux'
    latents = pipeline._pack_latents(noise, *noise.shape) if flux else noise
    out = pipeline(PROMPTS, latents=latents.clone(), num_inference_steps=steps, guidance_scale=scale, **options)[0]
    return pipeline._unpack_latents(out, *model.image_size, pipeline.vae_scale_factor) if flux else out


def ours(model: TextModel, denoiser: Any, noise: Tensor, steps: int, scale: float, negative: str | None = None) -> Tensor:
    """Euler through the levels that the pipeline visits, from where it begins: unit noise in the network's coordinates, Euler's in its own."""
    sigmas = model.visited_sigmas(steps)
    first, name = sigmas[0], model._scheduler_config['_class_name']
    begin = 1 + 1 / first if model.flow else (1 + first**-2) ** 0.5
    if name.startswith('Euler'):
        spacing = model._scheduler_config['timestep_spacing']
        begin = (1 + first**-2) ** 0.5 if spacing == 'leading' else 1.0
    if model.guidance == 'free' and scale > 1:
        uncond = model.conditions([negative or ''] * len(noise), negative=True)
        denoiser = Guided(denoiser, [ClassifierFree(scale - 1, uncond)])
    return sample(denoiser, noise * begin, cond=model.conditions(PROMPTS, scale), sigmas=sigmas, solver='euler')


# --- the stock pipelines -------------------------------------------------------------------------------------------------

# Everything differs by float32 alone, flows by a first level of a share of 1 - 1e-6 of noise, too (see FlowTimesteps).
CASES = [
    ('sd', 4, 3.0, 'blurred'),
    ('sd', 4, 1.0, None),
    ('sd 2', 4, 7.5, None),
    ('sd turbo', 1, 1.0, None),
    ('sd turbo', 4, 1.0, None),
    ('lcm', 1, 8.5, None),
    ('sdxl', 4, 3.0, 'blurred'),
    ('sdxl', 4, 3.0, None),
    ('sdxl encodes the empty prompt', 4, 3.0, None),
    ('sd3', 4, 3.0, 'blurred'),
    ('sd3 without T5', 4, 3.0, None),
    ('sd3 shifted by size', 4, 3.0, None),
    ('flux dev', 4, 3.5, None),
    ('flux schnell', 4, 0.0, None),
    ('pixart alpha', 4, 3.0, 'blurred'),
    ('pixart sigma', 4, 3.0, None),
]


@pytest.mark.parametrize(('name', 'steps', 'scale', 'negative'), CASES)
def test_latents_are_those_of_the_stock_pipeline(
    loaded: Callable[[str], tuple[TextModel, Any]], name: str, steps: int, scale: float, negative: str | None
) -> None:
    model, denoiser = loaded(name)
    noise = normal(2, *model.size)
    assert distance(ours(model, denoiser, noise, steps, scale, negative), stock(model, noise, steps, scale, negative)) < 1e-5


class Exact(diffusers.DPMSolverMultistepScheduler):
    """Without the cut of a flow's timesteps to whole numbers."""

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        super().set_timesteps(*args, **options)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps


def test_sana_makes_the_stock_latents_but_for_cut_timesteps(loaded: Callable[[str], tuple[TextModel, Any]]) -> None:
    """diffusers' solver tells Sana whole timesteps, cut from those that its noise levels have; told those, it ends where we do."""
    model, denoiser = loaded('sana')
    noise = normal(2, *model.size)
    result = ours(model, denoiser, noise, 4, 3.0, 'blurred')
    assert distance(result, stock(model, noise, 4, 3.0, 'blurred', Exact.from_config(model._scheduler_config))) < 3e-6
    assert distance(result, stock(model, noise, 4, 3.0, 'blurred')) < 0.1


def test_a_consistency_model_denoises_as_its_pipeline_does_at_every_level(loaded: Callable[[str], tuple[TextModel, Any]]) -> None:
    """Its pipeline adds fresh noise between steps, so that chains cannot agree; what it takes for the image at each step does."""
    model, denoiser = loaded('lcm')
    pipeline = model.pipeline_class.from_pretrained(model.files.folder)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[tuple[float, Tensor, Tensor]] = []
    step = pipeline.scheduler.step

    def spy(output: Tensor, t: Tensor, x: Tensor, **options: Any) -> Any:
        made = step(output, t, x, **options)
        seen.append((float(t), x.clone(), made[1].clone()))
        return made

    pipeline.scheduler.step = spy
    pipeline(PROMPTS, latents=normal(2, *model.size), num_inference_steps=4, guidance_scale=5.0, output_type='latent', height=16, width=16)
    cond, sigmas = model.conditions(PROMPTS, 5.0), model.visited_sigmas(4)
    assert [t for t, _, _ in seen] == pytest.approx([model.timestep_of(s) for s in sigmas])
    for (_, x, denoised), sigma in zip(seen, sigmas, strict=True):
        D = denoiser(x * (1 + sigma**2) ** 0.5, torch.tensor(sigma, dtype=torch.float64), cond)
        assert distance(D, denoised) < 1e-5


@pytest.mark.parametrize('pixels', [16, 32, (16, 24)])
def test_flux_shifts_its_levels_by_the_resolution(folder: Callable[[str], Path], pixels: Any) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    model = TextModel(str(folder('flux dev')), image_size=pixels)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(model._scheduler_config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 5, 5), mu=calculate_shift(model.size[1] * model.size[2] // 4))
    a = np.array([s / (1 + s) for s in model.visited_sigmas(5)])
    np.testing.assert_allclose(a, np.minimum(scheduler.sigmas[:-1], 1 - 1e-6), rtol=1e-6)


def test_images_and_latents_go_both_ways(loaded: Callable[[str], tuple[TextModel, Any]]) -> None:
    for name in ('sd', 'sd3', 'sana'):
        model, denoiser = loaded(name)
        latents = normal(2, *model.size)
        images = model.decode(latents)
        config = denoiser.vae.config
        mean = config.get('shift_factor') or 0.0
        expected = denoiser.vae.decode(latents / config.scaling_factor + mean, return_dict=False)[0]
        assert images.shape == (2, 3, *model.image_size)
        torch.testing.assert_close(images, expected)
        assert model.encode(images).shape == latents.shape


# --- prompts -------------------------------------------------------------------------------------------------------------


def rows(conditions: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for key, value in conditions.items() for k, v in (rows(value) if isinstance(value, dict) else {key: value}).items()}


@pytest.mark.parametrize('name', ['sd', 'sdxl', 'sd3', 'flux dev', 'pixart alpha', 'sana'])
def test_each_unique_prompt_is_encoded_once_and_keeps_its_row(loaded: Callable[[str], tuple[TextModel, Any]], name: str) -> None:
    model, _ = loaded(name)
    assert model._encoder is not None
    encoder, seen = model._encoder.pipeline.text_encoder, []
    hook = encoder.register_forward_pre_hook(lambda *_, **__: seen.append(1))
    try:
        new = ['two bold', 'one small dog', 'two bold', 'four']
        batch = rows(model.conditions(new))
        assert len(seen) == 3
        alone = rows(model.conditions(['one small dog']))
        model.conditions(['four', 'two bold'])
        assert len(seen) == 3
    finally:
        hook.remove()
    for key, value in batch.items():
        assert len(value) == 4
        assert torch.equal(value[1:2], alone[key])
        assert torch.equal(value[0], value[2])
    assert not torch.equal(batch['encoder_hidden_states'][0], batch['encoder_hidden_states'][1])


def test_what_to_move_away_from_is_encoded_as_the_pipeline_does_it(loaded: Callable[[str], tuple[TextModel, Any]]) -> None:
    """Sana: no instruction before it. SDXL: an empty one is zeros, if the pipeline says so; other words are words. The others: as any prompt."""
    for name, prompt, same in (
        ('sana', 'two', False),
        ('sdxl', '', False),
        ('sdxl', 'two', True),
        ('sdxl encodes the empty prompt', '', True),
        ('sd', '', True),
    ):
        model, _ = loaded(name)
        towards, away = (rows(model.conditions([prompt], negative=negative)) for negative in (False, True))
        assert torch.equal(towards['encoder_hidden_states'], away['encoder_hidden_states']) == same
        assert {k: v.shape for k, v in towards.items()} == {k: v.shape for k, v in away.items()}


def test_kept_prompts_stay_within_their_memory(loaded: Callable[[str], tuple[TextModel, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded('sd')
    encoder = encoding.PromptEncoder(model._family, model._encoder.pipeline, {})
    row = encoder(['two'])['encoder_hidden_states'].nbytes
    monkeypatch.setattr(encoding, 'KEPT_BYTES', 2 * row)
    assert len(encoder(['two', 'three', 'four', 'five'])['encoder_hidden_states']) == 4
    assert [text for text, _ in encoder._kept] == ['four', 'five']
    assert encoder._bytes == 2 * row


def test_a_distilled_model_is_told_the_scale_of_each_request(loaded: Callable[[str], tuple[TextModel, Any]]) -> None:
    for name, key in (('flux dev', 'guidance'), ('lcm', 'timestep_cond')):
        model, _ = loaded(name)
        both = model.conditions(PROMPTS, [2.0, 6.0])[key]
        assert torch.equal(both[1:], model.conditions(PROMPTS[1:], 6.0)[key])
        assert torch.equal(model.conditions(PROMPTS)[key], model.conditions(PROMPTS, model.default_guidance_scale)[key])
        with pytest.raises(RecipeError, match='guidance_scale'):
            model.conditions(PROMPTS, [1.0, 2.0, 3.0])
    assert 'guidance' not in loaded('sd')[0].conditions(PROMPTS, 3.0)


@pytest.mark.parametrize('absent', [('text_encoder',), ('text_encoder_2',), ('text_encoder', 'text_encoder_2')], ids=len)
def test_sd3_does_without_its_clips_as_it_was_trained_to(
    loaded: Callable[[str], tuple[TextModel, Any]], folder: Callable[[str], Path], tmp_path: Path, absent: tuple[str, ...]
) -> None:
    """The place of a missing encoder holds zeros, and the others stay where they are."""
    copy = Path(shutil.copytree(folder('sd3'), tmp_path / 'pipeline'))
    for name in (*absent, *(e.replace('text_encoder', 'tokenizer') for e in absent)):
        edit(copy / INDEX, **{name: [None, None]})
        shutil.rmtree(copy / name)
    whole = loaded('sd3')[0].conditions(PROMPTS)
    embeds, pooled = whole['encoder_hidden_states'].clone(), whole['pooled_projections'].clone()
    for k, name in enumerate(('text_encoder', 'text_encoder_2')):
        if name in absent:
            embeds[:, :20, 16 * k : 16 * k + 16], pooled[:, 16 * k : 16 * k + 16] = 0, 0
    model = TextModel(str(copy))
    model.check_weights()
    denoiser = model.load(CPU, torch.float32)
    cond = model.conditions(PROMPTS)
    if len(absent) == 2:  # 77 places, as CLIP has them; these tests' have 20
        assert not cond['encoder_hidden_states'][:, :77].any()
        assert cond['encoder_hidden_states'].shape[1] == 77 + 256
    else:
        assert torch.equal(cond['encoder_hidden_states'], embeds)
    assert torch.equal(cond['encoder_hidden_states'][:, -256:], embeds[:, -256:])
    assert torch.equal(cond['pooled_projections'], pooled)
    assert torch.isfinite(denoiser(normal(2, *model.size), torch.tensor(2.0), cond)).all()


def test_words_beyond_the_shortest_limit_are_cut_and_named(folder: Callable[[str], Path]) -> None:
    model = TextModel(str(folder('sdxl')))
    words = tiny.WORDS
    kept, cut = model.fit_prompt(' '.join(words))
    assert kept.split() + cut == words
    assert len(model.tokens.tokenizers['tokenizer'](kept).input_ids) == 20
    assert model.fit_prompt('a photo') == ('a photo', [])
    # FLUX's T5 sees what its CLIP does not.
    assert TextModel(str(folder('flux dev')), image_size=16).fit_prompt(' '.join(words))[1] == []
    assert TextModel(str(folder('pixart sigma'))).fit_prompt(' '.join(['dog'] * 400))[1] == ['dog'] * 101


# --- what is known without weights ---------------------------------------------------------------------------------------


def test_defaults_come_from_the_pipeline_and_few_step_models_take_no_guidance(folder: Callable[[str], Path]) -> None:
    found = {name: TextModel(str(folder(name)), image_size=16) for name in ('sd', 'sd turbo', 'lcm', 'sdxl', 'sd3', 'flux dev', 'flux schnell')}
    assert {name: (m.guidance, m.default_guidance_scale, m.default_steps) for name, m in found.items()} == {
        'sd': ('free', 7.5, 50),
        'sd turbo': ('none', 1.0, 4),
        'lcm': ('distilled', 8.5, 4),
        'sdxl': ('free', 5.0, 50),
        'sd3': ('free', 7.0, 28),
        'flux dev': ('distilled', 3.5, 28),
        'flux schnell': ('none', 1.0, 4),
    }
    assert TextModel(str(folder('sd turbo')), few_step=False).guidance == 'free'
    assert TextModel(str(folder('sd3')), few_step=True).default_guidance_scale == 1.0
    assert [m.flow for m in found.values()] == [False, False, False, False, True, True, True]
    model = found['sd']
    assert model.size == (4, 8, 8)
    assert model.timesteps == 1000
    assert model.sigma_of(model.timestep_of(3.0)) == pytest.approx(3.0)
    assert model.sigma_range == pytest.approx((0.02917, 14.6146), rel=1e-3)


# --- weights -------------------------------------------------------------------------------------------------------------


def test_shards_and_variants_are_read(folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder('sd'), tmp_path / 'pipeline'))
    diffusers.UNet2DConditionModel.from_pretrained(copy / 'unet').save_pretrained(tmp_path / 'split', max_shard_size='20KB')
    shards = sorted(p.name for p in (tmp_path / 'split').glob('*-of-*'))
    assert len(shards) > 1
    (copy / UNET).unlink()
    shutil.copytree(tmp_path / 'split', copy / 'unet', dirs_exist_ok=True)
    transformers.CLIPTextModel.from_pretrained(copy / 'text_encoder').save_pretrained(copy / 'text_encoder', variant='fp16')
    (copy / 'text_encoder/model.safetensors').unlink()
    model, whole = TextModel(str(copy), variant='fp16'), TextModel(str(folder('sd')))
    model.check_weights()
    x, sigma = normal(2, *model.size), torch.tensor(2.0)
    D, expected = (m.load(CPU, torch.float32)(x, sigma, m.conditions(PROMPTS)) for m in (model, whole))
    assert torch.equal(D, expected)
    (copy / 'unet' / shards[0]).unlink()
    with pytest.raises(ModelError, match=f'{shards[0]} is missing'):
        TextModel(str(copy), variant='fp16').check_weights()


def test_missing_tensors_of_an_encoder_are_never_made_up(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folder('sd'), tmp_path / 'pipeline'))
    weights = load_file(copy / 'text_encoder/model.safetensors')
    del weights[next(name for name in weights if 'q_proj' in name)]
    save_file(weights, copy / 'text_encoder/model.safetensors', {'format': 'pt'})
    with pytest.raises(ModelError, match=r'text_encoder lack .*q_proj'):
        TextModel(str(copy)).load(CPU, torch.float32)


def test_half_precision_leaves_an_overflowing_vae_in_float32(folder: Callable[[str], Path]) -> None:
    dtypes = {}
    for name in ('sd', 'sdxl'):
        model = TextModel(str(folder(name)))
        denoiser = model.load(CPU, torch.float16)
        dtypes[name] = denoiser.model.dtype, denoiser.vae.dtype
        assert model.conditions(PROMPTS)['encoder_hidden_states'].dtype == torch.float16
        assert torch.isfinite(model.decode(normal(1, *model.size))).all()
    assert dtypes == {'sd': (torch.float16, torch.float16), 'sdxl': (torch.float16, torch.float32)}


def test_a_tiny_autoencoder_takes_the_place_of_the_vae(folder: Callable[[str], Path], tmp_path: Path) -> None:
    tiny_folder = tiny.tiny_vae(tmp_path / 'taesd')
    model = TextModel(str(folder('sd')), tiny_vae=str(tiny_folder))
    model.check_weights()
    denoiser = model.load(CPU, torch.float32)
    latents = normal(2, *model.size)
    torch.testing.assert_close(model.decode(latents), diffusers.AutoencoderTiny.from_pretrained(tiny_folder).eval().decode(latents).sample.detach())
    assert denoiser.encode(normal(2, 3, 16, 16).clamp(-1, 1)).shape == latents.shape
    assert 'sha256' in model.identity()['tiny_vae']
    with pytest.raises(ModelError, match='AutoencoderKL'):
        TextModel(str(folder('sd')), tiny_vae=str(folder('sd') / 'vae'))


def test_memory_layout_and_compiling_leave_the_result_alone(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, 'compile', lambda module: compiled.append(module) or module)
    x, sigma, found = normal(2, 4, 8, 8), torch.tensor(2.0), []
    for options in ({'channels_last': False}, {'channels_last': True, 'compile': True}):
        model = TextModel(str(folder('sd')), **options)
        found.append(model.load(CPU, torch.float32)(x, sigma, model.conditions(PROMPTS)))
    assert [type(m).__name__ for m in compiled] == ['UNet2DConditionModel']
    assert distance(found[1], found[0]) < 1e-5


def test_nothing_works_before_loading(folder: Callable[[str], Path]) -> None:
    model = TextModel(str(folder('sd')))
    for call in (lambda: model.conditions(PROMPTS), lambda: model.decode(normal(1, 4, 8, 8)), lambda: model.encode(normal(1, 3, 16, 16))):
        with pytest.raises(ModelError, match='load'):
            call()


def test_the_safety_checker_judges_and_blackens_nothing(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    copy = Path(shutil.copytree(folder('sd'), tmp_path / 'pipeline'))
    vision = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'image_size': 16, 'patch_size': 8}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(transformers.CLIPConfig(vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(2.0)  # no cosine is higher: all is well
    checker.special_care_embeds_weights.data.fill_(2.0)
    checker.save_pretrained(copy / 'safety_checker')
    size = {'size': {'shortest_edge': 16}, 'crop_size': {'height': 16, 'width': 16}}
    transformers.CLIPImageProcessor(**size).save_pretrained(copy / 'feature_extractor')
    edit(copy / INDEX, safety_checker=['stable_diffusion', 'StableDiffusionSafetyChecker'], feature_extractor=['transformers', 'CLIPFeatureExtractor'])
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)

    def verdicts() -> list[bool]:
        model, before = TextModel(str(copy)), images.copy()
        model.check_weights()
        model.load(CPU, torch.float32)
        found = model.flagged(images)
        assert found is not None
        assert np.array_equal(images, before)
        return found.tolist()

    assert verdicts() == [False, False, False]
    checker.concept_embeds_weights.data.fill_(-2.0)
    checker.save_pretrained(copy / 'safety_checker')
    assert verdicts() == [True, True, True]
    model = TextModel(str(folder('sd')))
    assert not model.has_safety_checker
    assert model.flagged(images) is None
