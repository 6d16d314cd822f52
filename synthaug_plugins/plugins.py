"""Which plugins there are: the built-in ones, and those that installed packages offer.

`SYNTHAUG_DISABLE_PLUGINS=1` loads no package's plugin, `SYNTHAUG_PLUGINS=a,b` only those entry points,
`SYNTHAUG_TRACE_PLUGINS=1` prints every hook call. Built-in plugins are always there.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata

import pluggy

from synthaug_plugins import hookspecs
from synthaug_plugins.errors import nearest

BUILT_IN = {
    'mix': 'synthaug_plugins.training.mix_plugin',
    'transform': 'synthaug_plugins.training.transform_plugin',
    'frozen_bn': 'synthaug_plugins.training.frozen_bn_plugin',
    'clip': 'synthaug_plugins.training.clip_plugin',
    'exact_resume': 'synthaug_plugins.training.exact_resume_plugin',
    'stages': 'synthaug_plugins.training.stages_plugin',
    'train_on': 'synthaug_plugins.training.train_on_plugin',
}


@dataclass(frozen=True)
class PluginInfo:
    """One loaded plugin: its name, the distribution it comes from with version, and the hooks it implements."""

    name: str
    origin: str
    hooks: tuple[str, ...]


@functools.cache
def get_plugin_manager() -> pluggy.PluginManager:
    """The one plugin manager of this process, with every plugin registered. Cheap: nothing of torch or mmengine loads."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if os.environ.get('SYNTHAUG_TRACE_PLUGINS', '') not in ('', '0'):
        manager.trace.root.setwriter(lambda text: print(text, end='', file=sys.stderr))
        manager.enable_tracing()
    for name, module in BUILT_IN.items():
        manager.register(importlib.import_module(module), name)
    manager.check_pending()
    for entry_point in _entry_points():
        _load(manager, entry_point)
    return manager


@functools.cache
def register_nouns() -> None:
    """Let every plugin add its registry entries; called before a recipe is read. Imports mmengine."""
    from synthaug_plugins.registry import Registries

    get_plugin_manager().hook.synthaug_register.call_historic(kwargs={'registries': Registries()})


def hooks_of_process() -> pluggy.HookRelay:
    """What a process that generates needs of plugins, workers of an executor among them: their registry entries are added, their hooks returned."""
    register_nouns()
    return get_plugin_manager().hook


def _entry_points() -> list[metadata.EntryPoint]:
    if os.environ.get('SYNTHAUG_DISABLE_PLUGINS', '') not in ('', '0'):
        return []
    found = list(metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP))
    wanted = [name.strip() for name in os.environ.get('SYNTHAUG_PLUGINS', '').split(',') if name.strip()]
    if not wanted:
        return found
    for name in set(wanted) - {e.name for e in found}:
        warnings.warn(f'SYNTHAUG_PLUGINS names {name!r}, which no installed package offers. {nearest(name, [e.name for e in found])}', stacklevel=2)
    return [e for e in found if e.name in wanted]


def _load(manager: pluggy.PluginManager, entry_point: metadata.EntryPoint) -> None:
    """Register a package's plugin; one that fails is left out with a warning that names its package, the rest goes on."""
    origin = f'{entry_point.dist.name} {entry_point.dist.version}' if entry_point.dist else 'unknown package'
    try:
        manager.register(entry_point.load(), entry_point.name)
    except Exception as error:  # a plugin may raise anything at import
        warnings.warn(f'The plugin {entry_point.name!r} of {origin} was left out: {type(error).__name__}: {error}', stacklevel=2)
        return
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        manager.unregister(name=entry_point.name)
        warnings.warn(f'The plugin {entry_point.name!r} of {origin} was left out, it implements a hook that does not exist: {error}', stacklevel=2)


def list_plugins() -> list[PluginInfo]:
    """Every registered plugin with its origin and hooks."""
    manager = get_plugin_manager()
    origins = {e.name: f'{e.dist.name} {e.dist.version}' for e in _entry_points() if e.dist}
    plugins = []
    for name, plugin in manager.list_name_plugin():
        if plugin is not None:
            hooks = tuple(sorted(h.name for h in manager.get_hookcallers(plugin) or ()))
            plugins.append(PluginInfo(name, 'built in' if name in BUILT_IN else origins.get(name, 'registered by hand'), hooks))
    return plugins
