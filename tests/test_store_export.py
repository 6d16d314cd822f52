"""A store leaves the house as a plain folder or as a picture."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_store import CLASSES, MADE_BY, make_plan, make_store, tree

from synthaug_plugins.errors import StoreError
from synthaug_plugins.handover.export import export
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.sheet import MIN_CELL, RED, contact_sheet
from synthaug_plugins.store.store import Store


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp('export') / 'store', keep_rejected=True)


def test_torchvision_reads_the_export(store: Store, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    counts = export(store, tmp_path / 'out')
    dataset = ImageFolder(str(tmp_path / 'out'))
    assert counts == dict.fromkeys(CLASSES, 6)
    assert dataset.classes == sorted(CLASSES)
    assert len(dataset) == 18
    table = {r['id']: CLASSES[r['label']] for r in store.index().to_pylist()}
    assert all(table[Path(path).stem] == dataset.classes[label] for path, label in dataset.samples)
    assert dataset[0][0].size == (8, 8)


def test_a_selection_is_exported_as_selected(store: Store, tmp_path: Path) -> None:
    selection = select(store, "class = 'one'", top_k=2, by='clip_p', allow_empty=True)
    (tmp_path / 'out').mkdir()
    assert export(store, tmp_path / 'out', selection=selection) == {'one': 2, 'two': 0, 'three': 0}
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == sorted(CLASSES)
    assert {p.stem for p in (tmp_path / 'out').rglob('*.png')} == set(selection.table['id'].to_pylist())


def test_an_export_never_overwrites(store: Store, tmp_path: Path) -> None:
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine.txt').write_text('mine')
    with pytest.raises(StoreError, match='not empty'):
        export(store, tmp_path / 'out')
    assert tree(tmp_path).keys() == {'out/mine.txt'}


def test_a_failed_export_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(StoreError, match='disk is full'):
        export(store, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []


def test_the_sheet_shows_every_class_and_marks_what_was_rejected(store: Store, tmp_path: Path) -> None:
    contact_sheet(store, tmp_path / 'all.png', columns=9)
    contact_sheet(store, tmp_path / 'kept.png', select(store), columns=9)
    red = tuple(int(RED[i : i + 2], 16) for i in (1, 3, 5))

    def count(name: str) -> int:
        return int((np.asarray(Image.open(tmp_path / name)) == red).all(-1).sum())

    assert count('all.png') > 1000
    assert count('kept.png') == 0


def test_the_sheet_shows_sources_beside_their_variants(store: Store, tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / 'real' / name).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (8, 8), (10, 200, 30)).save(tmp_path / 'real' / name / f'{i}.png')
    contact_sheet(store, tmp_path / 'sheet.png', rows=2, columns=4, real_images=RealImages(tmp_path / 'real'))
    picture = np.asarray(Image.open(tmp_path / 'sheet.png'))
    assert (picture == (10, 200, 30)).all(-1).sum() == 6 * MIN_CELL**2  # two sources per class, 8 px enlarged to the cell


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / 'store', make_plan(), MADE_BY)
    with pytest.raises(StoreError, match='no image to show'):
        contact_sheet(store, tmp_path / 'sheet.png')
    assert not (tmp_path / 'sheet.png').exists()


def test_a_strangers_store_cannot_write_outside_the_export_folder(tmp_path: Path) -> None:
    """Class names with separators, and ids that are paths, are refused when the store is read."""
    import json

    import pyarrow.parquet as pq

    from synthaug_plugins.store.plan import Plan
    from synthaug_plugins.store.store import Store

    store = make_store(tmp_path / 'store')
    card = json.loads((store.folder / 'store.json').read_text())
    hostile = json.loads(json.dumps(card).replace(f'"{store.classes[0]}"', '"../../escape"'))
    hostile['fingerprint'] = Plan.from_content(hostile).fingerprint
    (store.folder / 'store.json').write_text(json.dumps(hostile))
    with pytest.raises(StoreError, match='escape'):
        Store.open(store.folder)
    (store.folder / 'store.json').write_text(json.dumps(card))
    path = store.folder / 'index' / '00000.parquet'
    table = pq.read_table(path)
    ids = ['../../escape', *table['id'].to_pylist()[1:]]
    pq.write_table(table.set_column(0, 'id', [ids]), path)
    with pytest.raises(StoreError, match='no plain names'):
        export(Store.open(store.folder), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
