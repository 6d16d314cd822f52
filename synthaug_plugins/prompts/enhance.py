"""Language enhancement (LE of He et al., ICLR 2023, section 3.1): a language model writes sentences with the class name, which become prompts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from synthaug_plugins.device import choose_device
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.prompts.base import PromptSource, content_hash, pick
from synthaug_plugins.prompts.datasets import dataset_prompts
from synthaug_plugins.prompts.language_model import COMMON_GEN, SentenceWriter, model_identity
from synthaug_plugins.prompts.sentence_cache import Partial, left_unwritten, making, read_sentences
from synthaug_plugins.prompts.sentences import clean_sentence, fault, sameness
from synthaug_plugins.prompts.templates import fill, resolve_templates

_ROUND = 50  # sentences drawn at a time; part of what decides them, so no option
_DEVICE = re.compile(r'auto|(cpu|cuda|mps)(:\d+)?')


class Enhanced(PromptSource):
    """Sentences with the class name, each in a template, all equally often.

    `prepare` has the missing sentences written and keeps them in a file of the folder `cache`, named after a hash of all that decides them.
    Edit the file as you like: it is read as it stands. A class that no sentence was written for gets its plain name in the template.

    Args:
        model: name of a transformers model on the Hugging Face hub, its folder, or `embedded:digits_t5`: word-to-sentence (T5) or one that follows
            instructions.
        revision: branch, tag or commit of a hub model.
        sentences: wanted per class (the paper: 200). Fewer are reported in `notes`, not refused.
        draws: at most so many per class; default 5 times `sentences`, in rounds of 50 that end when enough are found. The paper draws 250.
        instruction: what the model is asked, `{}` for the class name; default by the model's kind (see `language_model`).
        template: the prompt, `{}` for the sentence; default: the data set's, else 'a photo of {}'.
        temperature, top_p, top_k, max_new_tokens: sampling; the defaults are the paper's (its code leaves them to transformers, where top_k is 50).
        seed: of the sentences.
        cache: folder of the files.
        device: where the language model runs; 'auto' is the GPU if there is one.
        dataset, names, hints: see `PromptSource`.

    Raises:
        RecipeError: an option out of range.
        ModelError, DataError: in `prepare`, see `SentenceWriter` and `sentence_cache`.
    """

    def __init__(
        self,
        model: str = COMMON_GEN,
        revision: str | None = None,
        sentences: int = 200,
        draws: int | None = None,
        instruction: str | None = None,
        template: str | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 50,
        max_new_tokens: int = 20,
        seed: int = 0,
        cache: str = '~/.cache/synthaug/sentences',
        device: str = 'auto',
        dataset: str | None = None,
        names: str | None = None,
        hints: bool = True,
    ) -> None:
        super().__init__(dataset, names, hints)
        draws = 5 * sentences if draws is None else draws
        for key, value, low in (
            ('sentences', sentences, 1),
            ('draws', draws, sentences),
            ('top_k', top_k, 0),
            ('max_new_tokens', max_new_tokens, 1),
            ('seed', seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise RecipeError(f'{key} = {value!r} is not a whole number of at least {low}.', f'Set {key} to {low} or more.')
        if not temperature > 0:
            raise RecipeError(f'temperature = {temperature!r} is not positive.', 'Use 1.0 for sampling as the model was trained.')
        if not 0 < top_p <= 1:
            raise RecipeError(f'top_p = {top_p!r} is not in (0, 1].', 'Use 1.0 to sample from all tokens.')
        if not _DEVICE.fullmatch(device):
            raise RecipeError(f'device = {device!r} of the language model is unknown.', 'Use auto, cpu, cuda or mps.')
        own = dataset_prompts(dataset).sentence if dataset is not None else 'a photo of {}'
        (self.template,) = resolve_templates([own if template is None else template])
        if instruction is not None:
            resolve_templates([instruction])
        self.model, self.revision, self.sentences, self.draws, self.instruction = model, revision, sentences, draws, instruction
        self.sampling = {'temperature': temperature, 'top_p': top_p, 'top_k': top_k, 'max_new_tokens': max_new_tokens}
        self.seed, self.cache, self.device = seed, Path(cache).expanduser(), device
        self._sentences: dict[str, list[str]] = {}
        self.file: Path | None = None

    def prepare(self, classes: Sequence[str], progress: Callable[[str], None] | None = None) -> None:
        """Read the sentences of all classes, after having the missing ones written. A model is loaded only if some are missing."""
        super().prepare(classes, progress)
        spoken = {label: [self.class_name(label).text, self.spoken(label)] for label in classes}
        made_with = {
            **{'language_model': model_identity(self.model, self.revision), 'classes': spoken, 'instruction': self.instruction},
            **{'sampling': self.sampling, 'sentences': self.sentences, 'draws': self.draws, 'round': _ROUND, 'seed': self.seed},
        }
        self.file = self.cache / f'{content_hash(made_with)[:32]}.jsonl'
        if not self.file.exists():
            if left_unwritten(self.file):
                return
            with making(self.file) as partial:
                if partial is not None:
                    self._write(partial, classes, made_with, progress)
        elif progress:
            progress(f'Sentences are read from {str(self.file)!r}.')
        self._sentences = read_sentences(self.file, classes)

    def _write(self, partial: Partial, classes: Sequence[str], made_with: dict[str, Any], progress: Callable[[str], None] | None) -> None:
        missing = [label for label in classes if label not in partial.done]
        if not missing:
            return
        if progress:
            progress(f'Sentences for {len(missing)} classes are being written to {str(self.file)!r}.')
        writer = SentenceWriter(self.model, self.revision, self.instruction, str(choose_device(self.device, 'Enhanced: device =')))
        if partial.empty:
            partial.add([{'made_with': {'model': self.model, 'commit': writer.commit, **made_with}}])
        for label in missing:
            kept, counts = self._draw(writer, label)
            partial.add([*({'class': label, 'sentence': s} for s in kept), {'class': label, 'kept': len(kept), **counts}])
            if progress:
                progress(f'{len(kept)} of {self.sentences} sentences for {label!r}, {counts["drawn"]} drawn.')

    def _draw(self, writer: SentenceWriter, label: str) -> tuple[list[str], dict[str, int]]:
        """Sentences of one class, and how many were drawn and why some were left out. Depends on the class alone, not on those before it."""
        kept: dict[tuple[str, ...], str] = {}
        faults: Counter[str] = Counter()
        drawn = 0
        while len(kept) < self.sentences and drawn < self.draws:
            count = min(_ROUND, self.draws - drawn)
            digest = hashlib.sha256(f'{self.seed}/{label}/{drawn}'.encode()).digest()
            for raw in writer.write(self.spoken(label), count, int.from_bytes(digest[:4], 'big'), **self.sampling):
                sentence = clean_sentence(raw)
                reason = fault(sentence, label, self._vocabulary) or ('repeated' if sameness(sentence) in kept else None)
                if reason:
                    faults[reason] += 1
                elif len(kept) < self.sentences:
                    kept[sameness(sentence)] = sentence
            drawn += count
        return list(kept.values()), {'drawn': drawn, **dict(sorted(faults.items()))}

    def prompt(self, label: str, seed: int, n: int) -> str:
        """A sentence of the class in the template."""
        name = self.spoken(label)
        return fill(self.template, pick(self._sentences.get(label) or [name], seed, label, n))

    def cycle(self, label: str) -> int:
        """The number of the class's sentences."""
        return len(self._sentences.get(label) or [label])

    def identity(self) -> dict[str, Any]:
        """The sentences as they stand, edits included, and the template; how they were made is in the file."""
        return {**super().identity(), 'template': self.template, 'sha256': content_hash(self._sentences)}

    def notes(self) -> list[str]:
        """One sentence per class that has fewer sentences than asked for."""
        return [
            f'The class {label!r} has {len(found)} of {self.sentences} sentences{"" if found else ", so its plain name stands in"} (see {str(self.file)!r}).'
            for label, found in self._sentences.items()
            if len(found) < self.sentences
        ]
