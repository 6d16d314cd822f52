"""One finished block on disk: a tar of images and a Parquet index of all that was tried.

The tar has the WebDataset layout, `<id>.png|jpg|webp`, `<id>.cls` (the label) and `<id>.json` (the request). Rejected
images, when they are stored at all, follow as a second archive behind the end mark of the first: tar, WebDataset, timm
and HF datasets stop at that mark and see kept images only, while the index reaches both. Member headers hold no time
and no owner, so a tar's bytes are a function of its images and its index; `verify` checks it by writing it again.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from synthaug_plugins.errors import StoreError
from synthaug_plugins.plain_json import parse_json
from synthaug_plugins.store import files
from synthaug_plugins.store.encode import FORMATS, suffix_of
from synthaug_plugins.store.place import Place
from synthaug_plugins.store.plan import Block, Request
from synthaug_plugins.store.rows import KEPT, MAX_ID, MAX_IMAGE, REJECTED, is_plain_id, wrong_rows
from synthaug_plugins.store.table import INDEX_SCHEMA, INDEX_TEXTS, MAX_TEXT, Score, check_names, parquet_bytes, read_parquet, score_columns

SHARD_NAME = '{:05d}.tar'


@dataclass(frozen=True)
class Row:
    """One tried image, as it will stand in the index.

    Attributes:
        request: what was asked for.
        verdict: 'kept' or 'rejected'.
        reason: why it is rejected; None when kept.
        suffix: 'png', 'jpg' or 'webp', the format of `image`.
        image: the encoded file, or None when there never was one (NaN pixels). A kept row has one.
        scores: score columns by name, a number or a (k,) array each; a number that is NaN is stored as null.
    """

    request: Request
    verdict: str
    reason: str | None
    suffix: str
    image: bytes | None
    scores: Mapping[str, Score] = field(default_factory=dict)


def shard_name(block: int) -> str:
    """The tar of a block."""
    return f'shards/{SHARD_NAME.format(block)}'


def index_name(block: int) -> str:
    """The index of a block; that it exists means that the block is finished."""
    return f'index/{block:05d}.parquet'


def write_block(place: Place, block: Block, rows: Sequence[Row], keep_rejected: bool) -> None:
    """Publish a block: tar first, index second, each whole or not at all. The index is the commit mark.

    Args:
        place: the store's.
        rows: in the order of making, rejected ones included.
        keep_rejected: whether images of rejected rows are stored; their rows are stored always.

    Raises:
        StoreError: a row that does not fit the block; a block that is published already; a failed write (disk full), which
            leaves nothing of this block behind.
    """
    if place.exists(index_name(block.index)):
        raise StoreError(f'Block {block.index} is published already in {place.given!r}.', 'Run verify and repair to redo a damaged block.')
    chunks, table = block_files(block, rows, keep_rejected)
    try:
        place.publish((shard_name(block.index), chunks), (index_name(block.index), [table]))
    except OSError as error:
        done = sum(name.endswith('.parquet') and name[0].isdecimal() for name in place.names('index'))
        raise files.refusal(error, f'Block {block.index} of {place.given!r} was not written', f'The {done} finished blocks are kept') from error


def block_files(block: Block, rows: Sequence[Row], keep_rejected: bool) -> tuple[list[bytes], bytes]:
    """The files of a block as `write_block` publishes them: the pieces of the tar, and the index.

    Raises:
        StoreError: a row that does not fit the block.
    """
    records = _records(block, rows)
    images = {row.request.id: row.image for row in rows if row.image is not None and (keep_rejected or row.verdict == KEPT)}
    chunks, offsets = archive(records, images, block.class_names)
    for record in records:
        record['offset'], record['size'] = offsets.get(record['id'], (None, None))
    return chunks, _parquet(records, rows)


def archive(
    records: Iterable[Mapping[str, Any]], images: Mapping[str, bytes], class_names: Mapping[int, str]
) -> tuple[list[bytes], dict[str, tuple[int, int]]]:
    """The bytes of a block's tar.

    Args:
        records: index rows (offset and size are not used).
        images: encoded image by id; a record without one gets no members.
        class_names: of the block, by label.

    Returns: the file's pieces in order, and (offset, size) of each image's data by id.

    Raises:
        KeyError: a record of another class.
    """
    chunks: list[bytes] = []
    offsets: dict[str, tuple[int, int]] = {}
    position = 0

    def add(name: str, content: bytes) -> tuple[int, int]:
        nonlocal position
        header = tarfile.TarInfo(name)
        header.size = len(content)
        chunks.extend([header.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % tarfile.BLOCKSIZE)])
        start = position + tarfile.BLOCKSIZE
        position = start + len(content) + -len(content) % tarfile.BLOCKSIZE
        return start, len(content)

    stored = [r for r in records if r['id'] in images]
    for verdict in (KEPT, REJECTED):
        part = [r for r in stored if r['verdict'] == verdict]
        for record in part:
            name, image = record['id'], images[record['id']]
            offsets[name] = add(f'{name}.{suffix_of(image)}', image)
            add(f'{name}.cls', str(record['label']).encode())
            add(f'{name}.json', _sidecar(record, class_names[record['label']]))
        if part or verdict == KEPT:
            chunks.append(bytes(2 * tarfile.BLOCKSIZE))
            position += 2 * tarfile.BLOCKSIZE
    return chunks, offsets


def read_index(place: Place, block: int, columns: Collection[str] | None = None, raw: bool = False) -> pa.Table:
    """The index of one block, page checksums verified.

    Args:
        place: the store's.
        block: its number.
        columns: those to read, in lower case; names that the block has not are left out. Default: all. A teacher's logits make an index a hundred
            times as long as the rest.
        raw: as they stand in the file, texts in dictionaries and rows unchecked: who reads many indices does the rest for all of them at once.

    Raises:
        StoreError: missing, damaged, or columns or rows that are not an index's.
    """

    name = index_name(block)

    def chosen(schema: pa.Schema) -> list[str] | None:
        if schema.names[: len(INDEX_SCHEMA)] != INDEX_SCHEMA.names or schema.types[: len(INDEX_SCHEMA)] != INDEX_SCHEMA.types:
            raise StoreError(f'The index {place.path(name)!r} has unexpected columns: {", ".join(schema.names)[:500]}.', 'Run verify, then repair.')
        check_names(schema.names[len(INDEX_SCHEMA) :])
        return None if columns is None else [column for column in schema.names if column.lower() in columns]

    table = read_parquet(place, name, columns=chosen, texts=INDEX_TEXTS, raw=raw)
    if not raw and (what := wrong_rows(table)):
        raise StoreError(f'The index {place.path(name)!r} is damaged: {what}.', 'Run verify, then repair.')
    return table


def _parquet(records: list[dict[str, Any]], rows: Sequence[Row]) -> bytes:
    table = pa.Table.from_pylist(records, schema=INDEX_SCHEMA)
    for name, column in score_columns([row.scores for row in rows]).items():
        table = table.append_column(name, column)
    return parquet_bytes(table)


def _records(block: Block, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Index rows without offsets, checked."""
    records: list[dict[str, Any]] = []
    seen: set[str] = set()
    for row in rows:
        request = row.request
        wrong = _wrong(block, row, seen)
        if wrong:
            raise StoreError(f'Block {block.index}, image {request.id!r}: {wrong}.', 'Correct the generator or inspector that made it.')
        seen.add(request.id)
        records.append(
            {
                'id': request.id,
                'label': request.label,
                'source': request.source,
                'prompt': request.prompt,
                'seed': request.seed,
                'params': _params(block, request),
                'sha256': None if row.image is None else hashlib.sha256(row.image).hexdigest(),
                'verdict': row.verdict,
                'reason': row.reason,
            }
        )
    return records


def _wrong(block: Block, row: Row, seen: set[str]) -> str | None:
    request = row.request
    if not is_plain_id(request.id):
        return f'the id is not 1 to {MAX_ID} letters, digits, - and _'
    if request.id in seen:
        return 'the id is repeated'
    if request.label not in block.class_names:
        return f'its label is {request.label}, those of the block are {", ".join(map(str, block.class_names))}'
    if not 0 <= request.seed < 2**53:
        return f'its seed {request.seed} is outside [0, 2**53)'
    if row.verdict not in (KEPT, REJECTED) or (row.verdict == KEPT) != (row.reason is None):
        return f'verdict {row.verdict!r} with reason {row.reason!r}'
    if row.verdict == KEPT and row.image is None:
        return 'it is kept but has no image'
    if row.image is not None and len(row.image) > MAX_IMAGE:
        return f'its data has {len(row.image)} bytes'
    for what, text in (('source', request.source), ('prompt', request.prompt), ('reason', row.reason)):
        if text is not None and len(text.encode(errors='replace')) > MAX_TEXT:
            return f'its {what} is longer than {MAX_TEXT} bytes'
    if row.image is not None and (row.suffix not in FORMATS or suffix_of(row.image) != row.suffix):
        return f'its data is not a {row.suffix} file'
    return None


def _params(block: Block, request: Request) -> str:
    try:
        params = json.dumps(dict(request.params), sort_keys=True, ensure_ascii=False, allow_nan=False)
        if len(params.encode()) > MAX_TEXT:
            raise ValueError(f'longer than {MAX_TEXT} bytes')
        return params
    except (TypeError, ValueError) as error:
        raise StoreError(
            f'Block {block.index}, image {request.id!r}: its params are not plain JSON ({error}).', 'Use numbers, text, lists and dicts.'
        ) from error


def _sidecar(record: Mapping[str, Any], class_name: str) -> bytes:
    content = {k: record[k] for k in ('id', 'label', 'source', 'prompt', 'seed', 'sha256')}
    content |= {'class_name': class_name, 'params': parse_json(record['params'])}
    return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
