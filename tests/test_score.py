"""`synthaug score`: inspectors on a finished store. Images stay as they are; scores appear whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_engine import scripted  # noqa: F401
from test_store import CLASSES, MADE_BY, make_plan, make_rows, make_store, tree
from typer.testing import CliRunner

from conftest import Say
from synthaug_plugins.cli.app import app
from synthaug_plugins.curation.base import Inspector, Verdicts
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.score import load_score_recipe, score
from synthaug_plugins.errors import DataError, RecipeError, Stopped, StoreError, SynthAugError
from synthaug_plugins.registry import INSPECTORS
from synthaug_plugins.store.encode import encode
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import verify


class Brightness(Inspector):
    """Rejects every second image that is darker than the brightest so far: it looks at pixels, at requests and at what came before."""

    begun = 0
    trouble: BaseException | None = None

    def __init__(self, limit: float = 128.0, needs_real: bool = False) -> None:
        self.limit, self.needs_real_images = limit, needs_real

    def identity(self) -> dict[str, Any]:
        return {'type': 'Brightness', 'limit': self.limit}

    def begin_block(self) -> None:
        type(self).begun += 1
        self.brightest, self.seen = -1.0, []

    def inspect(self, requests: Any, images: Any) -> Verdicts:
        if self.trouble and self.seen:
            raise self.trouble
        means, before = np.array([image.mean(dtype=np.float64) for image in images]), []
        for request, mean in zip(requests, means, strict=True):
            assert request.class_name == CLASSES[request.label]
            assert isinstance(request.params, dict)
            before.append(self.brightest)
            self.brightest = max(self.brightest, mean)
            self.seen.append(request.id)
        reasons = [f'mean {m:.1f} not above {self.limit:g}' if m <= self.limit else None for m in means]
        return Verdicts(reasons, {'mean': means, 'before': np.array(before), 'both': np.stack([means, before], 1).astype(np.float32)})


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INSPECTORS._module_dict, 'Brightness', Brightness)
    monkeypatch.setattr(Brightness, 'begun', 0)
    monkeypatch.setattr(Brightness, 'trouble', None)


def recipe(batch_size: int = 64, data: Path | None = None, **options: Any) -> dict[str, Any]:
    return {'inspectors': [{'type': 'Brightness', **options}], 'data': data and str(data), 'batch_size': batch_size}


def test_scores_and_verdicts_stand_beside_images_that_stay_as_they_are(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store', keep_rejected=True)
    before = tree(store.folder)
    scored = score(store.folder, recipe(), 'bright', 'cpu', quiet=True)
    assert {k: v for k, v in tree(store.folder).items() if k != 'scores/bright.parquet'} == before
    assert verify(store) == []
    assert scored.columns == ('mean', 'before', 'both', 'bright_kept', 'bright_reason')
    rows = store.index().to_pylist()
    for row in rows:
        image = np.random.default_rng(row['seed']).integers(0, 256, (8, 8, 3), dtype=np.uint8)  # as make_rows drew it
        if row['verdict'] == 'rejected':
            assert (row['mean'], row['both'], row['bright_kept'], row['bright_reason']) == (None, None, None, None)
        else:
            assert row['mean'] == image.mean(dtype=np.float64)
            assert row['both'] == [np.float32(row['mean']), np.float32(row['before'])]
            assert row['bright_kept'] == (row['mean'] > 128)
            assert row['bright_reason'] == (None if row['bright_kept'] else f'mean {row["mean"]:.1f} not above 128')
    chosen = select(store, scored.select)
    assert chosen.table['id'].to_pylist() == sorted(r['id'] for r in rows if r['bright_kept'])
    assert dict(chosen.counts) == {name: one.kept for name, one in scored.per_class.items()}
    for label, name in enumerate(CLASSES):
        mine = [r for r in rows if r['label'] == label and r['mean'] is not None]
        assert scored.per_class[name].means['mean'] == pytest.approx(np.mean([r['mean'] for r in mine]))
        rejected = sum(not r['bright_kept'] for r in mine)
        assert scored.per_class[name].rejected == rejected
        assert sum(scored.per_class[name].reasons.values()) == rejected
    assert 'mean ... not above 128' in scored.table()


def test_the_whole_store_is_one_block_whatever_the_batch_size(tmp_path: Path) -> None:
    found = []
    for size in (1, 5, 64):
        store = make_store(tmp_path / f'store{size}')
        Brightness.begun = 0
        score(store.folder, recipe(size), 'bright', 'cpu', quiet=True)
        rows = sorted((r for r in store.index().to_pylist() if r['mean'] is not None), key=lambda r: r['id'])
        assert [r['before'] for r in rows] == [-1.0, *np.maximum.accumulate([r['mean'] for r in rows])[:-1]]
        found.append([(r['id'], r['both'], r['bright_kept'], r['bright_reason']) for r in rows])
    assert found[0] == found[1] == found[2]


def test_rejected_images_are_looked_at_on_request(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store', keep_rejected=True)
    score(store.folder, recipe(), 'bright', 'cpu', rejected=True, quiet=True)
    assert store.index()['mean'].null_count == 0


def test_scores_are_replaced_only_on_request_and_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / 'store')
    score(store.folder, recipe(), 'bright', 'cpu', quiet=True)
    before = tree(store.folder)
    with pytest.raises(StoreError, match=r"has scores 'bright' already.*--overwrite"):
        score(store.folder, recipe(), 'bright', 'cpu', quiet=True)
    with pytest.raises(StoreError, match=r"has a column 'mean' already\. .*--prefix"):
        score(store.folder, recipe(), 'second', 'cpu', quiet=True)
    for trouble, raised in ((KeyboardInterrupt(), Stopped), (RuntimeError('broken'), RuntimeError), (OSError(28, 'full'), OSError)):
        monkeypatch.setattr(Brightness, 'trouble', trouble)
        with pytest.raises(raised):
            score(store.folder, recipe(4), 'bright', 'cpu', overwrite=True, quiet=True)
        assert tree(store.folder) == before
    monkeypatch.setattr(Brightness, 'trouble', None)
    score(store.folder, recipe(), 'second', 'cpu', prefix='second_', quiet=True)
    score(store.folder, recipe(limit=0.0), 'bright', 'cpu', overwrite=True, quiet=True)
    table = store.index()
    assert table['second_mean'].equals(table['mean'])
    assert all(table['bright_kept'].drop_null().to_pylist())
    assert not all(table['second_kept'].drop_null().to_pylist())
    assert verify(store) == []


def test_scores_that_another_process_wrote_meanwhile_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / 'store')

    def wait_for_the_other(self: Brightness, classes: Any, real_images: Any) -> None:
        monkeypatch.setattr(Brightness, 'check', lambda *_: None)
        score(store.folder, recipe(limit=0.0), 'bright', 'cpu', quiet=True)

    monkeypatch.setattr(Brightness, 'check', wait_for_the_other)
    with pytest.raises(StoreError, match='already'):
        score(store.folder, recipe(limit=255.0), 'bright', 'cpu', quiet=True)
    assert all(store.index()['bright_kept'].drop_null().to_pylist())


def test_scores_know_what_made_them(tmp_path: Path, photos: Path) -> None:
    store = make_store(tmp_path / 'store')
    score(store.folder, recipe(limit=3.0), 'a', 'cpu', quiet=True)
    score(store.folder, recipe(data=photos, needs_real=True), 'b', 'cpu', prefix='b_', quiet=True)
    assert store.scores_made_by('a')['inspectors'] == [{'type': 'Brightness', 'limit': 3.0}]  # type: ignore[index]
    assert 'data_sha256' not in store.scores_made_by('a')  # type: ignore[operator]
    first = store.scores_made_by('b')['data_sha256']  # type: ignore[index]
    Image.new('RGB', (9, 9)).save(photos / 'one' / '0.png')
    score(store.folder, recipe(data=photos, needs_real=True), 'b', 'cpu', prefix='b_', overwrite=True, quiet=True)
    assert store.scores_made_by('b')['data_sha256'] != first  # type: ignore[index]


def test_scores_of_damaged_images_are_not_made(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    tar = store.folder / 'shards' / '00002.tar'
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(StoreError, match='is damaged'):
        score(store.folder, recipe(), 'bright', 'cpu', quiet=True)
    assert store.score_files() == []


def test_a_grey_image_is_shown_in_three_channels(tmp_path: Path) -> None:
    store = Store.create(tmp_path / 'store', make_plan(), MADE_BY)
    for block in store.unfinished():
        grey = [replace(row, image=encode(np.full((6, 5), 200, np.uint8), 'png', 90)) for row in make_rows(block)]
        store.publish(block, grey, False)
    score(store.folder, recipe(), 'bright', 'cpu', quiet=True)
    assert set(store.index()['mean'].drop_null().to_pylist()) == {200.0}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in CLASSES:
        (tmp_path / 'photos' / name).mkdir(parents=True)
        Image.new('RGB', (8, 8), 'red').save(tmp_path / 'photos' / name / '0.png')
    return tmp_path / 'photos'


def test_what_cannot_be_scored_is_refused_and_nothing_is_written(tmp_path: Path, photos: Path) -> None:
    store = make_store(tmp_path / 'store')
    before = tree(store.folder)

    def refuses(error: type[SynthAugError], text: str, folder: Path = store.folder, name: str = 'bright', **keys: Any) -> None:
        options = {k: keys.pop(k) for k in ('prefix', 'device') if k in keys}
        with pytest.raises(error, match=text) as caught:
            score(folder, {**recipe(), **keys}, name, options.pop('device', 'cpu'), quiet=True, **options)
        assert caught.value.cure

    refuses(StoreError, 'is not a store', tmp_path)
    refuses(RecipeError, "'Brightnes' is unknown. Did you mean 'Brightness'", inspectors=[{'type': 'Brightnes'}])
    refuses(RecipeError, "has no option 'limits'. Did you mean 'limit'", inspectors=[{'type': 'Brightness', 'limits': 1}])
    refuses(RecipeError, 'none are named. Add --data', inspectors=[{'type': 'Brightness', 'needs_real': True}])
    refuses(RecipeError, "'a-b', cannot begin the name of a column", name='a-b')
    refuses(RecipeError, "'1', cannot begin", prefix='1')
    refuses(RecipeError, "both write the score column 'mean'", inspectors=[{'type': 'Brightness'}] * 2)
    refuses(RecipeError, '--device gpu', device='gpu')
    refuses(DataError, 'does not exist', data=str(tmp_path / 'absent'))
    (photos / 'three').rename(photos / 'four')
    refuses(StoreError, r"only in the store .*\['three'\]; only here: \['four'\]", data=str(photos))
    with store.lock():
        refuses(StoreError, 'Another process is writing')
    assert tree(store.folder) == before
    unfinished = Store.create(tmp_path / 'unfinished', make_plan(), MADE_BY)
    unfinished.publish(unfinished.plan.blocks[0], make_rows(unfinished.plan.blocks[0]), False)
    refuses(StoreError, 'is not finished: 5 blocks are missing', unfinished.folder)
    empty = Store.create(tmp_path / 'empty', make_plan(), MADE_BY)
    for block in empty.unfinished():
        empty.publish(block, [replace(row, verdict='rejected', reason='no') for row in make_rows(block)], True)
    refuses(StoreError, 'has no image to score.*--rejected', empty.folder)
    assert empty.score_files() == []


@pytest.mark.parametrize(
    ('text', 'what'),
    [
        ("generator = dict(type='EDM')\ninspectors = []", 'no score recipe: it has generator'),
        ("inspector = [dict(type='Brightness')]", "unknown key 'inspector'. Did you mean 'inspectors'"),
        ('batch_size = 4', 'names none'),
        ('inspectors = []', 'names none'),
        ("inspectors = [dict(type='Brightness')]\nbatch_size = 0", 'batch_size = 0'),
        ("inspectors = [dict(type='Brightness')]\ndata = 3", 'data = 3'),
        ('inspectors = [', 'cannot be read'),
    ],
)
def test_wrong_score_recipes_are_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / 'r.py').write_text(text)
    with pytest.raises(RecipeError, match=what):
        load_score_recipe(str(tmp_path / 'r.py'))


def test_every_shipped_score_recipe_names_inspectors_and_options_that_exist() -> None:
    from synthaug_plugins.recipes import ROOT
    from synthaug_plugins.registry import build_strict

    paths = sorted((ROOT / 'score').glob('*.py'))
    assert {p.stem for p in paths} >= {'clip_filter', 'real_filter', 'near_duplicates', 'soft_labels'}
    for path in paths:
        assert [build_strict(i, INSPECTORS) for i in load_score_recipe(str(path))['inspectors']]


def test_scoring_through_the_command_line(tmp_path: Path, synthaug: Say) -> None:
    store = make_store(tmp_path / 'store')
    done = synthaug('score', store.folder, 'near_duplicates', '--cfg-options', 'inspectors.0.distance=0')
    assert done.status == 0, done.err
    assert 'phash_distance, near_duplicates_kept, near_duplicates_reason' in done.out
    assert 'select=' not in done.out, 'nothing was rejected'
    assert f'{len(select(store).table)}/' in done.err
    assert len(select(store, 'near_duplicates_kept').table) == len(select(store).table)
    assert store.scores_made_by('near_duplicates')['inspectors'][0]['distance'] == 0  # type: ignore[index]
    refused = synthaug('score', tmp_path, 'near_duplicates')
    assert refused.status == 2
    assert 'not a store' in refused.err
    assert refused.err.count('\n') == 1


def test_what_was_kept_is_named_for_training(tmp_path: Path) -> None:
    (tmp_path / 'bright.py').write_text("inspectors = [dict(type='Brightness')]")
    store = make_store(tmp_path / 'store')
    done = CliRunner().invoke(app, ['score', str(store.folder), str(tmp_path / 'bright.py'), '--cfg-options', 'inspectors.0.limit=127'])
    assert done.exit_code == 0, done.output
    assert "select='bright_kept'" in done.output
    assert store.scores_made_by('bright')['inspectors'] == [{'type': 'Brightness', 'limit': 127.0}]  # type: ignore[index]


@pytest.mark.parametrize(
    ('recipe_name', 'text'),
    [
        ('near_duplicate', "Did you mean 'near_duplicates'"),
        ('digits_real_guidance', 'it has generator'),
        ('real_filter', '--data'),
        ('mmpretrain::resnet/resnet18_8xb16_cifar10.py', 'training recipe'),
    ],
)
def test_wrong_recipes_on_the_command_line_are_refused(tmp_path: Path, recipe_name: str, text: str) -> None:
    store = make_store(tmp_path / 'store')
    refused = CliRunner().invoke(app, ['score', str(store.folder), recipe_name]).exception
    assert isinstance(refused, SynthAugError)
    assert text in str(refused)
    assert store.score_files() == []


def test_scores_equal_those_that_generation_would_have_written(scripted: Any, tmp_path: Path) -> None:  # noqa: F811
    """PNG keeps every pixel, so looking later is looking at the same image."""
    store = generate(scripted(per_class=5), tmp_path / 'store', 'cpu', quiet=True)
    again = {'inspectors': [{'type': 'ImageSanity'}], 'data': None, 'batch_size': 3}
    score(store.folder, again, 'again', 'cpu', prefix='again_', quiet=True)
    table = store.index()
    assert table['again_contrast_std'].to_pylist() == table['contrast_std'].to_pylist()
    assert table['again_kept'].to_pylist() == [True] * 10


def test_a_table_is_plain_and_aligned() -> None:
    from synthaug_plugins.engine.scored import ClassScores, Scored

    per_class = {'cat': ClassScores(10, 2, {'near-duplicate': 2}, {'clip_p': 0.51234}), 'red panda': ClassScores(0, 0)}
    lines = Scored('f', ('clip_p',), per_class).table().split('\n')
    assert lines == [
        'class      kept  rejected  mean clip_p  why',
        'cat          10         2       0.5123  2 near-duplicate',
        'red panda     0         0            -',
    ]
