"""The processes that a launcher started for one training, on machines without a GPU too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def join(launcher: str, dist_cfg: Mapping[str, Any] | None = None) -> None:
    """Join the other processes of the training, unless that is done or there are none. MMEngine's own way asks for a GPU; without one, torchrun's
    processes talk by gloo.

    Args:
        launcher: one of `LAUNCHERS`.
        dist_cfg: the recipe's `env_cfg.dist_cfg`.

    Raises:
        RecipeError: an unknown launcher, or one that did not start this process.
    """
    if launcher not in LAUNCHERS:
        raise RecipeError(f'The launcher {launcher!r} is unknown.', nearest(launcher, LAUNCHERS))
    if launcher == 'none':
        return
    if launcher == 'pytorch' and not {'RANK', 'LOCAL_RANK', 'WORLD_SIZE'} <= os.environ.keys():
        raise RecipeError(
            '--launcher pytorch: torchrun did not start this process.', 'Run: torchrun --nproc-per-node 2 -m synthaug_plugins.cli train RECIPE ...'
        )
    import torch
    from mmengine.dist import init_dist, is_distributed

    if is_distributed():
        return
    if launcher == 'pytorch' and not torch.cuda.is_available():
        torch.distributed.init_process_group('gloo')
    else:
        init_dist(launcher, **(dist_cfg or {}))


def wrapper_without_gpu(cfg: Mapping[str, Any], launcher: str) -> dict[str, Any]:
    """What a recipe lacks for MMEngine to wrap its model for several processes on a CPU; with a GPU, or in one process, nothing."""
    import torch

    if launcher == 'none' or torch.cuda.is_available():
        return {}
    # As MMEngine wraps on a GPU, where the recipe says nothing.
    given = cfg.get('model_wrapper_cfg') or {'broadcast_buffers': False, 'find_unused_parameters': cfg.get('find_unused_parameters', False)}
    return {'model_wrapper_cfg': {'type': 'MMDistributedDataParallel', 'device_ids': None, **given}}


def wait_for_all() -> None:
    """Wait until all processes of the training are here."""
    from mmengine.dist import barrier

    barrier()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    from mmengine.dist import is_main_process

    return bool(is_main_process())
