"""timm's train.py, unchanged, trains on real and synthetic images: through the launcher, and on a store's shards without it.

Its train.py is no part of timm's wheel: set SYNTHAUG_TIMM_TRAIN to the path of a copy, of a checkout of the installed version.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_mix import make_real, world  # noqa: F401

from conftest import Said, copy_of_this_process
from synthaug_plugins.errors import DataError, RecipeError, SynthAugError
from synthaug_plugins.timm.launch import launch, main
from synthaug_plugins.timm.options import add_options, read_options

SCRIPT = os.environ.get('SYNTHAUG_TIMM_TRAIN', '')
real_script = pytest.mark.skipif(not SCRIPT, reason="timm's train.py is not here: set SYNTHAUG_TIMM_TRAIN to its path to run what trains with it")

# As small as a script can be that has what the launcher hooks into; it notes what it trained on.
STAND_IN = """
import argparse, json
import torch
from timm.data import create_dataset, create_loader
from timm.task import ClassificationTask

parser = argparse.ArgumentParser()
parser.add_argument('data', nargs='?')
for name, default in dict(data_dir=None, dataset='', train_split='train', class_map='', resume='', target_key=None, sched='cosine', eval_metric=None, loss=None, kd_model_name=None, task='classification').items():
    parser.add_argument('--' + name.replace('_', '-'), default=default)
for name, default in dict(batch_size=8, seed=42, epochs=2, num_classes=None, aug_splits=0, aug_repeats=0, cooldown_epochs=0, mixup=0.0, cutmix=0.0).items():
    parser.add_argument('--' + name.replace('_', '-'), default=default, type=float if isinstance(default, float) else int)
for name in ('naflex_loader', 'use_multi_epochs_loader', 'torchscript'):
    parser.add_argument('--' + name.replace('_', '-'), action='store_true')

def _parse_args():
    return parser.parse_args(), ''

def main():
    args, _ = _parse_args()
    data = create_dataset(args.dataset, root=args.data_dir, split=args.train_split, is_training=True, class_map=args.class_map,
                          target_key=args.target_key, input_img_mode='RGB')
    loader = create_loader(data, input_size=(3, 16, 16), batch_size=args.batch_size, is_training=True, num_workers=0, device=torch.device('cpu'))
    task = ClassificationTask(model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)), criterion_kwargs=dict(smoothing=0.1))
    for epoch in range(args.epochs):
        loader.batch_sampler.set_epoch(epoch)
        for images, target in loader:
            loss = task(images, target)['loss']
            print(json.dumps([type(task).__name__, len(images), type(target).__name__, loss.item()]))

if __name__ == '__main__':
    main()
"""


@pytest.fixture(scope='module')
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('script') / 'train.py'
    path.write_text(STAND_IN)
    return path


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and validation/ of digits."""
    root = tmp_path_factory.mktemp('data')
    make_real(root / 'train')
    make_real(root / 'validation', per_class=4, first=60)
    return root


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch changes where modules come from and what the command line was."""
    monkeypatch.setattr(sys, 'argv', list(sys.argv))
    monkeypatch.setattr(sys, 'path', list(sys.path))


def launched(script: Path | str, *arguments: object) -> Said:
    """Run the launcher in a process of its own."""
    return copy_of_this_process(lambda: main([str(script), *map(str, arguments)])).end()


# --- what is extended


def test_a_script_trains_on_both_and_timm_itself_stays_as_it_is(stand_in: Path, world: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    import timm.data
    import timm.task

    before = timm.data.create_dataset, timm.data.create_loader, timm.task.ClassificationTask
    launch(str(stand_in), ['--data-dir', str(data), '--synthaug-mix', str(world / 'variants'), '--synthaug-mode', 'two_stream', '--synthaug-weight', '0.5'])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith('[')]
    assert len(said) == 10 and all(line.startswith('["MixClassificationTask", 16, "MixedTarget"') for line in said)
    assert (timm.data.create_dataset, timm.data.create_loader, timm.task.ClassificationTask) == before


def test_modes_without_weights_keep_plain_labels_so_that_mixup_works(stand_in: Path, world: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    launch(str(stand_in), ['--data-dir', str(data), '--synthaug-mix', str(world / 'variants'), '--synthaug-alpha', '[(0, 0.0), (1, 1.0)]', '--mixup', '0.2'])
    assert '"Tensor"' in capsys.readouterr().out


@pytest.mark.parametrize(('written', 'layers'), [(False, None), (True, True), (['bn1'], ['bn1']), ('bn1', ['bn1'])])
def test_a_yaml_file_of_train_py_says_what_the_command_line_says(written: Any, layers: Any) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=0)
    add_options(parser)
    parser.set_defaults(synthaug_mix='stores/x', synthaug_store_weights=2, synthaug_frozen_bn=written)
    options = read_options(parser.parse_args([]))
    assert options.task.get('frozen_bn') == layers and options.stores == [{'store': 'stores/x', 'weight': 2, 'select': None}]


# --- refusals, each before anything trains


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ([], 'No --synthaug option asks for anything'),
        (['--synthaug-alpha', '0.5'], '--synthaug-alpha has no meaning without --synthaug-mix'),
        (['--synthaug-alfa', '0.5'], "There is no option --synthaug-alfa. Did you mean '--synthaug-alpha'"),
        (['MIX', '--synthaug-alpha', '2'], 'alpha = 2 is not a share'),
        (['MIX', '--synthaug-alpha', 'half'], 'neither a number nor a schedule'),
        (['MIX', '--synthaug-mode', 'per_bath'], "Did you mean 'per_batch'"),
        (['MIX', '--synthaug-mode', 'phased', '--synthaug-phases', 'synthetic'], "'synthetic' is no phase"),
        (['MIX', '--synthaug-mode', 'phased', '--synthaug-phases', 'synthetic:1', 'real:2'], 'the phases last 3 epochs, and train.py trains for 2'),
        (['MIX', '--synthaug-mode', 'phased', '--synthaug-phases', 'synthetic:1', 'real:1', '--cooldown-epochs', '3'], 'and train.py trains for 5'),
        (['MIX', '--synthaug-mode', 'per_batch', '--synthaug-ratio', '2', '1'], 'does not divide a batch of 8'),
        (['MIX', '--synthaug-blend', '0.5'], '--synthaug-blend has no meaning without --synthaug-soft-labels'),
        (['MIX', '--synthaug-store-weights', '1', '2'], '2 shares for 1 stores'),
        (['MIX', '--synthaug-freeze-affine'], 'no meaning without --synthaug-frozen-bn'),
        (['MIX', '--synthaug-soft-labels', 'clip_p', '--num-classes', '4'], "'clip_p' holds double, not lists"),
        (['MIX', '--data-dir', '/nowhere'], "The training set '' in '/nowhere', split 'train', cannot be read"),
        (['MIX', '--target-key', 'fine_label'], "cannot be read: ReaderImageFolder.__init__() got an unexpected keyword argument 'target_key'"),
        (['MIX', '--synthaug-classes', 'a', 'b'], 'The class names differ'),
        (['MIX', '--num-classes', '3'], '--num-classes 3 is less than the 4 classes'),
        (['MIX', '--synthaug-mode', 'two_stream', '--mixup', '0.1'], 'Mixup and CutMix blend images whose loss weights differ'),
        (['MIX', '--synthaug-weight', '0.5', '--kd-model-name', 'resnet18'], '--kd-model-name computes a loss of its own'),
        (['MIX', '--synthaug-soft-labels', 'x', '--loss', 'asl'], '--loss asl takes no soft labels'),
        (['MIX', '--dataset', 'wds/x'], 'reads its images as a stream'),
        (['MIX', '--task', 'multilabel'], '--task multilabel'),
        (['MIX', '--aug-splits', '3'], '--aug-splits'),
        (['MIX', '--use-multi-epochs-loader'], '--use-multi-epochs-loader'),
        (['MIX', '--naflex-loader'], '--naflex-loader'),
        (['MIX', '--resume', 'nowhere.pth.tar'], "no checkpoint 'nowhere.pth.tar'"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_model_is_built(stand_in: Path, world: Path, data: Path, arguments: list[str], says: str) -> None:  # noqa: F811
    given = [a for b in arguments for a in (['--synthaug-mix', str(world / 'variants')] if b == 'MIX' else [b])]
    with pytest.raises(SynthAugError) as refused:
        launch(str(stand_in), ['--data-dir', str(data), *given])
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda s: s.replace('create_loader', 'create_naflex_loader'), 'lacks what the launcher hooks into: create_loader.'),
        (lambda s: s.replace('from timm.task import ClassificationTask', 'ClassificationTask = None'), 'hooks into: ClassificationTask.'),
        (lambda s: s.replace('def _parse_args', 'def parse').replace('parser', 'words'), 'hooks into: _parse_args, parser.'),
        (lambda s: s.replace("if __name__ == '__main__':\n    main()", 'main()'), 'calls main() as soon as it is loaded'),
        (lambda s: s.replace('import torch\n', 'from timm.data import no_such_thing\n'), 'does not load with the installed timm: cannot import name'),
        (lambda s: s + '\n(', 'is no Python file'),
        (lambda s: s.replace('    task = ', '    task = torch.nn.Identity() if args.seed else '), 'did not call ClassificationTask'),
        (lambda s: s.replace('split=args.train_split, is', "split='validation', is"), "asks for the training set '' with {'root': "),
    ],
)
def test_a_script_without_the_hooks_or_that_goes_past_one_is_refused(
    tmp_path: Path,
    world: Path,  # noqa: F811
    data: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[str], str],
    says: str,
) -> None:
    assert change(STAND_IN) != STAND_IN
    (tmp_path / 'train.py').write_text(change(STAND_IN))
    with pytest.raises(RecipeError) as refused:
        launch(str(tmp_path / 'train.py'), ['--data-dir', str(data), '--synthaug-mix', str(world / 'variants'), '--synthaug-weight', '0.5'])
    assert says in str(refused.value)
    assert '["' not in capsys.readouterr().out, 'a batch was trained'


def test_no_script_and_a_timm_of_another_version_are_refused(stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"no training script 'nowhere.py'"):
        launch('nowhere.py', [])
    monkeypatch.setattr(timm, '__version__', '1.1.0')
    with pytest.raises(SystemExit) as ended:
        main([str(stand_in), '--synthaug-mix', 'x'])
    assert ended.value.code == 2
    assert 'synthaug: timm 1.1.0 (' in capsys.readouterr().err


# --- with timm's own script


def train(data: Path, out: Path, name: str, *arguments: object) -> tuple[object, ...]:
    """A short, deterministic training of timm's smallest network."""
    return (
        *('--data-dir', data, '--model', 'test_resnet', '--img-size', 32, '--num-classes', 4, '-b', 8, '-j', 0, '--device', 'cpu', '--no-aug'),
        *('--epochs', 2, '--warmup-epochs', 0, '--lr', 0.02, '--output', out, '--experiment', name, *arguments),
    )


def checkpoint(folder: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(folder / 'last.pth.tar', weights_only=True)


def losses(folder: Path) -> list[float]:
    with (folder / 'summary.csv').open() as file:
        return [float(row['train_loss']) for row in csv.DictReader(file) if row['epoch'] != 'epoch']


@real_script
def test_timms_train_learns_and_a_killed_run_ends_with_the_bits_of_a_whole_one(world: Path, data: Path, tmp_path: Path, one_thread: None) -> None:  # noqa: F811
    mix = ('--synthaug-mix', world / 'variants', '--synthaug-mode', 'two_stream', '--synthaug-weight', 0.5, '--synthaug-frozen-bn', 'layer1')
    whole = launched(SCRIPT, *train(data, tmp_path, 'whole', *mix))
    assert whole.status == 0, whole.err[-3000:]
    assert losses(tmp_path / 'whole')[1] < losses(tmp_path / 'whole')[0]
    assert checkpoint(tmp_path / 'whole')['args'].synthaug_weight == 0.5
    cut = copy_of_this_process(lambda: main([str(a) for a in (SCRIPT, *train(data, tmp_path, 'cut', *mix))]))
    cut.wait_until((tmp_path / 'cut' / 'checkpoint-0.pth.tar').exists)
    assert cut.end(signal.SIGKILL).status == -signal.SIGKILL
    again = launched(SCRIPT, *train(data, tmp_path, 'cut', *mix, '--resume', tmp_path / 'cut' / 'checkpoint-0.pth.tar'))
    assert again.status == 0, again.err[-3000:]
    one, two = checkpoint(tmp_path / 'whole'), checkpoint(tmp_path / 'cut')
    assert one['epoch'] == two['epoch'] == 1
    assert all(torch.equal(value, two['state_dict'][key]) for key, value in one['state_dict'].items())


@real_script
def test_timms_train_takes_soft_labels_and_mixup(world: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    from test_mix_data import soft_store

    soft_store(tmp_path / 'soft', lambda label: [0.7 if i == label else 0.1 for i in range(4)])
    soft = launched(SCRIPT, *train(data, tmp_path, 'soft', '--epochs', 1, '--synthaug-mix', tmp_path / 'soft', '--synthaug-soft-labels', 'clip_probs'))
    assert soft.status == 0, soft.err[-3000:]
    mixup = ('--synthaug-mix', world / 'variants', world / 'free', '--synthaug-mode', 'per_batch', '--synthaug-partner', 'any', '--mixup', 0.2)
    mixed = launched(SCRIPT, *train(data, tmp_path, 'mixup', '--epochs', 1, *mixup))
    assert mixed.status == 0, mixed.err[-3000:]
    help_text = launched(SCRIPT, '--help').out
    assert '--synthaug-mix STORE' in help_text and '--mixup-prob' in help_text


def as_rank(rank: int, arguments: tuple[object, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=os.environ['SYNTHAUG_TEST_PORT'])
    main([str(a) for a in (SCRIPT, *arguments)])


@real_script
def test_two_processes_train_with_timms_train(world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import socket

    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        monkeypatch.setenv('SYNTHAUG_TEST_PORT', str(free.getsockname()[1]))
    arguments = train(data, tmp_path, 'two', '-b', 4, '--epochs', 1, '--synthaug-mix', world / 'variants', '--synthaug-mode', 'two_stream')
    processes = [copy_of_this_process(functools.partial(as_rank, rank, arguments)) for rank in (0, 1)]
    ended = [process.end() for process in processes]
    assert [e.status for e in ended] == [0, 0], ended[0].err[-3000:]
    assert checkpoint(tmp_path / 'two')['epoch'] == 0


@real_script
def test_timms_unextended_train_reads_the_shards_of_a_store(world: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = train(
        world / 'variants' / 'shards', tmp_path, 'wds', '-j', 1, '--epochs', 1, '--dataset', 'wds/variants', '--train-split', 'train', '--val-split', ''
    )

    def run() -> None:
        sys.argv = [SCRIPT, *map(str, arguments)]
        runpy.run_path(SCRIPT, run_name='__main__')

    ended = copy_of_this_process(run).end()
    assert ended.status == 0, ended.err[-3000:]
    assert len(losses(tmp_path / 'wds')) == 1
