"""The synthetic records that a training run may draw, as arrays: where each lies, its label and its source.

Arrow and NumPy columns only: millions of records cost tens of bytes each, and forked workers share them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.mixing.soft_labels import SoftLabels, SoftTargets, read_soft_targets
from synthaug_plugins.store.reader import image_uri
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

_SPEC_KEYS = ('store', 'weight', 'select')
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
        labels: (M,) int64.
        places: (M, 3) int64: shard, offset, size of each image.
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
        return image_uri(self.folder, *self.places[row].tolist())

    def keep(self, mask: np.ndarray) -> Records:
        """The records where `mask` is true."""
        chosen = pa.array(mask)
        soft = None if self.soft_labels is None else self.soft_labels.keep(mask)
        return replace(
            self,
            labels=self.labels[mask],
            places=self.places[mask],
            ids=self.ids.filter(chosen),
            sources=self.sources.filter(chosen),
            soft_labels=soft,
            prompts=None if self.prompts is None else self.prompts.filter(chosen),
        )

    def prompt_groups(self) -> np.ndarray:
        """The number of each record's prompt: (M,) int64, equal for equal texts, counted from 0 in the order in which they first come.

        Raises:
            RecipeError: a record has no prompt.
        """
        prompts = self.prompts
        lacking = len(self) if prompts is None else prompts.null_count
        if prompts is None or lacking:
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
    selection = select(store, **chosen)
    table = selection.table.combine_chunks()
    places = np.stack([table[name].to_numpy().astype(np.int64) for name in ('shard', 'offset', 'size')], axis=1)
    return Records(
        folder=os.path.abspath(store.folder),
        weight=spec['weight'],
        classes=tuple(store.classes),
        labels=table['label'].to_numpy().astype(np.int64),
        places=places,
        ids=table['id'].combine_chunks(),
        sources=table['source'].combine_chunks(),
        soft_labels=None if soft_labels is None else read_soft_targets(table, soft_labels, len(store.classes)),
        description=selection.describe(),
        made_from=_made_from(store),
        prompts=table['prompt'].combine_chunks().dictionary_encode() if prompts else None,
    )


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
        """Group records by `keys`: (M,) int64; a key below 0 belongs to no group."""
        order = np.argsort(keys, kind='stable')
        return cls(order, np.searchsorted(keys[order], np.arange(n_groups + 1)))

    def count(self, groups: np.ndarray) -> np.ndarray:
        """Members of each asked group: (N,) int64; 0 for a group below 0."""
        return np.where(groups < 0, 0, self.start[groups + 1] - self.start[groups])

    def member(self, groups: np.ndarray, u: np.ndarray) -> np.ndarray:
        """A member of each (non-empty) group, chosen by u in [0, 1): (N,) int64 record numbers."""
        return self.order[self.start[groups] + (u * self.count(groups)).astype(np.int64)]


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
