"""Multi-positive contrastive learning: images that were made from one prompt are each other's positives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from mmengine.model import BaseModule
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.registry import MODELS


def multi_positive_loss(
    z: torch.Tensor, groups: torch.Tensor, others: torch.Tensor, groups_of_others: torch.Tensor, own: torch.Tensor, tau: float
) -> torch.Tensor:
    """Mean over i of H(p_i, q_i), with p_i uniform over the other images of i's prompt and q_ij = softmax_j(z_i . z_j / tau) over all others.

    StableRep (Tian et al., NeurIPS 2023), eqs. 1-3.

    Args:
        z: (N, D), of length 1 each.
        groups: (N,) number of each one's prompt.
        others: (M, D), of length 1: what each z is compared with, itself among them.
        groups_of_others: (M,).
        own: (N,) where each z stands among `others`; it is no candidate for itself.
        tau: temperature.

    Raises:
        RecipeError: an image has no positive.
    """
    itself = F.one_hot(own, len(others)).bool()
    positive = (groups[:, None] == groups_of_others) & ~itself
    count = positive.sum(1)
    if not count.all():
        raise RecipeError(
            f'{int((count == 0).sum())} of {len(z)} images of a batch have no other image of their prompt beside them.',
            "Let batch_sampler=dict(type='synthaug_plugins.PromptGroupSampler', images_per_prompt=6) compose the batches.",
        )
    log_q = (z @ others.T / tau).masked_fill(itself, -torch.inf).log_softmax(1)
    return -(log_q.masked_fill(~positive, 0).sum(1) / count).mean()


class _Gathered(torch.autograd.Function):
    """Rows of all processes one after the other; the gradient of a row is the sum of what all processes say of it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.n = len(rows)
        return torch.cat(all_gather(rows))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        all_reduce(grad)
        return grad[get_rank() * ctx.n : (get_rank() + 1) * ctx.n]


@MODELS.register_module()
class MultiPositiveHead(BaseModule):
    """The loss of multi-positive contrastive learning, over the images of all processes.

    Each process's loss compares its own images with those of all. The gradients, which DDP averages, are those of the mean loss over all images.

    Args:
        temperature: tau; 0.1 as published.
        init_cfg: of MMEngine.

    Raises:
        RecipeError: a temperature that is not positive.
    """

    def __init__(self, temperature: float = 0.1, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
            raise RecipeError(f'temperature = {temperature!r} is not a positive number.', 'StableRep takes 0.1.')
        self.temperature = temperature

    def loss(self, z: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """See `multi_positive_loss`. z: (N, D) of any length, N equal on all processes; groups: (N,) int64."""
        z = F.normalize(z.float(), dim=1)
        own = torch.arange(len(z), device=z.device)
        if get_world_size() == 1:
            return multi_positive_loss(z, groups, z, groups, own, self.temperature)
        return multi_positive_loss(z, groups, _Gathered.apply(z), torch.cat(all_gather(groups)), own + get_rank() * len(z), self.temperature)


@MODELS.register_module()
class MultiPositive(BaseSelfSupervisor):
    """StableRep's learning (Tian et al., NeurIPS 2023) as an algorithm of MMPretrain: backbone, projection neck, `MultiPositiveHead`.

    Batches come from a `PromptDataset` by a `PromptGroupSampler`. With MultiView in the pipeline all views of all images of a prompt are positives.
    The neck sees the first images of all prompts, then the second ones, and so on, as in the published code: no statistics of a BatchNorm in it are
    shared by two positives. Checkpoints hold the encoder under `backbone.`.

    Args:
        backbone, neck, head, pretrained, data_preprocessor, init_cfg: as for every self-supervised model of MMPretrain.

    Raises:
        RecipeError: in training, samples that do not know their prompt; further as `multi_positive_loss`.
    """

    def loss(self, inputs: torch.Tensor | list[torch.Tensor], data_samples: list[DataSample], **kwargs: Any) -> dict[str, torch.Tensor]:
        """The loss of a batch. inputs: (N, C, H, W), or a list of such, one for each view."""
        views = inputs if isinstance(inputs, list) else [inputs]
        if any('prompt_group' not in sample for sample in data_samples):
            raise RecipeError('The samples of a batch do not know their prompts.', "Set type='synthaug_plugins.PromptDataset' in the dataset.")
        numbers = np.tile([sample.prompt_group for sample in data_samples], len(views))
        features = self.backbone(torch.cat(views))
        turns = turn_of_each(numbers)
        rows = [torch.from_numpy(np.flatnonzero(turns == turn)).to(views[0].device) for turn in range(turns.max() + 1)]
        z = torch.cat([self.neck(tuple(f[of_turn] for f in features))[0] for of_turn in rows])
        return {'loss': self.head.loss(z, torch.from_numpy(numbers).to(z.device)[torch.cat(rows)])}


def turn_of_each(groups: np.ndarray) -> np.ndarray:
    """How many of the same group come before each one: (N,) int64 to (N,) int64.

    >>> turn_of_each(np.array([7, 7, 3, 7, 3])).tolist()
    [0, 1, 0, 2, 1]
    """
    order = np.argsort(groups, kind='stable')
    first = np.searchsorted(groups[order], groups[order])
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups)) - first
    return turns
