"""Generation survives everything: kills, disk, memory, NaN, broken sources; and gives the same bytes afterwards."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Say, command_line, copy_of_this_process
from synthaug_plugins.engine.generate import generate, repair
from synthaug_plugins.engine.recipe import complete, load_recipe, prepare
from synthaug_plugins.errors import DataError, ModelError, QuotaShortfall, RecipeError, StoreError
from synthaug_plugins.generators.base import Generator, NonFiniteImages
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Request, request_id, request_seed
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import verify

# Two blocks of two batches for each of three classes, two evaluations for each batch: what is killed again and again has to be short.
DIGITS = {
    'generator': {'type': 'synthaug_plugins.EDM', 'model': 'embedded:digits_edm', 'sampler': {'num_steps': 2, 'solver': 'euler'}},
    'classes': ['zero', 'one', 'two'],
    'per_class': 6,
    'block_size': 3,
    'batch_size': 2,
}
BLOCKS = 6


def recipe(**keys: object) -> dict:
    return complete({**DIGITS, **keys})


def content(folder: Path) -> list[tuple]:
    """What must be equal between two stores: every row of the index, sha256 of the image among it."""
    table = Store.open(folder).index()
    return [tuple(row.values()) for row in table.to_pylist()]


class Scripted(Generator):
    """Grey images; `trouble(request number) -> str` says what goes wrong with a request."""

    trouble = staticmethod(lambda number: '')
    largest_batch = 10**9
    seen: list[int] = []

    def identity(self):
        return {'type': 'Scripted'}

    def model_classes(self):
        return ['a', 'b']

    def requests(self, part, recipe_seed):
        number = 0
        while True:
            yield Request(request_id(part, number), part.label, part.class_name, request_seed(recipe_seed, part, number), params={'number': number})
            number += 1

    def generate(self, requests):
        type(self).seen.append(len(requests))
        if len(requests) > self.largest_batch:
            raise torch.OutOfMemoryError('CUDA out of memory')
        images = np.stack([np.random.default_rng(r.seed).integers(0, 256, (8, 8, 3)).astype(np.uint8) for r in requests])
        bad = {}
        for i, r in enumerate(requests):
            trouble = self.trouble(r.params['number'])
            if trouble == 'constant':
                images[i] = 7
            if trouble == 'nan':
                bad[i] = f'{r.id}, step 3'
            if trouble == 'disk full':
                raise OSError(28, 'No space left on device')
        if bad:
            raise NonFiniteImages(images, bad)
        return images


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setitem(GENERATORS._module_dict, 'Scripted', Scripted)
    monkeypatch.setattr(Scripted, 'seen', [])
    return lambda **keys: complete({'generator': {'type': 'Scripted'}, 'per_class': 6, 'block_size': 6, 'batch_size': 4, **keys})


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('engine') / 'whole'
    generate(recipe(), out, 'cpu', quiet=True)
    return out


def test_killed_run_resumes_to_the_same_bytes(uninterrupted: Path, tmp_path: Path) -> None:
    """kill -9 at 6 random moments, others in each run of the suite; ids, seeds and content hashes equal the uninterrupted run's, nothing published is redone."""
    seed = int.from_bytes(os.urandom(4), 'big')
    print('seed of the moments:', seed)
    rng, hits, published = random.Random(seed), 0, set()
    whole_s, whole = run_time(tmp_path / 'timing'), content(uninterrupted)
    while hits < 6:
        out = tmp_path / f'killed-{hits}'
        start = time.monotonic()
        process = copy_of_this_process(lambda: generate(recipe(), out, 'cpu', quiet=True))  # noqa: B023
        time.sleep(rng.uniform(0, whole_s))
        if process.end(signal.SIGKILL).status != -signal.SIGKILL:  # it had ended before: this moment hit nothing, and the run is shorter than was thought
            whole_s = min(whole_s, 0.9 * (time.monotonic() - start))
            shutil.rmtree(out)
            continue
        hits += 1
        before = {p: p.stat().st_mtime_ns for p in (out / 'index').glob('0*.parquet')}
        published.add(len(before))
        generate(recipe(), out, 'cpu', quiet=True)
        assert {p: p.stat().st_mtime_ns for p in before} == before
        assert content(out) == whole
        assert not [p.name for p in out.rglob('*') if 'partial' in p.name]
    assert len(published) > 1, 'the kills did not spread over the run'


def run_time(out: Path) -> float:
    """Seconds that the whole run takes."""
    start = time.monotonic()
    generate(recipe(), out, 'cpu', quiet=True)
    return time.monotonic() - start


def test_killed_command_line_resumes(uninterrupted: Path, tmp_path: Path, synthaug: Say) -> None:
    """The same through the command line: a SIGKILLed `synthaug generate`, then the same command again."""
    options = [f'{key}={DIGITS[key]}' for key in DIGITS if key != 'generator']
    options += [f'generator.sampler.{key}={value}' for key, value in DIGITS['generator']['sampler'].items()]
    command = ['generate', 'edm_digits', '--out', str(tmp_path / 's'), '--device', 'cpu', '--cfg-options', *options]
    process = copy_of_this_process(lambda: command_line(*command))
    process.wait_until(lambda: len(list((tmp_path / 's' / 'index').glob('0*.parquet'))) >= 3)
    assert process.end(signal.SIGKILL).status == -signal.SIGKILL
    assert len(Store.open(tmp_path / 's').finished()) < BLOCKS
    assert synthaug(*command).status == 0
    assert [r[:7] for r in content(tmp_path / 's')] == [r[:7] for r in content(uninterrupted)]
    assert not verify(Store.open(tmp_path / 's'))


def test_second_process_on_one_folder_is_refused(tmp_path: Path) -> None:
    generate(recipe(per_class=1), tmp_path / 's', 'cpu', quiet=True)
    with Store.open(tmp_path / 's').lock(), pytest.raises(StoreError, match='writing'):
        generate(recipe(per_class=1), tmp_path / 's', 'cpu', quiet=True)


def test_other_recipe_is_refused_and_names_the_keys(uninterrupted: Path) -> None:
    before = {p: p.read_bytes() for p in uninterrupted.rglob('*') if p.is_file()}
    with pytest.raises(StoreError) as refused:
        generate(recipe(seed=1, generator={**DIGITS['generator'], 'sampler': {'num_steps': 7}}), uninterrupted, 'cpu', quiet=True)
    assert 'seed' in str(refused.value)
    assert 'num_steps' in str(refused.value)
    assert {p: p.read_bytes() for p in uninterrupted.rglob('*') if p.is_file()} == before


def test_repair_redoes_only_what_is_damaged(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / 's'
    shutil.copytree(uninterrupted, out)
    tar = out / 'shards' / '00003.tar'
    tar.write_bytes(tar.read_bytes()[:700])
    (out / 'index' / '00004.parquet').unlink()
    others = {p.name: p.stat().st_mtime_ns for p in (out / 'index').glob('0*.parquet') if p.stem not in ('00003', '00004')}
    assert verify(Store.open(out))
    assert not repair(out, 'cpu', quiet=True)
    assert not verify(Store.open(out))
    assert content(out) == content(uninterrupted)
    assert {n: (out / 'index' / n).stat().st_mtime_ns for n in others} == others


def test_rejected_images_are_replaced_until_the_quota_is_met(scripted, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Scripted, 'trouble', staticmethod(lambda n: {0: 'nan', 2: 'constant', 6: 'constant'}.get(n, '')))
    store = generate(scripted(image={'keep_rejected': True}), tmp_path / 's', 'cpu', quiet=True)
    rows = store.index().to_pylist()
    for label in (0, 1):
        mine = [r for r in rows if r['label'] == label]
        assert [r['verdict'] for r in mine] == ['rejected', 'kept', 'rejected', 'kept', 'kept', 'kept', 'rejected', 'kept', 'kept']
        assert mine[0]['reason'].startswith('not finite')
        assert 'step 3' in mine[0]['reason']
        assert mine[0]['offset'] is None
        assert mine[2]['reason'] == 'constant'
        assert mine[2]['contrast_std'] == 0
    assert not verify(store)


def test_quota_shortfall_is_reported_by_class_with_its_own_status(scripted, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Scripted, 'trouble', staticmethod(lambda n: 'constant' if n > 1 else ''))
    with pytest.raises(QuotaShortfall, match=r'a: 2 of 6 .*10 constant') as short:
        generate(scripted(tries_per_image=2), tmp_path / 's', 'cpu', quiet=True)
    assert short.value.exit_code == 3
    assert Store.open(tmp_path / 's').counts()['b']['kept'] == 2


@pytest.fixture
def mixed(scripted, monkeypatch):
    """Seven classes, of which the first six share two blocks and the last has two of its own."""
    monkeypatch.setattr(Scripted, 'model_classes', lambda self: list('abcdefg'))
    return lambda **keys: scripted(**{'per_class': {**dict.fromkeys('abcdef', 3), 'g': 12}, 'block_size': 10, 'batch_size': 4, **keys})


def test_requests_of_different_classes_share_a_batch_in_a_run(mixed, monkeypatch, tmp_path: Path) -> None:
    batches, make = [], Scripted.generate
    monkeypatch.setattr(Scripted, 'generate', lambda self, requests: (batches.append([r.class_name for r in requests]), make(self, requests))[1])
    store = generate(mixed(), tmp_path / 's', 'cpu', quiet=True)
    assert [''.join(names) for names in batches] == ['aaab', 'bbcc', 'c', 'ddde', 'eeff', 'f', 'gggg', 'gggg', 'gg', 'gg']
    assert not verify(store)


def test_small_classes_share_a_block_and_each_gets_its_quota(mixed, monkeypatch, tmp_path: Path) -> None:
    """What is rejected of one class is made up for by that class, within its own tries, beside the others' top-ups."""
    trouble = {('a', 0), ('a', 3), ('b', 2), ('b', 3), ('b', 4), ('e', 1)} | {('f', n) for n in range(2, 100)}
    batches, make = [], Scripted.generate

    def troubled(self, requests):
        batches.append(''.join(r.class_name for r in requests))
        images = make(self, requests)
        for image, r in zip(images, requests, strict=True):
            if (r.class_name, r.params['number']) in trouble:
                image[:] = 7
        return images

    monkeypatch.setattr(Scripted, 'generate', troubled)
    with pytest.raises(QuotaShortfall, match=r'one class .*f: 2 of 3 after 6 tries \(rejected: 4 constant\)'):
        generate(mixed(tries_per_image=2), tmp_path / 's', 'cpu', quiet=True)
    store = Store.open(tmp_path / 's')
    counts = {name: (c['kept'], c['rejected']) for name, c in store.counts().items()}
    assert counts == {'a': (3, 2), 'b': (3, 3), 'c': (3, 0), 'd': (3, 0), 'e': (3, 1), 'f': (2, 4), 'g': (12, 0)}
    assert batches[:8] == ['aaab', 'bbcc', 'c', 'ab', 'ab', 'b', 'ddde', 'eeff']
    assert not verify(store)
    rows = store.index().to_pylist()
    assert len({r['id'] for r in rows}) == len({r['seed'] for r in rows}) == len(rows)
    # Numbers count over the tries of the whole block: those of `b` begin where those of `a` could end.
    assert [r['id'] for r in rows if r['label'] == 1] == [f'00000_{6 + n:06d}' for n in range(6)]


def test_killed_run_with_mixed_blocks_resumes_to_the_same_bytes(mixed, monkeypatch, tmp_path: Path) -> None:
    """Killed in each of its batches, first waves and top-ups; the shards and indexes are those of a run that was not."""
    monkeypatch.setattr(Scripted, 'trouble', staticmethod(lambda n: {0: 'nan', 2: 'constant'}.get(n, '')))
    recipe = mixed(image={'keep_rejected': True})
    whole = generate(recipe, tmp_path / 'whole' / 'store', 'cpu', quiet=True)
    total, make = len(Scripted.seen), Scripted.generate
    assert total > 10
    for killed_at in range(1, total + 1):
        out = tmp_path / str(killed_at) / 'store'
        pid = os.fork()
        if pid == 0:
            left = [killed_at]

            def dying(self, requests, left=left):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return make(self, requests)

            Scripted.generate = dying
            generate(recipe, out, 'cpu', quiet=True)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        generate(recipe, out, 'cpu', quiet=True)
        for folder in ('shards', 'index'):
            assert {p.name: p.read_bytes() for p in (out / folder).iterdir()} == {p.name: p.read_bytes() for p in (whole.folder / folder).iterdir()}


def test_repair_redoes_a_mixed_block_alone(mixed, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Scripted, 'trouble', staticmethod(lambda n: 'constant' if n == 1 else ''))
    store = generate(mixed(), tmp_path / 's', 'cpu', quiet=True)
    whole = {p: p.read_bytes() for p in store.folder.rglob('0*')}
    shard = store.folder / 'shards' / '00001.tar'
    shard.write_bytes(shard.read_bytes()[:2000])
    others = {p: p.stat().st_mtime_ns for p in whole if p.stem != '00001'}
    Scripted.seen.clear()
    assert not repair(store.folder, 'cpu', quiet=True)
    assert sum(Scripted.seen) == 9 + 3
    assert {p: p.read_bytes() for p in store.folder.rglob('0*')} == whole
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_variants_of_a_small_class_start_from_its_own_images(photos: Path, tmp_path: Path) -> None:
    store = generate(guided(photos, block_size=12, tries_per_image=2), tmp_path / 's', 'cpu', quiet=True)
    assert len(store.plan.blocks) == 1
    assert all(r['source'].startswith(f'{store.classes[r["label"]]}/') for r in store.index().to_pylist())


def test_a_generator_that_mistakes_the_class_is_named(mixed, monkeypatch, tmp_path: Path) -> None:
    make = Scripted.requests
    monkeypatch.setattr(Scripted, 'requests', lambda self, part, seed: (replace(r, label=0) for r in make(self, part, seed)))
    with pytest.raises(ModelError, match=r"Scripted makes the request '00000_000012' of label 0 for the class 'b', whose label is 1"):
        generate(mixed(), tmp_path / 's', 'cpu', quiet=True)


def test_batch_is_halved_when_memory_runs_out_and_remembered(scripted, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Scripted, 'largest_batch', 2)
    generate(scripted(batch_size=6), tmp_path / 's', 'cpu', quiet=True)
    assert Scripted.seen == [6, 3] + [1] * 12, 'a batch size that failed was tried again'
    monkeypatch.setattr(Scripted, 'largest_batch', 10**9)
    generate(scripted(batch_size=6), tmp_path / 'roomy', 'cpu', quiet=True)
    assert content(tmp_path / 's') == content(tmp_path / 'roomy')


def test_memory_errors_are_told_from_other_errors() -> None:
    from synthaug_plugins.engine.judge import out_of_memory

    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert out_of_memory(refused.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError('CUDA out of memory'))
    assert not out_of_memory(RuntimeError('mat1 and mat2 shapes cannot be multiplied'))


def test_memory_too_small_for_one_image_is_said(scripted, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Scripted, 'largest_batch', 0)
    with pytest.raises(ModelError, match='single image'):
        generate(scripted(), tmp_path / 's', 'cpu', quiet=True)


@pytest.mark.skipif(os.geteuid() != 0, reason='a small file system needs root')
def test_full_disk_keeps_finished_blocks_and_goes_on_after(tmp_path: Path) -> None:
    small = tmp_path / 'small'
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=96k', 'tmpfs', str(small)], capture_output=True).returncode:
        pytest.skip('this machine does not let us mount a small file system')
    try:
        with pytest.raises(StoreError, match=r'(?i)space|full'):
            generate(recipe(), small / 's', 'cpu', quiet=True)
        published = len(Store.open(small / 's').finished())
        assert 0 < published < BLOCKS
        subprocess.run(['mount', '-o', 'remount,size=4m', str(small)], check=True)
        generate(recipe(), small / 's', 'cpu', quiet=True)
        assert not verify(Store.open(small / 's'))
    finally:
        subprocess.run(['umount', str(small)], check=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / 'photos'
    rng = np.random.default_rng(0)
    for name in ('one', 'two'):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (12, 10, 3)).astype(np.uint8)).save(root / name / f'{i}.png')
    return root


def guided(photos: Path | None, **keys: object) -> dict:
    generator = {'type': 'synthaug_plugins.RealGuidance', 'model': 'embedded:digits_edm', 'sigma': [0.3, 0.6], 'sampler': {'num_steps': 4}}
    return complete({'generator': generator, 'data': str(photos) if photos else None, 'per_class': 6, 'batch_size': 8, **keys})


def test_own_images_become_variants_that_know_their_source(photos: Path, tmp_path: Path) -> None:
    rows = generate(guided(photos), tmp_path / 's', 'cpu', quiet=True).index().to_pylist()
    assert [r['source'] for r in rows if r['label'] == 0] == ['one/0.png', 'one/1.png', 'one/2.png'] * 2
    assert [json.loads(r['params'])['sigma'] for r in rows if r['label'] == 1] == [0.3] * 3 + [0.6] * 3


def test_truncated_source_is_named_before_anything_is_made(photos: Path, tmp_path: Path) -> None:
    broken = photos / 'two' / '1.png'
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r'1\.png'):
        generate(guided(photos), tmp_path / 's', 'cpu', quiet=True)
    assert not (tmp_path / 's').exists()


@pytest.mark.parametrize(
    ('change', 'error', 'text'),
    [
        ({'generator': {'type': 'RealGuidence'}}, RecipeError, 'RealGuidance'),
        ({'generator': {'type': 'RealGuidance', 'model': 'embedded:digits_edm', 'sigmas': 1}}, RecipeError, "'sigma'"),
        ({'generator': {'type': 'EDM', 'model': 'embedded:digit_edm'}}, ModelError, 'digits_edm'),
        ({'data': None}, RecipeError, '--data'),
        ({'clases': ['a']}, RecipeError, 'classes'),
        ({'classes': ['one', 'three']}, DataError, 'three'),
        ({'generator': 'EDM'}, RecipeError, 'type'),
        ({'generator': {'type': 'os.system', 'command': 'touch pwned'}}, RecipeError, r"'os\.system' is unknown"),
        ({'generator': {'type': 'EDM', 'model': 3}}, RecipeError, 'EDM'),
        ({'inspectors': ['ImageSanity']}, RecipeError, 'type'),
        ({'tries_per_image': float('inf')}, RecipeError, 'tries_per_image'),
        ({'image': None}, RecipeError, 'image'),
        ({'classes': 'three'}, RecipeError, 'list of names'),
        ({'classes': []}, RecipeError, 'list of names'),
        ({'per_class': {'three': 1}}, RecipeError, 'three'),
        ({'per_class': -1}, RecipeError, 'per_class'),
        ({'batch_size': 0}, RecipeError, 'batch_size'),
        ({'image': {'format': 'gif'}}, RecipeError, 'gif'),
        ({'image': {'qualiti': 3}}, RecipeError, 'quality'),
        ({'inspectors': [{'type': 'ImageSanity', 'min_std': -1}]}, RecipeError, 'min_std'),
    ],
    ids=lambda v: str(v)[:40],
)
def test_wrong_recipes_are_refused_with_the_cure(photos: Path, change: dict, error: type, text: str) -> None:
    base = guided(photos)
    with pytest.raises(error, match=text):
        prepare(complete({**base, **change}))


def test_options_may_put_a_dict_in_the_place_of_a_number() -> None:
    options = {'per_class': {'three': 2}, 'generator.guidance_scale': {'three': 3.0}, 'inspectors.0': {'min_std': 2}, 'image': {'size': 4}}
    read = load_recipe(find_recipe('he2023_basic_digits', 'generate'), options)
    assert read['per_class'] == {'three': 2}
    assert read['generator']['guidance_scale'] == {'three': 3.0}
    assert read['inspectors'] == [{'type': 'synthaug_plugins.ImageSanity', 'min_std': 2}]  # a dict over a dict is laid over it
    assert (read['image']['size'], read['image']['format']) == (4, 'png')


def test_class_without_images_is_refused(photos: Path) -> None:
    (photos / 'empty').mkdir()
    with pytest.raises(DataError, match='empty'):
        prepare(guided(photos))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / 'model'
    folder.mkdir()
    torch.save({}, folder / 'model.pth')
    (folder / 'config.json').write_text('{}')
    for name in (folder, folder / 'model.pth'):
        with pytest.raises(ModelError, match='safetensors'):
            prepare(recipe(generator={'type': 'EDM', 'model': str(name)}))


def test_plan_does_not_depend_on_machine_time_or_hash_seed() -> None:
    script = 'import json,sys; from synthaug_plugins.engine.recipe import *; print(prepare(complete(json.loads(sys.argv[1]))).plan.fingerprint)'
    hash_seed = str(random.SystemRandom().randrange(2**32))  # this process has another one
    elsewhere = subprocess.run(
        [sys.executable, '-c', script, json.dumps(DIGITS)], env={**os.environ, 'PYTHONHASHSEED': hash_seed}, capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == prepare(recipe()).plan.fingerprint


def test_blocks_are_announced_to_plugins_with_rows_and_pixels(scripted, tmp_path: Path) -> None:
    from synthaug_plugins.hookspecs import hookimpl
    from synthaug_plugins.plugins import get_plugin_manager

    calls = []

    class Plugin:
        @hookimpl
        def synthaug_before_block(self, block):
            calls.append(('before', block.index))

        @hookimpl
        def synthaug_after_block(self, block, rows, images):
            assert len(rows) == len(images) == 6
            assert images[0].shape == (8, 8, 3)
            calls.append(('after', block.index))

    manager, plugin = get_plugin_manager(), Plugin()
    manager.register(plugin)
    try:
        generate(scripted(), tmp_path / 's', 'cpu', manager.hook, quiet=True)
    finally:
        manager.unregister(plugin)
    assert calls == [('before', 0), ('after', 0), ('before', 1), ('after', 1)]


@pytest.mark.parametrize(
    ('size', 'fit', 'expected'), [(None, 'crop', (8, 8)), ('source', 'crop', (10, 10)), ('source', 'squash', (12, 10)), (24, 'crop', (24, 24))]
)
def test_images_come_in_the_size_asked_for_undistorted(photos: Path, tmp_path: Path, size: object, fit: str, expected: tuple[int, int]) -> None:
    """A cropped square stays a square; only an image that was squashed is stretched back to its source's shape."""
    from synthaug_plugins.store.reader import StoreReader

    made = guided(photos, image={'size': size})
    made['generator']['fit'] = fit
    row = generate(made, tmp_path / 's', 'cpu', quiet=True).index().to_pylist()[0]
    import io

    image = Image.open(io.BytesIO(StoreReader(tmp_path / 's').read(row['shard'], row['offset'], row['size'])))
    assert (image.height, image.width) == expected


def test_size_of_a_turned_photo_is_that_of_its_pixels(tmp_path: Path) -> None:
    from synthaug_plugins.real_images import RealImages

    (tmp_path / 'a').mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (20, 10)).save(tmp_path / 'a' / 'x.jpg', exif=exif)
    images = RealImages(tmp_path)
    assert images.load('a/x.jpg').shape == (20, 10, 3)
    assert images.size('a/x.jpg') == (10, 20)


def test_a_strangers_store_runs_no_code_when_repaired(uninterrupted: Path, tmp_path: Path) -> None:
    """The recipe inside store.json names registered generators only; a dotted path of any module is refused."""
    out = tmp_path / 's'
    shutil.copytree(uninterrupted, out)
    card = json.loads((out / 'store.json').read_text())
    card['made_by']['recipe']['generator'] = {'type': 'os.system', 'command': f'touch {tmp_path}/pwned'}
    (out / 'store.json').write_text(json.dumps(card))
    (out / 'index' / '00001.parquet').unlink()
    with pytest.raises(RecipeError, match='unknown'):
        repair(out, 'cpu', quiet=True)
    assert not (tmp_path / 'pwned').exists()


def test_sixteen_bit_images_keep_their_grey_levels(tmp_path: Path) -> None:
    from synthaug_plugins.real_images import RealImages

    (tmp_path / 'a').mkdir()
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / 'a' / 'x.png')
    assert np.array_equal(RealImages(tmp_path).load('a/x.png')[..., 0].ravel(), np.arange(256))


def test_images_outside_the_folder_are_not_opened(photos: Path) -> None:
    from synthaug_plugins.real_images import RealImages

    Image.new('RGB', (4, 4)).save(photos.parent / 'secret.png')
    for name in ('../secret.png', str(photos.parent / 'secret.png')):
        with pytest.raises(DataError, match='not an image of'):
            RealImages(photos).load(name)


def test_weights_that_do_not_fit_leave_no_store_behind(tmp_path: Path) -> None:
    """Header and config are compared before anything is made, so the corrected command may use the same folder."""
    from synthaug_plugins.weights import model_folder

    model = tmp_path / 'model'
    shutil.copytree(model_folder('embedded:digits_edm'), model)
    config = json.loads((model / 'config.json').read_text())
    weights = (model / 'model.safetensors').read_bytes()
    config['network']['channels'] *= 2
    (model / 'config.json').write_text(json.dumps(config))
    bad = recipe(generator={**DIGITS['generator'], 'model': str(model)})
    with pytest.raises(ModelError, match='do not fit'):
        generate(bad, tmp_path / 's', 'cpu', quiet=True)
    for content_ in (weights[:-100], b'\x80\x04}'):
        (model / 'model.safetensors').write_bytes(content_)
        with pytest.raises(ModelError, match='safetensors'):
            generate(bad, tmp_path / 's', 'cpu', quiet=True)
    assert not (tmp_path / 's').exists()
