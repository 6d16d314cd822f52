"""How well a classifier that saw one set alone knows held-out real images: what such a test says, and the linear probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synthaug_plugins.errors import DataError
from synthaug_plugins.evaluation.metrics.measure import Value, share

if TYPE_CHECKING:
    from torch import Tensor

C = 1.0
"""Inverse strength of the probe's penalty, scikit-learn's default: with it no images are needed to choose it on."""


@dataclass(frozen=True)
class RightAnswers:
    """Those of one classifier on held-out images.

    Attributes:
        right: (N,) images of each class that it knows.
        images: (N,) images of each class.
    """

    right: np.ndarray
    images: np.ndarray

    def value(self, label: int | None = None) -> Value:
        """Share of right answers in percent over all images, or over those of a class, with its standard error over the images: the training is taken as
        given.

        Raises:
            DataError: there are no images.
        """
        right, n = (int(counts.sum() if label is None else counts[label]) for counts in (self.right, self.images))
        if not n:
            raise DataError('There are no held-out images to test on.', 'Give images of every class.')
        return share(np.arange(n) < right)


def linear_probe(made: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, origin: np.ndarray, classes: int) -> RightAnswers:
    """Multinomial logistic regression on the features of a set, tested on held-out ones.

    Features are moved by `origin` and divided by their length, so that the penalty means the same for every network. A class that the set lacks is
    never answered.

    Args:
        made, labels: (n, D) and (n,) of the set.
        test, test_labels: (t, D) and (t,) of the held-out images.
        origin: (D,), the mean of the real features.
        classes: how many there are.

    Raises:
        DataError: an image lies on `origin`, so that it has no direction.
    """
    import torch

    from synthaug_plugins.evaluation.fewshot.linear_probe import logistic_regression
    from synthaug_plugins.evaluation.fewshot.task import Labelled, linear

    def unit(features: np.ndarray) -> Tensor:
        moved = torch.from_numpy(features.astype(np.float64) - origin)
        return torch.nn.functional.normalize(moved, dim=1).float()

    known = np.unique(labels)
    place = np.searchsorted(known, labels)
    weight, bias = logistic_regression(Labelled(unit(made), torch.from_numpy(place)), len(known), C)
    answers = known[linear(weight, bias)(unit(test)).argmax(1).numpy()]
    right, images = (np.bincount(test_labels[of], minlength=classes) for of in (answers == test_labels, slice(None)))
    return RightAnswers(right, images)
