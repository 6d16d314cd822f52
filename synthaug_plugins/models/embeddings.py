"""Embeddings that were learned for single images (Diffusion Inversion, Zhou et al. 2023), as generators read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import DataError, ModelError, RecipeError, nearest
from synthaug_plugins.models.base import Model
from synthaug_plugins.models.embedding_shards import check_shard, published_shards, read_embeddings_card, read_index, read_rows, shard_hash
from synthaug_plugins.models.sorted_ids import SortedIds
from synthaug_plugins.real_images import RealImages

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 256  # rows that are averaged at once
_SIMILAR = 1000  # ids of a class among which the nearest is looked for
_LEARN = 'Learn it: synthaug learn embeddings again, with the image in --data and into the same folder.'


class Embeddings:
    """A folder of embeddings, one for each of many real images. Opening reads the ids and the shards' headers; embeddings are read when asked for.

    Rows are numbered in the order of the shards. In memory lie the ids and 16 bytes for each, nothing else.

    Args:
        folder: as `synthaug learn embeddings` writes it: OUT/embeddings.

    Attributes:
        folder: as given.
        card: what embeddings.json says.
        shape: of each embedding.
        image_size: (H, W) in pixels that the images had.

    Raises:
        ModelError: no such folder or a foreign one, a newer format, a shard that is missing, cut short or of another shape, an id in two shards.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.card, self.shape, self.image_size = read_embeddings_card(self.folder)
        self._shards = published_shards(self.folder)
        ids = [read_index(self.folder, number, ['id'])['id'] for number in self._shards]
        for number, column in zip(self._shards, ids, strict=True):
            check_shard(self.folder, number, self.shape, len(column))
        self._starts = np.cumsum([0, *map(len, ids)])
        self._ids = pa.chunked_array(ids, pa.string()).combine_chunks()
        self._sorted = SortedIds(self._ids)
        for name, rows in self._sorted.repeated():
            shards = ', '.join(str(number) for number, _, _ in self._by_shard(rows))
            what = f'The embeddings of {str(folder)!r} hold {name!r} {len(rows)} times, in the shards {shards}.'
            raise ModelError(what, 'Copy the folder again; files of several folders cannot be put together.')

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of these images' embeddings, (n,) int64.

        Raises:
            DataError: an image has none; it is named.
        """
        rows = self._sorted.rows(list(ids))
        for k in map(int, np.flatnonzero(rows < 0)[:1]):
            of_class = pc.filter(self._ids, pc.starts_with(self._ids, ids[k].rpartition('/')[0] + '/'))[:_SIMILAR].to_pylist()
            near = f' {nearest(ids[k], of_class)}' if of_class else ''
            raise DataError(f'{ids[k]!r} has no embedding in {str(self.folder)!r} ({(rows < 0).sum()} in all).', _LEARN + near)
        return rows

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of these images that have no embedding, in their order."""
        return [name for name, row in zip(ids, self._sorted.rows(list(ids)), strict=True) if row < 0]

    def ids(self, rows: np.ndarray | Sequence[int]) -> list[str]:
        """The images of rows."""
        return list(self._ids.take(pa.array(rows, pa.int64())).to_pylist())

    def sha256_of(self, rows: np.ndarray | Sequence[int]) -> list[str]:
        """SHA-256 of the image file that each row was learned from."""
        found = np.empty(len(rows), object)
        for number, places, inside in self._by_shard(rows):
            found[places] = read_index(self.folder, number, ['sha256'])['sha256'].take(pa.array(inside)).to_pylist()
        return [str(value) for value in found]

    def read(self, rows: np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The embeddings of rows: tokens (n, K, d) and pooled (n, p) or None, float32 on the CPU. Of the files only these rows are read.

        Raises:
            ModelError: a shard was removed or cut short.
        """
        import torch

        tokens = np.empty((len(rows), self.shape.tokens, self.shape.width), np.float32)
        pooled = None if self.shape.pooled is None else np.empty((len(rows), self.shape.pooled), np.float32)
        for number, places, inside in self._by_shard(rows):
            found = read_rows(self.folder, number, inside)
            tokens[places] = found['tokens']
            if pooled is not None:
                pooled[places] = found['pooled']
        return torch.from_numpy(tokens), None if pooled is None else torch.from_numpy(pooled)

    def mean(self, rows: np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The mean of the embeddings of rows: tokens (K, d) and pooled (p,) or None, float32 on the CPU, from sums in float64.

        Its bits do not depend on the order of the rows; memory does not depend on their number.

        Raises:
            DataError: no rows.
            ModelError: a shard was removed or cut short.
        """
        import torch

        if not len(rows):
            raise DataError(f'There are no embeddings of {str(self.folder)!r} to take the mean of.', 'Name at least one image.')
        sums: dict[str, Any] = {}
        for number, _, inside in self._by_shard(np.sort(rows)):
            for first in range(0, len(inside), _AT_ONCE):
                for name, values in read_rows(self.folder, number, inside[first : first + _AT_ONCE]).items():
                    sums[name] = sums.get(name, 0.0) + values.sum(axis=0, dtype=np.float64)
        means = {name: torch.from_numpy(total / len(rows)).float() for name, total in sums.items()}
        return means['tokens'], means.get('pooled')

    def check(self, model: Model, images: RealImages, ids: Sequence[str]) -> None:
        """Refuse embeddings that were not learned for this model at this resolution, or not from these images. Reads the images' files.

        Args:
            model: that is to be told them.
            images: the real images.
            ids: those whose embeddings are used.

        Raises:
            ModelError: another model or resolution.
            DataError: an image without embedding, or one whose file is another than it was.
        """
        what = f'The embeddings of {str(self.folder)!r}'
        if model.image_size != self.image_size:
            (h, w), (H, W) = self.image_size, model.image_size
            raise ModelError(f'{what} were learned at {h} x {w} pixels, {model.name!r} makes {H} x {W}.', 'Learn embeddings at this size, or use theirs.')
        try:
            wanted = model.embedding_shape(self.shape.tokens)
        except RecipeError:  # a model that takes no such number of tokens
            wanted = model.embedding_shape()
        if wanted != self.shape:
            raise ModelError(f'{what} are {self.shape}, those of {model.name!r} {wanted}.', 'Use the model that they were learned for.')
        rows = self.find(ids)
        if not model.has_origin(self.card['model']):
            what = f'{what} were learned for {self.card["model"].get("name")!r} of other content than {model.name!r}.'
            raise ModelError(what, 'Use the model that they were learned for, or learn embeddings for this one: synthaug learn embeddings.')
        for image_id, then, now in zip(ids, self.sha256_of(rows), images.file_hashes(ids), strict=True):
            if then != now:
                what = f'The image {image_id!r} of {str(images.root)!r} is not the file that its embedding in {str(self.folder)!r} was learned from.'
                raise DataError(what, 'Restore the file, or give the image another name and learn its embedding: synthaug learn embeddings.')

    def identity(self, ids: Sequence[str]) -> dict[str, Any]:
        """What of these images' embeddings decides the pixels: plain JSON, the same in any order of the images, and when others are added."""
        digest = hashlib.sha256()
        for number, _, inside in self._by_shard(np.sort(self.find(ids))):
            digest.update(f'{shard_hash(self.folder, number)}\n'.encode())
            rows = inside + self._starts[self._shards.index(number)]
            digest.update(''.join(f'{row} {name}\n' for row, name in zip(inside, self.ids(rows), strict=True)).encode())
        return {'sha256': digest.hexdigest()}

    def _by_shard(self, rows: np.ndarray | Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Shard by shard, in their order: its number, the places of its rows among `rows`, and their numbers within the shard."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f'rows from {rows.min()} to {rows.max()} of {len(self)} embeddings')
        shard = np.searchsorted(self._starts, rows, 'right') - 1
        for k in np.unique(shard):
            places = np.flatnonzero(shard == k)
            yield self._shards[k], places, rows[places] - self._starts[k]
