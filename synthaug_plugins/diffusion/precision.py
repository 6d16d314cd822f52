"""float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32 out of float32 convolutions and matrix products.

    cuDNN rounds the inputs of float32 convolutions to 10 mantissa bits by default. A sampler divides differences by small
    sigmas, where that shows; and images must not depend on the kind of GPU more than they have to.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
