"""What MMPretrain asserts of the batches of models with a queue of keys (MoCo, DenseCL), said before anything is built."""

from __future__ import annotations

import os
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.training.recipe_edit import type_name

_PROCESSES = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS', 'mpi': 'OMPI_COMM_WORLD_SIZE'}
"""Where each launcher says how many processes there are."""


def check_queue(cfg: Any, launcher: str) -> None:
    """Refuse a training whose batches would not fill the model's queue evenly; nothing for models without one.

    Args:
        cfg: a configured recipe.
        launcher: as `training.run.train` takes it.

    Raises:
        RecipeError: `queue_len` is no multiple of the batch of all processes, or the last batch of an epoch may be short.
    """
    model, loader = cfg.get('model') or {}, cfg['train_dataloader']
    length, batch_size = model.get('queue_len'), loader.get('batch_size')
    if type_name(model) not in ('MoCo', 'DenseCL') or batch_size is None:
        return
    length = 65536 if length is None else length
    outer = loader.get('batch_sampler') or {}
    batches = outer.get('base') or outer  # SeededBatches stands around another
    endless = type_name(loader.get('sampler') or {}) in ('InfiniteSampler', 'ReplacementSampler')
    whole = type_name(batches) == 'PromptGroupSampler' or any(part.get('drop_last') for part in (loader, outer, batches)) or batches.get('epoch_steps')
    if not (endless or whole):
        raise RecipeError(f'{type_name(model)} wants batches of one size, and the last one of an epoch may be shorter.', 'Set train_dataloader.drop_last=True.')
    processes = int(os.environ.get(_PROCESSES.get(launcher, ''), 1))
    if length % (batch_size * processes):
        raise RecipeError(
            f'queue_len = {length} of {type_name(model)} is no multiple of {batch_size * processes}, the batch of '
            f'{f"all {processes} processes" if processes > 1 else "a step"}.',
            f'Set model.queue_len={max(1, length // (batch_size * processes)) * batch_size * processes}, or another batch_size.',
        )
