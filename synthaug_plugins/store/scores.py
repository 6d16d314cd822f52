"""Score columns that were added later: `scores/<name>.parquet`, keyed by id and the image's SHA-256."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import files
from synthaug_plugins.store.place import Place
from synthaug_plugins.store.table import check_distinct, check_kinds, check_names, column_names, made_by_of, parquet_bytes, read_parquet

SCORE_KEYS = ('id', 'sha256')
"""Columns of a scores file that say which image a score is of."""
UNFINISHED = '.scoring-'
"""Beginning of the name of a folder that holds scores of which the file is not written yet."""
_CURE = 'Score again, or remove the file.'
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]*')


def score_files(place: Place) -> list[str]:
    """The files of added score columns of a store, sorted by name."""
    return [f'scores/{name}' for name in place.names('scores') if name.endswith('.parquet') and not name.startswith(files.PARTIAL)]


def scores_name(name: str) -> str:
    """The file of the scores `name`. Raises StoreError for a name that is no plain one."""
    if not _NAME.fullmatch(name):
        raise StoreError(f'The scores name {name!r} is not a plain name.', 'Use letters, digits, - and _.')
    return f'scores/{name}.parquet'


def parts_folder(file: str) -> str:
    """Where the scores for a file lie while they are being made: a folder beside it."""
    folder, slash, name = file.rpartition('/')
    return f'{folder}{slash}{UNFINISHED}{name.removesuffix(".parquet")}'


def score_names(place: Place, file: str) -> list[str]:
    """The score columns of a scores file; reads its footer only.

    Raises:
        StoreError: damaged, or without a key, or with names that a score column cannot have.
    """
    names = column_names(place, file)
    scores = [name for name in names if name not in SCORE_KEYS]
    if set(SCORE_KEYS) - set(names):
        raise StoreError(f'The file {place.path(file)!r} holds no scores: it has the columns {", ".join(names)[:200]}.', _CURE)
    try:
        check_names(scores)
    except StoreError as error:
        raise StoreError(f'The file {place.path(file)!r} holds no scores: {error.what}', _CURE) from error
    return scores


def join_scores(table: pa.Table, place: Place, file: str, columns: Sequence[str], rows: int) -> pa.Table:
    """The index `table` with columns of a scores file beside it, null where an image has no score.

    Args:
        table: with the columns `SCORE_KEYS`.
        place, file: the scores, of which `columns` are wanted.
        rows: most that the file can have.

    Raises:
        StoreError: a damaged file, or a column that the table has already.
    """
    scores = read_parquet(place, file, _CURE, [*SCORE_KEYS, *columns], rows)
    if any(not pa.types.is_string(scores.schema.field(key).type) for key in SCORE_KEYS):
        raise StoreError(f'The file {place.path(file)!r} holds no scores: id or sha256 is no text.', _CURE)
    row = pc.index_in(table['id'], value_set=scores['id'])
    # A block that was made again has the same ids; scores of images that changed since are not theirs.
    same = pc.equal(scores['sha256'].take(row), table['sha256'])
    row = pc.if_else(pc.fill_null(same, False), row, pa.scalar(None, row.type))
    for name in columns:
        if name.lower() in {c.lower() for c in table.column_names}:
            raise StoreError(f'{place.path(file)!r} has a column {name!r}, which the store has already.', 'Remove one of the two files from scores/.')
        table = table.append_column(name, scores[name].take(row))
    return table


def write_scores(place: Place, name: str, table: pa.Table, known: Mapping[str, str], taken: set[str], made_by: Mapping[str, Any] | None = None) -> None:
    """Write a scores file, whole or not at all; one that is there is replaced.

    Args:
        name: of the scores.
        table: a column `id` and one or more score columns.
        known: SHA-256 of every image by id.
        taken: score columns that the store has already, this file's aside.
        made_by: plain JSON that says what made the scores, see `read_made_by`.

    Raises:
        StoreError: unknown or repeated ids, no column, or one that cannot be added; a failed write.
    """
    if 'id' not in table.column_names or len(table.column_names) < 2:
        raise StoreError(f'Scores {name!r} have the columns {table.column_names}.', 'Give a column id and one or more score columns.')
    columns = [column for column in table.column_names if column != 'id']
    check_distinct(columns, taken)
    check_names(columns)
    try:
        check_kinds(table.schema)
    except ValueError as error:
        raise StoreError(f'Scores {name!r}: {error}.', 'Give numbers, text, or lists of numbers.') from error
    ids = table['id'].to_pylist()
    unknown = [i for i in ids if i not in known]
    if unknown or len(set(ids)) != len(ids):
        what = f'{len(unknown)} ids that are not in the store, such as {unknown[0]!r}' if unknown else 'repeated ids'
        raise StoreError(f'Scores {name!r} hold {what}.', 'Score the images of store.index().')
    table = table.set_column(table.column_names.index('id'), 'id', pa.array(ids, pa.string()))
    table = table.append_column('sha256', pa.array([known[i] for i in ids], pa.string()))
    place.write_whole(scores_name(name), parquet_bytes(table.combine_chunks(), made_by))


def read_made_by(place: Place, name: str) -> dict[str, Any] | None:
    """What the file of the scores `name` says of its origin; None if it says nothing.

    Raises:
        StoreError: missing or damaged.
    """
    file = scores_name(name)
    try:
        return made_by_of(read_parquet(place, file, _CURE, SCORE_KEYS, 2**31))
    except ValueError as error:
        raise StoreError(f'The file {place.path(file)!r} does not say what made it: {error}.', _CURE) from error
