"""One draw of the shots: its folders, and a trainer recipe set to them."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import DataError
from synthaug_plugins.evaluation.parts import Parts
from synthaug_plugins.evaluation.recipe_folders import set_folders
from synthaug_plugins.few_shot import Shots, copy_shots
from synthaug_plugins.real_images import RealImages

if TYPE_CHECKING:
    from mmengine.config import Config


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
        folders = {'train': self.train, 'val': self.val, 'test': self.test}
        set_folders(cfg, folders, len(self.classes), 'A comparison that draws shots needs all three.')


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
