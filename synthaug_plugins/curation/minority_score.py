"""How rare an image is to a diffusion model: the minority score as columns beside the images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.curation.base import Inspector, Verdicts
from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.models.base import check_precision
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.fit import channels_first, place_all
from synthaug_plugins.models.text_model import TextModel, open_model
from synthaug_plugins.registry import DISTANCES, INSPECTORS
from synthaug_plugins.store.plan import Request, purpose_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.models.distances import Distance
    from synthaug_plugins.models.levels import Levels
    from synthaug_plugins.real_images import RealImages

_SIGMA = 6.5
_COMPARED = ('model', 'sigma', 'draws', 'distance', 'labels')
"""What must be equal for scores to have one scale; seed and precision move them by no more than the draws do."""


@INSPECTORS.register_module()
class MinorityScore(Inspector):
    """Minority score (Um, Lee and Ye, ICLR 2024): how far an image is from what a denoiser makes of it at high noise, a mean over seeded draws.

    High scores mark what is rare to the model, and what is broken, noisy or wrongly labelled: put an inspector that checks the label beside it. It rejects
    nothing; select by its columns, as in `where='minority_score > 0.3'`. An image's noise follows from the seed and the image's id alone.

    Images of another size or shape than the model's are cropped to its shape in the middle and resized.

    Args:
        model: `embedded:NAME`, a model folder, or a text-to-image pipeline, which is told the empty prompt.
        sigma: noise level; 6.5 for images in [-1, 1], about the published one. In latents it is relative to their spread, which is about 1.
        draws: of noise for each image. Published: 5.
        distance: an entry of `DISTANCES`. Published: LPIPS by VGG; for images below 32 pixels MSE.
        use_labels: tell the model each image's class. None: where it takes labels.
        precision: 'fp32', 'bf16' or 'fp16', in which the denoiser runs.
        seed: of the noise.
        levels: folder of a level classifier: adds the level that its limits give each score. It must have been learned from scores of the same kind.
        timestep: (index, of), in place of sigma: a step of a process that was respaced to `of` steps; published (60, 100), sigma 6.37.
        schedule: 'linear' or 'cosine', of that process.
        revision, variant: of a pipeline on the hub, see `TextModel`.

    Scores: `minority_score`; `minority_score_se`, its standard error over the draws (none for a single draw); with levels `minority_level`, 0 the most common.

    Raises:
        RecipeError: an option out of range, or two that contradict each other; in `check`, a noise level that the model does not know.
        ModelError: in `check`, no such model, a class that it does not know, no weights for the distance, or a level classifier of other scores.
    """

    def __init__(
        self,
        model: str,
        sigma: float = _SIGMA,
        draws: int = 5,
        distance: Mapping[str, Any] | None = None,
        use_labels: bool | None = None,
        precision: str = 'fp32',
        seed: int = 0,
        levels: str | None = None,
        timestep: Sequence[int] | None = None,
        schedule: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
    ) -> None:
        if not 0 < sigma < math.inf:
            raise RecipeError(f'MinorityScore sigma = {sigma!r} is out of range.', 'Use a number above 0, such as 6.5.')
        for what, value, least in (('draws', draws, 1), ('seed', seed, 0)):
            if value < least:
                raise RecipeError(f'MinorityScore {what} = {value!r} is out of range.', f'Use a whole number of at least {least}.')
        check_precision(precision)
        self.sigma = self._sigma_of(float(sigma), timestep, schedule)
        self.draws, self.use_labels, self.precision, self.seed, self._levels_in = draws, use_labels, precision, seed, levels
        self.distance: Distance = DISTANCES.build(dict(distance or {'type': 'LPIPS', 'network': 'vgg'}))
        self._named = model, {'revision': revision, 'variant': variant}
        self._device: torch.device | None = None

    @staticmethod
    def _sigma_of(sigma: float, timestep: Sequence[int] | None, schedule: str | None) -> float:
        if timestep is None and schedule is None:
            return sigma
        if timestep is None or schedule is None or sigma != _SIGMA:
            what = f'MinorityScore sigma = {sigma:g}, timestep = {timestep!r}, schedule = {schedule!r} do not say one noise level.'
            raise RecipeError(what, "Give sigma alone, or timestep=(60, 100) with schedule='linear'.")
        from synthaug_plugins.diffusion.minority import timestep_sigma

        if not isinstance(timestep, Sequence) or len(timestep) != 2:
            raise RecipeError(f'MinorityScore timestep = {timestep!r} is no pair.', 'Give (index, of), such as (60, 100).')
        index, of = timestep
        return timestep_sigma(index, of, schedule)

    @cached_property
    def model(self) -> DenoiserModel | TextModel:
        """The denoiser's model, known without its weights."""
        name, options = self._named
        return open_model(name, **{key: value for key, value in options.items() if value is not None})

    @cached_property
    def labels(self) -> bool:
        """Whether the model is told each image's class."""
        takes = isinstance(self.model, DenoiserModel) and self.model.takes_labels
        if self.use_labels and not takes:
            raise RecipeError(f'MinorityScore use_labels = True, but the model {self.model.name!r} takes no class labels.', 'Leave it out.')
        if self.use_labels is False and isinstance(self.model, DenoiserModel) and not self.model.runs_without_labels:
            what = f'MinorityScore use_labels = False, but the model {self.model.name!r} was trained without label dropout and cannot run without labels.'
            raise ModelError(what, 'Leave it out.')
        return takes if self.use_labels is None else self.use_labels

    @cached_property
    def levels(self) -> Levels | None:
        """The limits of the level classifier that was named, if one was."""
        if self._levels_in is None:
            return None
        from synthaug_plugins.models.level_classifier import LevelClassifierModel

        classifier = LevelClassifierModel(self._levels_in)
        theirs, ours = classifier.scored_by, self.scored_by()
        for key in self.differs_in(theirs):
            if key in _COMPARED:
                what = f'MinorityScore levels = {self._levels_in!r}: its scores had {key} = {_short(theirs.get(key))}, these have {_short(ours[key])}.'
                raise ModelError(what, 'Score in the same way, or name another level classifier.')
        return classifier.levels

    def check(self, classes: Sequence[str], real_images: RealImages | None) -> None:
        model = self.model
        if model.inpaints:
            raise ModelError(f'MinorityScore model = {model.name!r} paints into masked images.', 'Give an ordinary pipeline.')
        model.check_weights()
        low, high = model.sigma_range
        if not low <= self.sigma <= high:
            raise RecipeError(f'MinorityScore sigma = {self.sigma:g}: {model.name!r} knows noise levels from {low:g} to {high:g}.', 'Choose one of these.')
        if self.labels and isinstance(model, DenoiserModel):
            cure = 'Or set use_labels=False.' if model.runs_without_labels else ''
            _check_known(classes, model.classes, f'MinorityScore: the model {model.name!r} does not know the class', cure)
        self.distance.check(model.image_size)
        if self.levels is not None and isinstance(self.levels.thresholds, Mapping):
            _check_known(classes, list(self.levels.thresholds), f'MinorityScore levels = {self._levels_in!r} ranks within each class, but not the class', '')

    def setup(self, device: torch.device, classes: Sequence[str], real_images: RealImages | None) -> None:
        self._device, self._loaded = device, False

    def scored_by(self) -> dict[str, Any]:
        """Plain JSON that decides the scores: `identity` without the levels."""
        return {
            **{'type': 'MinorityScore', 'model': self.model.origin(), 'labels': self.labels},
            **{'sigma': self._rounded, 'draws': self.draws, 'distance': dict(self.distance.identity())},
            **{'precision': self.precision, 'seed': self.seed},
        }

    def differs_in(self, theirs: Mapping[str, Any]) -> list[str]:
        """In which keys other scores, of which `scored_by` said this, were made in another way. A model is known by its content, not by its name."""
        model = theirs.get('model')
        same_model = isinstance(model, Mapping) and self.model.has_origin(model)
        return [key for key, own in self.scored_by().items() if (not same_model if key == 'model' else theirs.get(key) != own)]

    def identity(self) -> Mapping[str, Any]:
        return {**self.scored_by(), 'levels': None if self.levels is None else self.levels.to_json()}

    @cached_property
    def _rounded(self) -> float:
        """The noise level that the model runs at: the nearest that it knows."""
        import torch

        return float(self.model.round_sigma(torch.tensor(self.sigma, dtype=torch.float64)))

    def _load(self, device: torch.device) -> None:
        from synthaug_plugins.diffusion.precision import network_dtype

        if not self._loaded:
            self.model.load(device, network_dtype(self.precision, device))
            self.distance.setup(device)
            self._loaded = True

    def _cond(self, requests: Sequence[Request], device: torch.device) -> Any:
        import torch

        if isinstance(self.model, TextModel):
            return self.model.conditions([''] * len(requests), negative=True)
        return torch.tensor([self.model.classes.index(r.class_name) for r in requests], device=device) if self.labels else None

    def draw(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Tensor:
        """The distances of a batch, (B, draws) float32 on the device, see `diffusion.minority.minority_scores`. After `setup`.

        Args:
            requests: say id and class of each image.
            images: (H, W, 3) uint8 each, of any sizes.
        """
        import torch

        from synthaug_plugins.diffusion import SampleNoise, full_float32
        from synthaug_plugins.diffusion.minority import minority_scores
        from synthaug_plugins.diffusion.pixels import from_uint8

        assert self._device is not None  # `setup` comes before the first batch
        self._load(self._device)
        model, device = self.model, self._device
        placed = place_all(images, *model.image_size, 'crop')
        pixels = from_uint8(torch.from_numpy(np.stack([channels_first(one.pixels, model.size[0]) for one in placed])).to(device))
        noise = SampleNoise([purpose_seed(self.seed, f'minority {r.id}') for r in requests], model.size, device)
        decode = None if isinstance(model, DenoiserModel) else lambda x: model.decode(x).float()
        with torch.no_grad(), full_float32():
            x0 = model.encode(pixels).float()
            cond = self._cond(requests, device)
            return minority_scores(model.denoiser, x0, self._rounded, noise.step, self.distance, self.draws, cond, decode)

    def inspect(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Verdicts:
        drawn = self.draw(requests, images).double().cpu().numpy()
        means = drawn.mean(1)
        if bad := [r.id for r, mean in zip(requests, means, strict=True) if not math.isfinite(mean)]:
            raise ModelError(f'MinorityScore: the score of {bad[0]!r} is not finite.', "Set precision='fp32', or give a model whose weights are sound.")
        errors = drawn.std(1, ddof=1) / math.sqrt(self.draws) if self.draws > 1 else np.full(len(drawn), math.nan)
        scores = {'minority_score': means, 'minority_score_se': errors}
        if self.levels is not None:
            scores['minority_level'] = self.levels.of(means, [r.class_name for r in requests]).astype(np.float64)
        return Verdicts([None] * len(images), scores)


def _check_known(classes: Sequence[str], known: Sequence[str], what: str, cure: str) -> None:
    for name in classes:
        if name not in known:
            raise ModelError(f'{what} {name!r}.', f'{nearest(name, known)} {cure}')


def _short(value: Any) -> str:
    """An option or an identity, short enough for a sentence."""
    if isinstance(value, Mapping):
        shown = {key: str(own)[:12] if 'sha256' in key else own for key, own in value.items()}
        return json.dumps(shown, ensure_ascii=False)
    return repr(value)
