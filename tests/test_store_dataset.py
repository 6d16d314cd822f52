"""A store as a training set, however many images it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthaug_plugins import compat
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store

compat.apply()

from mmengine.registry import DATASETS, init_default_scope  # noqa: E402

CLASSES = ('cat', 'dog', 'owl')


def store_of(folder: Path, prompts: Sequence[str | None] = ('a', 'b'), per_class: int = 4, block_size: int = 5) -> Store:
    """Grey images, `per_class` of each class, told the prompts in turn; every seventh try is rejected."""
    store = Store.create(folder, Plan(CLASSES, make_blocks(CLASSES, per_class, block_size=block_size), {}), {})
    for block in store.plan.blocks:
        rows: list[Row] = []
        for part in block.parts:
            made = number = 0
            while made < part.target:
                kept = number % 7 != 3
                prompt = prompts[(part.first + made) % len(prompts)]
                request = Request(request_id(part, number), part.label, part.class_name, number, None, prompt)
                image = encode(np.full((8, 8, 3), 20 * part.label + number, np.uint8), 'png', 100)
                rows.append(Row(request, 'kept' if kept else 'rejected', None if kept else 'dull', 'png', image, {'score': float(number)}))
                made, number = made + kept, number + 1
        store.publish(block, rows, keep_rejected=True)
    return store


def dataset_of(store: Store, **options: Any) -> Any:
    init_default_scope('mmpretrain')
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]
    return DATASETS.build({'type': 'synthaug_plugins.StoreDataset', 'store': str(store.folder), 'pipeline': pipeline, **options})


def test_images_of_one_prompt_are_one_group(tmp_path: Path) -> None:
    store = store_of(tmp_path / 's', ['a dog in snow', 'a cat', 'a dog in snow'])
    rows = {row['id']: row['prompt'] for row in store.index().to_pylist() if row['verdict'] == 'kept'}
    groups = dataset_of(store).prompt_groups()
    assert groups.dtype == np.int64
    assert groups.tolist() == [0 if rows[i] == 'a dog in snow' else 1 for i in sorted(rows)]


def test_groups_are_refused_where_images_have_no_prompt(tmp_path: Path) -> None:
    store = store_of(tmp_path / 's', ['a', None, None, 'b'])
    with pytest.raises(RecipeError, match=r"6 of 12 selected records of '.*' have no prompt.*select='prompt is not null'"):
        dataset_of(store).prompt_groups()
    assert dataset_of(store, select='prompt is not null').prompt_groups().tolist() == [0, 1] * 3
    bare = store_of(tmp_path / 'bare', [None])
    with pytest.raises(RecipeError, match=r'12 of 12 .* generate them from prompts'):
        dataset_of(bare).prompt_groups()
