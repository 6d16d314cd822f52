"""One training loop for the small models of these scripts: AdamW, warm-up, cosine decay, averaged weights, checkpoints that a killed run goes on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from synthaug_plugins.learning.batches import mix_seed
from synthaug_plugins.learning.checkpoint import adam_tensors, load_adam_tensors, load_checkpoint, save_checkpoint
from synthaug_plugins.learning.ema import HalfLifeEMA


@dataclass(frozen=True)
class Fit:
    """Length and pace of a training; the learning rate rises over `warmup_steps` and falls as a half cosine to 0."""

    steps: int
    batch_size: int
    learning_rate: float
    ema_half_life_images: float
    warmup_steps: int = 50
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0
    checkpoint_steps: int = 100

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 1, 2, ... steps."""
        return self.learning_rate * min(1.0, step / self.warmup_steps) * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))


def fit(module: nn.Module, loss: Callable[[int], Tensor], options: Fit, work_dir: Path) -> dict[str, object]:
    """Train `module` and leave the averaged weights in it. What a step draws depends on the seed and its number only.

    Args:
        module: on the device where it trains.
        loss: given a batch size, it draws a batch with torch's global generator and returns its mean loss.
        work_dir: holds the checkpoint, from which a second call with the same options goes on.

    Returns: what a card says of the training: parameters, steps, images_shown, cpu_seconds, options, loss_curve.
    """
    parameters = dict(module.named_parameters())
    on_cpu = next(iter(parameters.values())).device.type == 'cpu'
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=options.weight_decay, betas=(0.9, 0.99), fused=True)
    average = HalfLifeEMA(parameters, options.ema_half_life_images, ramp=0.1)
    step, cpu_seconds, curve, pending = 0, 0.0, [], []
    found = load_checkpoint(work_dir)
    if found:
        tensors, state = found
        if state['options'] != asdict(options):
            raise SystemExit(f'{work_dir} belongs to a training with other options: {state["options"]}. Remove it, or give another --work-dir.')
        module.load_state_dict({k.removeprefix('weights.'): v for k, v in tensors.items() if k.startswith('weights.')})
        for name, value in average.average.items():
            value.copy_(tensors[f'average.{name}'])
        load_adam_tensors(optimizer, {p: name for name, p in parameters.items()}, tensors)
        step, cpu_seconds, curve = state['step'], state['cpu_seconds'], state['loss_curve']
    module.train()
    started = time.process_time()
    while step < options.steps:
        step += 1
        torch.manual_seed(mix_seed(options.seed, step))
        for group in optimizer.param_groups:
            group['lr'] = options.learning_rate_at(step)
        value = loss(options.batch_size)
        value.backward()
        # On a GPU nothing may wait for the device in every step; a loss that is not finite is found at the next checkpoint.
        nn.utils.clip_grad_norm_(parameters.values(), options.grad_clip, error_if_nonfinite=on_cpu)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(parameters, options.batch_size, step * options.batch_size)
        pending.append(value.detach())
        if step % options.checkpoint_steps == 0 or step == options.steps:
            cpu_seconds, started = cpu_seconds + time.process_time() - started, time.process_time()
            losses = torch.stack(pending).tolist()
            pending.clear()
            curve.append((step * options.batch_size, round(sum(losses) / len(losses), 6)))
            if not math.isfinite(curve[-1][1]):
                raise SystemExit(f'The loss of step {step} is not finite. Lower the learning rate; the last checkpoint in {work_dir} is sound.')
            tensors = {f'weights.{k}': v for k, v in module.state_dict().items()} | {f'average.{k}': v for k, v in average.average.items()}
            tensors |= adam_tensors(optimizer, {p: name for name, p in parameters.items()})
            save_checkpoint(work_dir, step, tensors, {'options': asdict(options), 'cpu_seconds': cpu_seconds, 'loss_curve': curve})
            print(f'{work_dir.name}: step {step} of {options.steps}, loss {curve[-1][1]:.5f}, {cpu_seconds:.0f} CPU s', flush=True)
    with torch.no_grad():
        for name, value in average.average.items():
            parameters[name].copy_(value)
    module.eval()
    return {
        'parameters': sum(p.numel() for p in parameters.values()),
        'steps': step,
        'images_shown': step * options.batch_size,
        'cpu_seconds': round(cpu_seconds),
        'options': asdict(options),
        'loss_curve': curve,
    }
