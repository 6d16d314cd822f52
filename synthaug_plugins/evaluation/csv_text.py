"""Numbers as text files that spreadsheets read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def rounded(value: float | None) -> float | None:
    """To 4 decimals: more would be noise of the floating point."""
    return None if value is None else round(value, 4)


def csv_bytes(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as comma-separated values; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue().encode()
