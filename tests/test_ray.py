"""The executor `ray`, on a real cluster of this machine: workers die, hang and refuse, and the store is the one that one process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pluggy
import pytest
from test_executors import Script, running, started

from conftest import REPO
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete
from synthaug_plugins.errors import ExecutorError, MissingExtra, RecipeError
from synthaug_plugins.executors import make_executor, ray_warden
from synthaug_plugins.executors.base import DEATHS_ALLOWED
from synthaug_plugins.executors.ray import Ray
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import verify

pytest.importorskip('ray')

DIGITS = {
    'generator': {'type': 'synthaug_plugins.EDM', 'model': 'embedded:digits_edm', 'sampler': {'num_steps': 2, 'solver': 'euler'}},
    'classes': ['zero', 'one', 'two'],
    'per_class': 6,
    'block_size': 3,
    'batch_size': 2,
}


@pytest.fixture(scope='module')
def cluster() -> Iterator[None]:
    """One for all tests: the executor leaves a connection alone that is there."""
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join([str(REPO), str(REPO / 'tests'), *([before] if before else [])])
    with Ray(workers=2, device='cpu').connected():
        yield
    if before is None:
        del os.environ['PYTHONPATH']
    else:
        os.environ['PYTHONPATH'] = before


def run(folder: Path, *tasks: str, **options: Any) -> dict[str, tuple[str, int]]:
    with closing(Ray(workers=2, **options).run(Script(folder), tasks)) as results:
        return dict(results)


def gone(pids: set[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(running, pids))


def die_once(marker: Path) -> pluggy.HookRelay | None:
    """What a worker does first: see that one worker of all is killed when it has made half a block."""
    from synthaug_plugins.engine import block

    beat = block.beat

    def fatal() -> None:
        beat()
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    block.beat = fatal
    return None


def content(folder: Path) -> list[tuple[Any, ...]]:
    """Every row of the index, the hash of each image among it."""
    return [tuple(row.values()) for row in Store.open(folder).index().to_pylist()]


def test_a_worker_killed_in_the_middle_of_a_block_leaves_the_store_of_one_process(cluster: None, tmp_path: Path) -> None:
    recipe = complete(DIGITS)
    generate(recipe, tmp_path / 'alone', 'cpu', quiet=True)
    store = generate(recipe, tmp_path / 'ray', quiet=True, executor=Ray(workers=2, device='cpu'), in_worker=partial(die_once, tmp_path / 'killed'))
    assert (tmp_path / 'killed').exists()
    assert content(tmp_path / 'ray') == content(tmp_path / 'alone')
    assert verify(store) == []
    assert store.made_by['cost']['images'] == 18
    assert not list((tmp_path / 'ray').rglob('.partial-*'))


def test_tasks_of_workers_that_die_or_hang_are_done_by_others_and_nobody_stays(cluster: None, tmp_path: Path) -> None:
    done = run(tmp_path, 'die 1', 'hang 1', 'a', 'slow', 'b', stall_timeout=3.0)
    assert {task: device for task, (device, _) in done.items()} == dict.fromkeys(['die 1', 'hang 1', 'a', 'slow', 'b'], 'cpu')
    assert len(started(tmp_path)) >= 3
    assert os.getpid() not in started(tmp_path)
    assert gone(started(tmp_path))


def test_a_task_that_kills_every_worker_ends_the_run_with_its_name(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=rf'Workers were lost at task die 9, {DEATHS_ALLOWED} in a row; the last one was lost: The actor died'):
        run(tmp_path, 'die 9')
    assert len(list(tmp_path.glob('die 9 *'))) == DEATHS_ALLOWED


def test_a_refusal_in_a_worker_is_the_drivers_and_stops_the_others(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"needs the module 'ray'.*pip install 'synthaug-plugins\[ray\]'"):
        run(tmp_path, 'slow', 'refuse', 'slow 2', 'slow 3')
    assert gone(started(tmp_path))
    assert not list(tmp_path.glob('slow 3*'))
    with pytest.raises(KeyError, match='odd'):
        run(tmp_path, 'raise')


def test_what_a_cluster_cannot_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r'--device cuda:1 with --executor ray: the cluster says which GPU'):
        make_executor('ray', 'cuda:1')
    with pytest.raises(RecipeError, match='--workers 0 is out of range'):
        make_executor('ray', workers=0)
    with pytest.raises(RecipeError, match=r'--address host:6379 .* Add --executor ray'):
        make_executor('local', address='host:6379')
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(MissingExtra, match=r"--executor ray needs the module 'ray'.*synthaug-plugins\[ray\]"):
        make_executor('ray')


def command(out: Path, *options: str) -> list[str]:
    sizes = ['classes=["zero","one"]', 'per_class=16', 'block_size=4', 'batch_size=4']
    return [sys.executable, '-m', 'synthaug_plugins.cli', 'generate', 'edm_digits', '--out', str(out), '--cfg-options', *sizes, *options]


def of_session(name: str) -> set[int]:
    """Processes that what was started with this name in its environment has left."""
    found = set()
    for process in Path('/proc').glob('[0-9]*'):
        try:
            ours = f'SYNTHAUG_TEST={name}'.encode() in (process / 'environ').read_bytes().split(b'\0')
            if ours and running(int(process.name)):
                found.add(int(process.name))
        except OSError:
            continue
    return found


def test_the_warden_knows_every_process_of_its_cluster_also_those_that_rename_themselves(cluster: None) -> None:
    from ray._private.worker import global_worker

    folder = global_worker.node.get_temp_dir_path()
    renamed = {'ray::DashboardAgent', 'ray::RuntimeEnvAgent'}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ours = {pid: line for pid, line in below(os.getpid()).items() if 'ray::' in line or '/site-packages/ray/' in line}
        if renamed <= {line.split('\0')[0] for line in ours.values()}:
            break
        time.sleep(0.1)
    else:
        pytest.fail(f'{renamed} did not all start: {ours}')
    known = {*ray_warden.processes(folder)}
    assert not {line for pid, line in ours.items() if pid not in known and running(pid)}
    # Which part of its environment a process loses by a new name differs from run to run: none may lose any.
    assert not {line for pid, line in ours.items() if running(pid) and b'\0\0' in Path(f'/proc/{pid}/environ').read_bytes()}


def below(pid: int) -> dict[int, str]:
    """Command lines of the processes that this one started, and of those that these started."""
    parents, lines = {}, {}
    for process in Path('/proc').glob('[0-9]*'):
        try:
            parents[int(process.name)] = int((process / 'stat').read_text().rpartition(')')[2].split()[1])
            lines[int(process.name)] = (process / 'cmdline').read_text()
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: lines[child] for child in found - {pid}}


def test_what_starts_while_a_killed_driver_s_cluster_ends_does_not_live_on(tmp_path: Path) -> None:
    folder = tmp_path / 'cluster'
    folder.mkdir()
    warden = subprocess.Popen([sys.executable, '-I', '-S', ray_warden.__file__, str(folder)], stdin=subprocess.PIPE)
    # A process whose environment is not seen yet, as in the middle of an exec.
    late = subprocess.Popen(['sh', '-c', f'sleep 0.7; {ray_warden.CLUSTER}={folder} exec sleep 60'])
    warden.communicate(timeout=20)
    assert late.wait(5) == -signal.SIGKILL
    assert not folder.exists()


@pytest.fixture(scope='module')
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What the command leaves in one process."""
    out = tmp_path_factory.mktemp('alone') / 'store'
    assert subprocess.run(command(out), capture_output=True).returncode == 0
    return content(out)


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=['TERM', 'INT', 'KILL'])
def test_a_stopped_command_takes_its_cluster_with_it_and_goes_on_later(number: int, status: int, alone: list[tuple[Any, ...]], tmp_path: Path) -> None:
    out, said, folders = tmp_path / 'store', tmp_path / 'said', Path(tempfile.mkdtemp(dir='/tmp'))  # Ray's sockets need short names
    environment = {**os.environ, 'SYNTHAUG_TEST': tmp_path.name, 'RAY_TMPDIR': str(folders)}
    with open(said, 'wb') as file:
        process = subprocess.Popen(command(out, '--executor', 'ray', '--workers', '2'), env=environment, stdout=file, stderr=file)
        while process.poll() is None and len(list(out.glob('index/*.parquet'))) < 2:
            time.sleep(0.02)
        assert len(list(folders.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(60) == status, said.read_text()
    assert gone(of_session(tmp_path.name))
    folders.rmdir()  # nothing of the cluster is left in it
    assert not list(out.rglob('*.partial*'))
    if number != signal.SIGKILL:
        assert said.read_text().splitlines()[-1].startswith('synthaug: Stopped: ')
        assert 'The same command goes on from there.' in said.read_text()
        assert '(raylet)' not in said.read_text()
    assert subprocess.run(command(out), capture_output=True).returncode == 0
    assert content(out) == alone
