"""The recipes that the package carries: finding one by name, copying one into the user's folder."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

from synthaug_plugins.errors import RecipeError, nearest

_INSTALLED = Path(__file__).parent / 'registry_configs'
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / 'registry_configs'
"""Inside the installed package, or beside it in a source checkout."""


_OURS = ('generate', 'score', 'learn', 'compare')
"""Kinds of recipes that MMPretrain has none of."""


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, such as `generate/edm_digits.py`; not the bases that they share, in folders called `_base_`."""
    found = (p.relative_to(ROOT) for p in ROOT.rglob('*.py') if not p.name.startswith('__'))
    return sorted(p.as_posix() for p in found if '_base_' not in p.parts)


def find_recipe(name: str, kind: str | None = None) -> str:
    """The path of a recipe: a file as given, an `mmpretrain::...` reference as given where one trains, or a shipped one by its name.

    Args:
        name: a shipped recipe is named with or without its folder and suffix: `generate/edm_digits.py`, `edm_digits`.
        kind: the folder that is meant where several share a name, such as 'generate'.

    Raises:
        RecipeError: nothing of that name, for which the nearest shipped names are offered, if any are near; a name that several share; one of
            MMPretrain's where only ours will do.
    """
    if '::' in name and kind in _OURS:
        raise RecipeError(f'{name!r} is a training recipe.', 'Use `synthaug train`, or name a recipe that `synthaug list` shows.')
    if '::' in name or Path(name).is_file():
        return name
    known = shipped_recipes()
    matches = [k for k in known if name in (k, k.removesuffix('.py'), Path(k).name, Path(k).stem)]
    if len(matches) > 1:
        matches = [k for k in matches if k.split('/')[0] == kind] or matches
    if len(matches) == 1:
        return str(ROOT / matches[0])
    if matches:
        raise RecipeError(f'The recipe name {name!r} is shared by {", ".join(matches)}.', 'Name it with its folder.')
    near = nearest(name, [*known, *(Path(k).stem for k in known)])
    cure = near if near.startswith('Did') else 'Give a file, or one that `synthaug list` names.'
    raise RecipeError(f'The recipe {name!r} is neither a file nor a shipped recipe.', cure)


def recipe_file(name: str, beside: Path, kind: str, key: str) -> str:
    """The recipe that another one names: a file relative to its own folder, a shipped recipe, or 'mmpretrain::...' as it is.

    Args:
        name: as written under `key`.
        beside: the recipe that names it.
        kind: folder of shipped recipes that is meant, such as 'train'.

    Raises:
        RecipeError: there is none; it is named.
    """
    if '::' in name:
        return name
    file = beside.parent / name
    if file.is_file():
        return str(file.resolve())
    try:
        return find_recipe(name, kind)
    except RecipeError as error:
        cure = f'Give a path relative to the recipe that names it, or a shipped recipe by name. {error.cure}'
        raise RecipeError(f'{key} = {name!r}: the file {str(file)!r} does not exist.', cure) from error


def copy_recipe(name: str, folder: Path) -> Path:
    """Copy a shipped recipe into `folder`, with the shipped files that it inherits from, and return the new file.

    A base that lies in `folder` already with the same content is left as it is.

    Raises:
        RecipeError: unknown name, a file of that name is already there (it is not overwritten), or the folder cannot be written.
    """
    if '::' in name:
        raise RecipeError(f'{name!r} is not a shipped recipe.', f"Start your own file with: _base_ = '{name}'")
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f'{str(folder)!r} is not a folder.', 'Give a folder with --out.')
    source = Path(find_recipe(name))
    target = folder / source.name
    copies = {target: source} | {Path(os.path.normpath(folder / os.path.relpath(base, source.parent))): base for base in _bases(source)}
    for copy, original in copies.items():
        if copy.exists() and (copy == target or copy.read_bytes() != original.read_bytes()):
            raise RecipeError(f'{str(copy)!r} exists already.', 'Move it away or choose another folder with --out.')
    try:
        for copy, original in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, copy)
    except OSError as error:
        raise RecipeError(f'The recipe was not copied into {str(folder)!r}: {error.strerror}.', 'Give a folder that can be written with --out.') from error
    return target


def _bases(recipe: Path) -> list[Path]:
    """The files that a recipe names in `_base_`, and theirs, without running any of them. Those of other packages (`mmpretrain::...`) stay there."""
    found: list[Path] = []
    for node in ast.parse(recipe.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == '_base_':
            named = ast.literal_eval(node.value)
            for base in [named] if isinstance(named, str) else named:
                if '::' not in base:
                    path = Path(os.path.normpath(recipe.parent / base))
                    found += [path, *_bases(path)]
    return found
