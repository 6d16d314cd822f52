"""Cross-modal adaptation (Lin et al., CVPR 2023): a linear head to which the texts of a class are shots like its images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.fewshot.accuracy import merits
from synthaug_plugins.evaluation.fewshot.task import Fitted, Task, linear

LEARNING_RATES = (1e-4, 1e-3)
WEIGHT_DECAYS = (0.0, 0.01)
HALF = 16
"""Images, and as many texts, in a batch."""

STEPS, WARM_UP, INTERVAL = 1600, 50, 100


def cross_modal(task: Task, seed: int, steps: int = STEPS) -> Fitted:
    """The linear head of Lin et al., section 3: logits = s W f without bias, W from the text features, s fixed, cross-entropy on images and texts.

    Each batch is half images, half texts (each template is a text); features have unit length, W starts so and drifts. AdamW, linear warm-up of
    50 steps, cosine to 0. Learning rate, weight decay and, every 100 steps, the moment are chosen on validation. Step 0, the zero-shot head, is
    one of the moments: the published code first looks after one step of the warm-up, which is that head but for 1e-5.

    Cut from what is published, to take seconds on a CPU: 1,600 steps instead of 12,800; batches of 32 alone, not also of 8; the weight decay 1e-4
    is left out, between 0 and 0.01 (over 12,800 steps it takes 0.1 % off the weights at the most). All options see the same batches.

    Args:
        seed: of the order of images and texts.
        steps: optimiser steps.

    Raises:
        RecipeError: negative steps.
    """
    if steps < 0:
        raise RecipeError(f'steps = {steps} cannot be.', 'Give 0 (zero-shot) or more.')
    generator, val, s, N = torch.Generator().manual_seed(seed), task.val, task.logit_scale, len(task.classes)
    features = torch.cat([task.train.features, *task.prompts])
    labels = torch.cat([task.train.labels, torch.arange(N).repeat_interleave(torch.tensor([len(vectors) for vectors in task.prompts]))])
    images = shuffled(len(task.train), HALF, steps, generator)
    texts = shuffled(len(features) - len(task.train), HALF, steps, generator) + len(task.train)
    batches = torch.cat([images, texts], dim=1)

    options = [(lr, decay) for lr in LEARNING_RATES for decay in WEIGHT_DECAYS]
    heads = [task.text.clone().requires_grad_() for _ in options]
    groups = [{'params': [head], 'lr': lr, 'weight_decay': decay} for head, (lr, decay) in zip(heads, options, strict=True)]
    optimiser = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps))
    before = task.zero_shot(val.features)
    best = (merits(before[None], val.labels, before)[0], {'lr': 0.0, 'weight_decay': 0.0, 'step': 0.0}, task.text)
    for step, batch in enumerate(batches, 1):
        with torch.enable_grad():
            logits = s * (features[batch] @ torch.cat(heads).T).unflatten(1, (-1, N))
            optimiser.zero_grad()
            # A sum over the options: their gradients do not meet.
            (cross_entropy(logits.flatten(0, 1), labels[batch].repeat_interleave(len(heads)), reduction='sum') / len(batch)).backward()
        optimiser.step()
        schedule.step()
        if step % INTERVAL == 0 or step == steps:
            with torch.no_grad():
                found = merits(s * val.features @ torch.stack(heads).transpose(1, 2), val.labels, before)
            for merit, (lr, decay), head in zip(found, options, heads, strict=True):
                if merit > best[0]:
                    best = merit, {'lr': lr, 'weight_decay': decay, 'step': float(step)}, head.detach().clone()
    (val_top1, _), chosen, weight = best
    return Fitted(linear(s * weight), chosen, val_top1)


def rate(step: int, steps: int) -> float:
    """The share of the learning rate at `step`, from 0: a linear warm-up, then a cosine that ends at 0 after `steps`."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP))) / 2


def shuffled(n: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """(steps, batch) positions in 0..n-1: pass after pass, each in a new order; a batch may end one pass and begin the next."""
    passes = [torch.randperm(n, generator=generator) for _ in range(math.ceil(steps * batch / n))]
    return torch.cat([*passes, torch.empty(0, dtype=torch.int64)])[: steps * batch].view(steps, batch)
