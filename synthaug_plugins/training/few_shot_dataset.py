"""A folder of class folders of which only a few images per class are used."""

from __future__ import annotations

import os
from typing import Any

from mmpretrain.datasets import CustomDataset

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.few_shot import draw_shots, read_split
from synthaug_plugins.real_images import SUFFIXES
from synthaug_plugins.registry import DATASETS

PARTS = ('train', 'val')


@DATASETS.register_module()
class FewShotDataset(CustomDataset):
    """An image folder (`<data_root>/<class>/<file>`), cut down to its shots, see `few_shot.draw_shots`.

    Args:
        data_root: folder of class folders.
        shots: training images per class; None takes all that the split file lists.
        seed: of the draw.
        part: 'train' gives the shots; 'val' gives validation images that are none of them, for equal shots and seed.
        val_shots: validation images per class; default min(shots, 4).
        split_file: draw from what this file lists under 'train' only, see `few_shot.read_split`. Where it has a list 'val', part='val' takes that.
        **options: options of CustomDataset (pipeline, metainfo, ...).

    Raises:
        RecipeError, DataError: a number out of range, a class with too few images, a split file that names missing files.
    """

    def __init__(
        self,
        data_root: str,
        shots: int | None = None,
        seed: int = 1,
        part: str = 'train',
        val_shots: int | None = None,
        split_file: str | None = None,
        **options: Any,
    ) -> None:
        if part not in PARTS:
            raise RecipeError(f'FewShotDataset: part = {part!r} is unknown.', "Use 'train' or 'val'.")
        if shots is None and (split_file is None or val_shots is not None or part == 'val'):
            raise RecipeError('FewShotDataset: shots is not set.', 'Set shots=16; without shots a split_file must list the training images.')
        self.shots, self.seed, self.part, self.val_shots, self.split_file = shots, seed, part, val_shots, split_file
        super().__init__(data_root=data_root, extensions=tuple(SUFFIXES), **options)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Paths and labels of the chosen images, class by class."""
        infos = super().load_data_list()
        root = os.path.abspath(self.img_prefix)
        by_id = {os.path.relpath(info['img_path'], root).replace(os.sep, '/'): info for info in infos}
        names = list(self._metainfo['classes'])
        ids: dict[str, list[str]] = {name: [] for name in names}
        for image_id, info in by_id.items():
            ids[names[info['gt_label']]].append(image_id)
        return [by_id[i] for chosen in self._choose(ids).values() for i in chosen]

    def _choose(self, ids: dict[str, list[str]]) -> Any:
        pool: Any = ids if self.split_file is None else read_split(self.split_file, 'train', ids)
        if self.shots is None:
            return pool
        shots = draw_shots(pool, self.shots, self.seed, self.val_shots)
        return shots.train if self.part == 'train' else shots.val
