"""Tip-Adapter (Zhang et al., ECCV 2022): a cache of the shots beside the zero-shot head, as it is or with tuned keys."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.fewshot.accuracy import merits
from synthaug_plugins.evaluation.fewshot.task import Fitted, Task

ALPHA, BETA = 1.0, 5.5
"""The paper's defaults: the weight of the cache, and how sharply it looks."""

ALPHAS = tuple(round(0.1 + i * (3 - 0.1) / 20, 4) for i in range(20))
BETAS = tuple(round(0.1 + i * (7 - 0.1) / 200, 4) for i in range(200))
"""The published search for ImageNet, complete: 20 weights from 0.1 to below 3, 200 sharpnesses from 0.1 to below 7. The official configurations of
other data sets go further; one grid for all keeps a table comparable."""

EPOCHS, BATCH = 20, 256


def cache_logits(features: Tensor, keys: Tensor, values: Tensor, beta: float) -> Tensor:
    """exp(-beta (1 - f K^T)) L, equations 3 and 4: features (n, d), keys (m, d), values (m, N) one-hot -> (n, N), from 0 to the shots per class."""
    return _look_up(features @ keys.T, values, beta)


def tip_adapter(task: Task, seed: int) -> Fitted:
    """Tip-Adapter without training, sections 3.1 and 3.2: logits = zero-shot + alpha exp(-beta (1 - f K^T)) L, K the shots' features.

    alpha and beta are chosen on validation; a tie goes to the pair that changes zero-shot least (see `merits`). The official keys are means over
    ten augmented views; ours are the features as they come.

    Args:
        seed: not used, nothing is random.
    """
    return _searched(task, task.train.features)


def tip_adapter_f(task: Task, seed: int, epochs: int = EPOCHS) -> Fitted:
    """Tip-Adapter-F, section 3.3: the keys are tuned on the shots, from the shots' features, with alpha = 1 and beta = 5.5; then as `tip_adapter`.

    AdamW (lr 1e-3, eps 1e-4, PyTorch's weight decay of 0.01), batches of 256, cosine to 0 over all steps. The epoch is chosen on validation, a tie
    as in `tip_adapter`; the official code takes the epoch that is best on the test images. It also sees new augmented views in each epoch; here a
    shot is always the same.

    Args:
        seed: of the order of the shots, which matters once they are more than a batch.
        epochs: 0 or more; 0 is Tip-Adapter.

    Raises:
        RecipeError: negative epochs.
    """
    if epochs < 0:
        raise RecipeError(f'epochs = {epochs} cannot be.', 'Give 0 (Tip-Adapter) or more.')
    train, val, values = task.train, task.val, _values(task)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        prior, before = task.zero_shot(train.features), task.zero_shot(val.features)
    keys = train.features.clone().requires_grad_()
    optimiser = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
    steps = epochs * math.ceil(len(train) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / max(1, steps))) / 2)
    best: tuple[tuple[float, float], int, Tensor] | None = None
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(train), generator=generator).split(BATCH):
            with torch.enable_grad():
                logits = prior[batch] + ALPHA * cache_logits(train.features[batch], keys, values, BETA)
                optimiser.zero_grad()
                cross_entropy(logits, train.labels[batch]).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            after = before + ALPHA * cache_logits(val.features, keys, values, BETA)
        merit = merits(after[None], val.labels, before)[0]
        if best is None or merit > best[0]:
            best = merit, epoch, keys.detach().clone()
    _, epoch, tuned = best or (None, 0, train.features)
    fitted = _searched(task, tuned)
    return Fitted(fitted.logits, {**fitted.chosen, 'epoch': epoch}, fitted.val_top1)


def _searched(task: Task, keys: Tensor) -> Fitted:
    """The cache with these keys (m, d), alpha and beta chosen on validation."""
    val, values = task.val, _values(task)
    with torch.no_grad():
        zero_shot, affinity = task.zero_shot(val.features), val.features @ keys.T
        alphas = torch.tensor(ALPHAS).view(-1, 1, 1)
        tried = []
        for beta in BETAS:
            candidates = zero_shot + alphas * _look_up(affinity, values, beta)
            tried += [(merit, alpha, beta) for merit, alpha in zip(merits(candidates, val.labels, zero_shot), ALPHAS, strict=True)]
    (val_top1, _), alpha, beta = max(tried, key=lambda found: found[0])
    return Fitted(_classifier(task, keys, values, alpha, beta), {'alpha': alpha, 'beta': beta}, val_top1)


def _classifier(task: Task, keys: Tensor, values: Tensor, alpha: float, beta: float) -> Callable[[Tensor], Tensor]:
    return lambda features: task.zero_shot(features) + alpha * cache_logits(features, keys, values, beta)


def _look_up(affinity: Tensor, values: Tensor, beta: float) -> Tensor:
    return torch.exp(-beta * (1 - affinity)) @ values


def _values(task: Task) -> Tensor:
    return one_hot(task.train.labels, len(task.classes)).float()
