"""Figures for a data card and a report, from the files that `synthaug evaluate` and `synthaug audit` leave behind: of this very store, or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from synthaug_plugins.errors import DataError, first_line
from synthaug_plugins.handover.origin import without_path
from synthaug_plugins.plain_json import MAX_BYTES, parse_json
from synthaug_plugins.store.identity import Identity, identity
from synthaug_plugins.store.reasons import printable
from synthaug_plugins.store.store import Store

EVALUATION, AUDIT = 'metrics.json', 'audit.json'
_CURE = f'Give the folder that `synthaug evaluate` or `synthaug audit` wrote with --out, or its {EVALUATION} or {AUDIT}.'
KINDS = {'train': 'training images', 'test': 'held-out images', 'store': 'other images of the store'}
"""Of what an image of a store may be a copy, by the names that an audit's results have for it."""


class Results(NamedTuple):
    """What a command found of a store, as its file has it.

    Attributes:
        kind: 'evaluation' or 'audit'.
        file: where it was read.
        found: its JSON.
        sets: of an evaluation, the names of the sets of images that were taken from the store.
    """

    kind: str
    file: Path
    found: Mapping[str, Any]
    sets: tuple[str, ...] = ()


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


def read_results(path: str | Path, store: Store) -> list[Results]:
    """What a folder or file of results has found of a store as it is now.

    Args:
        path: the folder that `synthaug evaluate --out` or `synthaug audit --out` made, or the metrics.json or audit.json in it.

    Raises:
        DataError: no such file, none of ours, or one about other stores, or about this one before its images changed.
    """
    given = Path(path).expanduser()
    files = [file for file in (given / EVALUATION, given / AUDIT) if file.is_file()] if given.is_dir() else [given]
    if not files:
        raise DataError(f'{str(given)!r} holds no figures.', _CURE)
    mine = identity(store)
    return [_read(file, store, mine) for file in files]


def read_figures(path: str | Path, store: Store) -> list[Figures]:
    """The tables of what `read_results` reads, which says what is refused."""
    figures: list[Figures] = []
    for one in read_results(path, store):
        try:
            figures += [_audit(one.found)] if one.kind == 'audit' else _evaluation(one.found, one.sets)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f'{str(one.file)!r} holds no figures: {first_line(error)}.', _CURE) from error
    return figures


def _read(file: Path, store: Store, mine: Identity) -> Results:
    try:
        found = parsed(file)
        audited = 'comparisons' in found
        measured = [(str(one['name']), identity_in(one)) for one in ([found['store']] if audited else found['sets'])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{str(file)!r} holds no figures: {first_line(error)}.', _CURE) from error
    sets = tuple(name for name, its in measured if its == mine)
    if not sets:
        refuse_other(file, measured, store, mine, 'Measure this store, and give those results.')
    return Results('audit' if audited else 'evaluation', file, found, sets)


def parsed(file: Path) -> Mapping[str, Any]:
    """The content of a file of results. Raises OSError, or ValueError for one that is none of this format."""
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f'longer than {MAX_BYTES >> 20} MiB')
    found = parse_json(file.read_bytes(), finite=False)
    if not isinstance(found, Mapping) or found.get('format_version') != 1:
        raise ValueError('it has no format_version 1')
    return found


def identity_in(one: Mapping[str, Any]) -> Identity | None:
    """Of the store that results are of, as `Identity._asdict` wrote it; None for real images, and in files from before it was written."""
    return Identity(str(one['fingerprint']), str(one['content_sha256'])) if 'fingerprint' in one else None


def refuse_other(file: Path, named: Sequence[tuple[str, Identity | None]], store: Store, mine: Identity, cure: str) -> NoReturn:
    """Refuse results of other stores than this one, or of other images.

    Args:
        named: what the file has results of, by name; see `identity_in`.
        mine: of the store as it is now.

    Raises:
        DataError: always.
    """
    others = {its: name for name, its in reversed(named) if its is not None}
    if not others:
        raise DataError(f'{str(file)!r} does not say by its fingerprint which store it has results of: an older version wrote it, or there is none.', cure)
    names = ', '.join(f'{printable(name)!r} ({its})' for its, name in list(others.items())[:4]) + (' and others' if len(others) > 4 else '')
    what = f'{str(file)!r} has results of {names}, none of {str(store.folder)!r} as it is now ({mine}).'
    if any(its.fingerprint == mine.fingerprint for its in others):
        what += ' The plan is the same, the images are others: the store was made anew or went on since.'
    raise DataError(what, cure)


def _audit(found: Mapping[str, Any]) -> Figures:
    """How many images are copies of others."""
    store = found['store']
    rows = []
    for kind, one in found['comparisons'].items():
        chance = f', {_value(one["expected_by_chance"], None)} expected by chance' if one.get('expected_by_chance') is not None else ''
        rows.append((f'copies of {KINDS.get(kind, kind)}', f'{one["copies"]} ({one["others"]} were compared{chance})'))
    rows.append(('contaminated with held-out images', 'yes' if found['contaminated'] else 'no'))
    selection = f' ({store["selection"]})' if store.get('selection') else ''
    about = f'{store["images"]} images of the store{selection}, compared by features of {found["features"]["text"]} and by perceptual hash.'
    warned = ['Copies of held-out images were found: results on those images are not to be trusted.'] if found['contaminated'] else []
    return Figures('audit', 'Audited for copies', about, rows, [*warned, *(str(note) for note in found['notes'])])


def _evaluation(found: Mapping[str, Any], sets: Sequence[str]) -> list[Figures]:
    """Metrics of each set of images that was taken from the store, over all of its classes and values."""
    real = without_path(str(found['real']['folder']))
    notes = [str(note) for note in found['notes']]
    figures = []
    for row in found['rows']:
        if row['set'] not in sets or row['by'] is not None or row.get('class') is not None:
            continue
        values = [(key, _value(value['mean'], value['se'])) for key, value in row['values'].items()]
        about = f'Features of {row["features"]}, k = {row["k"]}; {row["n"]} of these images against {row["n_real"]} real ones in {real}. Shares are in percent.'
        figures.append(Figures('evaluation', f'Measured: {row["set"]}', about, values, notes))
    return figures


def _value(mean: float | None, error: float | None) -> str:
    """A number with its standard error, where it has one."""
    shown = ['–' if x is None or not math.isfinite(x) else f'{x:.4g}' for x in (mean, error)]
    return shown[0] if shown[1] == '–' else f'{shown[0]} ± {shown[1]}'
