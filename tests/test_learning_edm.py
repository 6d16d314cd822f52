"""Training a denoiser: it learns, survives a kill to the bit, and refuses what does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from synthaug_plugins.diffusion import build_denoiser
from synthaug_plugins.errors import DataError, ModelError, RecipeError
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
    'network': {'channels': 16, 'channel_mult': [1, 2], 'blocks_per_level': 1, 'embedding_channels': 32, 'dropout': 0.1},
}
# 30 images and batches of 7: epochs and steps never align.
OPTIONS = EDMTraining(images_shown=7 * 40, batch_size=7, checkpoint_steps=4, warmup_images=70, learning_rate=3e-3)

CHILD = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_learning_edm import CONFIG, OPTIONS, halves
from synthaug_plugins.learning.edm import train_edm
torch.set_num_threads(1)
trained = train_edm(*halves(), CONFIG, OPTIONS, Path(sys.argv[2]), progress=lambda n, loss: print(n, flush=True))
print('done', flush=True)
"""


def halves(n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with one bright half, and which: (n, 1, 8, 8) uint8, (n,)."""
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    images[labels == 0, :, :, :4] = 255
    images[labels == 1, :, :, 4:] = 255
    return images, labels


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start_child(work_dir: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    arguments = [sys.executable, '-c', CHILD, str(Path(__file__).parent), str(work_dir)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


def test_killed_training_ends_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    whole = train_edm(*halves(), CONFIG, OPTIONS, tmp_path / 'whole')
    child = start_child(tmp_path / 'killed')
    assert child.stdout is not None
    for _ in range(3):
        assert child.stdout.readline().strip().isdigit()
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 12 <= json.loads((tmp_path / 'killed' / 'checkpoint.json').read_text())['step'] < 40
    child = start_child(tmp_path / 'killed')
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    assert len(output.split()) < 10  # it went on, and did not start again
    continued = train_edm(*halves(), CONFIG, OPTIONS, tmp_path / 'killed')  # nothing left to do: reads the result
    assert continued.steps == whole.steps == 40
    assert all(torch.equal(continued.weights[k], v) for k, v in whole.weights.items())
    assert [n for n, _ in continued.losses] == [n for n, _ in whole.losses]


def test_longer_training_continues_a_finished_one(tmp_path: Path) -> None:
    short = EDMTraining(**{**vars(OPTIONS), 'images_shown': 7 * 13})
    train_edm(*halves(), CONFIG, short, tmp_path / 'a')
    a = train_edm(*halves(), CONFIG, OPTIONS, tmp_path / 'a')
    b = train_edm(*halves(), CONFIG, OPTIONS, tmp_path / 'b')
    assert all(torch.equal(a.weights[k], v) for k, v in b.weights.items())


def test_what_a_kill_left_beside_the_checkpoint_does_no_harm(tmp_path: Path) -> None:
    short = EDMTraining(**{**vars(OPTIONS), 'images_shown': 7 * 8})
    train_edm(*halves(), CONFIG, short, tmp_path)
    (tmp_path / 'step-000000009.safetensors').write_bytes(b'half a file')
    (tmp_path / '.tensors.partial').write_bytes(b'half a file')
    train_edm(*halves(), CONFIG, OPTIONS, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['checkpoint.json', 'step-000000040.safetensors']


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    train_edm(*halves(), CONFIG, OPTIONS, tmp_path)
    path = tmp_path / 'step-000000040.safetensors'
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match='hash'):
        train_edm(*halves(), CONFIG, OPTIONS, tmp_path)


def test_work_dir_of_another_training_is_refused_by_key(tmp_path: Path) -> None:
    train_edm(*halves(), CONFIG, OPTIONS, tmp_path / 'a')
    with pytest.raises(RecipeError, match='learning_rate'):
        train_edm(*halves(), CONFIG, EDMTraining(**{**vars(OPTIONS), 'learning_rate': 1e-4}), tmp_path / 'a')
    images, labels = halves()
    with pytest.raises(RecipeError, match='data'):
        train_edm(images, 1 - labels, CONFIG, OPTIONS, tmp_path / 'a')
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'thesis.tex').write_text('precious')
    with pytest.raises(RecipeError, match='other files'):
        train_edm(*halves(), CONFIG, OPTIONS, tmp_path / 'b')
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

    options = EDMTraining(images_shown=64 * 120, batch_size=64, checkpoint_steps=40, warmup_images=500, learning_rate=3e-3, ema_half_life_images=500)
    trained = train_edm(*halves(), CONFIG, options, tmp_path / 'work')
    assert trained.losses[-1][1] < 0.25 * trained.losses[0][1]
    save_trained(tmp_path / 'model', CONFIG, trained, {'name': 'halves'})
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


@pytest.mark.parametrize('change', [{'batch_size': 0}, {'learning_rate': -1.0}, {'precision': 'fp8'}])
def test_impossible_options_are_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        train_edm(*halves(), CONFIG, EDMTraining(**{**vars(OPTIONS), **change}), tmp_path)
