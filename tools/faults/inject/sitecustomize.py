"""Faults from the outside: Python imports this file at the start of every process that has its folder on PYTHONPATH, workers of all executors included.

The variable SYNTHAUG_INJECT says as JSON what goes wrong: `what`, and what else the functions below read. `once` is a file: of all processes together
only the one that can create it has the fault, so what is started in its place does not have it again.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

VARIABLE = 'SYNTHAUG_INJECT'
NETWORK, INSPECTOR = 'synthaug_plugins.diffusion.preconditioning', 'synthaug_plugins.curation.sanity'


def install(spec: Mapping[str, Any]) -> None:
    """Let something go wrong in this process from now on."""
    {'memory': _memory, 'nan': _nan, 'hang': _hang, 'inspector': _inspector, 'write': _write, 'clock': _clock}[spec['what']](spec)


def _mine(spec: Mapping[str, Any]) -> bool:
    """Whether this process is the one that has a fault that happens once."""
    try:
        os.close(os.open(spec['once'], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _network(change: Callable[[int, Any, Callable[[], Any]], Any]) -> None:
    """Stand around the network: change(number of the call, x, call) gives what it returns."""

    def patch(module: ModuleType) -> None:
        forward, calls = module.Precond.forward, [0]

        def changed(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            return change(calls[0], x, lambda: forward(self, x, *args, **kwargs))

        module.Precond.forward = changed

    _when_imported(NETWORK, patch)


def _memory(spec: Mapping[str, Any]) -> None:
    """The network runs out of memory with more than `images` at a time."""

    def change(number: int, x: Any, call: Callable[[], Any]) -> Any:
        if len(x) > spec['images']:
            import torch

            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
        return call()

    _network(change)


def _nan(spec: Mapping[str, Any]) -> None:
    """The network answers NaN for a `share` of the images that it sees, decided by the bits of each."""

    def change(number: int, x: Any, call: Callable[[], Any]) -> Any:
        answer = call()
        for i, bits in enumerate(x.flatten(1)[:, :1].float().contiguous().numpy().view('uint32')[:, 0].tolist()):
            if bits * 2654435761 % 2**32 < spec['share'] * 2**32:
                answer[i] = float('nan')
        return answer

    _network(change)


def _hang(spec: Mapping[str, Any]) -> None:
    """The network never answers its call number `call`, once."""

    def change(number: int, x: Any, call: Callable[[], Any]) -> Any:
        if number == spec['call'] and _mine(spec):
            time.sleep(3600)
        return call()

    _network(change)


def _inspector(spec: Mapping[str, Any]) -> None:
    """The inspector raises at its call number `call`, once."""

    def patch(module: ModuleType) -> None:
        inspect, calls = module.ImageSanity.inspect, [0]

        def changed(self: Any, requests: Any, images: Any) -> Any:
            calls[0] += 1
            if calls[0] == spec['call'] and _mine(spec):
                raise ZeroDivisionError('an inspector with a mistake in it')
            return inspect(self, requests, images)

        module.ImageSanity.inspect = changed

    _when_imported(INSPECTOR, patch)


def _write(spec: Mapping[str, Any]) -> None:
    """The disk fails at call number `call` of those that force files to it and give them their names, once."""
    calls = [0]

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == spec['call'] and _mine(spec):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return function(*args, **kwargs)

        return maybe

    os.fsync, os.replace, os.link = failing(os.fsync), failing(os.replace), failing(os.link)


def _clock(spec: Mapping[str, Any]) -> None:
    """The wall clock goes back by `back` seconds, `after` seconds from now. Nobody sets the monotonic clock."""
    now, now_ns, until = time.time, time.time_ns, time.monotonic() + spec['after']

    def back() -> float:
        return spec['back'] if time.monotonic() >= until else 0.0

    time.time = lambda: now() - back()
    time.time_ns = lambda: now_ns() - int(back() * 1e9)


def _when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    if name in sys.modules:
        patch(sys.modules[name])
        return

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
            if fullname != name:
                return None
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(fullname, path)
            assert spec is not None
            assert spec.loader is not None
            load = spec.loader.exec_module

            def load_and_patch(module: ModuleType) -> None:
                load(module)
                patch(module)

            spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Finder())


if os.environ.get(VARIABLE):
    install(json.loads(os.environ[VARIABLE]))
