"""Train a small EDM denoiser on labelled images (Karras et al. 2022, arXiv 2206.00364, Section 5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion import EDMPrecond, build_denoiser, check_denoiser_config, edm_loss, full_float32, lognormal_sigmas
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.learning.checkpoint import adam_tensors, load_adam_tensors, load_checkpoint, save_checkpoint
from synthaug_plugins.weights import save_model


@dataclass(frozen=True)
class EDMTraining:
    """How to train. Amounts of training are counted in images shown, so that they keep their meaning at another batch size.

    Attributes:
        images_shown: length of the training; a finished training continues when it is raised.
        batch_size: images per step.
        learning_rate: of AdamW, constant after the warm-up.
        warmup_images: linear ramp of the learning rate. It starts above zero: the first step counts.
        weight_decay: decoupled.
        grad_clip: largest gradient norm (of the pixel-mean loss).
        ema_half_life_images: half-life of the weight average, which is the result of the training.
        ema_ramp: the half-life is at most this share of the images shown so far, else early weights would stay in.
        P_mean, P_std: of ln sigma, see `lognormal_sigmas`.
        seed: decides the initial weights, the order of the images and every random draw.
        precision: 'fp32', 'bf16' (autocast), or 'auto': bf16 on GPUs that have it, else fp32.
        checkpoint_steps: steps between checkpoints.
    """

    images_shown: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_images: int = 20_000
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_half_life_images: int = 100_000
    ema_ramp: float = 0.05
    P_mean: float = -1.2
    P_std: float = 1.2
    seed: int = 0
    precision: str = 'auto'
    checkpoint_steps: int = 500


@dataclass(frozen=True)
class Trained:
    """The result: averaged weights (for `build_denoiser(config)`), and the loss curve as (images shown, mean loss since the last point)."""

    weights: dict[str, Tensor]
    losses: list[tuple[int, float]]
    images_shown: int
    steps: int


# These may differ between the run that wrote a checkpoint and the one that continues it.
_FREE = {'images_shown', 'checkpoint_steps'}


def train_edm(
    images: Tensor,
    labels: Tensor | None,
    config: Mapping[str, Any],
    options: EDMTraining,
    work_dir: Path,
    device: torch.device | str = 'cpu',
    progress: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train the denoiser of `config`; continue from the checkpoint in `work_dir` if there is one.

    Every random draw of a step depends on the seed and the step number alone, and the order of an epoch's images on the seed
    and the epoch: a checkpoint holds no generator, and a killed training ends with the bits of an unbroken one (on CPU).

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) class indices, or None for an unconditional model.
        config: the model's config, see `check_denoiser_config`.
        options: see `EDMTraining`.
        work_dir: holds the checkpoints and nothing else.
        device: where to train.
        progress: called at each checkpoint with (images shown, mean loss since the last one).

    Raises:
        DataError: images or labels do not fit the config.
        RecipeError: an option is out of range, or `work_dir` belongs to another training; the keys that differ are named.
        ModelError: the loss is not finite; the last checkpoint stays as it was.
    """
    _check(images, labels, config, options)
    device = torch.device(device)
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices=devices), full_float32():
        torch.manual_seed(options.seed)
        denoiser = build_denoiser(config).to(device).train()
        run = _Run(denoiser, images.to(device), None if labels is None else labels.to(device), config, options, work_dir)
        run.resume()
        while run.images_shown < options.images_shown:
            run.step()
            last = run.images_shown >= options.images_shown
            if run.steps % options.checkpoint_steps == 0 or last:
                loss = run.save()
                if progress is not None:
                    progress(run.images_shown, loss)
    return Trained({k: v.cpu() for k, v in run.ema.items()}, run.losses, run.images_shown, run.steps)


def save_trained(folder: Path, config: Mapping[str, Any], trained: Trained, card: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write the averaged weights as a model folder that generators read. float16 costs less than sampling noise shows."""
    save_model(folder, dict(config), {k: v.to(dtype) for k, v in trained.weights.items()}, card)


class _Run:
    """The state of a training."""

    def __init__(self, denoiser: EDMPrecond, images: Tensor, labels: Tensor | None, config: Mapping[str, Any], options: EDMTraining, work_dir: Path) -> None:
        self.denoiser, self.images, self.labels, self.options, self.work_dir = denoiser, images, labels, options, work_dir
        self.parameters = dict(denoiser.named_parameters())
        self.names: dict[Tensor, str] = {p: n for n, p in self.parameters.items()}
        self.ema = {k: v.detach().clone() for k, v in denoiser.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay)
        self.label_dropout = float(config.get('label_dropout', 0.0))
        self.null_label = len(config['classes'])
        self.steps, self.losses = 0, list[tuple[int, float]]()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=images.device)
        self.loss_steps = 0
        self.order: tuple[int, Tensor] = (-1, torch.empty(0))
        data = hashlib.sha256(images.cpu().numpy().tobytes() + (b'' if labels is None else labels.cpu().numpy().tobytes())).hexdigest()
        settings = {k: v for k, v in asdict(options).items() if k not in _FREE}
        # Through JSON, to compare with what a checkpoint holds: tuples become lists.
        self.identity = json.loads(json.dumps({**settings, 'config': dict(config), 'data': data, 'device': images.device.type}))
        has_bf16 = images.device.type == 'cuda' and torch.cuda.is_bf16_supported()
        self.bf16 = options.precision == 'bf16' or (options.precision == 'auto' and has_bf16)

    @property
    def images_shown(self) -> int:
        return self.steps * self.options.batch_size

    def batch(self) -> Tensor:
        """Indices of this step's images: epochs follow each other without a gap, each in its own order."""
        parts, position, end = [], self.images_shown, self.images_shown + self.options.batch_size
        while position < end:
            epoch, offset = divmod(position, len(self.images))
            if self.order[0] != epoch:
                generator = torch.Generator().manual_seed(_mix(self.options.seed, 'order', epoch))
                self.order = (epoch, torch.randperm(len(self.images), generator=generator))
            parts.append(self.order[1][offset : offset + end - position])
            position += len(parts[-1])
        return torch.cat(parts).to(self.images.device)

    def step(self) -> None:
        """One optimizer step."""
        o, index = self.options, self.batch()
        y = self.images[index].float() / 127.5 - 1
        torch.manual_seed(_mix(o.seed, 'step', self.steps))  # also decides dropout inside the network
        sigma = lognormal_sigmas(torch.randn(len(y), device=y.device), o.P_mean, o.P_std)
        noise = torch.randn_like(y)
        cond = None
        if self.labels is not None:
            hidden = torch.rand(len(y), device=y.device) < self.label_dropout
            cond = torch.where(hidden, self.null_label, self.labels[index])
        with torch.autocast(y.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            loss = edm_loss(self.denoiser, y, sigma, noise, cond).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), o.grad_clip)
        if not torch.isfinite(norm + loss.detach()):
            raise ModelError(
                f'Step {self.steps} gave the loss {loss.item()} and the gradient norm {norm.item()}.',
                f'Lower learning_rate = {o.learning_rate:g} or use precision fp32; the last checkpoint in {str(self.work_dir)!r} is sound.',
            )
        self.steps += 1
        for group in self.optimizer.param_groups:
            group['lr'] = o.learning_rate * min(self.images_shown / max(o.warmup_images, 1), 1.0)
        self.optimizer.step()
        half_life = min(float(o.ema_half_life_images), o.ema_ramp * self.images_shown)
        beta = 0.5 ** (o.batch_size / max(half_life, 1e-8))
        with torch.no_grad():
            for name, p in self.parameters.items():
                self.ema[name].lerp_(p, 1 - beta)
        self.loss_sum += loss.detach()
        self.loss_steps += 1

    def save(self) -> float:
        """Write a checkpoint; returns the mean loss since the last one."""
        loss = float(self.loss_sum) / self.loss_steps
        self.losses.append((self.images_shown, round(loss, 5)))
        self.loss_sum.zero_()
        self.loss_steps = 0
        tensors = {f'model.{k}': v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f'ema.{k}': v for k, v in self.ema.items()} | adam_tensors(self.optimizer, self.names)
        save_checkpoint(self.work_dir, self.steps, tensors, {'identity': self.identity, 'losses': self.losses})
        return loss

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        found = load_checkpoint(self.work_dir)
        if found is None:
            if self.work_dir.is_dir() and any(p for p in self.work_dir.iterdir() if not p.name.startswith('.') and not p.name.startswith('step-')):
                raise RecipeError(f'The folder {str(self.work_dir)!r} holds other files and no checkpoint.', 'Give a new or empty folder.')
            return
        tensors, state = found
        differ = sorted(k for k in self.identity.keys() | state['identity'].keys() if self.identity.get(k) != state['identity'].get(k))
        if differ:
            raise RecipeError(f'{str(self.work_dir)!r} holds a training that differs in {", ".join(differ)}.', 'Restore these values, or give a new folder.')
        if state['step'] * self.options.batch_size > self.options.images_shown:
            raise RecipeError(f'{str(self.work_dir)!r} has shown more than images_shown = {self.options.images_shown} images.', 'Raise images_shown.')
        self.denoiser.load_state_dict({k.removeprefix('model.'): v for k, v in tensors.items() if k.startswith('model.')})
        for name, value in self.ema.items():
            value.copy_(tensors[f'ema.{name}'])
        load_adam_tensors(self.optimizer, self.names, tensors)
        self.steps, self.losses = state['step'], [(n, loss) for n, loss in state['losses']]


def _mix(*parts: object) -> int:
    """A 63-bit seed from any values."""
    return int.from_bytes(hashlib.sha256('/'.join(map(str, parts)).encode()).digest()[:8], 'big') >> 1


def _check(images: Tensor, labels: Tensor | None, config: Mapping[str, Any], options: EDMTraining) -> None:
    """Refuse what does not fit together, before anything is built."""
    check_denoiser_config(config)
    shape = (config['channels'], config['resolution'], config['resolution'])
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != shape or not len(images):
        raise DataError(f'The images are {images.dtype} {tuple(images.shape)}.', f'The model needs uint8 (N, {", ".join(map(str, shape))}).')
    if bool(config['label_conditioning']) != (labels is not None):
        raise DataError(f'label_conditioning = {config["label_conditioning"]}, but labels are {"missing" if labels is None else "given"}.', 'Make them agree.')
    if labels is not None and (len(labels) != len(images) or int(labels.min()) < 0 or int(labels.max()) >= len(config['classes'])):
        raise DataError(f'The labels do not fit {len(images)} images of {len(config["classes"])} classes.', 'Use one index per image, 0 to classes - 1.')
    for name in ('images_shown', 'batch_size', 'learning_rate', 'grad_clip', 'ema_half_life_images', 'ema_ramp', 'P_std', 'checkpoint_steps'):
        value = getattr(options, name)
        if not value > 0:
            raise RecipeError(f'{name} = {value} is not positive.', 'Raise it.')
    if options.precision not in ('auto', 'fp32', 'bf16'):
        raise RecipeError(f'precision = {options.precision!r} is unknown.', "Use 'auto', 'fp32' or 'bf16'.")
