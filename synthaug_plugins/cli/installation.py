"""Commands about the installation and what it carries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthaug_plugins.cli.app import app


@app.command(rich_help_panel='Look and hand over')
def init(
    name: Annotated[str, typer.Argument(help='A shipped recipe; `synthaug list` names them.', show_default=False)],
    out: Annotated[Path, typer.Option(help='Folder to copy it into.')] = Path(),
) -> None:
    """Copy a shipped recipe into your folder, to edit it.

    synthaug init digits_real_guidance
    """
    from synthaug_plugins.recipes import copy_recipe

    print(copy_recipe(name, out))


@app.command('list', rich_help_panel='Know your installation')
def list_names(pattern: Annotated[str, typer.Argument(help='Show only names that match, with * and ?.')] = '*') -> None:
    """List everything that a recipe can name: generators, inspectors, recipes, embedded models, recipe keys.

    synthaug list '*guidance*'
    """
    from synthaug_plugins.inventory import inventory

    for section, entries in inventory(pattern).items():
        print(section)
        width = max(map(len, entries), default=0)
        for name, text in entries.items():
            print(f'  {name:{width}} {text}')


@app.command(rich_help_panel='Know your installation')
def plugins() -> None:
    """List the loaded plugins: where each comes from and which hooks it implements.

    SYNTHAUG_TRACE_PLUGINS=1 synthaug plugins
    """
    from synthaug_plugins.plugins import list_plugins

    for plugin in list_plugins():
        print(f'{plugin.name:16} {plugin.origin:28} {", ".join(plugin.hooks)}')


@app.command(rich_help_panel='Know your installation')
def doctor() -> None:
    """Explain the environment: versions, which OpenMMLab family, what would break and what it costs; status 1 if anything must be mended.

    synthaug doctor
    """
    from synthaug_plugins.doctor import examine

    findings = examine()
    for finding in findings:
        print(finding)
    if any(f.level == 'error' for f in findings):
        raise typer.Exit(1)
