"""Who works on the tasks of a run: this process, several on this machine, the ranks of torchrun, a Ray cluster. Knows no recipe and no store."""

from __future__ import annotations

import os

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.executors.base import Executor

EXECUTORS = ('local', 'torchrun', 'ray')


def make_executor(
    name: str | None = None, device: str = 'auto', workers: int | None = None, address: str | None = None, stall_timeout: float | None = None
) -> Executor:
    """The executor that the options of a command line ask for.

    Args:
        name: one of `EXECUTORS`; None is `local`, unless torchrun started this process: then it has to be said.
        device: see `device.choose_device`; `auto` and `cuda` let several workers have a GPU each.
        workers: how many; None is as many as there are GPUs, or one.
        address: of a Ray cluster.
        stall_timeout: seconds without a sign of life after which a worker hangs; None is `base.STALL_TIMEOUT_S`.

    Raises:
        RecipeError: an unknown name, a number out of range, an option that this executor has not, or a start that does not fit it.
        MissingExtra: Ray is not installed.
    """
    if name is None and int(os.environ.get('WORLD_SIZE') or 1) > 1 and 'RANK' in os.environ:
        what = f'This process is rank {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]}, and each would do everything by itself.'
        raise RecipeError(what, 'Add --executor torchrun to let them share the blocks of `synthaug generate`, or --executor local for a run of its own.')
    name = name or 'local'
    if name not in EXECUTORS:
        raise RecipeError(f'--executor {name}: there is none of that name.', nearest(name, EXECUTORS))
    if address is not None and name != 'ray':
        raise RecipeError(f'--address {address} is where a Ray cluster is.', f'Add --executor ray, or leave it out with --executor {name}.')
    if name == 'local':
        from synthaug_plugins.executors.local import Local

        return Local(device, workers, stall_timeout)
    if name == 'ray':
        from synthaug_plugins.executors.ray import Ray

        return Ray(address, workers, device, stall_timeout)
    if workers is not None:
        raise RecipeError(f'--workers {workers}: with --executor torchrun its ranks are the workers.', 'Say how many to torchrun: --nproc-per-node.')
    from synthaug_plugins.executors.torchrun import Torchrun

    return Torchrun(device, stall_timeout)
