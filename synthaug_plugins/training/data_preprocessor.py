"""MMPretrain's preprocessor, made safe for batches of mixed samples."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.structures import DataSample

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.registry import MODELS


@MODELS.register_module()
class MixDataPreprocessor(ClsDataPreprocessor):
    """A `ClsDataPreprocessor` that looks at every sample of a batch, not only at the first.

    If any sample has a soft label (`gt_score`), the others get their one-hot label as one: the stock class would raise, or
    silently train on hard labels, depending on which sample stands first. Sample weights that differ are refused together
    with batch augments (Mixup, CutMix), which blend images that would count differently. Otherwise it is the stock class.
    """

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """As the stock class. Raises RecipeError on differing sample weights with batch augments."""
        samples = data.get('data_samples')
        if samples and isinstance(samples[0], DataSample):
            fill_scores(samples)
            if training and self.batch_augments is not None and len({s.get('sample_weight', 1.0) for s in samples}) > 1:
                raise RecipeError(
                    'Batch augments (Mixup, CutMix) blend images, and the samples of this batch have different loss weights.',
                    "Remove the batch augments, or use a mode without weights, such as 'per_batch'.",
                )
        return super().forward(data, training)


def fill_scores(samples: list[DataSample]) -> None:
    """Give every sample a `gt_score`, (K,) float32, if any has one; in place."""
    scored = next((s for s in samples if 'gt_score' in s), None)
    if scored is None:
        return
    for sample in samples:
        if 'gt_score' not in sample:
            hot = torch.zeros_like(scored.gt_score)
            hot[sample.gt_label] = 1.0
            sample.set_gt_score(hot)
