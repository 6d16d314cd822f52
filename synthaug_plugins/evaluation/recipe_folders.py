"""Which folders of images a trainer recipe reads, set from outside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.real_images import SUFFIXES
from synthaug_plugins.training.recipe_edit import type_name

if TYPE_CHECKING:
    from mmengine.config import Config

_CHOOSES_IMAGES = ('shots', 'seed', 'part', 'val_shots', 'split_file', 'split', 'data_root', 'data_prefix', 'ann_file')


def set_folders(cfg: Config, folders: Mapping[str, Path], classes: int, why: str) -> None:
    """Set the folders of a trainer recipe's loaders, and its number of classes.

    Args:
        cfg: changed in place.
        folders: of class folders, by part: train, val, test.
        classes: how many there are.
        why: the parts are needed, a sentence.

    Raises:
        RecipeError: a loader is missing, or reads no folder of class folders.
    """
    for part, folder in folders.items():
        loader = cfg.get(f'{part}_dataloader')
        if not loader or 'dataset' not in loader:
            raise RecipeError(f'The trainer recipe has no {part}_dataloader.', why)
        dataset = loader['dataset']
        if type_name(dataset) not in ('CustomDataset', 'FewShotDataset', 'ImageNet'):
            what = f'{part}_dataloader reads a {type_name(dataset)}, whose folder cannot be set.'
            raise RecipeError(what, "Use dict(type='mmpretrain.CustomDataset', pipeline=...).")
        options = {k: v for k, v in dataset.items() if k not in _CHOOSES_IMAGES}
        loader['dataset'] = {**options, 'type': 'mmpretrain.CustomDataset', 'data_root': str(folder), 'extensions': sorted(SUFFIXES)}
    for having in (cfg['model'].get('head'), cfg['model'].get('data_preprocessor'), cfg.get('data_preprocessor')):
        if having and 'num_classes' in having:
            having['num_classes'] = classes
