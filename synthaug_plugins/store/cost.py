"""`cost.json`: what generation took. A file of its own, since `store.json` is what the writer's lock is held on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from synthaug_plugins.errors import StoreError
from synthaug_plugins.plain_json import MAX_BYTES, parse_json
from synthaug_plugins.store.place import Place

COST = 'cost.json'
_SUMS = ('images', 'seconds', 'network_images')
_LONGEST = 200  # letters of a device's name


@dataclass(frozen=True)
class RunCost:
    """What one completed run took. What is None was not known, or not noted by the version that wrote it.

    Attributes:
        images: tried, rejected ones included.
        seconds: of all workers together, the loading of models included.
        batch_size: the one that it ended with.
        network_images: images that went through a network, all of its steps together; 0 where nobody counted.
        wall: seconds from the first worker's start to the last one's end.
        device: name of what they computed on, such as 'NVIDIA H200'; several kinds with commas.
        devices: how many GPUs that was, or processes on a CPU.
        workers: processes that made blocks.
        network_tflop: 10^12 floating-point operations of the denoisers' forward passes, a multiplication and an addition counted as two.
    """

    images: int
    seconds: float
    batch_size: int
    network_images: int = 0
    wall: float | None = None
    device: str | None = None
    devices: int | None = None
    workers: int | None = None
    network_tflop: float | None = None


def add_cost(place: Place, run: RunCost) -> dict[str, Any]:
    """Note one completed run; a killed one adds nothing. Returns the new `read_cost`."""
    runs = [{key: value for key, value in asdict(one).items() if value is not None} for one in (*read_runs(place), run)]
    place.write_whole(COST, (json.dumps(runs, indent=1) + '\n').encode())
    return read_cost(place)


def read_cost(place: Place) -> dict[str, Any]:
    """Sums of `images`, `seconds` and `network_images` over all runs, number of `runs`, last `batch_size`; empty if none is noted.

    Raises:
        StoreError: the file is damaged.
    """
    runs = read_runs(place)
    if not runs:
        return {}
    sums = {key: sum(getattr(run, key) for run in runs) for key in _SUMS}
    return {**sums, 'batch_size': runs[-1].batch_size, 'runs': len(runs)}


def read_runs(place: Place) -> list[RunCost]:
    """Every completed run, in their order. Raises StoreError: the file is damaged."""
    try:
        return [_run(one) for one in _listed(parse_json(_text(place)))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f'{place.path(COST)!r} cannot be read: {error!r}.', 'Remove it: it only says how long generation took.') from error


def _run(found: Any) -> RunCost:
    """A run as anybody may have written it; keys that this version does not know are left out."""
    if not isinstance(found, dict):
        raise TypeError('a run is no object')
    known = {field.name: found[field.name] for field in fields(RunCost) if field.name in found}
    device = known.pop('device', None)
    if device is not None and not (isinstance(device, str) and len(device) <= _LONGEST):
        raise TypeError('a device is no name')
    return RunCost(**{key: _count(value) for key, value in known.items()}, device=device)


def _listed(runs: Any) -> list[Any]:
    if not isinstance(runs, list):
        raise TypeError('no list of runs')
    return runs


def _count(value: Any) -> Any:
    """An amount, whoever wrote it; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise ValueError(f'{value!r:.60} is no amount')
    return value


def _text(place: Place) -> bytes:
    try:
        return place.read(COST, MAX_BYTES)
    except FileNotFoundError:
        return b'[]'
