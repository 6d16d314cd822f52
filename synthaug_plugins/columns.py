"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], words: int = 0) -> str:
    """Cells under each other, a line per row: numbers to the right; the first column and the last so many of `words` to the left.

    >>> print(aligned([['class', 'kept', 'why'], ['cat', '9', 'blank'], ['hen', '10', '']], words=1))
    class  kept  why
    cat       9  blank
    hen      10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, *range(len(widths) - words, len(widths))}
    padded = ([cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))] for row in rows)
    return '\n'.join('  '.join(row).rstrip() for row in padded)
