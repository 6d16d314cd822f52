"""float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32 out of float32 convolutions and matrix products.

    cuDNN rounds the inputs of float32 convolutions to 10 mantissa bits by default. A sampler divides differences by small
    sigmas, where that shows; and images must not depend on the kind of GPU more than they have to.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    switches = [(matmul, 'allow_tf32'), (cudnn, 'allow_tf32')]
    off: bool | str = False
    try:
        before = [getattr(*switch) for switch in switches]
    except RuntimeError:
        # Somebody used the newer switches (torch 2.9), and torch refuses to read the older ones then.
        switches, off = [(matmul, 'fp32_precision'), (cudnn.conv, 'fp32_precision')], 'ieee'
        before = [getattr(*switch) for switch in switches]
    try:
        for switch in switches:
            setattr(*switch, off)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)
