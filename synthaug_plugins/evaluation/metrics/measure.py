"""All metrics of a set of images against one set of real ones, with what decides them: the network, k, and how many images there were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import DataError
from synthaug_plugins.evaluation.metrics.coverage import covered, density, in_any
from synthaug_plugins.evaluation.metrics.frechet import SUBSET_SIZE, SUBSETS, Distances
from synthaug_plugins.evaluation.metrics.labels import neighbours_label
from synthaug_plugins.evaluation.metrics.neighbours import check_k, held, nearest, on, points
from synthaug_plugins.evaluation.metrics.rarity import LocalOutlierFactor, avg_knn, rarity

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """What a number is called and means.

    Attributes:
        title: at the head of a column.
        about: in a sentence.
        percent: whether it is a share of images, in percent.
    """

    title: str
    about: str
    percent: bool = False


METRICS: Mapping[str, Metric] = {
    'avg_knn': Metric('AvgkNN', 'mean distance to the k nearest real images: higher is rarer'),
    'lof': Metric('LOF', 'local outlier factor among the real images (scikit-learn; its own k): about 1 inside, higher is rarer'),
    'rarity': Metric('rarity', 'rarity score (Han et al. 2023): radius of the smallest real k-neighbour ball that holds the image; higher is rarer'),
    'excluded': Metric('excluded', 'images in no real ball, which have no rarity score: rarity means little where they are many', True),
    'precision': Metric('precision', 'images in some real k-neighbour ball (Kynkaanniemi et al. 2019)', True),
    'recall': Metric('recall', "real images in some k-neighbour ball of the set's own (Kynkaanniemi et al. 2019)", True),
    'density': Metric('density', 'real balls that hold an image, over k (Naeem et al. 2020): about 1 for images like the real ones'),
    'coverage': Metric('coverage', 'real images with one of the set in their ball (Naeem et al. 2020)', True),
    'fid': Metric('FID', 'Frechet distance of the features (torchmetrics): lower is nearer; higher the fewer images there are'),
    'kid': Metric('KID', f'kernel distance of the features (torchmetrics; up to {SUBSETS} subsets of at most {SUBSET_SIZE}): lower is nearer; unbiased'),
    'agreement': Metric('label, k-NN', 'images whose label most of their k nearest real images have', True),
    'zero_shot': Metric('label, CLIP', 'images whose label the CLIP finds most probable, told the classes by their names', True),
}


@dataclass(frozen=True)
class Value:
    """A number and its standard error over the images, None where it is no mean over them (recall, coverage, distances of whole sets) or of a single image.

    The real images are taken as given: the error says how far the mean of another such draw of images would lie.
    """

    mean: float
    se: float | None = None


@dataclass(frozen=True)
class Measures:
    """What was found of one set.

    Attributes:
        features: text of the feature network.
        k, lof_k: neighbours; of the local outlier factor.
        n, n_real: images of the set, and real images that it was measured against.
        values: by name of `METRICS`; a metric that cannot be had of this set is left out.
    """

    features: str
    k: int
    lof_k: int
    n: int
    n_real: int
    values: Mapping[str, Value]

    def plain(self) -> dict[str, Any]:
        """As JSON: the attributes, with `values` as `{name: {'mean': ..., 'se': ...}}`."""
        values = {name: {'mean': value.mean, 'se': value.se} for name, value in self.values.items()}
        return {'features': self.features, 'k': self.k, 'lof_k': self.lof_k, 'n': self.n, 'n_real': self.n_real, 'values': values}


@dataclass(frozen=True)
class Seen:
    """A set of images beside the real ones.

    Attributes:
        features: (M, D) as given.
        points: (M, D) float64, as neighbours are sought.
        each: what each image has, (M,), by the name of a metric that is a mean over images; NaN for an image without rarity.
    """

    features: np.ndarray
    points: Tensor
    each: Mapping[str, np.ndarray]


class Reference:
    """Real images that others are measured against.

    Args:
        features: (N, D) of the real images.
        labels: (N,) of the real images, from 0.
        network: text of the network that made the features.
        k: neighbours of all metrics but the local outlier factor.
        lof_k: neighbours of that.
        device: where neighbours are sought; a device without float64 stands for the CPU.

    Attributes:
        of_real: what each real image has among the others, by metric, (N,).

    Raises:
        DataError: k or lof_k is larger than the number of other real images, or these have all the same features.
        MissingExtra: torchmetrics or scikit-learn is not installed.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, network: str, k: int, lof_k: int, device: torch.device) -> None:
        import torch

        for neighbours in (k, lof_k):
            check_k(neighbours, len(features) - 1, 'other real images')
        self.network, self.k, self.lof_k, self.labels = network, k, lof_k, labels
        self._device = on(device)
        raw = torch.from_numpy(features).to(self._device).double()
        self._origin = raw.mean(0)
        self._points = points(raw, self._origin)
        self._radii = nearest(self._points, self._points, k, same=True)[0][:, -1]
        if not bool((self._radii > 0).any()):
            raise DataError(f'Every real image has {k} others with the same features in {network!r}: nothing can be told apart.', 'Use another network.')
        self._lof = LocalOutlierFactor(features, lof_k)
        self._distances = Distances(features)
        self.of_real = self._each(self._points, self._lof.of_real(), labels, None, same=True)

    @property
    def has_copies(self) -> bool:
        """Whether the local outlier factor says nothing, see `LocalOutlierFactor`."""
        return self._lof.copies

    def rarest(self, n: int) -> np.ndarray:
        """Places of the n real images with the largest AvgkNN, largest first."""
        return np.argsort(-self.of_real['avg_knn'], kind='stable')[:n]

    def see(self, features: np.ndarray, labels: np.ndarray, zero_shot: np.ndarray | None = None) -> Seen:
        """Compare each image of a set with the real ones.

        Args:
            features: (M, D) of the same network.
            labels: (M,) what the images are labelled, as the real ones are.
            zero_shot: (M,) what a CLIP says of them.
        """
        import torch

        made = points(torch.from_numpy(features).to(self._device), self._origin)
        return Seen(features, made, self._each(made, self._lof(features), labels, zero_shot, same=False))

    def measure(self, seen: Seen, at: np.ndarray | None = None) -> Measures:
        """Measure a set of images, or those at some places of it."""
        made, features = (seen.points, seen.features) if at is None else (seen.points[at], seen.features[at])
        values = _means({name: each if at is None else each[at] for name, each in seen.each.items()})
        values['coverage'] = Value(_share(covered(made, self._points, self._radii)).mean)
        if len(made) > self.k:
            radii = nearest(made, made, self.k, same=True)[0][:, -1]
            values['recall'] = Value(_share(in_any(held(self._points, made, radii))).mean)
        if len(made) > 1:
            values['fid'], values['kid'] = Value(self._distances.fid(features)), Value(self._distances.kid(features))
        return self._measures(len(made), values)

    def of_itself(self, zero_shot: np.ndarray | None = None) -> Measures:
        """Measure the real images, each against all others: what an image that is real has in the mean.

        Recall, coverage and distances of whole sets are left out: a set has no distance to itself. A part held out has, see `measure`.
        """
        return self._measures(len(self._points), _means(self.of_real if zero_shot is None else {**self.of_real, 'zero_shot': zero_shot == self.labels}))

    def _measures(self, n: int, values: Mapping[str, Value]) -> Measures:
        ordered = {name: values[name] for name in METRICS if name in values}
        return Measures(self.network, self.k, self.lof_k, n, len(self._points), ordered)

    def _each(self, images: Tensor, lof: np.ndarray, labels: np.ndarray, zero_shot: np.ndarray | None, same: bool) -> dict[str, np.ndarray]:
        """What each image has of the metrics that are means over images."""
        distances, places = nearest(images, self._points, self.k, same)
        balls = held(images, self._points, self._radii, same)
        each = {
            'avg_knn': avg_knn(distances),
            'lof': lof,
            'rarity': rarity(balls),
            'excluded': ~in_any(balls),
            'precision': in_any(balls),
            'density': density(balls, self.k),
            'agreement': neighbours_label(self.labels[places.cpu().numpy()]) == labels,
        }
        return each if zero_shot is None else {**each, 'zero_shot': zero_shot == labels}


def _means(each: Mapping[str, np.ndarray]) -> dict[str, Value]:
    """Means over images; rarity over those that have one."""
    known = {name: values[~np.isnan(values)] if name == 'rarity' else values for name, values in each.items()}
    return {name: _share(values) if METRICS[name].percent else _mean(values) for name, values in known.items() if len(values)}


def _mean(each: np.ndarray) -> Value:
    """Mean over images and its standard error, sd / sqrt(n)."""
    return Value(float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None)


def _share(each: np.ndarray) -> Value:
    """Share of images of which something holds, percent, with its standard error."""
    return _mean(100.0 * each)
