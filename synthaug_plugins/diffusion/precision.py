"""In what precision networks run, and float32 that is float32."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LOCK = threading.Lock()
_asking = 0  # how many are inside of `full_float32`, in whatever threads
_before: list[tuple[Any, str, Any]] = []  # (where, switch, value) as it was before the first of them


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32 out of float32 convolutions and matrix products.

    cuDNN rounds the inputs of float32 convolutions to 10 mantissa bits by default. A sampler divides differences by small
    sigmas, where that shows; and images must not depend on the kind of GPU more than they have to.

    The switches are the process's, not a thread's. So the first who asks turns TF32 off and the last who leaves turns it back:
    an inspector's network beside the sampler's has full float32 whoever of the two ends first.
    """
    global _asking
    with _LOCK:
        if not _asking:
            _before[:] = _turn_off()
        _asking += 1
    try:
        yield
    finally:
        with _LOCK:
            _asking -= 1
            if not _asking:
                for where, switch, value in _before:
                    setattr(where, switch, value)


def _turn_off() -> list[tuple[Any, str, Any]]:
    """Turn TF32 off; how the switches were."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    switches = [(matmul, 'allow_tf32'), (cudnn, 'allow_tf32')]
    off: bool | str = False
    try:
        before = [(*switch, getattr(*switch)) for switch in switches]
    except RuntimeError:
        # Somebody used the newer switches (torch 2.9), and torch refuses to read the older ones then.
        switches, off = [(matmul, 'fp32_precision'), (cudnn.conv, 'fp32_precision')], 'ieee'
        before = [(*switch, getattr(*switch)) for switch in switches]
    for switch in switches:
        setattr(*switch, off)
    return before


def settled_precision(precision: str, device: torch.device) -> str:
    """'auto' as what it is on a device: 'bf16' on GPUs that have it, else 'fp32'. Any other precision is its own."""
    if precision != 'auto':
        return precision
    return 'bf16' if device.type == 'cuda' and torch.cuda.is_bf16_supported() else 'fp32'


def network_dtype(precision: str, device: torch.device) -> torch.dtype:
    """In which a network runs. precision: 'fp32', 'bf16', 'fp16', or 'auto', see `settled_precision`."""
    return {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[settled_precision(precision, device)]
