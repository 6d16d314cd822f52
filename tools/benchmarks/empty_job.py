"""A job that does nothing: what an executor itself costs for each task. In a module of its own, which workers can import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class EmptyJob:
    """Its result has the size of what a worker says of a block."""

    name = 'task'

    def shared(self) -> dict[str, Any]:
        """For ranks of torchrun."""
        return {}

    def start(self, device: str) -> Callable[[int], dict[str, float]]:
        """Nothing to get ready."""
        return lambda task: {'kept': task, 'made': task, 'seconds': 0.1, 'network_images': 1000, 'batch_size': 64}
