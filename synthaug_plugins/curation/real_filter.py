"""Keep an image only if it looks like its own class's real images rather than another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.curation.base import Inspector, Verdicts
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.real_images import RealImages, in_threads
from synthaug_plugins.registry import INSPECTORS
from synthaug_plugins.store.plan import Request

if TYPE_CHECKING:
    import torch

_CHUNK = 64  # real images in memory at once, as many as go through the network together: photos have 36 MB each


@INSPECTORS.register_module()
class RealFilter(Inspector):
    """Real filtering (RF of He et al., ICLR 2023). The paper gives no rule; this one is ours: reject if s_other > s_own + margin.

    f is the CLIP image feature. Mode 'nearest': s_own = max cos(f(x), f(r)) over the real images r of its own class, s_other the same over those
    of all other classes. Mode 'prototype': cosines to the classes' normalised mean features instead, steadier where shots are many.

    While generating each image is judged alone: rejected ones are replaced while tries last, and no class is filled up with what the rule
    refuses. Never to leave a class below 50 is a choice over a finished, scored set: select where `real_other <= real_own or row_number() over
    (partition by class order by real_own - real_other desc) <= 50`.

    Args:
        model, pretrained, revision, quick_gelu: the CLIP, see `ClipModel`. Default: OpenAI's RN50.
        mode: 'nearest' or 'prototype'.
        margin: by how much another class may be closer, in cosine (-2..2); negative: its own class must be closer by that much.

    Scores: `real_own` and `real_other`, s_own and s_other (float32 precision; the rule sees the recorded values).

    Raises:
        RecipeError: a wrong option; in `check`, fewer than two classes.
        DataError: a class without real images, or an unreadable one (while features are made).
        ModelError: see `ClipModel`.
    """

    needs_real_images = True

    def __init__(
        self,
        model: str = 'RN50',
        pretrained: str | None = None,
        mode: str = 'nearest',
        margin: float = 0.0,
        revision: str | None = None,
        quick_gelu: bool | None = None,
    ) -> None:
        if mode not in ('nearest', 'prototype'):
            raise RecipeError(f'RealFilter mode = {mode!r} is unknown.', "Use 'nearest' or 'prototype'.")
        if not -2 <= margin <= 2:
            raise RecipeError(f'RealFilter margin = {margin} is outside [-2, 2].', 'It is a difference of cosines; 0 is the plain rule.')
        self.mode, self.margin = mode, float(margin)
        self.clip = ClipModel(model, pretrained, revision, quick_gelu)

    def check(self, classes: Sequence[str], real_images: RealImages | None) -> None:
        if len(classes) < 2:
            raise RecipeError('RealFilter compares classes, but the recipe has only one.', 'Leave the inspector out.')
        for name in classes:
            if real_images is not None and name not in real_images.classes:
                raise DataError(f'RealFilter: the class {name!r} has no real images.', nearest(name, real_images.classes))
        self.clip.check()

    def setup(self, device: torch.device, classes: Sequence[str], real_images: RealImages | None) -> None:
        self.device, self.classes, self.real_images = device, tuple(classes), real_images
        self._references: torch.Tensor | None = None

    def identity(self) -> Mapping[str, Any]:
        return {'type': 'RealFilter', 'model': dict(self.clip.identity()), 'mode': self.mode, 'margin': self.margin}

    def _load(self) -> torch.Tensor:
        """Unit vectors (R, d) that stand for the classes: one per real image, or one per class. Their labels are in `_owners` (R,)."""
        import torch

        assert self.real_images is not None  # checked when the recipe was prepared
        self.clip.load(self.device)
        references, owners = [], []
        for label, name in enumerate(self.classes):
            ids = self.real_images.ids(name)
            chunks = [ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK)]
            features = torch.cat([self.clip.encode_images(list(in_threads(self.real_images.load, chunk))) for chunk in chunks])
            if self.mode == 'prototype':
                features = torch.nn.functional.normalize(features.mean(0, keepdim=True), dim=-1)
            references.append(features)
            owners += [label] * len(features)
        self._owners = torch.tensor(owners, device=self.device)
        return torch.cat(references)

    def inspect(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Verdicts:
        import torch

        from synthaug_plugins.diffusion import full_float32

        if self._references is None:
            self._references = self._load()
        with full_float32():
            cosines = self.clip.batch_features(images) @ self._references.T
        labels = torch.tensor([request.label for request in requests], device=cosines.device)
        mine = labels[:, None] == self._owners
        own, other = (cosines.masked_fill(~side, -torch.inf).amax(1).cpu().double().numpy() for side in (mine, ~mine))
        reasons = [None if b <= a + self.margin else f'real filter (cos {b:.4f} to another class, {a:.4f} to its own)' for a, b in zip(own, other, strict=True)]
        return Verdicts(reasons, {'real_own': own, 'real_other': other})
