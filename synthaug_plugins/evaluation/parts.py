"""A data set as its user lays it down: train/, test/ and perhaps val/, a folder per class in each; and the draws of a few shots from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthaug_plugins.errors import DataError
from synthaug_plugins.few_shot import Shots, draw_shots, long_tail_counts
from synthaug_plugins.own_folder import refuse_among_images
from synthaug_plugins.real_images import RealImages


@dataclass(frozen=True)
class Parts:
    """The parts of a data folder, each checked against the others. No image is opened.

    Attributes:
        root: the folder.
        train, test: its parts, with the same classes.
        val: None where there is no val/.
    """

    root: Path
    train: RealImages
    test: RealImages
    val: RealImages | None

    @classmethod
    def of(cls, data: str | Path, out: Path) -> Parts:
        """Read a data folder.

        Args:
            data: holds train/, test/ and perhaps val/.
            out: where results will go.

        Raises:
            DataError: a part is missing, they have other classes, or share a file (links resolved).
            RecipeError: `out` lies in one of them.
        """
        root = Path(data).expanduser()
        parts = cls(root, RealImages(root / 'train'), RealImages(root / 'test'), RealImages(root / 'val') if (root / 'val').is_dir() else None)
        for images in (parts.test, parts.val):
            if images is not None and images.classes != parts.train.classes:
                differ = sorted(set(images.classes) ^ set(parts.train.classes))
                raise DataError(f'The classes of {str(images.root)!r} are not those of train: {differ}.', 'Make them equal.')
        refuse_among_images(out, *(images.root for images in (parts.train, parts.test, parts.val) if images is not None))
        parts._refuse_shared()
        return parts

    def draws(self, shots: Sequence[int], seeds: Sequence[int], val_shots: int | None = None, imbalance: float | None = None) -> dict[tuple[int, int], Shots]:
        """The draw of each (shots, seed). Validation images are drawn only where there is no val/, see `few_shot.draw_shots`.

        With `imbalance`, shots are of the first class, and the others fall off to 1/imbalance of them, see `few_shot.long_tail_counts`.

        Raises:
            RecipeError: a number out of range.
            DataError: a class has too few images, or none of any class is left to validate on.
        """
        kept_back = 0 if self.val else val_shots
        ids = {name: self.train.ids(name) for name in self.train.classes}
        wanted = {k: k if imbalance is None else long_tail_counts(self.train.classes, k, imbalance) for k in shots}
        draws = {(k, seed): draw_shots(ids, wanted[k], seed, kept_back) for k in shots for seed in seeds}
        if self.val is None and not all(any(drawn.val.values()) for drawn in draws.values()):
            raise DataError(
                f'No image of {str(self.train.root)!r} is left to validate on beside the shots.',
                'Take fewer shots or more validation images, or add images or a folder val/.',
            )
        return draws

    def _refuse_shared(self) -> None:
        """Refuse (DataError) one file in two parts, links resolved."""
        seen: dict[Path, Path] = {}
        for part in (self.train, self.val, self.test):
            if part is None:
                continue
            for ids in (part.ids(name) for name in part.classes):
                for i in ids:
                    path = (part.root / i).resolve()
                    if path in seen and seen[path] != part.root:
                        raise DataError(
                            f'{str(path)!r} is in {str(seen[path])!r} and in {str(part.root)!r}.', 'Training, validation and test images must differ.'
                        )
                    seen[path] = part.root
