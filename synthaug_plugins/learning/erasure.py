"""Erase a concept from a text-to-image model by its own predictions, without data (ESD: Gandikota et al., ICCV 2023, arXiv 2303.07345).

The edited network learns to predict, where it is told the concept c, what the original one predicts under negative guidance (their eq. 7):

    L = | eps_theta(x_t, c) - [ eps*(x_t, empty) - eta (eps*(x_t, c) - eps*(x_t, empty)) ] |^2

The target is a combination of predictions at one place whose weights sum to one: 1 + eta and -eta. Noise, velocity and clean image are each an
affine function of another there, F = (D - c_skip x) / c_out, with the same coefficients for all of them, and such combinations pass through affine
functions. So the same target stands for whatever the network predicts, and the difference of two predictions is that of the clean images, over c_out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion import ClassifierFree, Denoiser, Guided, SampleNoise, full_float32
from synthaug_plugins.diffusion.precision import network_dtype, settled_precision
from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.learning.batches import mix_seed
from synthaug_plugins.learning.checkpoint import adam_tensors, load_adam_tensors, save_checkpoint, take_up
from synthaug_plugins.learning.checks import PRECISIONS, check_flag, check_number, check_seed, check_whole
from synthaug_plugins.learning.weight_edits import METHODS, WeightEdits, cached, edited_names
from synthaug_plugins.models.erasure import KINDS, check_family
from synthaug_plugins.models.pipeline import TextPipeline
from synthaug_plugins.models.text_model import TextModel

X_T_FROM = ('edited', 'base')


@dataclass(frozen=True)
class ErasureTraining:
    """How a concept is erased. The presets of `PRESETS` set several at once.

    Attributes:
        method: which layers change: 'esd-x' cross-attention (what the prompt says: the others stay as they are best), 'esd-x-strict' its keys and
            values, 'esd-u' all but cross-attention (erases however the concept is asked for), 'full' all, 'selfattn' self-attention.
        weights: 'lora' (low-rank factors, megabytes per class) or 'full' (all touched weights, up to gigabytes per class).
        rank: of 'lora'.
        learning_rate: of Adam, constant.
        iterations: optimiser steps per class.
        eta: how far to lead away from the concept; 0 leads to the empty prompt. In the authors' later code eta counts from the concept's own
            prediction: its 2 is 1 here.
        start_guidance: guidance scale at which the x_t are generated.
        num_steps: of the pipeline's scheduler, on which x_t lies.
        x_t_from: which model generates the x_t: the one being 'edited', or the 'base' model.
        batch_size: x_t per iteration, all at one noise level.
        precision: of the network: 'fp32', 'bf16', 'fp16', or 'auto' (bf16 on GPUs that have it, else fp32). What is learned is float32.
        gradient_checkpointing: less memory, about a third more time in the trained call; the x_t are generated as fast as before.
        checkpoint_steps: iterations between checkpoints.
        seed: decides every draw, together with the class's name and the iteration.
    """

    learning_rate: float
    iterations: int
    method: str = 'esd-x'
    weights: str = 'lora'
    rank: int = 4
    eta: float = 1.0
    start_guidance: float = 3.0
    num_steps: int = 50
    x_t_from: str = 'edited'
    batch_size: int = 1
    precision: str = 'auto'
    gradient_checkpointing: bool = False
    checkpoint_steps: int = 100
    seed: int = 0


PRESETS: dict[str, dict[str, Any]] = {
    'lora': {'weights': 'lora', 'rank': 4, 'learning_rate': 5e-4, 'iterations': 150, 'batch_size': 4},
    'paper': {'weights': 'full', 'learning_rate': 1e-5, 'iterations': 1000, 'batch_size': 1, 'eta': 1.0, 'x_t_from': 'edited'},
    'diffusers2024': {'weights': 'full', 'learning_rate': 5e-5, 'iterations': 200, 'batch_size': 1, 'eta': 1.0, 'x_t_from': 'base'},
    'da_fusion': {'method': 'full', 'weights': 'full', 'learning_rate': 1e-5, 'iterations': 1000, 'batch_size': 1, 'eta': 1.0, 'start_guidance': 3.0},
}
"""Settings by name. 'lora' is ours, measured on the embedded pipeline only and with x_t on 10 steps (tools/benchmarks/results/check_erasure_digits.txt).
'paper' is that of Gandikota et al. and of their first code. 'diffusers2024' is that of their later code, whose negative guidance of 2 is eta = 1.
'da_fusion' is what DA-Fusion (ICLR 2024) erases with."""
FREE = {'checkpoint_steps', 'gradient_checkpointing'}
"""Options that change no weight, so that a run may go on with others."""


def training_options(preset: str, given: Mapping[str, Any], seed: int = 0) -> ErasureTraining:
    """The options of a recipe: those of a preset, and over them its own.

    Raises:
        RecipeError: an unknown preset or key, or a value out of range; it is named.
    """
    known = {f.name for f in fields(ErasureTraining)} - {'seed'}
    if preset not in PRESETS:
        raise RecipeError(f'preset = {preset!r} is unknown.', nearest(str(preset), PRESETS))
    for key in given:
        if key not in known:
            raise RecipeError(f'training has an unknown key {key!r}.', 'It stands beside training.' if key in ('seed', 'preset') else nearest(key, known))
    options = ErasureTraining(**{**PRESETS[preset], **given}, seed=seed)
    _check(options)
    return options


def _check(o: ErasureTraining) -> None:
    for name in ('iterations', 'rank', 'num_steps', 'batch_size', 'checkpoint_steps'):
        check_whole(f'training.{name}', getattr(o, name))
    check_number('training.learning_rate', o.learning_rate, 'Use a number above 0.', above=True)
    for name in ('eta', 'start_guidance'):
        check_number(f'training.{name}', getattr(o, name), 'Use 0 or more.')
    for name, values in (('method', METHODS), ('weights', KINDS), ('x_t_from', X_T_FROM), ('precision', PRECISIONS)):
        value = getattr(o, name)
        if value not in values:
            raise RecipeError(f'training.{name} = {value!r} is unknown.', nearest(str(value), values))
    check_flag('training.gradient_checkpointing', o.gradient_checkpointing)
    check_seed(o.seed)


def check_model(model: TextPipeline) -> None:
    """Refuse (ModelError) a pipeline that nothing can be erased from, before its weights load."""
    check_family(model.name, model.family, 'erasure')
    model.refuse_inpainting('erasure')
    if model.flow:
        raise ModelError(f'erasure: {model.name!r} is a model of flow matching.', 'Its x_t are no DDIM states; use a model of noise or velocity prediction.')
    if model.guidance != 'free':
        cure = 'Erase from the model that it was distilled from.'
        raise ModelError(f'erasure: {model.name!r} was distilled to run without classifier-free guidance, which erasing leans on.', cure)


class ConceptEraser:
    """One model in memory, from which concepts are erased one after another, each from the original weights.

    Args:
        model: see `check_model`; its weights are loaded here.
        options: for all concepts.
        device: where to learn.

    Attributes:
        denoiser: the model. Within `edited()` it is the one with the last concept erased, as far as that has got.
    """

    def __init__(self, model: TextModel, options: ErasureTraining, device: torch.device) -> None:
        check_model(model)
        self.model, self.options, self.device = model, options, device
        self.precision = settled_precision(options.precision, device)
        self.denoiser = model.load(device, network_dtype(self.precision, device))
        network = self.denoiser.model
        self._edits = WeightEdits(network, edited_names(network, options.method, options.weights), options.weights, options.rank)
        if options.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        self._sigmas = [torch.tensor(s, dtype=torch.float64) for s in model.visited_sigmas(options.num_steps)]

    @contextmanager
    def edited(self) -> Iterator[None]:
        """Within, the denoiser is the one with the concept erased. No gradients."""
        with torch.no_grad(), self._edits.on(), cached():
            yield

    def erase(
        self,
        class_name: str,
        prompts: Sequence[str],
        work_dir: Path,
        erase_from: str | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[dict[str, Tensor], list[tuple[int, float]]]:
        """Erase one concept; go on from the checkpoint in `work_dir` if there is one.

        Args:
            class_name: of the concept, for the draws.
            prompts: what says the concept; each iteration draws one.
            work_dir: of this concept's checkpoints and nothing else.
            erase_from: a wider concept's prompt, which is to be kept without c: the x_t are generated and the network is trained under it, and the
                target is eps*(f) - eta (eps*(c) - eps*(empty)). The authors use twice the eta there.
            on_step: called with (iterations done, loss as a 0-dim tensor on the device).

        Returns: the tensors of the erasure's file, not a copy, and the loss curve as (iterations, mean loss since the last point).

        Raises:
            RecipeError: `work_dir` belongs to another erasure.
            ModelError: the loss is not finite.
        """
        run = _Run(self, class_name, prompts, work_dir, erase_from)
        run.resume()
        with full_float32():
            while run.done < self.options.iterations:
                loss = run.step()
                if on_step is not None:
                    on_step(run.done, loss)
                if run.done % self.options.checkpoint_steps == 0 or run.done == self.options.iterations:
                    run.save()
        return self._edits.tensors(), run.losses


class _Run:
    """The erasure of one concept."""

    def __init__(self, eraser: ConceptEraser, class_name: str, prompts: Sequence[str], work_dir: Path, erase_from: str | None) -> None:
        self.o, self.model, self.denoiser, self.device = eraser.options, eraser.model, eraser.denoiser, eraser.device
        self.edits, self.sigmas = eraser._edits, eraser._sigmas
        self.name, self.prompts, self.work_dir, self.erase_from = class_name, list(prompts), work_dir, erase_from
        self.edits.reset(mix_seed(self.o.seed, class_name, 'start'))
        self.optimizer = torch.optim.Adam(self.edits.parameters.values(), lr=self.o.learning_rate)
        self.names: dict[Tensor, str] = {p: name for name, p in self.edits.parameters.items()}
        self.done, self.losses = 0, list[tuple[int, float]]()
        self.loss_sum = torch.zeros((), dtype=torch.float64 if self.device.type != 'mps' else torch.float32, device=self.device)
        self.loss_steps = 0
        options = {k: v for k, v in asdict(self.o).items() if k not in FREE}
        facts = {'class': class_name, 'prompts': self.prompts, 'erase_from': erase_from, 'precision': eraser.precision, 'model': self.model.origin()}
        self.identity = json.loads(json.dumps({**options, **facts, 'device': self.device.type}))

    def _draw(self, what: str, count: int) -> int:
        """A whole number below `count`, of this iteration."""
        return mix_seed(self.o.seed, self.name, self.done, what) % count

    def _conditions(self, prompt: str) -> dict[str, Any]:
        return self.model.conditions([prompt] * self.o.batch_size)

    def _noisy(self, cond: Mapping[str, Any], null: Mapping[str, Any], steps: int) -> Tensor:
        """x_t, generated under a condition from noise for so many steps of DDIM, which is Euler's method in these coordinates. float32."""
        guided: Denoiser = self.denoiser
        if self.o.start_guidance != 1:
            guided = Guided(self.denoiser, [ClassifierFree(self.o.start_guidance - 1, uncond=null)])
        seeds = [mix_seed(self.o.seed, self.name, self.done, 'noise', k) for k in range(self.o.batch_size)]
        # Pipelines start from unit noise in the model's own coordinates, c_in x.
        x = SampleNoise(seeds, self.model.size, self.device).latents() / float(self.denoiser.coefficients(self.sigmas[0])[2])
        edited = self.edits.on() if self.o.x_t_from == 'edited' else nullcontext()
        with torch.no_grad(), edited, cached():
            for sigma, following in zip(self.sigmas[:steps], self.sigmas[1 : steps + 1], strict=True):
                D = guided(x, sigma, cond)
                x = D + float(following / sigma) * (x - D)
        return x

    def step(self) -> Tensor:
        """One iteration; returns its loss, the mean over what the network predicts."""
        steps, prompt = self._draw('level', len(self.sigmas)), self.prompts[self._draw('prompt', len(self.prompts))]
        concept, null = self._conditions(prompt), self.model.conditions([''] * self.o.batch_size, negative=True)
        told = concept if self.erase_from is None else self._conditions(self.erase_from)
        x, sigma = self._noisy(told, null, steps), self.sigmas[steps]
        c_out = float(self.denoiser.coefficients(sigma)[1])
        with torch.no_grad():
            D_concept, D_null = self.denoiser(x, sigma, concept), self.denoiser(x, sigma, null)
            anchor = D_null if self.erase_from is None else self.denoiser(x, sigma, told)
            target = anchor - self.o.eta * (D_concept - D_null)
        self.optimizer.zero_grad()
        with self.edits.on():
            error = ((self.denoiser(x, sigma, told) - target) / c_out).square()
            # The sum, as the paper has it: a mean over so many numbers would leave gradients that float16 rounds to zero. Adam does not see the difference.
            (error.sum() / self.o.batch_size).backward()
        loss = error.detach().mean()
        if not torch.isfinite(loss):
            what = f'Erasing {self.name!r} gave the loss {loss.item()} in iteration {self.done}.'
            raise ModelError(what, f"Lower learning_rate = {self.o.learning_rate:g} or use precision='fp32'; the last checkpoint is sound.")
        self.optimizer.step()
        self.done += 1
        self.loss_sum += loss
        self.loss_steps += 1
        return loss

    def save(self) -> None:
        """Write a checkpoint."""
        self.losses.append((self.done, round(float(self.loss_sum) / self.loss_steps, 6)))
        self.loss_sum.zero_()
        self.loss_steps = 0
        tensors = {f'edit.{name}': p for name, p in self.edits.parameters.items()} | adam_tensors(self.optimizer, self.names)
        save_checkpoint(self.work_dir, self.done, tensors, {'identity': self.identity, 'losses': self.losses})

    def resume(self) -> None:
        """Take up the checkpoint, if there is one."""
        found = take_up(self.work_dir, self.identity, 'erasure')
        if found is None:
            return
        tensors, state = found
        with torch.no_grad():
            for name, p in self.edits.parameters.items():
                p.copy_(tensors[f'edit.{name}'])
        load_adam_tensors(self.optimizer, self.names, tensors)
        self.done, self.losses = state['step'], [(n, loss) for n, loss in state['losses']]
