"""Logistic regression on image features alone (Radford et al. 2021, appendix A.3): what the shots say without any text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from synthaug_plugins.evaluation.fewshot.accuracy import top1
from synthaug_plugins.evaluation.fewshot.task import Fitted, Labelled, Task, linear

PER_DECADE = 8
COARSE = range(-6 * PER_DECADE, 6 * PER_DECADE + 1, 2 * PER_DECADE)
"""The search's first values, as log10 C in eighths: C = 1e-6, 1e-4, ..., 1e6."""

MAX_ITERATIONS = 1000


def linear_probe(task: Task, seed: int) -> Fitted:
    """Multinomial logistic regression on unit features; its L2 strength 1 / C is chosen on validation.

    C is searched as published: seven values from 1e-6 to 1e6, then twice as finely around the best, down to eight steps per decade. A tie goes to
    the smaller C, the stronger regularisation. The paper takes the features before CLIP's projection; these are those after it, of unit length.

    Args:
        seed: not used, the optimum is unique.
    """
    val, N = task.val, len(task.classes)
    tried: dict[int, tuple[float, Tensor, Tensor]] = {}

    def attempt(eighth: int) -> None:
        if eighth not in tried and COARSE[0] <= eighth <= COARSE[-1]:
            near = min(tried, key=lambda other: (abs(other - eighth), other), default=None)
            weight, bias = logistic_regression(task.train, N, 10 ** (eighth / PER_DECADE), start=None if near is None else tried[near][1:])
            tried[eighth] = top1(linear(weight, bias)(val.features), val.labels), weight, bias

    def best() -> int:
        return max(tried, key=lambda eighth: (tried[eighth][0], -eighth))

    for eighth in COARSE:
        attempt(eighth)
    step = PER_DECADE
    while step >= 1:
        peak = best()
        attempt(peak - step)
        attempt(peak + step)
        step //= 2
    val_top1, weight, bias = tried[best()]
    return Fitted(linear(weight, bias), {'C': 10 ** (best() / PER_DECADE)}, val_top1)


def logistic_regression(shots: Labelled, N: int, C: float, start: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Minimise C sum_i CE(W f_i + b, y_i) + ||W||^2 / 2 by L-BFGS with strong Wolfe conditions, in float64. The bias is not penalised.

    Args:
        shots: n features and labels.
        N: number of classes.
        C: inverse strength of the penalty, as in scikit-learn.
        start: W and b of a problem nearby, to be faster.

    Returns: W (N, d) and b (N,), float64.
    """
    # The optimal W is a combination of the n features, so we search in an orthonormal basis of their span: n instead of d unknowns for each class.
    basis, coordinates = torch.linalg.qr(shots.features.double().T)
    x, n = coordinates.T, len(shots)
    weight, bias = start or (x.new_zeros(N, len(basis)), x.new_zeros(N))
    w, b = (weight @ basis).requires_grad_(), bias.clone().requires_grad_()
    # The gradient shrinks with C n, so the tolerance is that of the mean loss.
    optimiser = torch.optim.LBFGS([w, b], max_iter=MAX_ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-12, history_size=20, line_search_fn='strong_wolfe')

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = cross_entropy(x @ w.T + b, shots.labels) + w.square().sum() / (2 * C * n)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[arg-type]
    return w.detach() @ basis.T, b.detach()
