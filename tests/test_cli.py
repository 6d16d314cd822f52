"""The command line: refusals are one line with a cure and a status of their own; options spread as MMPretrain's do."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Said, Say, command_line, copy_of_this_process
from new_process import new_python
from synthaug_plugins.cli import STOPPING, main, parse_options, spread_cfg_options
from synthaug_plugins.errors import RecipeError


def test_cfg_options_take_several_pairs() -> None:
    spread = spread_cfg_options(['generate', 'r', '--cfg-options', 'a=1', 'b.c=[1,2]', '--out', 'x=y', '--cfg-options', 'd=text', 'positional'])
    assert spread == ['generate', 'r', '--cfg-options', 'a=1', '--cfg-options', 'b.c=[1,2]', '--out', 'x=y', '--cfg-options', 'd=text', 'positional']
    assert parse_options(['a=1', 'b.c=[1,2]', 'd=text', 'e=None', 'f=true', 'g=a=b']) == {'a': 1, 'b.c': [1, 2], 'd': 'text', 'e': None, 'f': True, 'g': 'a=b'}
    assert parse_options(['a={[1]: 2}']) == {'a': '{[1]: 2}'}
    for wrong in (['--cfg-options', 'seed'], ['--cfg-options', '--device', 'cpu']):
        with pytest.raises(RecipeError, match='KEY=VALUE'):
            parse_options(spread_cfg_options(wrong)[1:2])
    assert spread_cfg_options(['generate', '--cfg-options']) == ['generate', '--cfg-options']


def assert_refused(done: Said, text: str) -> None:
    """One line that begins with the program and holds the text, and the status of refusals."""
    assert done.status == 2, done.err
    assert text in done.err
    assert 'Traceback' not in done.err
    assert done.err.startswith('synthaug: ')
    assert done.err.count('\n') == 1


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder with a folder of the user, and nothing else at the end."""
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.txt').write_text('mine')
    yield tmp_path
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['full', 'thesis.txt']


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['generate', 'edm_digitz', '--out', 'o'], 'edm_digits'),
        (['generate', 'edm_digits', '--out', 'full'], 'not empty'),
        (['generate', 'edm_digits', '--out', 'o', '--device', 'gpu'], 'cuda'),
        (['generate', 'digits_real_guidance', '--out', 'o'], '--data'),
    ],
    ids=lambda v: ' '.join(v)[:40] if isinstance(v, list) else '',
)
def test_wrong_commands_end_with_one_line_and_status_2(arguments: list[str], text: str, elsewhere: Path, synthaug: Say, monkeypatch: Any) -> None:
    monkeypatch.chdir(elsewhere)
    assert_refused(synthaug(*arguments), text)


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['verify', '.'], 'not a'),
        (['show', 'nowhere', '--out', 'x.png'], 'nowhere'),
        (['generate', 'digits_real_guidance', '--out', 'o', '--data', 'absent'], 'absent'),
        (['train', 'digits_resnet', '--work-dir', 'w', '--mix', 's', '--alpha', '1.5'], '[0, 1]'),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else '',
)
def test_nothing_that_a_refused_command_loads_adds_a_line_of_its_own(arguments: list[str], text: str, elsewhere: Path) -> None:
    """In processes of their own, since libraries warn when they are loaded."""
    assert_refused(new_python('-m', 'synthaug_plugins.cli', *arguments, cwd=elsewhere), text)


def test_a_training_does_not_load_transformers_only_to_name_an_optimiser(tmp_path: Path) -> None:
    script = (
        "import sys; from synthaug_plugins.cli import main\ntry: main(sys.argv[1:])\nfinally: print('transformers' in sys.modules, 'mmengine' in sys.modules)"
    )
    command = ['train', 'digits_resnet', '--work-dir', 'w', '--cfg-options', 'model.backbone.type=ResNut']  # refused when the trainer builds it
    assert new_python('-c', script, *command, cwd=tmp_path).out.endswith('False True\n')


def test_generate_show_export_verify_through_the_command_line(tmp_path: Path, synthaug: Say) -> None:
    from torchvision.datasets import ImageFolder

    store = tmp_path / 'store'
    done = new_python('-m', 'synthaug_plugins.cli', 'generate', 'edm_digits', '--out', store, '--cfg-options', 'per_class=3', 'generator.sampler.num_steps=4')
    assert done.status == 0, done.err
    assert '30 images of 10 classes' in done.out
    assert 'images/s' in done.err
    assert synthaug('show', store, '--out', tmp_path / 'sheet.png', '--where', "class_name = 'three'").status == 0
    assert (tmp_path / 'sheet.png').read_bytes().startswith(b'\x89PNG')
    assert synthaug('export', store, '--to', 'imagefolder', '--out', tmp_path / 'folder').status == 0
    assert len(ImageFolder(tmp_path / 'folder')) == 30
    assert synthaug('verify', store).status == 0
    (store / 'index' / '00000.parquet').write_bytes(b'')
    broken = synthaug('verify', store)
    assert broken.status == 4
    assert 'synthaug repair' in broken.err
    assert synthaug('repair', store).status == 0
    assert synthaug('verify', store).status == 0


def test_init_copies_a_recipe_and_never_overwrites(tmp_path: Path, synthaug: Say, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert synthaug('init', 'generate/edm_digits').status == 0
    (tmp_path / 'edm_digits.py').write_text('mine')
    again = synthaug('init', 'generate/edm_digits')
    assert again.status == 2
    assert 'exists' in again.err
    assert (tmp_path / 'edm_digits.py').read_text() == 'mine'
    nowhere = synthaug('init', 'generate/edm_digits', '--out', tmp_path / 'edm_digits.py' / 'x')
    assert_refused(nowhere, 'was not copied')


def test_what_the_system_forbids_is_one_line_with_the_file(synthaug: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> None:
        raise PermissionError(13, 'Permission denied', '/locked/x')

    monkeypatch.setattr('synthaug_plugins.recipes.copy_recipe', forbidden)
    assert_refused(synthaug('init', 'generate/edm_digits'), "'/locked/x' cannot be used: Permission denied.")


def test_list_knows_the_recipe_keys_of_every_learning_command(synthaug: Say) -> None:
    from synthaug_plugins.cli.learning import learn_app
    from synthaug_plugins.engine.learn_folder import KINDS

    assert set(KINDS) <= {command.callback.__name__ for command in learn_app.registered_commands if command.callback}
    said = synthaug('list').out
    assert not [kind for kind in KINDS if f'keys of a recipe of synthaug learn {kind}' not in said]


def test_list_and_doctor_speak(synthaug: Say) -> None:
    listed = synthaug('list', '*guidance*')
    assert 'RealGuidance' in listed.out
    assert 'EDM' not in listed.out.split('recipes')[0].replace('RealGuidance', '')
    doctor = synthaug('doctor')
    assert doctor.status == 0, doctor.out
    assert 'mmengine' in doctor.out


def test_nothing_of_the_users_is_overwritten_or_written_into(tmp_path: Path, synthaug: Say) -> None:
    """A sheet replaces a sheet and nothing else; a comparison and an export need a folder of their own."""
    store = tmp_path / 'store'
    assert synthaug('generate', 'edm_digits', '--out', store, '--cfg-options', 'per_class=2', 'generator.sampler.num_steps=2').status == 0
    photo = tmp_path / 'photo.png'
    photo.write_bytes(b'mine')
    assert synthaug('show', store, '--out', photo).status == 2
    assert photo.read_bytes() == b'mine'
    assert synthaug('show', store, '--out', tmp_path / 'sheet.jpg').status == 2
    for _ in range(2):
        assert synthaug('show', store, '--out', tmp_path / 'sheet.png').status == 0
    into = synthaug('compare', 'digits_demo', '--out', tmp_path)
    assert into.status == 2
    assert 'not a comparison' in into.err
    assert not (tmp_path / 'runs').exists()
    inside = synthaug('export', store, '--out', store / 'sub')
    assert inside.status == 2
    assert 'inside the store' in inside.err


def test_damaged_image_is_neither_exported_nor_shown(tmp_path: Path, synthaug: Say) -> None:
    store = tmp_path / 'store'
    assert synthaug('generate', 'edm_digits', '--out', store, '--cfg-options', 'per_class=2', 'generator.sampler.num_steps=2').status == 0
    tar = store / 'shards' / '00000.tar'
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(bytes(data))
    for command in (['export', store, '--out', tmp_path / 'out'], ['show', store, '--out', tmp_path / 'sheet.png']):
        done = synthaug(*command)
        assert done.status == 2
        assert 'damaged' in done.err
        assert 'Traceback' not in done.err
    assert not (tmp_path / 'out').exists()


def test_sigterm_ends_as_ctrl_c_does_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = copy_of_this_process(lambda: command_line('generate', 'edm_digits', '--out', tmp_path / 's', '--cfg-options', 'block_size=5'))
    process.wait_until(lambda: list((tmp_path / 's' / 'index').glob('0*.parquet')))
    status, _, said = process.end(signal.SIGTERM)
    assert status == 143
    assert 'The same command goes on' in said
    assert 'Traceback' not in said
    assert not [p for p in (tmp_path / 's').rglob('*') if 'partial' in p.name]


def test_a_command_under_nohup_outlives_its_terminal() -> None:
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with pytest.raises(SystemExit):
            main(['--version'])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
