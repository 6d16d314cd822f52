"""A store is read by the libraries that it is exported for, as it was: pixels, labels, class order, prompts and scores."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import CLASSES, make_store

from conftest import Say
from synthaug_plugins.errors import RecipeError, StoreError
from synthaug_plugins.handover import hf_parquet
from synthaug_plugins.handover.card import data_card, write_card
from synthaug_plugins.handover.export import LAYOUTS, export
from synthaug_plugins.store.encode import decode
from synthaug_plugins.store.open_shards import forget_open_files
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Eighteen kept images with a number and a teacher's logits each, and rejected ones that must stay at home."""
    made = make_store(tmp_path_factory.mktemp('handover') / 'store', keep_rejected=True)
    ids = made.index()['id'].to_pylist()
    logits = pa.array([[i / 4, -1.0, 2.0] for i in range(len(ids))], pa.list_(pa.float16()))
    made.add_scores('later', pa.table({'id': ids, 'rarity': [None, *range(1, len(ids))], 'teacher_logits': logits}))
    return made


@pytest.fixture(scope='module')
def rows(store: Store) -> dict[str, dict[str, Any]]:
    """What every image must be, by id: the row of the index, with its pixels."""
    reader = StoreReader(store.folder)
    found = {row['id']: row for row in select(store).table.to_pylist()}
    for row in found.values():
        row['pixels'] = np.asarray(decode(reader.read_image(row), row['id']))
    return found


@pytest.fixture(scope='module')
def hf(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in four shards with row groups of two images."""
    out = tmp_path_factory.mktemp('hf') / 'out'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_parquet, 'MAX_SHARD', select(store).table['size'].to_numpy().sum() // 4 + 1)
        patch.setattr(hf_parquet, '_GROUP_ROWS', 2)
        assert export(store, out, 'hf') == dict.fromkeys(CLASSES, 6)
    return out


def test_hugging_face_datasets_reads_the_export_and_the_card_beside_it(
    hf: Path, store: Store, rows: dict[str, dict[str, Any]], tmp_path: Path, no_network: None
) -> None:
    import datasets

    pushed = shutil.copytree(hf, tmp_path / 'pushed')
    write_card(data_card(store, licence='mit'), pushed / 'README.md')
    found = datasets.load_dataset(str(pushed), split='train', cache_dir=str(tmp_path / 'cache'))
    assert found.features['image'] == datasets.Image()
    assert found.features['label'] == datasets.ClassLabel(names=list(CLASSES))
    assert found.features['teacher_logits'] == datasets.List(datasets.Value('float16'))
    assert found['id'] == list(rows)
    for image in found:
        row = rows[image['id']]
        assert np.array_equal(np.asarray(image['image']), row['pixels'])
        assert image['image'].format == 'PNG'
        assert {name: image[name] for name in image if name != 'image'} == {name: row[name] for name in image if name != 'image'}
    streamed = datasets.load_dataset('parquet', data_dir=str(hf / 'data'), split='train', streaming=True, cache_dir=str(tmp_path / 'cache'))
    assert [image['id'] for image in streamed] == list(rows)


def test_each_shard_is_a_whole_parquet_file_of_small_row_groups(hf: Path, store: Store, rows: dict[str, dict[str, Any]]) -> None:
    """What other readers of Parquet find, `datasets` aside: bytes as they are in the store, and features in the file's metadata."""
    files = sorted(hf.rglob('*'))
    assert [p.name for p in files] == ['data', *(f'train-{i:05d}-of-00004.parquet' for i in range(4))]
    found = [row for path in files[1:] for row in pq.read_table(path).to_pylist()]
    assert [row['id'] for row in found] == list(rows)
    assert [hashlib.sha256(row['image']['bytes']).hexdigest() for row in found] == [row['sha256'] for row in rows.values()]
    assert found[0]['image']['path'] == f'{found[0]["id"]}.png'
    one = pq.ParquetFile(files[1])
    assert all(one.metadata.row_group(i).num_rows <= 2 for i in range(one.metadata.num_row_groups))
    told = json.loads(one.schema_arrow.metadata[b'huggingface'])['info']['features']
    assert list(told) == one.schema_arrow.names
    assert told['label'] == {'names': list(CLASSES), '_type': 'ClassLabel'}
    assert {'verdict', 'reason', 'offset', 'shard'}.isdisjoint(told)


def test_the_fiftyone_folder_is_laid_out_as_its_importer_reads_it(store: Store, rows: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """FiftyOne needs a database server of its own, so the suite follows what its `FiftyOneImageClassificationDatasetImporter` does; it was run once by hand."""
    out = tmp_path / 'out'
    export(store, out, 'fiftyone')
    assert sorted(p.name for p in out.iterdir()) == ['data', 'labels.json']
    labels = json.loads((out / 'labels.json').read_text())
    assert list(labels) == ['classes', 'labels']
    media = {p.stem: p for p in (out / 'data').iterdir()}
    assert media.keys() == labels['labels'].keys() == rows.keys()
    for image_id, told in labels['labels'].items():
        row, attributes = rows[image_id], told['attributes']
        assert labels['classes'][told['label']] == CLASSES[row['label']]
        assert hashlib.sha256(media[image_id].read_bytes()).hexdigest() == row['sha256']
        assert (attributes['prompt'], attributes['source'], attributes['seed']) == (row['prompt'], row['source'], row['seed'])
        assert attributes['params'] == json.loads(row['params'])
        assert attributes['teacher_logits'] == row['teacher_logits']
        assert attributes.get('rarity') == row['rarity']
    assert 'rarity' not in labels['labels'][next(iter(rows))]['attributes']  # it has none, and null is no number


@pytest.mark.parametrize(('to', 'column'), [('hf', 'Image'), ('fiftyone', 'confidence'), ('fiftyone', 'logits'), ('fiftyone', '_cls')])
def test_a_score_column_that_the_layout_has_no_place_for_is_refused(tmp_path: Path, to: str, column: str) -> None:
    store = make_store(tmp_path / 'store')
    store.add_scores('clash', pa.table({'id': store.index()['id'], column: [0.5] * len(store.index())}))
    with pytest.raises(StoreError, match=f'{column}.*--prefix'):
        export(store, tmp_path / 'out', to)
    assert [p.name for p in tmp_path.iterdir()] == ['store']


@pytest.mark.parametrize('to', LAYOUTS)
def test_a_damaged_image_or_a_full_disk_leaves_no_half_export(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / 'store')
    shard = store.folder / 'shards' / '00001.tar'
    data = bytearray(shard.read_bytes())
    row = next(row for row in store.index().to_pylist() if row['shard'] == 1 and row['offset'])
    data[row['offset'] + row['size'] - 20] ^= 1
    whole = shard.read_bytes()
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=f'{row["id"]}.*damaged'):
        export(store, tmp_path / 'out', to)
    assert [p.name for p in tmp_path.iterdir()] == ['store']

    shard.write_bytes(whole)
    forget_open_files()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    monkeypatch.setattr(pq.ParquetWriter, 'write_table', full)
    with pytest.raises(StoreError, match='disk is full'):
        export(store, tmp_path / 'out', to)
    assert [p.name for p in tmp_path.iterdir()] == ['store']


@pytest.mark.parametrize('to', LAYOUTS)
def test_a_killed_export_is_made_again_by_the_same_command(store: Store, tmp_path: Path, to: str, synthaug: Say) -> None:
    left = tmp_path / '.partial-folder-out'
    (left / 'data').mkdir(parents=True)
    (left / 'data' / 'train-00000-of-00001.parquet').write_bytes(b'PAR1half')
    done = synthaug('export', store.folder, '--to', to, '--out', tmp_path / 'out', '--where', "class = 'one'", '--allow-empty')
    assert (done.status, done.err) == (0, '')
    assert done.out.startswith('6 images in')
    assert str(tmp_path / 'out') in done.out.splitlines()[1]
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    assert not list((tmp_path / 'out').rglob('*half*'))


def test_an_unknown_layout_and_an_empty_selection_are_refused_before_anything_is_written(store: Store, tmp_path: Path, synthaug: Say) -> None:
    done = synthaug('export', tmp_path / 'no store', '--to', 'hff', '--out', tmp_path / 'out')
    assert (done.status, done.out) == (2, '')
    assert "Did you mean 'hf'?" in done.err
    with pytest.raises(StoreError, match='no image to export'):
        export(store, tmp_path / 'out', 'hf', select(store, 'rarity > 1e6', allow_empty=True))
    with pytest.raises(RecipeError, match='unknown layout'):
        export(store, tmp_path / 'out', 'webdataset')
    assert list(tmp_path.iterdir()) == []
