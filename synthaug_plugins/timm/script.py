"""timm's train.py as the launcher needs it: read before it runs, loaded without running, its names exchanged."""

from __future__ import annotations

import ast
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.timm.version import TIMM_VERSIONS

HOOKS = ('create_dataset', 'create_loader', 'ClassificationTask')
"""Names that train.py takes from timm and calls in `main`; the launcher puts its own in their place."""
_DEFINED = ('main', '_parse_args', 'parser')
_CURE = f'Use the train.py of the timm version that is installed ({TIMM_VERSIONS}), unchanged.'


@dataclass(frozen=True)
class TrainScript:
    """A train.py that has what the launcher hooks into.

    Raises:
        DataError: no such file.
        RecipeError: it does not read as Python, would train when it is imported, or lacks one of the names.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise DataError(f'There is no training script {str(self.path)!r}.', 'Give the path of the train.py of a checkout of timm.')
        try:
            tree = ast.parse(self.path.read_text(encoding='utf-8'))
        except (SyntaxError, ValueError) as error:
            raise RecipeError(f'{str(self.path)!r} is no Python file: {error}.', _CURE) from error
        defined = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        assigned = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        imported = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('timm') for a in n.names}
        lacking = [name for name in _DEFINED if name not in defined and name not in assigned]
        called = {n.func.id for n in ast.walk(defined['main']) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)} if 'main' in defined else set()
        lacking += [name for name in HOOKS if name not in imported or name not in called]
        if lacking:
            raise RecipeError(f'{str(self.path)!r} lacks what the launcher hooks into: {", ".join(lacking)}.', _CURE)
        if any(isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and getattr(n.value.func, 'id', None) == 'main' for n in tree.body):
            raise RecipeError(f'{str(self.path)!r} calls main() as soon as it is loaded.', _CURE)

    def load(self) -> ModuleType:
        """Execute the script's definitions; nothing trains yet.

        Raises:
            RecipeError: it does not fit the timm that is installed.
        """
        spec: Any = importlib.util.spec_from_file_location('timm_train_script', self.path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise RecipeError(f'{str(self.path)!r} does not load with the installed timm: {error}.', _CURE) from error
        return module
