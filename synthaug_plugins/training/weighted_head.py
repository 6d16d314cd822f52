"""Loss weights per sample for the classification heads of MMPretrain, which know none."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from mmengine.registry import MODELS as ALL_MODELS
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.registry import MODELS


class WeightedLoss:
    """Mixed into a head: hands each sample's `sample_weight` to the loss module.

    Where all weights are 1 the loss is computed exactly as without it.
    """

    loss_module: torch.nn.Module

    def _get_loss(self, cls_score: torch.Tensor, data_samples: list[DataSample], **kwargs: Any) -> dict[str, torch.Tensor]:
        weights = [float(s.get('sample_weight', 1.0)) for s in data_samples]
        if any(w != 1.0 for w in weights):
            check_loss(self.loss_module)  # SwitchRecipeHook may have exchanged it
            kwargs['weight'] = torch.tensor(weights, dtype=torch.float32, device=cls_score.device)
        return super()._get_loss(cls_score, data_samples, **kwargs)  # type: ignore[misc]


@MODELS.register_module(name='WeightedHead')
def weighted_head(base: str | type, **options: Any) -> ClsHead:
    """Build the head `base` with per-sample loss weights: `head=dict(type='synthaug_plugins.WeightedHead', base='LinearClsHead', ...)`.

    Loss = sum_i(weight_i * loss_i) / N, N the batch size. The result is an instance of a subclass of `base`, with the same
    parameters and the same names in checkpoints.

    Args:
        base: the head's own type.
        **options: its options, unchanged.

    Raises:
        RecipeError: an unknown head, one that computes its loss in its own way, or a loss module that takes no weights.
    """
    head = _weighted(_head_class(base))(**options)
    check_loss(head.loss_module)
    return head


def _head_class(base: str | type) -> type:
    if inspect.isclass(base):
        return base
    with ALL_MODELS.switch_scope_and_registry(None) as registry:
        cls = registry.get(base)
    if cls is None:
        raise RecipeError(f'WeightedHead: the head {base!r} is unknown.', nearest(str(base), registry.module_dict))
    return cls


@functools.cache
def _weighted(cls: Any) -> type:
    if not issubclass(cls, ClsHead) or cls._get_loss is not ClsHead._get_loss or cls.loss is not ClsHead.loss:
        raise RecipeError(
            f'The head {cls.__name__} computes its loss in its own way, so samples cannot be weighted.',
            "Use LinearClsHead or VisionTransformerClsHead, or a mode without weights, such as 'per_batch' with synthetic_weight=1.",
        )
    return type(f'Weighted{cls.__name__}', (WeightedLoss, cls), {'__module__': __name__, '__doc__': f'{cls.__name__} with per-sample loss weights.'})


def check_loss(loss: torch.nn.Module) -> None:
    """Refuse a loss module whose forward has no argument `weight` (RecipeError)."""
    if 'weight' not in inspect.signature(loss.forward).parameters:
        raise RecipeError(f'The loss {type(loss).__name__} takes no sample weights.', 'Use CrossEntropyLoss, LabelSmoothLoss or FocalLoss.')
