"""Training a denoiser: it learns, survives a kill to the bit, and refuses what does not fit."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import copy_of_this_process
from synthaug_plugins.diffusion import build_denoiser
from synthaug_plugins.diffusion.augmentation import Augmentation
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.learning import batches
from synthaug_plugins.learning.batches import Order, Pixels
from synthaug_plugins.learning.checkpoint import load_snapshots
from synthaug_plugins.learning.edm import EDMTraining, save_trained, train_edm
from synthaug_plugins.weights import load_weights, read_config

CONFIG: dict[str, Any] = {
    'kind': 'edm',
    'resolution': 8,
    'channels': 1,
    'classes': ['left', 'right'],
    'label_conditioning': True,
    'label_dropout': 0.1,
    'sigma_data': 1.0,
    'network': {'type': 'ddpmpp', 'channels': 16, 'channel_mult': [1], 'blocks_per_level': 1, 'attention_resolutions': [], 'dropout': 0.1},
}
# 30 images and batches of 7: epochs and steps never align.
OPTIONS = EDMTraining(images_shown=7 * 40, batch_size=7, checkpoint_steps=4, warmup_images=70, learning_rate=3e-3)

# Every part of the state at once.
TINY: dict[str, Any] = {**CONFIG, 'augment_labels': 9}
FULL_OPTIONS = replace(OPTIONS, power_ema_stds=(0.05, 0.1), snapshot_steps=6, class_balance=True, batch_size=8, accumulation=2, images_shown=8 * 24)
AUGMENT = Augmentation(p=0.5)


def halves(n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with one bright half, and which: (n, 1, 8, 8) uint8, (n,)."""
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    images[labels == 0, :, :, :4] = 255
    images[labels == 1, :, :, 4:] = 255
    return images, labels


pytestmark = pytest.mark.usefixtures('one_thread')


def test_killed_training_ends_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    whole = train_edm(*halves(), TINY, FULL_OPTIONS, tmp_path / 'whole', augment=AUGMENT)
    told: list[int] = []

    def wait_at_the_third(images_shown: int, loss: Any) -> None:
        told.append(images_shown)
        if len(told) == 3:
            print('there')
            signal.pause()

    process = copy_of_this_process(lambda: train_edm(*halves(), TINY, FULL_OPTIONS, tmp_path / 'killed', progress=wait_at_the_third, augment=AUGMENT))
    process.wait_until(process.lines)
    assert process.end(signal.SIGKILL).status == -signal.SIGKILL
    assert 12 <= json.loads((tmp_path / 'killed' / 'checkpoint.json').read_text())['step'] < 24
    shown: list[int] = []
    train_edm(*halves(), TINY, FULL_OPTIONS, tmp_path / 'killed', progress=lambda n, _: shown.append(n), augment=AUGMENT)
    assert shown[0] > 8 * 12  # it went on, and did not start again
    continued = train_edm(*halves(), TINY, FULL_OPTIONS, tmp_path / 'killed', augment=AUGMENT)  # nothing left to do: reads the result
    assert continued.steps == whole.steps == 24
    assert all(torch.equal(continued.weights[k], v) for k, v in whole.weights.items())
    assert [n for n, _ in continued.losses] == [n for n, _ in whole.losses]
    kept, wanted = load_snapshots(tmp_path / 'killed'), load_snapshots(tmp_path / 'whole')
    assert [(s.step, s.std) for s in kept] == [(step, std) for step in (6, 12, 18, 24) for std in FULL_OPTIONS.power_ema_stds]
    for a, b in zip(kept, wanted, strict=True):
        assert all(torch.equal(a.load()[k], v) for k, v in b.load().items())


def test_longer_training_continues_a_finished_one(tmp_path: Path) -> None:
    short, long = replace(OPTIONS, images_shown=7 * 5), replace(OPTIONS, images_shown=7 * 14)
    train_edm(*halves(), CONFIG, short, tmp_path / 'a')
    a = train_edm(*halves(), CONFIG, long, tmp_path / 'a')
    b = train_edm(*halves(), CONFIG, long, tmp_path / 'b')
    assert all(torch.equal(a.weights[k], v) for k, v in b.weights.items())


def test_what_a_kill_left_beside_the_checkpoint_does_no_harm(tmp_path: Path) -> None:
    short = EDMTraining(**{**vars(OPTIONS), 'images_shown': 7 * 8})
    train_edm(*halves(), CONFIG, short, tmp_path)
    (tmp_path / 'step-000000009.safetensors').write_bytes(b'half a file')
    (tmp_path / '.tensors.partial').write_bytes(b'half a file')
    train_edm(*halves(), CONFIG, replace(short, images_shown=7 * 16), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['checkpoint.json', 'step-000000016.safetensors']


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    options = replace(OPTIONS, images_shown=7 * 8)
    train_edm(*halves(), CONFIG, options, tmp_path)
    path = tmp_path / 'step-000000008.safetensors'
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match='hash'):
        train_edm(*halves(), CONFIG, options, tmp_path)


def test_work_dir_of_another_training_is_refused_by_key(tmp_path: Path) -> None:
    options = replace(OPTIONS, images_shown=7 * 8)
    train_edm(*halves(), CONFIG, options, tmp_path / 'a')
    with pytest.raises(RecipeError, match='learning_rate'):
        train_edm(*halves(), CONFIG, replace(options, learning_rate=1e-4), tmp_path / 'a')
    images, labels = halves()
    with pytest.raises(RecipeError, match='data'):
        train_edm(images, 1 - labels, CONFIG, options, tmp_path / 'a')
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'thesis.tex').write_text('precious')
    with pytest.raises(RecipeError, match='other files'):
        train_edm(*halves(), CONFIG, options, tmp_path / 'b')
    assert [p.name for p in (tmp_path / 'b').iterdir()] == ['thesis.tex']


def test_first_step_already_learns(tmp_path: Path) -> None:
    one = EDMTraining(**{**vars(OPTIONS), 'images_shown': 7})
    trained = train_edm(*halves(), CONFIG, one, tmp_path)
    torch.manual_seed(OPTIONS.seed)
    fresh = build_denoiser(CONFIG).state_dict()
    assert any(not torch.equal(trained.weights[k], v) for k, v in fresh.items())


def test_training_leaves_global_randomness_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_edm(*halves(), CONFIG, EDMTraining(**{**vars(OPTIONS), 'images_shown': 14}), tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_exploding_loss_stops_and_keeps_the_sound_checkpoint(tmp_path: Path) -> None:
    wild = EDMTraining(**{**vars(OPTIONS), 'learning_rate': 1e30, 'warmup_images': 1, 'checkpoint_steps': 1})
    with pytest.raises(ModelError, match='Step 1 '):
        train_edm(*halves(), CONFIG, wild, tmp_path)
    assert json.loads((tmp_path / 'checkpoint.json').read_text())['step'] == 1


def test_model_learns_its_classes_and_becomes_a_model_folder(tmp_path: Path) -> None:
    from synthaug_plugins.diffusion import SampleNoise, sample

    options = EDMTraining(images_shown=32 * 120, batch_size=32, checkpoint_steps=40, warmup_images=500, learning_rate=3e-3, ema_half_life_images=500)
    config = {**CONFIG, 'network': {**CONFIG['network'], 'channel_mult': [1, 2]}}
    trained = train_edm(*halves(), config, options, tmp_path / 'work')
    assert trained.losses[-1][1] < 0.25 * trained.losses[0][1]
    save_trained(tmp_path / 'model', config, trained, {'name': 'halves'})
    assert sorted(p.name for p in (tmp_path / 'model').iterdir()) == ['card.json', 'config.json', 'model.safetensors']
    denoiser = build_denoiser(read_config(tmp_path / 'model'))
    denoiser.load_state_dict(load_weights(tmp_path / 'model'))
    labels = torch.arange(20) % 2
    x = sample(denoiser.eval(), SampleNoise(range(20), (1, 8, 8)).latents(), cond=labels)
    right_is_brighter = x[..., 4:].mean((1, 2, 3)) > x[..., :4].mean((1, 2, 3))
    assert int((right_is_brighter == labels.bool()).sum()) >= 18


@pytest.mark.parametrize(
    ('images', 'labels', 'named'),
    [
        (torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), 'uint8'),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), 'uint8'),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.full((4,), 2), 'labels'),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), 'labels'),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None, 'labels'),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, images: torch.Tensor, labels: torch.Tensor | None, named: str) -> None:
    with pytest.raises(DataError, match=named):
        train_edm(images, labels, CONFIG, OPTIONS, tmp_path)


@pytest.mark.parametrize(
    'change', [{'batch_size': 0}, {'learning_rate': -1.0}, {'precision': 'fp8'}, {'accumulation': 2}, {'images_shown': 1.5}, {'warmup_images': -1}]
)
def test_impossible_options_are_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        train_edm(*halves(), CONFIG, EDMTraining(**{**vars(OPTIONS), **change}), tmp_path)


def test_a_batch_in_parts_trains_like_a_whole_one(tmp_path: Path) -> None:
    config = {**TINY, 'network': {**TINY['network'], 'dropout': 0.0}}
    options = replace(FULL_OPTIONS, images_shown=8 * 5, power_ema_stds=(), warmup_images=1, learning_rate=1e-4)
    whole = train_edm(*halves(), config, replace(options, accumulation=1), tmp_path / 'whole', augment=AUGMENT)
    parts = train_edm(*halves(), config, replace(options, accumulation=4), tmp_path / 'parts', augment=AUGMENT)
    torch.manual_seed(options.seed)
    fresh = build_denoiser(config).state_dict()
    moved = max(float((whole.weights[k] - fresh[k]).abs().max()) for k in fresh)
    assert moved > 1e-4
    assert max(float((whole.weights[k] - parts.weights[k]).abs().max()) for k in fresh) < 0.02 * moved
    assert abs(whole.losses[-1][1] - parts.losses[-1][1]) < 2e-5


def test_images_that_stay_on_disk_train_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, (images, labels) = replace(OPTIONS, images_shown=7 * 4), halves()
    in_memory = train_edm(images, labels, CONFIG, options, tmp_path / 'memory')
    np.save(tmp_path / 'images.npy', images.numpy())
    monkeypatch.setattr(batches, 'ON_DEVICE_BYTES', 100)
    mapped = np.load(tmp_path / 'images.npy', mmap_mode='r')
    assert Pixels(mapped, torch.device('cpu'))._there is None
    from_disk = train_edm(mapped, labels.numpy(), CONFIG, options, tmp_path / 'disk')
    assert all(torch.equal(from_disk.weights[k], v) for k, v in in_memory.weights.items())


def test_balanced_order_shows_every_class_equally_often_and_every_image_of_a_class() -> None:
    labels = np.array([0] * 50 + [1] * 5 + [3] * 20)
    order = Order(3, labels, class_balance=True)
    shown = order.indices(0, 300)
    assert np.bincount(labels[shown]).tolist() == [100, 100, 0, 100]
    for c, times in ((0, 2), (1, 20), (3, 5)):
        assert (np.bincount(shown[labels[shown] == c], minlength=75)[labels == c] == times).all()
    resumed = Order(3, labels, class_balance=True)
    assert torch.equal(torch.cat([resumed.indices(i, 7) for i in range(140, 203, 7)]), shown[140:203])
    assert not torch.equal(Order(4, labels, class_balance=True).indices(0, 300), shown)


def test_plain_order_shows_every_image_once_per_epoch() -> None:
    order = Order(0, np.zeros(30), class_balance=False)
    shown = torch.cat([order.indices(i, 7) for i in range(0, 91, 7)])
    for epoch in shown[:90].split(30):
        assert sorted(epoch.tolist()) == list(range(30))
    assert not torch.equal(shown[:30], shown[30:60])


@pytest.mark.parametrize('kind', ['edm', 'vp', 've', 'iddpm'])
def test_every_kind_of_model_learns_at_its_own_noise_levels(tmp_path: Path, kind: str) -> None:
    config = {**TINY, 'kind': kind, 'augment_labels': 0, 'network': {**TINY['network'], 'dropout': 0.0}}
    options = replace(OPTIONS, images_shown=32 * 30, batch_size=32, checkpoint_steps=15, warmup_images=100)
    trained = train_edm(*halves(), config, options, tmp_path)
    assert 0 < trained.losses[1][1] < trained.losses[0][1] < 1.2


def test_bfloat16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    options = replace(OPTIONS, images_shown=7 * 12, precision='bf16')
    low, full = (train_edm(*halves(), CONFIG, replace(options, precision=p), tmp_path / p) for p in ('bf16', 'fp32'))
    assert {v.dtype for v in low.weights.values()} == {torch.float32}
    assert 0 < abs(low.losses[-1][1] - full.losses[-1][1]) < 0.05 * full.losses[-1][1]


def test_a_network_that_returns_nan_is_named_as_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthaug_plugins.diffusion.ddpmpp import DDPMpp

    forward = DDPMpp.forward
    monkeypatch.setattr(DDPMpp, 'forward', lambda self, *a, **k: torch.cat([forward(self, *a, **k)[:-1], a[0][-1:] * torch.nan]))
    with pytest.raises(ModelError, match=r"Step 0 .*network's output is not finite for 2 of 8 images"):
        train_edm(*halves(), TINY, FULL_OPTIONS, tmp_path, augment=AUGMENT)


@pytest.mark.parametrize(('config', 'augment'), [(TINY, None), (CONFIG, Augmentation()), (TINY, Augmentation(yflip=0))])
def test_augmentation_that_the_network_is_not_told_of_is_refused(tmp_path: Path, config: dict[str, Any], augment: Augmentation | None) -> None:
    with pytest.raises(RecipeError, match='augment_labels'):
        train_edm(*halves(), config, FULL_OPTIONS, tmp_path, augment=augment)


def test_a_length_that_no_batch_divides_ends_and_can_be_called_again(tmp_path: Path) -> None:
    options = replace(OPTIONS, images_shown=25)
    first = train_edm(*halves(), CONFIG, options, tmp_path)
    assert first.images_shown == 28
    again = train_edm(*halves(), CONFIG, options, tmp_path)
    assert again.steps == 4
    with pytest.raises(RecipeError, match='images_shown'):
        train_edm(*halves(), CONFIG, replace(options, images_shown=20), tmp_path)
