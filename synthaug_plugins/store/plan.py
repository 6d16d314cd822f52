"""What will be made: requests, blocks and the plan, computed on CPU before any model loads."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from synthaug_plugins.errors import DataError, RecipeError

MAX_NAME = 255
"""Bytes of a class's name: it becomes a folder."""
MAX_TRIES = 2**20
"""Requests that a block may spend; its index has a row for each."""


@dataclass(frozen=True)
class Request:
    """One image to make.

    Attributes:
        id: unique in its store and fit for a tar member name: `<block>_<number>`.
        label: class index in the store's class order.
        class_name: that class's name (a generator maps it to its model's own labels).
        seed: decides every random draw of this image and of nothing else; 0 <= seed < 2**53, exact in JSON.
        source: id of the real image that it starts from, `<class>/<file>`, or None.
        prompt: text given to the model, or None.
        params: what else decides the pixels (t0, sigma, guidance, ...), plain JSON values.
    """

    id: str
    label: int
    class_name: str
    seed: int
    source: str | None = None
    prompt: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What a block makes of one class: a target count of accepted images.

    Attributes:
        block: the block's index.
        label, class_name: the class.
        target: accepted images wanted.
        max_tries: requests that may be spent on them.
        first: accepted images that earlier blocks ask for of the same class. A generator that cycles through sources or
            strengths starts its cycle there, so that a class is covered evenly whatever the block size.
        sources: ids of all real images of the class, sorted.
        offset: tries that the block's earlier parts may take; its own are numbered from there, so no two of a block have one number.
    """

    block: int
    label: int
    class_name: str
    target: int
    max_tries: int
    first: int = 0
    sources: tuple[str, ...] = ()
    offset: int = 0

    def source(self, number: int) -> str:
        """The real image of its request number 0, 1, ...: all of the class in turn, going on where earlier blocks ended.

        Raises:
            DataError: the class has none.
        """
        if not self.sources:
            raise DataError(f'The class {self.class_name!r} has no real images to start from.', 'Add some, or leave the class out.')
        return self.sources[(self.first + number) % len(self.sources)]


@dataclass(frozen=True)
class Block:
    """The unit of work, of resume and of distribution: target counts of one class or several.

    Attributes:
        index: number in the plan, and of the shard that it becomes.
        parts: one per class, in label order.
    """

    index: int
    parts: tuple[Part, ...]

    @property
    def target(self) -> int:
        """Accepted images wanted of all its classes together."""
        return sum(part.target for part in self.parts)

    @cached_property
    def class_names(self) -> dict[int, str]:
        """Label -> name of its classes."""
        return {part.label: part.class_name for part in self.parts}


def request_seed(recipe_seed: int, part: Part, number: int) -> int:
    """The seed of a part's request, number 0, 1, ...: equal on every machine, distinct per request of all blocks (53 bits of SHA-256)."""
    digest = hashlib.sha256(f'{recipe_seed}/{part.block}/{part.offset + number}'.encode()).digest()
    return int.from_bytes(digest[:8], 'big') >> 11


def request_share(seed: int, purpose: str) -> float:
    """A number in [0, 1) that a request's seed draws for one purpose, uniformly: equal on every machine, independent of other purposes and of its noise."""
    return int.from_bytes(hashlib.sha256(f'{seed}/{purpose}'.encode()).digest()[:8], 'big') / 2**64


def purpose_seed(seed: int, purpose: str) -> int:
    """A seed that a request's seed gives for one purpose, as `request_share` draws: 0 <= seed < 2**53."""
    return int(request_share(seed, purpose) * 2**53)


def request_id(part: Part, number: int) -> str:
    """The id of a part's request, number 0, 1, ...: `<block>_<number in the block>`.

    Ids of a block sort by class, and within a class in the order of making. They hold no dot (WebDataset splits names there).
    """
    return f'{part.block:05d}_{part.offset + number:06d}'


@dataclass(frozen=True)
class Plan:
    """The ordered blocks of a recipe.

    Attributes:
        classes: class names; a label is an index into them.
        blocks: in the order in which they are made.
        recipe: everything that decides the pixels, as plain JSON: resolved recipe keys, model identity, source hashes.
    """

    classes: tuple[str, ...]
    blocks: tuple[Block, ...]
    recipe: Mapping[str, Any]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of all blocks, in order."""
        return tuple(part for block in self.blocks for part in block.parts)

    @cached_property
    def tries(self) -> int:
        """Requests that all blocks may spend: most rows that a table of all images can have."""
        return sum(part.max_tries for part in self.parts)

    def content(self) -> dict[str, Any]:
        """The plan as plain JSON: a block is the list of its parts, and these hold what does not follow from their place.

        Parts of one class share their list of sources, so it is written once and referred to by number.
        """
        number = {s: i for i, s in enumerate(dict.fromkeys(p.sources for p in self.parts))}
        blocks = [[{**{key: getattr(p, key) for key in _PART_KEYS}, 'sources': number[p.sources]} for p in b.parts] for b in self.blocks]
        return {'classes': self.classes, 'recipe': self.recipe, 'sources': list(number), 'blocks': blocks}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Plan:
        """The plan that `content()` described; KeyError, TypeError or ValueError if it is not one, whoever wrote it."""
        classes, recipe = _texts(content['classes'], 'classes'), content['recipe']
        sources = [_texts(names, 'sources') for names in _list(content['sources'], 'sources')]
        if not isinstance(recipe, dict):
            raise TypeError('the recipe is no object')
        for name in (name for names in sources for name in names):
            if name[:1] == '/' or '..' in name.split('/') or '\0' in name:
                raise ValueError(f'the real image {name[:200]!r} is not named by its place in a folder')
        blocks = []
        for index, parts in enumerate(_list(content['blocks'], 'blocks')):
            for part in _list(parts, f'block {index}'):
                _check_part(index, part, len(sources))
            labels = [part['label'] for part in parts]
            if not labels or labels != sorted(set(labels)) or labels[-1] >= len(classes) or sum(part['max_tries'] for part in parts) > MAX_TRIES:
                raise ValueError(f'block {index} has the labels {labels[:20]} and {sum(part["max_tries"] for part in parts)} tries')
            blocks.append(_block(index, classes, [{**part, 'sources': sources[part['sources']]} for part in parts]))
        return cls(classes, tuple(blocks), recipe)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content: two plans with the same fingerprint make the same images."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True, ensure_ascii=False).encode()).hexdigest()


_PART_KEYS = ('label', 'target', 'max_tries', 'first')


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f'{what} is no list')
    return value


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not all(isinstance(text, str) for text in _list(value, what)):
        raise TypeError(f'{what} holds something that is no text')
    return tuple(value)


def _check_part(index: int, part: Any, n_sources: int) -> None:
    """Refuse (TypeError, ValueError) what is not a part's content: whole numbers that a block can have."""
    if not isinstance(part, dict) or set(part) != {*_PART_KEYS, 'sources'} or not all(type(value) is int for value in part.values()):
        raise TypeError(f'block {index} has the part {str(part)[:200]}')
    if not (part['label'] >= 0 and 1 <= part['target'] <= part['max_tries'] and 0 <= part['first'] < 2**53 and 0 <= part['sources'] < n_sources):
        raise ValueError(f'block {index} has the part {part}')


def _block(index: int, classes: Sequence[str], parts: Sequence[Mapping[str, Any]]) -> Block:
    """A block of parts that are given without what follows from their place: block, class_name and offset."""
    offsets = accumulate((part['max_tries'] for part in parts), initial=0)
    return Block(index, tuple(Part(block=index, class_name=classes[part['label']], offset=at, **part) for part, at in zip(parts, offsets, strict=False)))


def make_blocks(
    classes: Sequence[str],
    per_class: int | Mapping[str, int],
    sources: Mapping[str, Sequence[str]] | None = None,
    block_size: int = 256,
    tries_per_image: float = 4.0,
) -> tuple[Block, ...]:
    """Divide the quotas of all classes over blocks of at most `block_size` images.

    In label order, the quota of every class is cut into pieces of `block_size` and a rest; a piece joins the block of the one before it where
    it fits, and begins a new block where it does not. So small classes share a block, and a class that fits into a block is in one.

    Args:
        classes: class names in label order.
        per_class: accepted images wanted, one number for all or one per class name (a class left out gets none).
        sources: ids of the real images of each class, for generators that start from them.
        tries_per_image: requests allowed per wanted image before the class is left short, at least 1.

    Raises:
        RecipeError: a quota, size or number of tries out of range, or a quota for an unknown class.
        DataError: class names empty, repeated or unsafe.
    """
    check_class_names(classes)
    if block_size < 1:
        raise RecipeError(f'block_size = {block_size} is not positive.', 'Ask for at least 1 image per block.')
    if tries_per_image < 1:
        raise RecipeError(f'tries_per_image = {tries_per_image} is below 1.', 'Every wanted image needs at least one try.')
    quota = dict(per_class) if isinstance(per_class, Mapping) else dict.fromkeys(classes, per_class)
    known = set(classes)
    for name, n in quota.items():
        if name not in known:
            raise RecipeError(f'per_class names the class {name!r}, which is not among {list(classes)}.', 'Correct the name.')
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise RecipeError(f'per_class = {n!r} for class {name!r} is not a count.', 'Use a whole number, 0 or more.')
    blocks: list[list[dict[str, Any]]] = []
    room = 0  # in the last block
    for label, name in enumerate(classes):
        wanted, of_class = quota.get(name, 0), tuple((sources or {}).get(name, ()))
        for first in range(0, wanted, block_size):
            target = min(block_size, wanted - first)
            if target > room:
                blocks.append([])
                room = block_size
            blocks[-1].append({'label': label, 'target': target, 'max_tries': int(target * tries_per_image), 'first': first, 'sources': of_class})
            room -= target
    for block in blocks:
        if (tries := sum(part['max_tries'] for part in block)) > MAX_TRIES:
            what = f'block_size = {block_size} with tries_per_image = {tries_per_image} allows a block {tries} tries, {MAX_TRIES} are possible.'
            raise RecipeError(what, 'Lower one of them.')
    if not blocks:
        raise RecipeError('The recipe asks for no image at all (per_class is 0 everywhere).', 'Set per_class to 1 or more.')
    return tuple(_block(index, classes, parts) for index, parts in enumerate(blocks))


def check_class_names(classes: Sequence[str]) -> None:
    """Refuse class names that could not become folders or labels: empty, repeated, with separators or control characters."""
    for name in classes:
        if not name or name != name.strip() or name in ('.', '..') or any(c in name for c in '/\\\0') or not name.isprintable():
            raise DataError(f'The class name {name!r} is empty, padded or holds a separator or control character.', 'Rename the class.')
        if len(name.encode()) > MAX_NAME:
            raise DataError(f'The class name {name[:40]!r}... has {len(name.encode())} bytes, a folder takes {MAX_NAME}.', 'Rename the class.')
    repeated = sorted(name for name, n in Counter(classes).items() if n > 1)
    if repeated:
        raise DataError(f'The class names {repeated} are repeated.', 'Every class needs its own name.')
