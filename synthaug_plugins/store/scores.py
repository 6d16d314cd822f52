"""Score columns that were added later: `scores/<name>.parquet`, keyed by id and the image's SHA-256."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import files
from synthaug_plugins.store.table import check_distinct, check_kinds, check_names, column_names, made_by_of, parquet_bytes, read_parquet

SCORE_KEYS = ('id', 'sha256')
"""Columns of a scores file that say which image a score is of."""
UNFINISHED = '.scoring-'
"""Beginning of the name of a folder that holds scores of which the file is not written yet."""
_CURE = 'Score again, or remove the file.'
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]*')


def score_files(folder: Path) -> list[Path]:
    """The files of added score columns of the store in `folder`, sorted by name."""
    return sorted(p for p in (folder / 'scores').glob('*.parquet') if not p.name.startswith(files.PARTIAL))


def scores_path(folder: Path, name: str) -> Path:
    """Where the scores `name` are. Raises StoreError for a name that is no plain one."""
    if not _NAME.fullmatch(name):
        raise StoreError(f'The scores name {name!r} is not a plain name.', 'Use letters, digits, - and _.')
    return folder / 'scores' / f'{name}.parquet'


def parts_folder(path: Path) -> Path:
    """Where the scores for a file lie while they are being made."""
    return path.with_name(f'{UNFINISHED}{path.stem}')


def score_names(path: Path) -> list[str]:
    """The score columns of a scores file; reads its footer only.

    Raises:
        StoreError: damaged, or without a key, or with names that a score column cannot have.
    """
    names = column_names(path)
    scores = [name for name in names if name not in SCORE_KEYS]
    if set(SCORE_KEYS) - set(names):
        raise StoreError(f'The file {str(path)!r} holds no scores: it has the columns {", ".join(names)[:200]}.', _CURE)
    try:
        check_names(scores)
    except StoreError as error:
        raise StoreError(f'The file {str(path)!r} holds no scores: {error.what}', _CURE) from error
    return scores


def join_scores(table: pa.Table, path: Path, columns: Sequence[str], rows: int) -> pa.Table:
    """The index `table` with columns of a scores file beside it, null where an image has no score.

    Args:
        table: with the columns `SCORE_KEYS`.
        columns: of the file.
        rows: most that the file can have.

    Raises:
        StoreError: a damaged file, or a column that the table has already.
    """
    scores = read_parquet(path, _CURE, [*SCORE_KEYS, *columns], rows)
    if any(not pa.types.is_string(scores.schema.field(key).type) for key in SCORE_KEYS):
        raise StoreError(f'The file {str(path)!r} holds no scores: id or sha256 is no text.', _CURE)
    place = pc.index_in(table['id'], value_set=scores['id'])
    # A block that was made again has the same ids; scores of images that changed since are not theirs.
    same = pc.equal(scores['sha256'].take(place), table['sha256'])
    place = pc.if_else(pc.fill_null(same, False), place, pa.scalar(None, place.type))
    for name in columns:
        if name.lower() in {c.lower() for c in table.column_names}:
            raise StoreError(f'{str(path)!r} has a column {name!r}, which the store has already.', 'Remove one of the two files from scores/.')
        table = table.append_column(name, scores[name].take(place))
    return table


def write_scores(path: Path, table: pa.Table, known: Mapping[str, str], taken: set[str], made_by: Mapping[str, Any] | None = None) -> None:
    """Write a scores file, whole or not at all; one that is there is replaced.

    Args:
        table: a column `id` and one or more score columns.
        known: SHA-256 of every image by id.
        taken: score columns that the store has already, this file's aside.
        made_by: plain JSON that says what made the scores, see `read_made_by`.

    Raises:
        StoreError: unknown or repeated ids, no column, or one that cannot be added; a failed write.
    """
    if 'id' not in table.column_names or len(table.column_names) < 2:
        raise StoreError(f'Scores {path.stem!r} have the columns {table.column_names}.', 'Give a column id and one or more score columns.')
    columns = [column for column in table.column_names if column != 'id']
    check_distinct(columns, taken)
    check_names(columns)
    try:
        check_kinds({column: table.schema.field(column).type for column in columns})
    except ValueError as error:
        raise StoreError(f'Scores {path.stem!r} have {error}.', 'Give numbers, text, or lists of numbers.') from error
    ids = table['id'].to_pylist()
    unknown = [i for i in ids if i not in known]
    if unknown or len(set(ids)) != len(ids):
        what = f'{len(unknown)} ids that are not in the store, such as {unknown[0]!r}' if unknown else 'repeated ids'
        raise StoreError(f'Scores {path.stem!r} hold {what}.', 'Score the images of store.index().')
    table = table.append_column('sha256', pa.array([known[i] for i in ids], pa.string()))
    files.write_whole(path, parquet_bytes(table.combine_chunks(), made_by))


def read_made_by(path: Path) -> dict[str, Any] | None:
    """What a scores file says of its origin; None if it says nothing.

    Raises:
        StoreError: missing or damaged.
    """
    try:
        return made_by_of(read_parquet(path, _CURE, SCORE_KEYS, 2**31))
    except ValueError as error:
        raise StoreError(f'The file {str(path)!r} does not say what made it: {error}.', _CURE) from error
