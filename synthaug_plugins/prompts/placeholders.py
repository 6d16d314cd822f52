"""Placeholders: how a prompt says a class whose word was learned (textual inversion, Gal et al. 2022) in place of its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from synthaug_plugins.errors import DataError

_OTHER = re.compile(r'[\W_]+')
_PLACEHOLDER = re.compile(r'<[^<>\s]+>(?:_\d+)?')


def word_of(class_name: str) -> str:
    """The placeholder of a class: its name in lower case, every run of characters other than letters and digits as one underscore.

    >>> word_of('St. Bernard'), word_of('Café au lait')
    ('<st_bernard>', '<café_au_lait>')
    """
    name = unicodedata.normalize('NFC', unicodedata.normalize('NFC', class_name).lower())  # lower() may leave a letter in two parts
    return f'<{_OTHER.sub("_", name)}>'


def words_of(classes: Sequence[str]) -> dict[str, str]:
    """Class -> placeholder.

    Raises:
        DataError: two classes have the same one; both are named.
    """
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in classes:
        word = word_of(name)
        if (other := owners.setdefault(word, name)) != name:
            raise DataError(f'The classes {other!r} and {name!r} would have the same word {word!r}.', 'Rename one of them.')
        found[name] = word
    return found


def placeholders(prompt: str) -> list[str]:
    """Everything in a prompt that looks like a placeholder, also like one of the further tokens of a word ('<cat>_1').

    >>> placeholders('a <cat> beside <dog>_2, 3 < 4 > 2')
    ['<cat>', '<dog>_2']
    """
    return _PLACEHOLDER.findall(prompt)


def between_placeholders(prompt: str) -> list[str]:
    """The parts of a prompt beside what looks like a placeholder.

    >>> between_placeholders('a photo of a <cat>_1 on a mat')
    ['a photo of a ', ' on a mat']
    """
    return _PLACEHOLDER.split(prompt)
