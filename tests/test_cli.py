"""The command line: refusals are one line with a cure and a status of their own; options spread as MMPretrain's do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from synthaug_plugins.cli import parse_options, spread_cfg_options
from synthaug_plugins.errors import RecipeError


def synthaug(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-m', 'synthaug_plugins.cli', *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def test_cfg_options_take_several_pairs() -> None:
    spread = spread_cfg_options(['generate', 'r', '--cfg-options', 'a=1', 'b.c=[1,2]', '--out', 'x=y', '--cfg-options', 'd=text', 'positional'])
    assert spread == ['generate', 'r', '--cfg-options', 'a=1', '--cfg-options', 'b.c=[1,2]', '--out', 'x=y', '--cfg-options', 'd=text', 'positional']
    assert parse_options(['a=1', 'b.c=[1,2]', 'd=text', 'e=None', 'f=true', 'g=a=b']) == {'a': 1, 'b.c': [1, 2], 'd': 'text', 'e': None, 'f': True, 'g': 'a=b'}
    with pytest.raises(RecipeError, match='KEY=VALUE'):
        parse_options(['seed'])


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['generate', 'edm_digitz', '--out', 'o'], 'edm_digits'),
        (['verify', '.'], 'not a'),
        (['show', 'nowhere', '--out', 'x.png'], 'nowhere'),
        (['generate', 'edm_digits', '--out', 'full'], 'not empty'),
        (['generate', 'edm_digits', '--out', 'o', '--device', 'gpu'], 'cuda'),
        (['generate', 'digits_real_guidance', '--out', 'o'], '--data'),
        (['generate', 'digits_real_guidance', '--out', 'o', '--data', 'absent'], 'absent'),
        (['train', 'digits_resnet', '--work-dir', 'w', '--mix', 's', '--alpha', '1.5'], '[0, 1]'),
    ],
    ids=lambda v: ' '.join(v)[:40] if isinstance(v, list) else '',
)
def test_wrong_commands_end_with_one_line_and_status_2(arguments: list[str], text: str, tmp_path: Path) -> None:
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.txt').write_text('mine')
    done = synthaug(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert 'Traceback' not in done.stderr
    assert done.stderr.startswith('synthaug: ')
    assert done.stderr.count('\n') == 1
    assert [p.name for p in tmp_path.rglob('*')] in (['full', 'thesis.txt'], ['thesis.txt', 'full'])


def test_generate_show_export_verify_through_the_command_line(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    store = tmp_path / 'store'
    done = synthaug('generate', 'edm_digits', '--out', store, '--cfg-options', 'per_class=3', 'generator.sampler.num_steps=4')
    assert done.returncode == 0, done.stderr
    assert '30 images of 10 classes' in done.stdout
    assert 'images/s' in done.stderr
    assert synthaug('show', store, '--out', tmp_path / 'sheet.png', '--where', "class_name = 'three'").returncode == 0
    assert (tmp_path / 'sheet.png').read_bytes().startswith(b'\x89PNG')
    assert synthaug('export', store, '--to', 'imagefolder', '--out', tmp_path / 'folder').returncode == 0
    assert len(ImageFolder(tmp_path / 'folder')) == 30
    assert synthaug('verify', store).returncode == 0
    (store / 'index' / '00000.parquet').write_bytes(b'')
    broken = synthaug('verify', store)
    assert broken.returncode == 4
    assert 'synthaug repair' in broken.stderr
    assert synthaug('repair', store).returncode == 0
    assert synthaug('verify', store).returncode == 0


def test_init_copies_a_recipe_and_never_overwrites(tmp_path: Path) -> None:
    assert synthaug('init', 'generate/edm_digits', cwd=tmp_path).returncode == 0
    (tmp_path / 'edm_digits.py').write_text('mine')
    again = synthaug('init', 'generate/edm_digits', cwd=tmp_path)
    assert again.returncode == 2
    assert 'exists' in again.stderr
    assert (tmp_path / 'edm_digits.py').read_text() == 'mine'


def test_list_and_doctor_speak(tmp_path: Path) -> None:
    listed = synthaug('list', '*guidance*')
    assert 'RealGuidance' in listed.stdout
    assert 'EDM' not in listed.stdout.split('recipes')[0].replace('RealGuidance', '')
    doctor = synthaug('doctor')
    assert doctor.returncode == 0, doctor.stdout
    assert 'mmengine' in doctor.stdout


def test_nothing_of_the_users_is_overwritten_or_written_into(tmp_path: Path) -> None:
    """A sheet replaces a sheet and nothing else; a comparison and an export need a folder of their own."""
    store = tmp_path / 'store'
    assert synthaug('generate', 'edm_digits', '--out', store, '--cfg-options', 'per_class=2', 'generator.sampler.num_steps=2').returncode == 0
    photo = tmp_path / 'photo.png'
    photo.write_bytes(b'mine')
    assert synthaug('show', store, '--out', photo).returncode == 2
    assert photo.read_bytes() == b'mine'
    assert synthaug('show', store, '--out', tmp_path / 'sheet.jpg').returncode == 2
    for _ in range(2):
        assert synthaug('show', store, '--out', tmp_path / 'sheet.png').returncode == 0
    into = synthaug('compare', 'digits_demo', '--out', tmp_path)
    assert into.returncode == 2
    assert 'not a comparison' in into.stderr
    assert not (tmp_path / 'runs').exists()
    inside = synthaug('export', store, '--out', store / 'sub')
    assert inside.returncode == 2
    assert 'inside the store' in inside.stderr


def test_damaged_image_is_neither_exported_nor_shown(tmp_path: Path) -> None:
    store = tmp_path / 'store'
    assert synthaug('generate', 'edm_digits', '--out', store, '--cfg-options', 'per_class=2', 'generator.sampler.num_steps=2').returncode == 0
    tar = store / 'shards' / '00000.tar'
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(bytes(data))
    for command in (['export', store, '--out', tmp_path / 'out'], ['show', store, '--out', tmp_path / 'sheet.png']):
        done = synthaug(*command)
        assert done.returncode == 2
        assert 'damaged' in done.stderr
        assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'out').exists()


def test_sigterm_ends_as_ctrl_c_does_and_says_how_to_go_on(tmp_path: Path) -> None:
    import signal
    import time

    command = [sys.executable, '-m', 'synthaug_plugins.cli', 'generate', 'edm_digits', '--out', str(tmp_path / 's')]
    process = subprocess.Popen([*command, '--cfg-options', 'block_size=5'], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / 's' / 'index').glob('0*.parquet')):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert 'The same command goes on' in said
    assert 'Traceback' not in said
    assert not [p for p in (tmp_path / 's').rglob('*') if 'partial' in p.name]
