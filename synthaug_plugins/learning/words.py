"""Learn a word for each class: textual inversion (Gal et al. 2022) on all classes of a data set, one after another, with one model in memory.

Of each class, min over w of E |F(c_in(z + sigma n); t, prompt(w)) - F*|^2 (Gal et al., equation 2, for whatever the network predicts): z is a
draw from the VAE's posterior of one of its images, t uniform over the whole timesteps, prompt(w) a template around the word, and w the rows of the
word in the text encoders' tables. Nothing else learns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.diffusion.adapters import DiffusersDenoiser
from synthaug_plugins.diffusion.precision import full_float32, network_dtype
from synthaug_plugins.errors import ModelError
from synthaug_plugins.learning.batches import Order, mix_seed
from synthaug_plugins.learning.checkpoint import adam_tensors, load_adam_tensors, save_checkpoint, take_up
from synthaug_plugins.learning.latents import posteriors
from synthaug_plugins.learning.words_class import first_rows, rows_in_tables
from synthaug_plugins.learning.words_options import WordTraining, check_word_training, decisive_options
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.models.words import tensor_name, word_tokens
from synthaug_plugins.prompts.placeholders import words_of
from synthaug_plugins.prompts.templates import fill

Rows = dict[str, Tensor]
_CHECK_STEPS = 50  # between two looks at whether losses are finite, each of which waits for the device
_CURVE = 20  # points of a class's loss curve


@dataclass(frozen=True)
class ClassImages:
    """The real images that a run learns from.

    Attributes:
        of: class name -> its images, (H, W, 3) uint8 each, gone through once; called when the turn of the class comes.
        sha256: of their contents.
    """

    of: Callable[[str], Iterable[np.ndarray]]
    sha256: str


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
    on_checkpoint: Callable[[int], None] | None = None,
    on_class: Callable[[str, list[float]], None] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Learn the words of all classes; go on from the newest checkpoint in `work_dir`.

    Every draw depends on the seed, the class's name and the step alone. So a killed run ends with the bits of an unbroken one on a CPU, and what a
    class's word becomes does not depend on which other classes are learned, or in what order.

    Args:
        model: of a family that takes words, not loaded yet. Afterwards it is loaded and knows the words. With erasures, the word of a class is
            learned on the network that has that class erased (DA-Fusion's model-centric defence).
        classes: their names.
        names: class -> what it is called; its vectors start from the tokens of that, unless options.initialise_from says another text.
        images: to learn from.
        options: see `WordTraining`.
        work_dir: holds the checkpoints and nothing else.
        device: where to run.
        on_step: called after each step with (steps of all classes, its loss as a 0-dim tensor on the device).
        on_checkpoint: called after each checkpoint with the steps of all classes.
        on_class: called when a class's word is learned, and set in the model, with its name and its loss curve: means over twentieths of its steps.
            Of a run that goes on, also for the classes that were learned before.

    Returns: encoder -> word -> vectors (options.vectors, width) float32 on the CPU, as `save_words` takes them.

    Raises:
        RecipeError: an option is out of range, a template does not fit into the token limit, or `work_dir` belongs to another run; what differs is
            named.
        DataError: two classes have the same word, or one is a token of the model already.
        ModelError: the model takes no words or cannot be loaded; or a loss is not finite: class and step are named. The last checkpoint stays.
    """
    check_word_training(options)
    model.refuse_words('words to learn')
    words = words_of(classes)
    if new := {word: options.vectors for word in words.values() if word not in model.tokens.words}:
        model.tokens.add(new)
    run = _Run(model, words, names, images, options, work_dir, device)
    found = run.resume()
    for name in classes:
        if model.erasures is not None:
            model.erase(name)
        if name not in run.done:
            run.learn(name, found, on_step, on_checkpoint)
            found = None
        word = words[name]
        model.set_words({e: {word: rows} for e, rows in run.done[name].items()})
        if on_class is not None:
            on_class(name, run.curves[name])
    return {e: {words[name]: run.done[name][e] for name in classes} for e in model.tables()}


class _Run:
    """The state of a run over all classes."""

    def __init__(
        self,
        model: TextModel,
        words: Mapping[str, str],
        names: Mapping[str, str],
        images: ClassImages,
        options: WordTraining,
        work_dir: Path,
        device: torch.device,
    ) -> None:
        self.model, self.words, self.names, self.images, self.options = model, words, names, images, options
        self.work_dir, self.device = work_dir, device
        self.dtype = network_dtype(options.precision, device)
        self.done: dict[str, Rows] = {}
        self.curves: dict[str, list[float]] = {}
        facts = {'classes': list(words), 'names': dict(names), 'data': images.sha256, 'model': model.identity()}
        # Through JSON, to compare with what a checkpoint holds: tuples become lists.
        self.identity = json.loads(json.dumps({**decisive_options(options), **facts, 'device': device.type, 'dtype': str(self.dtype)}))
        self.denoiser = model.load(device, self.dtype)

    def resume(self) -> tuple[dict[str, Tensor], int] | None:
        """Take up the classes that are done; the tensors and the step of the one that is not, if there is one."""
        found = take_up(self.work_dir, self.identity, 'learning of words')
        if found is None:
            return None
        tensors, state = found
        for name, curve in state['curves'].items():
            self.curves[name] = curve
            self.done[name] = {e: tensors[f'done.{tensor_name(e, self.words[name])}'] for e in self.model.tables()}
        begun = state['step'] - len(self.done) * self.options.steps
        return (tensors, begun) if begun else None

    def learn(
        self,
        name: str,
        found: tuple[dict[str, Tensor], int] | None,
        on_step: Callable[[int, Tensor], None] | None,
        on_checkpoint: Callable[[int], None] | None,
    ) -> None:
        """Learn the word of a class from its first step, or from what a checkpoint holds."""
        o, before = self.options, len(self.done) * self.options.steps
        with full_float32():
            learning = _Class(self, name)
            if found is not None:
                learning.restore(*found)
            with rows_in_tables(self.model.tables(), learning.ids, learning.rows):
                while learning.steps < o.steps:
                    loss = learning.step(self.denoiser)
                    last, due = learning.steps == o.steps, learning.steps % o.checkpoint_steps == 0
                    if on_step is not None:
                        on_step(before + learning.steps, loss)
                    if learning.steps % _CHECK_STEPS == 0 or due or last:
                        learning.check(self.work_dir)
                    if due and not last:
                        self.save(before + learning.steps, learning.tensors())
                        if on_checkpoint is not None:
                            on_checkpoint(before + learning.steps)
        self.done[name] = {e: rows.detach().cpu() for e, rows in learning.rows.items()}
        self.curves[name] = learning.curve()
        self.save(before + o.steps, {})
        if on_checkpoint is not None:
            on_checkpoint(before + o.steps)

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint: the words that are done, and the state of the one that is not."""
        done = {f'done.{tensor_name(e, self.words[name])}': rows for name, words in self.done.items() for e, rows in words.items()}
        save_checkpoint(self.work_dir, step, {**done, **tensors}, {'identity': self.identity, 'curves': self.curves})


class _Class:
    """The state of learning one class's word.

    Attributes:
        rows: encoder -> the word's vectors, which learn.
        ids: encoder -> their tokens.
        steps: how many are done.
    """

    def __init__(self, run: _Run, name: str) -> None:
        self.name, self.options, self.device, self.model = name, run.options, run.device, run.model
        o, word = run.options, run.words[name]
        self.rows: Rows = {}
        self.ids: dict[str, list[int]] = {}
        text = run.names[name] if o.initialise_from is None else o.initialise_from
        for e, table in self.model.tables().items():
            tokenizer = self.model.tokenizer(e)
            self.ids[e] = tokenizer.convert_tokens_to_ids(word_tokens(word, o.vectors))
            said = tokenizer(text, add_special_tokens=False).input_ids
            self.rows[e] = first_rows(table.weight[said].float(), o.vectors).requires_grad_()
        self.tokens = self.model.tokenise([fill(template, word) for template in o.templates])
        self.mean, self.deviation = posteriors(self.model, run.images.of(name), o.fit, self.device, o.hflip > 0)
        self.count = len(self.mean) // (2 if o.hflip > 0 else 1)
        self.order = Order(mix_seed(o.seed, name), np.zeros(self.count), class_balance=False)
        self.optimizer = torch.optim.AdamW(self.rows.values(), lr=o.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=o.weight_decay)
        self.generator = torch.Generator(self.device)
        self.losses = torch.zeros(o.steps, device=self.device)
        self.steps = 0
        # float16 loses gradients as small as those of a mean over all pixels.
        self.scale = float(self.mean[0].numel()) if run.dtype == torch.float16 else 1.0

    def step(self, denoiser: DiffusersDenoiser) -> Tensor:
        """One optimizer step; its loss, a 0-dim tensor on the device."""
        o, draws = self.options, self._draw(denoiser)
        size, loss = o.batch_size // o.accumulation, torch.zeros((), device=self.device)
        self.optimizer.zero_grad()
        for part in (slice(i, i + size) for i in range(0, o.batch_size, size)):
            share = self._loss(denoiser, *(d[part] for d in draws)) / o.batch_size
            (share * self.scale).backward()
            loss += share.detach()
        if self.scale != 1:
            for rows in self.rows.values():
                assert rows.grad is not None
                rows.grad /= self.scale
        self.optimizer.step()
        self.losses[self.steps] = loss
        self.steps += 1
        return loss

    def _draw(self, denoiser: DiffusersDenoiser) -> tuple[Tensor, ...]:
        """Of each image of this step's batch: template, place among the latents, noise level, and noise (2, c, h, w) for posterior and level.

        For the whole batch at once, so that no draw depends on the number of parts. All but the noise is drawn on the CPU.
        """
        o = self.options
        b, g = o.batch_size, torch.Generator().manual_seed(mix_seed(o.seed, self.name, self.steps))
        template = torch.randint(len(o.templates), (b,), generator=g)
        first, last = denoiser.training_timesteps
        sigma = denoiser.sigma_of(torch.randint(first, last + 1, (b,), generator=g).double())
        mirrored = torch.rand(b, generator=g) < o.hflip
        place = self.order.indices(self.steps * b, b) + self.count * mirrored
        self.generator.manual_seed(mix_seed(o.seed, self.name, self.steps, 'noise'))  # another seed: both draw from one stream on a CPU
        noise = torch.randn((b, 2, *self.mean.shape[1:]), generator=self.generator, device=self.device)
        sigma = sigma.to(self.device, torch.float32 if self.device.type == 'mps' else torch.float64)
        return template, place.to(self.device), sigma, noise

    def _loss(self, denoiser: DiffusersDenoiser, template: Tensor, place: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Sum over images of the mean over pixels of the network's squared error."""
        unique, of = torch.unique(template, return_inverse=True)
        there = unique.to(self.device)
        told = self.model.token_conditions({e: {k: v[there] for k, v in tokens.items()} for e, tokens in self.tokens.items()})
        z = torch.addcmul(self.mean[place], self.deviation[place], noise[:, 0])
        s = sigma.to(z.dtype).reshape(-1, 1, 1, 1)
        D = denoiser(torch.addcmul(z, s, noise[:, 1]), sigma, _taken(told, of.to(self.device)))
        return ((D - z).square().flatten(1).mean(dim=1) * denoiser.loss_weight(sigma).to(z.dtype)).sum()

    def check(self, work_dir: Path) -> None:
        """Refuse (ModelError) a loss that is not finite, or vectors that are not."""
        finite = self.losses[: self.steps].isfinite()
        if bool(torch.stack([finite.all(), *(rows.isfinite().all() for rows in self.rows.values())]).all()):
            return
        bad = (~finite).nonzero().flatten().tolist()
        what = f'gave the loss {float(self.losses[bad[0]])}' if bad else 'left vectors that are not finite'
        raise ModelError(
            f'Step {bad[0] + 1 if bad else self.steps} of {self.options.steps} for the word of {self.name!r} {what}.',
            f'Lower learning_rate = {self.options.learning_rate:g} or use precision fp32; the last checkpoint in {str(work_dir)!r} is sound.',
        )

    def curve(self) -> list[float]:
        """Mean losses over twentieths of the steps."""
        return [round(float(part.mean()), 5) for part in self.losses.cpu().tensor_split(min(_CURVE, self.steps))]

    def tensors(self) -> dict[str, Tensor]:
        """Rows, losses and the optimizer's state, for a checkpoint."""
        rows = {f'rows.{e}': t for e, t in self.rows.items()}
        return {**rows, 'losses': self.losses, **adam_tensors(self.optimizer, self._names())}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Undo `tensors`."""
        with torch.no_grad():
            for e, rows in self.rows.items():
                rows.copy_(tensors[f'rows.{e}'])
        self.losses.copy_(tensors['losses'])
        load_adam_tensors(self.optimizer, self._names(), tensors)
        self.steps = steps

    def _names(self) -> dict[Tensor, str]:
        return {rows: e for e, rows in self.rows.items()}


def _taken(conditions: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Rows of conditions, in this order."""
    return {key: _taken(value, rows) if isinstance(value, Mapping) else value[rows] for key, value in conditions.items()}
