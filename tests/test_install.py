"""The wheel holds everything a user needs: code, recipes and models; and it works in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from conftest import REPO


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', str(folder), str(REPO)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob('*.whl'))


def test_wheel_carries_recipes_models_and_template(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for file in (
        'synthaug_plugins/registry_configs/generate/edm_digits.py',
        'synthaug_plugins/assets/digits_edm/model.safetensors',
        'synthaug_plugins/assets/digits_edm/card.json',
        'synthaug_plugins/evaluation/report.html.j2',
    ):
        assert file in names
    assert not [n for n in names if n.startswith(('tests/', 'tools/', 'docs/'))]
    assert wheel.stat().st_size < 12e6  # seven small models, most of it


def test_installed_wheel_generates_from_a_shipped_recipe(wheel: Path, tmp_path: Path) -> None:
    """The new environment has our wheel and, through a path file, the dependencies of this one; not this checkout."""
    environment = tmp_path / 'env'
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / 'bin' / 'python'
    site = environment / 'lib' / f'python{sys.version_info.major}.{sys.version_info.minor}' / 'site-packages'
    subprocess.run([sys.executable, '-m', 'pip', '--python', str(python), 'install', '--quiet', '--no-deps', str(wheel)], check=True)
    (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}

    def synthaug(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(environment / 'bin' / 'synthaug'), *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)

    where = subprocess.run(
        [str(python), '-c', 'import synthaug_plugins; print(synthaug_plugins.__file__)'], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert str(environment) in where.stdout
    assert synthaug('init', 'generate/edm_digits').returncode == 0
    done = synthaug('generate', 'edm_digits.py', '--out', 'store', '--cfg-options', 'per_class=2', 'generator.sampler.num_steps=4')
    assert done.returncode == 0, done.stderr
    assert '20 images of 10 classes' in done.stdout
