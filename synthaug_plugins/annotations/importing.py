"""From a reader to a folder of class folders, images and masks: what everything else reads."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthaug_plugins.annotations.instance import RULE, LeftOut, Reader
from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.new_folder import copy_image, new_folder
from synthaug_plugins.real_images import in_threads

CARD = 'import.json'
TINY = 'whose largest instance is below min_area'


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        counts: images by class, of those classes that have any, in the data set's order.
        left_out: reason -> ids.
        notes: what is odd -> ids.
    """

    counts: dict[str, int]
    left_out: dict[str, list[str]]
    notes: dict[str, list[str]]

    def describe(self) -> str:
        """One sentence: how many images, and how many were left out or are odd, and why."""
        said = f'{sum(self.counts.values())} images of {len(self.counts)} classes'
        said += ''.join(f'; {len(ids)} left out {reason}' for reason, ids in self.left_out.items())
        return said + ''.join(f'; {len(ids)} {what} (first {ids[0]!r})' for what, ids in self.notes.items())


def import_images(reader: Reader, out: str | Path, min_area: float = 0.0, link: bool = False) -> Imported:
    """Write `out/images/<class>/<id>.<suffix>`, `out/masks/<class>/<id>.png` (8-bit, 0 and 255) and `out/import.json`.

    `out` appears whole or not at all.

    Args:
        reader: the data set.
        out: a new or empty folder.
        min_area: images are left out whose largest instance covers less than this share of the image, 0 <= min_area < 1.
        link: hard links to the images in place of copies.

    Raises:
        RecipeError: min_area is out of range.
        DataError: the first file that is missing or does not fit; no image has an instance; or `out` is not empty or cannot be written.
    """
    if isinstance(min_area, bool) or not isinstance(min_area, int | float) or not 0 <= min_area < 1:
        raise RecipeError(f'min_area = {min_area!r} is out of range.', 'It is a share of the image, 0 <= min_area < 1.')
    with new_folder(out) as building:
        done = in_threads(lambda id: _import_one(reader, id, building, min_area, link), reader.ids)
        result = _summary(reader, list(done))
        if not result.counts:
            raise DataError(f'None of the {len(reader.ids)} images has an instance to import.', 'Give another split or file, or lower min_area.')
        card = {**reader.source, 'rule': RULE, 'min_area': min_area, 'linked': link, 'images': sum(result.counts.values())}
        card |= {'counts': result.counts, 'left_out': result.left_out, 'notes': result.notes}
        (building / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    return result


def _import_one(reader: Reader, id: str, out: Path, min_area: float, link: bool) -> tuple[str | None, str]:
    """Write one image with its mask. Its class and what is odd about it, or None and why it is left out."""
    from PIL import Image

    found = reader.read(id)
    if isinstance(found, LeftOut):
        return None, found.reason
    if found.mask.mean() < min_area:
        return None, TINY
    image, mask = (out / kind / found.class_name / f'{id}{suffix}' for kind, suffix in (('images', found.image.suffix.lower()), ('masks', '.png')))
    mask.parent.mkdir(parents=True, exist_ok=True)
    if link:
        image.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(found.image.resolve(), image)
        except OSError as error:
            cure = 'Both must lie on one file system that has hard links; leave --link out to copy.'
            raise DataError(f'The image {str(found.image)!r} cannot be linked: {error.strerror}.', cure) from error
    else:
        copy_image(found.image, image)
    Image.fromarray(found.mask.astype(np.uint8) * 255).save(mask)
    return found.class_name, found.note


def _summary(reader: Reader, done: list[tuple[str | None, str]]) -> Imported:
    counts = Counter(name for name, _ in done if name is not None)
    left_out: dict[str, list[str]] = {}
    notes: dict[str, list[str]] = {}
    for id, (name, said) in zip(reader.ids, done, strict=True):
        if said:
            (left_out if name is None else notes).setdefault(said, []).append(id)
    return Imported({name: counts[name] for name in reader.classes if counts[name]}, left_out, notes)
