"""What a report shows of a store: images beside their sources, and how many were made, rejected and selected."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from synthaug_plugins.errors import DataError
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.encode import decode
from synthaug_plugins.store.index import STORED
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.rows import params_of
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.shard import KEPT
from synthaug_plugins.store.store import Store

STRENGTHS = ('t0', 'sigma')
"""Request parameters that say how far a variant is from its source; the first that takes several values heads the columns."""
MAX_PX = 160


def gallery(store: Store, per_cell: int = 3, max_classes: int = 12, where: str | None = None, rejected: int = 0) -> dict[str, Any]:
    """Accepted images of a store, one row per class: the real source (where there is one) and its variants by strength.

    Args:
        per_cell: images per class and strength.
        max_classes: classes beyond these are left out.
        where: condition on the accepted images, see `select`.
        rejected: rejected images per class, of those that the store holds.

    Returns: `strength` (a name or None), `columns` (its values, or [None]), `has_sources`, `not_shown` (why a source that the
        store names is not shown, a sentence or None), `classes` (how many there are), `rows`: class `name`, `source` (a data
        URI or None), `cells` (a list of data URIs per column), `rejected` (data URIs with reasons).
    """
    columns_read = ['id', 'label', 'source', 'params', 'shard', 'offset', 'size', 'sha256']
    records = select(store, where, allow_empty=True, columns=columns_read).table.to_pylist()
    bad = store.index([*columns_read, 'verdict', 'reason'], STORED).to_pylist() if rejected else []
    for record in records:
        record['params'] = params_of(record['params'], record['id'])
    strength, columns = _strengths(records)
    recipe = store.made_by.get('recipe')
    reader, sources = StoreReader(store.folder), RealPictures(recipe.get('data') if isinstance(recipe, Mapping) else None)
    rows = []
    for label, name in list(enumerate(store.classes))[:max_classes]:
        mine = [r for r in records if r['label'] == label]
        source = _best_source(mine, strength)
        cells = []
        for value in columns:
            shown = [r for r in mine if r['source'] == source and (strength is None or r['params'].get(strength) == value)]
            cells.append([picture_of(reader, r) for r in shown[:per_cell]])
        refused = [r for r in bad if r['label'] == label and r['verdict'] != KEPT][:rejected]
        refused_shown = [(picture_of(reader, r), r['reason'] or '') for r in refused]
        rows.append({'name': name, 'source': sources.picture(source) if source else None, 'cells': cells, 'rejected': refused_shown})
    return {
        'strength': strength,
        'columns': columns,
        'has_sources': any(r['source'] for r in rows),
        'not_shown': sources.not_shown,
        'classes': len(store.classes),
        'rows': rows,
    }


def _strengths(records: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[Any]]:
    for name in STRENGTHS:
        values = sorted({value for r in records if isinstance(value := r['params'].get(name), int | float)})
        if len(values) > 1:
            return name, values[:8]
    return None, [None]


def _best_source(records: Sequence[Mapping[str, Any]], strength: str | None) -> str | None:
    """The source with variants at most strengths, the first of equals; None where images start from noise."""
    found: dict[str, set[Any]] = {}
    for record in records:
        if record['source'] is not None:
            found.setdefault(record['source'], set()).add(record['params'].get(strength) if strength else None)
    return max(sorted(found), key=lambda s: len(found[s])) if found else None


class RealPictures:
    """Real images that a store or results name, as far as they can be shown.

    These may come from somebody else: the folder and the images that they name are claims. `RealImages` reads no file that
    its folder does not list, and whatever cannot be shown is said instead of ending the report.

    Args:
        folder: the folder of class folders as it is named; anything else than text is no folder.

    Attributes:
        not_shown: why a picture that was asked for is missing, the first reason; None while none is.
    """

    def __init__(self, folder: object) -> None:
        self.not_shown: str | None = None
        self._real: RealImages | None = None
        if not isinstance(folder, str) or not folder:
            self._no_folder = 'Nothing says where they lie.'
            return
        try:
            self._real = RealImages(folder)
        except DataError as error:
            self._no_folder = error.what
        except OSError as error:
            self._no_folder = f'The data folder {folder!r} cannot be read: {error.strerror}.'

    def picture(self, image_id: str) -> str | None:
        """A real image as a data URI, or None and a reason in `not_shown`."""
        try:
            if self._real is None:
                raise DataError(self._no_folder)
            return data_uri(Image.fromarray(self._real.load(image_id)))
        except DataError as error:
            self.not_shown = self.not_shown or error.what
            return None


def picture_of(reader: StoreReader, record: Mapping[str, Any]) -> str:
    """An image of a store as a data URI; record: its row of the index. Raises StoreError for a damaged one."""
    return data_uri(decode(reader.read_image(record), f'The image {record["id"]!r}'))


def data_uri(image: Image.Image) -> str:
    """An image as text for `src`: small ones as PNG, exactly; larger ones reduced, as WebP."""
    image = image.convert('RGB')
    small = max(image.size) <= MAX_PX
    if not small:
        image.thumbnail((MAX_PX, MAX_PX))
    buffer = io.BytesIO()
    image.save(buffer, 'PNG' if small else 'WEBP', **({} if small else {'quality': 82}))
    kind = 'png' if small else 'webp'
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'


def counts(store: Store, uses: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Made, rejected by reason, kept, and selected by each use.

    Args:
        uses: name of an arm and its selection (None, a condition, or a dict of `select`'s arguments), for arms that train
            on this store.
    """
    per_class = store.counts()
    reasons: dict[str, int] = {}
    for entry in per_class.values():
        for reason, n in entry['reasons'].items():
            reasons[reason] = reasons.get(reason, 0) + n
    kept, rejected = (sum(entry[key] for entry in per_class.values()) for key in ('kept', 'rejected'))
    chosen = []
    for name, spec in uses:
        arguments = spec if isinstance(spec, Mapping) else {'where': spec}
        selection = select(store, **{**arguments, 'allow_empty': True}, columns=['id'])
        chosen.append({'name': name, 'select': selection.text if spec else None, 'n': selection.table.num_rows})
    return {
        'store': str(store.folder),
        'made': kept + rejected,
        'kept': kept,
        'rejected': rejected,
        'reasons': dict(sorted(reasons.items(), key=lambda item: -item[1])),
        'uses': chosen,
        'selected': max((c['n'] for c in chosen), default=0),
    }


def is_pixel_art(store: Store) -> bool:
    """Whether images are so small that they must be enlarged with hard edges to be seen."""
    stored = store.index(['id', 'shard', 'offset', 'size', 'sha256'], STORED)
    if not len(stored):
        return False
    first = stored.slice(0, 1).to_pylist()[0]
    return max(decode(StoreReader(store.folder).read_image(first), f'The image {first["id"]!r}').size) <= 64
