"""Guidance by gradients with respect to the noisy image: of a classifier, or of the model's own disagreement with itself.

Both follow the unscaled form D + w sigma^2 grad_x f(x; sigma), see `guidance`; a normalised gradient has lost its length, and with it the units. It is
taken in variance-preserving coordinates, x_vp = x / sqrt(1 + sigma^2), in which all states have about unit variance, so that one weight serves all noise
levels: grad_x = grad_vp / sqrt(1 + sigma^2), and w sigma^2 / sqrt(1 + sigma^2) grad_vp / |grad_vp| grows like sigma, as the noise itself does. The published
weights are meant in these coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from synthaug_plugins.diffusion.denoiser import Denoiser
from synthaug_plugins.diffusion.guidance import Term, column, copied
from synthaug_plugins.errors import ModelError, RecipeError, nearest

Normalise = Literal['norm', 'max']
NORMS = ('norm', 'max')


def check_normalise(name: str, normalise: Any) -> None:
    """Refuse (RecipeError) what is neither None nor one of `NORMS`."""
    if normalise is not None and normalise not in NORMS:
        raise RecipeError(f'{name}: normalise = {normalise!r} is unknown.', f'{nearest(str(normalise), NORMS)} Or None, for the gradient as it is.')


@dataclass(frozen=True)
class ClassifierGradient(Term):
    """Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233): delta = sigma^2 grad_x log p(cond | x; sigma).

    With weight 1 and the exact classifier an unconditional denoiser becomes the conditional one. Minority guidance (Um et al. 2024, arXiv 2301.12334) is
    this term with a classifier of levels.

    Args:
        log_prob: `log_prob(x, sigma, cond) -> (B,)`, the log-probability of each sample's condition given its noisy image, in the
            denoiser's coordinates (x = image + sigma * noise). It runs with gradients, also under no_grad and inference_mode.
        normalise: None; 'norm', each sample's gradient by its Euclidean norm; 'max', by its largest absolute value. Then delta is
            sigma^2 / sqrt(1 + sigma^2) times that, see the module.

    Raises:
        RecipeError: an unknown normalise.
    """

    log_prob: Callable[[Tensor, Tensor, Any], Tensor]
    normalise: Normalise | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalise(type(self).__name__, self.normalise)

    def delta(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Any, D: Tensor, second: Tensor | None) -> Tensor:
        """See `Term.delta`. One call of the classifier forwards and backwards, none of the denoiser.

        Raises:
            ModelError: the classifier does not return one number per sample, or one that has no gradient.
        """
        # Copies, since tensors that were made in inference mode take no part in gradients.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            gradient = _gradient('log_prob', self.log_prob(leaf, sigma.clone(), copied(cond)), leaf)
        return scaled_gradient(gradient.to(D.dtype), sigma, self.normalise)


@dataclass(frozen=True)
class SelfGuided(Term):
    """Self-guided minority sampling (Um and Ye, ECCV 2024, arXiv 2407.11555): away from what the model would make of its own guess.

    The guess x0 = D(x; sigma_t) is noised again to a fixed level and denoised, x0' = D(x0 + sigma n; sigma), which is held fixed: where both differ the
    model loses what is rare about x0. delta = sigma_t^2 / sqrt(1 + sigma_t^2) g / max|g| with g = grad_x distance(x0, x0'), each sample by its own maximum.
    x0 is not clamped: a pixel at the end of its range would have no gradient.

    It acts at some steps only. There D's own call keeps its activations and runs backwards, too, and one call is added: about three times an ordinary
    step, and the memory of a training step. Heun meets a level twice, at the end of one step and at the beginning of the next, and
    the term acts in both, so that its share of a step is the trapezoid rule's.

    Args:
        distance: `distance(a, b) -> (B,)`, differentiable, of images (B, C, H, W) in about [-1, 1].
        noise: `noise(step) -> (B, C, H, W)` unit normal.
        levels: step -> the noise level of its first call; the steps at which it acts.
        sigma: the level to which x0 is noised again.

    Raises:
        RecipeError: a sigma that is not positive.
    """

    differentiates: ClassVar[bool] = True

    distance: Callable[[Tensor, Tensor], Tensor]
    noise: Callable[[int], Tensor]
    levels: Mapping[int, float]
    sigma: float = 6.5
    _table: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma < float('inf'):
            raise RecipeError(f'SelfGuided: sigma = {self.sigma!r} is not a positive number.', 'Use 6.5; between 2 and 25 works for images in [-1, 1].')
        object.__setattr__(self, '_table', torch.tensor([*self.levels.values()], dtype=torch.float64, device='cpu'))

    def inside(self, sigma: Tensor) -> Tensor:
        """See `Term.inside`: at one of the levels, too."""
        return super().inside(sigma) & self._at(sigma).any(dim=-1)

    def _at(self, sigma: Tensor) -> Tensor:
        """Which level each sigma is: bool, of sigma's shape and one axis more."""
        table = self._table.to(sigma.device, sigma.dtype)
        return (sigma[..., None] - table).abs() <= 1e-6 * table

    def delta(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Any, D: Tensor, second: Tensor | None) -> Tensor:
        """See `Term.delta`. One call of the denoiser; backwards through the one that made D.

        Raises:
            ModelError: the distance is not one number per sample, or has no gradient.
        """
        with torch.no_grad():
            guess = D.detach() + self.sigma * self._noise(sigma, D)
            again = denoiser(guess, torch.tensor(self.sigma, dtype=torch.float64, device='cpu'), cond).to(D.dtype)
        with torch.inference_mode(False), torch.enable_grad():
            # Kept, since another term may go the same way back.
            gradient = _gradient('distance', self.distance(D, again.clone()), x, keep=True)
        return scaled_gradient(gradient.to(D.dtype), sigma, 'max')

    def _noise(self, sigma: Tensor, x: Tensor) -> Tensor:
        """Each sample's noise of the step at which it is."""
        at, found = self._at(sigma), torch.zeros_like(x)
        for number, step in enumerate(self.levels):
            here = at[..., number]
            if bool(here.any()):
                noise = self.noise(step).to(x.dtype)
                found = torch.where(column(here, x), noise, found) if here.ndim else noise
        return found


def scaled_gradient(gradient: Tensor, sigma: Tensor, normalise: Normalise | None) -> Tensor:
    """What a gradient with respect to x adds to D: sigma^2 g, or, where it is normalised, sigma^2 / sqrt(1 + sigma^2) g / |g| per sample.

    Args:
        gradient: (B, C, H, W). A sample whose gradient is 0 everywhere gets 0.
        sigma: (B,) or 0-dim.
        normalise: see `ClassifierGradient`.
    """
    s = column(sigma, gradient)
    if normalise is None:
        return s**2 * gradient
    flat = gradient.flatten(1)
    length = flat.norm(dim=1) if normalise == 'norm' else flat.abs().amax(dim=1)
    length = torch.where(length > 0, length, torch.ones_like(length))
    return s**2 / (1 + s**2).sqrt() * (gradient / column(length, gradient))


def _gradient(name: str, numbers: Tensor, x: Tensor, keep: bool = False) -> Tensor:
    """The gradient of each sample's number with respect to its image. keep: keep the graph."""
    if numbers.shape != x.shape[:1]:
        raise ModelError(f'{name} returned the shape {tuple(numbers.shape)} for {len(x)} samples.', 'It returns one number per sample.')
    if not numbers.requires_grad:
        raise ModelError(f'{name} returned numbers without a gradient.', 'Work them out from x without no_grad, detach or argmax.')
    # Samples do not meet in the sum: each gets the gradient of its own term.
    return torch.autograd.grad(numbers.sum(), x, retain_graph=keep)[0]
