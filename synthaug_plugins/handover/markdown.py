"""Markdown of texts that anybody may have written: they are shown, and mean nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from synthaug_plugins.store.reasons import printable

_SPECIAL = re.compile(r'[!#$()*:@\[\\\]^_`{|}~]|(?<=www)\.|^[-+](?=\s|$)|^\d+\.(?=\s|$)', re.IGNORECASE)


def plain(text: object, most: int = 200) -> str:
    """A text on one line, of which a reader of Markdown makes neither markup nor HTML, neither a link nor a mention; cut after `most` letters.

    >>> plain('[x](http://y) <b>\\n')
    '\\\\[x\\\\]\\\\(http\\\\://y\\\\) &lt;b&gt;\\\\\\\\n'
    """
    shown = printable(str(text)).strip()
    shown = shown if len(shown) <= most else shown[: most - 1] + '…'
    return _SPECIAL.sub(lambda found: f'{found[0][:-1]}\\{found[0][-1]}', shown.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;'))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers stand right. Cells are made `plain`, the head is ours."""
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    lines = [list(head), ['---:' if r else '---' for r in right], *([plain(cell) for cell in row] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def fenced(text: str, language: str) -> str:
    """A block of code that its own content cannot end."""
    fence = '`' * max(3, 1 + max((len(run) for run in re.findall('`+', text)), default=0))
    return f'{fence}{language}\n{text}\n{fence}'
