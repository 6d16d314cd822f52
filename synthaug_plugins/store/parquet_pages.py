"""How many values a Parquet file's lists hold, found before they are read.

A list's length is nowhere but in its pages, and the file's summary says of them what its writer liked to say: 600 bytes whose summary names ten values can
give one list of two billion. A page's header is what a decoder goes by, so this is read here; what the pages hold is not.
Formats: `parquet.thrift` of Apache Parquet (FileMetaData, PageHeader), in Thrift's compact protocol.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

_MAGIC = b'PAR1'
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # PageType
_HEADER_OF = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}  # which field of PageHeader is the header of such a page
_WINDOWS = (2**10, 2**16, 2**20)  # bytes in which a page's header is looked for; a long text may stand in its statistics
_DEPTH = 16  # of structs in structs


def values_in_pages(source: str | Any, columns: Collection[str]) -> dict[str, int]:
    """The values in the pages of some columns, nulls among them.

    Args:
        source: a path or a file that can be read at any place.

    Raises:
        ValueError: no Parquet file, or pages that are not where its summary has them.
        OSError: it cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        with open(source, 'rb') as file:
            return values_in_pages(file, columns)
    found: dict[str, int] = {}
    try:
        for group in _list(_summary(source), 4):
            for chunk in _list(group, 1):
                about = chunk[3]
                name = _list(about, 3)[0].decode()
                if name in columns:
                    starts = [about[9], *([about[11]] if 11 in about else [])]  # of the first data page, and of a dictionary before it
                    found[name] = found.get(name, 0) + _values(source, min(starts), about[7])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError('the summary of the Parquet file is damaged') from error
    return found


def _summary(file: Any) -> dict[int, Any]:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 8, 0))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], 'little')
    if tail[4:] != _MAGIC or length > end - 12:
        raise ValueError('no Parquet file')
    file.seek(end - 8 - length)
    return _struct(file.read(length), 0)[0]


def _list(struct: dict[int, Any], field: int) -> list[Any]:
    found = struct[field]
    if not isinstance(found, list):
        raise TypeError(f'{found!r:.100} is no list')
    return found


def _values(file: Any, start: int, length: int) -> int:
    """The values in the pages of a column chunk."""
    at, end, values = start, start + length, 0
    if start < len(_MAGIC) or length < 0:
        raise ValueError(f'a column lies at {start}, {length} bytes')
    while at < end:
        for window in _WINDOWS:
            file.seek(at)
            try:
                header, size = _struct(file.read(min(window, end - at)), 0)
                break
            except IndexError:
                continue
        else:
            raise ValueError('a page has no end')
        kind, packed, own = header.get(1), header[3], header[_HEADER_OF[header[1]]]
        if packed < 0 or own[1] < 0:
            raise ValueError(f'a page has {packed} bytes and {own[1]} values')
        values += 0 if kind == _DICTIONARY else own[1]
        at += size + packed
    if at != end:
        raise ValueError('a page reaches beyond its column')
    return values


def _struct(data: bytes, at: int, depth: int = _DEPTH) -> tuple[dict[int, Any], int]:
    """The fields of a Thrift struct by their numbers, and where it ends; IndexError where the data ends before."""
    fields: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        kind = head & 15
        fields[field], at = (kind == 1, at) if kind in (1, 2) else _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 8:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise IndexError
        return data[at : at + length], at + length
    if kind == 9 and depth:
        head, at = data[at], at + 1
        size, inner = head >> 4, head & 15
        if size == 15:
            size, at = _varint(data, at)
        items = []
        for _ in range(size):  # ends with the data: each takes a byte at least
            item, at = (data[at], at + 1) if inner in (1, 2) else _value(data, at, inner, depth - 1)
            items.append(item)
        return items, at
    if kind == 12 and depth:
        return _struct(data, at, depth - 1)
    if kind in (3, 7):
        return None, at + (1 if kind == 3 else 8)
    raise ValueError(f'a field of the type {kind}')


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
