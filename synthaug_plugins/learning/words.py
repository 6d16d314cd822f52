"""Learn a word for each class: textual inversion (Gal et al. 2022) on all classes of a data set, one after another, with one model in memory.

Of each class, min over w of E |F(c_in(z + sigma n); t, prompt(w)) - F*|^2 (Gal et al., equation 2, for whatever the network predicts): z is a
draw from the VAE's posterior of one of its images, t uniform over the whole timesteps, prompt(w) a template around the word, and w the rows of the
word in the text encoders' tables. Nothing else learns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.device import device_name
from synthaug_plugins.diffusion.precision import full_float32, network_dtype
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.learning.checkpoint import STATE, load_checkpoint, save_checkpoint, saved_step, take_up
from synthaug_plugins.learning.words_class import ClassWord, Rows, rows_in_tables
from synthaug_plugins.learning.words_options import WordTraining, check_word_training, decisive_options
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.prompts.placeholders import word_of, words_of

_CHECK_STEPS = 50  # between two looks at whether losses are finite, each of which waits for the device


@dataclass(frozen=True)
class ClassImages:
    """The real images that a run learns from.

    Attributes:
        of: class name -> its images, (H, W, 3) uint8 each, gone through once; called when the turn of the class comes.
        sha256: of their contents.
    """

    of: Callable[[str], Iterable[np.ndarray]]
    sha256: str


@dataclass(frozen=True)
class LearnedWord:
    """A word that is learned.

    Attributes:
        rows: encoder -> its vectors (vectors, width) float32 on the CPU.
        curve: means of the loss over twentieths of its steps.
        device: name of what it was learned on.
    """

    rows: Rows
    curve: list[float]
    device: str


def learn_words(
    model: TextModel,
    classes: Sequence[str],
    names: Mapping[str, str],
    images: ClassImages,
    options: WordTraining,
    work_dir: Path,
    device: torch.device,
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Learn the words of all classes, one after another; go on from the checkpoints in `work_dir`. Arguments: see `WordLearner`.

    Args:
        on_step: called after each step with (steps of all classes, its loss as a 0-dim tensor on the device).

    Returns: encoder -> word -> vectors (options.vectors, width) float32 on the CPU, as `save_words` takes them.

    Raises:
        RecipeError, DataError, ModelError: see `WordLearner`.
    """
    learner = WordLearner(model, classes, names, images, options, work_dir, device)
    done = {}
    for k, name in enumerate(classes):
        told = partial(_counted, on_step, k * options.steps) if on_step is not None else None
        done[name] = learner.learn(name, told)
    return {e: {word_of(name): done[name].rows[e] for name in classes} for e in model.tables()}


def _counted(on_step: Callable[[int, Tensor], None], before: int, steps: int, loss: Tensor) -> None:
    on_step(before + steps, loss)


class WordLearner:
    """Learns the words of classes, any number of them and in any order, with one model in memory.

    Every draw depends on the seed, the class's name and the step alone. So a killed run ends with the bits of an unbroken one on a CPU, and what a
    class's word becomes does not depend on which other classes are learned, where, or in what order: each class has a checkpoint folder of its own.

    Args:
        model: of a family that takes words, not loaded yet. Afterwards it is loaded and knows the words. With erasures, the word of a class is
            learned on the network that has that class erased (DA-Fusion's model-centric defence).
        classes: their names.
        names: class -> what it is called; its vectors start from the tokens of that, unless options.initialise_from says another text.
        images: to learn from.
        options: see `WordTraining`.
        work_dir: holds the classes' checkpoint folders and nothing else.
        device: where to run.

    Raises:
        RecipeError: an option is out of range, a template does not fit into the token limit, or `work_dir` is of an earlier version.
        DataError: two classes have the same word, or one is a token of the model already.
        ModelError: the model takes no words or cannot be loaded.
    """

    def __init__(
        self,
        model: TextModel,
        classes: Sequence[str],
        names: Mapping[str, str],
        images: ClassImages,
        options: WordTraining,
        work_dir: Path,
        device: torch.device,
    ) -> None:
        check_word_training(options)
        model.refuse_words('words to learn')
        _refuse_joint(work_dir)
        self.model, self.words, self.names, self.images, self.options = model, words_of(classes), names, images, options
        self.work_dir, self.device = work_dir, device
        if new := {word: options.vectors for word in self.words.values() if word not in model.tokens.words}:
            model.tokens.add(new)
        self.dtype = network_dtype(options.precision, device)
        self._facts = {**decisive_options(options), 'data': images.sha256, 'model': model.identity(), 'device': device.type, 'dtype': str(self.dtype)}
        self.denoiser = model.load(device, self.dtype)

    def learn(
        self,
        name: str,
        on_step: Callable[[int, Tensor], None] | None = None,
        on_checkpoint: Callable[[int], None] | None = None,
    ) -> LearnedWord:
        """Learn the word of a class, from its first step or from its checkpoint, and set it in the model. A word that is learned is read.

        Args:
            name: of the class.
            on_step: called after each step with (steps of the class, its loss as a 0-dim tensor on the device).
            on_checkpoint: called after each checkpoint with the steps of the class.

        Raises:
            RecipeError: the class's checkpoint is of another run; what differs is named.
            ModelError: the checkpoint is damaged, or a loss is not finite: class and step are named. The last checkpoint stays.
        """
        folder = class_folder(self.work_dir, name)
        # Through JSON, to compare with what a checkpoint holds: tuples become lists.
        identity = json.loads(json.dumps({**self._facts, 'class': name, 'name': self.names[name]}))
        found = take_up(folder, identity, 'learning of words')
        if self.model.erasures is not None:
            self.model.erase(name)
        done = _learned(*found) if found is not None else None
        if done is None:
            done = self._learn(name, folder, identity, found, on_step, on_checkpoint)
        self.model.set_words({e: {self.words[name]: rows} for e, rows in done.rows.items()})
        return done

    def _learn(
        self,
        name: str,
        folder: Path,
        identity: Mapping[str, Any],
        found: tuple[dict[str, Tensor], dict[str, Any]] | None,
        on_step: Callable[[int, Tensor], None] | None,
        on_checkpoint: Callable[[int], None] | None,
    ) -> LearnedWord:
        o, state = self.options, {'identity': identity, 'curve': None, 'on': device_name(self.device)}
        with full_float32():
            start = self.names[name] if o.initialise_from is None else o.initialise_from
            learning = ClassWord(name, self.words[name], start, self.images.of(name), self.model, o, self.device, self.dtype)
            if found is not None:
                learning.restore(found[0], found[1]['step'])
            with rows_in_tables(self.model.tables(), learning.ids, learning.rows):
                while learning.steps < o.steps:
                    loss = learning.step(self.denoiser)
                    last, due = learning.steps == o.steps, learning.steps % o.checkpoint_steps == 0
                    if on_step is not None:
                        on_step(learning.steps, loss)
                    if learning.steps % _CHECK_STEPS == 0 or due or last:
                        learning.check(folder)
                    if due and not last:
                        save_checkpoint(folder, learning.steps, learning.tensors(), state)
                        if on_checkpoint is not None:
                            on_checkpoint(learning.steps)
        done = LearnedWord({e: rows.detach().cpu() for e, rows in learning.rows.items()}, learning.curve(), str(state['on']))
        save_checkpoint(folder, o.steps, {f'rows.{e}': rows for e, rows in done.rows.items()}, {**state, 'curve': done.curve})
        if on_checkpoint is not None:
            on_checkpoint(o.steps)
        return done


def class_folder(work_dir: Path, name: str) -> Path:
    """The checkpoint folder of a class's word."""
    return work_dir / word_of(name)[1:-1]


def learned_word(work_dir: Path, name: str) -> LearnedWord | None:
    """A class's word as its checkpoint holds it; None where it is not learned to the end.

    Raises:
        ModelError: the checkpoint is damaged.
    """
    found = load_checkpoint(class_folder(work_dir, name))
    return None if found is None else _learned(*found)


def steps_done(work_dir: Path, name: str) -> int:
    """Steps of a class's word that a killed run need not take again. Reads the state alone."""
    return saved_step(class_folder(work_dir, name))


def _learned(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> LearnedWord | None:
    """The word that a checkpoint holds, if it is a finished one."""
    if state['curve'] is None:
        return None
    return LearnedWord({name.removeprefix('rows.'): rows for name, rows in tensors.items()}, state['curve'], state['on'])


def _refuse_joint(work_dir: Path) -> None:
    """Refuse (RecipeError) the one checkpoint for all classes of earlier versions: what is in it would be learned again without a word."""
    if (work_dir / STATE).is_file():
        what = f'{str(work_dir)!r} holds a checkpoint of an earlier version, one for all classes.'
        raise RecipeError(what, 'Remove that folder: the words are learned anew, to the same values.')
