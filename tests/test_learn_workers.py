"""Learning on several workers: words by classes, embeddings by chunks; what comes of it depends on neither their number nor kills."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image

from conftest import Said, Say, copy_of_this_process
from synthaug_plugins.engine.learn_embeddings import learn_image_embeddings
from synthaug_plugins.engine.learn_embeddings_chunks import Chunks, divide
from synthaug_plugins.engine.learn_embeddings_recipe import complete_embeddings_recipe
from synthaug_plugins.engine.learn_words import learn_class_words
from synthaug_plugins.engine.learn_words_job import WordsJob
from synthaug_plugins.engine.learn_words_recipe import complete_words_recipe
from synthaug_plugins.errors import DataError, RecipeError, Stopped
from synthaug_plugins.executors import local
from synthaug_plugins.executors.local import Local
from synthaug_plugins.learning.embeddings_options import EmbeddingTraining
from synthaug_plugins.learning.words import steps_done
from synthaug_plugins.models.embeddings import Embeddings

CLASSES = ('cat', 'dog', 'table')
# 9 images in chunks of 2: five chunks.
EMBEDDINGS: dict[str, Any] = {
    'training': {'tokens': 2, 'steps': 4, 'batch_size': 2, 'checkpoint_steps': 2, 'shard_size': 3},
    'samples': {'images': 3, 'num_steps': 2},
}
WORDS: dict[str, Any] = {
    'training': {'steps': 4, 'batch_size': 2, 'vectors': 2, 'templates': ['a photo of a {}'], 'checkpoint_steps': 2},
    'samples': {'per_class': 2, 'num_steps': 2, 'max_classes': 2},
}

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp('sd'))


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data')
    for k, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i in range(3):
            Image.fromarray(np.random.default_rng(10 * k + i).integers(0, 255, (20, 28, 3), np.uint8)).save(root / name / f'{i}.png')
    return root


@pytest.fixture(autouse=True)
def _workers_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process, which has loaded everything: new ones take seconds for that."""
    monkeypatch.setattr(local, 'START_METHOD', 'fork')


def words_recipe(sd: Path, data: Path) -> dict[str, Any]:
    return complete_words_recipe({**WORDS, 'model': {'name': str(sd)}, 'data': str(data)})


def embeddings_recipe(sd: Path, data: Path, /, **changes: Any) -> dict[str, Any]:
    return complete_embeddings_recipe({**EMBEDDINGS, 'model': {'name': str(sd)}, 'data': str(data), **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Of the files of a finished run that say nothing of paths and times."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name not in ('learn.json', 'log.jsonl')}


@pytest.fixture(scope='module')
def words(sd: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Words that this process learned alone."""
    with one_thread():
        yield learn_class_words(words_recipe(sd, data), tmp_path_factory.mktemp('words') / 'out', 'cpu', quiet=True).parent


@pytest.fixture(scope='module')
def chunked(sd: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Embeddings that this process learned alone, by chunks."""
    with one_thread():
        yield learn_image_embeddings(embeddings_recipe(sd, data), tmp_path_factory.mktemp('chunked') / 'out', 'cpu', True, Local('cpu', 1)).parent


class one_thread:
    """As the fixture, for fixtures of the module."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def command(synthaug: Say, kind: str, recipe: dict[str, Any], sd: Path, data: Path, out: Path, *options: object) -> Said:
    """`synthaug learn` on a recipe file beside the output."""
    file = out.parent / 'recipe.py'
    file.write_text('\n'.join(f'{key} = {value!r}' for key, value in {**recipe, 'model': {'name': str(sd)}}.items()))
    return synthaug('learn', kind, file, '--data', data, '--out', out, '--device', 'cpu', *options)


def once(folder: Path, name: str, act: Callable[[], None]) -> None:
    """Act the first time that any process comes here."""
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    act()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_words_of_several_workers_are_those_of_one_also_when_a_worker_is_killed(
    sd: Path, data: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthaug: Say
) -> None:
    out, driver = tmp_path / 'out', os.getpid()
    from synthaug_plugins.engine import learn_words_job

    def beat() -> None:
        if os.getpid() != driver and steps_done(out / 'checkpoints', 'dog') == 2:
            once(tmp_path, 'killed', die)

    monkeypatch.setattr(learn_words_job, 'beat', beat)
    assert command(synthaug, 'words', WORDS, sd, data, out, '--workers', 2).status == 0
    assert (tmp_path / 'killed').exists()
    assert contents(out) == contents(words)
    log = [json.loads(line) for line in (out / 'log.jsonl').open()]
    assert [(entry['class'], len(entry['loss'])) for entry in log] == [(name, 4) for name in CLASSES]
    assert not list((out / 'samples').glob('table*'))  # max_classes


def test_a_killed_learning_of_words_goes_on_with_any_number_of_workers(sd: Path, data: Path, words: Path, tmp_path: Path) -> None:
    out, work = tmp_path / 'out', tmp_path / 'out' / 'checkpoints'

    def learn() -> None:
        from synthaug_plugins.engine import learn_words_job

        learn_words_job.beat = lambda: time.sleep(0.2)  # type: ignore[assignment]
        learn_class_words(words_recipe(sd, data), out, 'cpu', True, Local('cpu', 2))

    driver = copy_of_this_process(learn)
    driver.wait_until(lambda: sum(steps_done(work, name) > 0 for name in CLASSES) == 2)
    assert driver.end(signal.SIGKILL).status == -signal.SIGKILL
    assert 0 < sum(steps_done(work, name) for name in CLASSES) < 12
    learn_class_words(words_recipe(sd, data), out, 'cpu', quiet=True)
    assert (out / 'words.safetensors').read_bytes() == (words / 'words.safetensors').read_bytes()


def test_finished_words_start_no_worker(sd: Path, data: Path, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(words)
    monkeypatch.setattr(WordsJob, 'start', lambda *a: pytest.fail('a worker was started'))
    learn_class_words(words_recipe(sd, data), words, 'cpu', quiet=True)
    assert contents(words) == before


def interrupted(*arguments: object) -> Iterator[Any]:
    raise KeyboardInterrupt
    yield


def test_a_stopped_learning_of_words_says_how_far_it_came(sd: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Local, 'run', interrupted)
    with pytest.raises(Stopped, match='holds 0 of 3 words and 0 steps of others'):
        learn_class_words(words_recipe(sd, data), tmp_path / 'out', 'cpu', quiet=True)
    monkeypatch.undo()
    (tmp_path / 'out' / 'checkpoints').mkdir()
    (tmp_path / 'out' / 'checkpoints' / 'checkpoint.json').write_text('{"step": 3}')
    with pytest.raises(RecipeError, match='a checkpoint of an earlier version, one for all classes'):
        learn_class_words(words_recipe(sd, data), tmp_path / 'out', 'cpu', quiet=True)


def test_images_are_divided_by_batches_into_chunks_for_many_workers() -> None:
    ids = [str(i) for i in range(5000)]
    sizes = lambda n, **options: {len(chunk) for chunk in list(divide(ids[:n], EmbeddingTraining(**options), ()).values())[:-1]}  # noqa: E731
    assert sizes(5000, batch_size=50) == {100}  # 50 chunks of whole batches; 64 would need less than two
    assert sizes(500, batch_size=50) == {50}  # no chunk is less than a batch
    assert sizes(5000, batch_size=5, shard_size=64) == {60}  # no more than a shard
    assert sizes(5000, batch_size=50, shard_size=20) == {20}
    assert sizes(5000, batch_size=50, plateau={'window': 10, 'tolerance': 0.1}) == {400}
    for options in ({'batch_size': 7}, {'batch_size': 300, 'shard_size': 17}):
        chunks = divide(ids, EmbeddingTraining(**options), {0, 2})
        assert [i for chunk in chunks.values() for i in chunk] == ids
        assert list(chunks)[:3] == [1, 3, 4]


def test_embeddings_of_several_workers_are_those_of_one_also_when_a_worker_is_killed(
    sd: Path, data: Path, chunked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthaug: Say
) -> None:
    assert [len(list((chunked / 'embeddings' / name).iterdir())) for name in ('shards', 'index')] == [5, 5]
    out, driver = tmp_path / 'out', os.getpid()
    from synthaug_plugins.engine import learn_embeddings_chunks

    def beat() -> None:
        if os.getpid() != driver and (out / 'checkpoints' / '00002' / 'checkpoint.json').exists():
            once(tmp_path, 'killed', die)

    monkeypatch.setattr(learn_embeddings_chunks, 'beat', beat)
    assert command(synthaug, 'embeddings', EMBEDDINGS, sd, data, out, '--workers', 2).status == 0
    assert (tmp_path / 'killed').exists()
    assert contents(out) == contents(chunked)
    assert (out / 'log.jsonl').read_text() == (chunked / 'log.jsonl').read_text()
    assert not (out / 'checkpoints').exists()


def test_a_killed_run_by_chunks_goes_on_as_it_was_divided(sd: Path, data: Path, chunked: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'

    def learn() -> None:
        from synthaug_plugins.engine import learn_embeddings_chunks

        learn_embeddings_chunks.beat = lambda: time.sleep(0.1)  # type: ignore[assignment]
        learn_image_embeddings(embeddings_recipe(sd, data), out, 'cpu', True, Local('cpu', 2))

    driver = copy_of_this_process(learn)
    driver.wait_until(lambda: len(list((out / 'embeddings' / 'index').glob('*.parquet'))) >= 2)
    driver.end(signal.SIGKILL)
    assert Chunks(out)
    with pytest.raises(DataError, match=r"images at work are not among those of this call, such as 'table/"):
        learn_image_embeddings(embeddings_recipe(sd, data, classes=['cat', 'dog']), out, 'cpu', quiet=True)
    changed = embeddings_recipe(sd, data, training={**EMBEDDINGS['training'], 'shard_size': 1})  # of no effect on what is divided
    learn_image_embeddings(changed, out, 'cpu', quiet=True)
    assert contents(out) == contents(chunked)


def test_images_that_were_added_since_the_division_are_learned_too(sd: Path, data: Path, chunked: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Local, 'run', interrupted)
        with pytest.raises(Stopped, match='holds 0 embeddings of 6 images and 0 half learned chunks'):
            learn_image_embeddings(embeddings_recipe(sd, data, shots=2), out, 'cpu', True, Local('cpu', 1))
    assert len(Chunks(out).read()) == 3
    found = Embeddings(learn_image_embeddings(embeddings_recipe(sd, data), out, 'cpu', quiet=True))
    assert len(found) == 9
    assert [len(list((out / 'embeddings' / name).iterdir())) for name in ('shards', 'index')] == [5, 5]


def test_images_at_work_in_one_process_are_not_divided(sd: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    driver = copy_of_this_process(lambda: learn_image_embeddings(embeddings_recipe(sd, data), out, 'cpu', quiet=True))
    driver.wait_until(lambda: (out / 'checkpoints' / 'checkpoint.json').exists())
    driver.end(signal.SIGKILL)
    with pytest.raises(RecipeError, match='holds a run that was not divided among workers, with images at work'):
        learn_image_embeddings(embeddings_recipe(sd, data), out, 'cpu', True, Local('cpu', 2))


@pytest.mark.parametrize(('kind', 'why'), [('edm', 'is one training'), ('minority', 'is one training'), ('erasure', 'erases one class after another')])
def test_what_workers_cannot_share_is_refused_with_the_reason(kind: str, why: str, tmp_path: Path, synthaug: Say) -> None:
    for option in (('--executor', 'ray'), ('--workers', '2')):
        status, _, error = synthaug('learn', kind, 'any', '--out', tmp_path / 'out', *option)
        assert status == 2
        assert f'{option[0]} {option[1]}: `synthaug learn {kind}` {why}' in error
    assert '--executor torchrun: its ranks share the blocks' in synthaug('learn', 'words', 'any', '--out', tmp_path / 'out', '--executor', 'torchrun').err
