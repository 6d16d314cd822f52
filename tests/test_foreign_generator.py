"""The example package adds a generator by entry point: really built, really installed by pip, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPO, Said
from new_process import new_python

EXAMPLE = REPO / 'docs' / 'examples' / 'foreign_generator'

# Libraries, which know nothing of plugins, are loaded once. Each command line then has a process forked from there, with an environment of its own.
COMMAND_LINES = """
import gc, json, os, sys
import mmengine, pandas, pyarrow.dataset, pyarrow.parquet, pydantic, rich.traceback, typer, yapf
gc.collect()
gc.freeze()  # a collection in a fork would copy the memory of all that
ended = {}
for name, (arguments, environment) in json.load(sys.stdin).items():
    pid = os.fork()
    if pid == 0:
        os.environ.update(environment)
        for fd, stream in ((1, 'out'), (2, 'err')):
            os.dup2(os.open(f'{name}.{stream}', os.O_CREAT | os.O_WRONLY), fd)
        from synthaug_plugins.cli import main
        try:
            main(arguments)
        except SystemExit as done:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(done.code or 0)  # without taking all libraries apart
    ended[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
json.dump(ended, sys.stdout)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('foreign')


@pytest.fixture(scope='module')
def said(folder: Path) -> dict[str, Said]:
    """What command lines said, one after the other, where pip has installed the example, beside this checkout and its dependencies."""
    install = ['install', '--quiet', '--no-deps', '--no-build-isolation', '--no-index', '--target', str(folder / 'site'), str(EXAMPLE)]
    subprocess.run([sys.executable, '-m', 'pip', *install], check=True)
    assert list(folder.glob('site/foreign_generator-1.0.dist-info/entry_points.txt'))

    def generate(out: str, *options: str, **environment: str) -> tuple[list[str], dict[str, str]]:
        return ['generate', str(EXAMPLE / 'gratings.py'), '--out', out, '--cfg-options', 'per_class=3', *options], environment

    commands = {
        'plugins': (['plugins'], {}),
        'list': (['list', 'Grat*'], {}),
        'filled': generate('filled'),  # each block made in one batch
        'drawn otherwise': generate('filled', 'generator.size=32'),
        'single': generate('single', 'batch_size=1', SYNTHAUG_PLUGINS='foreign_generator'),  # the allow-list knows it by the name of its entry point
        'off': generate('none', SYNTHAUG_DISABLE_PLUGINS='1'),
        'not allowed': generate('none', SYNTHAUG_PLUGINS='another'),
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith('SYNTHAUG_')} | {'PYTHONPATH': os.pathsep.join([str(folder / 'site'), str(REPO)])}
    done = new_python('-c', COMMAND_LINES, cwd=folder, env=env, stdin=json.dumps(commands))
    assert done.status == 0, done.err
    ended = json.loads(done.out)
    return {name: Said(ended[name], *((folder / f'{name}.{stream}').read_text() for stream in ('out', 'err'))) for name in commands}


def test_an_installed_package_is_listed_with_its_generator(said: dict[str, Said]) -> None:
    assert 'foreign-generator 1.0' in said['plugins'].out
    assert 'Gratings' in said['list'].out


def test_a_foreign_generator_fills_a_store_that_is_read_without_it(said: dict[str, Said], folder: Path) -> None:
    from synthaug_plugins.store.store import Store
    from synthaug_plugins.store.verify import verify

    assert said['filled'].status == 0, said['filled'].err
    assert '6 images of 2 classes' in said['filled'].out
    store = Store.open(folder / 'filled')
    assert not verify(store)
    assert set(store.index().column('prompt').to_pylist()) == {'a photo of a cat', 'a photo of a dog'}
    # Another drawing is another plan: the store of the first one is not continued.
    assert said['drawn otherwise'].status == 2
    assert 'size' in said['drawn otherwise'].err


def test_its_images_do_not_depend_on_the_batch_size_and_the_allow_list_lets_it_in(said: dict[str, Said], folder: Path) -> None:
    from synthaug_plugins.store.store import Store

    assert said['single'].status == 0, said['single'].err
    hashes = [Store.open(folder / name).index().column('sha256').to_pylist() for name in ('filled', 'single')]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 6


@pytest.mark.parametrize('switch', ['off', 'not allowed'])
def test_allow_list_and_off_switch_keep_it_out(said: dict[str, Said], folder: Path, switch: str) -> None:
    assert said[switch].status == 2
    assert "'synthaug_plugins.Gratings' is unknown" in said[switch].err
    assert not (folder / 'none').exists()
