"""How large a Parquet file becomes in memory, found from its pages' headers before anything is decoded.

The file's own summary says what its writer liked to say: 600 bytes whose summary names ten values can hold a list of two billion, and a dictionary of one
long text a million rows of it. A page's header is what the decoder goes by, so this is read here; what the pages hold is not.
Formats: parquet-format's README and `parquet.thrift` (PageHeader), Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

MAX_PAGE = 2**27
"""Bytes of one page, unpacked; pyarrow closes a page at about one MiB."""
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # PageType
_BY_DICTIONARY = (2, 8)  # Encoding: PLAIN_DICTIONARY, RLE_DICTIONARY
_WINDOWS = (2**10, 2**16)  # bytes in which a page's header is looked for; a long text may stand in its statistics
_HEADER_OF = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}  # field of PageHeader
_ENCODING_AT = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}  # field of that header


@dataclass
class Column:
    """What is in the pages of one column, of all row groups.

    Attributes:
        values: nulls, and all values of lists, among them.
        plain: bytes of pages that hold values as they are.
        by_dictionary: most bytes that values can take that are numbers of values in a dictionary.
    """

    values: int = 0
    plain: int = 0
    by_dictionary: int = 0


def column_sizes(metadata: pq.FileMetaData, names: Collection[str] | None, read: Callable[[int, int], bytes]) -> dict[str, Column]:
    """The sizes of columns by their name.

    Args:
        metadata: the file's summary.
        names: the columns that will be read; None for all.
        read: bytes of the file from a place on, as many as asked for or fewer at its end.

    Raises:
        ValueError: pages that are not what the summary says, or a page beyond `MAX_PAGE`.
    """
    found: dict[str, Column] = {}
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for c in range(group.num_columns):
            chunk = group.column(c)
            path = chunk.path_in_schema
            name = path.partition('.')[0]
            if names is not None and name not in names and path not in names:
                continue
            start = chunk.data_page_offset
            if chunk.has_dictionary_page:
                start = min(start, chunk.dictionary_page_offset)
            values = _add_pages(found.setdefault(name, Column()), start, chunk.total_compressed_size, read)
            if values != chunk.num_values or (path == name and values != group.num_rows):
                raise ValueError(f'the pages of {path!r} hold {values} values, not {chunk.num_values}')
    return found


def _add_pages(column: Column, start: int, length: int, read: Callable[[int, int], bytes]) -> int:
    """Add the pages of a column chunk; how many values they hold."""
    at, end, values, largest = start, start + length, 0, 0
    if start < 4 or length < 0:
        raise ValueError(f'a column lies at {start}, {length} bytes')
    data, base = b'', 0
    while at < end:
        header, size = None, 0
        for window in (0, *_WINDOWS):
            if window:
                data, base = read(at, min(window, end - at)), at
            try:
                header, size = _struct(data, at - base)
                break
            except IndexError:
                continue
        if header is None:
            raise ValueError('a page has no end')
        kind, unpacked, packed = header.get(1), header.get(2, -1), header.get(3, -1)
        own = header.get(_HEADER_OF.get(kind, 0))
        if not isinstance(own, dict) or packed < 0 or not 0 <= unpacked <= MAX_PAGE:
            raise ValueError(f'a page of the kind {kind} has {packed} bytes, {unpacked} unpacked')
        n = own.get(1, -1)
        if n < 0:
            raise ValueError(f'a page has {n} values')
        if kind == _DICTIONARY:
            largest = max(largest, unpacked)
        else:
            values += n
            if own.get(_ENCODING_AT[kind]) in _BY_DICTIONARY:
                column.by_dictionary += n * largest
            else:
                column.plain += unpacked
        at = base + size + packed
    if at != end:
        raise ValueError('a page reaches beyond its column')
    column.values += values
    return values


def _struct(data: bytes, at: int, depth: int = 4) -> tuple[dict[int, Any], int]:
    """The fields of a Thrift struct by their numbers, texts left out, and where it ends; IndexError where the data ends before."""
    fields: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        if kind in (4, 5, 6):
            fields[field], at = _integer(data, at)
        elif kind in (1, 2):
            fields[field] = kind == 1
        elif kind == 12 and depth:
            fields[field], at = _struct(data, at, depth - 1)
        elif kind == 8:
            length, at = _varint(data, at)
            at += length
        elif kind in (3, 7):
            at += 1 if kind == 3 else 8
        else:
            raise ValueError(f'a page has a field of the type {kind}')
    return fields, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError('a number has more than 64 bits')
