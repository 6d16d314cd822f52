"""What learning an image's embedding depends on, and what it leaves alone: slots, draws, optimizer, the end of an image."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from torch import Tensor

from conftest import digits
from synthaug_plugins.diffusion import philox_normal
from synthaug_plugins.errors import ModelError
from synthaug_plugins.learning.embedding_slots import AtWork, Slots, State, noise_levels, row_length, split_rows
from synthaug_plugins.learning.embeddings import learn_embeddings
from synthaug_plugins.learning.embeddings_options import EmbeddingTraining
from synthaug_plugins.learning.latents import posteriors
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.embedding_shards import read_index
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.text_model import TextModel, open_model
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.weights import CARD, embedded_folder

CPU = torch.device('cpu')


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp('sd'))


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> RealImages:
    """Eight digits that no embedded model was trained on, in two classes."""
    root = tmp_path_factory.mktemp('data')
    for name, label in (('seven', 7), ('two', 2)):
        (root / name).mkdir()
        for k, i in enumerate(np.flatnonzero(digits().target[1200:] == label)[:4] + 1200):
            grey = np.round(digits().images[i] / 16 * 255).astype(np.uint8)
            Image.fromarray(grey).save(root / name / f'{k}.png')
    return RealImages(root)


IDS = [f'{name}/{k}.png' for k in range(4) for name in ('seven', 'two')]


def learned(model: str | Path, data: RealImages, ids: Sequence[str], folder: Path, **options: Any) -> dict[str, Tensor]:
    """Image -> its embedding, tokens and pooled vector in a row."""
    done = EmbeddingTraining(**{'steps': 6, 'batch_size': 2, **options})
    found = learn_embeddings(open_model(str(model)), data, ids, done, folder / 'embeddings', folder / 'work', CPU)
    tokens, pooled = found.read(found.find(ids))
    rows = tokens.flatten(1) if pooled is None else torch.cat([tokens.flatten(1), pooled], dim=1)
    return dict(zip(ids, rows, strict=True))


def slots_of(model: TextModel | DenoiserModel, data: RealImages, ids: Sequence[str], **options: Any) -> Slots:
    """Slots with these images at their start."""
    done = EmbeddingTraining(**{'steps': 50, 'batch_size': len(ids), **options})
    shape = model.embedding_shape(done.tokens)
    if not model.is_loaded:
        model.load(CPU, torch.float32)
    slots, n = Slots(model, shape, done, len(ids), CPU, torch.float32), row_length(shape)
    for k, image_id in enumerate(ids):
        mean, deviation = posteriors(model, [data.load(image_id)], done.fit, CPU)
        row = torch.rand(n, generator=torch.Generator().manual_seed(k))
        state = State(row, torch.zeros(n), torch.zeros(n), torch.zeros(done.steps))
        slots.put(k, AtWork(image_id, hashlib.sha256(image_id.encode()).hexdigest()), state, mean[0], deviation[0])
    return slots


def test_an_embedding_does_not_depend_on_the_other_images_or_the_place(sd: Path, data: RealImages, tmp_path: Path) -> None:
    known = learned(sd, data, IDS[:4], tmp_path / 'a')
    other = learned(sd, data, [IDS[5], IDS[2], IDS[0], IDS[1]], tmp_path / 'b', checkpoint_steps=4)
    for image_id in IDS[:3]:
        assert torch.equal(known[image_id], other[image_id])
    alone = learned(sd, data, IDS[:1], tmp_path / 'c', batch_size=1)
    torch.testing.assert_close(alone[IDS[0]], known[IDS[0]], rtol=0.02, atol=0.002)  # other kernels, the same draws
    assert not torch.equal(learned(sd, data, IDS[:2], tmp_path / 'd', seed=1)[IDS[0]], known[IDS[0]])


@pytest.mark.parametrize('family', ['sd', 'sdxl'])
def test_only_embeddings_learn_and_every_weight_keeps_its_bits(family: str, data: RealImages, tmp_path: Path) -> None:
    pipeline = getattr(tiny, family)(tmp_path / family)
    model, plain = TextModel(str(pipeline)), TextModel(str(pipeline))
    options = EmbeddingTraining(tokens=2, steps=4, batch_size=2, learning_rate=0.01)
    found = learn_embeddings(model, data, IDS[:3], options, tmp_path / 'e', tmp_path / 'w', CPU)
    for (name, a), b in zip(model.denoiser.model.state_dict().items(), plain.load(CPU, torch.float32).model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert all(p.grad is None and not p.requires_grad for part in (model.denoiser.model, model.denoiser.vae) for p in part.parameters())
    tokens, pooled = found.read(range(3))
    assert tokens.shape == (3, 2, model.embedding_shape(2).width)
    assert (pooled is None) is (family == 'sd')
    # Steps of AdamW have about the length of the learning rate: all parts moved from their start, which is within 0.1.
    starts = learn_embeddings(model, data, IDS[:3], EmbeddingTraining(tokens=2, steps=1, learning_rate=1e-9), tmp_path / 's', tmp_path / 'sw', CPU)
    for now, then in zip((tokens, pooled), starts.read(range(3)), strict=True):
        if now is not None and then is not None:
            assert then.abs().max() <= 0.1001
            assert 0.005 < (now - then).abs().mean() < 0.05


def test_rows_move_as_adamw_moves_them_each_by_its_own_count(sd: Path, data: RealImages, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = slots_of(TextModel(str(sd)), data, IDS[:2], learning_rate=0.03, weight_decay=0.2)
    shape, g = slots.tensors()['rows'].shape, torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=g) * 10.0 ** torch.randint(-6, 2, (1, shape[1]), generator=g) for _ in range(6)]
    given = iter(gradients)
    monkeypatch.setattr(slots, '_gradient', lambda *a: (torch.ones(len(slots.images)), next(given)))
    rows = [slots.tensors()['rows'][k].clone().requires_grad_() for k in range(2)]
    stock = [torch.optim.AdamW([row], lr=0.03, weight_decay=0.2) for row in rows]
    list(slots.steps(2))
    fresh = torch.full((shape[1],), 0.5)
    slots.put(1, AtWork('new', 'ff'), State(fresh, torch.zeros_like(fresh), torch.zeros_like(fresh), torch.zeros(50)), *posterior_of(slots))
    list(slots.steps(4))
    for step, gradient in enumerate(gradients):
        if step == 2:
            rows[1] = fresh.clone().requires_grad_()
            stock[1] = torch.optim.AdamW([rows[1]], lr=0.03, weight_decay=0.2)
        for k in range(2):
            rows[k].grad = gradient[k]
            stock[k].step()
    torch.testing.assert_close(slots.tensors()['rows'], torch.stack([row.detach() for row in rows]), rtol=1e-5, atol=1e-6)
    assert [image.step for image in slots.images] == [6, 4]


def posterior_of(slots: Slots) -> tuple[Tensor, Tensor]:
    return torch.zeros(slots.model.size), torch.ones(slots.model.size)


def test_a_gradient_is_that_of_the_networks_squared_error(sd: Path, data: RealImages) -> None:
    model = TextModel(str(sd))
    slots = slots_of(model, data, IDS[:2], seed=3, draws=2, tokens=3)
    rows, shape = slots.tensors()['rows'].clone().requires_grad_(), model.embedding_shape(3)
    loss = next(iter(slots.steps(1)))
    # The moments after the first step are 0.1 g and 0.001 g^2.
    gradient = slots.tensors()['first'] / 0.1
    torch.testing.assert_close(slots.tensors()['second'], 0.001 * gradient**2, rtol=1e-4, atol=1e-12)
    from synthaug_plugins.learning.batches import mix_seed

    total = torch.zeros(2)
    for k, image in enumerate(slots.images):
        mean, deviation = posteriors(model, [data.load(image.image_id)], 'squash', CPU)
        phase = mix_seed(3, image.sha256, 'phase') % 2**53 / 2**53
        for draw in range(2):
            t = torch.tensor([int((phase + draw * (5**0.5 - 1) / 2) % 1 * 1000)])
            seed = torch.tensor([mix_seed(3, image.sha256, 'noise')])
            spread, noise = philox_normal(seed, draw, 2 * 256).reshape(2, 1, 4, 8, 8)
            z, alpha = mean + deviation * spread, 1 / (1 + model.denoiser.sigma_of(t).float() ** 2)
            noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
            told = split_rows(rows[k : k + 1], shape)[0]
            predicted = model.denoiser.model(noisy, t, encoder_hidden_states=told, return_dict=False)[0]
            total[k] = total[k] + (predicted - noise).square().mean() / 2
    torch.testing.assert_close(loss, total.mean().detach(), rtol=1e-3, atol=1e-5)
    (wanted,) = torch.autograd.grad(total.sum(), rows)
    torch.testing.assert_close(gradient, wanted, rtol=5e-3, atol=1e-2 * float(wanted.abs().mean()))


@pytest.mark.parametrize('name', ['embedded:digits_sd', 'embedded:digits_edm'])
def test_noise_levels_are_those_the_model_was_trained_at(name: str) -> None:
    model = open_model(name)
    model.load(CPU, torch.float32)
    levels = noise_levels(model)((torch.arange(100_000).double() + 0.5) / 100_000)
    if isinstance(model, DenoiserModel):
        assert abs(float(levels.log().mean()) - -0.6) < 1e-3  # P_mean and P_std of its card, not the published ones
        assert abs(float(levels.log().std()) - 1.2) < 1e-2
    else:
        t = model.denoiser.timestep_of(levels).round()
        assert torch.equal(t.unique(), torch.arange(1000.0, dtype=torch.float64))
        assert (torch.bincount(t.long()) == 100).all()


def test_of_a_card_that_says_nothing_of_noise_levels_they_are_the_published_ones_and_nonsense_is_refused(tmp_path: Path) -> None:
    model = DenoiserModel(str(shutil.copytree(embedded_folder('embedded:digits_edm'), tmp_path / 'm')))
    middle = torch.tensor([0.5], dtype=torch.float64)
    for said in ('long', {}, {'options': None}, {'options': {'images_shown': 3}}):
        (model.folder / CARD).write_text(json.dumps({'training': said}))
        assert float(noise_levels(model)(middle).log()) == pytest.approx(-1.2)
    for wrong in ({'P_mean': 'x'}, {'P_std': -1}):
        (model.folder / CARD).write_text(json.dumps({'training': {'options': wrong}}))
        with pytest.raises(ModelError, match=rf'The card of .* is damaged: {next(iter(wrong))} = '):
            noise_levels(model)


def test_noise_levels_of_any_few_steps_are_spread_evenly(sd: Path, data: RealImages, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextModel(str(sd))
    slots = slots_of(model, data, IDS[:2], batch_size=2)
    seen: list[Tensor] = []
    monkeypatch.setattr(slots, '_gradient', lambda sigma, *a: (seen.append(sigma), (torch.ones(2), torch.zeros_like(slots.tensors()['rows'])))[1])
    list(slots.steps(24))
    t = model.denoiser.timestep_of(torch.stack(seen))  # (steps, images)
    for start in (0, 8, 16):
        for k in range(2):
            assert torch.histc(t[start : start + 8, k], 4, 0, 1000).min() >= 1
            assert abs(float(t[start : start + 8, k].mean()) - 500) < 90  # by chance: 500 +- 102
    assert not torch.equal(t[:, 0], t[:, 1])


def test_noise_levels_are_spread_as_evenly_after_millions_of_draws(sd: Path, data: RealImages, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = slots_of(TextModel(str(sd)), data, IDS[:1])
    seen: list[Tensor] = []
    monkeypatch.setattr(slots, '_levels', lambda uniform: (seen.append(uniform), torch.ones_like(uniform))[1])
    monkeypatch.setattr(slots, '_gradient', lambda *a: (torch.ones(1), torch.zeros_like(slots.tensors()['rows'])))
    monkeypatch.setattr(slots, '_state', {**slots._state, 'losses': torch.zeros(1, 2**24 + 34)})
    slots.images[0].step = 2**24
    list(slots.steps(34))
    assert seen[0].dtype == torch.float64
    gaps = torch.cat([values := seen[0].flatten().sort().values, values[:1] + 1]).diff()
    # Between 34 terms of the recurrence, a Fibonacci number, there are two lengths, neither of them far from 1 / 34.
    assert 0.6 / 34 < gaps.min() < gaps.max() < 1.5 / 34


def test_a_step_never_waits_for_the_device(sd: Path, data: RealImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would copy a value to the host waits for every kernel in the queue."""
    slots = slots_of(TextModel(str(sd)), data, IDS[:2])
    for name in ('item', 'tolist', '__bool__', '__float__', '__int__', 'numpy', 'cpu', 'nonzero'):
        monkeypatch.setattr(Tensor, name, lambda *a, name=name, **k: pytest.fail(f'Tensor.{name}'))
    losses = list(slots.steps(3))
    monkeypatch.undo()
    assert torch.stack(losses).isfinite().all()


def test_more_draws_per_step_are_averaged(sd: Path, data: RealImages, tmp_path: Path) -> None:
    known = learned(sd, data, IDS[:2], tmp_path / 'a', draws=3)
    assert torch.equal(learned(sd, data, IDS[:2], tmp_path / 'b', draws=3)[IDS[0]], known[IDS[0]])
    losses = {}
    for draws in (1, 6):
        slots = slots_of(TextModel(str(sd)), data, IDS[:2], draws=draws)
        losses[draws] = torch.stack(list(slots.steps(12))).std()
    assert losses[6] < losses[1]


def test_an_image_whose_loss_falls_no_more_is_finished_early(sd: Path, data: RealImages, tmp_path: Path) -> None:
    w, tolerance, losses = 3, 0.02, list[float]()
    options = EmbeddingTraining(tokens=2, steps=9, batch_size=1, plateau={'window': w, 'tolerance': tolerance})
    learn_embeddings(TextModel(str(sd)), data, IDS[:5], options, tmp_path / 'e', tmp_path / 'w', CPU, on_step=lambda n, loss: losses.append(float(loss)))
    index = read_index(tmp_path / 'e', 0).to_pydict()
    assert len({*index['steps']}) > 1  # some before others
    at = 0
    for steps, first, last in zip(index['steps'], index['loss_first'], index['loss_last'], strict=True):
        means = [float(np.mean(losses[at + k : at + k + w])) for k in range(0, steps, w)]
        ends = [k + 1 for k in range(1, len(means)) if means[k - 1] - means[k] <= tolerance * means[k - 1]]
        assert steps == (ends[0] * w if ends else 9)
        assert (first, last) == (pytest.approx(means[0], abs=1e-5), pytest.approx(means[-1], abs=1e-5))
        at += steps
    assert at == len(losses)


def test_learning_starts_from_what_a_text_says(data: RealImages, tmp_path: Path) -> None:
    names = {'seven': 'seven', 'two': 'two'}
    model = TextModel('embedded:digits_sd')
    options = EmbeddingTraining(steps=1, learning_rate=1e-6, initialise_from='{}')
    found = learn_embeddings(model, data, IDS[:2], options, tmp_path / 'e', tmp_path / 'w', CPU, names=names)
    for row, name in enumerate(('seven', 'two')):
        wanted = model.conditions([name])['encoder_hidden_states'][0, :5]
        torch.testing.assert_close(found.read([row])[0][0], wanted, rtol=2e-3, atol=2e-3)
    assert (found.read([0])[0] - found.read([1])[0]).abs().mean() > 0.01


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_networks_of_half_precision_learn_embeddings_of_full_precision(precision: str, data: RealImages, tmp_path: Path) -> None:
    model, loss = DenoiserModel('embedded:digits_edm'), list[float]()
    options = EmbeddingTraining(steps=5, batch_size=4, precision=precision)
    found = learn_embeddings(model, data, IDS[:4], options, tmp_path / 'e', tmp_path / 'w', CPU, on_step=lambda n, value: loss.append(float(value)))
    full = list[float]()
    options = EmbeddingTraining(steps=5, batch_size=4, precision='fp32')
    learn_embeddings(
        DenoiserModel('embedded:digits_edm'), data, IDS[:4], options, tmp_path / 'f', tmp_path / 'v', CPU, on_step=lambda n, v: full.append(float(v))
    )
    assert next(model.denoiser.parameters()).dtype == {'bf16': torch.bfloat16, 'fp16': torch.float16}[precision]
    assert set(read_index(tmp_path / 'e', 0)['network'].to_pylist()) == {{'bf16': 'bfloat16', 'fp16': 'float16'}[precision]}
    assert len(found) == 4
    assert loss == pytest.approx(full, rel=0.05)
    assert loss != full


def test_embeddings_of_an_edm_model_learn_what_tells_images_apart(data: RealImages, tmp_path: Path) -> None:
    """The vector in the place of a label: the loss falls, and an image's own vector serves it better than another's of its class."""
    model = DenoiserModel('embedded:digits_edm')
    options = EmbeddingTraining(steps=60, batch_size=4, learning_rate=0.1, initialise_from='{}')
    found = learn_embeddings(model, data, IDS[:4], options, tmp_path / 'e', tmp_path / 'w', CPU)
    assert (found.shape.tokens, found.shape.pooled) == (1, None)
    index = read_index(tmp_path / 'e', 0)
    assert float(np.mean(index['loss_last'].to_numpy())) < float(np.mean(index['loss_first'].to_numpy()))
    y = torch.cat([posteriors(model, [data.load(i)], 'squash', CPU)[0] for i in IDS[:4]]).repeat(16, 1, 1, 1)
    sigma = torch.linspace(-1, 1.5, len(y)).exp()
    x = y + sigma.reshape(-1, 1, 1, 1) * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):  # 0 and 2 are sevens, 1 and 3 are twos
        with torch.no_grad():
            D = model.denoiser(x, sigma, model.embedded(found.read(found.find([IDS[k] for k in order]))[0]).repeat(16, 1))
        errors.append(float(((D - y).square().mean((1, 2, 3)) * model.denoiser.loss_weight(sigma)).mean()))
    assert errors[0] < 0.96 * errors[1]
    assert isinstance(found, Embeddings)


def test_there_are_no_more_slots_than_images(sd: Path, data: RealImages, tmp_path: Path) -> None:
    found = learned(sd, data, IDS[:3], tmp_path, steps=1, batch_size=10**12)
    assert len(found) == 3


def test_too_little_memory_is_refused_with_the_option_to_lower(sd: Path, data: RealImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*a: Any) -> Any:
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')

    monkeypatch.setattr(Slots, '_gradient', full)
    with pytest.raises(ModelError, match=r'2 images at a time are more than the memory of cpu holds: CUDA out of memory.* Lower batch_size'):
        learned(sd, data, IDS[:2], tmp_path)
