"""Which images to train on: a condition over index and score columns, top-k per class, seeded sampling per class.

Conditions are DuckDB's SQL expressions, evaluated in memory without access to files, network or settings.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from synthaug_plugins.errors import RecipeError, first_line, nearest
from synthaug_plugins.store.index import STORED, sorted_by_id
from synthaug_plugins.store.shard import KEPT
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import INDEX_SCHEMA, is_list

_CONNECTION: dict[str, str | bool | int | float | list[str]] = {
    'enable_external_access': False,
    'autoinstall_known_extensions': False,
    'autoload_known_extensions': False,
    'threads': 1,
}
_TOLD = 40  # classes; a log that counts a thousand of them one by one tells nobody anything


class UnknownColumn(RecipeError):
    """An expression names a column that the store has not; another store may have it."""


@dataclass(frozen=True)
class Selection:
    """Records to train on.

    Attributes:
        table: their rows, sorted by id: index columns, `shard`, score columns; or those that were asked for.
        where: the condition, None for all.
        counts: selected rows by class name, zeros included.
        considered: rows that could have been selected (their image is stored, and kept unless `rejected`).
        undecided: rows left out since the condition or the ranking is null for them: a value is missing.
        text: the whole choice in words.
    """

    table: pa.Table
    where: str | None
    counts: Mapping[str, int]
    considered: int
    undecided: int
    text: str

    def describe(self) -> str:
        """For a run's log: the choice, and counts per class."""
        missing = f'; {self.undecided} left out since a value is missing' if self.undecided else ''
        per_class = ', '.join(f'{name} {n}' for name, n in self.counts.items())
        if len(self.counts) > _TOLD:
            per_class = f'{len(self.counts)} classes, {min(self.counts.values())} to {max(self.counts.values())} each'
        return f'{self.text}: {len(self.table)} of {self.considered} images{missing} ({per_class})'


def select(
    store: Store,
    where: str | None = None,
    *,
    top_k: int | float | None = None,
    by: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    rejected: bool = False,
    allow_empty: bool = False,
    columns: Collection[str] | None = None,
    encoded: Sequence[str] = (),
) -> Selection:
    """Select records of a store. First the condition, then the best per class, then the sample per class.

    Args:
        where: SQL condition over index columns, score columns, `class` (or `class_name`) and `params.NAME`. Window
            functions work, so thresholds per class are one expression. Where it is null (a value is missing) the row is
            left out and counted.
        top_k: how many rows per class to keep: a count (int), or a share in (0, 1] (float) that is rounded up.
        by: what `top_k` ranks by, largest first: a column or an expression (`-params.sigma`: smallest first). Ties go by id.
        sample: at most this many rows per class, drawn by a hash of seed and id: stable when other rows come or go.
        seed: of the sample.
        rejected: whether rejected rows whose image is stored may be selected too.
        allow_empty: whether a class that the plan makes images for may be left without any.
        columns, encoded: what the selection's table holds, see `Store.index`. Default: all columns, as they are.

    Returns: the selection, rows sorted by id.

    Raises:
        RecipeError: a wrong expression or option (unknown names with their nearest), or a class left empty.
        StoreError: a damaged index or scores file.

    >>> select(store, "clip_p > 1/102 and params.sigma <= 0.6 and class = 'three'")             # doctest: +SKIP
    >>> select(store, 'clip_p >= quantile_cont(clip_p, 0.2) over (partition by class)')         # doctest: +SKIP
    >>> select(store, top_k=0.5, by='clip_p', sample=100, seed=1)                               # doctest: +SKIP
    """
    _check_options(top_k, by, sample)
    table = sorted_by_id(store.index(_needed(columns, where, by), STORED if rejected else KEPT, encoded))
    considered, undecided = len(table), 0
    steps = [where or 'all']
    if where is not None and considered:  # a store without rows has no score columns yet
        chosen = values_of(store, table, where, 'where')
        if not pa.types.is_boolean(chosen.type):
            raise RecipeError(f'The condition {where!r} gives {chosen.type}, not true or false.', "Compare, as in 'clip_p > 0.5'.")
        undecided += chosen.null_count
        table = table.filter(chosen)
    if top_k is not None and by is not None and considered:
        score = values_of(store, table, by, 'by')
        if not (pa.types.is_integer(score.type) or pa.types.is_floating(score.type) or pa.types.is_decimal(score.type)):
            raise RecipeError(f'by = {by!r} gives {score.type}, not a number.', 'Rank by a score column.')
        undecided += score.null_count
        table = _top(table, score.cast(pa.float64(), safe=False), top_k)
        steps.append(f'top {top_k} per class by {by}')
    if sample is not None:
        table = _sampled(table, sample, seed)
        steps.append(f'{sample} per class with seed {seed}')
    numbers = np.bincount(table['label'].to_numpy(), minlength=len(store.classes))
    counts = {name: int(n) for name, n in zip(store.classes, numbers, strict=True)}
    waiting = len(store.unfinished())
    text = ', '.join(steps) + (f' [unfinished store: {waiting} of {len(store.plan.blocks)} blocks missing]' if waiting else '')
    planned = {part.class_name for part in store.plan.parts}
    empty = [name for name, n in counts.items() if n == 0 and name in planned]
    if empty and not allow_empty:
        names = ', '.join(repr(name) for name in empty[:8]) + (f' and {len(empty) - 8} more' if len(empty) > 8 else '')
        cure = 'Finish the store first.' if waiting else 'Loosen the condition, or allow it (allow_empty=True; --allow-empty).'
        raise RecipeError(f'The selection {text!r} from {str(store.folder)!r} leaves no image for {names}.', cure)
    if columns is not None:
        table = table.select([name for name in table.column_names if name in columns])
    return Selection(table, where, counts, considered, undecided, text)


def _needed(columns: Collection[str] | None, *expressions: str | None) -> set[str] | None:
    """The columns to read for a table of `columns`, chosen by the expressions; None for all."""
    words = {word.lower() for text in expressions for word in re.findall(r'\w+', text or '')}
    if columns is None or words & {'columns', 'images'}:  # COLUMNS('clip.*') and the row as a whole name none
        return None
    return {'id', 'label', *columns, *words}


def _check_options(top_k: int | float | None, by: str | None, sample: int | None) -> None:
    for name, value, kind in (('top_k', top_k, int | float), ('by', by, str), ('sample', sample, int)):
        if value is not None and not isinstance(value, kind):
            raise RecipeError(f'{name} = {value!r} is of the wrong kind.', f'Give {"an expression" if kind is str else "a number"}.')
    if (top_k is None) != (by is None):
        raise RecipeError(f'top_k = {top_k!r} with by = {by!r}: one needs the other.', "Write top_k=100, by='clip_p'.")
    if top_k is not None and (isinstance(top_k, bool) or not (top_k >= 1 if isinstance(top_k, int) else 0 < top_k <= 1)):
        raise RecipeError(f'top_k = {top_k!r} is neither a count (1, 2, ...) nor a share in (0, 1].', 'Use 100 for a hundred per class, 0.5 for half.')
    if sample is not None and (isinstance(sample, bool) or sample < 1):
        raise RecipeError(f'sample = {sample!r} is not a positive count per class.', 'Leave it out to take all.')


def _top(table: pa.Table, score: pa.Array, top_k: int | float) -> pa.Table:
    keep = score.is_valid().to_numpy(zero_copy_only=False).copy()
    labels, values = table['label'].to_numpy()[keep], score.to_numpy(zero_copy_only=False)[keep]
    keep[keep] = _first_of_each(labels, -values, lambda n: np.full_like(n, top_k) if isinstance(top_k, int) else np.ceil(top_k * n))
    return table.filter(pa.array(keep))


def _sampled(table: pa.Table, sample: int, seed: int) -> pa.Table:
    draw = np.array([hashlib.sha256(f'{seed}/{i}'.encode()).digest()[:8] for i in table['id'].to_pylist()], dtype='S8').view('>u8')
    return table.filter(pa.array(_first_of_each(table['label'].to_numpy(), draw, lambda n: np.full_like(n, sample))))


def _first_of_each(labels: np.ndarray, key: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Of every label the rows with the smallest keys, as many as `wanted` says of its number of rows; ties go by row: (N,) bool."""
    count = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(count) - count, count)
    first = np.zeros(len(labels), bool)
    first[np.lexsort((key, labels))] = rank < np.repeat(wanted(count), count)
    return first


def values_of(store: Store, table: pa.Table, text: str, option: str) -> pa.Array:
    """One value per row: an SQL expression over index columns, score columns, `class` and `params.NAME`, as `select` knows them.

    No file, network or setting can be reached from it.

    Args:
        table: rows of the store's index, such as a selection's.
        text: the expression.
        option: what the user calls it, for refusals.

    Raises:
        UnknownColumn: it names a column or param that the store has not.
        RecipeError: it is no expression, or gives no value per row.
    """
    try:
        duckdb.SQLExpression(text)  # parses; refuses statements, lists and set operations
    except (duckdb.Error, TypeError) as error:
        raise RecipeError(f'{option} = {text!r} is not one SQL expression: {first_line(error)}.', "Write it like clip_p > 0.5 and class = 'cat'.") from error
    names = pa.array(store.classes, pa.string()).take(table['label'].combine_chunks())
    view = table.append_column('class', names).append_column('class_name', names)
    known: list[str] = []
    view = _for_sql(view, text).append_column('__row', pa.array(np.arange(len(table))))
    with duckdb.connect(':memory:', config=_CONNECTION) as connection:
        connection.execute('set python_enable_replacements = false')  # no Python variable stands in for a table
        connection.register('images', view)
        connection.execute('set lock_configuration = true')
        try:
            source = 'images'
            if 'params' in text:
                structure = _structure(connection)
                known += [f'params.{name}' for name in structure]
                quoted = json.dumps(structure).replace("'", "''")
                source = f"(select * replace (json_transform(params::json, '{quoted}') as params) from images)" if structure else source
            query = f'select __row, value from (select __row, ({text}\n) as value from {source}) order by __row'
            result = connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            known += [*INDEX_SCHEMA.names, 'shard', 'class', 'class_name', *store.score_column_names()]
            raise _explained(error, text, option, known, store) from error
    if len(result) != len(table):
        raise RecipeError(f'{option} = {text!r} gives {len(result)} values for {len(table)} images.', 'Use an expression with one value per image.')
    return result['value'].combine_chunks()


def _for_sql(table: pa.Table, text: str) -> pa.Table:
    """The table as DuckDB reads it: without lists that `text` does not name (a thousand logits per image), and half precision as single."""
    for i, (name, kind) in reversed(list(enumerate(zip(table.column_names, table.schema.types, strict=True)))):
        if is_list(kind) and name.lower() not in text.lower():
            table = table.remove_column(i)
        elif pa.types.is_float16(kind.value_type if is_list(kind) else kind):
            table = table.set_column(i, name, table[name].cast(pa.list_(pa.float32()) if is_list(kind) else pa.float32()))
    return table


def _structure(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The types of the params' keys over all rows, as DuckDB's JSON structure; integers signed, so that they can be negated."""
    found = connection.execute('select json_group_structure(params::json) from images').fetchall()[0][0]
    structure = json.loads(found) if found else None

    def signed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: signed(v) for k, v in value.items()}
        return [signed(v) for v in value] if isinstance(value, list) else 'BIGINT' if value == 'UBIGINT' else value

    return signed(structure) if isinstance(structure, dict) else {}


def _explained(error: duckdb.Error, text: str, option: str, known: list[str], store: Store) -> RecipeError:
    """DuckDB's refusal in our words."""
    message = str(error)
    column = re.search(r'column "([^"]+)" not found', message)
    key = re.search(r'Could not find key "([^"]+)" in struct', message)
    key = key or re.search(r"Cannot extract field '([^']+)' from expression \"params\"", message)  # no request has any params
    if column is None and key is None:
        return RecipeError(f'{option} = {text!r} cannot be evaluated: {first_line(error)}.', 'It may use index columns, score columns, class and params.NAME.')
    if column and column[1] in store.classes:
        return RecipeError(f'{option} = {text!r}: {column[1]!r} is a class, not a column.', "Text stands in single quotes: class = 'cat'.")
    name = f'params.{key[1]}' if key else column[1] if column else ''
    return UnknownColumn(f'{option} = {text!r}: there is no {name!r} in the store {str(store.folder)!r}.', nearest(name, known))
