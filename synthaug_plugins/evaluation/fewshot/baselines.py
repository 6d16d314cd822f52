"""The baselines of few-shot tuning: what CLIP knows of the names, what the shots add without tuning the encoder, and a tuned head held back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.evaluation.fewshot.accuracy import merits, top1
from synthaug_plugins.evaluation.fewshot.cross_modal import cross_modal
from synthaug_plugins.evaluation.fewshot.linear_probe import linear_probe
from synthaug_plugins.evaluation.fewshot.task import Fitted, Task, linear
from synthaug_plugins.evaluation.fewshot.tip_adapter import tip_adapter, tip_adapter_f

SHARES = tuple(i / 10 for i in range(11))
"""WiSE-FT's mixing coefficients, 0 to 1."""


class Baseline(Protocol):
    """A method: equal tasks and seeds give equal logits, whatever was drawn from torch's global generator before."""

    def __call__(self, task: Task, seed: int) -> Fitted:
        """Fit on the shots, choose on validation."""


def zero_shot(task: Task, seed: int) -> Fitted:
    """CLIP as it is: z_k = s cos(f, text_k) (Radford et al. 2021, section 3.1).

    Args:
        seed: not used, nothing is random.
    """
    return Fitted(task.zero_shot, {}, top1(task.zero_shot(task.val.features), task.val.labels))


def wise_ft(task: Task, weight: Tensor, bias: Tensor, alpha: float | None = None) -> Fitted:
    """WiSE-FT (Wortsman et al., CVPR 2022, section 3) of a tuned head: (1 - alpha) zero-shot + alpha tuned, in weights, which for a linear head is
    the same in logits.

    Args:
        weight: (N, d) of the tuned head, with the scale folded in: it started at s * text, as He et al. tune it.
        bias: (N,).
        alpha: 0 (zero-shot) to 1 (tuned). Default: the best of 0, 0.1, ..., 1 on validation; a tie goes to the one that changes zero-shot least (see
            `merits`). The paper recommends 0.5 where nothing can be chosen on.

    Raises:
        DataError: weights or biases of another shape than the zero-shot head's.
        RecipeError: alpha outside of 0 to 1.
    """
    N, d = task.text.shape
    if weight.shape != (N, d) or bias.shape != (N,):
        raise DataError(
            f'The tuned head has weights {tuple(weight.shape)} and biases {tuple(bias.shape)}.', f'The zero-shot head of this task has {(N, d)} and {(N,)}.'
        )
    if alpha is not None and not 0 <= alpha <= 1:
        raise RecipeError(f'alpha = {alpha} is outside of 0 to 1.', 'Leave it out to choose on validation, or give 0.5, which the paper recommends.')
    weight, bias, zero, val = weight.detach().float(), bias.detach().float(), task.logit_scale * task.text, task.val
    shares = SHARES if alpha is None else (alpha,)
    heads = [linear((1 - a) * zero + a * weight, a * bias) for a in shares]
    found = merits(torch.stack([head(val.features) for head in heads]), val.labels, task.zero_shot(val.features))
    best = found.index(max(found))
    return Fitted(heads[best], {'alpha': shares[best]} if alpha is None else {}, found[best][0])


BASELINES: Mapping[str, Baseline] = {
    'zero_shot': zero_shot,
    'linear_probe': linear_probe,
    'tip_adapter': tip_adapter,
    'tip_adapter_f': tip_adapter_f,
    'cross_modal': cross_modal,
}
"""By name, in the order of a table. WiSE-FT is not among them: it needs a tuned head."""
