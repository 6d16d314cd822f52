"""The registries: every noun that a config can name with `type='synthaug_plugins.Name'`.

Children of MMEngine's registries serve the trainer side. `GENERATORS`, `GUIDANCE`, `PROMPTS`, `INSPECTORS` and `DISTANCES` are roots of our own:
they build without switching MMEngine's default scope, and refuse an unknown name or option before any weights load. A config's
scope prefix imports this module, and `locations` imports the classes: users need no `custom_imports`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mmengine import registry as mm
from mmengine.registry import Registry

from synthaug_plugins.errors import RecipeError, nearest

SCOPE = 'synthaug_plugins'
F = TypeVar('F', bound=Callable[..., None])


def options_of(options: type) -> Callable[[F], F]:
    """Decorator of a constructor that hands its `**keywords` on to the dataclass `options`: its signature names them one by one.

    So `build_strict` knows and checks them like any other option. A parameter of the constructor's own goes before a field of that name.
    """

    def named(init: F) -> F:
        signature = inspect.signature(init)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shared = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(options).parameters.values() if p.name not in signature.parameters]
        init.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        return init

    return named


_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    'bool': (bool, 'Give True or False.'),
    'int': (int, 'Give a whole number.'),
    'float': ((int, float), 'Give a number.'),
    'str': (str, 'Give text.'),
    'Mapping[str, Any]': (Mapping, 'Give a dict.'),
}
"""What an annotation of one kind admits, and what to say where something else is given."""


def _check_kind(whose: str, parameter: inspect.Parameter, value: Any) -> None:
    """Refuse (RecipeError) a value of another kind than the annotation says, as far as that is one of `_KINDS` or of these or None."""
    kind = str(getattr(parameter.annotation, '__name__', parameter.annotation)).removesuffix(' | None')
    if kind not in _KINDS or (value is None and (parameter.default is None or str(parameter.annotation).endswith('| None'))):
        return
    wanted, cure = _KINDS[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != 'bool'):
        raise RecipeError(f'{whose}: {parameter.name} = {value!r} is of the wrong kind.', cure)


def build_strict(cfg: dict[str, Any], registry: Registry, **defaults: Any) -> Any:
    """Build `cfg['type']` from `registry` with the other keys as arguments.

    Args:
        cfg: `dict(type=..., **options)`; `type` is a registered name (with or without scope) or a class.
        registry: one of our own root registries.
        **defaults: arguments used where `cfg` does not set them.

    Raises:
        RecipeError: no `type`, an unknown name or an unknown option, for which the nearest known names are offered; or an option of the wrong kind.
    """
    noun = registry.name
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise RecipeError(f'{noun} = {cfg!r} has no type.', f"Write {noun} = dict(type='...', ...).")
    options = {**defaults, **{k: v for k, v in cfg.items() if k != 'type'}}
    options.pop('_scope_', None)  # MMEngine adds it to dicts that come from a `package::` base
    cls = cfg['type']
    if not inspect.isclass(cls):
        # Not `registry.get`: it imports whatever dotted path it does not know, and a recipe may come out of a stranger's store.
        registry.import_from_location()
        cls = registry.module_dict.get(str(cls).removeprefix(f'{SCOPE}.'))
    if cls is None:
        raise RecipeError(f'{noun} type {cfg["type"]!r} is unknown.', nearest(str(cfg['type']).rpartition('.')[2], registry.module_dict))
    parameters = inspect.signature(cls).parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters]
        for key in options:
            if key not in known:
                raise RecipeError(f'{noun} {cls.__name__} has no option {key!r}.', nearest(key, known))
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in options and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if missing:
        raise RecipeError(f'{noun} {cls.__name__} lacks {", ".join(missing)}.', 'Add it to the recipe.')
    for p in parameters:
        if p.name in options:
            _check_kind(f'{noun} {cls.__name__}', p, options[p.name])
    try:
        return cls(**options)
    except (TypeError, ValueError, AttributeError) as error:  # an option of the wrong kind, in a class that does not check it
        raise RecipeError(f'{noun} {cls.__name__} does not take these options: {error}.', 'Check their types.') from error


GENERATORS = Registry('generator', scope=SCOPE, build_func=build_strict, locations=['synthaug_plugins.generators'])
GUIDANCE = Registry('guidance', scope=SCOPE, build_func=build_strict, locations=['synthaug_plugins.generators'])
PROMPTS = Registry('prompt source', scope=SCOPE, build_func=build_strict, locations=['synthaug_plugins.prompts.entries'])
INSPECTORS = Registry('inspector', scope=SCOPE, build_func=build_strict, locations=['synthaug_plugins.curation'])
_DISTANCES = ['synthaug_plugins.models.distances', 'synthaug_plugins.models.lpips_distance', 'synthaug_plugins.curation']
DISTANCES = Registry('distance', scope=SCOPE, build_func=build_strict, locations=_DISTANCES)

_TRAINING = ['synthaug_plugins.training.entries']
DATASETS = Registry('dataset', parent=mm.DATASETS, scope=SCOPE, locations=_TRAINING)
DATA_SAMPLERS = Registry('data sampler', parent=mm.DATA_SAMPLERS, scope=SCOPE, locations=_TRAINING)
TRANSFORMS = Registry('transform', parent=mm.TRANSFORMS, scope=SCOPE, locations=_TRAINING)
MODELS = Registry('model', parent=mm.MODELS, scope=SCOPE, locations=_TRAINING)
HOOKS = Registry('hook', parent=mm.HOOKS, scope=SCOPE, locations=_TRAINING)
LOOPS = Registry('loop', parent=mm.LOOPS, scope=SCOPE, locations=_TRAINING)
PARAM_SCHEDULERS = Registry('parameter scheduler', parent=mm.PARAM_SCHEDULERS, scope=SCOPE, locations=_TRAINING)


@dataclass(frozen=True)
class Registries:
    """What `synthaug_register` hands to a plugin: add a noun with `registries.generators.register_module(module=MyClass)`."""

    generators: Registry = GENERATORS
    guidance: Registry = GUIDANCE
    prompts: Registry = PROMPTS
    inspectors: Registry = INSPECTORS
    distances: Registry = DISTANCES
    datasets: Registry = DATASETS
    data_samplers: Registry = DATA_SAMPLERS
    transforms: Registry = TRANSFORMS
    models: Registry = MODELS
    hooks: Registry = HOOKS
    param_schedulers: Registry = PARAM_SCHEDULERS
