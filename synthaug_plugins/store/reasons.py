"""Why images were rejected, in words that can be counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

# A number by itself, an id such as 00000_000012 included; not the digits of a name such as mp3.
_NUMBER = re.compile(r'(?<![\w.])[-+]?\d(?:[\w.]*\w)?%?')


def printable(text: str) -> str:
    """A text that a stranger's store says, fit for the user's terminal: what is not printable is spelt out.

    >>> printable('a\\x1b[2J b')
    'a\\\\x1b[2J b'
    """
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def group_reasons(reasons: Mapping[str, int]) -> dict[str, int]:
    """Counts by kind of reason, the most frequent first.

    Reasons are equal in kind when they agree in the text before ' (', numbers aside. A number that is the same in all of
    a kind is kept, one that varies becomes '...'.

    >>> group_reasons({'p 0.03 not above 0.10': 1, 'p 0.05 not above 0.10': 2, 'blank (contrast 1.20 below 2)': 4})
    {'blank': 4, 'p ... not above 0.10': 3}
    """
    kinds: dict[tuple[str, ...], Counter[tuple[str, ...]]] = {}
    for reason, n in reasons.items():
        text = printable(reason.partition(' (')[0])
        kinds.setdefault(tuple(_NUMBER.split(text)), Counter())[tuple(_NUMBER.findall(text))] += n
    grouped = {}
    for texts, seen in kinds.items():
        numbers = [values[0] if len(set(values)) == 1 else '...' for values in zip(*seen, strict=True)]
        grouped[''.join(part for pair in zip(texts, [*numbers, ''], strict=True) for part in pair)] = seen.total()
    return dict(sorted(grouped.items(), key=lambda item: (-item[1], item[0])))
