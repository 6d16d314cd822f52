"""Which real images are for training, for validation and for test, where nobody has said it yet."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.new_folder import copy_image, new_folder
from synthaug_plugins.own_folder import refuse_among_images
from synthaug_plugins.real_images import RealImages

TRAIN, VAL, TEST = 'train', 'val', 'test'


def split_folder(images: RealImages, out: str | Path, val: float, test: float, seed: int = 0) -> dict[str, dict[str, int]]:
    """Copy images into `out`/train, `out`/val and `out`/test, class by class in the same shares. `out` appears whole or not at all.

    Files of equal bytes stay together, for an image that is in two parts is a leak. Images that are merely alike (frames of a film, slices of a
    patient) are not known here: split those by hand, and let `synthaug audit` look.

    Args:
        images: what is there.
        out: a new or empty folder outside of it.
        val, test: share of each class, rounded to the nearest image, at least one; 0 for no such part. What remains is for training.
        seed: another draw for another seed; a draw depends on the bytes of the images, not on their names or the machine.

    Returns: part -> class -> number of images.

    Raises:
        RecipeError: shares that leave nothing to train on, or `out` is inside.
        DataError: a class has too few different images, one image lies in two classes, or one cannot be read; it is named. Or `out` is not empty.
    """
    shares = {part: share for part, share in ((VAL, val), (TEST, test)) if share}
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1 or not shares:
        raise RecipeError(f'val = {val} and test = {test} are no shares that leave images to train on.', 'Use for example --val 0.15 --test 0.25.')
    refuse_among_images(out, images.root)
    parts: dict[str, dict[str, list[str]]] = {part: {} for part in (TRAIN, *shares)}
    seen: dict[str, str] = {}
    for name in images.classes:
        alike: dict[str, list[str]] = defaultdict(list)
        for image_id, digest in zip(ids := images.ids(name), images.file_hashes(ids), strict=True):
            if (first := seen.setdefault(digest, image_id)).split('/')[0] != name:
                raise DataError(f'{first!r} and {image_id!r} are the same image in two classes.', 'Remove the wrong one.')
            alike[digest].append(image_id)
        order = sorted(alike, key=lambda digest: hashlib.sha256(f'{seed}/{digest}'.encode()).digest())
        for part, share in shares.items():
            taken, order = order[: (n := max(1, round(share * len(alike))))], order[n:]
            parts[part][name] = [i for digest in taken for i in alike[digest]]
        if not order:
            raise DataError(f'The class {name!r} has {len(alike)} different images, too few for {len(shares) + 1} parts.', 'Add images, or lower the shares.')
        parts[TRAIN][name] = [i for digest in order for i in alike[digest]]
    with new_folder(out) as building:
        for part, classes in parts.items():
            for image_id in (i for ids in classes.values() for i in ids):
                copy_image(images.root / image_id, building / part / image_id)
    return {part: {name: len(ids) for name, ids in classes.items()} for part, classes in parts.items()}
