"""One block: requests to batches, batches to images, images to judged and encoded rows."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from types import TracebackType
from typing import Self

import numpy as np
import torch
from PIL import Image

from synthaug_plugins.engine.judge import Verdict, judge, out_of_memory, score_of
from synthaug_plugins.engine.recipe import Run
from synthaug_plugins.errors import ModelError
from synthaug_plugins.executors.base import beat
from synthaug_plugins.generators.base import Made, NonFiniteImages
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.plan import Block, Part, Request
from synthaug_plugins.store.shard import KEPT, REJECTED, Row


@dataclass(frozen=True)
class _Made:
    """An image, what the generator itself says of it, and whether its pixels are finite."""

    image: np.ndarray
    verdict: Verdict
    finite: bool


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


def _generate(run: Run, requests: Sequence[Request], size: BatchSize) -> list[_Made]:
    """Images of one batch, in smaller parts where memory asks for it."""
    done: list[_Made] = []
    while len(done) < len(requests):
        part = requests[len(done) : len(done) + size.value]
        bad: dict[int, str] = {}
        beat()
        try:
            made = run.generator.generate(part)
        except NonFiniteImages as found:
            made, bad = found.images, found.bad
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
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
        said = made if isinstance(made, Made) else Made(made)
        scores = [{name: score_of(column, i) for name, column in said.scores.items()} for i in range(len(part))]
        done += [
            _Made(image, Verdict(f'not finite ({bad[i]})') if i in bad else Verdict(said.reasons.get(i), scores[i]), i not in bad)
            for i, image in enumerate(said.images)
        ]
    return done


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
        if not run.generator.whole_source(request):
            wanted = min(new_width, new_height)
    if wanted != 'source':
        new_width, new_height = (round(side * wanted / min(width, height)) for side in (width, height))
    if (new_width, new_height) == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))


class Workers:
    """The threads beside the network. Use it as a context: what is under way is finished at its end, what waits is dropped after an error.

    Attributes:
        inspect: one thread, so that inspectors see a block's images in order and need no locks.
        encode: two threads keep up with one network: PNG of a 512 px image takes about 60 ms, the image itself far longer.
    """

    def __init__(self) -> None:
        self.inspect, self.encode = ThreadPoolExecutor(1, 'inspect'), ThreadPoolExecutor(2, 'encode')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.inspect.shutdown(cancel_futures=kind is not None)  # first: it hands work to the other
        self.encode.shutdown(cancel_futures=kind is not None)


@dataclass(frozen=True)
class _Judged:
    """The verdict on an image, and the promise of its file (None where the pixels are not finite)."""

    verdict: Verdict
    encoded: Future[bytes] | None


class _Wave:
    """Requests that are made together, in whatever order; inspectors see them in the order of the requests.

    Attributes:
        requests: of the wave.
        made: what has been made of them so far.
    """

    def __init__(self, run: Run, workers: Workers, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.made: list[_Made | None] = [None] * len(requests)
        self._run, self._workers = run, workers
        self._judged: list[Future[list[_Judged]]] = []
        self._handed_on = 0

    def add(self, positions: Sequence[int], made: Sequence[_Made]) -> None:
        """Take in one batch of images; hand on to the inspectors what is complete up to here, in the recipe's batch size."""
        for p, one in zip(positions, made, strict=True):
            self.made[p] = one
        while self._handed_on < len(self.requests):
            part = slice(self._handed_on, min(self._handed_on + self._run.recipe['batch_size'], len(self.requests)))
            ready = [one for one in self.made[part] if one is not None]
            if len(ready) < part.stop - part.start:
                break
            self._judged.append(self._workers.inspect.submit(_inspect, self._run, self._workers, self.requests[part], ready))
            self._handed_on = part.stop
        for future in self._judged:
            if future.done():
                future.result()  # an inspector that failed ends the block here, not after the rest of it was made

    def rows(self) -> list[Row]:
        """The finished rows, in the order of the requests."""
        suffix = self._run.recipe['image']['format']
        judged = [one for future in self._judged for one in future.result()]
        rows = []
        for request, one in zip(self.requests, judged, strict=True):
            reason, image = one.verdict.reason, None if one.encoded is None else one.encoded.result()
            rows.append(Row(request, REJECTED if reason else KEPT, reason, suffix, image, one.verdict.scores))
        return rows


def _inspect(run: Run, workers: Workers, requests: Sequence[Request], made: Sequence[_Made]) -> list[_Judged]:
    """Judge a batch and have it encoded. Runs in the inspectors' thread."""
    beat()
    image = run.recipe['image']
    finite = [i for i, one in enumerate(made) if one.finite]
    resized = {i: _resized(run, requests[i], made[i].image) for i in finite}
    encoded = {i: workers.encode.submit(encode, resized[i], image['format'], image['quality']) for i in finite}
    verdicts = [one.verdict for one in made]
    judged = judge(run.inspectors, [requests[i] for i in finite], list(resized.values()), [verdicts[i] for i in finite])
    for i, verdict in zip(finite, judged, strict=True):
        verdicts[i] = verdict
    return [_Judged(verdict, encoded.get(i)) for i, verdict in enumerate(verdicts)]


def _begin_block(run: Run) -> None:
    for inspector in run.inspectors:
        inspector.begin_block()


class _Quota:
    """What one class of a block still lacks, and the requests that it is made up from."""

    def __init__(self, run: Run, part: Part) -> None:
        self._part, self._generator = part, type(run.generator).__name__
        self._stream = run.generator.requests(part, run.recipe['seed'])
        self._lacking, self._tries = part.target, part.max_tries

    def take(self) -> list[Request]:
        """As many requests as accepted images are lacking, or as tries are left.

        Raises:
            ModelError: the generator labels one as another class.
        """
        requests = list(islice(self._stream, min(self._lacking, self._tries)))
        self._tries -= len(requests)
        for request in requests:
            if request.label != self._part.label:
                what = f'{self._generator} makes the request {request.id!r} of label {request.label} for the class {self._part.class_name!r}'
                raise ModelError(f'{what}, whose label is {self._part.label}.', 'Correct the generator: labels come from the part.')
        return requests

    def settle(self, rows: Iterable[Row]) -> None:
        """Count what became of the requests taken."""
        self._lacking -= sum(row.verdict == KEPT for row in rows)


def make_block(run: Run, block: Block, size: BatchSize, workers: Workers) -> tuple[list[Row], list[np.ndarray]]:
    """Make requests until every class of the block has its target accepted or has spent its tries.

    Each wave asks for exactly the images that each class still lacks, so the batch layout depends on the block alone and a
    redone block has the same one. Inspectors get the images in the order of the requests, in batches of the recipe's size:
    what they see is the same whatever buckets the requests fall into, and if memory ran out.

    Returns: rows and (H, W, 3) uint8 images, in the order of making: wave by wave, in a wave class by class.

    Raises:
        ModelError: memory does not suffice for one image, or the generator mistakes the class.
    """
    quotas = [_Quota(run, part) for part in block.parts]
    workers.inspect.submit(_begin_block, run).result()
    rows: list[Row] = []
    images: list[np.ndarray] = []
    while any(taken := [quota.take() for quota in quotas]):
        requests = list(chain.from_iterable(taken))
        wave = _Wave(run, workers, requests)
        for positions in batches(requests, map(run.generator.bucket, requests), size.value):
            wave.add(positions, _generate(run, [requests[p] for p in positions], size))
        made = wave.rows()
        rows += made
        of_class = iter(made)
        for quota, asked in zip(quotas, taken, strict=True):
            quota.settle(islice(of_class, len(asked)))
        images += [one.image for one in wave.made if one is not None]
    return rows, images
