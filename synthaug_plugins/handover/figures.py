"""Figures for a data card, from the files that `synthaug evaluate` and `synthaug audit` leave behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from synthaug_plugins.errors import DataError, first_line
from synthaug_plugins.handover.origin import without_path
from synthaug_plugins.plain_json import MAX_BYTES, parse_json

EVALUATION, AUDIT = 'metrics.json', 'audit.json'
_CURE = f'Give the folder that `synthaug evaluate` or `synthaug audit` wrote with --out, or its {EVALUATION} or {AUDIT}.'
_KINDS = {'train': 'training images', 'test': 'held-out images', 'store': 'other images of the store'}


class Figures(NamedTuple):
    """A table for the card.

    Attributes:
        kind: 'evaluation' or 'audit'.
        title: what was done.
        about: what decides the numbers: network, numbers of images.
        rows: name and value.
        notes: what a reader must know to trust them.
    """

    kind: str
    title: str
    about: str
    rows: list[tuple[str, str]]
    notes: list[str]


def read_figures(path: str | Path, name: str) -> list[Figures]:
    """What a folder or file of results says of one store.

    Args:
        path: the folder that `synthaug evaluate --out` or `synthaug audit --out` made, or the metrics.json or audit.json in it.
        name: of the store, as the results have it: that of its folder.

    Raises:
        DataError: no such file, none of ours, or one about other stores.
    """
    given = Path(path).expanduser()
    files = [file for file in (given / EVALUATION, given / AUDIT) if file.is_file()] if given.is_dir() else [given]
    if not files:
        raise DataError(f'{str(given)!r} holds no figures.', _CURE)
    return [one for file in files for one in _read(file, name)]


def _read(file: Path, name: str) -> list[Figures]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f'longer than {MAX_BYTES >> 20} MiB')
        found = parse_json(file.read_bytes(), finite=False)
        if not isinstance(found, Mapping) or found.get('format_version') != 1:
            raise ValueError('it has no format_version 1')
        stores = [found['store']['name']] if 'comparisons' in found else [one['name'] for one in found['sets']]
        figures = (_audit if 'comparisons' in found else _evaluation)(found, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{str(file)!r} holds no figures: {first_line(error)}.', _CURE) from error
    if not figures:
        what = f'{str(file)!r} has figures of {", ".join(map(repr, stores[:8]))}, none of {name!r}.'
        raise DataError(what, 'Measure this store, and give those results.')
    return figures


def _audit(found: Mapping[str, Any], name: str) -> list[Figures]:
    """How many images are copies of others."""
    store = found['store']
    if store['name'] != name:
        return []
    rows = []
    for kind, one in found['comparisons'].items():
        chance = f', {_value(one["expected_by_chance"], None)} expected by chance' if one.get('expected_by_chance') is not None else ''
        rows.append((f'copies of {_KINDS.get(kind, kind)}', f'{one["copies"]} ({one["others"]} were compared{chance})'))
    rows.append(('contaminated with held-out images', 'yes' if found['contaminated'] else 'no'))
    selection = f' ({store["selection"]})' if store.get('selection') else ''
    about = f'{store["images"]} images of the store{selection}, compared by features of {found["features"]["text"]} and by perceptual hash.'
    warned = ['Copies of held-out images were found: results on those images are not to be trusted.'] if found['contaminated'] else []
    return [Figures('audit', 'Audited for copies', about, rows, [*warned, *(str(note) for note in found['notes'])])]


def _evaluation(found: Mapping[str, Any], name: str) -> list[Figures]:
    """Metrics of each set of images that was taken from the store, over all of its classes and values."""
    real = without_path(str(found['real']['folder']))
    notes = [str(note) for note in found['notes']]
    figures = []
    for row in found['rows']:
        whole = row['by'] is None and row.get('class') is None and row.get('of_class') is None
        if not whole or not (row['set'] == name or row['set'].startswith((f'{name}: ', f'{name} ('))):
            continue
        values = [(key, _value(value['mean'], value['se'])) for key, value in row['values'].items()]
        about = f'Features of {row["features"]}, k = {row["k"]}; {row["n"]} of these images against {row["n_real"]} real ones in {real}. Shares are in percent.'
        figures.append(Figures('evaluation', f'Measured: {row["set"]}', about, values, notes))
    return figures


def _value(mean: float | None, error: float | None) -> str:
    """A number with its standard error, where it has one."""
    shown = ['–' if x is None or not math.isfinite(x) else f'{x:.4g}' for x in (mean, error)]
    return shown[0] if shown[1] == '–' else f'{shown[0]} ± {shown[1]}'
