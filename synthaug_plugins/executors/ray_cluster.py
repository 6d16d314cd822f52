"""A connection to a Ray cluster, or a cluster of this machine that begins and ends with it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from synthaug_plugins.errors import ExecutorError, first_line
from synthaug_plugins.executors import ray_warden
from synthaug_plugins.executors.base import signals_wait

_OBJECT_STORE = 80 * 2**20
"""Bytes: Ray asks for at least 75 MiB. Results are small, images never pass through it."""


@contextmanager
def connected(address: str | None, cpus: int, gpus: int | None) -> Iterator[None]:
    """A connection to the cluster at an address; without one, to a cluster that is started on this machine and ends with the block, or with this process,
    however that ends. A connection that the caller's program has stays as it is.

    Args:
        cpus, gpus: of a cluster of this machine; None for the GPUs that there are.

    Raises:
        ExecutorError: no cluster answers, or none starts, or there is no folder for it.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    logging.getLogger('ray').setLevel(logging.ERROR)  # its notices go to its log files; errors are said
    options: dict[str, Any] = {'log_to_driver': False, 'configure_logging': False, 'logging_level': 'ERROR'}
    if address is not None:
        try:
            with signals_wait():
                _init(address, options, f'--address {address}: no Ray cluster answers')
            yield
        finally:
            with signals_wait():
                ray.shutdown()
        return
    options |= {'include_dashboard': False, 'num_cpus': cpus, 'object_store_memory': _OBJECT_STORE}
    options |= {} if gpus is None else {'num_gpus': gpus}
    with _folder() as folder:
        try:
            with signals_wait(), ray_warden.known_as_of(folder):
                _init('local', {**options, '_temp_dir': folder}, 'Ray did not start')
            yield
        finally:
            with signals_wait():
                ray.shutdown()


@contextmanager
def _folder() -> Iterator[str]:
    """A folder for a cluster, with a warden that removes it, and what is left of the cluster, after the block or after the end of this process."""
    try:
        folder = tempfile.mkdtemp(prefix='ray-', dir=os.environ.get('RAY_TMPDIR', '/tmp'))  # sockets need short names
    except OSError as error:
        raise ExecutorError(f'Ray has no folder to work in: {error.filename!r}: {error.strerror}.', 'Set RAY_TMPDIR to one that can be written.') from error
    command = [sys.executable, '-I', '-S', ray_warden.__file__, folder]
    warden = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    said: bytes | None = None
    try:
        yield folder
        said = ray_warden.ENDED
    finally:
        with signals_wait():
            warden.communicate(said)


def _init(address: str, options: dict[str, Any], refusal: str) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, **options)
    except Exception as error:  # of many kinds
        raise ExecutorError(f'{refusal}: {first_line(error)}.', 'Give the address of one that runs (ray status), or leave --address out.') from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in place, which ends without a word
