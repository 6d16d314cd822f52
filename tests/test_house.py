"""The house stays as docs/architecture.md draws it: floors, light imports, documented names, one place for words."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from conftest import REPO
from new_process import new_python

PACKAGE = REPO / 'synthaug_plugins'
FLOORS = {
    0: {'__init__', 'errors', 'compat', 'registry', 'hookspecs', 'weights', 'plain_json', 'new_folder', 'own_folder', 'device', 'model_parts', 'columns'},
    1: {'diffusion', 'store', 'executors', 'prompts', 'real_images', 'few_shot', 'recipes', 'assets'},
    2: {'models', 'annotations', 'mixing', 'data_split', 'handover'},
    3: {'learning', 'generators', 'curation'},
    4: {'engine', 'training', 'timm'},
    5: {'evaluation'},
    6: {'plugins', 'cli', 'doctor', 'inventory'},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# Beyond floors: what a room must not know, wherever it stands.
STRANGERS = {
    **{
        'training': {'generators', 'engine', 'learning', 'models'},
        'engine': {'training'},
        'generators': {'curation', 'learning'},
        'curation': {'generators'},
        'mixing': {'models', 'generators'},
        'timm': {'models', 'generators', 'learning', 'curation'},
    },
    **{'diffusion': {'weights'}, 'store': {'weights'}},
}
FOREIGN = {
    'diffusion': {'mmengine', 'mmpretrain', 'PIL', 'pyarrow', 'json', 'pathlib'},
    'store': {'torch', 'mmengine', 'mmpretrain', 'diffusers'},
    'mixing': {'torch', 'mmpretrain', 'diffusers', 'timm'},
    'handover': {'torch', 'mmengine', 'mmpretrain', 'diffusers'},
    'executors': {'mmengine', 'mmpretrain', 'diffusers', 'pyarrow', 'PIL'},
    'prompts': {'PIL', 'mmengine', 'mmpretrain', 'pyarrow', 'diffusers'},
    'timm': {'mmpretrain', 'mmcv', 'diffusers'},
}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether only for type checkers."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for_types = {
        id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test) for child in node.body for n in ast.walk(child)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f'{node.module}.{alias.name}', id(node) in for_types) for alias in node.names)


def may_import(here: str, there: str) -> bool:
    """A room imports from lower floors; on the ground floor and at the front door the single files also import each other."""
    return FLOOR_OF[there] < FLOOR_OF[here] or (FLOOR_OF[there] == FLOOR_OF[here] and FLOOR_OF[here] in (0, 6))


def test_the_floor_rule_refuses_what_it_should() -> None:
    assert may_import('engine', 'store')
    assert may_import('cli', 'plugins')
    assert not may_import('errors', 'evaluation')
    assert not may_import('store', 'engine')
    assert not may_import('store', 'prompts')


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob('*.py') if 'assets' not in p.parts)


def test_every_room_has_a_floor() -> None:
    assert {room_of(p) for p in sources()} <= set(FLOOR_OF)


@pytest.mark.parametrize('path', sources(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_rooms_import_from_lower_floors_only(path: Path) -> None:
    here = room_of(path)
    for module, for_types in imports(path):
        parts = module.split('.')
        if parts[0] == 'synthaug_plugins' and len(parts) > 1 and parts[1] in FLOOR_OF:
            there = parts[1]
            if there != here and not for_types:
                assert may_import(here, there), f'{path.name} (floor {FLOOR_OF[here]}) imports {module} (floor {FLOOR_OF[there]})'
            assert there not in STRANGERS.get(here, set()), f'{here} must not know {there}'
        assert parts[0] not in FOREIGN.get(here, set()), f'{here} must not know {parts[0]}'


def test_no_two_files_of_a_room_import_each_other_by_any_way_round() -> None:
    names = {'.'.join(p.relative_to(REPO).with_suffix('').parts): p for p in sources() if p.stem != '__init__'}

    def named(module: str) -> str | None:
        return next((name for name in (module, module.rpartition('.')[0]) if name in names), None)

    # Between floors the rule above holds; what is for type checkers counts too, and what a function imports.
    graph = {
        name: {there for module, _ in imports(path) if (there := named(module)) and room_of(names[there]) == room_of(path)} for name, path in names.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_help_loads_neither_torch_nor_mmengine() -> None:
    script = "import sys; from synthaug_plugins.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint([m for m in ('torch','mmengine','numpy','diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith('[]'), done.stdout[-300:]


@pytest.fixture(scope='module')
def everything_loaded() -> tuple[str, str]:
    """What a process says that loads every plugin and every registry entry: the reference page, and whether CUDA was started."""
    script = (
        'import runpy, sys, torch; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__");'
        'from synthaug_plugins.plugins import get_plugin_manager, register_nouns; get_plugin_manager(); register_nouns();'
        'print(torch.cuda.is_initialized(), file=sys.stderr)'
    )
    done = new_python('-c', script, REPO / 'tools' / 'make_reference.py', '--print')
    assert done.status == 0, done.err
    return done.out, done.err.split()[-1]


def test_importing_every_plugin_starts_no_cuda(everything_loaded: tuple[str, str]) -> None:
    assert everything_loaded[1] == 'False'


def test_every_hook_and_its_arguments_are_documented() -> None:
    import inspect

    from synthaug_plugins import hookspecs

    hooks = {name: f for name, f in vars(hookspecs).items() if name.startswith('synthaug_')}
    assert hooks
    reference = (REPO / 'docs' / 'reference.md').read_text()
    for name, function in hooks.items():
        doc = inspect.getdoc(function) or ''
        assert 'Called ' in doc, f'{name} does not say when it is called'
        for argument in inspect.signature(function).parameters:
            assert re.search(rf'^{argument}:', doc, re.M), f'{name}: {argument} is undocumented'
        assert f'`{name}`' in reference


def test_reference_page_is_what_the_code_says(everything_loaded: tuple[str, str]) -> None:
    """docs/reference.md lists every command, option, recipe key, entry and hook; it is made by tools/make_reference.py."""
    assert everything_loaded[0] == (REPO / 'docs' / 'reference.md').read_text(), 'run: python tools/make_reference.py'


def test_every_command_and_option_has_help_and_an_example() -> None:
    from synthaug_plugins.cli import every_command

    for name, command in every_command().items():
        assert f'synthaug {name}' in command.help, f'{name} shows no example'
        for parameter in command.params:
            if parameter.name != 'help':
                assert parameter.help, f'{name} {parameter.name} has no help'


def test_every_public_function_has_a_docstring_and_types() -> None:
    missing = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_') and not ast.get_docstring(node):
                missing.append(f'{path.name}:{node.lineno} class {node.name}')
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith('_') and not ast.get_docstring(node) and 'hookimpl' not in ast.dump(node):
                missing.append(f'{path.name}:{node.lineno} def {node.name}')
    assert not missing


@pytest.mark.parametrize('path', sorted((REPO / 'registry_configs').rglob('*.py')), ids=lambda p: p.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    from synthaug_plugins import compat

    compat.apply()
    if path.parent.name == 'generate':
        from synthaug_plugins.engine.recipe import load_recipe

        assert load_recipe(str(path))['generator']['type']
    else:
        from mmengine.config import Config

        assert len(Config.fromfile(str(path)))


def test_shims_and_built_in_plugins_exist() -> None:
    from synthaug_plugins.plugins import BUILT_IN

    for module in BUILT_IN.values():
        assert importlib.import_module(module).OPTIONS
