"""A contact sheet: one picture that shows what a store holds, class by class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store.encode import decode
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.selection import Selection
from synthaug_plugins.store.shard import KEPT
from synthaug_plugins.store.store import Store

if TYPE_CHECKING:
    from synthaug_plugins.real_images import RealImages

INK, GREY, BLUE, GREEN, RED = '#1f2328', '#6e7781', '#0969da', '#1a7f37', '#cf222e'
GAP, MARGIN, CAPTION = 10, 28, 18
MIN_CELL, MAX_CELL = 96, 192

MARK = 'synthaug contact sheet'
"""Stands in the PNG of every sheet: only such a file is replaced."""


def contact_sheet(
    store: Store,
    out_png: str | Path,
    selection: Selection | None = None,
    *,
    rows: int = 1,
    columns: int = 10,
    max_classes: int = 40,
    title: str | None = None,
    real_images: RealImages | None = None,
) -> None:
    """Draw images of every class into one PNG.

    Small images are enlarged with hard pixel edges. A rejected image has a red frame and its reason beneath, a kept one a
    thin grey frame. Which are shown: spread evenly over the class, in the order of their ids.

    Args:
        out_png: the file to write.
        selection: what to show; default: every stored image, rejected ones included.
        rows, columns: rows of images per class, images per row.
        max_classes: classes beyond these are not drawn; the sheet says so.
        title: default: the store's folder name.
        real_images: if given, each row starts with a source image (blue frame), its variants beside it.

    Raises:
        StoreError: nothing to show, a damaged shard, or a file at `out_png` that is no sheet.
        DataError: a source image is missing.
    """
    path = Path(out_png).expanduser()
    _refuse_to_overwrite(path)
    table = selection.table if selection is not None else store.index().sort_by('id')
    table = table.filter(pc.is_valid(table['offset']))
    if not len(table):
        if selection is not None and store.finished():
            raise StoreError(f'The selection {selection.text!r} from {str(store.folder)!r} holds no image to show.', 'Loosen the condition.')
        raise StoreError(f'The store {str(store.folder)!r} has no image to show.', 'Generate first.')
    columns_read = ['id', 'label', 'source', 'verdict', 'reason', 'shard', 'offset', 'size', 'sha256']
    groups: dict[int, list[dict[str, Any]]] = {}
    for record in table.select(columns_read).to_pylist():
        groups.setdefault(record['label'], []).append(record)
    labels = sorted(groups)[:max_classes]
    reader = StoreReader(store.folder)
    strips: list[tuple[str, list[list[_Cell]]]] = []
    for label in labels:
        records = groups[label]
        lines = _by_source(records, rows, columns, reader, real_images) if real_images else _spread_lines(records, rows, columns, reader)
        strips.append((f'{store.classes[label]}\n{_numbers(records)}', lines))
    shown = f', {len(labels)} of {len(groups)} classes shown' if len(labels) < len(groups) else ''
    subtitle = _numbers([r for records in groups.values() for r in records]) + shown + (' · blue: the real source image' if real_images else '')
    sheet = _draw(title or store.place.label, subtitle, strips)
    buffer = io.BytesIO()
    mark = PngInfo()
    mark.add_text('Software', MARK)
    sheet.save(buffer, 'PNG', pnginfo=mark)
    write_whole(path, buffer.getvalue())


def _refuse_to_overwrite(path: Path) -> None:
    """Only a sheet of ours is replaced: a mistyped --out must not cost a photograph."""
    if path.suffix.lower() != '.png':
        raise StoreError(f'The sheet {str(path)!r} does not end in .png.', 'A contact sheet is a PNG.')
    if path.exists():
        try:
            with Image.open(path) as old:
                ours = getattr(old, 'text', {}).get('Software') == MARK
        except OSError:
            ours = False
        if not ours:
            raise StoreError(f'{str(path)!r} exists and is no contact sheet.', 'Give another name; nothing was touched.')


class _Cell:
    """One picture with the colour of its frame and the words beneath it."""

    def __init__(self, image: Image.Image, colour: str, caption: str = '') -> None:
        self.image, self.colour, self.caption = image, colour, caption


def _numbers(records: Sequence[dict[str, Any]]) -> str:
    kept = sum(r['verdict'] == KEPT for r in records)
    return f'{kept} kept' + (f', {len(records) - kept} rejected' if kept < len(records) else '')


def _variant(record: dict[str, Any], reader: StoreReader) -> _Cell:
    image = decode(reader.read_image(record), f'The image {record["id"]!r}').convert('RGB')
    return _Cell(image, '#d0d7de') if record['verdict'] == KEPT else _Cell(image, RED, record['reason'].partition(' (')[0])


def _spread_lines(records: Sequence[dict[str, Any]], rows: int, columns: int, reader: StoreReader) -> list[list[_Cell]]:
    cells = [_variant(r, reader) for r in _spread(records, rows * columns)]
    return [cells[i : i + columns] for i in range(0, len(cells), columns)]


def _by_source(records: Sequence[dict[str, Any]], rows: int, columns: int, reader: StoreReader, real_images: RealImages) -> list[list[_Cell]]:
    of: dict[str | None, list[dict[str, Any]]] = {}
    for record in records:
        of.setdefault(record['source'], []).append(record)
    lines = []
    for source in _spread(sorted(of, key=str), rows):
        first = [] if source is None else [_Cell(Image.fromarray(real_images.load(source)), BLUE, source.rpartition('/')[2])]
        lines.append(first + [_variant(r, reader) for r in _spread(of[source], columns - len(first))])
    return lines


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    """At most n of the items, evenly spaced."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _draw(title: str, subtitle: str, strips: Sequence[tuple[str, list[list[_Cell]]]]) -> Image.Image:
    big, medium, small = (ImageFont.load_default(size) for size in (24, 16, 12))
    cells = [cell for _, lines in strips for line in lines for cell in line]
    cell_px = min(MAX_CELL, max(MIN_CELL, max(max(c.image.size) for c in cells)))
    label_px = 24 + int(max(medium.getlength(text) for name, _ in strips for text in name.split('\n')))
    label_px = min(label_px, 260)
    captions = [any(c.caption for line in lines for c in line) for _, lines in strips]
    pitch = [cell_px + GAP + CAPTION * has for has in captions]
    head = MARGIN + 66
    most = max(len(line) for _, lines in strips for line in lines)
    width = max(2 * MARGIN + label_px + most * (cell_px + GAP), 2 * MARGIN + int(big.getlength(title)), 2 * MARGIN + int(small.getlength(subtitle)))
    height = head + sum(len(lines) * p + GAP for (_, lines), p in zip(strips, pitch, strict=True)) + MARGIN
    sheet = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), title, INK, big)
    draw.text((MARGIN, MARGIN + 30), subtitle, GREY, small)
    y = head
    for (name, lines), p in zip(strips, pitch, strict=True):
        draw.line([(MARGIN, y - GAP // 2 - 2), (width - MARGIN, y - GAP // 2 - 2)], '#eaeef2')
        class_name, _, numbers = name.partition('\n')
        draw.text((MARGIN, y + 4), _fit(class_name, medium, label_px - 12), INK, medium)
        draw.text((MARGIN, y + 26), numbers, GREEN if 'rejected' not in numbers else GREY, small)
        for line in lines:
            for i, cell in enumerate(line):
                _paste(sheet, draw, cell, MARGIN + label_px + i * (cell_px + GAP), y, cell_px, small)
            y += p
        y += GAP
    return sheet


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: _Cell, x: int, y: int, cell_px: int, font: Any) -> None:
    w, h = cell.image.size
    scale = min(cell_px / w, cell_px / h)
    if scale >= 1:
        scale = int(scale)  # whole factors keep pixels square
        picture = cell.image.resize((w * scale, h * scale), Image.Resampling.NEAREST)
    else:
        picture = cell.image.resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.LANCZOS)
    dx, dy = (cell_px - picture.width) // 2, (cell_px - picture.height) // 2
    sheet.paste(picture, (x + dx, y + dy))
    thick = 1 if cell.colour not in (RED, BLUE) else 3
    draw.rectangle([x + dx - thick, y + dy - thick, x + dx + picture.width + thick - 1, y + dy + picture.height + thick - 1], outline=cell.colour, width=thick)
    if cell.caption:
        draw.text((x, y + cell_px + 4), _fit(cell.caption, font, cell_px), cell.colour, font)


def _fit(text: str, font: Any, width: int) -> str:
    """The text, cut with an ellipsis to fit."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '…') > width:
        text = text[:-1]
    return text + '…'
