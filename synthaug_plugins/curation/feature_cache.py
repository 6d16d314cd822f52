"""CLIP features on disk, keyed by what decides them: the encoder never sees the same pixels twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.errors import DataError, ModelError, RecipeError, StoreError, first_line
from synthaug_plugins.real_images import decode_rgb
from synthaug_plugins.store.files import write_whole

if TYPE_CHECKING:
    import torch

DEFAULT_FOLDER = '~/.cache/synthaug/features'
_SUFFIX = '.features'
_MADE_BY = b'synthaug'


class FeatureCache:
    """Unit vectors of images by one CLIP, kept in a folder.

    A feature is found by the SHA-256 of the image file, which needs no decoding, and else by that of its pixels: a file that was only
    renamed, copied or encoded anew without loss is not encoded again. The folder holds one sub-folder per CLIP (config, preprocessing, tokenizer and
    weights, see `ClipModel.identity`) and `native_px`, and in it Arrow files that are never changed, so that several processes may add to it.
    (The official code of He et al. keys its cache by data set and split alone, and so gives one network the features of another.)

    Args:
        clip: the encoder; its weights load when a feature is missing.
        folder: of the cache; made if it does not exist.
        native_px: images whose shorter side is longer are first reduced to it (area average), to imitate a data set of small images (an option in the
            official code of He et al., for EuroSAT 64 and CIFAR 32). Default: never.

    Attributes:
        path: the sub-folder.
        encoded: images that went through the network since this object was made.

    Raises:
        ModelError: see `ClipModel.check`; a file of the cache that another model made, or that is damaged.
        RecipeError: native_px is no number of pixels.
    """

    part_size = 4096
    """Images per file at the most: what a kill can cost."""
    read_size = 64
    """Images that are read and decoded at a time: photographs of 12 megapixels take 36 MB each."""

    def __init__(self, clip: ClipModel, folder: str | Path = DEFAULT_FOLDER, native_px: int | None = None) -> None:
        if native_px is not None and (isinstance(native_px, bool) or not isinstance(native_px, int) or native_px < 1):
            raise RecipeError(f'native_px = {native_px!r} is no number of pixels.', 'Use the shorter side of the data set, such as 64.')
        clip.check()
        self.clip, self.native_px, self.encoded = clip, native_px, 0
        identity = clip.identity()
        self._made_by = json.dumps({'clip': identity['sha256'], 'native_px': native_px}, sort_keys=True)
        name = re.sub(r'[^A-Za-z0-9._-]+', '-', str(identity['name'])).strip('-.') or 'clip'
        self.path = Path(folder).expanduser() / f'{name}-{hashlib.sha256(self._made_by.encode()).hexdigest()[:16]}'
        self._parts: list[np.ndarray] = []
        self._rows: dict[bytes, tuple[int, int]] = {}
        for file in sorted(self.path.glob(f'*{_SUFFIX}')):
            self._add(*self._read(file))

    def __len__(self) -> int:
        """Features that it holds."""
        return sum(map(len, self._parts))

    def features(self, images: Iterable[tuple[str, bytes | np.ndarray]], device: torch.device) -> np.ndarray:
        """Features of images, from the cache where it has them.

        Args:
            images: pairs of a name for messages and the content: an encoded image file, or pixels (H, W, 3) uint8 RGB.
            device: where missing ones are encoded, in float32.

        Returns: (n, d) float32 unit vectors, in order; (0, 0) for no images.

        Raises:
            DataError: an image cannot be decoded; it is named.
            ModelError: see `ClipModel.load` and `encode_images`.
            StoreError: the cache cannot be written.
        """
        images, at_a_time = iter(images), min(self.read_size, self.part_size)
        found: list[np.ndarray] = []
        unwritten: list[tuple[np.ndarray, np.ndarray]] = []
        while some := list(islice(images, at_a_time)):
            keys = [_content_key(content) for _, content in some]
            fresh = {key: image for key, image in zip(keys, some, strict=True) if key not in self._rows}
            if fresh:
                unwritten.append(self._encoded(fresh, device))
                self._add(*unwritten[-1])
            found.append(np.stack([self._feature(key) for key in keys]))
            if unwritten and sum(len(made) for made, _ in unwritten) + at_a_time > self.part_size:
                self._write(unwritten)
                unwritten = []
        if unwritten:
            self._write(unwritten)
        return np.concatenate(found) if found else np.empty((0, 0), np.float32)

    def _encoded(self, fresh: dict[bytes, tuple[str, bytes | np.ndarray]], device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        """Keys and features of contents that the cache does not know: from equal pixels where there are some, else by the network."""
        pixels_of: dict[bytes, bytes] = {}
        unseen: dict[bytes, np.ndarray] = {}
        for key, (name, content) in fresh.items():
            image = content if isinstance(content, np.ndarray) else _decoded(content, name)
            pixels_of[key] = _pixel_key(image)
            if pixels_of[key] not in self._rows:
                unseen.setdefault(pixels_of[key], self._reduced(image))
        made = self._through_network(list(unseen.values()), device)
        by_pixels = dict(zip(unseen, made, strict=True))
        known = [by_pixels[p] if p in by_pixels else self._feature(p) for p in pixels_of.values()]
        return np.array([[key, pixels] for key, pixels in pixels_of.items()], dtype='S32'), np.stack(known)

    def _through_network(self, images: list[np.ndarray], device: torch.device) -> np.ndarray:
        if not images:
            return np.empty((0, 0), np.float32)
        self._refuse_unwritable()
        self.clip.load(device)
        self.encoded += len(images)
        return self.clip.encode_images(images).cpu().numpy()

    def _reduced(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if self.native_px is None or min(height, width) <= self.native_px:
            return image
        from PIL import Image

        scale = self.native_px / min(height, width)
        return np.asarray(Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BOX))

    def _feature(self, key: bytes) -> np.ndarray:
        part, row = self._rows[key]
        return self._parts[part][row]

    # --- files

    def _add(self, keys: np.ndarray, features: np.ndarray) -> None:
        self._parts.append(features)
        for row, pair in enumerate(keys.tolist()):
            for key in pair:
                # Arrays of fixed-length bytes drop zero bytes at the end.
                self._rows.setdefault(key.ljust(32, b'\0'), (len(self._parts) - 1, row))

    def _refuse_unwritable(self) -> None:
        """Before the first image goes through the network, not after the last."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            reason = '' if os.access(self.path, os.W_OK) else 'no permission'
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            raise StoreError(f'The feature cache {str(self.path)!r} cannot be written: {reason}.', 'Name another folder for it (--cache; cache=...).')

    def _write(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        keys, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        flat = pa.array(np.ascontiguousarray(features, np.float32).ravel())
        columns: dict[str, Any] = {
            'file': pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys[:, 0]))]),
            'pixels': pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys[:, 1]))]),
            'feature': pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
        }
        table = pa.table(columns).replace_schema_metadata({_MADE_BY: self._made_by.encode()})
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        # Named by content: two processes that encode the same images write the same file.
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:24]
        write_whole(self.path / f'{name}{_SUFFIX}', sink.getvalue())

    def _read(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Keys (n, 2) and features (n, d) of a file; the features stay on disk until they are asked for."""
        try:
            with pa.memory_map(str(file)) as source:
                table = pa.ipc.open_file(source).read_all()
            made_by = (table.schema.metadata or {}).get(_MADE_BY, b'').decode()
            if made_by != self._made_by:
                raise ModelError(f'The feature cache {str(file)!r} was made by another model or with another native_px.', 'Remove the file.')
            table = table.combine_chunks()
            keys = np.stack([_fixed(table[name].chunk(0)) for name in ('file', 'pixels')], axis=1)
            features = table['feature'].chunk(0)
            values = features.values.to_numpy(zero_copy_only=True).reshape(-1, features.type.list_size)
        except (pa.ArrowInvalid, KeyError, OSError, ValueError, IndexError, AttributeError) as error:
            raise ModelError(f'The feature cache {str(file)!r} is damaged: {first_line(error)}.', 'Remove the file; its features are made again.') from error
        return keys, values


def _fixed(column: Any) -> np.ndarray:
    buffer = column.buffers()[1]
    return np.frombuffer(buffer, dtype='S32', count=len(column), offset=32 * column.offset)


def _content_key(content: bytes | np.ndarray) -> bytes:
    return _pixel_key(content) if isinstance(content, np.ndarray) else hashlib.sha256(content).digest()


def _pixel_key(image: np.ndarray) -> bytes:
    return hashlib.sha256(f'{image.shape}'.encode() + np.ascontiguousarray(image).tobytes()).digest()


def _decoded(content: bytes, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        return decode_rgb(io.BytesIO(content))
    except UnidentifiedImageError as error:  # its message is the address of a buffer
        raise DataError(f'The image {name!r} cannot be read: Pillow does not know its format.', 'Replace or remove the file.') from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f'The image {name!r} cannot be read: {error}.', 'Replace or remove the file.') from error
