"""A folder of class folders of which only a few images per class are used."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmpretrain.datasets import CustomDataset

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.few_shot import VAL_SHOTS, draw_shots, has_part, read_split
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
        split_file: draw from what this file lists under 'train' only, see `few_shot.read_split`. Where it has a list 'val',
            part='val' draws from that.
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
        if shots is None and (split_file is None or (part == 'val' and not has_part(split_file, 'val'))):
            raise RecipeError('FewShotDataset: shots is not set.', 'Set shots=16; without shots a split_file must list the images.')
        if shots is not None and not isinstance(shots, int):
            raise RecipeError(f'FewShotDataset: shots = {shots!r} is out of range.', 'Use a whole number; `synthaug shots --imbalance` draws a long tail.')
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

    def _choose(self, ids: dict[str, list[str]]) -> Mapping[str, Sequence[str]]:
        if self.split_file is None:
            return self._draw(ids)
        if self.part == 'val' and has_part(self.split_file, 'val'):
            listed = read_split(self.split_file, 'val', ids)
            if self.shots is None:
                return listed
            wanted = min(self.shots, VAL_SHOTS) if self.val_shots is None else self.val_shots
            return draw_shots(listed, wanted, self.seed, 0).train
        pool = read_split(self.split_file, 'train', ids)
        return pool if self.shots is None else self._draw(pool)

    def _draw(self, pool: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
        assert self.shots is not None
        drawn = draw_shots(pool, self.shots, self.seed, self.val_shots)
        return drawn.train if self.part == 'train' else drawn.val
