"""`cost.json`: what generation took. A file of its own, since `store.json` is what the writer's lock is held on."""

from __future__ import annotations

import json
from typing import Any

from synthaug_plugins.errors import StoreError
from synthaug_plugins.plain_json import MAX_BYTES, parse_json
from synthaug_plugins.store.place import Place

COST = 'cost.json'
_SUMS = ('images', 'seconds', 'network_images')


def add_cost(place: Place, images: int, seconds: float, batch_size: int, network_images: int) -> dict[str, Any]:
    """Note one completed run; a killed one adds nothing. Returns the new `read_cost`.

    network_images: images that went through a network, all of its steps together; 0 where nobody counted.
    """
    run = {'images': int(images), 'seconds': round(float(seconds), 3), 'batch_size': int(batch_size), 'network_images': int(network_images)}
    runs = [*_runs(place), run]
    place.write_whole(COST, (json.dumps(runs, indent=1) + '\n').encode())
    return read_cost(place)


def read_cost(place: Place) -> dict[str, Any]:
    """Sums of `images`, `seconds` and `network_images` over all runs, number of `runs`, last `batch_size`; empty if none is noted.

    Raises:
        StoreError: the file is damaged.
    """
    runs = _runs(place)
    if not runs:
        return {}
    sums = {key: sum(run[key] for run in runs) for key in _SUMS}
    return {**sums, 'batch_size': runs[-1]['batch_size'], 'runs': len(runs)}


def _runs(place: Place) -> list[dict[str, Any]]:
    try:
        return [{key: _count({'network_images': 0, **r}[key]) for key in (*_SUMS, 'batch_size')} for r in _listed(parse_json(_text(place)))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f'{place.path(COST)!r} cannot be read: {error!r}.', 'Remove it: it only says how long generation took.') from error


def _listed(runs: Any) -> list[Any]:
    if not isinstance(runs, list):
        raise TypeError('no list of runs')
    return runs


def _count(value: Any) -> int | float:
    """An amount, whoever wrote it; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise ValueError(f'{value!r:.60} is no amount')
    return value


def _text(place: Place) -> bytes:
    try:
        return place.read(COST, MAX_BYTES)
    except FileNotFoundError:
        return b'[]'
