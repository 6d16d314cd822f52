"""`synthaug plan` says what a run would make and cost, and leaves no trace."""

from __future__ import annotations

import doctest
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Say, copy_of_this_process
from synthaug_plugins.engine import plan_run as module
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.plan_run import plan_run, share_out
from synthaug_plugins.engine.recipe import complete
from synthaug_plugins.errors import DataError, ModelError, RecipeError, StoreError
from synthaug_plugins.generators.base import Generator
from synthaug_plugins.registry import GENERATORS, INSPECTORS
from synthaug_plugins.store.plan import Request, request_id, request_seed

DIGITS = {
    'generator': {'type': 'synthaug_plugins.EDM', 'model': 'embedded:digits_edm', 'sampler': {'num_steps': 2, 'solver': 'euler'}},
    'classes': ['zero', 'one', 'two'],
    'per_class': {'zero': 6, 'one': 6, 'two': 1},
    'block_size': 3,
    'batch_size': 2,
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Slow(Generator):
    """Images of noise, a hundredth of a second each; every second one is of one grey."""

    image_s, seen = 0.01, []

    def identity(self):
        return {'type': 'Slow'}

    def model_classes(self):
        return ['a', 'b']

    def requests(self, part, recipe_seed):
        for n in range(part.max_tries):
            yield Request(request_id(part, n), part.label, part.class_name, request_seed(recipe_seed, part, n), params={'number': n})

    def generate(self, requests):
        import time

        self.seen.append(len(requests))
        time.sleep(self.image_s * len(requests))
        images = np.stack([np.random.default_rng(r.seed).integers(0, 256, (8, 8, 3)).astype(np.uint8) for r in requests])
        images[[r.params['number'] % 2 == 1 for r in requests]] = 7
        return images


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setitem(GENERATORS._module_dict, 'Slow', Slow)
    monkeypatch.setattr(Slow, 'seen', [])
    return lambda **keys: complete({'generator': {'type': 'Slow'}, 'per_class': 64, 'block_size': 64, 'batch_size': 16, **keys})


def made_in(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.relative_to(folder).as_posix(): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob('*'))}


def test_nothing_is_written_anywhere(tmp_path: Path, monkeypatch: Any) -> None:
    """Every file that the process opens to write, makes, moves or removes is heard of; MMEngine's copies of the recipe in the temporary folder go again."""
    from conftest import command_line

    for name in ('home', 'tmp', 'here'):
        (tmp_path / name).mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    monkeypatch.chdir(tmp_path / 'here')
    before = made_in(tmp_path)

    def looked_at() -> int:
        changed: list[str] = []

        def heard(event: str, arguments: tuple[Any, ...]) -> None:
            path = str(arguments[0]) if arguments else ''
            writes = event == 'open' and isinstance(arguments[2], int) and arguments[2] & WRITES and not path.startswith('/dev/')
            of_tmp = str(tmp_path / 'tmp') in path or (event == 'os.remove' and arguments[1] != -1)  # in an open folder: shutil.rmtree
            if (writes or event in ('os.mkdir', 'os.rename', 'os.remove', 'os.link', 'os.symlink', 'os.truncate')) and not of_tmp:
                changed.append(f'{event} {path}')

        sys.addaudithook(heard)
        status = command_line('plan', 'edm_digits', '--out', tmp_path / 'here' / 'store', '--trial', '0.01', '--device', 'cpu')
        print(changed, file=sys.stderr)
        return status or (7 if changed else 0)

    ended = copy_of_this_process(looked_at).end()
    assert ended.status == 0, ended.err
    assert 'images/s' in ended.out
    assert {name: size for name, (size, _) in made_in(tmp_path).items()} == {name: size for name, (size, _) in before.items()}


def test_sentences_that_a_language_model_has_still_to_write_are_said_and_not_written(slow, monkeypatch: Any, tmp_path: Path) -> None:
    from synthaug_plugins.prompts.enhance import Enhanced

    prompts = Enhanced(model='embedded:digits_t5', cache=str(tmp_path / 'sentences'))
    monkeypatch.setattr(Slow, 'prepare', lambda self, classes, say: prompts.prepare(classes, say))
    make = Slow.requests
    monkeypatch.setattr(Slow, 'requests', lambda self, part, seed: (replace(r, prompt=prompts.prompt(r.class_name, seed, 0)) for r in make(self, part, seed)))
    monkeypatch.setattr(Enhanced, '_write', lambda *_: pytest.fail('sentences were written'))
    text = plan_run(slow(classes=['three', 'four']), trial_s=0).text()
    assert 'three: "a photo of three"' in text
    assert str(prompts.file) in text
    assert 'are written first' in text
    assert not list(tmp_path.iterdir())
    assert prompts.file is not None
    prompts.file.parent.mkdir()
    prompts.file.write_text('{"class": "three", "sentence": "a three on a door"}\n')
    text = plan_run(slow(classes=['three', 'four']), trial_s=0).text()
    assert 'three: "a photo of a three on a door"' in text
    assert 'are written first' not in text


def test_without_a_trial_no_weights_load(monkeypatch: Any) -> None:
    from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator

    monkeypatch.setattr(DenoiserGenerator, 'denoiser', lambda self: pytest.fail('weights were loaded'))
    found = plan_run(complete(DIGITS), trial_s=0)
    assert (found.seconds(1), found.bytes()) == (None, None)
    assert 'none: no trial was made' in found.text()


def test_counts_are_those_of_the_run_and_what_is_made_is_not_counted_again(tmp_path: Path) -> None:
    recipe = complete(DIGITS)
    text = plan_run(recipe, trial_s=0, out=tmp_path / 's').text()
    assert '13 of 3 classes in 5 blocks of 1 to 3' in text
    assert 'zero 6, one 6, two 1' in text
    assert 'EDM with embedded:digits_edm' in text
    assert not (tmp_path / 's').exists()
    store = generate(recipe, tmp_path / 's', 'cpu', quiet=True)
    for number in (1, 3):
        (store.folder / 'index' / f'{number:05d}.parquet').unlink()
    before = made_in(tmp_path)
    assert '6 images in 2 blocks; the others are in' in plan_run(recipe, trial_s=0, out=tmp_path / 's').text()
    with pytest.raises(StoreError, match='seed'):
        plan_run(complete({**DIGITS, 'seed': 1}), trial_s=0, out=tmp_path / 's')
    assert made_in(tmp_path) == before


def test_the_estimate_is_near_the_run_and_the_disk_to_the_byte(slow, tmp_path: Path) -> None:
    """Half of the images are rejected, which the estimate heeds; a trial of a whole block knows its size exactly."""
    import time

    recipe = slow()
    found = plan_run(recipe, 'cpu', trial_s=3)
    assert found.trial is not None
    assert (found.trial.images, found.trial.kept, found.trial.whole_block) == (64, 32, True)
    assert '32 of 64 were rejected' in found.text()
    started = time.monotonic()
    store = generate(recipe, tmp_path / 's', 'cpu', quiet=True)
    seconds = found.seconds(1)
    assert seconds == pytest.approx(256 * Slow.image_s, rel=0.3)  # 128 wanted, twice as many tries
    assert seconds == pytest.approx(time.monotonic() - started, rel=0.3)
    files = [p for name in ('shards', 'index') for p in (store.folder / name).glob('0*')]
    assert found.bytes() == pytest.approx(sum(p.stat().st_size for p in files), rel=0.05)


def test_the_trial_keeps_to_its_seconds_and_says_what_it_did_not_reach(slow) -> None:
    found = plan_run(slow(), 'cpu', trial_s=0.1, workers=64)
    assert found.trial is not None
    assert sum(Slow.seen) * Slow.image_s < 0.1 + 2 * Slow.image_s
    assert 'batches of 16 were not reached' in found.text()
    assert 'no more workers than blocks have work' in found.text()
    assert max(map(len, found.text().splitlines())) <= 80


def test_a_trial_that_runs_out_of_memory_says_the_batch_that_fits(slow, monkeypatch: Any) -> None:
    make = Slow.generate
    monkeypatch.setattr(Slow, 'image_s', 0.0)
    monkeypatch.setattr(Slow, 'generate', lambda self, requests: make(self, requests) if len(requests) <= 4 else exec('raise MemoryError'))
    assert re.search(r'at most 4 images at a time; memory ran\s+out with more, so set batch_size=4', plan_run(slow(), 'cpu', trial_s=5).text())


def test_what_the_run_would_refuse_the_plan_refuses(tmp_path: Path, synthaug: Say) -> None:
    (tmp_path / 'photos' / 'one').mkdir(parents=True)
    photo = tmp_path / 'photos' / 'one' / 'cut.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)).save(photo)
    photo.write_bytes(photo.read_bytes()[:100])
    guided = {'generator': {'type': 'synthaug_plugins.RealGuidance', 'model': 'embedded:digits_edm', 'sigma': 0.3}, 'data': str(tmp_path / 'photos')}
    with pytest.raises(DataError, match=r'cut\.png'):
        plan_run(complete(guided), trial_s=0)
    with pytest.raises(ModelError, match='digits_edm'):
        plan_run(complete({**DIGITS, 'generator': {'type': 'EDM', 'model': 'embedded:digit_edm'}}), trial_s=0)
    with pytest.raises(RecipeError, match='three'):
        plan_run(complete({**DIGITS, 'per_class': {'three': 1}}), trial_s=0)
    with pytest.raises(StoreError, match='not a store'):
        plan_run(complete(DIGITS), trial_s=0, out=tmp_path)
    assert synthaug('plan', 'mmpretrain::resnet/resnet18_8xb16_cifar10.py').status == 2


def test_every_shipped_inspector_lets_a_trial_leave_it_as_it_was(slow, monkeypatch: Any) -> None:
    """A trial makes its first images several times over; an inspector that remembers those of a block finds no repetition."""
    INSPECTORS.import_from_location()
    monkeypatch.setattr(Slow, 'image_s', 0.0)
    recipe = slow(inspectors=[{'type': 'synthaug_plugins.NearDuplicates'}])
    found = plan_run(recipe, 'cpu', trial_s=5)
    assert found.trial is not None
    assert found.trial.kept >= 32


def test_workers_share_blocks_as_long_as_there_are_some_and_the_driver_keeps_up() -> None:
    assert share_out([10.0] * 64, 4, 2, 0) == 2 + 160
    assert share_out([10.0] * 3, 2, 2, 0) == 22  # one of them makes two blocks
    assert share_out([10.0] * 3, 99, 2, 0) == 12
    assert share_out([1.0] * 1000, 1000, 0, 0.5) > 500  # a driver that takes half a second for a block cannot feed a thousand
    assert share_out([], 4, 2) == 0


def test_the_examples_of_the_module_are_true() -> None:
    assert doctest.testmod(module).failed == 0
