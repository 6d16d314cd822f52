"""The contract of an inspector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from synthaug_plugins.store.plan import Request


@dataclass(frozen=True)
class Verdicts:
    """What an inspector says of a batch.

    Attributes:
        reasons: per image, why it is rejected, or None to keep it.
        scores: score columns by name, (B,) floats each; they are stored beside the index columns, kept or not.
    """

    reasons: Sequence[str | None]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)


class Inspector(ABC):
    """Looks at finished images. Registered in `INSPECTORS`; its constructor arguments are the recipe's options."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON that decides its verdicts: resolved options and model hashes. Part of the plan's fingerprint."""

    @abstractmethod
    def inspect(self, requests: Sequence[Request], images: Sequence[np.ndarray]) -> Verdicts:
        """Judge one batch. images: (H, W, 3) uint8 each. May run in a thread beside the network."""
