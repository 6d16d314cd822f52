"""Swaps real images for synthetic ones inside an ordinary pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info
from torch.utils.data import get_worker_info

from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.mixing.records import Groups, normal_path, read_records, relative_source, source_numbers
from synthaug_plugins.registry import TRANSFORMS
from synthaug_plugins.store.reader import SCHEME, read_uri
from synthaug_plugins.training import backend  # noqa: F401  (registers synthaug:// in every process that unpickles this transform)
from synthaug_plugins.training.decode import CHANNEL_ORDERS, decode_like

PARTNERS = ('source', 'class')


@TRANSFORMS.register_module()
class SwapWithSynthetic(BaseTransform):
    """With probability `prob`, puts a synthetic image in the place of a real one.

    The simplest way to mix, for any dataset and any trainer that uses mmcv transforms. Before a loading transform it changes
    `img_path`; after one it replaces `img`, scaled to the size of the image that it replaces. The label stays. Draws come
    from a generator of its own, so that the other transforms see the same random numbers as without it; they differ between
    processes and between their loader workers, hence change with the number of either (those of `mix` do not).

    Adds `is_synthetic` (bool) and, when swapped, `synthetic_id`; PackInputs keeps them if they are named in its `meta_keys`.

    Args:
        store: folder of the store.
        prob: from 0 to 1.
        partner: 'source': a variant made from this very image, an image without one stays real; 'class': any synthetic image
            of its class.
        select: which records, as in `records.check_store_spec`.
        root: for 'source': the folder of class folders that holds the real images.
        classes: for 'class': the trainer's class names in label order.
        sources: for 'class' with variants of real images: must be 'any', since a transform cannot know which images are held
            out. Use `mix` to have it checked.
        channel_order: of `img` when it stands after a loading transform; 'bgr' as LoadImageFromFile gives it.

    Raises:
        RecipeError, StoreError: a wrong or missing option, other classes than the store's.
    """

    def __init__(
        self,
        store: str,
        prob: float = 0.5,
        partner: str = 'source',
        select: str | Mapping[str, Any] | None = None,
        root: str | None = None,
        classes: Sequence[str] | None = None,
        sources: str | None = None,
        channel_order: str = 'bgr',
    ) -> None:
        if isinstance(prob, bool) or not isinstance(prob, int | float) or not 0 <= prob <= 1:
            raise RecipeError(f'prob = {prob!r} is outside [0, 1].', 'Use a probability.')
        if partner not in PARTNERS:
            raise RecipeError(f'partner = {partner!r} is unknown.', nearest(str(partner), PARTNERS))
        if channel_order not in CHANNEL_ORDERS:
            raise RecipeError(f'channel_order = {channel_order!r} is unknown.', nearest(str(channel_order), CHANNEL_ORDERS))
        if partner == 'source' and root is None:
            raise RecipeError("SwapWithSynthetic with partner='source' needs root.", 'Set root to the folder of class folders with the real images.')
        if partner == 'class' and classes is None:
            raise RecipeError("SwapWithSynthetic with partner='class' needs classes.", 'Give the class names in the order of the labels.')
        self.store, self.prob, self.partner, self.root, self.channel_order = store, prob, partner, root, channel_order
        self.records = read_records({'store': store, 'select': select}, classes)
        if partner == 'source':
            self._sources = self.records.sources.unique().drop_null()
            self._number = {source: n for n, source in enumerate(self._sources.to_pylist())}
            self._refuse_other_labels()
            self._groups = Groups.of(source_numbers(self.records.sources, self._sources), len(self._sources))
        else:
            if self.records.sources.null_count < len(self.records) and sources != 'any':
                raise RecipeError(
                    f'The images of {store!r} were made from real ones, and a transform cannot tell whether those are held out.',
                    "Use synthaug = dict(mix=...), which checks it, or sources='any' if you are sure.",
                )
            self._groups = Groups.of(self.records.labels, len(self.records.classes))
        self._rank: int = get_dist_info()[0]  # asked here: a loader worker knows of no process group
        self._rng: np.random.Generator | None = None
        self._rng_seed: int | None = None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Swap or leave. Raises DataError for a real image outside `root`."""
        results['is_synthetic'] = False
        if self.prob == 0 or str(results.get('img_path', '')).startswith(SCHEME):
            return results  # an image that `mix` drew from a store is synthetic already
        u, u_member = self._generator().random(2)
        if u >= self.prob:
            return results
        group = np.array([self._group(results)])
        if self._groups.count(group)[0] == 0:
            return results
        row = int(self._groups.member(group, np.array([u_member]))[0])
        uri = self.records.uri(row)
        if 'img' in results:
            results['img'] = decode_like(read_uri(uri), results['img'], self.channel_order)
        results['img_path'] = uri
        results['is_synthetic'] = True
        results['synthetic_id'] = self.records.ids[row].as_py()
        return results

    def _group(self, results: dict[str, Any]) -> int:
        if self.partner == 'class':
            return int(results['gt_label'])
        if 'img_path' not in results:
            raise DataError("SwapWithSynthetic with partner='source' needs images with file paths.", "Use partner='class' for a dataset that lives in memory.")
        source = relative_source(results['img_path'], [normal_path(self.root or '')])
        if source is None:
            raise DataError(f'The image {results["img_path"]!r} lies outside root = {self.root!r}.', 'Correct root.')
        return self._number.get(source, -1)

    def _refuse_other_labels(self) -> None:
        for label, source in zip(self.records.labels.tolist(), self.records.sources.to_pylist(), strict=True):
            if source is not None and source.split('/')[0] != self.records.classes[label]:
                raise RecipeError(
                    f'{self.store!r} holds variants of another class than their source ({source!r} became {self.records.classes[label]!r}).',
                    "Use synthaug = dict(mix=dict(partner='any', ...)), which takes the variants' own labels.",
                )

    def _generator(self) -> np.random.Generator:
        """Seeded by the process's rank and the worker's seed (torch's, without workers), which torch draws alike in all processes.

        Workers that are started anew for an epoch have a new seed; those that persist go on with their stream.
        """
        worker = get_worker_info()
        seed = torch.initial_seed() if worker is None else worker.seed
        if self._rng is None or seed != self._rng_seed:
            self._rng, self._rng_seed = np.random.default_rng([seed, self._rank]), seed
        return self._rng

    def __repr__(self) -> str:
        return f'{type(self).__name__}(store={self.store!r}, prob={self.prob}, partner={self.partner!r})'
