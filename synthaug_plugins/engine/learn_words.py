"""Learn the words of a data set's classes: from a recipe to a file of words that generators read."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synthaug_plugins import __version__
from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.learn_folder import LearnFolder, check_outside
from synthaug_plugins.engine.learn_output import draw_sheet, read_log, write_png
from synthaug_plugins.engine.learn_samples import LoadedPipeline
from synthaug_plugins.engine.learn_words_recipe import WordsRun, decisive, prepare_words
from synthaug_plugins.engine.progress import TrainingProgress
from synthaug_plugins.learning.checkpoint import STATE
from synthaug_plugins.learning.words import ClassImages, learn_words
from synthaug_plugins.learning.words_options import decisive_options
from synthaug_plugins.models.fit import place
from synthaug_plugins.models.words import save_words
from synthaug_plugins.prompts.placeholders import word_of
from synthaug_plugins.prompts.templates import fill
from synthaug_plugins.store.files import write_whole

WORDS, CARD, SHEET = 'words.safetensors', 'card.md', 'sheet.png'
_CELL = 128  # pixels of an image on the sheet, at most


def learn_class_words(recipe: Mapping[str, Any], out: str | Path, device: str = 'auto', quiet: bool = False) -> Path:
    """Learn the words of a complete recipe into the folder `out`; continue a run that is there.

    The folder receives words.safetensors (for the option `words` of generators), card.md, sheet.png (real images and samples of each word),
    log.jsonl with one line per class: loss curve, seconds, steps per second; checkpoints/ and samples/.

    Args:
        recipe: as `engine.learn_words_recipe.load_words_recipe` returns it.
        out: new, empty, or the folder of an earlier call with a recipe that differs in names, samples and memory only.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quiet: no progress on standard error.

    Returns: the file of words.

    Raises:
        RecipeError, DataError, ModelError: see `prepare_words`; or `out` lies within the images, is not ours, or holds a run of another recipe or on
            other images, whose differing keys are named; or a loss is not finite.
        StoreError: the disk is full; the last checkpoint is sound.
        Stopped: Ctrl-C.
    """
    folder, where = Path(out).expanduser(), choose_device(device)
    run = prepare_words(recipe)
    check_outside(folder, run.real_images.root)
    ours = LearnFolder(folder, 'words', run.recipe, decisive)
    with ours.at_work(lambda: _how_far(folder, run)):
        sha256 = run.real_images.content_hash([i for ids in run.images.values() for i in ids])
        ours.remember_data(sha256)
        return _Learning(run, folder, sha256, where).learn(quiet)


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
    state = folder / 'checkpoints' / STATE
    done, steps = divmod(json.loads(state.read_text(encoding='utf-8'))['step'] if state.is_file() else 0, run.options.steps)
    return f'holds {done} of {len(run.classes)} words and {steps} steps of the next'


class _Learning:
    """One call of `learn_class_words`, from the checked recipe on."""

    def __init__(self, run: WordsRun, folder: Path, sha256: str, device: torch.device) -> None:
        self.run, self.folder, self.device = run, folder, device
        self.images = ClassImages(lambda name: map(run.real_images.load, run.images[name]), sha256)
        self.log = {entry['class']: entry for entry in read_log(folder / 'log.jsonl')}
        self.curves: dict[str, list[float]] = {}
        self._forget_other_samples()
        self._times: list[tuple[int, float]] = []  # of the steps of the class that is being learned, in this call

    def learn(self, quiet: bool) -> Path:
        """Learn to the end and write the results."""
        run, batch = self.run, self.run.options.batch_size
        with nullcontext() if quiet else TrainingProgress(len(run.classes) * run.options.steps * batch) as progress:

            def on_step(steps: int, loss: Tensor) -> None:
                self._times[1:] = [(steps, time.monotonic())]
                if progress:
                    progress.step(steps * batch, loss)

            checkpoints = self.folder / 'checkpoints'
            arguments = (run.model, run.classes, run.names, self.images, run.options, checkpoints, self.device)
            rows = learn_words(*arguments, on_step=on_step, on_class=self._class)
        file = self.folder / WORDS
        card = self._card(list(rows))
        save_words(file, rows, card)
        shown = run.classes[: run.recipe['samples']['max_classes']]
        draw_sheet(self.folder / SHEET, [(name, self._row(name)) for name in shown])
        write_whole(self.folder / CARD, self._describe(card).encode())
        return file

    def _class(self, name: str, curve: list[float]) -> None:
        """A word is learned: write its line of the log, and its samples, unless an earlier call did."""
        self.curves[name] = curve
        if name not in self.log:
            entry: dict[str, Any] = {'class': name, 'word': word_of(name), 'steps': self.run.options.steps, 'loss': curve}
            if len(self._times) == 2 and self._times[1][0] > self._times[0][0]:
                (before, started), (steps, ended) = self._times
                entry |= {'steps_per_s': round((steps - before) / max(ended - started, 1e-9), 2), 'timed_steps': steps - before}
            self.log[name] = entry
            write_whole(self.folder / 'log.jsonl', ''.join(json.dumps(e, ensure_ascii=False) + '\n' for e in self.log.values()).encode())
        self._times.clear()
        number = self.run.classes.index(name)
        if number < self.run.recipe['samples']['max_classes'] and not self._strip(name).is_file():
            write_png(self._strip(name), np.concatenate([_small(image) for image in self._samples(name)], axis=1))

    def _forget_other_samples(self) -> None:
        """Remove the samples of an earlier call that drew others: its recipe may differ in them."""
        about = self.folder / 'samples' / 'samples.json'
        said = json.dumps({key: value for key, value in self.run.recipe['samples'].items() if key != 'max_classes'}, indent=1) + '\n'
        if not about.is_file() or about.read_text(encoding='utf-8') != said:
            shutil.rmtree(about.parent, ignore_errors=True)
            write_whole(about, said.encode())

    def _strip(self, name: str) -> Path:
        return self.folder / 'samples' / f'{word_of(name)[1:-1]}.png'

    def _samples(self, name: str) -> list[np.ndarray]:
        """Images of a word from noise, (H, W, 3) uint8 each. The same noise for every word."""
        samples = self.run.recipe['samples']
        return list(LoadedPipeline(self.run.model, samples, self.device).draw(name, fill(samples['prompt'], word_of(name)), range(samples['per_class'])))

    def _row(self, name: str) -> np.ndarray:
        """Real images of a class, a gap, and samples of its word, as the sheet shows them."""
        n, size = self.run.recipe['samples']['per_class'], self.run.model.image_size
        real = [_small(place(self.run.real_images.load(i), *size, self.run.options.fit).pixels) for i in self.run.images[name][:n]]
        made = np.split(np.asarray(Image.open(self._strip(name)).convert('RGB')), n, axis=1)
        gap = [np.full_like(made[0], 255)] * (n - len(real) + 1)
        return np.stack([*real, *gap, *made])

    def _card(self, encoders: list[str]) -> dict[str, Any]:
        """What the file of words says of itself. Nothing in it depends on when or how often the run was stopped."""
        run, o = self.run, self.run.options
        return {
            'name': run.recipe['name'] or self.folder.name,
            'what': 'learned class words (textual inversion)',
            'licence': run.recipe['licence'],
            **_known_before(run, encoders),
            'model': run.model.origin(contents=True),
            'data': {'sha256': self.images.sha256, 'images_per_class': {name: len(ids) for name, ids in run.images.items()}},
            'options': decisive_options(o),
            'loss_curves': {name: self.curves[name] for name in run.classes},
            'device': torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else 'CPU',
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


def _small(image: np.ndarray) -> np.ndarray:
    """An image as the sheet shows it: square, and not larger than its cell."""
    side = min(_CELL, *image.shape[:2])
    return image if image.shape[:2] == (side, side) else place(image, side, side, 'pad').pixels
