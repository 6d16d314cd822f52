"""The contract of a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.store.plan import Part, Request

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.real_images import RealImages

Images = np.ndarray | Sequence[np.ndarray]
"""Images of a batch: (B, H, W, 3) uint8, or B arrays (H, W, 3) uint8 of any sizes."""


@dataclass(frozen=True)
class Made:
    """Images of a batch with what the generator itself says of them, for a generator that judges what it makes.

    Attributes:
        images: see `Images`.
        reasons: place in the batch -> why the image is rejected. A reason given here goes before those of inspectors.
        scores: score columns by name, each (B,) floats, or (B, k) of lists; stored like those of inspectors.
    """

    images: Images
    reasons: Mapping[int, str] = field(default_factory=dict)
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def with_images(made: Images | Made, change: Callable[[Images], Images]) -> Images | Made:
    """What was made of a batch with its images changed, their verdicts kept."""
    return replace(made, images=change(made.images)) if isinstance(made, Made) else change(made)


class NonFiniteImages(Exception):
    """The network returned NaN or infinity for some images of a batch.

    Attributes:
        images: the whole batch as `generate` would return it; what is at the bad places does not matter.
        bad: index in the batch -> what happened there.
    """

    def __init__(self, images: Images | Made, bad: Mapping[int, str]) -> None:
        super().__init__(f'{len(bad)} of {len(images)} images are not finite')
        self.images, self.bad = images, dict(bad)


def finished(make: Callable[[], Images | Made], change: Callable[[Images], Images]) -> Images | Made:
    """What `make` returns with its images changed; so are those of a batch that is not finite.

    Raises:
        NonFiniteImages: `make` did.
    """
    try:
        return with_images(make(), change)
    except NonFiniteImages as found:
        raise NonFiniteImages(with_images(found.images, change), found.bad) from None


class Generator(ABC):
    """Turns requests into images. Registered in `GENERATORS`; its constructor arguments are the recipe's options.

    Life: `__init__` and `check` read no weights and refuse what cannot work; `prepare` does what the plan depends on and takes long;
    `requests` runs on CPU; `setup` is called once in the process that generates; weights load at the first `generate`. Class names, prompts and seeds come from
    the request, never from global state. The noise of a request depends on its seed alone.
    """

    keeps_pixels = False
    """Whether images may hold pixels of their sources that must stay as they are, to the byte: the edit of an object leaves the rest alone."""

    needs_sources = False
    """Whether every request starts from a real image."""

    real_images: RealImages | None = None
    """The recipe's real images, if it names any: the engine sets them before `check`."""

    @property
    def network_images(self) -> int:
        """Images that went through a network so far, all steps together: the number of function evaluations. 0 where nobody counts."""
        return 0

    @property
    def network_flop(self) -> float | None:
        """Floating-point operations of these evaluations, forward passes alone; None where nobody counts, such as on a CPU."""
        return None

    def model_classes(self) -> Sequence[str] | None:
        """Names of the classes that the model can make, read without loading weights; None when it takes any."""
        return None

    def check(self, classes: Sequence[str]) -> None:  # noqa: B027  nothing to check is a fine default
        """Refuse (ModelError, RecipeError) what cannot work for these class names, before any weights load."""

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:  # noqa: B027
        """Get ready to plan, after `check` has passed for these classes: have prompts written, say. The second call finds it done.

        say: called with one sentence when a user should know something, such as how far a long preparation has got.
        """

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON that, with the request, decides the pixels: every resolved option, and the weights' SHA-256.

        A key `model` (with `name`, `sha256`, `licence`, `revision` where known) is copied to the store's card.
        """

    @abstractmethod
    def requests(self, part: Part, recipe_seed: int) -> Iterator[Request]:
        """The endless, deterministic sequence of the requests for one part of a block: those of one class.

        The engine takes as many as that class needs; what other parts and other blocks take changes nothing. `request_id` and
        `request_seed` give each its id and its seed, by the number that it has in this sequence.
        """

    def bucket(self, request: Request) -> Hashable:
        """Requests with equal buckets may share a batch."""
        return None

    def whole_source(self, request: Request) -> bool:
        """Whether the request's image shows all of its source (squashed if need be), so that it may be stretched to the source's shape."""
        return False

    def setup(self, device: torch.device, real_images: RealImages | None = None) -> None:
        """Where to run, and where sources are read from."""
        self.device, self.real_images = device, real_images

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> Images | Made:
        """Make the images of one batch (one bucket), which may hold requests of several classes.

        Returns: (B, H, W, 3) uint8 RGB on the CPU, or a list of (H, W, 3) of different sizes; or these with the generator's own verdicts and
        scores, see `Made`.

        Raises:
            NonFiniteImages: some images are not finite.
            torch.OutOfMemoryError: the batch is too large; the engine halves it and calls again.
        """
