"""The model inside of what MMEngine wraps around it for several processes."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper


def bare(model: Any) -> Any:
    """The model itself, where DistributedDataParallel or another wrapper of MMEngine is around it; names of layers and weights are those of the recipe."""
    return model.module if is_model_wrapper(model) else model
