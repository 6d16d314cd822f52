"""A store as a training set, however many images it holds."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthaug_plugins import compat
from synthaug_plugins.errors import DataError, RecipeError, StoreError
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store

compat.apply()

from mmengine.registry import DATASETS, init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

CLASSES = ('cat', 'dog', 'owl')


def store_of(
    folder: Path,
    prompts: Sequence[str | None] = ('a', 'b'),
    per_class: int = 4,
    block_size: int = 5,
    classes: Sequence[str] = CLASSES,
    color: tuple[int, int, int] | None = None,
) -> Store:
    """Grey images (or of one colour), `per_class` of each class, told the prompts in turn; every seventh try is rejected."""
    store = Store.create(folder, Plan(tuple(classes), make_blocks(classes, per_class, block_size=block_size), {}), {})
    for block in store.plan.blocks:
        rows: list[Row] = []
        for part in block.parts:
            made = number = 0
            while made < part.target:
                kept = number % 7 != 3
                prompt = prompts[(part.first + made) % len(prompts)]
                request = Request(request_id(part, number), part.label, part.class_name, number, None, prompt)
                pixels = np.full((8, 8, 3), (20 * part.label + number) % 256 if color is None else color, np.uint8)
                image = encode(pixels, 'png', 100)
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


def shown(dataset: Any) -> list[tuple[str, int]]:
    return [(info['img_path'], info['gt_label']) for info in map(dataset.get_data_info, range(len(dataset)))]


def test_prompts_are_those_of_the_subset(tmp_path: Path) -> None:
    dataset = dataset_of(store_of(tmp_path / 's', ['x', 'y', 'z']), indices=[5, 4, 9, -1])
    assert dataset.prompt_groups().tolist() == [0, 1, 0, 1]  # told y, x, y, x: each class begins with x
    assert dataset.get_subset([2, 3, 0]).prompt_groups().tolist() == [0, 1, 0]


def test_prompts_of_a_store_that_was_made_again_meanwhile_are_refused(tmp_path: Path) -> None:
    dataset = dataset_of(store_of(tmp_path / 's', ['x', 'y', 'z']))
    shutil.rmtree(tmp_path / 's')
    store_of(tmp_path / 's', ['x', 'y', 'z'], block_size=3)
    with pytest.raises(StoreError, match='has changed since its records were read'):
        dataset.prompt_groups()


def test_an_option_that_would_choose_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'filter_cfg = .* Choose with select'):
        dataset_of(store_of(tmp_path / 's'), filter_cfg={'min_size': 8})


def test_a_record_costs_fourteen_bytes_and_copies_share_them(tmp_path: Path) -> None:
    dataset = dataset_of(store_of(tmp_path / 's'))
    records = dataset._records
    assert records.labels.itemsize + records.places.itemsize == 14
    assert records.ids.nbytes == records.sources.nbytes == 0
    assert copy.deepcopy(dataset)._records is records


def test_subsets_and_copies_are_data_sets_of_their_own(tmp_path: Path) -> None:
    store = store_of(tmp_path / 's')
    dataset = dataset_of(store)
    every = shown(dataset)
    assert [label for _, label in every] == [0] * 4 + [1] * 4 + [2] * 4 == dataset.get_gt_labels().tolist()
    assert shown(dataset.get_subset([7, 0, -1])) == [every[7], every[0], every[11]]
    assert shown(dataset.get_subset(3)) == every[:3]
    assert shown(dataset.get_subset(-2)) == every[-2:]
    assert shown(dataset_of(store, indices=2)) == every[:2]
    assert shown(pickle.loads(pickle.dumps(dataset))) == shown(copy.deepcopy(dataset)) == every
    assert dataset.get_data_info(-1) == {**dataset.get_data_info(11), 'sample_idx': 11}
    assert dataset.get_cat_ids(4) == [1]
    with pytest.raises(IndexError):
        dataset.get_data_info(12)
    part = copy.deepcopy(dataset)
    part.get_subset_(range(2))
    assert (len(part), len(dataset)) == (2, 12)


def test_no_other_image_comes_in_the_place_of_one_that_is_gone(tmp_path: Path) -> None:
    """`ignore_empty` lets MMEngine take a random other image where one cannot be read."""
    store = store_of(tmp_path / 's')
    dataset = dataset_of(store, pipeline=[{'type': 'LoadImageFromFile', 'ignore_empty': True}, {'type': 'PackInputs'}])
    assert dataset[11]['data_samples'].img_path.partition('#')[0].endswith('00002.tar')
    (store.folder / 'shards/00002.tar').unlink()
    with pytest.raises(DataError, match=r'00002\.tar.*ignore_empty'):
        dataset[11]
    assert dataset[0]['data_samples'].sample_idx == 0


@pytest.mark.parametrize('workers', [0, 2])
def test_stock_wrappers_and_loaders_take_it(tmp_path: Path, workers: int) -> None:
    store = store_of(tmp_path / 's')
    one = {'type': 'synthaug_plugins.StoreDataset', 'store': str(store.folder), 'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]}
    init_default_scope('mmpretrain')
    wrapped = {
        'repeated': ({'type': 'RepeatDataset', 'times': 2, 'dataset': one}, 24),
        'joined': ({'type': 'ConcatDataset', 'datasets': [one, one]}, 24),
        'balanced': ({'type': 'ClassBalancedDataset', 'oversample_thr': 0.5, 'dataset': one}, 24),
        'folded': ({'type': 'KFoldDataset', 'num_splits': 3, 'dataset': one}, 8),
    }
    for name, (cfg, n) in wrapped.items():
        assert len(DATASETS.build(cfg)) == n, name
    loader = {'batch_size': 4, 'num_workers': workers, 'dataset': one, 'sampler': {'type': 'DefaultSampler', 'shuffle': True}, 'num_batch_per_epoch': 2}
    batches = list(Runner.build_dataloader(loader, seed=0))
    assert [len(batch['inputs']) for batch in batches] == [4, 4]
    for batch in batches:  # the pixels say the class, see store_of
        assert [int(image.max()) // 20 for image in batch['inputs']] == [int(sample.gt_label) for sample in batch['data_samples']]
