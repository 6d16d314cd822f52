"""The example package adds a generator by entry point: really built, really installed, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import REPO, Said

EXAMPLE = REPO / 'docs' / 'examples' / 'foreign_generator'
Run = Callable[..., Said]

# Libraries, which know nothing of plugins, are loaded once. Each command line then has a process forked from there, with an environment of its own.
COMMAND_LINES = """
import gc, json, os, sys
import mmengine, pandas, pyarrow.dataset, pyarrow.parquet, pydantic, rich.traceback, torch, torchvision, typer, yapf
gc.collect()
gc.freeze()  # a collection in a fork would copy the memory of all that
for line in sys.stdin:
    arguments, environment = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ.update(environment)
        for fd, name in ((1, 'out'), (2, 'err')):
            os.dup2(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), fd)
        from synthaug_plugins.cli import main
        try:
            main(arguments)
        except SystemExit as ended:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code or 0)  # without taking all libraries apart
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope='module')
def synthaug(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs `synthaug` in a new environment: the example installed by pip; through a path file this checkout and its dependencies."""
    folder = tmp_path_factory.mktemp('foreign')
    environment = folder / 'env'
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / 'bin' / 'python'
    site = environment / 'lib' / f'python{sys.version_info.major}.{sys.version_info.minor}' / 'site-packages'
    (site / 'dependencies.pth').write_text(f'{sysconfig.get_path("purelib")}\n{REPO}\n')
    install = ['install', '--quiet', '--no-deps', '--no-build-isolation', '--no-index', str(EXAMPLE)]
    subprocess.run([sys.executable, '-m', 'pip', '--python', str(python), *install], check=True)
    assert list(site.glob('foreign_generator-1.0.dist-info/entry_points.txt'))

    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH' and not k.startswith('SYNTHAUG_')}
    with subprocess.Popen([str(python), '-c', COMMAND_LINES], env=env, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def run(*arguments: str | Path, **extra: str) -> Said:
            process.stdin.write(json.dumps([[str(a) for a in arguments], extra]) + '\n')
            process.stdin.flush()
            return Said(int(process.stdout.readline()), (folder / 'out').read_text(), (folder / 'err').read_text())

        yield run
        process.stdin.close()


def generate(synthaug: Run, out: Path, *options: str, **extra: str) -> Said:
    return synthaug('generate', EXAMPLE / 'gratings.py', '--out', out, '--cfg-options', 'per_class=3', *options, **extra)


def test_an_installed_package_is_listed_with_its_generator(synthaug: Run) -> None:
    assert 'foreign-generator 1.0' in synthaug('plugins').out
    assert 'Gratings' in synthaug('list', 'Grat*').out


@pytest.fixture(scope='module')
def filled(synthaug: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of its images, each block made in one batch."""
    out = tmp_path_factory.mktemp('filled') / 'store'
    done = generate(synthaug, out)
    assert done.status == 0, done.err
    assert '6 images of 2 classes' in done.out
    return out


def test_a_foreign_generator_fills_a_store_that_is_read_without_it(synthaug: Run, filled: Path) -> None:
    from synthaug_plugins.store.store import Store
    from synthaug_plugins.store.verify import verify

    store = Store.open(filled)
    assert not verify(store)
    assert set(store.index().column('prompt').to_pylist()) == {'a photo of a cat', 'a photo of a dog'}
    # Another drawing is another plan: the store of the first one is not continued.
    other = generate(synthaug, filled, 'generator.size=32')
    assert other.status == 2
    assert 'size' in other.err


def test_its_images_do_not_depend_on_the_batch_size_and_the_allow_list_lets_it_in(synthaug: Run, filled: Path, tmp_path: Path) -> None:
    from synthaug_plugins.store.store import Store

    # The allow-list knows it by the name of its entry point.
    assert generate(synthaug, tmp_path / 'single', 'batch_size=1', SYNTHAUG_PLUGINS='foreign_generator').status == 0
    hashes = [Store.open(folder).index().column('sha256').to_pylist() for folder in (filled, tmp_path / 'single')]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 6


@pytest.mark.parametrize('switch', [{'SYNTHAUG_DISABLE_PLUGINS': '1'}, {'SYNTHAUG_PLUGINS': 'another'}])
def test_allow_list_and_off_switch_keep_it_out(synthaug: Run, tmp_path: Path, switch: dict[str, str]) -> None:
    done = generate(synthaug, tmp_path / 'store', **switch)
    assert done.status == 2
    assert "'synthaug_plugins.Gratings' is unknown" in done.err
    assert not (tmp_path / 'store').exists()
