"""Erase classes from a pipeline: from a recipe to a folder of erasures that generators read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins import __version__
from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.learn_erasure_recipe import Concepts, decisive, erased_classes, erasure_options
from synthaug_plugins.engine.learn_folder import LearnFolder
from synthaug_plugins.engine.learn_output import draw_sheet, read_log, write_log
from synthaug_plugins.engine.learn_samples import LoadedPipeline
from synthaug_plugins.engine.progress import TrainingProgress
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.guidance_scale import GuidanceScale
from synthaug_plugins.learning.batches import mix_seed
from synthaug_plugins.learning.erasure import FREE, ConceptEraser, check_model
from synthaug_plugins.models.erasure import ERASURES, FORMAT, Erasures, erasure_file, save_erasure
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.own_folder import refuse_among_images
from synthaug_plugins.real_images import RealImages

FOLDER = 'erasures'
"""Of the results, in the folder of a run."""


def learn_erasure(recipe: Mapping[str, Any], out: str | Path, device: str = 'auto', quiet: bool = False) -> Erasures:
    """Erase every class of a complete recipe, one after another with one model in memory; continue a run that is there.

    The folder receives erasures/ (for the option `erasures` of generators), samples/<class>.png with images of the class and of others before and after,
    checkpoints/ of the class at work, and log.jsonl with one line per class: losses (iterations, mean loss since the last checkpoint), precision of the
    network, seconds of the call that finished it.

    Args:
        recipe: as `engine.learn_erasure_recipe.load_erasure_recipe` returns it.
        out: new, empty, or the folder of an earlier call with a recipe that differs in classes, data and samples only: what is there stays.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quiet: no progress on standard error.

    Returns: the erasures of all classes in the folder, those of earlier calls among them.

    Raises:
        RecipeError: the recipe names no classes, cannot be told to the model, or `out` is not ours or holds erasures of another recipe; the keys
            that differ are named.
        DataError: classes that do not fit the data or the prompts.
        ModelError: nothing can be erased from this model, or the loss is not finite.
        StoreError: the disk is full; what was erased is sound.
        Stopped: Ctrl-C.
    """
    folder, where = Path(out).expanduser(), choose_device(device)
    real_images = RealImages(recipe['data']) if recipe['data'] else None
    if real_images is not None:
        refuse_among_images(folder, real_images.root)
    classes = erased_classes(recipe, None if real_images is None else real_images.classes)
    model = TextModel(**recipe['model'])
    check_model(model)
    model.check_weights()
    GuidanceScale(recipe['samples']['guidance_scale'], model)
    for steps in (recipe['samples']['num_steps'] or model.default_steps, erasure_options(recipe).num_steps):
        model.visited_sigmas(steps)  # refuses a number that the scheduler cannot take
    others = {name: _others(recipe['samples']['others'], name, classes) for name in classes}
    concepts = Concepts(recipe, model, classes, list(dict.fromkeys(other for found in others.values() for other in found if other not in classes)))
    ours = LearnFolder(folder, 'erasure', recipe, decisive)
    with ours.at_work(lambda: f'is of the class after {_finished(folder)} finished ones'):
        run = _Erasing(recipe, folder, model, concepts, others, where)
        return run.erase(classes, quiet)


def _others(wanted: int | Sequence[str], name: str, classes: Sequence[str]) -> list[str]:
    """The classes that are drawn beside one: those named, or the next so many."""
    if not isinstance(wanted, int):
        return [other for other in wanted if other != name]
    place = list(classes).index(name)
    return [*classes[place + 1 :], *classes[:place]][:wanted]


def _finished(folder: Path) -> int:
    return len(Erasures(folder / FOLDER).classes) if (folder / FOLDER / ERASURES).is_file() else 0


class _Erasing:
    """One call of `learn_erasure`, from checked options on."""

    def __init__(
        self, recipe: Mapping[str, Any], folder: Path, model: TextModel, concepts: Concepts, others: Mapping[str, Sequence[str]], device: torch.device
    ) -> None:
        self.recipe, self.folder, self.model, self.concepts, self.others, self.device = recipe, folder, model, concepts, others, device
        self.options = erasure_options(recipe)
        self.card = self._card()
        self._before: dict[str, np.ndarray] = {}

    def _card(self) -> dict[str, Any]:
        """What erasures.json says, with the classes that are done.

        Raises:
            RecipeError: they were erased from another model, or by other prompts.
        """
        card = {
            'format': FORMAT,
            'what': 'erasures of classes from the U-Net of a text-to-image pipeline (ESD, Gandikota et al., ICCV 2023)',
            'model': {**self.model.origin(), 'licence': self.model.files.licence()},
            'weights': self.options.weights,
            'options': {k: v for k, v in asdict(self.options).items() if k not in FREE and k != 'weights'},
            'erase_from': self.recipe['erase_from'],
            'image_size': list(self.model.image_size),
            'made_by': f'synthaug_plugins {__version__}',
            'classes': {},
        }
        if not (self.folder / FOLDER / ERASURES).is_file():
            return card
        known = Erasures(self.folder / FOLDER).card
        if not self.model.has_origin(known['model']):
            raise RecipeError(f'{str(self.folder)!r} holds erasures from another model: model changed.', 'Restore the model, or give a new folder.')
        for name, entry in known['classes'].items():
            if name in self.concepts.prompts and entry.get('prompts') != self.concepts.prompts[name]:
                what = f'{str(self.folder)!r} holds the class {name!r} erased by other prompts: {entry.get("prompts")}.'
                raise RecipeError(what, 'Restore the names and prompts, or give a new folder.')
        return {**card, 'model': known['model'], 'classes': known['classes']}

    def erase(self, classes: Sequence[str], quiet: bool) -> Erasures:
        """Erase the classes that are not done yet."""
        left = [name for name in classes if name not in self.card['classes']]
        for name in self.card['classes']:
            shutil.rmtree(self._checkpoints(name), ignore_errors=True)  # a kill between the card and this left it
        if left:
            eraser = ConceptEraser(self.model, self.options, self.device)
            self.card['model'] |= self.model.origin(contents=True)  # its weights are there now
            total = self.options.iterations * len(left)
            with nullcontext() if quiet else TrainingProgress(total, unit='iterations') as progress:
                for number, name in enumerate(left):
                    self._erase(eraser, name, progress, number * self.options.iterations)
        return Erasures(self.folder / FOLDER)

    def _erase(self, eraser: ConceptEraser, name: str, progress: TrainingProgress | None, before: int) -> None:
        """One class: its weights, its sheet, and last its place on the card, which is what makes it done."""
        started = time.monotonic()

        def on_step(done: int, loss: Tensor) -> None:
            if progress is not None:
                progress.step(before + done, loss)

        prompts = self.concepts.prompts[name]
        tensors, losses = eraser.erase(name, prompts, self._checkpoints(name), self.recipe['erase_from'], on_step)
        draw_sheet(self.folder / 'samples' / f'{Path(erasure_file(name)).stem}.png', self._sheet(eraser, name))
        self._log({'class': name, 'losses': losses, 'precision': eraser.precision, 'seconds': round(time.monotonic() - started, 1)})
        self.card = save_erasure(self.folder / FOLDER, self.card, name, tensors, {'prompts': prompts})
        shutil.rmtree(self._checkpoints(name))

    def _checkpoints(self, name: str) -> Path:
        return self.folder / 'checkpoints' / Path(erasure_file(name)).stem

    def _log(self, entry: Mapping[str, Any]) -> None:
        # A kill between the log and the card has left a line of a class that is not done.
        write_log(self.folder, [*(known for known in read_log(self.folder) if known['class'] != entry['class']), entry])

    def _sheet(self, eraser: ConceptEraser, erased: str) -> list[tuple[str, np.ndarray]]:
        """Rows of a sheet: the class and others, each before and after, from the same noise."""
        samples = self.recipe['samples']
        pipeline, seeds = LoadedPipeline(self.model, samples, self.device), [mix_seed(self.recipe['seed'], 'samples', k) for k in range(samples['per_class'])]

        def draw(name: str) -> np.ndarray:
            return pipeline.draw(name, self.concepts.plain[name], seeds)

        rows = []
        for name in [erased, *self.others[erased]]:
            if name not in self._before:
                self._before[name] = draw(name)
            with eraser.edited():
                after = draw(name)
            rows += [(name, self._before[name]), (f'{name}, {erased} erased', after)]
        return rows
