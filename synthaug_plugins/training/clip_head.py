"""A linear head that starts as a CLIP's zero-shot classifier (He et al., ICLR 2023, classifier tuning)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmpretrain.models.heads import LinearClsHead

from synthaug_plugins.curation.class_prompts import ClassPrompts
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.registry import MODELS

INITS = ('text', 'random')


@MODELS.register_module()
class ClipHead(LinearClsHead):
    """logits = W f / |f| + b, in float32 whatever precision the tower runs in.

    `init_weights` sets W_k = s e_k, e_k the normalised mean of class k's normalised prompt features and s the CLIP's own scale (about 100), and
    b = 0. Both train; the scale is part of W, whose norm is free afterwards. So an untrained head gives open_clip's zero-shot logits.

    Args:
        classes: class names in label order, as the data set has them.
        model, pretrained, revision, quick_gelu: the CLIP, see `ClipModel`; the one whose image features it gets.
        templates, dataset, names, hints: what its text tower is told of a class, see `ClassPrompts`; several templates are averaged.
        init: 'text' as above, or 'random' (normal, standard deviation 0.01).
        **head: options of LinearClsHead (loss, topk, cal_acc).

    Raises:
        ModelError, DataError, RecipeError: an unknown or incomplete CLIP, classes that cannot be named or told apart, a prompt that is too long; when
            a checkpoint is loaded whose head was tuned on the features of another CLIP or for other classes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        model: str,
        pretrained: str | None = None,
        revision: str | None = None,
        quick_gelu: bool | None = None,
        templates: str | Sequence[str] | None = None,
        dataset: str | None = None,
        names: str | None = None,
        hints: bool = True,
        init: str = 'text',
        **head: Any,
    ) -> None:
        if init not in INITS:
            raise RecipeError(f'ClipHead: init = {init!r} is unknown.', "Use 'text' or 'random'.")
        if len(classes) < 2:
            raise RecipeError(f'ClipHead: classes = {list(classes)} are fewer than two.', 'Name every class of the data set, in its order.')
        clip = ClipModel(model, pretrained, revision, quick_gelu)
        clip.check()
        super().__init__(num_classes=len(classes), in_channels=clip.embed_dim, **head)
        self.classes, self.init, self._clip = tuple(classes), init, clip
        self._prompts = ClassPrompts(templates, dataset, names, hints)
        self._prompts.check(self.classes, clip)
        # Stands in checkpoints. As bytes in a buffer it survives every tool that knows tensors only.
        digest = bytes.fromhex(str(clip.identity()['sha256']))
        self.register_buffer('clip_sha256', torch.tensor(list(digest), dtype=torch.uint8))
        digest = hashlib.sha256(json.dumps(self.classes).encode()).digest()
        self.register_buffer('classes_sha256', torch.tensor(list(digest), dtype=torch.uint8))

    def init_weights(self) -> None:
        """Set the weights; loads the CLIP for `init='text'`."""
        super().init_weights()
        if self.init == 'random':
            return
        self._clip.load(self.fc.weight.device)
        text = self._clip.class_embeddings(self._prompts.of(self.classes))
        with torch.no_grad():
            self.fc.weight.copy_(self._clip.logit_scale * text)
            self.fc.bias.zero_()

    def pre_logits(self, feats: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Unit vectors (B, d) float32 of the tower's last output."""
        return torch.nn.functional.normalize(feats[-1].float(), dim=-1)

    def forward(self, feats: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Logits (B, N) float32."""
        with torch.autocast(feats[-1].device.type, enabled=False):
            return self.fc(self.pre_logits(feats))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        found, weight = state_dict.get(f'{prefix}clip_sha256'), state_dict.get(f'{prefix}fc.weight')
        if found is not None and not torch.equal(found.cpu(), self.clip_sha256.cpu()):
            raise ModelError(f'The checkpoint holds a head for another CLIP than {self._clip.name!r}.', 'Name the CLIP that it was tuned on.')
        if weight is not None and weight.shape != self.fc.weight.shape:
            raise ModelError(
                f'The checkpoint holds a head of {len(weight)} classes and {weight.shape[1]} features, the recipe one of {len(self.classes)} and '
                f'{self.in_channels}.',
                'Give the classes and the CLIP that it was tuned on.',
            )
        found = state_dict.get(f'{prefix}classes_sha256')
        if found is not None and not torch.equal(found.cpu(), self.classes_sha256.cpu()):
            raise ModelError('The checkpoint holds a head for classes of other names, or in another order.', 'Give the classes that it was tuned on.')
        super()._load_from_state_dict(state_dict, prefix, *rest)
