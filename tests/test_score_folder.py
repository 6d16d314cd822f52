"""Scores of real images; and a scoring that was killed goes on where it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_store import make_store, tree

from conftest import Say, copy_of_this_process, digits
from synthaug_plugins.curation.base import Inspector, Verdicts
from synthaug_plugins.engine import score_run
from synthaug_plugins.engine.progress import ScoringProgress
from synthaug_plugins.engine.score import score
from synthaug_plugins.engine.score_folder import read_folder_scores, score_folder
from synthaug_plugins.errors import DataError, RecipeError, Stopped, SynthAugError
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import INSPECTORS
from synthaug_plugins.store.lease import LEASE
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.table import made_by_of, parquet_bytes
from synthaug_plugins.store.verify import verify

NAMES = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']


class Logging(Inspector):
    """Notes in a file which images it was shown."""

    def __init__(self, log: str, factor: float = 1.0) -> None:
        self.log, self.factor = log, factor

    def identity(self) -> dict[str, Any]:
        return {'type': 'Logging', 'factor': self.factor}

    def inspect(self, requests: Any, images: Any) -> Verdicts:
        with open(self.log, 'a') as file:
            file.writelines(f'{r.id}\n' for r in requests)
        means = np.array([self.factor * image.mean(dtype=np.float64) for image in images])
        lists = np.stack([image[0, :3, 0] for image in images]).astype(np.float32)
        return Verdicts([None if r.label else 'a first one' for r in requests], {'bright': np.where(means > 130, np.nan, means), 'row': lists})


class Remembering(Logging):
    def begin_block(self) -> None: ...


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INSPECTORS._module_dict, 'Logging', Logging)
    monkeypatch.setitem(INSPECTORS._module_dict, 'Remembering', Remembering)
    monkeypatch.setattr(score_run, 'PART_IMAGES', 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (('cat', 9), ('dog', 12)):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(tmp_path / 'images' / name / f'{i:02d}.png')
    return tmp_path / 'images'


def recipe(log: Path, kind: str = 'Logging', batch_size: int = 2, **options: Any) -> dict[str, Any]:
    return {'inspectors': [{'type': kind, 'log': str(log), **options}], 'data': None, 'batch_size': batch_size}


def shown(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def killed_after(images: int, run: Callable[[], object]) -> None:
    """Let a process of its own score, and kill it when it has looked at so many images."""

    def looked_at(self: ScoringProgress, number: int) -> None:
        self.done += number
        if self.done >= images:
            print('there')
            signal.pause()

    def call() -> None:
        ScoringProgress.looked_at = looked_at  # type: ignore[method-assign]
        run()

    process = copy_of_this_process(call)
    process.wait_until(process.lines)
    assert process.end(signal.SIGKILL).status == -signal.SIGKILL


def test_real_images_get_a_file_of_scores(folder: Path, tmp_path: Path) -> None:
    before = tree(folder)
    scored = score_folder(folder, recipe(tmp_path / 'log'), tmp_path / 'out' / 's.parquet', 'cpu', name='x', classes=['dog', 'cat'], quiet=True)
    assert tree(folder) == before
    assert os.listdir(tmp_path / 'out') == ['s.parquet']
    real = RealImages(folder)
    table = read_folder_scores(tmp_path / 'out' / 's.parquet', real)
    assert table.column_names == ['id', 'label', 'class_name', 'bright', 'row', 'x_kept', 'x_reason']
    assert table['id'].to_pylist() == [*real.ids('dog'), *real.ids('cat')] == shown(tmp_path / 'log')
    for row in table.to_pylist():
        image = real.load(row['id'])
        assert row['row'] == image[0, :3, 0].tolist()
        assert row['bright'] == (None if image.mean() > 130 else image.mean(dtype=np.float64))
        assert (row['label'], row['x_kept'], row['x_reason']) == ((0, False, 'a first one') if row['class_name'] == 'dog' else (1, True, None))
    assert made_by_of(table)['inspectors'] == [{'type': 'Logging', 'factor': 1.0}]  # type: ignore[index]
    assert (scored.per_class['cat'].kept, scored.per_class['dog'].rejected, scored.columns[0]) == (9, 12, 'bright')
    bright = [row['bright'] for row in table.to_pylist() if row['class_name'] == 'cat' and row['bright'] is not None]
    assert scored.per_class['cat'].means == {'bright': pytest.approx(np.mean(bright))}


def test_a_killed_scoring_goes_on_to_the_same_file(folder: Path, tmp_path: Path) -> None:
    run = lambda out, log, **options: score_folder(folder, recipe(tmp_path / log, **options), tmp_path / out, 'cpu')  # noqa: E731
    run('whole.parquet', 'whole')
    killed_after(10, lambda: run('cut.parquet', 'first'))
    assert not (tmp_path / 'cut.parquet').exists()
    run('cut.parquet', 'second')
    first, second = shown(tmp_path / 'first'), shown(tmp_path / 'second')
    assert len(first) > 8, 'two parts of four, and the beginning of the third, which is lost'
    assert first[:8] + second == shown(tmp_path / 'whole')
    assert (tmp_path / 'cut.parquet').read_bytes() == (tmp_path / 'whole.parquet').read_bytes()
    assert sorted(p.name for p in tmp_path.glob('.*')) == []


def test_a_killed_scoring_of_a_store_goes_on_to_the_same_file(tmp_path: Path) -> None:
    whole, cut = (make_store(tmp_path / name) for name in ('whole', 'cut'))
    score(whole.folder, recipe(tmp_path / 'log'), 'x', 'cpu', quiet=True)
    before = tree(cut.folder)
    killed_after(7, lambda: score(cut.folder, recipe(tmp_path / 'first'), 'x', 'cpu'))
    assert {k: v for k, v in tree(cut.folder).items() if '.scoring-x' not in k and k != LEASE} == before
    (fault,) = verify(cut)
    assert str(fault) == 'scores/.scoring-x: left by a scoring that did not end; the same `synthaug score` goes on with it'
    score(cut.folder, recipe(tmp_path / 'second'), 'x', 'cpu', quiet=True)
    assert shown(tmp_path / 'first')[:8] + shown(tmp_path / 'second') == shown(tmp_path / 'log')
    assert tree(cut.folder)['scores/x.parquet'] == tree(whole.folder)['scores/x.parquet']
    assert verify(cut) == []


@pytest.mark.parametrize('what', ['recipe', 'batch', 'images', 'damage', 'lost', 'remembers'])
def test_scores_of_another_run_are_not_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    options: dict[str, Any] = {'kind': 'Remembering'} if what == 'remembers' else {}
    calls = iter(range(99))

    def looked_at(self: ScoringProgress, images: int) -> None:
        if next(calls) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(ScoringProgress, 'looked_at', looked_at)
    with pytest.raises(Stopped, match=r'starts again' if options else r'14 of 21 images are done\. The same command goes on'):
        score_folder(folder, recipe(tmp_path / 'first', **options), tmp_path / 's.parquet', 'cpu')
    done = 0
    if what == 'recipe':
        options['factor'] = 2.0
    elif what == 'batch':
        options['batch_size'] = 3
    elif what == 'images':
        Image.new('RGB', (5, 6)).save(folder / 'dog' / '11.png')
    elif what == 'damage':
        done, part = 4, tmp_path / '.scoring-s' / '00001.parquet'
        part.write_bytes(part.read_bytes()[:-9])
    elif what == 'lost':
        done = 4
        (tmp_path / '.scoring-s' / '00001.parquet').unlink()
    score_folder(folder, recipe(tmp_path / 'second', **options), tmp_path / 's.parquet', 'cpu', quiet=True)
    assert len(shown(tmp_path / 'second')) == 21 - done
    score_folder(folder, recipe(tmp_path / 'third', **options), tmp_path / 't.parquet', 'cpu', quiet=True)
    assert (tmp_path / 's.parquet').read_bytes() == (tmp_path / 't.parquet').read_bytes()


def test_what_cannot_be_scored_is_refused_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    def refuses(error: type[SynthAugError], text: str, out: str = 's.parquet', **options: Any) -> None:
        keys = {k: options.pop(k) for k in ('inspectors', 'data') if k in options}
        with pytest.raises(error, match=text) as caught:
            score_folder(options.pop('folder', folder), {**recipe(tmp_path / 'log'), **keys}, tmp_path / out, 'cpu', quiet=True, **options)
        assert caught.value.cure

    refuses(DataError, 'does not exist', folder=tmp_path / 'absent')
    refuses(RecipeError, 'ends with .parquet', 's.csv')
    refuses(RecipeError, 'lies within the images', 'images/scores/s.parquet')
    refuses(RecipeError, "'a-b', cannot begin", name='a-b')
    refuses(DataError, r"only in the recipe \['cow'\], only in the folder \['dog'\]", classes=['cat', 'cow'])
    refuses(DataError, 'does not exist', data=str(tmp_path / 'absent'))
    refuses(RecipeError, 'none are named', inspectors=[{'type': 'RealFilter'}])
    refuses(RecipeError, 'both write the score column', inspectors=recipe(tmp_path / 'log')['inspectors'] * 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['images', 'log']
    score_folder(folder, recipe(tmp_path / 'log'), tmp_path / 's.parquet', 'cpu', quiet=True)
    refuses(RecipeError, 'exists already.*--overwrite')
    score_folder(folder, recipe(tmp_path / 'log'), tmp_path / 's.parquet', 'cpu', quiet=True, overwrite=True)


def test_two_processes_do_not_write_one_file(folder: Path, tmp_path: Path) -> None:
    def meanwhile(self: Logging, *_: Any) -> None:
        Logging.setup = Inspector.setup  # type: ignore[method-assign]
        for _ in range(2):  # who is refused takes nothing away from who is not
            with pytest.raises(RecipeError, match='Another process is writing'):
                score_folder(folder, recipe(tmp_path / 'log'), tmp_path / 's.parquet', 'cpu', quiet=True)

    Logging.setup = meanwhile  # type: ignore[method-assign]
    score_folder(folder, recipe(tmp_path / 'log'), tmp_path / 's.parquet', 'cpu', quiet=True)
    assert len(shown(tmp_path / 'log')) == 21


def test_a_file_that_holds_no_scores_of_these_images_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / 's.parquet'
    score_folder(folder, recipe(tmp_path / 'log'), out, 'cpu', quiet=True)
    table = pq.read_table(out)
    for file, text, write in (
        ('absent.parquet', 'cannot be read', lambda path: None),
        ('text.parquet', 'cannot be read', lambda path: path.write_text('x')),
        ('other.parquet', 'no scores of a folder', lambda path: pq.write_table(table.replace_schema_metadata(None), path)),
        ('changed.parquet', 'changed by hand', lambda path: pq.write_table(table.slice(1), path)),
    ):
        write(tmp_path / file)
        with pytest.raises(DataError, match=text):
            read_folder_scores(tmp_path / file)
    made_by, forged = made_by_of(table) or {}, tmp_path / 'forged.parquet'
    for rows, said, text in (
        (table, 'me', 'no scores of a folder'),
        (table, {'kind': made_by['kind']}, 'no scores of a folder'),
        (table.drop_columns(['label']), made_by, 'no scores of a folder'),
        (table.slice(1), made_by, 'of other images'),
        (table, {**made_by, 'images_sha256': None}, 'of other images'),
    ):
        forged.write_bytes(parquet_bytes(rows, said))  # type: ignore[arg-type]
        with pytest.raises(DataError, match=text):
            read_folder_scores(forged, RealImages(folder))
    Image.new('RGB', (5, 6)).save(folder / 'dog' / '11.png')
    with pytest.raises(DataError, match='of other images'):
        read_folder_scores(out, RealImages(folder))
    (folder / 'dog').rename(folder / 'wolf')
    with pytest.raises(DataError, match=r"classes \['cat', 'dog'\].*\['cat', 'wolf'\]"):
        read_folder_scores(out, RealImages(folder))


def test_real_digits_are_scored_through_the_command_line(tmp_path: Path, synthaug: Say) -> None:
    for i in range(20):
        (tmp_path / 'digits' / NAMES[digits().target[i]]).mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits().images[i] * 255 / 16).astype(np.uint8)).save(tmp_path / 'digits' / NAMES[digits().target[i]] / f'{i}.png')
    done = synthaug('score', tmp_path / 'digits', 'minority_digits', '--out', tmp_path / 's.parquet', '--cfg-options', 'inspectors.0.draws=2')
    assert done.status == 0, done.err
    assert 'minority_score, minority_score_se, minority_digits_kept' in done.out
    table = read_folder_scores(tmp_path / 's.parquet', RealImages(tmp_path / 'digits'))
    assert table['minority_score'].null_count == 0
    again = synthaug('score', tmp_path / 'digits', 'minority_digits', '--out', tmp_path / 't.parquet', '--cfg-options', 'inspectors.0.draws=2')
    assert again.status == 0
    assert (tmp_path / 't.parquet').read_bytes() == (tmp_path / 's.parquet').read_bytes()
    for options, text in ((['--out', tmp_path / 's.parquet'], 'exists already'), (['--out', tmp_path / 'u.parquet', '--rejected'], '--rejected is for')):
        refused = synthaug('score', tmp_path / 'digits', 'minority_digits', *options)
        assert (refused.status, refused.err.count('\n')) == (2, 1)
        assert text in refused.err
    store = make_store(tmp_path / 'store')
    assert 'takes its scores itself' in synthaug('score', store.folder, 'minority_digits', '--out', tmp_path / 'u.parquet').err


def test_images_are_selected_by_their_score(tmp_path: Path) -> None:
    store = make_store(tmp_path / 'store')
    options = {'type': 'MinorityScore', 'model': 'embedded:digits_edm', 'distance': {'type': 'MSE'}, 'draws': 1, 'use_labels': False}
    score(store.folder, {'inspectors': [options], 'data': None, 'batch_size': 64}, 'rare', 'cpu', quiet=True)
    scores = store.index()['minority_score'].drop_null().to_numpy()
    limit = float(np.median(scores))
    rare = select(store, f'minority_score > {limit}')
    assert len(rare.table) == (scores > limit).sum() > 0
