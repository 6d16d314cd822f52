"""The synthetic records that a training run may draw, as arrays: where each lies, its label and its source.

Arrow and NumPy columns only, in types no wider than a store needs: a record costs about thirty bytes and the length of its source's name, and forked
workers share them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import RecipeError, StoreError, nearest
from synthaug_plugins.mixing.soft_labels import SoftLabels, SoftTargets, read_soft_targets
from synthaug_plugins.store.index import STORED
from synthaug_plugins.store.reader import image_uri
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.shard import SHARD_NAME, shard_name
from synthaug_plugins.store.store import Store

_SPEC_KEYS = ('store', 'weight', 'select')
_COLUMNS = ('id', 'label', 'source', 'shard', 'offset', 'size')
_SELECT_KEYS = ('where', 'top_k', 'by', 'sample', 'seed', 'allow_empty')


def check_store_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of `stores`, checked: `dict(store=folder, weight=1.0, select=None)`.

    `weight` is the store's share of the draws beside other stores; `select` is a condition such as `'clip_p > 0.1'`, or a
    dict of the arguments of `store.selection.select` (where, top_k, by, sample, seed, allow_empty).

    Raises:
        RecipeError: an unknown key, no folder, a weight that is not positive.
    """
    for key in spec:
        if key not in _SPEC_KEYS:
            raise RecipeError(f'stores: unknown key {key!r}.', nearest(key, _SPEC_KEYS))
    if not isinstance(spec.get('store'), str | os.PathLike) or not str(spec['store']):
        raise RecipeError(f'stores: store = {spec.get("store")!r} is not a folder.', "Write dict(store='stores/name', weight=1.0).")
    weight = spec.get('weight', 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float('inf'):
        raise RecipeError(f'stores: weight = {weight!r} is not a positive number.', 'Leave the store out to draw nothing from it.')
    chosen = spec.get('select')
    if isinstance(chosen, Mapping):
        for key in chosen:
            if key not in _SELECT_KEYS:
                raise RecipeError(f'select has no key {key!r}.', nearest(key, _SELECT_KEYS))
    elif chosen is not None and not isinstance(chosen, str):
        raise RecipeError(f'select = {chosen!r} is not a condition.', "Write it like 'clip_p > 0.1', or as dict(where=..., top_k=..., by=...).")
    return {'store': str(spec['store']), 'weight': float(weight), 'select': dict(chosen) if isinstance(chosen, Mapping) else chosen}


@dataclass(frozen=True)
class Records:
    """The selected records of one store.

    Attributes:
        folder: the store.
        weight: its share of the draws.
        classes: its class names in label order.
        labels: (M,) int16, or int32 for more classes than that holds.
        places: (M,) of `shard`, `offset`, `size`: where each image lies.
        shards: identities of the shards by number, as they were before the index was read: reading refuses any other.
        ids, sources: (M,) Arrow text; a source is None where the image started from no real one.
        soft_labels: their class probabilities, or None.
        description: what was selected, with counts per class, for the log.
        made_from: the folder that the sources are relative to, as the store's recipe names it, or None.
        prompts: (M,) Arrow dictionary of texts, None where an image was told nothing; None unless they were asked for.
    """

    folder: str
    weight: float
    classes: tuple[str, ...]
    labels: np.ndarray
    places: np.ndarray
    shards: Mapping[int, str]
    ids: pa.Array
    sources: pa.Array
    soft_labels: SoftTargets | None
    description: str
    made_from: str | None
    prompts: pa.DictionaryArray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def uri(self, row: int) -> str:
        """The address of a record's image, as LoadImageFromFile takes it."""
        shard, offset, size = self.places[row].item()
        return image_uri(self.folder, shard, offset, size, self.shards[shard])

    def keep(self, mask: np.ndarray) -> Records:
        """The records where `mask` is true."""
        return self.take(np.flatnonzero(mask))

    def take(self, rows: np.ndarray) -> Records:
        """Some of the records, in the order of their numbers `rows`."""
        chosen = pa.array(rows, pa.int64())
        return replace(
            self,
            labels=self.labels[rows],
            places=self.places[rows],
            ids=self.ids.take(chosen),
            sources=self.sources.take(chosen),
            soft_labels=None if self.soft_labels is None else self.soft_labels.take(rows),
            prompts=None if self.prompts is None else self.prompts.take(chosen),
        )

    def nameless(self) -> Records:
        """The same without ids and sources, most of what a record costs: a training on a store alone asks for neither."""
        return replace(self, ids=pa.nulls(len(self)), sources=pa.nulls(len(self)))

    def with_prompts(self) -> Records:
        """The same with their prompts, read from the store where they are not here. Raises StoreError where images have moved meanwhile."""
        if self.prompts is not None:
            return self
        table = Store.open(self.folder).index(['prompt', 'shard', 'offset'], STORED, encoded=['prompt'])
        # What lies in one place of one shard is one image.
        theirs = (table['shard'].to_numpy().astype(np.int64) << 42) + table['offset'].to_numpy()
        mine = (self.places['shard'].astype(np.int64) << 42) + self.places['offset']
        order = np.argsort(theirs)
        place = np.searchsorted(theirs, mine, sorter=order)
        rows = order[np.minimum(place, len(order) - 1)]
        if not np.array_equal(theirs[rows], mine):
            raise StoreError(f'{self.folder!r} has changed since its records were read.', 'Start the training again.')
        prompts = table['prompt'].combine_chunks().take(pa.array(rows, pa.int64()))
        del table
        pa.default_memory_pool().release_unused()
        return replace(self, prompts=prompts)

    def __deepcopy__(self, memo: Any) -> Records:
        """Itself: nothing in it ever changes, and millions of records are not copied with a data set."""
        return self

    def prompt_groups(self) -> np.ndarray:
        """The number of each record's prompt: (M,) int64, equal for equal texts, counted from 0 in the order in which they first come.

        Raises:
            RecipeError: a record has no prompt.
        """
        prompts = self.with_prompts().prompts
        assert prompts is not None
        if lacking := prompts.null_count:
            cure = "Leave them out: select='prompt is not null'." if lacking < len(self) else 'Use other images, or generate them from prompts (TextToImage).'
            raise RecipeError(f'{lacking} of {len(self)} selected records of {self.folder!r} have no prompt, so they belong to no group.', cure)
        numbers = prompts.indices.to_numpy()
        used, first, place = np.unique(numbers, return_index=True, return_inverse=True)
        rank = np.empty(len(used), np.int64)
        rank[np.argsort(first)] = np.arange(len(used))
        return rank[place]


def read_records(spec: Mapping[str, Any], classes: Sequence[str] | None = None, soft_labels: SoftLabels | None = None, prompts: bool = False) -> Records:
    """Open a store and read the records that `spec` selects.

    Args:
        spec: as `check_store_spec` takes it.
        classes: the trainer's class names in label order, which the store's must equal; None where labels are not used.
        soft_labels: the column with class probabilities or a teacher's logits, and how to use it.
        prompts: whether the prompts are read too.

    Raises:
        StoreError, RecipeError: as `Store.open` and `select`; other classes or another order; soft labels that are none, see `read_soft_targets`.
    """
    spec = check_store_spec(spec)
    store = Store.open(spec['store'])
    if classes is not None:
        store.check_classes(classes)
    chosen = spec['select'] if isinstance(spec['select'], dict) else {'where': spec['select']}
    told = ('prompt',) if prompts else ()
    # Before the index: of a shard that is replaced in between, the offsets of one would be read in the other.
    shards = store.place.identities('shards')
    selection = select(store, **chosen, columns=[*_COLUMNS, *told, *(() if soft_labels is None else soft_labels.columns)], encoded=told)
    table = selection.table.combine_chunks()
    places = _places(table)
    records = Records(
        folder=store.place.absolute,
        weight=spec['weight'],
        classes=tuple(store.classes),
        labels=table['label'].to_numpy().astype(np.int16 if len(store.classes) <= np.iinfo(np.int16).max else np.int32),
        places=places,
        shards=_shards(store, shards, np.unique(places['shard'])),
        ids=table['id'].combine_chunks(),
        sources=table['source'].combine_chunks(),
        soft_labels=None if soft_labels is None else read_soft_targets(table, soft_labels, len(store.classes), store.score_column_names),
        description=selection.describe(),
        made_from=_made_from(store),
        prompts=table['prompt'].combine_chunks() if prompts else None,
    )
    del selection, table
    pa.default_memory_pool().release_unused()  # before workers are forked
    return records


def _places(table: pa.Table) -> np.ndarray:
    """(M,) of shard, offset and size: 12 bytes a record, 16 where a shard is longer than 4 GiB."""
    columns = {name: table[name].to_numpy() for name in ('shard', 'offset', 'size')}
    wide = len(table) and columns['offset'].max() > np.iinfo(np.uint32).max
    places = np.empty(len(table), [('shard', np.int32), ('offset', np.int64 if wide else np.uint32), ('size', np.uint32)])
    for name, values in columns.items():
        places[name] = values
    return places


def _shards(store: Store, found: Mapping[str, str], numbers: np.ndarray) -> dict[int, str]:
    """The identities of some shards, of those `found` by name. Raises StoreError where one is missing."""
    missing = [number for number in numbers.tolist() if SHARD_NAME.format(number) not in found]
    if missing:
        raise StoreError(f'The shard {store.place.path(shard_name(missing[0]))!r} is missing.', 'Run verify, then repair.')
    return {number: found[SHARD_NAME.format(number)] for number in numbers.tolist()}


def _made_from(store: Store) -> str | None:
    recipe = store.made_by.get('recipe')
    folder = recipe.get('data') if isinstance(recipe, Mapping) else None
    return folder if isinstance(folder, str) and folder else None


@dataclass(frozen=True)
class Groups:
    """Which records belong to which group (a class, a source image): members of group g are order[start[g]:start[g + 1]]."""

    order: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, n_groups: int) -> Groups:
        """Group records by `keys`: (M,) whole numbers; a key below 0 belongs to no group."""
        order = np.argsort(keys, kind='stable')
        start = np.searchsorted(keys[order], np.arange(n_groups + 1))
        return cls(order.astype(np.min_scalar_type(len(order))), start)

    def count(self, groups: np.ndarray) -> np.ndarray:
        """Members of each asked group: (N,) int64; 0 for a group below 0."""
        return np.where(groups < 0, 0, self.start[groups + 1] - self.start[groups])

    def member(self, groups: np.ndarray, u: np.ndarray) -> np.ndarray:
        """A member of each (non-empty) group, chosen by u in [0, 1): (N,) int64 record numbers."""
        return self.order[self.start[groups] + (u * self.count(groups)).astype(np.int64)].astype(np.int64)


def source_numbers(sources: pa.Array, real_sources: Sequence[str]) -> np.ndarray:
    """For each record the number of its source in the sorted, unique `real_sources`: (M,) int64, -1 where it is not among them."""
    return pc.index_in(sources, value_set=pa.array(list(real_sources), pa.string())).fill_null(-1).to_numpy().astype(np.int64)


def normal_path(path: str) -> str:
    """A path in the form in which paths are compared: absolute and without detours; an address such as s3://... without detours."""
    return os.path.normpath(path) if '://' in path else os.path.abspath(path)


def relative_source(img_path: str, roots: Sequence[str]) -> str | None:
    """An image's path relative to the innermost root that holds it, with forward slashes; None if none does.

    Args:
        img_path: as the dataset gives it.
        roots: folders as `normal_path` gives them, longest first.

    >>> relative_source('data/train/cat/1.png', [normal_path('data/train/'), normal_path('data')])
    'cat/1.png'
    """
    path = normal_path(img_path)
    for root in roots:
        if path.startswith(root + os.sep):
            return path[len(root) + 1 :].replace(os.sep, '/')
    return None
