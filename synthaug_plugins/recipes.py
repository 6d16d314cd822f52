"""The recipes that the package carries: finding one by name, copying one into the user's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from synthaug_plugins.errors import RecipeError, nearest

_INSTALLED = Path(__file__).parent / 'registry_configs'
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / 'registry_configs'
"""Inside the installed package, or beside it in a source checkout."""


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, such as `generate/edm_digits.py`."""
    return sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob('*.py') if not p.name.startswith('__'))


def find_recipe(name: str, kind: str | None = None) -> str:
    """The path of a recipe: a file as given, an `mmpretrain::...` reference as given, or a shipped one by its name.

    Args:
        name: a shipped recipe is named with or without its folder and suffix: `generate/edm_digits.py`, `edm_digits`.
        kind: the folder that is meant where several share a name, such as 'generate'.

    Raises:
        RecipeError: nothing of that name; the nearest shipped names are offered.
    """
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
    raise RecipeError(f'The recipe {name!r} is neither a file nor a shipped recipe.', nearest(name, [*known, *(Path(k).stem for k in known)]))


def copy_recipe(name: str, folder: Path) -> Path:
    """Copy a shipped recipe into `folder` and return the new file.

    Raises:
        RecipeError: unknown name, or a file of that name is already there (it is not overwritten).
    """
    if '::' in name:
        raise RecipeError(f'{name!r} is not a shipped recipe.', f"Start your own file with: _base_ = '{name}'")
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f'{str(folder)!r} is not a folder.', 'Give a folder with --out.')
    source = Path(find_recipe(name))
    target = folder / source.name
    if target.exists():
        raise RecipeError(f'{str(target)!r} exists already.', 'Move it away or choose another folder with --out.')
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
