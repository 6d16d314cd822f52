"""One draw of the shots: its folders, and a trainer recipe set to them."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.evaluation.parts import Parts
from synthaug_plugins.few_shot import Shots, copy_shots
from synthaug_plugins.real_images import SUFFIXES, RealImages
from synthaug_plugins.training.recipe_edit import type_name

if TYPE_CHECKING:
    from mmengine.config import Config

_OF_FEW_SHOTS = ('shots', 'seed', 'part', 'val_shots', 'split_file')
_PLACES = ('data_root', 'data_prefix', 'ann_file')


@dataclass(frozen=True)
class Drawn:
    """What one seed of a comparison works with.

    Attributes:
        shots: real images per class.
        seed: of the draw, and of all that is made and trained from it.
        classes: names in label order.
        train: folder of copies of the shots: all that generators and learning see.
        val, test: folders of the images to choose on and to report on.
        names: what the names in braces stand for.
        imbalance: with it, shots are of the largest class, and the smallest has 1/imbalance of them.
        data: the folder that the draw comes from.
    """

    shots: int
    seed: int
    classes: tuple[str, ...]
    train: Path
    val: Path
    test: Path
    names: Mapping[str, str] = field(default_factory=dict)
    imbalance: float | None = None
    data: Path | None = None

    @property
    def label(self) -> str:
        """For folders and progress."""
        return f'{shots_label(self.shots, self.imbalance)}-{self.seed}'

    def set_folders(self, cfg: Config) -> None:
        """Set the folders of a trainer recipe's three loaders, and its number of classes.

        Raises:
            RecipeError: a loader is missing, or reads no folder of class folders.
        """
        for part, folder in (('train', self.train), ('val', self.val), ('test', self.test)):
            loader = cfg.get(f'{part}_dataloader')
            if not loader or 'dataset' not in loader:
                raise RecipeError(f'The trainer recipe has no {part}_dataloader.', 'A comparison that draws shots needs all three.')
            dataset = loader['dataset']
            if type_name(dataset) not in ('CustomDataset', 'FewShotDataset'):
                what = f'{part}_dataloader reads a {type_name(dataset)}, whose folder cannot be set to the draw.'
                raise RecipeError(what, "Use dict(type='mmpretrain.CustomDataset', pipeline=...).")
            options = {k: v for k, v in dataset.items() if k not in (*_OF_FEW_SHOTS, *_PLACES)}
            loader['dataset'] = {**options, 'type': 'mmpretrain.CustomDataset', 'data_root': str(folder), 'extensions': sorted(SUFFIXES)}
        for having in (cfg['model'].get('head'), cfg['model'].get('data_preprocessor'), cfg.get('data_preprocessor')):
            if having and 'num_classes' in having:
                having['num_classes'] = len(self.classes)


def shots_label(shots: int, imbalance: float | None = None) -> str:
    """For folders: `4-shot`, or `60-shot-imbalance-20` of a long tail."""
    return f'{shots}-shot' if imbalance is None else f'{shots}-shot-imbalance-{imbalance:g}'


def copy_draw(parts: Parts, shots: Shots, k: int, seed: int, out: Path, imbalance: float | None = None) -> Drawn:
    """Copy a draw into a folder of its label in `out`: the shots, and validation images where the data folder has none. What is there is compared.

    Raises:
        DataError: no image of a class is left to validate on; other images are there already; they cannot be copied.
    """
    folder = out / f'{shots_label(k, imbalance)}-{seed}'
    val = parts.val.root if parts.val else folder / 'val'
    drawn = Drawn(k, seed, parts.train.classes, folder / 'train', val, parts.test.root, imbalance=imbalance, data=parts.root)
    copies = {drawn.train: shots.train}
    if parts.val is None:
        for name, ids in shots.val.items():
            if not ids:
                raise DataError(f'No image of {name!r} is left to validate on beside {k} shots.', 'Take fewer shots, or add images or a folder val/.')
        copies[drawn.val] = shots.val
    for target, images in copies.items():
        if target.exists():
            _check_equal(parts.train, images, target)
        else:
            copy_shots(parts.train.root, images, target)
    return drawn


def _check_equal(images: RealImages, ids: Mapping[str, Sequence[str]], target: Path) -> None:
    wanted = {i for named in ids.values() for i in named}
    found = {p.relative_to(target).as_posix() for p in target.rglob('*') if p.is_file()}
    differ = sorted(wanted ^ found) or sorted(i for i in wanted if not filecmp.cmp(images.root / i, target / i, shallow=False))
    if differ:
        what = f'{str(target)!r} holds other images than are drawn now from {str(images.root)!r}: {differ[0]!r} and {len(differ) - 1} more differ.'
        raise DataError(what, 'Restore the data, or give a new folder with --out.')


def plain_names(drawn: Drawn, places: Mapping[str, Any]) -> dict[str, str]:
    """What the names in braces stand for in a draw: its numbers, and where things lie."""
    return {
        'seed': str(drawn.seed),
        'shots': str(drawn.shots),
        'train': str(drawn.train),
        'data': str(drawn.data),
        **{name: str(place) for name, place in places.items()},
    }
