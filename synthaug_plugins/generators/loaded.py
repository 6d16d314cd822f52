"""Models with their weights, each read once for all generators that share them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from synthaug_plugins.executors.base import beat
from synthaug_plugins.models.base import Model

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.diffusion import CallCounter


class LoadedModels:
    """What was loaded so far, by what decides what a model makes: its identity, with learned words and all else, and how it is run.

    Models that differ in anything share nothing: each has its weights for itself.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[Model, CallCounter]] = {}

    def get(self, model: Model, device: torch.device, precision: str) -> tuple[Model, CallCounter]:
        """The equal model that was loaded first, or this one, loaded now; and its denoiser.

        Args:
            precision: see `models.base.check_precision`.

        Raises:
            ModelError: the weights cannot be read.
        """
        from synthaug_plugins.diffusion import CallCounter
        from synthaug_plugins.diffusion.precision import network_dtype

        key = json.dumps([model.identity(), model.run_as(), str(device), precision], sort_keys=True)
        if key not in self._found:
            # Only of GPUs does anybody know how many operations they could do (`evaluation/onepage/cost.py`).
            count_work = device.type == 'cuda' and not model.run_as().get('compile')
            self._found[key] = model, CallCounter(model.load(device, network_dtype(precision, device)), beat, count_work)
        return self._found[key]

    @property
    def images(self) -> int:
        """Images that went through their networks so far."""
        return sum(counter.images for _, counter in self._found.values())

    @property
    def flop(self) -> float | None:
        """Floating-point operations of their forward passes so far; None where one of them did not count, see `CallCounter`."""
        counted = [counter.flop for _, counter in self._found.values() if counter.images]
        return None if None in counted else sum(one for one in counted if one is not None)
