"""The kind `training` of what a comparison makes: a trainer recipe, with stages or without, whose backbone the arms start from."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pluggy

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.recipes import recipe_file
from synthaug_plugins.store.files import write_whole

if TYPE_CHECKING:
    from mmengine.config import Config

    from synthaug_plugins.training.stages import Stage

BACKBONE = 'backbone.pth'
"""In its folder: the backbone of its last stage, for init_cfg=dict(type='Pretrained', checkpoint='{name}', prefix='backbone.')."""
LOG, STAGES = 'train.log', 'stages'
FILE = '_file'
"""Where a recipe was read from: what the record of a comparison leaves out, as it decides nothing."""


def load(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A trainer recipe and the changes to it, as plain JSON.

    Args:
        path: the recipe file.
        options: dotted keys, of a recipe with stages each with the name of a stage before it. Besides, `seed` (of all stages) and, where the
            recipe is one of a draw, `data`: the folder that its images must lie in.

    Raises:
        RecipeError: the recipe cannot be read.
    """
    from synthaug_plugins.training.run import KEY, load_recipe

    changes = {key: value for key, value in options.items() if key not in ('seed', 'data')}
    cfg = load_recipe(path)
    recipe = _plain(cfg)
    stages = (cfg.get(KEY) or {}).get('stages')
    if isinstance(stages, list | tuple):  # what stands in their own files decides as much
        named = [entry['recipe'] for entry in stages if isinstance(entry, Mapping) and isinstance(entry.get('recipe'), str)]
        recipe['_stages'] = {name: _plain(load_recipe(recipe_file(name, Path(path), 'train', 'recipe'))) for name in named}
    return {FILE: path, 'recipe': recipe, 'cfg_options': changes, 'seed': options.get('seed'), 'data': options.get('data'), 'classes': None}


def _plain(cfg: Config) -> dict[str, Any]:
    """A config as plain JSON."""
    return json.loads(json.dumps(cfg.to_dict(), default=repr))


def _stages(recipe: Mapping[str, Any], manager: pluggy.PluginManager | None) -> tuple[Stage, ...]:
    from synthaug_plugins.training.stages import read_stages

    if manager is None:
        raise RecipeError('A training is made with plugins, and none were given.', 'Pass the plugin manager.')
    stages = read_stages(recipe[FILE], recipe['cfg_options'], manager)
    return stages if recipe['seed'] is None else tuple(replace(stage, cfg=_seeded(stage.cfg, recipe['seed'])) for stage in stages)


def _seeded(cfg: Config, seed: int) -> Config:
    cfg = copy.deepcopy(cfg)
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    return cfg


def make(recipe: Mapping[str, Any], folder: Path, device: str, manager: pluggy.PluginManager | None, quiet: bool) -> None:
    """Train all stages in a folder of `folder`; a killed call goes on. The trainer's lines go to `LOG` there."""
    from synthaug_plugins.training.stage_run import train_stages

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, 'a', encoding='utf-8') as log:
        try:
            with redirect_stdout(log):
                last = train_stages(_stages(recipe, manager), folder / STAGES, backbone=True)
        finally:
            _give_back(log)
    write_whole(folder / BACKBONE, (last / BACKBONE).read_bytes())


def _give_back(log: TextIO) -> None:
    """Let MMEngine's loggers, which outlive their training, write to standard output again: what they say later would be lost in a closed file."""
    from mmengine.logging import MMLogger

    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is log:
                handler.setStream(sys.stdout)


def stand_in(recipe: Mapping[str, Any], place: Path, classes: tuple[str, ...], manager: pluggy.PluginManager | None) -> None:
    """Check all stages and write a backbone of zeros."""
    import torch

    from synthaug_plugins.training.backbone_weights import save_backbone, skeleton
    from synthaug_plugins.training.stages import check_stages

    stages = _stages(recipe, manager)
    check_stages(stages, data_too=False)
    if stages[-1].cfg.model.get('backbone') is None:
        raise RecipeError(f'The recipe {recipe[FILE]!r} has no model.backbone to start from.', 'Give one whose model has a backbone.')
    weights = skeleton(stages[-1].backbone, stages[-1].scope).state_dict()
    save_backbone({name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in weights.items()}, place)


def reads(recipe: Mapping[str, Any], manager: pluggy.PluginManager | None) -> Iterator[Path]:
    """The real image files that the stages train on; images of stores are none.

    Raises:
        RecipeError: a training set that names no files (CIFAR10 and its like), or one with files outside of the draw that it is made from.
    """
    from mmengine.registry import init_default_scope

    from synthaug_plugins.evaluation.leaks import files_of
    from synthaug_plugins.training.recipe_edit import leaf_datasets, type_name

    for stage in _stages(recipe, manager):
        init_default_scope(stage.scope)
        for leaf in leaf_datasets(stage.cfg.train_dataloader.dataset):
            if leaf.get('store'):
                continue
            files = files_of('train_dataloader', {'dataset': leaf}, {})
            if files is None:
                what = f'The images of a {type_name(leaf)} (stage {stage.name!r}) cannot be compared with validation and test images, since it names no files.'
                raise RecipeError(what, "Use dict(type='mmpretrain.CustomDataset', data_root=...).")
            for file in sorted(files):
                if recipe['data'] is not None and not Path(file).is_relative_to(Path(recipe['data']).resolve()):
                    what = f'The recipe trains on {file!r}, which is none of the draw.'
                    raise RecipeError(what, "Set train_dataloader.dataset.data_root to '{train}', or make it once for all draws: once=True.")
                yield Path(file)
