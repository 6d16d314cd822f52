"""What the rows of an index may hold, whoever wrote it: checked where they are read, in columns, not row by row."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import StoreError
from synthaug_plugins.plain_json import parse_json
from synthaug_plugins.store.table import MAX_TEXT

KEPT, REJECTED = 'kept', 'rejected'
MAX_ID = 90
"""Letters of an id: with a suffix it is a member's name in a tar, which takes 100."""
MAX_IMAGE = 2**30
"""Bytes of an image's file."""
MAX_SHARD = 2**42
"""Bytes of a shard."""
_ID = re.compile(rf'[A-Za-z0-9_-]{{1,{MAX_ID}}}')
_TEXTS = {'id': MAX_ID, 'source': MAX_TEXT, 'prompt': MAX_TEXT, 'params': MAX_TEXT, 'sha256': 64, 'verdict': 8, 'reason': MAX_TEXT}
_ALWAYS = ('id', 'label', 'seed', 'params', 'verdict')
_RANGES = {'label': (0, 2**31 - 1), 'seed': (0, 2**53 - 1), 'offset': (512, MAX_SHARD), 'size': (1, MAX_IMAGE)}


def is_plain_id(text: str) -> bool:
    """Whether a text can be an image's id: a member's name in a tar, and a file's on export."""
    return _ID.fullmatch(text) is not None


def wrong_rows(table: pa.Table) -> str | None:
    """What is wrong with rows of an index, with all its columns or some; None for nothing. Rows of several blocks have the column `shard`.

    Labels are compared with the classes by who knows them, numbers of rows and repeated ids with the plan by `verify`.
    """
    names = set(table.column_names)
    for name in _ALWAYS:
        if name in names and table[name].null_count:
            return f'rows have no {name}'
    for name in names & _TEXTS.keys():
        if (pc.max(pc.binary_length(_values(table[name]))).as_py() or 0) > _TEXTS[name]:
            return f'a {name} is longer than {_TEXTS[name]} bytes'
    # Its bounded repetition takes five times as long to compile as a block's ids take to compare; lengths are looked at above.
    if 'id' in names and not pc.all(pc.match_substring_regex(table['id'], '^[A-Za-z0-9_-]+$'), min_count=0).as_py():
        return 'ids are no plain names'
    if 'verdict' in names and not pc.all(pc.is_in(table['verdict'], pa.array([KEPT, REJECTED])), min_count=0).as_py():
        return f'a verdict is neither {KEPT} nor {REJECTED}'
    for name in names & _RANGES.keys():
        low, high = pc.min_max(table[name]).as_py().values()
        if low is not None and not _RANGES[name][0] <= low <= high <= _RANGES[name][1]:
            return f'a {name} is {low if low < _RANGES[name][0] else high}'
    return _wrong_places(table) if {'offset', 'size'} <= names else None


def _values(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """The different values of a column that is held as a dictionary, all values of another."""
    return column.combine_chunks().dictionary if pa.types.is_dictionary(column.type) else column


def _wrong_places(table: pa.Table) -> str | None:
    """What is wrong with offsets and sizes that are each in range; an image that lies in another would be trained on twice, under two labels."""
    offset, size = table['offset'].combine_chunks(), table['size'].combine_chunks()
    shard = table['shard'].to_numpy() if 'shard' in table.column_names else np.zeros(len(table), np.int32)
    if offset.null_count or size.null_count:
        there = offset.is_valid()
        if not there.equals(size.is_valid()):
            return 'rows have an offset without a size'
        offset, size, shard = offset.drop_null(), size.drop_null(), shard[there.to_numpy(zero_copy_only=False)]
    first = offset.to_numpy()
    end = first + size.to_numpy()
    if not np.all((end[:-1] <= first[1:]) | (shard[:-1] != shard[1:])):
        order = np.lexsort((first, shard))  # rejected images lie behind all kept ones
        if not np.all((end[order][:-1] <= first[order][1:]) | (shard[order][:-1] != shard[order][1:])):
            return 'images lie in one another'
    return None


def params_of(text: str, image_id: str) -> dict[str, Any]:
    """The params of an image, from its row.

    Raises:
        StoreError: no JSON object.
    """
    try:
        params = parse_json(text)
        if not isinstance(params, dict):
            raise ValueError('no object')
    except ValueError as error:
        raise StoreError(f'The params of the image {image_id!r} cannot be read: {error}.', 'Run verify, then repair.') from error
    return params
