"""What a prompt calls a class: names from a file, from folder names, or from a table; a hint where a name has several senses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import DataError, nearest

_WORDNET_ID = re.compile(r'n\d{8}($|[-_ ])')
_MARKUP = re.compile(r'[<>{}\[\]`|\\]|&#?\w+;')


def unprintable(text: str) -> bool:
    """Whether `text` holds control characters, line breaks among them."""
    return not text.isprintable()


@dataclass(frozen=True)
class ClassName:
    """A class as its data set and as a prompt call it.

    Attributes:
        name: the label: what folders and stores call the class. May hold no separator.
        text: what a prompt says.
        hint: what tells its sense apart from others ('bird' for 'crane'); '' where nothing needs telling.

    Raises:
        DataError: empty, padded, with path separators (name), markup (text, hint) or control characters.
    """

    name: str
    text: str
    hint: str = ''

    def __post_init__(self) -> None:
        name = self.name
        if not name or name != name.strip() or name in ('.', '..') or any(c in name for c in '/\\') or unprintable(name):
            raise DataError(f'The class name {name!r} is empty, padded, or holds a path separator or control character.', 'Rename the class.')
        for key, value in (('prompt name', self.text), ('hint', self.hint)):
            if (not value and key != 'hint') or value != value.strip() or unprintable(value):
                raise DataError(f'The {key} {value!r} of the class {name!r} is empty, padded, or holds control characters.', 'Write plain words.')
            if mark := _MARKUP.search(value):
                raise DataError(f'The {key} {value!r} of the class {name!r} holds markup ({mark[0]}).', 'Write plain words.')

    @property
    def phrase(self) -> str:
        """Text and hint as a prompt says them: 'crane, bird'.

        >>> ClassName('crane', 'crane', 'bird').phrase
        'crane, bird'
        """
        return f'{self.text}, {self.hint}' if self.hint else self.text


class ClassTable(Mapping[str, ClassName]):
    """The classes of one data set by label, in order. A label written otherwise (case, underscores) finds its class if only one fits.

    Raises:
        DataError: a name twice, or two classes that a prompt could not tell apart.
    """

    def __init__(self, entries: Iterable[ClassName], where: str) -> None:
        self.where = where
        self._entries: dict[str, ClassName] = {}
        phrases: dict[str, str] = {}
        self._by_text: dict[str, str] = {}
        for entry in entries:
            if entry.name in self._entries:
                raise DataError(f'The class name {entry.name!r} is repeated in {where}.', 'Every class needs its own name.')
            same = phrases.setdefault(entry.phrase.casefold(), entry.name)
            if same != entry.name:
                raise DataError(
                    f'The classes {same!r} and {entry.name!r} in {where} have the same prompt name {entry.phrase!r}.',
                    'Give one of them another prompt name or a hint.',
                )
            self._entries[entry.name] = entry
            for alias in {_plain(entry.name), _plain(entry.text), _plain(entry.phrase)}:
                self._by_text[alias] = '' if self._by_text.get(alias, entry.name) != entry.name else entry.name
        if not self._entries:
            raise DataError(f'{where} holds no class names.', 'Write at least one.')

    def __getitem__(self, label: str) -> ClassName:
        found = self._entries.get(label) or self._entries.get(self._by_text.get(_plain(label), ''))
        if found is None:
            raise DataError(f'The class {label!r} is not in {self.where}.', nearest(label, self._entries))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _plain(text: str) -> str:
    return ' '.join(text.replace('_', ' ').casefold().split())


def clean_label(label: str) -> str:
    """The words of a folder name: underscores are spaces, a leading number (`001.ak47`) goes.

    >>> clean_label('001.Black_footed_Albatross')
    'Black footed Albatross'

    Raises:
        DataError: a WordNet id, which no text encoder understands.
    """
    if _WORDNET_ID.match(label):
        raise DataError(f'The class name {label!r} is a WordNet id, not words.', "Set dataset='imagenet', or give a names file with words for each id.")
    return ' '.join(re.sub(r'^\d+\.(?=\D)', '', label).replace('_', ' ').split())


def names_from_labels(labels: Iterable[str], where: str = 'the class names') -> ClassTable:
    """A table from labels alone.

    Raises:
        DataError: see `ClassName`, `ClassTable` and `clean_label`.
    """
    return ClassTable((ClassName(label, clean_label(label)) for label in labels), where)


def read_names(path: str | Path) -> ClassTable:
    """Class names from the user's file.

    `.txt`: one name per line, underscores read as spaces. `.json`: a list of names, or an object from name to prompt name, or to
    `{"prompt": ..., "hint": ...}` where both may be left out.

    Raises:
        DataError: no such file, not of this form, or a bad name (see `ClassName`, `ClassTable`); file and name are said.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'The names file {str(path)!r} cannot be read: {error}.', 'Give a .txt or .json file in UTF-8.') from error
    where = repr(str(path))
    if path.suffix.lower() == '.json':
        return ClassTable((_entry(name, value, where) for name, value in _json_names(text, where)), where)
    if path.suffix.lower() == '.txt':
        return names_from_labels(text.splitlines(), where)
    raise DataError(f'The names file {where} is neither .txt nor .json.', 'Rename it, or write one name per line into a .txt file.')


def _json_names(text: str, where: str) -> list[tuple[Any, Any]]:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in found]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f'The name {repeated!r} is repeated in {where}.', 'Every class needs its own name.')
        return dict(found)

    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except ValueError as error:
        raise DataError(f'{where} is not valid JSON: {error}.', 'Correct it at this place.') from error
    if isinstance(content, list):
        return [(name, {}) for name in content]
    if isinstance(content, dict):
        return list(content.items())
    raise DataError(f'{where} holds neither a list nor an object.', 'Write {"crane": {"prompt": "crane", "hint": "bird"}, ...}.')


def _entry(name: Any, value: Any, where: str) -> ClassName:
    if isinstance(value, str):
        value = {'prompt': value}
    if not isinstance(name, str) or not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise DataError(f'The class {name!r} in {where} is not a name with texts.', 'Write {"crane": {"prompt": "crane", "hint": "bird"}, ...}.')
    if unknown := sorted(set(value) - {'prompt', 'hint'}):
        raise DataError(f'The class {name!r} in {where} has the unknown key {unknown[0]!r}.', nearest(unknown[0], ('prompt', 'hint')))
    return ClassName(name, value['prompt'] if 'prompt' in value else clean_label(name), value.get('hint', ''))
