"""The plugin system: guarded entry points, allow-list, off switch, trace, pending hooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from new_process import new_python

GOOD = """
from synthaug_plugins.hookspecs import hookimpl
@hookimpl
def synthaug_register(registries):
    @registries.generators.register_module()
    class Foreign: 'A generator from elsewhere.'
@hookimpl
def synthaug_add_commands(app):
    @app.command()
    def greet():
        "Say hello: synthaug greet"
        print('hello from outside')
"""
BAD = 'raise RuntimeError("no luck")'
TYPO = 'from synthaug_plugins.hookspecs import hookimpl\n@hookimpl\ndef synthaug_registr(registries): pass\n'


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Three installed packages with entry points: one good, one that raises at import, one with a misspelled hook."""
    for name, source in (('good', GOOD), ('bad', BAD), ('typo', TYPO)):
        (tmp_path / f'{name}_plugin.py').write_text(source)
        info = tmp_path / f'{name}_plugin-1.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n')
        (info / 'entry_points.txt').write_text(f'[synthaug_plugins]\n{name} = {name}_plugin\n')
    return tmp_path


def environment_of(packages: Path, **more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith('SYNTHAUG_')} | {'PYTHONPATH': str(packages), **more}


def synthaug(packages: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'synthaug_plugins.cli', *arguments]
    return subprocess.run(command, env=environment_of(packages, **environment), capture_output=True, text=True)


def test_broken_plugins_are_named_and_left_out(packages: Path) -> None:
    done = synthaug(packages, 'plugins')
    assert done.returncode == 0
    assert 'good-plugin 1.0' in done.stdout
    assert 'mix' in done.stdout
    assert 'bad-plugin 1.0' in done.stderr
    assert 'no luck' in done.stderr
    assert 'typo-plugin 1.0' in done.stderr
    assert 'synthaug_registr' in done.stderr


def test_plugin_adds_nouns_and_commands(packages: Path) -> None:
    assert synthaug(packages, 'greet').stdout == 'hello from outside\n'
    assert 'A generator from elsewhere.' in new_python('-m', 'synthaug_plugins.cli', 'list', env=environment_of(packages)).out


def test_allow_list_and_off_switch(packages: Path) -> None:
    only = synthaug(packages, 'plugins', SYNTHAUG_PLUGINS='good')
    assert 'good-plugin' in only.stdout
    assert 'bad-plugin' not in only.stderr
    assert "'godo'" in synthaug(packages, 'plugins', SYNTHAUG_PLUGINS='godo').stderr
    off = synthaug(packages, 'plugins', SYNTHAUG_DISABLE_PLUGINS='1')
    assert 'good-plugin' not in off.stdout
    assert 'mix' in off.stdout


def test_trace_prints_hook_calls(packages: Path) -> None:
    assert 'synthaug_add_commands' in synthaug(packages, 'plugins', SYNTHAUG_TRACE_PLUGINS='1').stderr
