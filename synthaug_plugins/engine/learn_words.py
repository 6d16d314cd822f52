"""Learn the words of a data set's classes: from a recipe to a file of words that generators read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synthaug_plugins import __version__
from synthaug_plugins.engine.learn_folder import LearnFolder
from synthaug_plugins.engine.learn_output import draw_sheet, read_log, write_log
from synthaug_plugins.engine.learn_words_job import CHECKPOINTS, WordsJob, small, strip
from synthaug_plugins.engine.learn_words_recipe import WordsRun, decisive, prepare_words
from synthaug_plugins.engine.progress import TrainingProgress
from synthaug_plugins.executors.base import Executor
from synthaug_plugins.executors.local import Local
from synthaug_plugins.learning.words import LearnedWord, learned_word, steps_done
from synthaug_plugins.learning.words_options import decisive_options
from synthaug_plugins.models.fit import place
from synthaug_plugins.models.words import save_words
from synthaug_plugins.own_folder import refuse_among_images
from synthaug_plugins.prompts.placeholders import word_of
from synthaug_plugins.store.files import write_whole

WORDS, CARD, SHEET = 'words.safetensors', 'card.md', 'sheet.png'


def learn_class_words(recipe: Mapping[str, Any], out: str | Path, device: str = 'auto', quiet: bool = False, executor: Executor | None = None) -> Path:
    """Learn the words of a complete recipe into the folder `out`; continue a run that is there.

    The folder receives words.safetensors (for the option `words` of generators), card.md, sheet.png (real images and samples of each word),
    log.jsonl with one line per class: loss curve, seconds, steps per second; checkpoints/ and samples/.

    Args:
        recipe: as `engine.learn_words_recipe.load_words_recipe` returns it.
        out: new, empty, or the folder of an earlier call with a recipe that differs in names, samples and memory only.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quiet: no progress on standard error.
        executor: whose workers learn the words, a class at a time, on its own devices; the words depend on it as
            far only as on the device and its number of threads. None: this process, on `device`.

    Returns: the file of words.

    Raises:
        RecipeError, DataError, ModelError: see `prepare_words`; or `out` lies within the images, is not ours, or holds a run of another recipe or on
            other images, whose differing keys are named; or a loss is not finite.
        StoreError: the disk is full; the last checkpoint is sound.
        ExecutorError: workers were lost again and again; their checkpoints are sound.
        Stopped: Ctrl-C.
    """
    folder, executor = Path(out).expanduser(), executor or Local(device, 1)
    run = prepare_words(recipe)
    refuse_among_images(folder, run.real_images.root)
    ours = LearnFolder(folder, 'words', run.recipe, decisive)
    with ours.at_work(lambda: _how_far(folder, run)):
        sha256 = run.real_images.content_hash([i for ids in run.images.values() for i in ids])
        ours.remember_data(sha256)
        return _Learning(run, folder, sha256, executor).learn(quiet)


def save_stand_in(run: WordsRun, file: Path) -> None:
    """Write words of zeros in place of those that a run will learn: what uses them can be checked before there are any."""
    rows = {e: {word_of(name): torch.zeros(run.options.vectors, width) for name in run.classes} for e, width in run.model.text_widths().items()}
    save_words(file, rows, {**_known_before(run, list(rows)), 'model': run.model.origin()})


def _known_before(run: WordsRun, encoders: list[str]) -> dict[str, Any]:
    """What the card of a run's words will say, as far as that is known before they are learned."""
    o = run.options
    return {
        'classes': list(run.classes),
        'words': {name: word_of(name) for name in run.classes},
        'vectors': o.vectors,
        'encoders': encoders,
        'erasures': run.model.erasures.hashes(run.classes) if run.model.erasures is not None else None,
        'initialised_from': {'word': o.initialise_from} if o.initialise_from is not None else {'class_name': True, 'names': dict(run.names)},
    }


def _how_far(folder: Path, run: WordsRun) -> str:
    steps = [steps_done(folder / CHECKPOINTS, name) for name in run.classes]
    done = sum(n == run.options.steps for n in steps)
    return f'holds {done} of {len(run.classes)} words and {sum(steps) - done * run.options.steps} steps of others'


class _Learning:
    """One call of `learn_class_words`, from the checked recipe on."""

    def __init__(self, run: WordsRun, folder: Path, sha256: str, executor: Executor) -> None:
        self.run, self.folder, self.sha256, self.executor = run, folder, sha256, executor
        self.log = {entry['class']: entry for entry in read_log(folder)}
        self._forget_other_samples()

    def learn(self, quiet: bool) -> Path:
        """Learn to the end and write the results."""
        run, file = self.run, self.folder / WORDS
        with nullcontext() if quiet else TrainingProgress(len(run.classes) * run.options.steps * run.options.batch_size) as progress:
            words = self._words(progress)
        rows = {e: {word_of(name): words[name].rows[e] for name in run.classes} for e in run.model.text_widths()}
        card = self._card(list(rows), words)
        save_words(file, rows, card)
        draw_sheet(self.folder / SHEET, [(name, self._row(name)) for name in self._shown()])
        write_whole(self.folder / CARD, self._describe(card).encode())
        return file

    def _words(self, progress: TrainingProgress | None) -> dict[str, LearnedWord]:
        """The words of all classes: those that checkpoints hold, and the others, which the executor learns."""
        found = {name: learned_word(self.folder / CHECKPOINTS, name) for name in self.run.classes}
        todo = [name for name, word in found.items() if word is None or (name in self._shown() and not strip(self.folder, name).is_file())]
        steps, batch = self.run.options.steps, self.run.options.batch_size
        done = len(found) - len(todo)

        def on_step(of_class: int, loss: Tensor) -> None:
            if progress:
                progress.step((done * steps + of_class) * batch, loss)

        job = WordsJob(self.run.recipe, self.folder, self.sha256, self.run, on_step)
        with closing(self.executor.run(job, todo)) if todo else nullcontext(()) as results:
            for name, said in results:
                done += 1
                word = found[name] = learned_word(self.folder / CHECKPOINTS, name)
                assert word is not None
                if progress:
                    progress.step(done * steps * batch, torch.tensor(word.curve[-1]))
                self._write_log({n: w for n, w in found.items() if w is not None}, {name: said})
        words = {name: word for name, word in found.items() if word is not None}
        self._write_log(words, {})
        return words

    def _write_log(self, words: Mapping[str, LearnedWord], said: Mapping[str, Mapping[str, float]]) -> None:
        """A line for each class whose word is learned, in the order of the classes. Lines that an earlier call wrote stay."""
        for name, word in words.items():
            if name not in self.log:
                self.log[name] = {'class': name, 'word': word_of(name), 'steps': self.run.options.steps, 'loss': word.curve, **said.get(name, {})}
        write_log(self.folder, [self.log[name] for name in self.run.classes if name in self.log])

    def _shown(self) -> Sequence[str]:
        """The classes of which the sheet shows samples."""
        return self.run.classes[: self.run.recipe['samples']['max_classes']]

    def _forget_other_samples(self) -> None:
        """Remove the samples of an earlier call that drew others: its recipe may differ in them."""
        about = self.folder / 'samples' / 'samples.json'
        said = json.dumps({key: value for key, value in self.run.recipe['samples'].items() if key != 'max_classes'}, indent=1) + '\n'
        if not about.is_file() or about.read_text(encoding='utf-8') != said:
            shutil.rmtree(about.parent, ignore_errors=True)
            write_whole(about, said.encode())

    def _row(self, name: str) -> np.ndarray:
        """Real images of a class, a gap, and samples of its word, as the sheet shows them."""
        n, size = self.run.recipe['samples']['per_class'], self.run.model.image_size
        real = [small(place(self.run.real_images.load(i), *size, self.run.options.fit).pixels) for i in self.run.images[name][:n]]
        made = np.split(np.asarray(Image.open(strip(self.folder, name)).convert('RGB')), n, axis=1)
        gap = [np.full_like(made[0], 255)] * (n - len(real) + 1)
        return np.stack([*real, *gap, *made])

    def _card(self, encoders: list[str], words: Mapping[str, LearnedWord]) -> dict[str, Any]:
        """What the file of words says of itself. Nothing in it depends on when or how often the run was stopped."""
        run, o = self.run, self.run.options
        return {
            'name': run.recipe['name'] or self.folder.name,
            'what': 'learned class words (textual inversion)',
            'licence': run.recipe['licence'],
            **_known_before(run, encoders),
            'model': run.model.origin(contents=True),
            'data': {'sha256': self.sha256, 'images_per_class': {name: len(ids) for name, ids in run.images.items()}},
            'options': decisive_options(o),
            'loss_curves': {name: words[name].curve for name in run.classes},
            'device': ', '.join(sorted({word.device for word in words.values()})),
            'made_by': f'synthaug_plugins {__version__}',
        }

    def _describe(self, card: Mapping[str, Any]) -> str:
        """The card for a reader."""
        run, o = self.run, self.run.options
        start = f'{o.initialise_from!r}, which says nothing of the class' if o.initialise_from is not None else "those of the class's name"
        erased = '; each on the model that has its class erased' if card['erasures'] else ''
        beside = f', erasures={run.recipe["model"]["erasures"]!r}' if card['erasures'] else ''
        stock = (
            "Of no use without the erasures: a class's word belongs to the model that has the class erased.\n"
            if card['erasures']
            else 'On a pipeline of one text encoder, stock diffusers takes them too:\n\n```python\n'
            f"for word, rows in safetensors.torch.load_file('{WORDS}').items():\n    pipe.load_textual_inversion({{word: rows}})\n```\n"
        )
        rows = [
            f'| {name} | `{word_of(name)}` | {len(run.images[name])} | {card["loss_curves"][name][0]:.4f} | {card["loss_curves"][name][-1]:.4f} |'
            for name in run.classes
        ]
        return '\n'.join(
            [
                f'# {card["name"]}\n\nLearned words for {len(run.classes)} classes, for `{run.model.name}` and no other model{erased}.\n',
                f'- {o.vectors} vectors per word and text encoder, started from {start}.',
                f'- {o.steps} steps of {o.batch_size} images, AdamW, learning rate {o.learning_rate:g}, {len(o.templates)} templates.',
                f'- Licence: {card["licence"] or "not stated"}.\n',
                f'![left: real images; right: samples of the words]({SHEET})\n',
                f'Left: real images. Right: samples of `{run.recipe["samples"]["prompt"]}` with the word in it, from noise.\n',
                '| class | word | images | first loss | last loss |\n|---|---|---|---|---|',
                *rows,
                f"\nIn a recipe of `synthaug generate`:\n\n```python\ngenerator = dict(type='synthaug_plugins.TextToImage', model={run.model.name!r}, "
                f"words='{WORDS}'{beside})\n```\n\n{stock}",
            ]
        )
