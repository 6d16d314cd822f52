"""The worst images of a selection: by score columns whose worst end is known, or by what the user asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.gallery import picture_of
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.selection import select, values_of
from synthaug_plugins.store.store import Store

SHOWN = 6
"""Images of a column."""
KNOWN = {
    'memorisation': ('memorisation', 'nearest to a training image'),
    'test_p': ('-test_p', 'nearest to a held-out image'),
    'store_p': ('-store_p', 'nearest to another image of the store'),
    'clip_p': ('-clip_p', 'least probably of their class, as the CLIP sees them'),
    'real_own': ('-real_own', 'least like the real images of their class'),
    'contrast_std': ('-contrast_std', 'with the least contrast'),
}
"""Score columns of our own inspectors and of the audit: what ranks the worst first, and what these are. Which end of another column is bad nobody knows."""


def worst(store: Store, where: str | None, asked: Sequence[str]) -> list[dict[str, Any]]:
    """The worst accepted images by each of some columns.

    Args:
        where: condition on the images, see `select`.
        asked: expressions of one number per image, largest first (`-clip_p`: the smallest); none for those of `KNOWN` that the store has.

    Returns: per column with a value: `by`, `title`, `images`: `uri`, `id`, `class_name`, `prompt`, `value`.

    Raises:
        RecipeError: an unknown column, or an expression that gives no numbers.
        StoreError: a damaged store.
    """
    columns = store.score_column_names()
    ranked = [(text, f'largest {text}') for text in asked] or [KNOWN[name] for name in KNOWN if name in columns]
    words = {word for text, _ in ranked for word in re.findall(r'\w+', text)}
    needed = {'id', 'label', 'prompt', 'shard', 'offset', 'size', 'sha256', *words}
    table = select(store, where, allow_empty=True, columns=needed).table if ranked else None
    return [found for text, title in ranked if table is not None and (found := _of_column(store, table, text, title))]


def _of_column(store: Store, table: pa.Table, text: str, title: str) -> dict[str, Any] | None:
    values = values_of(store, table, text, '--worst')
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type) or pa.types.is_boolean(values.type)):
        raise RecipeError(f'--worst {text} gives {values.type}, not a number.', 'Rank by a score column, or minus it.')
    numbers = pc.fill_null(values.cast(pa.float64(), safe=False), float('nan')).to_numpy(zero_copy_only=False)
    order = np.argsort(-numbers, kind='stable')  # rows are sorted by id; NaN, which is no score, stands last
    order = order[~np.isnan(numbers[order])][:SHOWN]
    if not len(order):
        return None
    reader = StoreReader(store.folder)
    sign = -1 if text.startswith('-') and re.fullmatch(r'-\w+', text) else 1
    images = []
    for row, value in zip(table.take(pa.array(order)).to_pylist(), numbers[order], strict=True):
        said = {'id': row['id'], 'class_name': store.classes[row['label']], 'prompt': row['prompt'], 'value': f'{sign * value:.4g}'}
        images.append({**said, 'uri': picture_of(reader, row)})
    return {'by': text.removeprefix('-') if sign < 0 else text, 'title': title, 'images': images}
