"""What a denoiser generator tells its model of each request: a class label, or a prompt and a guidance scale."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, nearest
from synthaug_plugins.generators.guidance import Guidance, GuidedBatch
from synthaug_plugins.models.base import Model
from synthaug_plugins.store.plan import Part, Request

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion import Denoiser
    from synthaug_plugins.diffusion.guidance import Term
    from synthaug_plugins.models.denoiser_model import DenoiserModel
    from synthaug_plugins.real_images import RealImages


class Conditions(ABC):
    """Between a generator's requests and its model: prompts or labels, and the guidance that goes with them.

    Attributes:
        model: the one that is told.
        image_shape: (C, H, W) in pixels of an image as `Model.encode` takes it.
    """

    model: Model
    image_shape: tuple[int, int, int]

    def classes(self) -> Sequence[str] | None:
        """Names of the classes that the model can be told; None when any."""
        return None

    @abstractmethod
    def check(self, classes: Sequence[str], real_images: RealImages | None = None) -> None:
        """Refuse (ModelError, RecipeError, DataError) what cannot work for these classes, and the recipe's real images, before any weights load."""

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:  # noqa: B027
        """See `Generator.prepare`."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain JSON of its options."""

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str | None, dict[str, Any]]:
        """Prompt and params of a part's request. `seed` is the request's own."""
        return None, {}

    def bucket(self, request: Request) -> Hashable:
        """Requests with equal buckets can be told to the model in one batch."""
        return None

    def check_sampling(self, grids: Sequence[Mapping[str, Any]], from_noise: bool) -> None:  # noqa: B027
        """See `Guidance.check_sampling`."""

    def start(self, requests: Sequence[Request]) -> tuple[list[float], int] | None:
        """See `Guidance.start`."""
        return None

    def begin(self, requests: Sequence[Request]) -> None:  # noqa: B027
        """Get the loaded model ready for a batch of one bucket."""

    @abstractmethod
    def cond(self, requests: Sequence[Request], device: torch.device) -> Any:
        """The condition of a batch, see `diffusion.Denoiser`. After the model's `load`."""

    @abstractmethod
    def terms(self, requests: Sequence[Request], device: torch.device, load: Callable[[DenoiserModel], Denoiser], options: Mapping[str, Any]) -> Sequence[Term]:
        """Guidance of a batch.

        Args:
            load: reads another model's weights onto the device.
            options: of `diffusion.sample`, completed, with which the batch runs.
        """

    def judge(self, requests: Sequence[Request], images: np.ndarray) -> tuple[dict[int, str], dict[str, np.ndarray]] | None:
        """The model's own reasons (by place) and scores (by column) for (B, H, W, 3) uint8 images of a batch; None where it judges none."""
        return None


class LabelConditions(Conditions):
    """Class labels for a model folder of our own.

    Args:
        model: which.
        use_labels: whether it is told the class of each request.
        guidance: built entries of `GUIDANCE`.
        without_labels: whether a recipe may do without labels; then that is offered for a class unknown to the model.
    """

    def __init__(self, model: DenoiserModel, use_labels: bool, guidance: Sequence[Guidance], without_labels: bool = False) -> None:
        self.model: DenoiserModel = model
        self.use_labels, self.guidance, self.without_labels = use_labels, tuple(guidance), without_labels
        self.image_shape = model.size

    def classes(self) -> Sequence[str] | None:
        """See `Conditions.classes`."""
        return self.model.classes if self.use_labels and self.model.classes else None

    def check(self, classes: Sequence[str], real_images: RealImages | None = None) -> None:
        """See `Conditions.check`."""
        self.model.check_weights()
        for guidance in self.guidance:
            guidance.check(self.model, self.use_labels, classes)
        for name in classes if self.use_labels else ():
            if name not in self.model.classes:
                cure = nearest(name, self.model.classes)
                cure = f'{cure} Or set use_labels=False.' if self.without_labels and self.model.runs_without_labels else cure
                raise ModelError(f'The model {self.model.name!r} does not know the class {name!r}.', cure)

    def identity(self) -> dict[str, Any]:
        """See `Conditions.identity`."""
        return {'guidance': [g.identity() for g in self.guidance]}

    def cond(self, requests: Sequence[Request], device: torch.device) -> Tensor | None:
        """The model's own labels (B,) int64, found by class name; None without labels."""
        import torch

        if not (self.use_labels and self.model.takes_labels):
            return None
        return torch.tensor([self.model.classes.index(r.class_name) for r in requests], device=device)

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[None, dict[str, Any]]:
        """See `Conditions.tell`: what guidance says."""
        return None, {key: value for g in self.guidance for key, value in g.tell(part, number, recipe_seed, seed).items()}

    def check_sampling(self, grids: Sequence[Mapping[str, Any]], from_noise: bool) -> None:
        """See `Conditions.check_sampling`."""
        for guidance in self.guidance:
            guidance.check_sampling(self.model, grids, from_noise)

    def start(self, requests: Sequence[Request]) -> tuple[list[float], int] | None:
        """See `Conditions.start`: one entry at most has something to say."""
        return next((start for g in self.guidance if (start := g.start(requests)) is not None), None)

    def terms(self, requests: Sequence[Request], device: torch.device, load: Callable[[DenoiserModel], Denoiser], options: Mapping[str, Any]) -> Sequence[Term]:
        """See `Conditions.terms`."""
        batch = GuidedBatch(self.model, load, requests, device, options)
        terms = [g.term(batch) for g in self.guidance]
        return [term for term in terms if term is not None]
