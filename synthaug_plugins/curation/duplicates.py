"""Reject images that are almost the same as another, by perceptual hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from synthaug_plugins.curation.base import Inspector, Verdicts
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.real_images import RealImages, in_threads
from synthaug_plugins.registry import INSPECTORS
from synthaug_plugins.store.plan import Request

if TYPE_CHECKING:
    import torch

BITS = 64
_SIZE, _KEPT = 32, 8  # pixels that are transformed, coefficients per direction that are kept
_COSINES = np.cos(np.pi * np.outer(np.arange(_KEPT), 2 * np.arange(_SIZE) + 1) / (2 * _SIZE))
_SIGNS = np.array([1, -1] * (_KEPT // 2))
_PART = 2048  # hashes compared at once
_BITS_OF = np.array([n.bit_count() for n in range(1 << 16)], np.uint8)


def phash(image: np.ndarray) -> np.uint64:
    """Perceptual hash (Zauner 2010, as the common libraries compute it): grey, 32 x 32, DCT-II, which of the lowest 8 x 8 coefficients lie above
    their median.

    Args:
        image: (H, W, 3) uint8 RGB of any size.

    Returns: 64 bits, of which half are set unless the image is flat.
    """
    return _hash_of(_low_frequencies(image))


def flipped_phashes(image: np.ndarray) -> np.ndarray:
    """(3,) uint64: `phash` of an image, of its mirror image and of it upside down, of which the odd coefficients of one direction have the other sign."""
    low = _low_frequencies(image)
    return np.array([_hash_of(low), _hash_of(low * _SIGNS), _hash_of(low * _SIGNS[:, None])])


def _low_frequencies(image: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(image).convert('L').resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)
    return (_COSINES @ np.asarray(grey, np.float64) @ _COSINES.T).round(6)  # rounded: what is zero but for floating point says nothing


def _hash_of(low: np.ndarray) -> np.uint64:
    middle = np.partition(low, (BITS // 2 - 1, BITS // 2), axis=None)[BITS // 2 - 1 : BITS // 2 + 1].mean()  # np.median takes five times as long
    return np.packbits(low > middle).view('>u8')[0].astype(np.uint64)


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many bits differ: (m,) and (n,) uint64 -> (m, n) uint8."""
    different = a[:, None] ^ b[None, :]
    if hasattr(np, 'bitwise_count'):  # NumPy 2
        return np.bitwise_count(different)
    return _BITS_OF[np.ascontiguousarray(different).view(np.uint16).reshape(*different.shape, 4)].sum(-1, dtype=np.uint8)


def nearest_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits to the nearest of `b`, 64 if it is empty: (m,) and (n,) uint64 -> (m,) int64. In parts that stay in the processor's cache."""
    nearest = np.full(len(a), BITS)
    for i in range(0, len(b), _PART):
        np.minimum(nearest, hamming(a, b[i : i + _PART]).min(1), out=nearest)
    return nearest


@INSPECTORS.register_module()
class NearDuplicates(Inspector):
    """Reject an image whose perceptual hash is within `distance` bits of an earlier image's of its class, or of a real image's.

    Earlier are the images of the same block that this inspector let pass: another block's never count while generating, so that a block that is
    redone is judged alike. `synthaug score` compares over a whole store. Two such inspectors, one `against` each, may stand in one recipe.

    The hash sees brightness patterns of at most four periods across the image. Measured: a JPEG copy that is cropped by a pixel lies 2 bits away
    in the median at 128 pixels, 4 at 64; of the different photos of a class, 0.1 % of EuroSAT's and 1 % of Caltech's have a neighbour within 4
    bits. Where all images have one layout it is coarse: so have 16 % of MedNIST's scans and 8 % of scikit-learn's 8 x 8 digits, of which 1 %
    have one within 2 bits, none within 0. There use `distance=0`, which rejects what looks identical.

    Args:
        distance: largest number of differing bits (0..63) that makes a duplicate; hashes differ by even numbers, mostly.
        against: 'earlier', or 'real': the recipe's real images of all classes, to reject copies of the training data. Real guidance from low
            noise makes near-copies on purpose: do not combine the two.

    Scores: `phash_distance` (against='earlier') or `phash_real_distance`: bits to the nearest of them; 64 if there is none.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(self, distance: int = 4, against: str = 'earlier') -> None:
        if isinstance(distance, bool) or not isinstance(distance, int) or not 0 <= distance < BITS:
            raise RecipeError(f'NearDuplicates distance = {distance!r} is no number of bits from 0 to 63.', 'Use 4; 0 for images of one layout.')
        if against not in ('earlier', 'real'):
            raise RecipeError(f'NearDuplicates against = {against!r} is unknown.', "Use 'earlier' or 'real'.")
        self.distance, self.against = distance, against
        self.needs_real_images = against == 'real'
        self.begin_block()

    def setup(self, device: torch.device, classes: Sequence[str], real_images: RealImages | None) -> None:
        self.classes, self.real_images = tuple(classes), real_images
        self._real: np.ndarray | None = None
        self.begin_block()

    @property
    def remembers(self) -> bool:
        return self.against == 'earlier'

    def begin_block(self) -> None:
        self._earlier: dict[int, np.ndarray] = {}

    def identity(self) -> Mapping[str, Any]:
        return {'type': 'NearDuplicates', 'distance': self.distance, 'against': self.against}

    def inspect(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Verdicts:
        hashes = np.array([phash(image) for image in images], np.uint64)
        if self.against == 'real':
            distances, name, of = nearest_bits(hashes, self._real_hashes()), 'phash_real_distance', 'a real image'
        else:
            distances, name, of = self._to_earlier(hashes, [request.label for request in requests]), 'phash_distance', 'an earlier one'
        reasons = [f'near-duplicate ({d} bits from {of})' if d <= self.distance else None for d in distances]
        return Verdicts(reasons, {name: distances})

    def _to_earlier(self, hashes: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """Bits to the nearest earlier image of the same class that passed; remembers which pass."""
        distances = np.full(len(hashes), BITS)
        for label in dict.fromkeys(labels):
            places = [i for i, own in enumerate(labels) if own == label]
            mine = hashes[places]
            earlier = self._earlier.get(label, np.empty(0, np.uint64))
            found = nearest_bits(mine, earlier)
            among = hamming(mine, mine)
            passed: list[int] = []
            for k in range(len(mine)):
                found[k] = among[k, passed].min(initial=found[k])
                if found[k] > self.distance:
                    passed.append(k)
            self._earlier[label] = np.concatenate([earlier, mine[passed]])
            distances[places] = found
        return distances

    def _real_hashes(self) -> np.ndarray:
        if self._real is None:
            images = self.real_images
            assert images is not None  # checked when the recipe was prepared
            ids = [i for name in self.classes for i in images.ids(name)]
            self._real = np.fromiter(in_threads(lambda i: phash(images.load(i)), ids), np.uint64, len(ids))
        return self._real
