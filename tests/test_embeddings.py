"""Folders of learned embeddings: what is written is read, in little memory; what is damaged or another's is refused; verify finds it."""

from __future__ import annotations

import errno
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from conftest import Say
from new_process import new_python
from synthaug_plugins.errors import DataError, ModelError, StoreError
from synthaug_plugins.models import embedding_shards, sorted_ids
from synthaug_plugins.models.base import EmbeddingShape
from synthaug_plugins.models.embedding_shards import EMBEDDINGS, create_embeddings, index_path, next_shard, publish_shard, shard_path
from synthaug_plugins.models.embedding_verify import verify_embeddings
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.text_model import TextModel, open_model
from synthaug_plugins.real_images import RealImages

SHAPE, POOLED = EmbeddingShape(5, 6), EmbeddingShape(2, 4, 3)
IDS = [[f'cat/{k}.png' for k in range(5)], ['dog/0.png', 'cat/sub/1.png', 'dog/1.png'], ['cat/5.png', 'dog/2.png']]
ORDER = [name for shard in IDS for name in shard]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def values(shape: EmbeddingShape, number: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    tokens = normal(count, shape.tokens, shape.width, seed=number)
    return tokens, None if shape.pooled is None else normal(count, shape.pooled, seed=100 + number)


def publish(folder: Path, number: int, ids: list[str], shape: EmbeddingShape = SHAPE) -> None:
    publish_shard(folder, number, ids, [f'{name}!' for name in ids], *values(shape, number, len(ids)), {'steps': [3] * len(ids)})


def card(shape: EmbeddingShape = SHAPE, **changes: Any) -> dict[str, Any]:
    return {'model': {'name': 'm', 'sha256': '0'}, 'shape': shape, 'image_size': (16, 24), **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten embeddings in three shards."""
    create_embeddings(tmp_path / 'e', card())
    for number, ids in enumerate(IDS):
        publish(tmp_path / 'e', number, ids)
    return tmp_path / 'e'


@pytest.fixture
def pooled(tmp_path: Path) -> Path:
    create_embeddings(tmp_path / 'p', card(POOLED))
    for number, ids in enumerate(IDS):
        publish(tmp_path / 'p', number, ids, POOLED)
    return tmp_path / 'p'


def test_every_image_s_own_embedding_is_read_in_any_order(folder: Path, pooled: Path) -> None:
    for where, shape in ((folder, SHAPE), (pooled, POOLED)):
        found = Embeddings(where)
        assert (len(found), found.shape, found.image_size) == (10, shape, (16, 24))
        written = {
            name: (tokens[k], None if p is None else p[k])
            for n, ids in enumerate(IDS)
            for tokens, p in [values(shape, n, len(ids))]
            for k, name in enumerate(ids)
        }
        asked = ['dog/2.png', 'cat/1.png', 'cat/2.png', 'dog/0.png', 'cat/1.png', 'cat/sub/1.png']
        rows = found.find(asked)
        assert rows.dtype == np.int64
        assert found.ids(rows) == asked
        assert found.sha256_of(rows) == [f'{name}!' for name in asked]
        tokens, vectors = found.read(rows)
        assert tokens.dtype == torch.float32
        assert np.array_equal(tokens.numpy(), np.stack([written[name][0] for name in asked]))
        if shape.pooled is None:
            assert vectors is None
        else:
            assert np.array_equal(vectors.numpy(), np.stack([written[name][1] for name in asked]))
        assert found.read([])[0].shape == (0, shape.tokens, shape.width)


def test_images_without_an_embedding_are_named(folder: Path) -> None:
    found = Embeddings(folder)
    assert found.missing(['x', 'cat/0.png', 'cat/9.png']) == ['x', 'cat/9.png']
    assert found.missing(ORDER) == []
    with pytest.raises(DataError, match=r"'dog/9.png' has no embedding in .* \(2 in all\)\. .*synthaug learn embeddings.* Did you mean 'dog/"):
        found.find(['cat/0.png', 'dog/9.png', 'x'])
    with pytest.raises(IndexError):
        found.read([10])


def test_ids_are_told_apart_although_their_keys_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bisection goes by 64 bits of a hash; here by less than two."""
    monkeypatch.setattr(sorted_ids, '_keys', lambda ids: np.array([len(str(i)) % 3 for i in ids], np.uint64))
    ids = sorted_ids.SortedIds(pa.array(ORDER))
    assert ids.rows([*ORDER[::-1], 'x', 'xx', 'xxx']).tolist() == [*range(9, -1, -1), -1, -1, -1]
    assert ids.repeated() == []
    assert sorted_ids.SortedIds(pa.array([*ORDER, 'dog/1.png'])).repeated() == [('dog/1.png', [7, 10])]


def test_the_mean_is_exact_whatever_the_order_and_the_chunks(folder: Path, pooled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([9, 0, 1, 7, 4])
    for where in (folder, pooled):
        found = Embeddings(where)
        tokens, vectors = found.mean(rows)
        each = found.read(rows)
        assert torch.equal(tokens, each[0].double().mean(dim=0).float())
        assert vectors is None if each[1] is None else torch.equal(vectors, each[1].double().mean(dim=0).float())
        assert torch.equal(found.mean(rows[::-1])[0], tokens)
        assert not torch.equal(found.mean(range(10))[0], tokens)
    with pytest.raises(DataError, match=r'no embeddings .* to take the mean of'):
        found.mean([])


def test_identity_stays_when_images_are_added_and_changes_with_what_decides(folder: Path, tmp_path: Path) -> None:
    asked = ['dog/0.png', 'cat/3.png']
    before = Embeddings(folder).identity(asked)
    assert Embeddings(folder).identity(asked[::-1]) == before
    publish(folder, 3, ['cat/new.png', 'ant/0.png'])
    after = Embeddings(folder)
    assert after.identity(asked) == before
    assert after.identity([*asked, 'ant/0.png']) != before
    assert after.identity(['dog/0.png', 'cat/2.png']) != before
    create_embeddings(tmp_path / 'other', card())
    publish_shard(tmp_path / 'other', 0, ['cat/3.png', 'dog/0.png'], ['a', 'b'], normal(2, 5, 6, seed=9))
    assert Embeddings(tmp_path / 'other').identity(asked) != before


def test_a_few_rows_of_a_large_shard_are_read_without_the_shard(tmp_path: Path) -> None:
    """64 MB, of which a process reads three rows, and then all for the mean: its memory grows by a fraction of that.

    The kernel's high-water mark of the process itself; ru_maxrss begins with that of the process that started it.
    """
    rows, shape = 10_000, EmbeddingShape(5, 640)
    create_embeddings(tmp_path / 'e', card(shape))
    tokens = np.zeros((rows, 5, 640), np.float16)
    tokens[:, 0, 0] = np.arange(rows) % 1000
    publish_shard(tmp_path / 'e', 0, [f'a/{k}' for k in range(rows)], ['0'] * rows, tokens)
    script = (
        'import re, sys, safetensors.numpy, torch, numpy as np;'
        'from synthaug_plugins.models.embeddings import Embeddings;'
        'peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024;'
        'found = Embeddings(sys.argv[1]); start = peak();'
        'rows = found.find([f"a/{k}" for k in (9_999, 5_999, 999)]); some = found.read(rows)[0][:, 0, 0].tolist(); read = peak();'
        'mean = float(found.mean(np.arange(len(found)))[0][0, 0]); print(some == [999.0] * 3, mean == 499.5, read - start, peak() - start)'
    )
    right, exact, read, mean = new_python('-c', script, tmp_path / 'e').out.split()
    assert (right, exact) == ('True', 'True')
    assert float(read) < 16  # a kernel may map 2 MB around each
    assert float(mean) < 24


def test_a_row_of_the_index_takes_few_bytes_of_python(tmp_path: Path) -> None:
    rows = 20_000
    create_embeddings(tmp_path / 'e', card(EmbeddingShape(1, 1)))
    publish_shard(tmp_path / 'e', 0, [f'some class/image_{k}.png' for k in range(rows)], ['0' * 64] * rows, np.zeros((rows, 1, 1)))
    Embeddings(tmp_path / 'e')  # what is imported on the way stays
    tracemalloc.start()
    try:
        found = Embeddings(tmp_path / 'e')
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == rows
    assert held < 20 * rows
    assert peak < 60 * rows


# --- writing -------------------------------------------------------------------------------------------------------------


def test_a_shard_counts_once_its_index_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_embeddings(tmp_path, card())
    assert len(Embeddings(tmp_path)) == 0
    assert next_shard(tmp_path) == 0
    stage = embedding_shards.files.stage

    def full(path: Path, chunks: Any) -> Path:
        if path.suffix == '.parquet':
            raise OSError(errno.ENOSPC, 'No space left on device')
        return stage(path, chunks)

    monkeypatch.setattr(embedding_shards.files, 'stage', full)
    with pytest.raises(StoreError, match='the disk is full'):
        publish(tmp_path, 0, IDS[0])
    assert shard_path(tmp_path, 0).is_file()
    assert len(Embeddings(tmp_path)) == 0
    assert [f.file for f in verify_embeddings(tmp_path)] == ['shards/00000.safetensors']
    monkeypatch.undo()
    publish(tmp_path, 0, IDS[0])
    assert len(Embeddings(tmp_path)) == 5
    assert next_shard(tmp_path) == 1
    assert verify_embeddings(tmp_path) == []


def test_publishing_again_writes_the_same_bytes_or_is_refused(folder: Path) -> None:
    paths = [path for n in range(3) for path in (shard_path(folder, n), index_path(folder, n))]
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in paths}
    publish(folder, 1, IDS[1])
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in paths} == before
    index_path(folder, 1).unlink()
    publish(folder, 1, IDS[1])
    assert {path: path.read_bytes() for path in paths} == {path: data for path, (data, _) in before.items()}
    for ids, seed in ((IDS[1][::-1], 1), (IDS[1], 5)):
        with pytest.raises(ModelError, match='published already, with other content'):
            publish_shard(folder, 1, ids, ['0'] * 3, normal(3, 5, 6, seed=seed))
    assert {path: path.read_bytes() for path in paths} == {path: data for path, (data, _) in before.items()}


@pytest.mark.parametrize(
    ('changes', 'error', 'said'),
    [
        ({'tokens': normal(2, 5, 7)}, ModelError, r'tokens \(2, 5, 7\); wanted are tokens \(2, 5, 6\)'),
        ({'tokens': normal(3, 5, 6)}, ModelError, r'tokens \(3, 5, 6\)'),
        ({'pooled': normal(2, 3)}, ModelError, r'pooled \(2, 3\); wanted are tokens \(2, 5, 6\)\.'),
        ({'ids': ['a/0', 'a/0']}, ModelError, '1 different ids'),
        ({'sha256': ['0']}, ModelError, '1 hashes'),
        ({'ids': [], 'sha256': [], 'tokens': normal(0, 5, 6)}, ModelError, '0 different ids'),
        ({'tokens': torch.full((2, 5, 6), 7e4)}, DataError, r"'a/0' is not finite \(tokens, float16; 2 in all\)"),
        ({'tokens': np.array([1.0, np.nan])[:, None, None].repeat(5, 1).repeat(6, 2)}, DataError, r"'a/1' is not finite"),
    ],
)
def test_a_shard_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], error: type[Exception], said: str) -> None:
    create_embeddings(tmp_path, card())
    given = {'ids': ['a/0', 'a/1'], 'sha256': ['0', '1'], 'tokens': normal(2, 5, 6), **changes}
    with pytest.raises(error, match=said):
        publish_shard(tmp_path, 0, **given)
    assert not index_path(tmp_path, 0).exists()


def test_the_card_may_change_but_for_what_the_shards_are(folder: Path) -> None:
    create_embeddings(folder, card(name='digits', licence='CC0'))
    assert Embeddings(folder).card['name'] == 'digits'
    for change in ({'model': {'name': 'm', 'sha256': '1'}}, {'shape': POOLED}, {'image_size': [24, 16]}):
        with pytest.raises(ModelError, match=f'have {next(iter(change))} = .* Learn into a new folder'):
            create_embeddings(folder, card(**change))


# --- opening -------------------------------------------------------------------------------------------------------------


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    save_file(change(load_file(path)), path)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    'no shard': (lambda f: shard_path(f, 1).unlink(), '00001.safetensors.* is missing, its index is there'),
    'cut short': (lambda f: cut(shard_path(f, 1)), '00001.safetensors.* cannot be read as safetensors'),
    'no safetensors': (lambda f: shard_path(f, 1).write_bytes(b'\x80\x04pickle'), 'cannot be read as safetensors'),
    'other shape': (
        lambda f: rewrite(shard_path(f, 1), lambda t: {'tokens': t['tokens'][:, :4].copy()}),
        r'tokens F16 \(3, 4, 6\); wanted are tokens F16 \(3, 5, 6\)',
    ),
    'fewer rows': (lambda f: rewrite(shard_path(f, 1), lambda t: {'tokens': t['tokens'][:2].copy()}), r'tokens F16 \(2, 5, 6\); wanted'),
    'other type': (lambda f: rewrite(shard_path(f, 1), lambda t: {'tokens': t['tokens'].astype(np.float32)}), 'tokens F32'),
    'more tensors': (lambda f: rewrite(shard_path(f, 1), lambda t: t | {'pooled': normal(3, 3)}), r'pooled F16 \(3, 3\)'),
    'index cut short': (lambda f: cut(index_path(f, 2)), '00002.parquet.* cannot be read'),
    'an index of something else': (
        lambda f: pq.write_table(pa.table({'x': [1]}), index_path(f, 2)),
        'is no index of embeddings',
    ),
    'an id twice': (lambda f: publish(f, 3, ['ant/0.png', 'cat/sub/1.png']), "hold 'cat/sub/1.png' 2 times, in the shards 1, 3"),
    'no folder': (lambda f: shutil.rmtree(f), 'there is no such folder'),
    'no card': (lambda f: (f / EMBEDDINGS).unlink(), 'there is no embeddings.json in it'),
    'no JSON': (lambda f: (f / EMBEDDINGS).write_text('{'), 'is not valid JSON'),
    'a newer format': (lambda f: edit(f / EMBEDDINGS, format_version=2), 'has format_version 2, known is 1'),
    'no shape': (lambda f: edit(f / EMBEDDINGS, shape={'tokens': 5}), 'is damaged: model, shape or image_size is missing or wrong'),
    'sizes of nothing': (lambda f: edit(f / EMBEDDINGS, image_size=[0, 16]), 'is damaged'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_folder_is_refused_at_opening(folder: Path, damage: str) -> None:
    act, said = DAMAGES[damage]
    act(folder)
    with pytest.raises(ModelError, match=said):
        Embeddings(folder)


def test_the_folder_of_the_run_is_told_from_the_embeddings_in_it(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / 'embeddings')
    with pytest.raises(ModelError, match=r'there is no embeddings\.json in it\. .*Did you mean .*embeddings'):
        Embeddings(tmp_path)


# --- whose they are ------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> RealImages:
    for k, name in enumerate(('cat/0.png', 'dog/0.png')):
        path = tmp_path / 'real' / name
        path.parent.mkdir(parents=True)
        Image.new('RGB', (8, 8), (k, k, k)).save(path)
    return RealImages(tmp_path / 'real')


def learned(folder: Path, name: str, images: RealImages) -> Embeddings:
    model, ids = open_model(name), ['cat/0.png', 'dog/0.png']
    shape = model.embedding_shape()
    create_embeddings(folder, card(shape, model=model.origin(contents=True), image_size=model.image_size))
    publish_shard(folder, 0, ids, list(images.file_hashes(ids)), normal(2, shape.tokens, shape.width))
    return Embeddings(folder)


@pytest.mark.parametrize('name', ['embedded:digits_sd', 'embedded:digits_edm'])
def test_embeddings_are_bound_to_model_resolution_and_images(name: str, images: RealImages, tmp_path: Path) -> None:
    found, model, ids = learned(tmp_path / 'e', name, images), open_model(name), ['cat/0.png', 'dog/0.png']
    found.check(model, images, ids)
    found.check(model, images, [])
    other = {'embedded:digits_sd': 'embedded:digits_sd_unnamed', 'embedded:digits_edm': 'embedded:digits_sd'}[name]
    with pytest.raises(ModelError, match=r'other content than|were learned at 8 x 8 pixels, .* makes 16 x 16'):
        found.check(open_model(other), images, ids)
    with pytest.raises(DataError, match=r"'dog/1.png' has no embedding"):
        found.check(model, images, ['dog/1.png'])
    Image.new('RGB', (8, 8), (9, 9, 9)).save(images.root / 'dog' / '0.png')
    with pytest.raises(DataError, match=r"The image 'dog/0.png' .* is not the file that its embedding"):
        found.check(model, images, ids)
    found.check(model, images, ids[:1])
    (images.root / 'cat' / '0.png').rename(images.root / 'cat' / '1.png')
    with pytest.raises(DataError, match=r"'cat/0.png' is not an image of"):
        found.check(model, RealImages(images.root), ids[:1])


def test_embeddings_of_another_resolution_or_shape_are_refused(images: RealImages, tmp_path: Path) -> None:
    found = learned(tmp_path / 'e', 'embedded:digits_sd', images)
    with pytest.raises(ModelError, match=r'were learned at 16 x 16 pixels, .* makes 32 x 16'):
        found.check(TextModel('embedded:digits_sd', image_size=(32, 16)), images, [])
    with pytest.raises(ModelError, match=r'EmbeddingShape\(tokens=5, width=64, pooled=None\), those of .* EmbeddingShape\(tokens=5, width=16'):
        found.check(TextModel(str(tiny.sd(tmp_path / 'sd'))), images, [])
    create_embeddings(tmp_path / 'five', card(EmbeddingShape(5, 32), image_size=(8, 8)))
    with pytest.raises(ModelError, match=r'tokens=5, width=32.*, those of .* EmbeddingShape\(tokens=1, width=32'):
        Embeddings(tmp_path / 'five').check(open_model('embedded:digits_edm'), images, [])


def test_a_model_of_ours_is_known_again_by_its_content(tmp_path: Path) -> None:
    from synthaug_plugins.weights import embedded_folder

    model = open_model('embedded:digits_edm')
    copy = shutil.copytree(embedded_folder('embedded:digits_edm'), tmp_path / 'copy')
    assert open_model(str(copy)).has_origin(model.origin())
    edit(copy / 'config.json', sigma_data=0.4)
    assert not open_model(str(copy)).has_origin(model.origin())
    assert not model.has_origin({'name': 'embedded:digits_edm'})


# --- verify --------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def infinite(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors['tokens'][2, 1, 1] = np.inf
    return tensors


def foreign(index: Path) -> None:
    """Write an index as a stranger may: of the right columns, with something else where it says whose shard's it is."""
    table = pq.read_table(index)
    index.write_bytes(embedding_shards.parquet_bytes(table, [1]))  # type: ignore[arg-type]


FAULTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    'a flipped bit': (lambda f: flip(shard_path(f, 1)), [r'shards/00001.safetensors: damaged \(its hash']),
    'infinity': (lambda f: rewrite(shard_path(f, 1), infinite), ['shards/00001.*: damaged', r"tokens of 'dog/1.png' is not finite"]),
    'cut short': (lambda f: cut(shard_path(f, 1)), ['shards/00001.*cannot be read as safetensors']),
    'index without shard': (lambda f: shard_path(f, 1).unlink(), ['shards/00001.*is missing, its index is there']),
    'shard without index': (lambda f: index_path(f, 2).unlink(), ['shards/00002.safetensors: of a run that was killed']),
    'a gap': (lambda f: [p(f, 1).unlink() for p in (index_path, shard_path)], ['index/00001.parquet: missing, later ones are there']),
    'a number out of all proportion': (
        lambda f: shutil.copy(index_path(f, 2), index_path(f, 10**15)),
        [r'index/00003.parquet: missing \(up to 999999999999999.parquet\)', f'shards/{10**15}.safetensors.*is missing', *2 * ['index: the id']],
    ),
    'a number written otherwise': (lambda f: shutil.copy(index_path(f, 2), f / 'index' / '2.parquet'), ['index/2.parquet: not part of the embeddings']),
    'an index that names no hash': (lambda f: foreign(index_path(f, 2)), [r'index/00002.parquet: damaged \(it names no hash']),
    'index changed': (lambda f: index_path(f, 2).write_bytes(index_path(f, 2).read_bytes()[:-9]), ['index/00002.parquet: damaged']),
    'other shape': (lambda f: rewrite(shard_path(f, 0), lambda t: {'tokens': t['tokens'][:, 1:].copy()}), [r'shards/00000.*tokens F16 \(5, 4, 6\)']),
    'an id twice': (lambda f: publish(f, 3, ['ant/0.png', 'cat/sub/1.png']), ["index: the id 'cat/sub/1.png' is there 2 times, in the shards 1, 3"]),
    'a file too many': (lambda f: (f / 'index' / 'x.txt').write_text(''), ['index/x.txt: not part of the embeddings']),
    'a killed run': (lambda f: (f / 'shards' / '.partial-00003.safetensors-7').write_text(''), ['partial-00003.*: of a run that was killed']),
}


def test_an_index_that_names_no_hash_of_its_shard_is_refused_where_it_is_asked(folder: Path) -> None:
    foreign(index_path(folder, 0))
    with pytest.raises(ModelError, match=r'00000.parquet.* names no hash of its shard'):
        Embeddings(folder).identity(['cat/0.png'])


@pytest.mark.parametrize('fault', FAULTS)
def test_verify_names_every_fault(folder: Path, fault: str) -> None:
    act, said = FAULTS[fault]
    assert verify_embeddings(folder) == []
    act(folder)
    found = verify_embeddings(folder)
    assert len(found) == len(said)
    for one, words in zip(found, said, strict=True):
        assert re.search(words, str(one)), one


def test_the_command_verifies_embeddings_and_ends_with_status_4(folder: Path, synthaug: Say) -> None:
    assert synthaug('verify', folder) == (0, f'{folder}: no fault\n', '')
    flip(shard_path(folder, 0))
    said = synthaug('verify', folder)
    assert said.status == 4
    assert 'shards/00000.safetensors: damaged' in said.out
    assert '1 fault in' in said.err
    assert 'synthaug learn embeddings' in said.err
