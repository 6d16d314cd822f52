"""The timm side: stores beside the images of timm's own datasets, for own training loops and, by `launch`, for timm's unmodified train.py."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded when asked for: the launcher decides which timm is imported, and does so before any of these.
_HOME = {
    'MixClassificationTask': 'task',
    'MixedImageDataset': 'mixed_dataset',
    'MixedTarget': 'target',
    'create_mixed_dataset': 'mixed_dataset',
    'create_mixed_loader': 'loader',
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
