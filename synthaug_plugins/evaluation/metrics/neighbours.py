"""Exact nearest neighbours and balls around points, in tiles: no matrix of all distances is ever held.

Distances are Euclidean, in float64. A product of matrices finds the candidates; its rounding error grows with the points' norms, so distances that are
returned, and those that lie on a ball's edge, are computed anew from differences. So a copy's distance is 0, and the k-th neighbour of a point
lies in the point's own ball.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from synthaug_plugins.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TILE = 1 << 22
"""Distances in memory at once: 32 MB, and a few copies of them."""
_UNSURE = 1e-12
"""Relative to squared norms, from where on a squared distance out of a product is not trusted: some thousand roundings."""
EDGE = 1e-12
"""Relative slack of a ball's radius, for sums of equal numbers in another order."""


def points(features: Tensor, origin: Tensor | None = None) -> Tensor:
    """Features (N, D) as points in float64, moved by `origin` (D,), by default their mean: near zero, distances round less."""
    moved = features.double()
    return moved - (moved.mean(0) if origin is None else origin)


def check_k(k: int, n: int, what: str) -> None:
    """Refuse (DataError) more neighbours than there are.

    Args:
        k: neighbours.
        n: points that can be neighbours, self excluded.
        what: what they are, for the message.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise DataError(f'k = {k!r} is no number of neighbours.', 'Use a whole number of at least 1.')
    if k > n:
        raise DataError(f'k = {k} neighbours are asked for, but there are only {n} {what}.', 'Lower k, or give more images.')


def nearest(queries: Tensor, references: Tensor, k: int, same: bool = False, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """The k nearest references of each query.

    Args:
        queries: (M, D) float64.
        references: (N, D) float64, on the same device.
        k: at most N; at most N - 1 with `same`.
        same: queries are the references, in order: a point is not its own neighbour. Its copies are.
        tile: distances in memory at once.

    Returns: distances (M, k) float64, ascending, and the references' places (M, k) int64.

    Raises:
        DataError: k is larger than the number of references.
    """
    import torch

    check_k(k, len(references) - same, 'points')
    distances = queries.new_empty(len(queries), k)
    places = torch.empty(len(queries), k, dtype=torch.long, device=queries.device)
    for begin, squared in tiles(queries, references, same, tile):
        end = begin + len(squared)
        found = squared.topk(k, dim=1, largest=False).indices
        for i in range(k):  # one neighbour at a time: (m, k, D) differences at once would be k times a tile
            distances[begin:end, i] = _distance(queries[begin:end], references[found[:, i]])
        order = distances[begin:end].argsort(dim=1, stable=True)
        distances[begin:end] = distances[begin:end].gather(1, order)
        places[begin:end] = found.gather(1, order)
    return distances, places


class Held(NamedTuple):
    """What is known of points among balls: in how many each lies, (M,) int64, and the radius of the smallest of these, (M,) float64, infinite for none."""

    counts: Tensor
    smallest: Tensor


def held(queries: Tensor, centres: Tensor, radii: Tensor, same: bool = False, tile: int = TILE) -> Held:
    """Which queries lie in which closed balls, ||query - centre|| <= radius.

    Args:
        queries: (M, D) float64.
        centres: (N, D) float64, on the same device.
        radii: (N,) float64.
        same: queries are the centres, in order: a point is not in its own ball.
        tile: distances in memory at once.
    """
    import torch

    norms, theirs = queries.square().sum(1), centres.square().sum(1)
    limit = (radii * (1 + EDGE)).square()
    counts = torch.empty(len(queries), dtype=torch.long, device=queries.device)
    smallest = torch.empty_like(norms)
    for begin, squared in tiles(queries, centres, same, tile):
        end = begin + len(squared)
        found = squared <= limit
        rows, columns = ((squared - limit).abs() <= _UNSURE * (norms[begin:end, None] + theirs)).nonzero(as_tuple=True)
        for i in range(0, len(rows), 4096):
            row, column = rows[i : i + 4096], columns[i : i + 4096]
            found[row, column] = _distance(queries[begin:end][row], centres[column]) <= radii[column] * (1 + EDGE)
        counts[begin:end] = found.sum(1)
        smallest[begin:end] = torch.where(found, radii, torch.inf).amin(1)
    return Held(counts, smallest)


def tiles(queries: Tensor, references: Tensor, same: bool, tile: int) -> Iterator[tuple[int, Tensor]]:
    """Squared distances (m, N) of some queries at a time with the place of the first, from a product, whose rounding may leave a little below 0.

    Args: see `nearest`; from a point to itself they are infinite.
    """
    import torch

    theirs, step = references.square().sum(1), max(1, tile // len(references))
    for begin in range(0, len(queries), step):
        some = queries[begin : begin + step]
        squared = torch.addmm(theirs.expand(len(some), -1), some, references.T, alpha=-2).add_(some.square().sum(1, keepdim=True))
        if same:
            squared[range(len(some)), range(begin, begin + len(some))] = torch.inf
        yield begin, squared


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Distances (n,) of pairs, from differences."""
    return (a - b).square().sum(1).sqrt()


def on(device: torch.device) -> torch.device:
    """Where neighbours are sought: the device, or the CPU where it has no float64."""
    import torch

    return torch.device('cpu') if device.type == 'mps' else device
