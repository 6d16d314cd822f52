"""What the built-in trainer plugins share: reading their options, finding their place in a recipe. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from synthaug_plugins.errors import MissingExtra, RecipeError, nearest

FILE_BACKEND_OPTIONS = ('backend_args', 'file_client_args')


def take_options(options: dict[str, Any], key: str, known: Mapping[str, str]) -> dict[str, Any] | None:
    """Take a plugin's own dict out of the recipe's `synthaug` dict; None if it is not there (or set to None).

    Raises:
        RecipeError: not a dict, or an unknown option; the nearest known ones are offered.
    """
    given = options.pop(key, None)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise RecipeError(f'synthaug: {key} = {given!r} is not a dict.', f'Write {key}=dict(...) with any of {", ".join(known)}.')
    for name in given:
        if name not in known:
            raise RecipeError(f'synthaug: {key} has no option {name!r}.', nearest(str(name), known))
    return dict(given)


def train_loader(cfg: Any, key: str) -> Any:
    """The recipe's train_dataloader. Raises RecipeError if it has none."""
    loader = cfg.get('train_dataloader')
    if not loader or 'dataset' not in loader:
        raise RecipeError(f'synthaug: {key} needs a recipe that trains, and this one has no train_dataloader.', 'Start from a recipe that trains.')
    return loader


def type_name(cfg: Mapping[str, Any]) -> str:
    """A config entry's class name without scope: 'mmpretrain.LinearClsHead', or the class itself, gives 'LinearClsHead'."""
    kind = cfg.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def pretrained(part: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry of a module's `init_cfg` that takes weights from a file, or None."""
    init = part.get('init_cfg')
    entries = init if isinstance(init, list | tuple) else [init]
    return next((entry for entry in entries if isinstance(entry, Mapping) and type_name(entry) in ('Pretrained', 'PretrainedInit')), None)


def learns_without_labels(cfg: Any) -> bool:
    """Whether the recipe's model is one of MMPretrain's self-supervised ones, or derived from them.

    Raises:
        MissingExtra: mmcv is not installed, and the model is no plain classifier.
    """
    model = cfg.get('model') or {}
    if type_name(model) in ('', 'ImageClassifier'):
        return False
    if importlib.util.find_spec('mmcv') is None:
        raise MissingExtra('mmcv', 'mmcv', 'MMPretrain')
    from mmpretrain.models import BaseSelfSupervisor
    from mmpretrain.registry import MODELS

    cls = model['type'] if inspect.isclass(model['type']) else MODELS.get(model['type'])
    return inspect.isclass(cls) and issubclass(cls, BaseSelfSupervisor)


def leaf_datasets(dataset: Any) -> Iterator[Any]:
    """The dataset configs inside wrappers (RepeatDataset, KFoldDataset, ConcatDataset, MixedDataset)."""
    parts = [dataset[k] for k in ('real', 'dataset') if dataset.get(k)] + list(dataset.get('datasets') or [])
    if not parts:
        yield dataset
    for part in parts:
        yield from leaf_datasets(part)


def read_any_address(cfg: Any, key: str) -> None:
    """Take the file backend out of the loading transforms of all train pipelines where it is the local disk, their default.

    A transform that names a backend reads every path through it, those of a store included.

    Raises:
        RecipeError: a transform reads through another backend.
    """
    pipelines = [dataset.get('pipeline') or [] for dataset in leaf_datasets(train_loader(cfg, key)['dataset'])]
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook) == 'SwitchRecipeHook':
            pipelines += [step['train_pipeline'] for step in hook.get('schedule', []) if step.get('train_pipeline')]
    for transform in (t for pipeline in pipelines for t in pipeline if isinstance(t, Mapping)):
        for option in FILE_BACKEND_OPTIONS:
            given = transform.get(option)
            if given and given not in ({'backend': 'local'}, {'backend': 'disk'}):
                raise RecipeError(
                    f'synthaug: {type_name(transform)} reads through {option} = {given}, which cannot open the images of a store.',
                    f'Remove {option}: a path such as s3://bucket/image.jpg finds its backend by itself.',
                )
            if given:
                del transform[option]  # type: ignore[attr-defined]


def preprocessor(cfg: Any) -> Any:
    """The data_preprocessor config that the model will get: its own, else the recipe's; created in the model if there is none."""
    model = cfg['model']
    if model.get('data_preprocessor') is None and cfg.get('data_preprocessor') is None:
        model['data_preprocessor'] = {}
    return model['data_preprocessor'] if model.get('data_preprocessor') is not None else cfg['data_preprocessor']


def add_hook(cfg: Any, hook: dict[str, Any]) -> None:
    """Append to the recipe's custom_hooks."""
    cfg['custom_hooks'] = [*(cfg.get('custom_hooks') or []), hook]
