"""The simple prompt sources: templates around the class name, prompts without it, prompts from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.prompts.base import PromptSource, content_hash, pick
from synthaug_plugins.prompts.datasets import dataset_prompts
from synthaug_plugins.prompts.names import unprintable
from synthaug_plugins.prompts.templates import fill, resolve_templates


class Basic(PromptSource):
    """The class name in a template, or in each template of an ensemble equally often (B of He et al., ICLR 2023).

    Args:
        templates: one template with `{}`, several, or a name of `templates.ENSEMBLES`. Default: the data set's own, else 'a photo of a {}'.
        dataset, names, hints: see `PromptSource`.

    Raises:
        RecipeError, DataError: see `resolve_templates` and `PromptSource`.
    """

    def __init__(self, templates: str | Sequence[str] | None = None, dataset: str | None = None, names: str | None = None, hints: bool = True) -> None:
        super().__init__(dataset, names, hints)
        own = dataset_prompts(dataset).template if dataset is not None else 'a photo of a {}'
        self.templates = resolve_templates(own if templates is None else templates)

    def prompt(self, label: str, seed: int, n: int) -> str:
        """A template of the ensemble with the class name filled in."""
        return fill(pick(self.templates, seed, label, n), self.spoken(label))

    def cycle(self, label: str) -> int:
        """The number of templates."""
        return len(self.templates)

    def identity(self) -> dict[str, Any]:
        """Names and templates."""
        return {**super().identity(), 'templates': list(self.templates)}


class ClassNameFree(PromptSource):
    """Prompts that say nothing of the class: the data-centric leakage defence of DA-Fusion (ICLR 2024).

    A model that knows the class by name could draw on images of it that the user does not have. So its name is never told, and what the
    images show comes from the real image they start from (or from learned tokens) alone. Default: 'a photo'.

    Args:
        templates: one prompt or several, without `{}`.

    Raises:
        RecipeError: see `resolve_templates`; in `prepare`, a prompt that names a class.
    """

    def __init__(self, templates: str | Sequence[str] = 'a photo', dataset: str | None = None, names: str | None = None) -> None:
        super().__init__(dataset, names)
        self.templates = resolve_templates(templates, placeholder=False)

    def prepare(self, classes: Sequence[str], progress: Callable[[str], None] | None = None) -> None:
        """Refuse prompts that name one of the classes."""
        super().prepare(classes, progress)
        for template in self.templates:
            if named := self._vocabulary.named(template):
                raise RecipeError(f'The class-name-free prompt {template!r} names the class {min(named[0])!r}.', 'Write it without class names.')

    def prompt(self, label: str, seed: int, n: int) -> str:
        """One of the prompts; the class decides only their order."""
        return pick(self.templates, seed, label, n)

    def cycle(self, label: str) -> int:
        """The number of prompts."""
        return len(self.templates)

    def identity(self) -> dict[str, Any]:
        """The prompts; what classes are called does not matter."""
        return {'type': type(self).__name__, 'templates': list(self.templates)}


class FromFile(PromptSource):
    """Prompts that the user wrote.

    Args:
        file: `.txt`: one template with `{}` per line, for all classes. `.json`: an object from class to its list of prompts. `.jsonl`: lines
            `{"class": ..., "prompt": ...}`, or with `"sentence"` as language enhancement writes them.
        template: laid around every prompt, `{}` where it goes; '{}' leaves it as it is.

    Raises:
        DataError: the file is missing, not of this form, or holds an empty prompt; in `prepare`, a class without prompts or an unknown class.
    """

    def __init__(self, file: str, template: str = '{}', dataset: str | None = None, names: str | None = None, hints: bool = True) -> None:
        super().__init__(dataset, names, hints)
        (self.template,) = resolve_templates([template])
        self.file = Path(file).expanduser()
        try:
            text = self.file.read_text(encoding='utf-8-sig')
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f'The prompt file {file!r} cannot be read: {error}.', 'Give a .txt, .json or .jsonl file in UTF-8.') from error
        self._templates: tuple[str, ...] = ()
        self._prompts: dict[str, list[str]] = {}
        if self.file.suffix == '.txt':
            self._templates = resolve_templates([line.strip() for line in text.splitlines() if line.strip()])
        elif self.file.suffix == '.json':
            self._prompts = read_object(text, str(self.file))
        elif self.file.suffix == '.jsonl':
            self._prompts = read_lines(text.splitlines(), str(self.file))
        else:
            raise DataError(f'The prompt file {file!r} is no .txt, .json or .jsonl.', 'Rename it after what it holds.')

    def prepare(self, classes: Sequence[str], progress: Callable[[str], None] | None = None) -> None:
        """Refuse a file that lacks a class or names a foreign one."""
        super().prepare(classes, progress)
        if not self._templates:
            check_classes(self._prompts, classes, str(self.file))
            if missing := [c for c in classes if not self._prompts.get(c)]:
                raise DataError(f'{str(self.file)!r} has no prompt for the class {missing[0]!r} ({len(missing)} in all).', 'Add at least one each.')

    def prompt(self, label: str, seed: int, n: int) -> str:
        """A prompt of the class, or a template with its name."""
        name = self.spoken(label)
        return fill(self.template, fill(pick(self._templates, seed, label, n), name) if self._templates else pick(self._prompts[label], seed, label, n))

    def cycle(self, label: str) -> int:
        """The number of templates, or of the class's prompts."""
        return len(self._templates or self._prompts[label])

    def identity(self) -> dict[str, Any]:
        """The hash of what the file says; where it lies does not matter."""
        said = {'templates': list(self._templates), 'prompts': self._prompts}
        return {**super().identity(), 'template': self.template, 'sha256': content_hash(said)}


def read_object(text: str, where: str) -> dict[str, list[str]]:
    """Prompts by class from a JSON object {class: [prompt, ...]}.

    Raises:
        DataError: anything else.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f'{where!r} is not valid JSON: {error}.', 'Correct it at this place.') from error
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise DataError(f'{where!r} is no object of lists.', 'Write {"cat": ["a photo of a cat", ...], ...}.')
    return {label: [_checked(p, where, label) for p in prompts] for label, prompts in content.items()}


def read_lines(lines: Iterable[str], where: str) -> dict[str, list[str]]:
    """Prompts by class from JSON lines {"class": ..., "prompt" or "sentence": ...}; lines with neither are skipped, so are empty ones.

    Raises:
        DataError: a line that is no JSON object, has no class, or holds an empty prompt; its number is said.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f'{where}, line {number}'
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f'{place!r} is not valid JSON: {error}.', 'Correct or remove the line.') from error
        if not isinstance(row, dict):
            raise DataError(f'{place!r} is no JSON object.', 'Write {"class": "cat", "prompt": "a photo of a cat"}.')
        text = row.get('prompt', row.get('sentence'))
        if text is None:
            continue
        if not isinstance(row.get('class'), str):
            raise DataError(f'{place!r} names no class.', 'Write {"class": "cat", "prompt": "a photo of a cat"}.')
        found.setdefault(row['class'], []).append(_checked(text, place, row['class']))
    return found


def _checked(prompt: Any, where: str, label: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip() or unprintable(prompt):
        raise DataError(f'The prompt {prompt!r} of the class {label!r} in {where!r} is empty, no text, or holds control characters.', 'Write it anew.')
    return prompt.strip()


def check_classes(found: Iterable[str], classes: Sequence[str], where: str) -> None:
    """Refuse (DataError) a file that names a class the recipe has not."""
    for label in found:
        if label not in classes:
            raise DataError(f'{where!r} has prompts for {label!r}, which is not among the classes.', nearest(label, classes))
