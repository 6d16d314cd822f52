"""Class by class: images of one class against the real images of that class alone, where there are enough of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.errors import DataError
from synthaug_plugins.evaluation.metrics.measure import Measures, Reference, Seen

if TYPE_CHECKING:
    import torch

_OF_ALL = ('agreement', 'zero_shot', 'clip_score')
"""What is asked among all classes, of an image of one class too."""


class ClassReferences:
    """A `Reference` for each class that has more than k real images.

    A class's Frechet distance is given only where both sides have more images than features: the covariance of n images has a rank of n - 1 at most,
    and the distance is biased upwards by an amount that falls like 1/n and differs between generators (Chong and Forsyth, CVPR 2020), so that at few images
    it says how many there are. KID has no such bias (Binkowski et al. 2018) and is always given. LOF needs more than its k real images.

    Args:
        features, labels: (N, D) and (N,) of the real images.
        classes: their names.
        network, k, lof_k, device, clip: see `Reference`.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        network: str,
        k: int,
        lof_k: int,
        device: torch.device,
        clip: str | None = None,
    ) -> None:
        self._classes, self._k, self._width = classes, k, features.shape[1]
        self._of: dict[int, Reference] = {}
        self._copies: list[str] = []
        self._small: dict[str, None] = {}
        self._no_fid: dict[str, None] = {}
        self._no_lof: list[str] = []
        for label, name in enumerate(classes):
            at = np.flatnonzero(labels == label)
            if len(at) <= k:
                self._small[f'{name} (real: {len(at)})'] = None
                continue
            own_k = lof_k if len(at) > lof_k else None
            if own_k is None:
                self._no_lof.append(name)
            try:
                self._of[label] = Reference(features[at], labels[at], network, k, own_k, device, clip)
            except DataError as error:  # copies of one image: nothing can be told apart in this class
                self._copies.append(f'No lines of {name}. {error.what}')

    def of_real(self, whole: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[int, Measures]:
        """Measure the real images of each class, each against all others of its class.

        Args:
            whole: what each real image has among all, by metric, (N,).
            labels: (N,).
        """
        return {label: reference.of_itself(_told(whole, labels == label)) for label, reference in self._of.items()}

    def measure(self, name: str, seen: Seen) -> dict[int, Measures]:
        """Measure the images of each class of a set that holds more than k of it.

        Args:
            name: what sentences call the set.
            seen: the set beside all real images.
        """
        found = {}
        for label, reference in self._of.items():
            at = np.flatnonzero(seen.labels == label)
            if len(at) <= self._k:
                self._small[f'{self._classes[label]} ({name}: {len(at)})'] = None
                continue
            enough = min(len(at), len(reference.labels)) > self._width
            if not enough:
                self._no_fid[self._classes[label]] = None
            one = reference.see(seen.features[at], seen.labels[at], _told(seen.each, at))
            found[label] = reference.measure(one, fid=enough)
        return found

    @property
    def left_out(self) -> list[str]:
        """Sentences on classes and metrics that are left out, of all that was measured so far."""
        said = list(self._copies)
        if self._small:
            said.append(f'No line of a class with k = {self._k} images or fewer: {_some(list(self._small))}.')
        if self._no_fid:
            said.append(
                f'No FID of a class, of which it needs more than {self._width} images and as many real ones, as many as there are features: with fewer '
                f'their number decides it (Chong and Forsyth 2020). KID has no such bias. So for {_some(list(self._no_fid))}.'
            )
        if self._no_lof:
            said.append(f'No LOF of a class with fewer real images than it has neighbours: {_some(self._no_lof)}.')
        return said


def _told(each: Mapping[str, np.ndarray], at: np.ndarray) -> dict[str, np.ndarray]:
    return {name: each[name][at] for name in _OF_ALL if name in each}


def _some(names: Sequence[str], most: int = 6) -> str:
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
