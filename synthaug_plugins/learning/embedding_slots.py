"""The images whose embeddings are being learned: each in a slot of the batch, with its own row, moments, step count and draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion import LogNormal, philox_normal
from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.learning.batches import mix_seed
from synthaug_plugins.learning.embeddings_options import BETAS, EPSILON, EmbeddingTraining
from synthaug_plugins.learning.options import EDMTraining, check_noise, noise_distribution
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.weights import CARD, read_json

if TYPE_CHECKING:
    from synthaug_plugins.models.base import EmbeddingShape
    from synthaug_plugins.models.text_model import TextModel

_GOLDEN = (math.sqrt(5) - 1) / 2
_DRAWN_AT_ONCE = 2**22  # values of noise: few launches of the generator for many steps, and no more than some hundred MB on the way
_STATE = ('rows', 'first', 'second', 'losses')


@dataclass
class AtWork:
    """An image whose embedding is being learned.

    Attributes:
        image_id: see `RealImages`.
        sha256: of its file; with the seed it decides all draws.
        step: how many are done.
    """

    image_id: str
    sha256: str
    step: int = 0


@dataclass(frozen=True)
class State:
    """What learning has of one image, on the CPU: its embedding (N,), the two moments of the gradient (N,), its losses (steps,), 0 where none is yet."""

    rows: Tensor
    first: Tensor
    second: Tensor
    losses: Tensor


class Slots:
    """A batch in which each place holds one image. Nothing of an image depends on the others, and nothing moves but what is there.

    Args:
        model: after `load`.
        shape: of the embeddings.
        options: see `EmbeddingTraining`.
        count: of slots.
        device: where the model is.
        dtype: of the network.

    Attributes:
        images: in the order of the slots; at most `count`.
    """

    def __init__(
        self,
        model: DenoiserModel | TextModel,
        shape: EmbeddingShape,
        options: EmbeddingTraining,
        count: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.shape, self.options, self.device = model, shape, options, device
        self.denoiser: Any = model.denoiser
        self.images: list[AtWork] = []
        n = row_length(shape)
        self._state = {name: torch.zeros(count, options.steps if name == 'losses' else n, device=device) for name in _STATE}
        self._mean, self._deviation = (torch.zeros(count, *model.size, device=device) for _ in range(2))
        self._levels = noise_levels(model)
        # float16 loses gradients as small as those of a mean over all pixels.
        self._scale = float(math.prod(model.size)) if dtype == torch.float16 else 1.0

    def put(self, place: int, image: AtWork, state: State, mean: Tensor, deviation: Tensor) -> None:
        """Give a slot to an image: one that is there, or the next new one.

        Args:
            mean, deviation: (C, h, w) of its latents, see `posteriors`.
        """
        self.images[place : place + 1] = [image]
        for name in _STATE:
            self._state[name][place] = getattr(state, name).to(self.device)
        self._mean[place], self._deviation[place] = mean, deviation

    def remove(self, places: Sequence[int]) -> None:
        """Give up slots; those behind move up."""
        keep = [k for k in range(len(self.images)) if k not in places]
        self.images = [self.images[k] for k in keep]
        index = torch.tensor(keep, dtype=torch.int64, device=self.device)
        for tensor in (*self._state.values(), self._mean, self._deviation):
            tensor[: len(keep)] = tensor[index]

    def tensors(self) -> dict[str, Tensor]:
        """The state of all images, one row each, as `State` names it."""
        return {name: tensor[: len(self.images)] for name, tensor in self._state.items()}

    @property
    def at_once(self) -> int:
        """Steps that `steps` may be asked for."""
        return max(1, _DRAWN_AT_ONCE // (len(self.images) * self.options.draws * 2 * math.prod(self.model.size)))

    def steps(self, count: int) -> Iterator[Tensor]:
        """Take so many steps with all images, without ever waiting for the device; the mean loss of each, a 0-dim tensor on the device.

        Every draw follows from (seed, file, the image's own step). Noise levels are uniform in what the model was trained at and, along an image's
        steps, evenly spread (an additive recurrence by the golden ratio, from an offset of the image), so that the mean losses of two windows compare.
        """
        o, b = self.options, len(self.images)
        own = torch.tensor([image.step for image in self.images]) + torch.arange(count)[:, None]  # (count, b)
        index = (own[..., None] * o.draws + torch.arange(o.draws)).reshape(count, -1)  # (count, b * draws)
        sigma = self._levels((self._of_draws('phase').remainder(2**53).double() / 2**53 + index.double() * _GOLDEN) % 1)
        weight, done = self.denoiser.loss_weight(sigma), own[..., None].double() + 1
        rate, root = o.learning_rate / (1 - BETAS[0] ** done), (1 - BETAS[1] ** done).sqrt()
        noise = self._noise(index)
        sigma = self._there(sigma if self.device.type != 'mps' else sigma.float())
        weight, rate, root, place = self._there(weight.float()), self._there(rate.float()), self._there(root.float()), self._there(own[..., None])
        for k in range(count):
            losses, gradient = self._gradient(sigma[k], weight[k], noise[k])
            self._adamw(gradient, rate[k], root[k])
            self._state['losses'][:b].scatter_(1, place[k], losses[:, None])
            for image in self.images:
                image.step += 1
            yield losses.mean()

    def _of_draws(self, purpose: str) -> Tensor:
        """(b * draws,) int64: a number of each image for a purpose."""
        found = torch.tensor([mix_seed(self.options.seed, image.sha256, purpose) for image in self.images])
        return found.repeat_interleave(self.options.draws)

    def _noise(self, index: Tensor) -> Tensor:
        """(count, b * draws, 2, C, h, w): for the posterior and for the noise level."""
        where, count = torch.device('cpu') if self.device.type == 'mps' else self.device, index.shape[0]
        seeds = self._there(self._of_draws('noise'), where).repeat(count)
        noise = philox_normal(seeds, self._there(index.flatten(), where), 2 * math.prod(self.model.size))
        return noise.reshape(*index.shape, 2, *self.model.size).to(self.device)

    def _there(self, values: Tensor, device: torch.device | None = None) -> Tensor:
        """On the device; from pinned memory, which no kernel in the queue has to be waited for."""
        device = device or self.device
        return values.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else values.to(device)

    @torch.enable_grad()
    def _gradient(self, sigma: Tensor, weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (b,) and their gradients (b, N)."""
        o, b = self.options, len(self.images)
        rows = self._state['rows'][:b].detach().requires_grad_()
        mean, deviation, seen = self._mean[:b], self._deviation[:b], rows
        if o.draws > 1:
            mean, deviation, seen = (t.repeat_interleave(o.draws, dim=0) for t in (mean, deviation, seen))
        z = torch.addcmul(mean, deviation, noise[:, 0])
        x = torch.addcmul(z, sigma.to(z.dtype).reshape(-1, 1, 1, 1), noise[:, 1])
        D = self.denoiser(x, sigma, self.model.embedded(*split_rows(seen, self.shape)))
        losses = ((D - z).square().flatten(1).mean(dim=1) * weight).reshape(b, o.draws).mean(dim=1)
        (gradient,) = torch.autograd.grad(losses.sum() * self._scale, rows)
        return losses.detach(), gradient if self._scale == 1 else gradient / self._scale

    @torch.no_grad()
    def _adamw(self, gradient: Tensor, rate: Tensor, root: Tensor) -> None:
        """One step of AdamW (Loshchilov and Hutter 2019) on every row, each by its own count.

        Args:
            rate: (b, 1) learning rate / (1 - beta_1^t).
            root: (b, 1) sqrt(1 - beta_2^t).
        """
        rows, first, second = (self._state[name][: len(self.images)] for name in ('rows', 'first', 'second'))
        rows.mul_(1 - self.options.learning_rate * self.options.weight_decay)
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        rows.sub_(rate * first / (second.sqrt() / root + EPSILON))


def row_length(shape: EmbeddingShape) -> int:
    """N: values of an embedding, all parts in a row."""
    return shape.tokens * shape.width + (shape.pooled or 0)


def split_rows(rows: Tensor, shape: EmbeddingShape) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, K, d) and pooled vectors (B, p) or None of rows (B, N)."""
    tokens = shape.tokens * shape.width
    return rows[:, :tokens].unflatten(1, (shape.tokens, shape.width)), rows[:, tokens:] if shape.pooled else None


def noise_levels(model: DenoiserModel | TextModel) -> Callable[[Tensor], Tensor]:
    """Noise levels (float64) of draws from [0, 1): uniform over the whole timesteps of a pipeline; as it was trained for a model of our own.

    EDM's P_mean and P_std are those that the model's card names, else the published ones.

    Raises:
        ModelError: the card names others than numbers in their range.
    """
    if not isinstance(model, DenoiserModel):
        denoiser = model.denoiser
        first, last = denoiser.training_timesteps
        return lambda uniform: denoiser.sigma_of(first + (uniform * (last - first + 1)).floor().clamp(max=last - first))
    distribution = noise_distribution(model.config, _trained_as(model))
    if isinstance(distribution, LogNormal):
        return lambda uniform: distribution(torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))
    return distribution


def _trained_as(model: DenoiserModel) -> EDMTraining:
    """How the model's card says that it was trained, as far as noise levels go."""
    card = model.folder / CARD
    said: Any = read_json(card) if card.is_file() else {}
    for key in ('training', 'options'):
        said = said.get(key) if isinstance(said, dict) else None
    options = EDMTraining(1, **{key: said[key] for key in ('P_mean', 'P_std') if key in (said or {})})
    try:
        check_noise(options)
    except RecipeError as error:
        raise ModelError(f'The card of {model.name!r} is damaged: {error.what}', 'Correct it, or leave its entry `training` out.') from error
    return options
