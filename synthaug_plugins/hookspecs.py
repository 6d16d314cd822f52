"""The plugin contract: the moments at which a package may act, as empty functions.

Built-in features are plugins too and use nothing else. A plugin is a module (or an instance) whose functions carry
`@hookimpl`; a package offers it under the entry-point group `synthaug_plugins`. Hooks get keyword arguments and may
leave out those they do not use; a later version may add arguments, never rename or remove them. Nothing here is called
per sample or per iteration: for that, register an MMEngine hook, transform or generator in `synthaug_register`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import numpy as np
    import typer
    from mmengine.config import Config

    from synthaug_plugins.registry import Registries
    from synthaug_plugins.store.plan import Block
    from synthaug_plugins.store.shard import Row

PROJECT = 'synthaug'
ENTRY_POINT_GROUP = 'synthaug_plugins'
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(historic=True)
def synthaug_register(registries: Registries) -> None:
    """Add nouns that a config can name. Called once, before the first recipe is read; the only way to add them.

    registries: the registries by name, such as `registries.generators`.
    """


@hookspec(firstresult=True)
def synthaug_stages(cfg: Config, options: dict[str, Any]) -> Sequence[Mapping[str, Any]] | None:  # type: ignore[empty-body]
    """Name the trainings that a recipe consists of, where it is not one itself. Called once per recipe, before any `synthaug_configure`.

    cfg: the recipe, `synthaug` key included; not to be changed.
    options: a copy of that key's dict.
    Returns the stages in order, each a dict as the built-in plugin `stages` documents them, or nothing.
    """


@hookspec
def synthaug_configure(cfg: Config, options: dict[str, Any]) -> None:
    """Edit a trainer recipe in place, before its Runner is built. Called once per stage.

    cfg: the whole training config, `synthaug` key removed.
    options: that key's dict. A plugin takes its own entry out with `options.pop('key', None)`; an entry that no plugin
        takes is refused, with the nearest names of `synthaug_option_names`.
    """


@hookspec
def synthaug_option_names() -> Sequence[str]:  # type: ignore[empty-body]
    """Name the keys that this plugin reads under `synthaug = dict(...)`. Called when a recipe holds an unknown one, and by `list`."""


@hookspec
def synthaug_before_block(block: Block) -> None:
    """Act before a block of images is generated. Called in the process that generates, a worker where there are several, once per block.

    block: its index, and of each of its classes (`block.parts`) the label, name, target count and source images.
    """


@hookspec
def synthaug_after_block(block: Block, rows: Sequence[Row], images: Sequence[np.ndarray]) -> None:
    """Look at a finished block just before it is published. Called in the process that generates, a worker where there are several, once per block.

    block: the block.
    rows: its rows as they will stand in the index, rejected ones included.
    images: their pixels, (H, W, 3) uint8 each, in the same order.
    """


@hookspec
def synthaug_report_section(run: dict[str, Any]) -> str | None:
    """Add a section to the HTML report. Called once per report.

    run: the comparison's results as written to `results.json`.
    Returns an HTML fragment that starts with an `<h2>`, or nothing. The plugin escapes what it inserts.
    """


@hookspec
def synthaug_add_commands(app: typer.Typer) -> None:
    """Add commands to the `synthaug` command line. Called once at its start: import heavy things inside the command.

    app: the typer application.
    """
