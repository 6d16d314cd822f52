"""What was found of a store, read back from the files of `synthaug evaluate`, `audit` and `compare` for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import DataError, first_line
from synthaug_plugins.evaluation.gallery import RealPictures, picture_of
from synthaug_plugins.evaluation.metrics.measure import METRICS, Measures, Value
from synthaug_plugins.evaluation.metrics.table import Row, about, metrics_of, panels, table
from synthaug_plugins.evaluation.report import drawn
from synthaug_plugins.handover.figures import AUDIT, EVALUATION, KINDS, Results, identity_in, parsed, read_results, refuse_other
from synthaug_plugins.store.identity import identity
from synthaug_plugins.store.index import STORED
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.store import Store

RESULTS = 'results.json'
_PAIRS = 4  # of each kind
_WRONG = (ValueError, KeyError, TypeError, AttributeError, IndexError)


def read_kind(path: str | Path, store: Store, kind: str) -> list[Results]:
    """The results of one kind in a folder, or in its file.

    Args:
        kind: 'evaluation' or 'audit'.

    Raises:
        DataError: see `figures.read_results`; a folder of another kind.
    """
    name, command = (AUDIT, 'audit') if kind == 'audit' else (EVALUATION, 'evaluate')
    given = Path(path).expanduser()
    found = [one for one in read_results(given / name if given.is_dir() else given, store) if one.kind == kind]
    if not found:
        raise DataError(f'{str(given)!r} is of another kind than --{kind}.', f'Give what `synthaug {command} --out` made.')
    return found


def evaluation(one: Results) -> dict[str, Any]:
    """An evaluation as the page shows it: every line as it was written. Raises DataError for another kind of file."""
    try:
        rows = [_row(row) for row in one.found['rows']]
        whole, by_class = ([row for row in rows if (row.of_class is None) == whole] for whole in (True, False))
        network = one.found['features'].get('identity') or {}
        return {
            'about': about(whole, network),
            'table': table(whole),
            'by_class': table(by_class) if by_class else None,
            'panels': [panel for by in dict.fromkeys(row.by for row in whole if row.by) for panel in panels(whole, by)],
            'metrics': [METRICS[name] for name in metrics_of(rows)],
            'selections': [(str(s['name']), str(s['selection'])) for s in one.found['sets'] if s.get('selection')],
            'notes': [str(note) for note in one.found['notes']],
            'command': str(one.found['command']),
        }
    except _WRONG as error:
        raise _no_results(one.file, error) from error


def _row(row: Mapping[str, Any]) -> Row:
    values = {name: Value(float(v['mean']), None if v['se'] is None else float(v['se'])) for name, v in row['values'].items() if name in METRICS}
    sizes = (int(row['n']), int(row['n_real']))
    measures = Measures(str(row['features']), int(row['k']), row['lof_k'], *sizes, values, row.get('clip'), int(row.get('n_test') or 0))
    return Row(str(row['set']), measures, row['by'], row['value'], row.get('class'))


def audit(one: Results, store: Store) -> dict[str, Any]:
    """An audit as the page shows it: its table, and the worst pairs with their pictures. Raises DataError for another kind of file."""
    try:
        found = one.found
        head = ['copies of', 'images', 'compared with', 'by chance at most', 'beyond chance']
        rows, sections = [head], []
        for kind, compared in found['comparisons'].items():
            chance = compared['expected_by_chance']
            beyond = 'yes' if compared['beyond_chance'] else 'no'
            rows.append([KINDS.get(kind, str(kind)), str(compared['copies']), str(compared['others']), f'{chance:.1f}', beyond])
            folder = (found.get('folders') or {}).get(kind)
            if pairs := compared['pairs'][:_PAIRS]:
                sections.append({'name': KINDS.get(kind, str(kind)), **_pairs(pairs, store, kind, folder), 'more': len(compared['pairs']) - len(pairs)})
        about_it = f'{found["store"]["images"]} images beside {found["train_images"]} training and {found["test_images"]} held-out ones. Features: '
        selection = f' Images: {found["store"]["selection"]}.' if found['store'].get('selection') else ''
        notes = [str(note) for note in found['notes']]
        if found['contaminated']:
            notes.insert(0, 'Copies of held-out images were found: results on those images are not to be trusted.')
        text = f'{about_it}{found["features"]["text"]} and a perceptual hash.{selection}'
        return {
            'about': text,
            'table': rows,
            'sections': sections,
            'notes': notes,
            'contaminated': bool(found['contaminated']),
            'command': str(found['command']),
        }
    except _WRONG as error:
        raise _no_results(one.file, error) from error


def _pairs(pairs: Sequence[Mapping[str, Any]], store: Store, kind: str, folder: object) -> dict[str, Any]:
    """Pairs of images with their pictures: `pairs`, and `not_shown`, why a real one is missing."""
    wanted = {str(pair[key]) for pair in pairs for key in ('id', 'other_id')}
    rows = {row['id']: row for row in store.index(['id', 'shard', 'offset', 'size', 'sha256'], STORED).to_pylist() if row['id'] in wanted}
    reader, real = StoreReader(store.folder), RealPictures(folder)
    shown = []
    for pair in pairs:
        mine, other = str(pair['id']), str(pair['other_id'])
        pictures = [picture_of(reader, rows[mine]), picture_of(reader, rows[other]) if kind == 'store' else real.picture(other)]
        shown.append({**pair, 'pictures': pictures, 'distance': float(pair['distance']), 'p': float(pair['p'])})
    return {'pairs': shown, 'not_shown': real.not_shown if kind != 'store' else None}


def read_comparisons(path: str | Path, store: Store) -> list[dict[str, Any]]:
    """The comparisons of a folder in which an arm trained on a store as it is now.

    Args:
        path: the folder of `synthaug compare`, or a results.json in it. Of a folder with several numbers of shots, those that the store had a part in.

    Raises:
        DataError: no such folder, none of ours, or one whose arms trained on other stores or on other images.
    """
    given = Path(path).expanduser()
    files = [file for file in (given / RESULTS, *sorted(given.glob(f'*/{RESULTS}'))) if file.is_file()] if given.is_dir() else [given]
    if not files:
        raise DataError(f'{str(given)!r} holds no results of a comparison.', 'Give the folder that `synthaug compare` made.')
    mine, named, used = identity(store), [], []
    for file in files:
        try:
            found = parsed(file)
            entries = [(arm['name'], entry) for arm in found['arms'] for per_seed in arm['stores'] for entry in per_seed]
            here = [(str(entry['store']), identity_in(entry)) for _, entry in entries]
            on_it = [str(name) for name, entry in entries if identity_in(entry) == mine]
            shown = {**drawn(found), 'command': str(found['command']), 'on_it': list(dict.fromkeys(on_it))} if on_it else None
        except (OSError, *_WRONG) as error:
            raise _no_results(file, error) from error
        named += here
        used += [shown] if shown else []
    if not used:
        refuse_other(files[0], named, store, mine, 'Run the comparison again: runs on the same images are not done again.')
    return used


def _no_results(file: Path, error: Exception) -> DataError:
    return DataError(f'{str(file)!r} holds no results: {first_line(error)}.', 'Run again what wrote it.')
