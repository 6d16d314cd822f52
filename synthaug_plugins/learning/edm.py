"""Train a denoiser on labelled images (Karras et al. 2022, arXiv 2206.00364, Section 5)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.diffusion import Precond, build_denoiser, denoising_loss, full_float32
from synthaug_plugins.diffusion.augmentation import Augmentation
from synthaug_plugins.diffusion.precision import network_dtype
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.learning.batches import Order, Pixels, data_hash, mix_seed
from synthaug_plugins.learning.checkpoint import adam_tensors, load_adam_tensors, save_checkpoint, save_snapshot, take_up
from synthaug_plugins.learning.ema import HalfLifeEMA, PowerEMA
from synthaug_plugins.learning.options import FREE, EDMTraining, check_training, noise_distribution
from synthaug_plugins.weights import save_model

__all__ = ['EDMTraining', 'Trained', 'save_trained', 'train_edm']


@dataclass(frozen=True)
class Trained:
    """The result: averaged weights (for `build_denoiser(config)`), and the loss curve as (images shown, mean loss since the last point)."""

    weights: dict[str, Tensor]
    losses: list[tuple[int, float]]
    images_shown: int
    steps: int


def train_edm(
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | None,
    config: Mapping[str, Any],
    options: EDMTraining,
    work_dir: Path,
    device: torch.device | str = 'cpu',
    progress: Callable[[int, float], None] | None = None,
    *,
    augment: Augmentation | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_checkpoint: Callable[[int, float, Mapping[str, Tensor]], None] | None = None,
) -> Trained:
    """Train the denoiser of `config`; continue from the checkpoint in `work_dir` if there is one.

    Every random draw of a step depends on the seed and the step number alone, and the order of an epoch's images on the seed
    and the epoch: a checkpoint holds no generator, and a killed training ends with the bits of an unbroken one (on CPU).

    Args:
        images: (N, C, H, W) uint8; a memory-mapped array may be larger than memory.
        labels: (N,) class indices, or None for an unconditional model. A model without label_conditioning takes labels where
            class_balance needs them.
        config: the model's config, see `check_denoiser_config`.
        options: see `EDMTraining`.
        work_dir: holds the checkpoints and snapshots and nothing else.
        device: where to train.
        progress: called at each checkpoint with (images shown, mean loss since the last one).
        augment: non-leaking augmentation; the network must take its labels: config['augment_labels'] = augment.label_dim.
        on_step: called after each step with (images shown, its loss as a 0-dim tensor on the device).
        on_checkpoint: called after each checkpoint with (images shown, mean loss, averaged weights on the device, not a copy).

    Raises:
        DataError: images or labels do not fit the config.
        RecipeError: an option is out of range, or `work_dir` belongs to another training; the keys that differ are named.
        ModelError: the loss is not finite; the last checkpoint stays as it was.
    """
    check_training(config, options, augment)
    images, labels = _check_data(images, labels, config, options)
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []), full_float32():
        torch.manual_seed(options.seed)
        run = _Run(build_denoiser(config).to(device).train(), images, labels, config, options, augment, work_dir, device)
        run.resume()
        while run.images_shown < options.images_shown:
            loss = run.step()
            if on_step is not None:
                on_step(run.images_shown, loss)
            last = run.images_shown >= options.images_shown
            if run.steps % options.snapshot_steps == 0 or last:
                run.save_snapshots()
            if run.steps % options.checkpoint_steps == 0 or last:
                mean_loss = run.save()
                if progress is not None:
                    progress(run.images_shown, mean_loss)
                if on_checkpoint is not None:
                    on_checkpoint(run.images_shown, mean_loss, run.weights())
    return Trained({k: v.cpu() for k, v in run.weights().items()}, run.losses, run.images_shown, run.steps)


def save_trained(folder: Path, config: Mapping[str, Any], trained: Trained, card: Mapping[str, Any]) -> None:
    """Write the averaged weights as a model folder that generators read, in float16: that costs less than sampling noise shows."""
    save_model(folder, dict(config), {k: v.half() for k, v in trained.weights.items()}, card)


class _Run:
    """The state of a training."""

    def __init__(
        self,
        denoiser: Precond,
        images: Tensor | np.ndarray,
        labels: np.ndarray | None,
        config: Mapping[str, Any],
        options: EDMTraining,
        augment: Augmentation | None,
        work_dir: Path,
        device: torch.device,
    ) -> None:
        self.denoiser, self.options, self.augment, self.work_dir, self.device = denoiser, options, augment, work_dir, device
        self.pixels, self.shape = Pixels(images, device), tuple(images.shape[1:])
        self.order = Order(options.seed, np.zeros(len(images)) if labels is None else labels, options.class_balance)
        self.labels = torch.from_numpy(labels) if labels is not None and config['label_conditioning'] else None
        self.label_dropout, self.null_label = float(config.get('label_dropout', 0.0)), len(config['classes'])
        self.distribution = noise_distribution(config, options)
        self.parameters = dict(denoiser.named_parameters())
        self.names: dict[Tensor, str] = {p: n for n, p in self.parameters.items()}
        self.ema = HalfLifeEMA(self.parameters, options.ema_half_life_images, options.ema_ramp)
        self.power_emas = [PowerEMA(self.parameters, std) for std in options.power_ema_stds]
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay)
        self.steps, self.losses = 0, list[tuple[int, float]]()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.loss_steps = 0
        settings = {k: v for k, v in asdict(options).items() if k not in FREE}
        facts = {'config': dict(config), 'augment': augment and asdict(augment), 'data': data_hash(images, labels), 'device': device.type}
        # Through JSON, to compare with what a checkpoint holds: tuples become lists.
        self.identity = json.loads(json.dumps({**settings, **facts}))
        self.bf16 = network_dtype(options.precision, device) == torch.bfloat16
        if options.compile:
            denoiser.network.compile()  # in place: parameters keep their names

    @property
    def images_shown(self) -> int:
        return self.steps * self.options.batch_size

    def weights(self) -> dict[str, Tensor]:
        """Averaged parameters, and the buffers as they are."""
        return {**self.denoiser.state_dict(), **self.ema.average}

    def _losses(self) -> Iterator[Tensor]:
        """Per-sample losses of this step's batch, part by part; the same each time it is called."""
        o, index = self.options, self.order.indices(self.images_shown, self.options.batch_size)
        b = o.batch_size
        torch.manual_seed(mix_seed(o.seed, 'step', self.steps))  # also decides dropout inside the network
        # For the whole batch at once, so that no draw depends on the number of parts.
        sigma = self.distribution.draw(b, self.device)
        noise = torch.randn((b, *self.shape), device=self.device)
        cond = None
        if self.labels is not None:
            hidden = torch.rand(b, device=self.device) < self.label_dropout
            cond = torch.where(hidden, self.null_label, self.labels[index].to(self.device))
        draws = None if self.augment is None else self.augment.draw(b, self.device)
        size = b // o.accumulation
        for part in (slice(i, i + size) for i in range(0, b, size)):
            y, augment_labels = self.pixels.fetch(index[part]), None
            if self.augment is not None and draws is not None:
                y, augment_labels = self.augment(y, {name: tuple(v[..., part] for v in values) for name, values in draws.items()})
            with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
                yield denoising_loss(self.denoiser, y, sigma[part], noise[part], None if cond is None else cond[part], augment_labels)

    def step(self) -> Tensor:
        """One optimizer step; returns its loss."""
        o, loss = self.options, torch.zeros((), device=self.device)
        self.optimizer.zero_grad()
        for losses in self._losses():
            share = losses.sum() / o.batch_size
            share.backward()
            loss += share.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), float('inf') if o.grad_clip is None else o.grad_clip)
        if not torch.isfinite(norm + loss):
            raise ModelError(
                f'Step {self.steps} gave the loss {loss.item()} and the gradient norm {norm.item()}{self._bad_outputs()}.',
                f'Lower learning_rate = {o.learning_rate:g} or use precision fp32; the last checkpoint in {str(self.work_dir)!r} is sound.',
            )
        self.steps += 1
        for group in self.optimizer.param_groups:
            group['lr'] = o.learning_rate * min(self.images_shown / max(o.warmup_images, 1), 1.0)
        self.optimizer.step()
        self.ema.update(self.parameters, o.batch_size, self.images_shown)
        for power in self.power_emas:
            power.update(self.parameters, self.steps)
        self.loss_sum += loss
        self.loss_steps += 1
        return loss

    @torch.no_grad()
    def _bad_outputs(self) -> str:
        """What the network itself returned in the failed step, which is computed once more."""
        bad: list[int] = []
        hook = self.denoiser.network.register_forward_hook(lambda _, __, F_x: bad.append(int((~torch.isfinite(F_x).flatten(1).all(1)).sum())))
        try:
            for _ in self._losses():
                pass
        finally:
            hook.remove()
        return f"; the network's output is not finite for {sum(bad)} of {self.options.batch_size} images" if sum(bad) else ''

    def save(self) -> float:
        """Write a checkpoint; returns the mean loss since the last one."""
        loss = float(self.loss_sum) / self.loss_steps
        self.losses.append((self.images_shown, round(loss, 5)))
        self.loss_sum.zero_()
        self.loss_steps = 0
        tensors = {f'model.{k}': v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f'{name}.{k}': v for name, average in self._averages() for k, v in average.items()} | adam_tensors(self.optimizer, self.names)
        save_checkpoint(self.work_dir, self.steps, tensors, {'identity': self.identity, 'losses': self.losses})
        return loss

    def _averages(self) -> list[tuple[str, dict[str, Tensor]]]:
        return [('ema', self.ema.average), *((f'power_ema.{i}', power.average) for i, power in enumerate(self.power_emas))]

    def save_snapshots(self) -> None:
        """Keep the power-function averages as they are now."""
        for power in self.power_emas:
            save_snapshot(self.work_dir, self.steps, power.std, power.average)

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        found = take_up(self.work_dir, self.identity)
        if found is None:
            return
        tensors, state = found
        if state['step'] * self.options.batch_size >= self.options.images_shown + self.options.batch_size:
            raise RecipeError(f'{str(self.work_dir)!r} has shown more than images_shown = {self.options.images_shown} images.', 'Raise images_shown.')
        self.denoiser.load_state_dict({k.removeprefix('model.'): v for k, v in tensors.items() if k.startswith('model.')})
        for name, average in self._averages():
            for key, value in average.items():
                value.copy_(tensors[f'{name}.{key}'])
        load_adam_tensors(self.optimizer, self.names, tensors)
        self.steps, self.losses = state['step'], [(n, loss) for n, loss in state['losses']]


def _check_data(
    images: Tensor | np.ndarray, labels: Tensor | np.ndarray | None, config: Mapping[str, Any], options: EDMTraining
) -> tuple[Tensor | np.ndarray, np.ndarray | None]:
    """Refuse data that do not fit the model; returns them with the labels as an int64 array."""
    shape = (config['channels'], config['resolution'], config['resolution'])
    if str(images.dtype).removeprefix('torch.') != 'uint8' or images.ndim != 4 or tuple(images.shape[1:]) != shape or not len(images):
        raise DataError(f'The images are {images.dtype} {tuple(images.shape)}.', f'The model needs uint8 (N, {", ".join(map(str, shape))}).')
    if labels is None:
        if config['label_conditioning'] or options.class_balance:
            raise DataError(f'label_conditioning = {config["label_conditioning"]}, but labels are missing.', 'Give one class index per image.')
        return images, None
    if not config['label_conditioning'] and not options.class_balance:
        raise DataError('label_conditioning = False, but labels are given.', 'Make them agree.')
    numbers = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).astype(np.int64)
    classes = max(len(config['classes']), 1)
    if len(numbers) != len(images) or numbers.min() < 0 or numbers.max() >= classes:
        raise DataError(f'The labels do not fit {len(images)} images of {classes} classes.', 'Use one index per image, 0 to classes - 1.')
    return images, numbers
