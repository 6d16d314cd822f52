"""What the generators share that start from real images: which request starts from which, and where the images are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from synthaug_plugins.errors import DataError
from synthaug_plugins.generators.base import Generator, Images, Made
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.plan import Part, Request, request_id, request_seed


class OfSources(Generator):
    """Every request is of a real image, its `source`.

    The requests of a class go through all its real images once, then again with new seeds, and so on: n images of a quota M * n get M
    variants each, whatever the block size.
    """

    needs_sources = True

    @abstractmethod
    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str | None, dict[str, Any]]:
        """Prompt and params of a part's request, by its number there. `seed` is the request's own, see `request_seed`."""

    def requests(self, part: Part, recipe_seed: int) -> Iterator[Request]:
        for number in count():
            seed, source = request_seed(recipe_seed, part, number), part.source(number)
            yield Request(request_id(part, number), part.label, part.class_name, seed, source, *self.tell(part, number, recipe_seed, seed))


class SourceGenerator(OfSources):
    """Edits images: `edit` turns the images that it is given into new ones. As a generator it is given the requests' real images."""

    keeps_shape = False
    """Whether every edit shows all of what it was given, so that a mask of the one fits the other."""

    @abstractmethod
    def edit(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Images | Made:
        """Make the images of one batch (one bucket), each from the image at its place.

        Args:
            requests: what to make; where `source` lies does not matter.
            images: (H, W, 3) uint8 each, of any size. One that is asked for may be read from disk then, so keep none and ask seldom.

        Returns, raises: see `Generator.generate`.
        """

    def generate(self, requests: Sequence[Request]) -> Images | Made:
        for request in requests:
            if self.real_images is None or request.source is None:
                raise DataError(f'The request {request.id} has no real image to start from.', 'Give the folder of real images.')
        assert self.real_images is not None
        return self.edit(requests, _Sources(self.real_images, [str(r.source) for r in requests]))


class _Sources(Sequence[np.ndarray]):
    """The real images of a batch, each read when it is asked for: as a whole, a batch of photos of 50 megapixels would take 5 GB."""

    def __init__(self, real_images: RealImages, ids: Sequence[str]) -> None:
        self._real_images, self._ids = real_images, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, place: Any) -> Any:
        return self._real_images.load(self._ids[place])
