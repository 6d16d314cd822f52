"""A digest of a Parquet file in the file itself: page checksums and the digest of the content leave headers, statistics and the footer unguarded."""

from __future__ import annotations

import base64
import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

KEY = b'synthaug.file_sha256'
BLANK = b'0' * 64
"""Stands in the metadata while a file is written, and for its own digest while that is taken."""
_SCHEMA = b'ARROW:schema'  # pyarrow's copy of schema and metadata, in base64


def seal(data: bytes) -> bytes:
    """A file that was written with the metadata {KEY: BLANK}, its digest in the place of the blank."""
    at = _place(data)
    if data[at : at + len(BLANK)] != BLANK:
        raise ValueError('the file has no room for its digest')
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + len(BLANK) :]


def is_sealed(data: bytes) -> bool:
    """Whether every bit of a file is as `seal` left it. A file that was written without a digest has nothing to differ from."""
    try:
        at = _place(data)
    except ValueError:
        try:
            return KEY not in base64.b64decode((pq.read_metadata(io.BytesIO(data)).metadata or {}).get(_SCHEMA, b''))
        except (pa.ArrowException, OSError, ValueError):
            return False
    said = data[at : at + len(BLANK)]
    return hashlib.sha256(data[:at] + BLANK + data[at + len(BLANK) :]).hexdigest().encode() == said


def _place(data: bytes) -> int:
    """Where the digest stands: behind the key and its length, one byte of kind and one of size in Parquet's compact form. ValueError if there is no key."""
    return data.rindex(KEY) + len(KEY) + 2
