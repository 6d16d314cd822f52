"""Stages train one after the other: the backbone is handed on whole, a kill costs nothing, and what cannot work is said before the first begins."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mix import recipe, world  # noqa: F401

from conftest import Say, command_line, copy_of_this_process
from synthaug_plugins.errors import RecipeError, SynthAugError
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.training.backbone_weights import load_backbone
from synthaug_plugins.training.checkpoints import newest_checkpoint
from synthaug_plugins.training.stage_run import StageFolder, train_stages
from synthaug_plugins.training.stages import check_stages, read_stages

from mmengine.hooks import Hook  # isort: skip
from mmengine.registry import HOOKS  # isort: skip

pytestmark = pytest.mark.usefixtures('one_thread')


@HOOKS.register_module(force=True)
class Stops(Hook):
    """Says that a stage has come to an iteration, and waits there to be killed, in the process that is told to."""

    at: tuple[str, int] | None = None

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if Stops.at == (Path(runner.work_dir).name, runner.iter + 1):
            print('there')
            signal.pause()


@pytest.fixture(scope='module')
def staged(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A recipe with two stages: synthetic digits mixed in and EMA, then real ones with Mixup, which no mix has to do with."""
    folder = tmp_path_factory.mktemp('staged')
    for name in ('before', 'after'):
        cfg = recipe(world, 'epoch')
        cfg.default_scope = 'mmpretrain'
        cfg.custom_hooks = [{'type': 'Stops'}, *([{'type': 'EMAHook', 'momentum': 0.1}] if name == 'before' else [])]
        cfg.default_hooks = {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 4, 'max_keep_ckpts': 2, 'save_best': 'accuracy/top1'}}
        cfg.val_dataloader = {**cfg.train_dataloader, 'sampler': {'type': 'DefaultSampler', 'shuffle': False}}
        cfg.val_cfg, cfg.val_evaluator = {}, [{'type': 'Accuracy', 'topk': (1,)}]
        if name == 'after':
            cfg.randomness = {'seed': None}  # no seed: each call would draw its own
            cfg.model.train_cfg = {'augments': {'type': 'Mixup', 'alpha': 0.8}}
            cfg.model.head.loss = {'type': 'CrossEntropyLoss', 'use_soft': True}
        (folder / f'{name}.py').write_text(cfg.pretty_text)
    variants = str(world / 'variants')
    (folder / 'recipe.py').write_text(
        f"synthaug = dict(stages=[dict(name='pretrain', recipe='before.py', synthaug=dict(mix=dict(store={variants!r}))), "
        f"dict(name='finetune', recipe='after.py', ema=True, cfg_options={{'optim_wrapper.optimizer.lr': 0.01}})])\n"
    )
    return folder / 'recipe.py'


def stages(recipe: Path, **options: Any) -> Any:
    return read_stages(recipe, {key.replace('__', '.'): value for key, value in options.items()}, get_plugin_manager())


@pytest.fixture(scope='module')
def unbroken(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a training that nobody stopped."""
    torch.set_num_threads(1)
    work_dir = tmp_path_factory.mktemp('unbroken') / 'run'
    assert train_stages(stages(staged, finetune__randomness__seed=5), work_dir) == work_dir / 'finetune'
    return work_dir


def weights(work_dir: Path, stage: str = 'finetune') -> dict[str, torch.Tensor]:
    return torch.load(work_dir / stage / 'iter_12.pth', weights_only=False)['state_dict']


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_stage_starts_from_the_average_that_the_one_before_left(unbroken: Path) -> None:
    handed = load_backbone(unbroken / 'pretrain' / 'backbone.pth')
    assert same(handed, load_backbone(unbroken / 'pretrain' / 'iter_12.pth', ema=True))
    assert not same(handed, load_backbone(unbroken / 'pretrain' / 'iter_12.pth'))
    assert not (unbroken / 'finetune' / 'backbone.pth').exists()
    assert newest_checkpoint(unbroken / 'finetune') == unbroken / 'finetune' / 'iter_12.pth'


def by_command(recipe: Path, work_dir: Path) -> int:
    return command_line('train', recipe, '--work-dir', work_dir, '--cfg-options', 'finetune.randomness.seed=5')


@pytest.fixture(scope='module')
def killed(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The work folder of a training that was killed in its second stage, in the second epoch of 6 steps, after a checkpoint at 8; and a copy of it."""
    torch.set_num_threads(1)
    work_dir = tmp_path_factory.mktemp('killed') / 'run'

    def until_killed() -> int:
        Stops.at = ('finetune', 9)
        return by_command(staged, work_dir)

    process = copy_of_this_process(until_killed)
    process.wait_until(lambda: 'there\n' in process.lines())
    assert process.end(signal.SIGKILL).status == -signal.SIGKILL
    return work_dir, shutil.copytree(work_dir, work_dir.with_name('copy'))


def test_a_kill_in_stage_2_repeats_nothing_of_stage_1_and_changes_no_bit(staged: Path, unbroken: Path, killed: tuple[Path, Path]) -> None:
    run, _ = killed
    made = {file: file.stat().st_mtime_ns for file in (run / 'pretrain').rglob('*.pth')}
    assert made and newest_checkpoint(run / 'finetune') == run / 'finetune' / 'iter_8.pth'
    assert by_command(staged, run) == 0
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert same(weights(run), weights(unbroken))
    assert [p.name for p in (run / 'finetune').glob('best*')] == [p.name for p in (unbroken / 'finetune').glob('best*')]


def test_a_checkpoint_that_a_kill_cut_off_is_passed_over(staged: Path, unbroken: Path, tmp_path: Path) -> None:
    for name, size, time in (('iter_4.pth', None, 1), ('iter_8.pth', 1000, 2), ('best_accuracy_top1_iter_8.pth', None, 3)):
        content = (unbroken / 'finetune' / 'iter_12.pth').read_bytes()
        (tmp_path / name).write_bytes(content[:size])
        os.utime(tmp_path / name, (time, time))
    (tmp_path / 'last_checkpoint').write_text('gone/iter_2.pth')
    assert newest_checkpoint(tmp_path) == tmp_path / 'iter_4.pth'
    (tmp_path / 'iter_4.pth').unlink()
    assert newest_checkpoint(tmp_path) is None


def test_what_is_finished_is_not_done_again_and_a_changed_recipe_is_refused(staged: Path, unbroken: Path, synthaug: Say) -> None:
    arguments = ('train', staged, '--work-dir', unbroken, '--cfg-options', 'finetune.randomness.seed=5')
    said = synthaug(*arguments)
    assert (said.status, said.out) == (
        0,
        f'stage pretrain: finished before, {unbroken}/pretrain\nstage finetune: finished before, {unbroken}/finetune\n',
    )
    said = synthaug(*arguments, 'pretrain.train_cfg.max_epochs=3')
    assert said.status == 2
    assert "Stage 'pretrain' in" in said.err
    assert 'is finished with another recipe; these differ: train_cfg.max_epochs: 2 -> 3.' in said.err
    assert synthaug(*arguments, 'finetune.train_dataloader.num_workers=1').status == 0  # decides nothing


def test_a_backbone_that_was_exchanged_under_a_later_stage_is_refused(staged: Path, unbroken: Path, killed: tuple[Path, Path]) -> None:
    _, run = killed
    for checkpoint in [*(run / 'finetune').rglob('*.pth'), run / 'finetune' / 'last_checkpoint']:
        checkpoint.unlink()  # as if it had been killed before its first one
    handed = run / 'pretrain' / 'backbone.pth'
    true = handed.read_bytes()
    state = torch.load(handed)
    state['state_dict']['backbone.conv1.weight'] += 1
    torch.save(state, handed)
    again = stages(staged, finetune__randomness__seed=5)
    with pytest.raises(RecipeError, match=r"Stage 'finetune' in .* started from another backbone"):
        train_stages(again, run)
    handed.write_bytes(true)
    assert same(weights(train_stages(again, run).parent), weights(unbroken))


def test_the_explained_stages_are_files_for_any_launcher(staged: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthaug: Say) -> None:
    from mmengine.config import Config
    from mmengine.runner import Runner

    monkeypatch.chdir(tmp_path)
    said = synthaug('explain', staged, '--out', 'files', '--work-dir', 'work', '--cfg-options', 'finetune.randomness.seed=5')
    assert (said.status, said.out.split()) == (0, ['files/pretrain.py', 'files/finetune.py'])
    for name in ('pretrain', 'finetune'):  # as MMPretrain's tools/train.py does
        Runner.from_cfg(Config.fromfile(f'files/{name}.py')).train()
    assert same(weights(Path('work')), weights(unbroken))
    said = synthaug('explain', staged)
    assert said.out.count('# =====') == 2
    assert "work_dir = 'work_dirs/recipe/finetune'" in said.out
    assert 'is not empty' in synthaug('explain', staged, '--out', 'files').err


def test_the_first_stage_may_start_from_a_checkpoint_of_real_images(staged: Path, unbroken: Path, tmp_path: Path, synthaug: Say) -> None:
    init = unbroken / 'pretrain' / 'iter_12.pth'  # trained weights and their average
    found = stages(staged, synthaug__stages__0__init=str(init))
    check_stages(found)
    said = synthaug('explain', staged, '--cfg-options', f'synthaug.stages.0.init={init}')
    assert 'holds trained weights and their average' in said.err
    said = synthaug('explain', staged, '--out', tmp_path / 'files', '--cfg-options', f'synthaug.stages.0.init={init}')
    assert said.status == 0
    assert same(load_backbone(tmp_path / 'files' / 'init.pth'), load_backbone(init))
    train_stages(found[:1], tmp_path / 'run')
    assert same(load_backbone(tmp_path / 'run' / 'pretrain' / 'init.pth'), load_backbone(init))


def test_a_backbone_that_did_not_take_what_it_was_given_is_refused_before_the_first_step(staged: Path, unbroken: Path, tmp_path: Path) -> None:
    from synthaug_plugins.training.run import train
    from synthaug_plugins.training.stages import placed

    start = str(unbroken / 'pretrain' / 'backbone.pth')
    cfg = placed(stages(staged)[1], str(tmp_path), start, False, False)
    cfg.model.backbone.init_cfg = {'type': 'Kaiming', 'layer': 'Conv2d'}
    with pytest.raises(RecipeError, match=r'The backbone ResNet_CIFAR has not started from .*: conv1\.weight is another'):
        train(cfg, tmp_path)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'finetune__model__backbone__base_channels': 8}, r"Stage 'finetune': .* layer1\.0\.conv1\.weight is \(4, 4, 3, 3\) in stage 'pretrain' and \(8, 4"),
        ({'finetune__train_dataloader__dataset__data_root': 'nowhere'}, r"Stage 'finetune': train_dataloader\.dataset cannot be read: .*nowhere"),
        ({'finetune__load_from': 'x.pth'}, r"Stage 'finetune': The recipe starts from load_from = 'x\.pth', and from the stage before"),
        ({'finetune__model__head__type': 'LinearClsHaed'}, "Stage 'finetune': The model 'ImageClassifier' cannot be built"),
        ({'pretrain__custom_hooks': []}, "Stage 'pretrain': The next stage starts from an average of its weights, and it keeps none"),
        ({'pretrain__default_hooks__checkpoint': None}, "Stage 'pretrain': The recipe saves no checkpoint at its end"),
        ({'train_cfg__max_epochs': 1}, r"the option 'train_cfg\.max_epochs' names none of them\. Begin with pretrain or finetune"),
        ({'pretrain__synthaug__mix__store': 'gone'}, r"Stage 'pretrain': .*gone"),
        ({'synthaug__stages__0__init': 'gone.pth'}, r"Stage 'pretrain': The checkpoint 'gone\.pth' does not exist"),
        ({'synthaug__stages__1__init': 'gone.pth'}, r'stages\[1\] has an init, but it starts from the stage before'),
        ({'synthaug__stages__1__recipe': 'recipe.py'}, r"Stage 'finetune': .*recipe\.py' has stages itself"),
        ({'synthaug__stages__1__recipe': 'aftr.py'}, r"Stage 'finetune': recipe = 'aftr\.py': the file .* does not exist"),
        ({'synthaug__stages__1__name': 'pretrain'}, "two stages are called 'pretrain'"),
        ({'synthaug__stages__1__name': '../x'}, r"the name '\.\./x' cannot be that of a folder"),
        ({'synthaug__stages__1__nmae': 'x'}, r"stages\[1\] has no key 'nmae'\. Did you mean 'name'"),
        ({'synthaug__stages__1__ema': 'yes'}, r"stages\[1\]: ema = 'yes' is of the wrong kind"),
        ({'synthaug__mix': {}}, "'mix' stands beside stages"),
        ({'synthaug__stages': 3}, 'stages = 3 is not a list of stages'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_what_cannot_work_is_refused_before_the_first_stage(staged: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(SynthAugError, match=text):
        check_stages(stages(staged, **options))


def marked(folder: Path, stages: Any, **known: Any) -> Path:
    """A work folder in which the first stage is finished, as far as its mark says."""
    stage = StageFolder(folder / stages[0].name, stages[0])
    stage.known = {'seed': 7, 'start': None, 'finished': True, 'left': None, **known}
    stage._write()
    return folder


def test_the_backbone_that_a_finished_stage_left_is_the_one_that_is_asked_for(staged: Path, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken / 'pretrain', tmp_path / 'pretrain')  # it left its average
    file = tmp_path / 'pretrain' / 'iter_12.pth'
    for ema in (False, True):
        found = stages(staged)[0]
        StageFolder(tmp_path / 'pretrain', found).train(None, True, ema, 'none', print)
        assert same(load_backbone(tmp_path / 'pretrain' / 'backbone.pth'), load_backbone(file, ema=ema))


def test_another_store_in_the_place_of_a_finished_stages_is_refused(staged: Path, world: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(world / 'free', tmp_path / 'store')
    options = {'pretrain__synthaug__mix__store': str(tmp_path / 'store')}
    work_dir = marked(tmp_path / 'run', stages(staged, **options))
    shutil.rmtree(tmp_path / 'store')
    shutil.copytree(world / 'variants', tmp_path / 'store')
    with pytest.raises(RecipeError, match=r"Stage 'pretrain' in .* is finished with another recipe; these differ: stage\.stores\./.*/store: "):
        train_stages(stages(staged, **options), work_dir)


def test_what_a_finished_stage_started_from_is_not_needed_any_more(staged: Path) -> None:
    found = stages(staged, synthaug__stages__0__init='gone.pth')
    check_stages(found, done=1)
    with pytest.raises(SynthAugError, match='does not exist'):
        check_stages(found)


def test_a_folder_of_something_else_is_left_alone(staged: Path, world: Path) -> None:  # noqa: F811
    before = sorted(p.name for p in (world / 'train').iterdir())
    with pytest.raises(RecipeError, match="not a training of these stages: it holds 'four'"):
        train_stages(stages(staged), world / 'train')
    assert sorted(p.name for p in (world / 'train').iterdir()) == before


def test_where_one_training_is_wanted_stages_are_refused(staged: Path) -> None:
    from synthaug_plugins.training.run import configure, load_recipe

    with pytest.raises(RecipeError, match='a recipe with stages is several trainings'):
        configure(load_recipe(staged), get_plugin_manager())


def train_as(rank: int, port: int, recipe: Path, work_dir: Path) -> None:
    """What torchrun's process of this rank does."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    train_stages(stages(recipe, pretrain__train_cfg__max_epochs=1, finetune__train_cfg__max_epochs=1), work_dir, 'pytorch')


def test_two_processes_train_stages_together(staged: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    processes = [copy_of_this_process(functools.partial(train_as, rank, port, staged, tmp_path / 'run')) for rank in (0, 1)]
    first, second = (process.end() for process in processes)
    assert (first.status, second.status) == (0, 0), first.err[-2000:] + second.err[-2000:]
    assert [line.split(',')[0] for line in first.out.splitlines() if line.startswith('stage ')] == [
        'stage pretrain: starts',
        'stage pretrain: finished',
        f'stage finetune: starts from {tmp_path}/run/pretrain/backbone.pth',
        'stage finetune: finished',
    ]
    assert 'stage ' not in second.out
    last = torch.load(tmp_path / 'run' / 'finetune' / 'iter_3.pth', weights_only=False)  # 22 images each, in batches of 8
    assert last['meta']['iter'] == 3
