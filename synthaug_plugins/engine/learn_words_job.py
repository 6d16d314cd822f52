"""Learning words class by class, as a job for executors: what a worker loads and does, and the files that it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.learn_output import write_png
from synthaug_plugins.engine.learn_samples import LoadedPipeline
from synthaug_plugins.engine.learn_words_recipe import WordsRun, prepare_words
from synthaug_plugins.executors.base import beat
from synthaug_plugins.learning.words import ClassImages, WordLearner
from synthaug_plugins.models.fit import place
from synthaug_plugins.prompts.placeholders import word_of
from synthaug_plugins.prompts.templates import fill

CHECKPOINTS = 'checkpoints'
"""In the folder of a run: a checkpoint folder for each class."""
_CELL = 128  # pixels of an image on the sheet, at most


class WordsJob:
    """Tasks are names of classes; the result of one is dict(steps_per_s=..., timed_steps=...), empty where no steps were timed.

    A worker leaves the word in the class's checkpoint folder, and its samples, where the sheet shows them, in samples/.

    Args:
        recipe: complete.
        folder: of the run.
        sha256: of the images.
        run: the same recipe prepared, for a worker in this process; others prepare it themselves.
        on_step: called after each step in this process with (steps of the class, loss).
    """

    name = 'class'

    def __init__(
        self,
        recipe: Mapping[str, Any],
        folder: Path,
        sha256: str,
        run: WordsRun | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.recipe, self.folder, self.sha256, self._run, self._on_step = dict(recipe), folder.absolute(), sha256, run, on_step

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_run': None, '_on_step': None}

    def start(self, device: str) -> Callable[[str], dict[str, float]]:
        """Load the model; the function that learns the word of a class."""
        where, run = choose_device(device), self._run or prepare_words(self.recipe)
        images = ClassImages(lambda name: map(run.real_images.load, run.images[name]), self.sha256)
        learner = WordLearner(run.model, run.classes, run.names, images, run.options, self.folder / CHECKPOINTS, where)
        shown = run.classes[: run.recipe['samples']['max_classes']]

        def work(name: str) -> dict[str, float]:
            times: list[tuple[int, float]] = []

            def on_step(steps: int, loss: Tensor) -> None:
                times[1:] = [(steps, time.monotonic())]
                beat()
                if self._on_step is not None:
                    self._on_step(steps, loss)

            learner.learn(name, on_step)
            if name in shown and not strip(self.folder, name).is_file():
                write_png(strip(self.folder, name), np.concatenate([small(image) for image in _samples(run, name, where)], axis=1))
            return _speed(times)

        return work


def _samples(run: WordsRun, name: str, device: torch.device) -> list[np.ndarray]:
    """Images of a word from noise, (H, W, 3) uint8 each. The same noise for every word."""
    samples = run.recipe['samples']
    return list(LoadedPipeline(run.model, samples, device).draw(name, fill(samples['prompt'], word_of(name)), range(samples['per_class'])))


def _speed(times: list[tuple[int, float]]) -> dict[str, float]:
    """Steps per second between the first and the last step that was taken."""
    if len(times) < 2 or times[1][0] <= times[0][0]:
        return {}
    (before, started), (steps, ended) = times
    return {'steps_per_s': round((steps - before) / max(ended - started, 1e-9), 2), 'timed_steps': steps - before}


def strip(folder: Path, name: str) -> Path:
    """The samples of a class's word, side by side."""
    return folder / 'samples' / f'{word_of(name)[1:-1]}.png'


def small(image: np.ndarray) -> np.ndarray:
    """An image as the sheet shows it: square, and not larger than its cell."""
    side = min(_CELL, *image.shape[:2])
    return image if image.shape[:2] == (side, side) else place(image, side, side, 'pad').pixels
