"""One block: requests to batches, batches to images, images to judged and encoded rows."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image

from synthaug_plugins.engine.recipe import Run
from synthaug_plugins.errors import ModelError
from synthaug_plugins.generators.base import NonFiniteImages
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.plan import Block, Request
from synthaug_plugins.store.shard import Row


@dataclass
class BatchSize:
    """Images per network call, remembered over blocks. Halved when memory runs out, never raised again by itself."""

    value: int


def batches(requests: Sequence[Request], bucket: Iterable[object], size: int) -> Iterator[list[int]]:
    """Positions of requests that go through the network together: equal buckets, in order, at most `size` of them."""
    groups: dict[object, list[int]] = {}
    for position, key in enumerate(bucket):
        groups.setdefault(key, []).append(position)
    for positions in groups.values():
        for i in range(0, len(positions), size):
            yield positions[i : i + size]


def _out_of_memory(error: Exception) -> bool:
    # Except for CUDA's own allocator, only the text tells.
    texts = ('out of memory', 'not enough memory', "can't allocate memory", 'ALLOC_FAILED')
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def _generate(run: Run, requests: Sequence[Request], size: BatchSize) -> tuple[list[np.ndarray], dict[int, str]]:
    """Images of one batch, and what is not finite among them by position; in smaller parts where memory asks for it."""
    images: list[np.ndarray] = []
    bad: dict[int, str] = {}
    while len(images) < len(requests):
        part = requests[len(images) : len(images) + size.value]
        try:
            made, made_bad = run.generator.generate(part), {}
        except NonFiniteImages as found:
            made, made_bad = found.images, found.bad
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if len(part) == 1:
                raise ModelError('Memory does not suffice for a single image.', 'Use a smaller model, a lower precision or another device.') from error
            made = None
        if made is None:
            # Outside the except clause: its traceback holds the tensors that must go before the next try.
            size.value = len(part) // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        bad |= {len(images) + i: text for i, text in made_bad.items()}
        images.extend(made)
    return images, bad


def _resized(run: Run, request: Request, image: np.ndarray) -> np.ndarray:
    """The image in the size that the recipe asks for."""
    wanted = run.recipe['image']['size']
    if wanted is None:
        return image
    height, width = image.shape[:2]
    if wanted == 'source':
        assert run.real_images is not None  # checked when the recipe was prepared
        assert request.source is not None
        new_width, new_height = run.real_images.size(request.source)
        if not run.generator.whole_source:
            wanted = min(new_width, new_height)
    if wanted != 'source':
        new_width, new_height = (round(side * wanted / min(width, height)) for side in (width, height))
    if (new_width, new_height) == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))


def _finish(run: Run, requests: Sequence[Request], images: Sequence[np.ndarray], bad: dict[int, str]) -> list[Row]:
    """Inspect and encode a batch. Runs in a thread beside the network."""
    reasons: list[str | None] = [f'not finite ({bad[i]})' if i in bad else None for i in range(len(requests))]
    scores: list[dict[str, float]] = [{} for _ in requests]
    images = [image if i in bad else _resized(run, request, image) for i, (request, image) in enumerate(zip(requests, images, strict=True))]
    finite = [i for i in range(len(requests)) if i not in bad]
    for inspector in run.inspectors if finite else ():
        verdicts = inspector.inspect([requests[i] for i in finite], [images[i] for i in finite])
        for k, i in enumerate(finite):
            reasons[i] = reasons[i] or verdicts.reasons[k]
            scores[i] |= {name: float(column[k]) for name, column in verdicts.scores.items()}
    image = run.recipe['image']
    return [
        Row(
            request=request,
            verdict='rejected' if reasons[i] else 'kept',
            reason=reasons[i],
            suffix=image['format'],
            image=None if i in bad else encode(images[i], image['format'], image['quality']),
            scores=scores[i],
        )
        for i, request in enumerate(requests)
    ]


def make_block(run: Run, block: Block, size: BatchSize, pool: Executor) -> tuple[list[Row], list[np.ndarray]]:
    """Make requests until the block's target is accepted or its tries are spent.

    Each wave asks for exactly the images still missing, so the batch layout depends on the block alone and a redone
    block has the same one.

    Returns: rows and (H, W, 3) uint8 images, in the order of the requests.
    """
    stream = run.generator.requests(block, run.recipe['seed'])
    rows: list[Row] = []
    images: list[np.ndarray] = []
    kept = 0
    while kept < block.target and len(rows) < block.max_tries:
        wave = list(islice(stream, min(block.target - kept, block.max_tries - len(rows))))
        made: list[np.ndarray | None] = [None] * len(wave)
        judged: list[tuple[list[int], Future[list[Row]]]] = []
        for positions in batches(wave, map(run.generator.bucket, wave), size.value):
            requests = [wave[p] for p in positions]
            batch, bad = _generate(run, requests, size)
            judged.append((positions, pool.submit(_finish, run, requests, batch, bad)))
            for p, image in zip(positions, batch, strict=True):
                made[p] = image
        by_position = {p: row for positions, future in judged for p, row in zip(positions, future.result(), strict=True)}
        rows += [by_position[p] for p in range(len(wave))]
        images += [image for image in made if image is not None]
        kept = sum(row.verdict == 'kept' for row in rows)
    return rows, images
