"""Generation by several workers: the bytes of one process, whoever is killed; signals end it within a batch; one run at a time, which is named."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pluggy
import pytest

from conftest import REPO, Copy, Say, command_line, copy_of_this_process
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete
from synthaug_plugins.errors import ModelError, StoreError
from synthaug_plugins.executors import make_executor
from synthaug_plugins.executors.local import Local
from synthaug_plugins.generators.base import Generator
from synthaug_plugins.hookspecs import PROJECT, hookimpl
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Request, request_id, request_seed
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import verify


class Noisy(Generator):
    """Noise, a hundredth of a second per batch; `trouble(request id)` is called with each request."""

    trouble: Callable[[str], object] = staticmethod(lambda name: None)
    version = 1

    def identity(self):
        return {'type': 'Noisy', 'version': self.version}

    def model_classes(self):
        return ['a', 'b', 'c']

    def requests(self, part, recipe_seed):
        number = 0
        while True:
            yield Request(request_id(part, number), part.label, part.class_name, request_seed(recipe_seed, part, number))
            number += 1

    def generate(self, requests):
        time.sleep(0.01)
        for request in requests:
            self.trouble(request.id)
        return np.stack([np.random.default_rng(r.seed).integers(0, 256, (8, 8, 3)).astype(np.uint8) for r in requests])


@pytest.fixture(autouse=True)
def _noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GENERATORS._module_dict, 'Noisy', Noisy)
    monkeypatch.setattr(Noisy, 'trouble', staticmethod(lambda name: None))


def recipe(**keys: object) -> dict:
    return complete({'generator': {'type': 'Noisy'}, 'per_class': 10, 'block_size': 5, 'batch_size': 2, **keys})


RECIPE_TEXT = "generator = dict(type='Noisy')\nper_class = 10\nblock_size = 5\nbatch_size = 2\n"


def files(folder: Path) -> dict[str, bytes]:
    """What does not say when it was made, or where."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob('*'))
        if p.is_file() and p.name not in ('store.json', 'cost.json', '_info.json')
    }


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp('whole') / 's'
    GENERATORS._module_dict['Noisy'] = Noisy
    generate(recipe(), out, 'cpu', quiet=True)
    return files(out)


def first_time(folder: Path, name: str) -> bool:
    """Whether something of that name happens for the first time, in whatever process."""
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def until(path: Path) -> None:
    """Wait, shorter than a worker may be silent, for a file of another process: a fast one would make all images before the other has begun."""
    give_up = time.monotonic() + 1
    while not path.exists() and time.monotonic() < give_up:
        time.sleep(0.01)


def check_whole(out: Path, whole: dict[str, bytes]) -> None:
    assert files(out) == whole
    assert not verify(Store.open(out))


@pytest.mark.parametrize('workers', [2, 3])
def test_several_workers_make_the_bytes_of_one(workers: int, whole: dict[str, bytes], tmp_path: Path, forked_workers: None) -> None:
    store = generate(recipe(), tmp_path / 's', quiet=True, executor=Local('cpu', workers))
    check_whole(tmp_path / 's', whole)
    assert store.made_by['cost']['images'] == 30
    assert store.made_by['cost']['seconds'] > 0.15  # of all workers together: 18 batches
    assert store.made_by['cost']['runs'] == 1
    assert store.made_by['device'].startswith(f'{workers} of ')
    assert (tmp_path / 's' / 'shards' / '_info.json').is_file()


def test_a_killed_workers_block_is_made_again(whole: dict[str, bytes], tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a block, and in the middle of publishing one, which leaves a temporary file."""
    from synthaug_plugins.store import files as store_files

    def killed(name: str) -> None:
        if name == '00002_000003' and first_time(tmp_path, 'in a block'):
            os.kill(os.getpid(), signal.SIGKILL)

    commit = store_files.commit

    def killed_before(staged: Path, path: Path) -> None:
        if path.name == '00004.parquet' and first_time(tmp_path, 'in publishing'):
            os.kill(os.getpid(), signal.SIGKILL)
        commit(staged, path)

    monkeypatch.setattr(Noisy, 'trouble', staticmethod(killed))
    monkeypatch.setattr(store_files, 'commit', killed_before)
    generate(recipe(), tmp_path / 's', quiet=True, executor=Local('cpu', 2))
    assert (tmp_path / 'in a block').exists() and (tmp_path / 'in publishing').exists()
    check_whole(tmp_path / 's', whole)


def test_a_worker_that_hangs_is_replaced(whole: dict[str, bytes], tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noisy, 'trouble', staticmethod(lambda name: name == '00001_000002' and first_time(tmp_path, 'hung') and time.sleep(60)))
    generate(recipe(), tmp_path / 's', quiet=True, executor=make_executor(device='cpu', stall_timeout=1.0))
    assert (tmp_path / 'hung').exists()
    check_whole(tmp_path / 's', whole)


def test_a_refusal_in_a_worker_ends_the_run_and_keeps_what_is_published(tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        if name.startswith('00004'):
            raise ModelError('The model is broken.', 'Mend it.')

    monkeypatch.setattr(Noisy, 'trouble', staticmethod(refuse))
    with pytest.raises(ModelError, match=r'The model is broken\. Mend it\.'):
        generate(recipe(), tmp_path / 's', quiet=True, executor=Local('cpu', 2))
    assert Store.open(tmp_path / 's').finished() >= {0, 1}
    assert not Store.open(tmp_path / 's').partials()


def test_hooks_are_called_where_the_block_is_made(tmp_path: Path, forked_workers: None) -> None:
    class Plugin:
        @hookimpl
        def synthaug_after_block(self, block, rows, images):
            (tmp_path / f'{block.index}').write_text(f'{os.getpid()} {len(rows)} {len(images)}')

    from synthaug_plugins import hookspecs

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Plugin())
    global _hook_of_worker
    _hook_of_worker = manager.hook
    generate(recipe(), tmp_path / 's', hook=manager.hook, quiet=True, executor=Local('cpu', 2), in_worker=hooks_of_worker)
    said = [(tmp_path / str(i)).read_text().split() for i in range(6)]
    assert {one[1:][0] for one in said} == {'5'}
    assert str(os.getpid()) not in {one[0] for one in said}


_hook_of_worker: pluggy.HookRelay


def hooks_of_worker() -> pluggy.HookRelay:
    return _hook_of_worker


def test_another_machine_that_would_make_other_images_refuses(tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker elsewhere reads its own model and images, and compares."""
    from synthaug_plugins.engine import block_job

    start = block_job.BlockJob.start

    def elsewhere(self, device):
        monkeypatch.setattr(block_job, 'machine', lambda: 'another')
        monkeypatch.setattr(Noisy, 'version', 2)
        return start(self, device)

    monkeypatch.setattr(block_job.BlockJob, 'start', elsewhere)
    with pytest.raises(StoreError, match=r'This machine would make other images.*version'):
        generate(recipe(), tmp_path / 's', quiet=True, executor=Local('cpu', 2))


def started(tmp_path: Path, *options: object) -> Copy:
    (tmp_path / 'recipe.py').write_text(RECIPE_TEXT)
    run = copy_of_this_process(lambda: command_line('generate', tmp_path / 'recipe.py', '--out', tmp_path / 's', '--device', 'cpu', *options))
    run.wait_until(lambda: len(list((tmp_path / 's' / 'index').glob('0*.parquet'))) >= 2)
    return run


def slow_batches(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(Noisy, 'trouble', staticmethod(lambda name: time.sleep(seconds)))


@pytest.mark.parametrize('options', [(), ('--workers', 2)], ids=['one', 'two'])
@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=['Ctrl-C', 'SIGTERM'])
def test_a_signal_ends_the_run_within_a_batch_and_says_how_to_go_on(
    number: int, status: int, options: tuple, whole: dict[str, bytes], tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch, synthaug: Say
) -> None:
    slow_batches(monkeypatch, 0.1)
    run = started(tmp_path, *options)
    begun = time.monotonic()
    ended = run.end(number)
    assert time.monotonic() - begun < 2
    assert ended.status == status, ended.err
    assert 'of 6 blocks are in' in ended.err
    assert 'The same command goes on from there.' in ended.err
    assert 'Traceback' not in ended.err
    store = Store.open(tmp_path / 's')
    assert 0 < len(store.finished()) < 6
    assert {f.what for f in verify(store)} == {'not made yet, or lost together with its shard'}  # neither half a block nor a lease
    assert not (tmp_path / 's' / 'lease.json').exists()
    slow_batches(monkeypatch, 0)
    assert synthaug('generate', tmp_path / 'recipe.py', '--out', tmp_path / 's', '--device', 'cpu').status == 0
    check_whole(tmp_path / 's', whole)


def test_a_signal_before_anything_is_made_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthaug: Say) -> None:
    monkeypatch.setattr(Noisy, 'check', lambda self, classes: signal.raise_signal(signal.SIGTERM))
    (tmp_path / 'recipe.py').write_text(RECIPE_TEXT)
    ended = synthaug('generate', tmp_path / 'recipe.py', '--out', tmp_path / 's', '--device', 'cpu')
    assert (ended.status, ended.err) == (143, 'synthaug: Stopped: nothing is made yet. The same command goes on from there.\n')


def test_a_second_signal_at_once_does_not_cut_the_tidying_up(tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal and a scheduler both send one."""
    slow_batches(monkeypatch, 0.1)
    run = started(tmp_path, '--workers', 2)
    os.kill(run.pid, signal.SIGINT)
    os.kill(run.pid, signal.SIGINT)
    ended = run.end(signal.SIGTERM)
    assert ended.status == 130
    assert 'The same command goes on' in ended.err


def test_a_killed_driver_takes_its_workers_along_and_the_next_run_begins_at_once(
    whole: dict[str, bytes], tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch, synthaug: Say
) -> None:
    slow_batches(monkeypatch, 0.1)
    run = started(tmp_path, '--workers', 2)
    assert run.end(signal.SIGKILL).status == -signal.SIGKILL
    slow_batches(monkeypatch, 0)
    begun = time.monotonic()
    again = synthaug('generate', tmp_path / 'recipe.py', '--out', tmp_path / 's', '--device', 'cpu')
    assert again.status == 0
    assert time.monotonic() - begun < 5
    assert f'lease is taken over: process {run.pid} on host ' in again.err
    check_whole(tmp_path / 's', whole)


def test_a_second_run_is_refused_with_the_firsts_host_and_process(tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch, synthaug: Say) -> None:
    slow_batches(monkeypatch, 0.1)
    run = started(tmp_path, '--workers', 2)
    second = synthaug('generate', tmp_path / 'recipe.py', '--out', tmp_path / 's', '--device', 'cpu')
    assert second.status == 2
    holder = json.loads((tmp_path / 's' / 'lease.json').read_text())
    assert f'process {run.pid} on host {holder["host"]} (synthaug generate), since 2' in second.err
    run.end(signal.SIGTERM)


@pytest.mark.parametrize(
    ('arguments', 'environment', 'said'),
    [
        (('--executor', 'slurm'), {}, '--executor slurm'),
        (('--address', 'auto'), {}, '--executor ray'),
        (('--workers', '0'), {}, '--workers 0'),
        (('--executor', 'torchrun'), {}, 'torchrun --nproc-per-node'),
        ((), {'RANK': '1', 'WORLD_SIZE': '4'}, '--executor torchrun'),
        (('--executor', 'torchrun', '--workers', '2'), {'RANK': '0', 'WORLD_SIZE': '2'}, '--nproc-per-node'),
        (
            ('--executor', 'torchrun', '--stall-timeout', '0'),
            {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '1'},
            '--stall-timeout 0',
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_loads(
    arguments: tuple, environment: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthaug: Say
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = synthaug('generate', 'edm_digits', '--out', tmp_path / 's', *arguments)
    assert ended.status == 2
    assert said in ended.err
    assert not (tmp_path / 's').exists()


def ranks(tmp_path: Path, *options: object, nodes: int = 2, restarts: int = 0) -> Copy:
    """torchrun's own agent with ranks that are copies of this process: new ones take seconds to load torch and MMEngine."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    (tmp_path / 'recipe.py').write_text(RECIPE_TEXT)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nodes,
        rdzv_backend='c10d',
        rdzv_endpoint='localhost:0',
        start_method='fork',
        max_restarts=restarts,
        run_id='test',
        monitor_interval=0.1,
    )

    def rank() -> None:
        status = command_line('generate', tmp_path / 'recipe.py', '--out', tmp_path / 's', '--device', 'cpu', '--executor', 'torchrun', *options)
        (tmp_path / f'status of rank {os.environ["RANK"]}').write_text(str(status))
        if status:
            os._exit(status)

    def agent() -> None:
        inspect.stack = partial(inspect.stack, 0)  # each event of a rendezvous names its caller, and would read the source of all callers: most of the time
        elastic_launch(config, rank)()

    return copy_of_this_process(agent)


def test_ranks_of_torchrun_share_the_blocks_and_make_the_bytes_of_one(whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by = {}

    def note(name: str) -> None:
        (tmp_path / f'{name} {os.environ["RANK"]}').touch()
        time.sleep(0.02)

    monkeypatch.setattr(Noisy, 'trouble', staticmethod(note))
    ended = ranks(tmp_path).end()
    assert ended.status == 0, ended.err
    check_whole(tmp_path / 's', whole)
    for path in tmp_path.glob('0*_* *'):
        name, rank = path.name.split(' ')
        assert made_by.setdefault(name[:5], rank) == rank, 'a block was made by two ranks'
    assert set(made_by.values()) == {'0', '1'}
    assert Store.open(tmp_path / 's').made_by['cost']['images'] == 30
    assert ended.out.count('30 images of 3 classes') == 1  # one rank speaks


def test_torchrun_starts_its_ranks_again_after_one_died(whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(name: str) -> None:
        if os.environ.get('RANK') == '1' and first_time(tmp_path, 'killed'):
            os.kill(os.getpid(), signal.SIGKILL)
        until(tmp_path / 'killed')

    monkeypatch.setattr(Noisy, 'trouble', staticmethod(killed))
    ended = ranks(tmp_path, restarts=1).end()
    assert ended.status == 0, ended.err
    assert (tmp_path / 'killed').exists()
    check_whole(tmp_path / 's', whole)


def test_a_rank_that_hangs_shows_where_and_ends_itself(whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(name: str) -> None:
        if os.environ.get('RANK') == '1' and first_time(tmp_path, 'hung'):
            time.sleep(60)
        until(tmp_path / 'hung')

    monkeypatch.setattr(Noisy, 'trouble', staticmethod(hang))
    ended = ranks(tmp_path, '--stall-timeout', 2, restarts=1).end()
    assert ended.status == 0, ended.err
    assert 'in hang' in ended.err
    check_whole(tmp_path / 's', whole)


def test_a_refusal_in_a_rank_is_said_and_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        if os.environ['RANK'] == '1':
            raise ModelError('The model is broken.', 'Mend it.')
        time.sleep(0.05)

    monkeypatch.setattr(Noisy, 'trouble', staticmethod(refuse))
    ended = ranks(tmp_path).end()
    assert ended.status == 1
    assert 'synthaug: The model is broken. Mend it.' in ended.err
    assert (tmp_path / 'status of rank 1').read_text() == '2'


def test_sigterm_to_torchrun_ends_its_ranks_which_say_how_to_go_on(whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_batches(monkeypatch, 0.1)
    run = ranks(tmp_path)
    run.wait_until(lambda: list((tmp_path / 's' / 'index').glob('0*.parquet')))
    begun = time.monotonic()
    ended = run.end(signal.SIGTERM)
    assert time.monotonic() - begun < 5
    assert (tmp_path / 'status of rank 0').read_text() == '143'
    assert 'of 6 blocks are in' in ended.err
    assert not (tmp_path / 's' / 'lease.json').exists()
    assert not Store.open(tmp_path / 's').partials()
    slow_batches(monkeypatch, 0)
    generate(recipe(), tmp_path / 's', 'cpu', quiet=True)
    check_whole(tmp_path / 's', whole)


def test_ranks_end_with_a_torchrun_that_is_killed(whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_batches(monkeypatch, 0.1)
    run = ranks(tmp_path)
    run.wait_until(lambda: list((tmp_path / 's' / 'index').glob('0*.parquet')))
    assert run.end(signal.SIGKILL).status == -signal.SIGKILL
    slow_batches(monkeypatch, 0)
    begun = time.monotonic()
    while True:
        try:
            generate(recipe(), tmp_path / 's', 'cpu', quiet=True)
            break
        except StoreError:  # the kernel has not yet told the ranks
            assert time.monotonic() - begun < 3
            time.sleep(0.05)
    check_whole(tmp_path / 's', whole)


def test_a_rank_whose_torchrun_was_killed_before_it_had_begun_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait ten minutes for a rendezvous that is gone, and hold the store all the while."""
    for name, value in {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '1', 'TORCHELASTIC_RUN_ID': 'x'}.items():
        monkeypatch.setenv(name, value)

    def torchrun() -> None:
        torchrun_is = os.getpid()
        if not os.fork():
            while os.getppid() == torchrun_is:
                time.sleep(0.01)
            print(command_line('generate', 'edm_digits', '--out', tmp_path / 's', '--executor', 'torchrun', '--device', 'cpu'))

    process, begun = copy_of_this_process(torchrun), time.monotonic()
    while not process.lines():
        assert time.monotonic() - begun < 20
        time.sleep(0.01)
    ended = process.end()
    assert (ended.out, 'torchrun ended before' in ended.err) == ('1\n', True), ended.err
    assert not (tmp_path / 's').exists()


@pytest.mark.slow
def test_the_slurm_script_of_the_docs_runs_and_goes_on(tmp_path: Path) -> None:
    """As it stands there, with real torchruns: `srun` starts one for each of two machines, both of which are this one."""
    page = (REPO / 'docs' / 'slurm.md').read_text()
    script = page.partition('```bash\n')[2].partition('```')[0]
    stubs = (
        f'scontrol() {{ echo localhost; }}\ntorchrun() {{ {sys.executable} -m torch.distributed.run "$@"; }}\nsrun() {{ "$@" & "$@" & wait -n && wait -n; }}\n'
    )
    options = [tmp_path / 's', '--device', 'cpu', '--cfg-options', 'per_class=4', 'block_size=5', 'generator.sampler.num_steps=2']
    environment = {**os.environ, 'SLURM_NNODES': '2', 'SLURM_GPUS_ON_NODE': '1', 'SLURM_JOB_ID': '123', 'SLURM_JOB_NODELIST': 'a[1-2]'}
    command = ['bash', '-c', stubs + script, 'generate.sbatch', 'edm_digits', '--out', *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('40 images of 10 classes') == 1
    assert not verify(Store.open(tmp_path / 's'))
