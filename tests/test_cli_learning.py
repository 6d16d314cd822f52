"""`synthaug learn`, `calibrate` and `convert` as a user types them: what they print, write and refuse."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Say, command_line, copy_of_this_process
from synthaug_plugins.weights import load_weights, read_config

SMALL = [
    'training.images_shown=48',
    'training.batch_size=8',
    'training.checkpoint_steps=2',
    'samples.per_class=1',
    'samples.num_steps=2',
    'samples.every=16',
    'model.network.channels=16',
    'model.network.channel_mult=(1,)',
    'model.network.attention_resolutions=()',
]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 9 images of 8 pixels: bright above and bright below."""
    folder, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for name, rows in (('above', slice(0, 4)), ('below', slice(4, 8))):
        (folder / name).mkdir()
        for k in range(9):
            pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
            pixels[rows] += 190
            Image.fromarray(pixels).save(folder / name / f'{k}.png')
    return folder


def learn(data: Path, out: Path, *options: str) -> list[str]:
    return ['learn', 'edm', 'edm_digits', '--data', str(data), '--out', str(out), '--device', 'cpu', '--cfg-options', *SMALL, *options]


def test_a_model_learned_by_the_command_line_generates_and_is_averaged(synthaug: Say, data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'm'
    status, said, progress = synthaug(*learn(data, out, 'training.power_ema_stds=(0.05,0.1)', 'training.snapshot_steps=1'))
    assert status == 0
    assert str(out / 'model') in said
    assert '48/48 images' in progress
    made = tmp_path / 'store'
    options = f'generator.model={out / "model"}', 'per_class=1', 'generator.sampler.num_steps=2'
    status, said, _ = synthaug('generate', 'edm_digits', '--out', made, '--device', 'cpu', '--cfg-options', *options)
    assert (status, '2 images of 2 classes' in said) == (0, True)
    assert synthaug('learn', 'average', out, '--std', '0.1', '--out', tmp_path / 'wide')[:2] == (0, f'{tmp_path / "wide"}\n')
    wide, usual = load_weights(tmp_path / 'wide'), load_weights(out / 'model')
    assert wide.keys() == usual.keys()
    assert any(not torch.equal(wide[k], v) for k, v in usual.items())


def test_a_command_that_a_scheduler_stops_names_its_checkpoint_and_goes_on(data: Path, tmp_path: Path, synthaug: Say) -> None:
    out = tmp_path / 'm'
    process = copy_of_this_process(lambda: command_line(*learn(data, out, 'training.images_shown=100_000')))
    process.wait_until((out / 'samples').is_dir)
    status, _, said = process.end(signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    shown = json.loads((out / 'checkpoints' / 'checkpoint.json').read_text())['step'] * 8
    assert f'has seen {shown:,} images. The same command goes on from there.' in said
    assert 'Traceback' not in said
    assert synthaug(*learn(data, out, f'training.images_shown={shown + 8}'))[0] == 0
    assert json.loads((out / 'model' / 'card.json').read_text())['training']['images_shown'] == shown + 8


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'--data': 'absent'}, "'absent' does not exist"),
        ({'--out': 'full'}, 'nothing was touched'),
        ({'--out': 'full/thesis.txt'}, 'holds no training'),
        ({'RECIPE': 'edm_digitz'}, 'edm_digits'),
        ({'RECIPE': 'generate/edm_digits'}, 'synthaug generate'),
        ({'--device': 'gpu'}, 'cuda'),
        ({'OPTION': 'training.class_balance=no'}, 'class_balance'),
        ({'OPTION': 'training.P_mean=low'}, 'P_mean'),
        ({'OPTION': 'classes=["above"]'}, "['below']"),
    ],
    ids=str,
)
def test_wrong_commands_to_learn_end_with_one_line(change: dict[str, str], named: str, data: Path, tmp_path: Path, synthaug: Say, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.txt').write_text('mine')
    parts = {'RECIPE': 'edm_digits', '--data': str(data), '--out': 'new', '--device': 'cpu', 'OPTION': 'seed=0', **change}
    arguments = ['learn', 'edm', parts['RECIPE'], *(x for k in ('--data', '--out', '--device') for x in (k, parts[k]))]
    status, _, said = synthaug(*arguments, '--cfg-options', *SMALL, parts['OPTION'])
    assert (status, said.count('\n')) == (2, 1)
    assert named in said
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['full', 'thesis.txt']


def test_calibrate_prints_each_proposal_with_its_reason(synthaug: Say, data: Path) -> None:
    status, said, _ = synthaug('calibrate', data, '--grey')
    assert status == 0
    names, values = zip(*(line.split()[:2] for line in said.splitlines()), strict=True)
    assert names == ('sigma_data', 'P_mean', 'P_std', 'sigma_min', 'sigma_max')
    pixels = np.stack([np.asarray(Image.open(p)) for p in data.rglob('*.png')]) / 127.5 - 1
    assert float(values[0]) == pytest.approx(float(np.sqrt((pixels**2).mean())), abs=1e-3)
    status, _, said = synthaug('calibrate', data / 'above')
    assert (status, 'no class folders' in said) == (2, True)


def test_calibrate_tells_the_option_that_images_of_many_sizes_need(synthaug: Say, tmp_path: Path) -> None:
    (tmp_path / 'a').mkdir()
    for k in range(3):
        Image.new('RGB', (8 + k, 8)).save(tmp_path / 'a' / f'{k}.png')
    status, _, said = synthaug('calibrate', tmp_path)
    assert (status, '--resolution' in said) == (2, True)


def test_convert_makes_a_model_folder_and_leaves_other_folders_alone(synthaug: Say, tmp_path: Path) -> None:
    from synthaug_plugins.diffusion import build_denoiser

    network = {'type': 'ddpmpp', 'channels': 8, 'channel_mult': [1], 'blocks_per_level': 1, 'attention_resolutions': []}
    config = {'kind': 'edm', 'resolution': 8, 'channels': 1, 'classes': ['a'], 'label_conditioning': True, 'sigma_data': 0.5, 'network': network}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    torch.save(build_denoiser(config).state_dict(), tmp_path / 'plain.pt')
    command = ['convert', tmp_path / 'plain.pt', '--config', tmp_path / 'config.json', '--out']
    assert synthaug(*command, tmp_path / 'out')[:2] == (0, f'{tmp_path / "out"}\n')
    assert read_config(tmp_path / 'out') == config
    for taken in ('', 'out', 'plain.pt', 'plain.pt/x'):
        status, _, said = synthaug(*command, tmp_path / taken)
        assert (status, said.count('\n')) == (2, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['config.json', 'out', 'plain.pt']
