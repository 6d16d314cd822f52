"""All metrics of a set of images against one set of real ones, with what decides them: the network, k, and how many images there were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import DataError
from synthaug_plugins.evaluation.metrics.coverage import covered, density, in_any
from synthaug_plugins.evaluation.metrics.diversity import within_classes
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
    'spread': Metric('spread', 'diversity within class: mean distance of two images of one class, the mean over classes'),
    'vendi': Metric(
        'Vendi',
        'diversity within class: the number of different images that a class seems to hold (Friedman and Dieng 2023, cosines), the mean over classes; '
        'grows with the number of images',
    ),
    'agreement': Metric('label, k-NN', 'images whose label most of their k nearest real images have', True),
    'zero_shot': Metric('label, CLIP', 'images whose label the CLIP finds most probable, told the classes by their names', True),
    'clip_score': Metric('CLIP score', '100 max(cos, 0) of image and name of its class (Hessel et al. 2021; scaled as in torchmetrics)'),
    'probe': Metric(
        'probe',
        'held-out real images that a linear probe knows: logistic regression (C = 1) on the features, from the real mean and of length one, of this set alone; '
        'in the first line of the real images',
        True,
    ),
    'cas': Metric(
        'CAS',
        'held-out real images that a classifier knows which trained on this set alone (classification accuracy score, Ravuri and Vinyals 2019); in the '
        'first line on the real images, in as many steps',
        True,
    ),
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
        k, lof_k: neighbours; of the local outlier factor, None where there is none.
        n, n_real: images of the set, and real images that it was measured against.
        values: by name of `METRICS`; a metric that cannot be had of this set is left out.
        clip: text of the CLIP that was asked for labels, None where none was.
        n_test: held-out images that classifiers were tested on, 0 where none was.
    """

    features: str
    k: int
    lof_k: int | None
    n: int
    n_real: int
    values: Mapping[str, Value]
    clip: str | None = None
    n_test: int = 0

    def with_values(self, values: Mapping[str, Value], n_test: int) -> Measures:
        """These and what tests on held-out images said."""
        return replace(self, values=_ordered({**self.values, **values}), n_test=n_test) if values else self

    def plain(self) -> dict[str, Any]:
        """As JSON: the attributes, with `values` as `{name: {'mean': ..., 'se': ...}}`."""
        values = {name: {'mean': value.mean, 'se': value.se} for name, value in self.values.items()}
        sizes = {'n': self.n, 'n_real': self.n_real, 'n_test': self.n_test}
        return {'features': self.features, 'clip': self.clip, 'k': self.k, 'lof_k': self.lof_k, **sizes, 'values': values}


@dataclass(frozen=True)
class Seen:
    """A set of images beside the real ones.

    Attributes:
        features: (M, D) as given.
        points: (M, D) float64, as neighbours are sought.
        labels: (M,) what the images are labelled.
        each: what each image has, (M,), by the name of a metric that is a mean over images; NaN for an image without rarity.
    """

    features: np.ndarray
    points: Tensor
    labels: np.ndarray
    each: Mapping[str, np.ndarray]


class Reference:
    """Real images that others are measured against.

    Args:
        features: (N, D) of the real images.
        labels: (N,) of the real images, from 0.
        network: text of the network that made the features.
        k: neighbours of all metrics but the local outlier factor.
        lof_k: neighbours of that; None: without it.
        device: where neighbours are sought; a device without float64 stands for the CPU.
        clip: text of the CLIP that labels are asked of.

    Attributes:
        of_real: what each real image has among the others, by metric, (N,).

    Raises:
        DataError: k or lof_k is larger than the number of other real images, or these have all the same features.
        MissingExtra: torchmetrics or scikit-learn is not installed.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, network: str, k: int, lof_k: int | None, device: torch.device, clip: str | None = None
    ) -> None:
        import torch

        for neighbours in (k, *([] if lof_k is None else [lof_k])):
            check_k(neighbours, len(features) - 1, 'other real images')
        self.network, self.k, self.lof_k, self.labels, self.clip = network, k, lof_k, labels, clip
        self._device = on(device)
        raw = torch.from_numpy(features).to(self._device).double()
        self._origin = raw.mean(0)
        self._points = points(raw, self._origin)
        self._radii = nearest(self._points, self._points, k, same=True)[0][:, -1]
        if not bool((self._radii > 0).any()):
            raise DataError(f'Every real image has {k} others with the same features in {network!r}: nothing can be told apart.', 'Use another network.')
        self._lof = None if lof_k is None else LocalOutlierFactor(features, lof_k)
        self._features, self._distances = features, Distances(features)
        self.of_real = self._each(self._points, self._lof.of_real() if self._lof else None, labels, same=True)

    @property
    def has_copies(self) -> bool:
        """Whether the local outlier factor says nothing, see `LocalOutlierFactor`."""
        return self._lof is not None and self._lof.copies

    def rarest(self, n: int) -> np.ndarray:
        """Places of the n real images with the largest AvgkNN, largest first."""
        return np.argsort(-self.of_real['avg_knn'], kind='stable')[:n]

    def see(self, features: np.ndarray, labels: np.ndarray, told: Mapping[str, np.ndarray] | None = None) -> Seen:
        """Compare each image of a set with the real ones.

        Args:
            features: (M, D) of the same network.
            labels: (M,) what the images are labelled, as the real ones are.
            told: (M,) for each metric that others say of the images, see `labels.clip_agreement`; in place of one found here where it is of that name.
        """
        import torch

        made = points(torch.from_numpy(features).to(self._device), self._origin)
        each = self._each(made, self._lof(features) if self._lof else None, labels, same=False)
        return Seen(features, made, labels, {**each, **(told or {})})

    def measure(self, seen: Seen, at: np.ndarray | None = None, fid: bool = True) -> Measures:
        """Measure a set of images, or those at some places of it.

        Args:
            fid: whether the Frechet distance is wanted: the slowest of all for wide features.
        """
        at = np.arange(len(seen.features)) if at is None else at
        made, features = seen.points[at], seen.features[at]
        values = _means({name: each[at] for name, each in seen.each.items()})
        values['coverage'] = Value(share(covered(made, self._points, self._radii)).mean)
        if len(made) > self.k:
            radii = nearest(made, made, self.k, same=True)[0][:, -1]
            values['recall'] = Value(share(in_any(held(self._points, made, radii))).mean)
        if len(made) > 1:
            values['kid'] = Value(self._distances.kid(features))
            if fid:
                values['fid'] = Value(self._distances.fid(features))
        return self._measures(features, made, seen.labels[at], values)

    def of_itself(self, told: Mapping[str, np.ndarray] | None = None) -> Measures:
        """Measure the real images, each against all others: what an image that is real has in the mean.

        Recall, coverage and distances of whole sets are left out: a set has no distance to itself. A part held out has, see `measure`.
        """
        return self._measures(self._features, self._points, self.labels, _means({**self.of_real, **(told or {})}))

    def _measures(self, features: np.ndarray, made: Tensor, labels: np.ndarray, values: Mapping[str, Value]) -> Measures:
        """What was found, with the diversity of the set itself."""
        import torch

        diverse = within_classes(torch.from_numpy(features).to(self._device).double(), made, labels)
        ordered = _ordered({**values, **{name: Value(value) for name, value in diverse.items()}})
        return Measures(self.network, self.k, self.lof_k, len(made), len(self._points), ordered, self.clip)

    def _each(self, images: Tensor, lof: np.ndarray | None, labels: np.ndarray, same: bool) -> dict[str, np.ndarray]:
        """What each image has of the metrics that are means over images."""
        distances, places = nearest(images, self._points, self.k, same)
        balls = held(images, self._points, self._radii, same)
        each = {
            'avg_knn': avg_knn(distances),
            'rarity': rarity(balls),
            'excluded': ~in_any(balls),
            'precision': in_any(balls),
            'density': density(balls, self.k),
            'agreement': neighbours_label(self.labels[places.cpu().numpy()]) == labels,
        }
        return each if lof is None else {**each, 'lof': lof}


def _ordered(values: Mapping[str, Value]) -> dict[str, Value]:
    return {name: values[name] for name in METRICS if name in values}


def _means(each: Mapping[str, np.ndarray]) -> dict[str, Value]:
    """Means over images; rarity over those that have one."""
    known = {name: values[~np.isnan(values)] if name == 'rarity' else values for name, values in each.items()}
    return {name: share(values) if METRICS[name].percent else _mean(values) for name, values in known.items() if len(values)}


def _mean(each: np.ndarray) -> Value:
    """Mean over images and its standard error, sd / sqrt(n)."""
    return Value(float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None)


def share(each: np.ndarray) -> Value:
    """Share of images of which something holds, percent, with its standard error."""
    return _mean(100.0 * each)
