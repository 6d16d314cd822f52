"""Trains stages in order. What is finished is not done again, what was killed goes on, and a changed recipe is refused."""

from __future__ import annotations

import copy
import gc
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins import __version__
from synthaug_plugins.errors import RecipeError, Stopped
from synthaug_plugins.own_folder import alone, refuse_foreign
from synthaug_plugins.store.card import recipe_differences
from synthaug_plugins.store.files import PARTIAL, write_whole
from synthaug_plugins.store.store import Store
from synthaug_plugins.training.backbone_weights import load_backbone, save_backbone
from synthaug_plugins.training.checkpoints import newest_checkpoint
from synthaug_plugins.training.head_classes import stores_of
from synthaug_plugins.training.processes import is_first, join, wait_for_all
from synthaug_plugins.training.run import train
from synthaug_plugins.training.stage_hook import leave_backbone
from synthaug_plugins.training.stages import BACKBONE, INIT, Stage, check_stages, placed
from synthaug_plugins.weights import file_hash

if TYPE_CHECKING:
    from mmengine.config import Config

MARK = 'stage.json'
"""In a stage's folder: its recipe, what its backbone started from, whether it is finished, and which weights its `backbone.pth` holds."""
# How the machine does its work, which no weight depends on.
_DECIDES_NOTHING = frozenset({'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'log_level', 'launcher', 'work_dir'})


def train_stages(
    stages: Sequence[Stage], work_dir: str | Path, launcher: str = 'none', backbone: bool = False, progress: Callable[[str], None] = print
) -> Path:
    """Train stages in order, each in its folder below `work_dir`, and return the last one's.

    Everything that can be known is checked for all of them before the first begins. The same call goes on after a kill: finished stages are skipped,
    an unfinished one continues from its newest checkpoint, on a CPU to the bit.

    Args:
        stages: from `stages.read_stages`.
        work_dir: where the stages' folders go.
        launcher: 'none', or 'pytorch' under torchrun, as for MMEngine.
        backbone: the last stage leaves its backbone (`backbone.pth` in its folder), too.
        progress: takes a line per stage, in the first process.

    Raises:
        RecipeError: what `check_stages` refuses; a folder of something else, or of a stage with another recipe or another start; another process there.
        TrainingFailed: see `run.train`.
        Stopped: Ctrl-C.
    """
    root = Path(work_dir)
    refuse_foreign(root, {'.lock', *(stage.name for stage in stages)}, 'training of these stages', '--work-dir')
    join(launcher, (stages[0].cfg.get('env_cfg') or {}).get('dist_cfg'))
    folders = [StageFolder(root / stage.name, stage) for stage in stages]
    if launcher != 'none':
        _refuse_other_backends(stages)
    if not all(folder.finished for folder in folders):
        done = next(number for number, folder in enumerate(folders) if not folder.finished)
        check_stages(stages, launcher=launcher, done=done)
    wait_for_all()  # nobody has written yet: all processes know the same
    say = progress if is_first() else lambda line: None
    if is_first():
        root.mkdir(parents=True, exist_ok=True)
        with alone(root, 'training', '--work-dir'):
            return _train(folders, launcher, backbone, say)
    return _train(folders, launcher, backbone, say)


def _train(folders: Sequence[StageFolder], launcher: str, backbone: bool, say: Callable[[str], None]) -> Path:
    start: Path | None = None
    for number, folder in enumerate(folders):
        later = folders[number + 1].stage if number + 1 < len(folders) else None
        leaves = later is not None or backbone
        ema = bool(later and later.ema)
        if number == 0 and folder.stage.init is not None:
            start = folder.take_init()
        try:
            folder.train(start, leaves, ema, launcher, say)
        except KeyboardInterrupt:
            raise Stopped(f'Stopped in stage {folder.stage.name!r}.', 'The same command goes on from its newest checkpoint.') from None
        start = folder.path / BACKBONE if leaves else None
        gc.collect()  # runners hold cycles: a stage's memory is free before the next one's model is built
    return folders[-1].path


class StageFolder:
    """A stage and its folder.

    Args:
        path: new, empty, or of an earlier call.
        stage: what is trained there.

    Raises:
        RecipeError: the folder holds something else, or the same stage with another recipe.
    """

    def __init__(self, path: Path, stage: Stage) -> None:
        self.path, self.stage = path, stage
        mark = path / MARK
        self.known: dict[str, Any] = {}
        if mark.is_file():
            self.known = _read_mark(mark)
            before, now = self.known['recipe'], self._recipe(self.known['seed'])
            differ = recipe_differences(before, now)
            if differ:
                state = 'is finished' if self.finished else 'has begun'
                what = f'Stage {stage.name!r} in {str(path)!r} {state} with another recipe; these differ: {"; ".join(differ[:12])}.'
                raise RecipeError(what, 'Restore these values, or give a new --work-dir.')
        elif path.exists() and (not path.is_dir() or any(p.name != INIT and not p.name.startswith(PARTIAL) for p in path.iterdir())):
            raise RecipeError(f'{str(path)!r} exists and holds no stage.', 'Give a new --work-dir; nothing was touched.')

    @property
    def finished(self) -> bool:
        """Whether the stage has been trained to its end."""
        return bool(self.known.get('finished'))

    def take_init(self) -> Path:
        """The file with the backbone of the stage's `init`; written by the first process."""
        file = self.path / INIT
        if is_first() and not self.finished:
            save_backbone(load_backbone(self.stage.init or '', self.stage.ema), file)
        wait_for_all()
        return file

    def train(self, start: Path | None, leaves: bool, ema: bool, launcher: str, say: Callable[[str], None]) -> None:
        """Train the stage unless it is finished; the first process writes its mark before and after."""
        begins = file_hash(start) if start is not None and start.is_file() else None
        if self.known and self.known['start'] != begins and not (self.finished and begins is None):
            raise RecipeError(
                f'Stage {self.stage.name!r} in {str(self.path)!r} started from another backbone than {str(start)!r} is now.',
                f'Remove {str(self.path)!r} to train it from this one, or give a new --work-dir.',
            )
        left = 'average' if ema else 'trained'
        if self.finished:
            if leaves and (self.known['left'] != left or not (self.path / BACKBONE).is_file()):  # another list of stages asks for other weights
                self._leave(left)
            say(f'stage {self.stage.name}: finished before, {self.path}')
            return
        if not self.known:
            seed = (self.stage.cfg.get('randomness') or {}).get('seed')
            self.known = {'seed': random.SystemRandom().randrange(2**31) if seed is None else seed, 'start': begins, 'finished': False, 'left': None}
            self._write()
            wait_for_all()
            self.known = _read_mark(self.path / MARK)  # of all processes the first one draws the seed
        cfg = placed(self._seeded(), str(self.path), None if start is None else str(start), leaves, ema)
        cfg.experiment_name = f'{self.stage.name}-{time.time_ns()}'  # MMEngine keeps loggers by this name for the whole process
        checkpoint = newest_checkpoint(self.path)
        wait_for_all()  # nobody writes a checkpoint that another one could still find
        where = f'goes on from {checkpoint}' if checkpoint else f'starts from {start}' if start else 'starts'
        say(f'stage {self.stage.name}: {where}')
        train(cfg, self.path, checkpoint or False, launcher)
        self.known |= {'finished': True, 'left': left if leaves else None}  # StageHook has left it
        self._write()
        wait_for_all()
        say(f'stage {self.stage.name}: finished, {self.path}')

    def _leave(self, left: str) -> None:
        if is_first():
            leave_backbone(self.path, BACKBONE, left == 'average')
        self.known['left'] = left
        self._write()
        wait_for_all()

    def _seeded(self) -> Stage:
        """The stage with its seed written out: without one, each call would draw another."""
        cfg = copy.deepcopy(self.stage.cfg)
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': self.known['seed']}
        return replace(self.stage, cfg=cfg)

    def _recipe(self, seed: int) -> dict[str, Any]:
        """What decides the stage's weights, as plain JSON."""
        recipe = _plain(self.stage.cfg.to_dict())
        recipe['randomness'] = {**(recipe.get('randomness') or {}), 'seed': seed}
        recipe['stage'] = {'init': self.stage.init, 'ema': self.stage.ema, 'may_differ': list(self.stage.may_differ), 'stores': self._stores()}
        return recipe

    def _stores(self) -> dict[str, str]:
        """The fingerprints of the stores that it trains on, by folder: another one may lie there meanwhile. Those that are gone as they were known."""
        known = self.known.get('recipe', {}).get('stage', {}).get('stores', {})
        folders = dict.fromkeys(stores_of((self.stage.cfg.get('train_dataloader') or {}).get('dataset') or {}))
        now = {folder: Store.open(folder).plan.fingerprint if Store.is_one(folder) else known.get(folder) for folder in folders}
        return {folder: found for folder, found in now.items() if found is not None}

    def _write(self) -> None:
        if is_first():
            mark = {**self.known, 'recipe': self._recipe(self.known['seed']), 'synthaug_plugins': __version__}
            write_whole(self.path / MARK, (json.dumps(mark, indent=1, ensure_ascii=False) + '\n').encode())


def _read_mark(mark: Path) -> dict[str, Any]:
    try:
        known = json.loads(mark.read_text(encoding='utf-8'))
        return {key: known[key] for key in ('recipe', 'seed', 'start', 'finished', 'left')}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f'{str(mark)!r} is damaged: {error!r}.', 'Give a new --work-dir.') from error


def _plain(value: Any) -> Any:
    """A config as plain JSON, without what decides nothing."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if k not in _DECIDES_NOTHING}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f'{value.__module__}.{value.__qualname__}' if hasattr(value, '__qualname__') else repr(value)


def _refuse_other_backends(stages: Sequence[Stage]) -> None:
    """Processes meet once, before the first stage, in one way."""

    def backend(cfg: Config) -> Any:
        return (cfg.get('env_cfg') or {}).get('dist_cfg')

    for stage in stages[1:]:
        if backend(stage.cfg) != backend(stages[0].cfg):
            raise RecipeError(
                f'Stage {stage.name!r} has env_cfg.dist_cfg = {backend(stage.cfg)}, stage {stages[0].name!r} has {backend(stages[0].cfg)}.',
                'Set one in all stages: the processes of all of them are the same.',
            )
