"""Networks and their configs: published sizes, every layer learns, labels matter, precision stays where it should, wrong configs are refused."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from synthaug_plugins.diffusion.blocks import Resample
from synthaug_plugins.diffusion.ddpmpp import DDPMpp
from synthaug_plugins.diffusion.networks import build_denoiser, check_denoiser_config, parameter_count
from synthaug_plugins.diffusion.noise import SampleNoise
from synthaug_plugins.diffusion.preconditioning import IDDPMPrecond, Precond, VEPrecond, VPPrecond
from synthaug_plugins.errors import ModelError

BASE: dict[str, Any] = {'kind': 'edm', 'resolution': 8, 'channels': 1, 'classes': ['a', 'b'], 'label_conditioning': True, 'sigma_data': 0.5}
SIZE = {'channels': 16, 'channel_mult': [1, 2], 'blocks_per_level': 1, 'attention_resolutions': [4]}
NCSNPP = {'embedding': 'fourier', 'resample_filter': [1, 3, 3, 1], 'pyramid': True}
DDPMPP = {**BASE, 'augment_labels': 9, 'network': {'type': 'ddpmpp', **SIZE}}
CONFIGS: dict[str, dict[str, Any]] = {
    'ddpmpp': DDPMPP,
    'ncsnpp': {**BASE, 'augment_labels': 9, 'network': {'type': 'ddpmpp', **SIZE, **NCSNPP}},
    'adm': {**BASE, 'augment_labels': 9, 'network': {'type': 'adm', **SIZE, 'head_channels': 8}},
}
each = pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)


def stirred(config: dict[str, Any]) -> Precond:
    """A denoiser none of whose layers is zero."""
    torch.manual_seed(0)
    denoiser = build_denoiser(config).eval()
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return denoiser


def loss(denoiser: Precond, y: Tensor, sigma: Tensor, cond: Tensor | None = None, **extra: Tensor) -> Tensor:
    """EDM's weighted error, mean over the pixels of each image."""
    D = denoiser(y + sigma[:, None, None, None] * torch.randn_like(y), sigma, cond, **extra)
    return (denoiser.loss_weight(sigma)[:, None, None, None] * (D - y) ** 2).mean(dim=(1, 2, 3))


def published_config(network: str, resolution: int, classes: int = 0, augment_labels: int = 0, **options: Any) -> dict[str, Any]:
    names = [str(i) for i in range(classes)]
    base = {**BASE, 'resolution': resolution, 'channels': 3, 'classes': names, 'label_conditioning': classes > 0, 'augment_labels': augment_labels}
    return {**base, 'network': {'type': network, **options}}


@pytest.mark.parametrize(
    ('config', 'millions'),
    [
        (published_config('ddpmpp', 32, augment_labels=9), '55.734'),
        (published_config('ddpmpp', 32, classes=10, augment_labels=9), '55.735'),
        (published_config('ddpmpp', 32, channel_mult=[1, 2, 2, 2]), '61.804'),
        (published_config('ddpmpp', 64, augment_labels=9, channel_mult=[1, 2, 2, 2]), '61.806'),
        (published_config('ddpmpp', 32, augment_labels=9, **NCSNPP), '56.40'),
        (published_config('ddpmpp', 64, augment_labels=9, channel_mult=[1, 2, 2, 2], **NCSNPP), '62.76'),
        (published_config('adm', 64, classes=1000), '295.90'),
    ],
    ids=lambda v: v if isinstance(v, str) else v['network']['type'],
)
def test_parameter_count_is_the_published_one(config: dict[str, Any], millions: str) -> None:
    decimals = len(millions.partition('.')[2])
    assert f'{parameter_count(config) / 1e6:.{decimals}f}' == millions


@each
@pytest.mark.parametrize('sigma', [0.01, 0.5, 20.0])
def test_initial_loss_is_one_at_every_noise_level(config: dict[str, Any], sigma: float) -> None:
    torch.manual_seed(0)
    y = 0.5 * torch.randn(1000, 1, 8, 8)
    with torch.no_grad():
        assert float(loss(build_denoiser(config), y, torch.full((1000,), sigma)).mean()) == pytest.approx(1, abs=0.03)


@each
def test_no_label_is_the_null_label_and_labels_matter(config: dict[str, Any]) -> None:
    denoiser, x, sigma = stirred(config), torch.randn(3, 1, 8, 8), torch.tensor(0.7)
    null = denoiser(x, sigma, torch.full((3,), 2))
    assert torch.equal(denoiser(x, sigma), null)
    zeros, ones = denoiser(x, sigma, torch.zeros(3, dtype=torch.long)), denoiser(x, sigma, torch.ones(3, dtype=torch.long))
    assert not torch.allclose(zeros, ones)
    assert not torch.allclose(zeros, null)


@each
def test_a_class_s_own_vector_in_its_place_gives_its_output_to_the_bit(config: dict[str, Any]) -> None:
    denoiser, x, sigma = stirred(config), torch.randn(3, 1, 8, 8), torch.tensor(0.7)
    labels = torch.tensor([1, 2, 0])
    vectors = denoiser.network.label_vector(labels, x)
    assert vectors.shape == (3, denoiser.network.label_width)
    assert torch.equal(denoiser(x, sigma, vectors.double()), denoiser(x, sigma, labels))
    leaf = vectors.detach().requires_grad_()
    (denoiser(x, sigma, leaf)[1] ** 2).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[1].all()
    assert not leaf.grad[[0, 2]].any()
    assert torch.isfinite(denoiser.to(torch.bfloat16)(x, sigma, vectors.detach())).all()


@each
def test_a_network_without_classes_takes_vectors_and_zeros_are_no_label(config: dict[str, Any]) -> None:
    denoiser, x, sigma = stirred({**config, 'label_conditioning': False}), torch.randn(2, 1, 8, 8), torch.tensor(0.7)
    width = denoiser.network.label_width
    assert torch.equal(denoiser(x, sigma, torch.zeros(2, width)), denoiser(x, sigma))
    assert not torch.allclose(denoiser(x, sigma, torch.ones(2, width)), denoiser(x, sigma))
    with pytest.raises(ModelError, match='Labels were given to an unconditional network'):
        denoiser(x, sigma, torch.zeros(2, dtype=torch.long))


@each
@pytest.mark.parametrize('shape', [(2, 5), (3, None), (1, None), (2, 1, None), (2,)])
def test_vectors_of_another_shape_are_refused(config: dict[str, Any], shape: tuple[int | None, ...]) -> None:
    for conditional in (True, False):
        denoiser = stirred({**config, 'label_conditioning': conditional})
        width = denoiser.network.label_width
        with pytest.raises(ModelError, match=rf'one label vector per sample, \(B, {width}\) float'):
            denoiser(torch.randn(2, 1, 8, 8), torch.tensor(0.7), torch.zeros([width if n is None else n for n in shape]))


@each
def test_no_augment_labels_are_zeros_and_augment_labels_matter(config: dict[str, Any]) -> None:
    denoiser, x, sigma = stirred(config), torch.randn(3, 1, 8, 8), torch.tensor(0.7)
    assert torch.equal(denoiser(x, sigma), denoiser(x, sigma, augment_labels=torch.zeros(3, 9)))
    assert not torch.allclose(denoiser(x, sigma), denoiser(x, sigma, augment_labels=torch.ones(3, 9)))


@each
def test_network_runs_in_its_own_precision_and_state_keeps_its(config: dict[str, Any]) -> None:
    denoiser, x, sigma = stirred(config), torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.3, 3.0])
    with torch.no_grad():
        full = denoiser(x, sigma)
        low = stirred(config).to(torch.bfloat16)(x, sigma)
    assert full.dtype == low.dtype == torch.float64
    assert 0 < float((full - low).abs().max()) < 0.1
    assert denoiser(x.float(), sigma).dtype == torch.float32


@each
def test_noise_levels_stay_apart_in_a_low_precision_network(config: dict[str, Any]) -> None:
    """Two noise levels that bfloat16 itself cannot tell apart: the embedding works them out in float32."""
    network, x = stirred(config).to(torch.bfloat16).network, torch.randn(1, 1, 8, 8).bfloat16()
    near = [torch.tensor([c]) for c in ((900.0, 901.0) if 'embedding' not in config['network'] else (1.0, 1.002))]
    assert near[0].bfloat16() == near[1].bfloat16()
    assert not torch.equal(network(x, near[0]), network(x, near[1]))


@each
@torch.no_grad()
def test_samples_of_a_network_do_not_depend_on_the_batch(config: dict[str, Any]) -> None:
    """On CPU a convolution may sum in another order at another batch size: far less than one grey level apart."""
    denoiser, x, cond = stirred(config), SampleNoise(range(12), (1, 8, 8)).latents(), torch.arange(12) % 3
    together = denoiser(x, torch.tensor(1.0), cond)
    for size in (1, 5):
        apart = torch.cat([denoiser(x[i : i + size], torch.tensor(1.0), cond[i : i + size]) for i in range(0, 12, size)])
        assert float((apart - together).abs().max()) * 127.5 < 0.01


@each
def test_all_parameters_learn(config: dict[str, Any]) -> None:
    denoiser = stirred(config)
    extra = {'augment_labels': torch.randn(4, 9)} if config.get('augment_labels') else {}
    loss(denoiser, torch.randn(4, 1, 8, 8), torch.rand(4) + 0.1, torch.tensor([0, 1, 2, 0]), **extra).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


@each
def test_checkpointing_changes_memory_but_no_gradient(config: dict[str, Any]) -> None:
    gradients = []
    for checkpoint in (False, True):
        options = {**config['network'], 'checkpoint': checkpoint, 'dropout': 0.2}
        denoiser = stirred({**config, 'network': options}).train()
        torch.manual_seed(5)
        loss(denoiser, torch.randn(3, 1, 8, 8), torch.rand(3) + 0.1).mean().backward()
        gradients.append([p.grad for p in denoiser.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 40
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@each
def test_channels_last_gives_the_same_image(config: dict[str, Any]) -> None:
    denoiser, x = stirred(config), torch.randn(2, 1, 8, 8)
    expected = denoiser(x, torch.tensor(1.0))
    found = denoiser.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), torch.tensor(1.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@each
def test_network_compiles_as_one_graph(config: dict[str, Any]) -> None:
    """The whole once; what labels, vectors and augmentation decide is in its embedding, which compiles in a tenth of the time."""
    network, x, c_noise = stirred(config).network, torch.randn(2, 1, 8, 8), torch.tensor([0.1, -1.0])
    labels, augment = torch.tensor([1, 2]), torch.ones(2, 9)
    compiled = torch.compile(network, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x, c_noise, labels, augment), network(x, c_noise, labels, augment))
    unconditional = stirred({**config, 'label_conditioning': False}).network
    for model, conditions in [
        (network, (None, labels, torch.randn(2, network.label_width))),
        (unconditional, (None, torch.randn(2, unconditional.label_width))),
    ]:
        torch.compiler.reset()  # which keeps eight compiled forms of a function, for all models
        embedding = torch.compile(model.embedding, backend='eager', fullgraph=True)
        for condition, augmented in itertools.product(conditions, (None, augment)):
            torch.testing.assert_close(embedding(x, c_noise, condition, augmented), model.embedding(x, c_noise, condition, augmented))


def test_half_precision_attention_has_a_full_precision_softmax() -> None:
    """Its error is that of rounding inputs and output, with logits so large that a bfloat16 softmax would be wrong by several percent."""
    torch.manual_seed(0)
    q, k, v = (3 * torch.randn(1, 1, 64, 64).bfloat16() for _ in range(3))
    logits = (q.double() @ k.double().mT) / 8
    expected = logits.softmax(-1) @ v.double()
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v).double()
    naive = (logits.bfloat16().softmax(-1) @ v).double()
    assert float((found - expected).abs().mean()) < 0.4 * float((naive - expected).abs().mean())


@each
def test_norms_keep_the_dtype_of_activations_under_autocast(config: dict[str, Any]) -> None:
    denoiser = stirred(config)
    dtypes: set[torch.dtype] = set()
    for module in denoiser.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_hook(lambda _, inputs, output: dtypes.add((inputs[0].dtype, output.dtype)))
    x, sigma, labels = torch.randn(4, 1, 8, 8), torch.tensor([0.05, 0.5, 2.0, 20.0]), torch.tensor([0, 1, 2, 0])
    with torch.autocast('cpu', torch.bfloat16):
        low = denoiser(x, sigma, labels)
    assert dtypes == {(torch.bfloat16, torch.bfloat16)}
    assert low.dtype == torch.float32
    assert torch.allclose(low, denoiser(x, sigma, labels), atol=0.05)


@pytest.mark.parametrize('taps', [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_constants_inside_and_is_its_own_transpose(taps: tuple[int, ...]) -> None:
    down, up = Resample('down', taps).double(), Resample('up', taps).double()
    x, y = torch.randn(1, 2, 8, 8, dtype=torch.float64), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    assert float((down(x) * y).sum() * 4) == pytest.approx(float((x * up(y)).sum()), rel=1e-12)
    assert torch.allclose(down(torch.ones_like(x))[:, :, 1:-1, 1:-1], torch.ones(1, 2, 2, 2, dtype=torch.float64))
    assert torch.allclose(up(torch.ones_like(y))[:, :, 2:-2, 2:-2], torch.ones(1, 2, 4, 4, dtype=torch.float64))


def test_random_frequencies_survive_half_precision() -> None:
    frequencies = DDPMpp(8, 1, channels=64, channel_mult=(1,), blocks_per_level=1, attention_resolutions=(), embedding='fourier').frequencies
    assert torch.equal(frequencies.half().float(), frequencies)
    assert torch.equal(frequencies.bfloat16().float(), frequencies)
    assert 10 < float(frequencies.std()) < 22


# --- configs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'constants', 'expected', 'sigmas'),
    [
        ('vp', {'beta_d': 10.0, 'M': 500}, VPPrecond, None),
        ('ve', {'sigma_min': 0.1, 'sigma_max': 50}, VEPrecond, (0.1, 50.0)),
        ('iddpm', {'C_2': 0.01}, IDDPMPrecond, None),
        ('edm', {}, None, (0.0, math.inf)),
    ],
    ids=lambda v: v if isinstance(v, str) else '',
)
def test_kind_and_its_constants_decide_the_preconditioning(kind: str, constants: dict[str, Any], expected: Any, sigmas: Any) -> None:
    config = json.loads(json.dumps({**DDPMPP, 'kind': kind, **constants}))
    denoiser = build_denoiser(config)
    assert expected is None or isinstance(denoiser, expected)
    assert sigmas is None or (denoiser.sigma_min, denoiser.sigma_max) == sigmas
    if kind == 'vp':
        assert denoiser.M == 500
        assert denoiser.sigma_max < build_denoiser({**DDPMPP, 'kind': 'vp'}).sigma_max


def test_learned_variance_is_dropped_from_the_image() -> None:
    config = {**CONFIGS['adm'], 'kind': 'iddpm', 'network': {**CONFIGS['adm']['network'], 'learned_variance': True}}
    x = torch.randn(2, 1, 8, 8)
    denoiser = build_denoiser(config)
    assert denoiser.network(x, torch.zeros(2)).shape == (2, 2, 8, 8)
    assert denoiser(x, torch.tensor(1.0)).shape == x.shape


def test_check_makes_no_weights() -> None:
    """ImageNet's network has 1.2 GB of them."""
    config = published_config('adm', 64, classes=1000)
    check_denoiser_config(config)
    with pytest.raises(ModelError, match='head'):
        check_denoiser_config({**config, 'network': {**config['network'], 'head_channels': 36}})


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'kind': 'vpp'}, 'kind'),
        ({'channel': 3}, 'channels'),
        ({'channels': 2}, 'channels'),
        ({'sigma_data': 0}, 'sigma_data'),
        ({'sigma_data': math.nan}, 'sigma_data'),
        ({'beta_d': 19.9}, 'beta_d.*belongs to vp'),
        ({'kind': 've', 'sigma_max': -1}, 'sigma_max'),
        ({'classes': []}, 'classes'),
        ({'resolution': 9}, 'resolution'),
        ({'resolution': 8.0}, 'resolution'),
        ({'label_dropout': 1}, 'label_dropout'),
        ({'label_conditioning': False, 'label_dropout': 0.1}, 'label_dropout'),
        ({'augment_labels': -1}, 'augment_labels'),
        ({'kind': ['edm']}, 'kind'),
        ({'channels': 3.0}, 'channels'),
        ({'classes': 'ab'}, 'classes'),
        ({'classes': ['a', 'a']}, 'classes'),
        ({'classes': [1, 2]}, 'classes'),
        ({'sigma_data': math.inf}, 'sigma_data'),
        ({'sigma_min': 5, 'sigma_max': 1}, 'noise levels from 5 to 1'),
        ({'kind': 'iddpm', 'M': 0}, 'M = 0'),
        ({'kind': 'iddpm', 'M': 1}, 'noise levels'),
        ({'kind': 'iddpm', 'C_1': 2.0}, 'noise levels'),
        ({'kind': 'vp', 'epsilon_t': 2.0}, 'noise levels'),
    ],
    ids=str,
)
@each
def test_wrong_config_is_refused_by_key(config: dict[str, Any], change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        build_denoiser({**config, **change})


@pytest.mark.parametrize(
    ('network', 'options', 'named'),
    [
        ('ddpmmp', {}, "'ddpmpp'"),
        ('ddpmpp', {'droppout': 0.1}, "'dropout'"),
        ('ddpmpp', {'head_channels': 8}, 'head_channels'),
        ('ddpmpp', {'channels': 18}, 'channels = 18'),
        ('ddpmpp', {'channels': 0}, 'channels = 0'),
        ('ddpmpp', {'channels': '16'}, "channels = '16'"),
        ('ddpmpp', {'channel_mult': []}, 'channel_mult'),
        ('adm', {'channel_mult': []}, 'channel_mult'),
        ('ddpmpp', {'channel_mult': [1, 0]}, 'channel_mult'),
        ('ddpmpp', {'channel_mult': 2}, 'channel_mult'),
        ('ddpmpp', {'blocks_per_level': 0}, 'blocks_per_level'),
        ('ddpmpp', {'attention_resolutions': [16]}, 'attention_resolutions names 16'),
        ('ddpmpp', {'dropout': 1.0}, 'dropout'),
        ('ddpmpp', {'embedding': 'furier'}, "'fourier'"),
        ('ddpmpp', {'resample_filter': [1, 2, 1]}, 'resample_filter'),
        ('ddpmpp', {'pyramid': 1}, 'pyramid'),
        ('adm', {'head_channels': 5}, 'head'),
        ('adm', {'learned_variance': True}, 'learned_variance'),
    ],
    ids=str,
)
def test_wrong_network_option_is_refused_by_key(network: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        check_denoiser_config({**DDPMPP, 'network': {**DDPMPP['network'], 'type': network, **options}})


@pytest.mark.parametrize('key', ['kind', 'resolution', 'channels', 'classes', 'label_conditioning', 'network', 'sigma_data'])
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(ModelError, match=f'lacks.*{key}'):
        build_denoiser({k: v for k, v in DDPMPP.items() if k != key})


@each
def test_labels_that_a_network_cannot_take_are_refused(config: dict[str, Any]) -> None:
    network, x = build_denoiser(config).network, torch.zeros(2, 1, 8, 8)
    for wrong in (3, -1):
        with pytest.raises(ModelError, match=f'label {wrong} '):
            network(x, torch.zeros(2), torch.tensor([0, wrong]))
    with pytest.raises(ModelError, match='augment_labels = 9'):
        network(x, torch.zeros(2), augment_labels=torch.zeros(2, 8))
    bare = build_denoiser({**config, 'label_conditioning': False, 'augment_labels': 0}).network
    with pytest.raises(ModelError, match='unconditional'):
        bare(x, torch.zeros(2), torch.tensor([0, 1]))
    with pytest.raises(ModelError, match='label_dim'):
        bare(x, torch.zeros(2), augment_labels=torch.zeros(2, 9))


@each
@pytest.mark.parametrize(
    'labels',
    [torch.eye(2), torch.tensor([0.0, 0.5]), torch.tensor([True, False]), torch.tensor([1]), torch.tensor([0, 1, 1]), torch.tensor(1)],
    ids=['one-hot', 'float', 'bool', 'one row', 'three rows', 'no row'],
)
def test_labels_are_one_class_index_per_sample_and_nothing_is_guessed(config: dict[str, Any], labels: Tensor) -> None:
    network, x = build_denoiser(config).network, torch.zeros(2, 1, 8, 8)
    with pytest.raises(ModelError, match='2 samples'):
        network(x, torch.zeros(2), labels)
    with pytest.raises(ModelError, match='2 samples'):
        network(x, torch.zeros(2), augment_labels=torch.zeros(1, 9))


@each
def test_labels_on_the_host_meet_images_on_any_device(config: dict[str, Any]) -> None:
    with torch.device('meta'):
        denoiser = build_denoiser(config)
    assert denoiser(torch.zeros(2, 1, 8, 8, device='meta'), torch.tensor(1.0), torch.tensor([0, 1])).device.type == 'meta'
