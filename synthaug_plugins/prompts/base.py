"""The contract of a prompt source."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.prompts.datasets import dataset_names
from synthaug_plugins.prompts.names import ClassName, ClassTable, names_from_labels, read_names
from synthaug_plugins.prompts.sentences import Vocabulary


class PromptSource(ABC):
    """Says what the model is told for each image. A noun that a generator's option `prompts` names.

    Life: `__init__` checks options; `prepare` is called once with all classes, before the plan, and does what takes long; then
    `prompt` and `prompts` are pure functions of their arguments, and `identity` says what decides them.

    Args:
        dataset: one of `datasets.DATASETS`: its class names and wording.
        names: file of class names (see `names.read_names`), instead of the data set's table. Without both, labels are read as words.
        hints: whether a name with several senses is said with its hint ('crane, bird').

    Raises:
        RecipeError: an unknown data set.
        DataError: a bad names file.
    """

    def __init__(self, dataset: str | None = None, names: str | None = None, hints: bool = True) -> None:
        self.dataset, self.hints = dataset, hints
        self._table: ClassTable | None = read_names(names) if names is not None else dataset_names(dataset) if dataset is not None else None
        self._names: dict[str, ClassName] = {}
        self._vocabulary = self._phrases = Vocabulary({})

    def prepare(self, classes: Sequence[str], progress: Callable[[str], None] | None = None) -> None:
        """Settle what every class is called.

        Args:
            classes: all labels of the recipe, in order.
            progress: called with one sentence whenever a long preparation has got further.

        Raises:
            DataError: a class that is empty, repeated, unknown to the table, or cannot be told from another.
        """
        table = self._table if self._table is not None else names_from_labels(classes)
        found = [table[label] for label in classes]
        ClassTable(found, 'the class names')  # two labels must not mean one class
        self._names = dict(zip(classes, found, strict=True))
        self._vocabulary = Vocabulary({label: self._names[label].text for label in classes})
        self._phrases = Vocabulary({label: self.spoken(label) for label in classes})

    def class_name(self, label: str) -> ClassName:
        """What a label is called.

        Raises:
            RecipeError: `prepare` was not called with it.
        """
        if label not in self._names:
            raise not_prepared(label)
        return self._names[label]

    def called(self) -> dict[str, str]:
        """Label -> text of its name, hints left out, for the prepared classes; empty for a source that does not care what they are called."""
        return {label: entry.text for label, entry in self._names.items()}

    def spoken(self, label: str) -> str:
        """The class's name as prompts say it, with its hint if hints are wanted."""
        entry = self.class_name(label)
        return entry.phrase if self.hints else entry.text

    @abstractmethod
    def prompt(self, label: str, seed: int, n: int) -> str:
        """The prompt at position n >= 0 of a class's endless sequence; depends on (seed, label, n) and `identity` alone."""

    def prompts(self, label: str, seed: int, start: int = 0) -> Iterator[str]:
        """The endless sequence of a class's prompts from position `start` on."""
        return (self.prompt(label, seed, n) for n in itertools.count(start))

    def cycle(self, label: str) -> int | None:
        """After how many positions every prompt of a class was said at least once; None where nobody knows."""
        return None

    def loses_name(self, label: str, whole: str, kept: str) -> bool:
        """Whether a prompt names its class and what an encoder sees of it no longer does: the prompts of all classes could then be equal.

        A prompt that never named its class, as those of `ClassNameFree`, loses nothing. Singular and plural are the same name; a name is
        lost with its last word, or with the hint that `whole` says with it.
        """
        return any(_names(v, label, whole) and not _names(v, label, kept) for v in (self._vocabulary, self._phrases))

    def identity(self) -> dict[str, Any]:
        """Plain JSON that, with the seed, decides every prompt of the prepared classes."""
        return {'type': type(self).__name__, 'names': {label: self.spoken(label) for label in self._names}}

    def notes(self) -> list[str]:
        """What a user should hear once, one sentence each: shortfalls and stand-ins."""
        return []


def not_prepared(label: str) -> RecipeError:
    """The refusal to say a class that `prepare` was not told of."""
    return RecipeError(f'The class {label!r} was not prepared.', 'Call prepare() with all classes of the recipe first.')


def _names(vocabulary: Vocabulary, label: str, text: str) -> bool:
    return any(label in labels for labels in vocabulary.named(text))


def pick(items: Sequence[str], seed: int, label: str, n: int) -> str:
    """Position n of an endless sequence that uses all items equally often: passes over them, each in an order of its own.

    The orders come from SHA-256, so they are equal on every machine and under every version of Python.
    """
    turn, place = divmod(n, len(items))
    return items[_order(len(items), f'{seed}/{label}/{turn}')[place]]


@lru_cache(maxsize=1024)
def _order(count: int, key: str) -> tuple[int, ...]:
    return tuple(sorted(range(count), key=lambda i: hashlib.sha256(f'{key}/{i}'.encode()).digest()))


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
