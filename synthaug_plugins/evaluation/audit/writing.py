"""What an audit leaves: score columns in the store, and a folder with the pairs and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from synthaug_plugins import __version__
from synthaug_plugins.engine.progress import say_to_user
from synthaug_plugins.engine.score import check_columns
from synthaug_plugins.engine.score_run import Columns
from synthaug_plugins.errors import RecipeError, StoreError
from synthaug_plugins.evaluation.audit.audit import Audit, audit
from synthaug_plugins.evaluation.audit.comparison import KINDS, LEAK, TEST, TRAIN, Comparison, Pair
from synthaug_plugins.evaluation.csv_text import csv_bytes
from synthaug_plugins.evaluation.fingerprint import versions
from synthaug_plugins.evaluation.gallery import data_uri
from synthaug_plugins.evaluation.pages import write_page
from synthaug_plugins.own_folder import alone, refuse_among_images, refuse_foreign
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.store.scores import scores_name
from synthaug_plugins.store.store import Store

NAME = 'audit'
"""Of the scores in the store."""
CSV, JSON, REPORT = 'pairs.csv', 'audit.json', 'report.html'
OWN_FILES = frozenset({'.lock', CSV, JSON, REPORT})
"""What a folder of results may hold."""
_SHOWN = 48  # pairs of each kind in the page


def audit_store(
    folder: str | Path,
    train: str | Path,
    test: str | Path,
    features: str,
    *,
    out: str | Path | None,
    drop: str | None,
    command: str,
    quiet: bool = False,
    **options: Any,
) -> Audit:
    """Audit a store and write what was found: `scores/audit.parquet`, and what is asked for. Files appear whole; old ones of an audit are replaced.

    The columns: `memorisation`, 1 - l to the nearest training image (see `nearness`; 1 is a copy), and `train_p`, `test_p`, `store_p`, the probability
    that a new image comes as near to one of these sets by chance. Images that were not looked at have none.

    Args:
        folder, train, test, features, quiet, options: see `audit.audit`.
        out: a folder for pairs.csv, audit.json and report.html.
        drop: name of further scores with the columns NAME_kept (bool) and NAME_reason, to select by. No image is touched.
        command: shell command that does it again.

    Raises:
        StoreError: an unfinished store, scores of these names that no audit made, columns that the store has already, or being written by another process.
        RecipeError: `out` holds something else or lies among real images; a name that cannot begin a column's. All others: see `audit.audit`.
    """
    if drop is not None:
        check_columns(Columns(drop))
        if drop == NAME:
            raise RecipeError(f'--drop {drop}: the scores of that name are the audit itself.', 'Give another name: --drop clean.')
    if out is not None:
        refuse_among_images(out, train, test)
        refuse_foreign(Path(out), OWN_FILES, 'folder of an audit')
    store = Store.open(folder)
    _check_store(store, drop)
    with store.lock('audit', say_to_user(quiet)):
        _check_store(store, drop)  # again: somebody may have been here
        store.clean_partials()
        found = audit(folder, train, test, features, quiet=quiet, **options)
        made_by = _made_by(found, train, test)
        if out is not None:
            write_audit(found, out, command)
        ids = pa.array(found.images.ids, pa.string())
        columns = {'memorisation': found.memorisation, **{f'{kind}_p': one.p for kind, one in found.comparisons.items()}}
        store.add_scores(NAME, pa.table({'id': ids, **columns}), made_by)
        if drop is not None:
            reasons = pa.array([found.reason(i) for i in range(len(ids))], pa.string())
            store.add_scores(drop, pa.table({'id': ids, Columns(drop).kept: found.stays, Columns(drop).reason: reasons}), made_by)
    return found


def _check_store(store: Store, drop: str | None) -> None:
    """Refuse (StoreError) what cannot take the scores."""
    if missing := store.unfinished():
        raise StoreError(f'The store {str(store.folder)!r} is not finished: {len(missing)} blocks are missing.', 'Finish it with synthaug generate first.')
    columns = {NAME: ['memorisation', *(f'{kind}_p' for kind in KINDS)]}
    if drop is not None:
        columns[drop] = [Columns(drop).kept, Columns(drop).reason]
    for name, own in columns.items():
        if store.place.exists(scores_name(name)) and NAME not in (store.scores_made_by(name) or {}):
            what = f'The store {str(store.folder)!r} has scores {name!r} that no audit made.'
            raise StoreError(what, 'Give another name with --drop.' if name == drop else 'Rename that file in scores/.')
        for column in own:
            if column.lower() in {other.lower() for other in store.score_column_names(besides=name)}:
                what = f'The store {str(store.folder)!r} has a column {column!r} already.'
                raise StoreError(what, 'Give another name with --drop.' if name == drop else 'Remove the file in scores/ that holds it.')


def _made_by(found: Audit, train: str | Path, test: str | Path) -> dict[str, Any]:
    decides = {
        'features': found.network,
        'k': found.k,
        'false_alarms': found.false_alarms,
        'selection': found.images.chosen,
        **{f'{kind}_sha256': RealImages(data).content_hash() for kind, data in ((TRAIN, train), (TEST, test))},
    }
    return json.loads(json.dumps({'synthaug_plugins': __version__, NAME: decides}))


def table(found: Audit) -> list[list[str]]:
    """What was found as text, its head first."""
    head = ['copy of', 'images', '%', 'by chance at most', 'beyond chance', 'within distance', 'within bits']
    rows = []
    for kind, one in found.comparisons.items():
        within = f'{one.distance:.3f}' if one.distance >= 0 else '-', str(one.bits) if one.bits >= 0 else '-'
        share = f'{100 * one.found / len(one.p):.1f}'
        rows.append([KINDS[kind], str(one.found), share, f'{one.expected:.1f}', 'yes' if one.beyond_chance else 'no', *within])
    return [head, *rows]


def per_class(found: Audit) -> list[list[str]]:
    """Copies by class of the image of the store, the head first."""
    names = np.array(found.images.class_names)
    rows = []
    for name in dict.fromkeys(found.images.class_names):
        mine = names == name
        counts = [str(int((one.copies & mine).sum())) for one in found.comparisons.values()]
        rows.append([name, str(int(mine.sum())), *counts, str(int((found.stays & mine).sum()))])
    return [['class', 'images', *(f'copies of {KINDS[kind]}' for kind in found.comparisons), 'stay'], *rows]


def about(found: Audit) -> str:
    """What decides every number, in a sentence."""
    return (
        f'{len(found.images.ids)} images beside {len(found.train.ids)} training and {len(found.test.ids)} held-out images, each as it is, mirrored and '
        f'upside down. Features: {found.features}; distances over the mean of those to the {found.k} nearest training images; '
        f'one new image in {1 / found.false_alarms:g} may be called a copy by chance, as learned from training images.'
    )


def write_audit(found: Audit, out: str | Path, command: str) -> None:
    """Write pairs.csv, audit.json and report.html. Old ones are replaced.

    Args:
        out: a folder, new, empty or of an earlier audit.
        command: shell command that does it again.

    Raises:
        RecipeError: it holds something else; another audit writes into it.
        DataError, StoreError: an image to show is gone; disk full, no permission.
    """
    folder, used = Path(out), versions()
    refuse_foreign(folder, OWN_FILES, 'folder of an audit')
    names = [field.name for field in fields(Pair)]
    pairs = [pair for one in (*found.comparisons.values(), found.leaks) for pair in one.pairs]
    with alone(folder, 'audit'):
        write_whole(folder / CSV, csv_bytes([names, *([getattr(pair, name) for name in names] for pair in pairs)]))
        write_whole(folder / JSON, (json.dumps(_plain(found, command, used), indent=1) + '\n').encode())
        write_page(
            folder / REPORT,
            'audit.html.j2',
            title=f'Copies in {found.images.store}',
            about=about(found),
            verdicts=list(verdicts(found)),
            notes=found.notes,
            table=table(found),
            per_class=per_class(found),
            sections=[_section(found, one) for one in (*found.comparisons.values(), *([found.leaks] if found.leaks.found else []))],
            pixelated=max(found.train.pixels(found.train.ids[0]).shape[:2]) <= 64,
            selection=found.images.chosen,
            command=command,
            versions=used,
        )


def verdicts(found: Audit) -> Sequence[str]:
    """What it comes to, in sentences."""
    said = []
    for kind, one in found.comparisons.items():
        if not one.found:
            said.append(f'No image looks like a copy of {KINDS[kind]}.')
            continue
        count = f'{one.found} {"image looks like a copy" if one.found == 1 else "images look like copies"} of {KINDS[kind]}'
        said.append(f'{count}, where chance would find {one.expected:.1f} at most' + ('.' if one.beyond_chance else ': no more than chance explains.'))
    return said


def _section(found: Audit, one: Comparison) -> dict[str, Any]:
    mine = found.test if one.kind == LEAK else found.images
    theirs = {TRAIN: found.train, LEAK: found.train, TEST: found.test}.get(one.kind, found.images)

    def shown(pair: Pair) -> dict[str, Any]:
        pictures = [data_uri(Image.fromarray(images.pixels(i))) for images, i in ((mine, pair.id), (theirs, pair.other_id))]
        return {'pair': pair, 'pictures': pictures}

    pairs = [shown(pair) for pair in one.pairs[:_SHOWN]]
    title = 'Held-out images that are copies of a training image' if one.kind == LEAK else f'Copies of {KINDS[one.kind]}'
    left = 'held-out image' if one.kind == LEAK else 'image of the store'
    more, near = len(one.pairs) - len(pairs), [] if pairs else [shown(pair) for pair in one.near]
    return {'title': title, 'left': left, 'pairs': pairs, 'more': more, 'near': near}


def _plain_comparison(one: Comparison) -> dict[str, Any]:
    return {
        'others': one.others,
        'copies': one.found,
        'expected_by_chance': one.expected,
        'beyond_chance': one.beyond_chance,
        'within_distance': one.distance if one.distance >= 0 else None,
        'within_bits': one.bits if one.bits >= 0 else None,
        'pairs': [asdict(pair) for pair in one.pairs],
    }


def _plain(found: Audit, command: str, used: Mapping[str, str]) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        'format_version': 1,
        'store': {
            'name': found.images.store,
            **(found.images.identity._asdict() if found.images.identity else {}),
            'images': len(found.images.ids),
            'selection': found.images.chosen,
            'stay': int(found.stays.sum()),
        },
        'folders': {TRAIN: found.train.folder, TEST: found.test.folder},
        'train_images': len(found.train.ids),
        'test_images': len(found.test.ids),
        'features': {'text': found.features, 'identity': dict(found.network)},
        'k': found.k,
        'false_alarms': found.false_alarms,
        'contaminated': found.contaminated,
        'comparisons': {kind: _plain_comparison(one) for kind, one in found.comparisons.items()},
        'leaks': _plain_comparison(found.leaks),
        'per_class': {row[0]: dict(zip(('images', *KINDS, 'stay'), map(int, row[1:]), strict=True)) for row in per_class(found)[1:]},
        'notes': list(found.notes),
        'command': command,
        'versions': dict(used),
    }
