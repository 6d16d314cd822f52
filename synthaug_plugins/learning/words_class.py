"""What the learning of one class's word works with: where its vectors start, and the rows of the encoders' tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def first_rows(tokens: Tensor, vectors: int) -> Tensor:
    """Where the vectors of a word start: (vectors, width), from rows (m, width) of the tokens of a text, m >= 1.

    See `WordTraining.initialise_from`. Without a mean where m <= vectors, so that a vector is then exactly that of a token.
    """
    m = len(tokens)
    if m <= vectors:
        return tokens[torch.arange(vectors, device=tokens.device) % m].clone()
    ends = [k * m // vectors for k in range(vectors + 1)]
    return torch.stack([tokens[a:b].mean(dim=0) for a, b in pairwise(ends)])


@contextmanager
def rows_in_tables(tables: Mapping[str, torch.nn.Embedding], ids: Mapping[str, Sequence[int]], rows: Mapping[str, Tensor]) -> Iterator[None]:
    """Let `rows` stand in for rows of the text encoders' tables, with gradients. The tables themselves stay as they are, and get none.

    Args:
        tables: encoder -> table.
        ids: encoder -> the consecutive tokens whose rows are replaced.
        rows: encoder -> (len(ids), width) float32.
    """

    def hook(first: int, replacing: Tensor) -> Any:
        def replaced(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            places = inputs[0] - first
            ours = (places >= 0) & (places < len(replacing))
            return torch.where(ours[..., None], replacing.to(output.dtype)[places.clamp(0, len(replacing) - 1)], output)

        return replaced

    with ExitStack() as stack:
        for encoder, table in tables.items():
            first = ids[encoder][0]
            assert list(ids[encoder]) == list(range(first, first + len(ids[encoder])))
            stack.callback(table.register_forward_hook(hook(first, rows[encoder])).remove)
        yield
