"""Which sentences language enhancement keeps: they name their class and no other, and say something new."""

from __future__ import annotations

import re
from collections.abc import Mapping

from synthaug_plugins.prompts.names import unprintable

_IRREGULAR = {'man': 'men', 'mouse': 'mice', 'goose': 'geese', 'foot': 'feet', 'tooth': 'teeth', 'child': 'children', 'person': 'people', 'ox': 'oxen'}
_ARTICLES = frozenset({'a', 'an', 'the'})
_MARKUP = re.compile(r'[<>{}\[\]`|\\_*#]|https?:')


def words(text: str) -> list[str]:
    """The words of a text: no case, no punctuation; apostrophes vanish, hyphens part words.

    >>> words("Colt's-foot, St. Bernard")
    ['colts', 'foot', 'st', 'bernard']
    """
    return re.findall(r'[^\W_]+', re.sub(r"['’]", '', text.casefold()))


def _forms(word: str) -> set[str]:
    """Singular and plural of an English noun, as far as spelling tells."""
    found = {word, word + 's', word + 'es'}
    for one, many in _IRREGULAR.items():
        if word.endswith(one):
            found.add(word[: -len(one)] + many)
        if word.endswith(many):
            found.add(word[: -len(many)] + one)
    if word.endswith('y'):
        found.add(word[:-1] + 'ies')
    if word.endswith(('f', 'fe')):
        found.add(word.removesuffix('e')[:-1] + 'ves')
    if word.endswith('ies'):
        found.add(word[:-3] + 'y')
    if word.endswith('s') and not word.endswith('ss') and len(word) > 3:
        found.add(word[:-1])
    return found


class Vocabulary:
    """Finds class names in texts.

    A name counts at word boundaries, in singular or plural, and where two names overlap the longer one counts: 'sea lion' is no lion.

    Args:
        names: label -> text of the name, hints left out.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = dict(names)
        self._known: dict[tuple[str, ...], set[str]] = {}
        exact = {label: tuple(words(text)) for label, text in names.items()}
        taken = set(exact.values())
        for label, name in exact.items():
            if name:
                for last in _forms(name[-1]):
                    form = (*name[:-1], last)
                    # What one class is called exactly is no plural of another's name ('glass' of 'glas').
                    if form == name or form not in taken:
                        self._known.setdefault(form, set()).add(label)
        self._longest = max((len(form) for form in self._known), default=0)

    def named(self, text: str) -> list[set[str]]:
        """For every name in `text`, the labels it may mean: more than one where classes differ by their hints alone."""
        found: list[set[str]] = []
        spoken, place = words(text), 0
        while place < len(spoken):
            for length in range(min(self._longest, len(spoken) - place), 0, -1):
                if labels := self._known.get(tuple(spoken[place : place + length])):
                    found.append(labels)
                    place += length
                    break
            else:
                place += 1
        return found


def clean_sentence(raw: str) -> str:
    """The first line of what a model wrote, without list marks, quotes and final full stop.

    >>> clean_sentence(' 1. "A cat sits on  a mat." ')
    'A cat sits on a mat'
    """
    line = next((line for line in raw.splitlines() if line.strip()), '')
    line = re.sub(r'^\s*(?:[-*•]|\d+[.)])\s+', '', line)
    return ' '.join(line.split()).strip(' "“”').rstrip('.').rstrip()


def fault(sentence: str, label: str, vocabulary: Vocabulary) -> str | None:
    """Why a sentence cannot stand for the class `label`, in a few words; None when it can."""
    if not sentence or unprintable(sentence) or _MARKUP.search(sentence):
        return 'empty or with markup'
    named = vocabulary.named(sentence)
    if not any(label in labels for labels in named):
        return 'without the class name'
    if not all(label in labels for labels in named):
        return 'with another class'
    if sameness(sentence) == sameness(vocabulary.names[label]):
        return 'with nothing but the name'
    return None


def sameness(sentence: str) -> tuple[str, ...]:
    """What two sentences share that say the same: their words without articles and plural s, in any order."""
    return tuple(sorted(w.removesuffix('s') if len(w) > 3 else w for w in words(sentence) if w not in _ARTICLES))
