"""Which real images are the shots: drawn by a seed, or listed in a file, as CoOp's protocol has it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.new_folder import copy_image, new_folder
from synthaug_plugins.own_folder import refuse_among_images

VAL_SHOTS = 4
"""Validation images per class beside k shots are min(k, 4), as in CoOp (Zhou et al., IJCV 2022)."""


@dataclass(frozen=True)
class Shots:
    """Image ids (`<class>/<file>`) by class: `train` to learn from, `val` to choose on; no id is in both."""

    train: Mapping[str, tuple[str, ...]]
    val: Mapping[str, tuple[str, ...]]


def long_tail_counts(classes: Sequence[str], most: int, ratio: float) -> dict[str, int]:
    """Images per class that fall off exponentially from class to class: n_c = most * ratio^(-c / (K - 1)), c = 0 ... K - 1, as in the long-tailed
    CIFAR of Cui et al. ("Class-balanced loss based on effective number of samples", CVPR 2019).

    Args:
        classes: K names, the largest class first.
        most: images of the first class, at least 1.
        ratio: how many times as many as of the last one, at least 1; 1 is no tail.

    Returns: class -> images, rounded to the nearest whole number, at least 1.

    Raises:
        RecipeError: a number out of range, or a single class, which has no tail.

    >>> long_tail_counts(['cat', 'dog', 'owl'], 100, 100)
    {'cat': 100, 'dog': 10, 'owl': 1}
    """
    _refuse_below('shots of the largest class', most, 1)
    check_imbalance(ratio)
    if len(classes) < 2:
        raise RecipeError(f'imbalance = {ratio!r}: {len(classes)} class has no tail.', 'Leave imbalance out, or give images of several classes.')
    return {name: max(1, math.floor(most * ratio ** (-c / (len(classes) - 1)) + 0.5)) for c, name in enumerate(classes)}


def check_imbalance(ratio: object) -> None:
    """Refuse (RecipeError) what is no ratio of the largest class to the smallest: a finite number of at least 1."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio < math.inf:
        raise RecipeError(f'imbalance = {ratio!r} is out of range.', 'Give the largest class divided by the smallest, a number of at least 1.')


def _refuse_below(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise RecipeError(f'{name} = {value!r} is out of range.', f'Use a whole number of at least {low}.')


def draw_shots(ids: Mapping[str, Sequence[str]], shots: int | Mapping[str, int], seed: int, val_shots: int | None = None) -> Shots:
    """Draw `shots` training images of every class, and validation images from what is left.

    A seed gives every class one order of its images, equal on every machine: training images are its first, validation images its last. So the
    draw of 1 shot is part of that of 2. (CoOp draws every number anew.)

    Args:
        ids: the images of each class.
        shots: training images per class, at least 1: of every class as many, or class -> number, see `long_tail_counts`.
        seed: another draw for another seed.
        val_shots: validation images per class; default min(shots, 4), none where an image cannot be spared.

    Raises:
        RecipeError: a number out of range, or numbers for other classes than there are.
        DataError: a class has too few images; it is named, and nothing is repeated.
    """
    of_class = shots if isinstance(shots, Mapping) else dict.fromkeys(ids, shots)
    if set(of_class) != set(ids):
        differ = sorted(set(of_class) ^ set(ids))
        raise RecipeError(f'shots has numbers for {len(of_class)} classes, and there are {len(ids)}: {differ[:3]} differ.', 'Name every class once.')
    numbers = [(f'shots of {name!r}', n, 1) for name, n in shots.items()] if isinstance(shots, Mapping) else [('shots', shots, 1)]
    for what, value, low in (*numbers, ('seed', seed, 0), ('val_shots', 0 if val_shots is None else val_shots, 0)):
        _refuse_below(what, value, low)
    train, val = {}, {}
    for class_name, images in ids.items():
        k, order = of_class[class_name], sorted(images, key=lambda i: hashlib.sha256(f'{seed}/{i}'.encode()).digest())
        wanted = min(k, VAL_SHOTS, max(0, len(order) - k)) if val_shots is None else val_shots
        if len(order) < k + wanted:
            kind = f'{k} shots' if not wanted else f'{k} shots and {wanted} validation images'
            raise DataError(f'The class {class_name!r} has {len(order)} images, too few for {kind}.', 'Lower shots, or add images.')
        train[class_name], val[class_name] = tuple(order[:k]), tuple(order[len(order) - wanted :])
    return Shots(train, val)


def has_part(file: str | Path, part: str) -> bool:
    """Whether a split file has a list of its own for `part`; False for one that cannot be read, which `read_split` refuses."""
    path = Path(file).expanduser()
    try:
        return path.suffix == '.json' and part in json.loads(path.read_text(encoding='utf-8-sig'))
    except (OSError, ValueError, TypeError):
        return False


def read_split(file: str | Path, part: str, known: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The images that a split file lists.

    Args:
        file: `.json` as CoOp writes it, {"train": [[path, label, class name], ...], "val": ..., "test": ...}; or `.txt`, a path per line, for a
            single part. Paths are `<class folder>/<file>`, relative to the data folder; what a JSON file calls the class does not matter.
        part: 'train', 'val' or 'test'.
        known: the ids of each class that the data folder holds.

    Returns: ids by class, in the file's order; a class that is not listed is there with none.

    Raises:
        DataError: the file cannot be read, has no such part, names a file that is missing (the first few are named), or names one twice.
    """
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding='utf-8-sig')
        if path.suffix == '.json':
            listed = [str(row[0]) for row in json.loads(text)[part]]
        elif path.suffix == '.txt':
            listed = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            raise DataError(f'The split file {str(file)!r} is no .json or .txt.', 'A pickle could run code: write the paths as text.')
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        what = f'has no list {part!r} of rows [path, label, class name]' if isinstance(error, KeyError | TypeError | IndexError) else f'cannot be read: {error}'
        raise DataError(f'The split file {str(file)!r} {what}.', 'Give a split file as CoOp has it, or a text file with a path per line.') from error
    class_of = {image_id: name for name, ids in known.items() for image_id in ids}
    missing = [p for p in listed if p not in class_of]
    if missing:
        named = ', '.join(map(repr, missing[:3]))
        raise DataError(
            f'The split file {str(file)!r} names {len(missing)} files that are not in the data folder: {named}.', 'Paths are <class folder>/<file>.'
        )
    if len(set(listed)) < len(listed):
        twice = Counter(listed).most_common(1)[0][0]
        raise DataError(f'The split file {str(file)!r} names {twice!r} twice.', 'Name every image once.')
    found: dict[str, list[str]] = {name: [] for name in known}
    for p in listed:
        found[class_of[p]].append(p)
    return {name: tuple(ids) for name, ids in found.items()}


def copy_shots(root: Path, ids: Mapping[str, Sequence[str]], out: str | Path) -> int:
    """Copy images into a folder of class folders of their own, for generators that start from the shots and must see nothing else.

    Ids stay what they are, so a training set over the whole folder knows which variants are of its shots. The folder appears whole or not at all.

    Args:
        root: the folder that the ids are relative to.
        ids: of each class.
        out: a new or empty folder.

    Returns: the number of images.

    Raises:
        RecipeError: `out` lies in `root`.
        DataError: `out` is not empty, or a file cannot be copied.
    """
    refuse_among_images(out, root)
    with new_folder(out) as building:
        for image_id in (i for images in ids.values() for i in images):
            copy_image(root / image_id, building / image_id)
    return sum(map(len, ids.values()))
