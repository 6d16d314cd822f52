"""From a recipe to a trained model: read it, let the plugins edit it, run it. Numbers equal those of MMPretrain's own tools."""

from __future__ import annotations

import copy
import importlib.util
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins import compat
from synthaug_plugins.errors import MissingExtra, RecipeError, SynthAugError, TrainingFailed, nearest
from synthaug_plugins.own_folder import refuse_file
from synthaug_plugins.training.checkpoints import newest_checkpoint
from synthaug_plugins.training.head_classes import check_head
from synthaug_plugins.training.key_queue import check_queue
from synthaug_plugins.training.processes import join, wrapper_without_gpu

if TYPE_CHECKING:
    import pluggy
    from mmengine.config import Config
    from mmengine.runner import Runner

KEY = 'synthaug'
_MMPRETRAIN = 'mmpretrain::'


def load_recipe(recipe: str | Path, cfg_options: Mapping[str, Any] | None = None) -> Config:
    """Read a trainer recipe.

    Args:
        recipe: a config file, or one of MMPretrain's own as `mmpretrain::resnet/resnet18_8xb16_cifar10.py`.
        cfg_options: overrides by dotted key, such as `{'train_dataloader.batch_size': 32}`.

    Raises:
        RecipeError: no such file, or a file that is not a config.
    """
    compat.apply()
    from mmengine.config import Config

    path = _mmpretrain_file(str(recipe)) if str(recipe).startswith(_MMPRETRAIN) else Path(recipe).expanduser()
    if not path.is_file():
        raise RecipeError(f'The recipe {str(recipe)!r} does not exist.', "Give a config file, or one of MMPretrain's as 'mmpretrain::folder/name.py'.")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: it may raise anything
        raise RecipeError(f'The recipe {str(recipe)!r} cannot be read: {type(error).__name__}: {error}.', 'Correct the file.') from error
    return lay_over(cfg, cfg_options or {}, str(recipe))


def lay_over(cfg: Config, cfg_options: Mapping[str, Any], recipe: str) -> Config:
    """Set values of a config that was read by dotted key, and return it.

    Raises:
        RecipeError: they do not fit; `recipe` is named.
    """
    try:
        cfg.merge_from_dict(dict(cfg_options))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RecipeError(f'The options {sorted(cfg_options)} do not fit {recipe!r}: {error}.', 'Correct the dotted keys.') from error
    return cfg


def _mmpretrain_file(reference: str) -> Path:
    import mmpretrain

    root = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
    name = reference.removeprefix(_MMPRETRAIN)
    path = root / name
    if not path.is_file():
        known = [p.relative_to(root).as_posix() for p in root.rglob('*.py')]
        raise RecipeError(f'MMPretrain has no recipe {name!r}.', nearest(name, known) if known else 'Install mmpretrain again.')
    return path


def configure(cfg: Config, plugin_manager: pluggy.PluginManager, extra_options: Mapping[str, Any] | None = None) -> Config:
    """Turn the recipe's `synthaug` dict into plain registry entries; the result runs under any MMEngine launcher.

    Args:
        cfg: the recipe; it is not changed.
        plugin_manager: from `synthaug_plugins.plugins`.
        extra_options: laid over the recipe's own, key by key, such as `{'mix': {'alpha': 0.2}}` from the command line.

    Raises:
        RecipeError: an option that no plugin knows, or one that is wrong; a store whose classes are not as many as the head's.
    """
    cfg = copy.deepcopy(cfg)
    _unmark_functions(cfg)
    options = own_options(cfg)
    cfg.pop(KEY, None)
    for key, value in (extra_options or {}).items():
        mine = options.get(key)
        options[key] = {**mine, **value} if isinstance(mine, dict) and isinstance(value, Mapping) else copy.deepcopy(value)
    plugin_manager.hook.synthaug_configure(cfg=cfg, options=options)
    if options:
        known = [name for names in plugin_manager.hook.synthaug_option_names() for name in names]
        left = next(iter(options))
        raise RecipeError(f'{KEY}: no plugin reads {left!r}.', nearest(left, known))
    check_head(cfg)
    return cfg


def own_options(cfg: Config) -> dict[str, Any]:
    """A copy of the recipe's `synthaug` dict; empty if it has none.

    Raises:
        RecipeError: it is no dict.
    """
    from mmengine.config import ConfigDict

    own = cfg.get(KEY) or {}
    if not isinstance(own, Mapping):
        raise RecipeError(f'{KEY} = {own!r} is not a dict.', f"Write {KEY} = dict(mix=dict(store='stores/name')).")
    return dict(_plain(own.to_dict() if isinstance(own, ConfigDict) else own))


def _plain(value: Any) -> Any:
    """Plain dicts and lists all the way down, without the `_scope_` marks of package bases."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if k != '_scope_'}
    return type(value)(_plain(v) for v in value) if isinstance(value, list | tuple) else value


def _unmark_functions(cfg: Config) -> None:
    """Take the `_scope_` marks of package bases out of the loaders' functions: MMEngine would call these with the mark as an argument."""
    for loader in (cfg.get(f'{name}_dataloader') for name in ('train', 'val', 'test')):
        for function in ('collate_fn', 'worker_init_fn'):
            if loader and isinstance(loader.get(function), dict):
                loader[function].pop('_scope_', None)


def explain(cfg: Config) -> str:
    """A configured recipe as the text of a config file, for MMPretrain's own tools/train.py or any other launcher."""
    return cfg.pretty_text


def train(cfg: Config, work_dir: str | Path, resume: bool | str | Path = False, launcher: str = 'none') -> Runner:
    """Train a configured recipe and return its Runner.

    Args:
        cfg: from `configure`; it is not changed.
        work_dir: where logs and checkpoints go.
        resume: True: from the newest whole checkpoint in `work_dir` if there is one; a path: from that checkpoint.
        launcher: 'none', or 'pytorch' under torchrun, as for MMEngine.

    Raises:
        RecipeError: the recipe does not train, or was not configured; `work_dir` is a file.
        MissingExtra: mmcv is not installed.
        TrainingFailed: the trainer raised; `error.txt` in `work_dir` holds its trace.
    """
    from mmengine.logging import print_log

    refuse_file(work_dir, '--work-dir')
    if not cfg.get('train_dataloader') or not cfg.get('train_cfg'):
        raise RecipeError('The recipe has no train_dataloader or no train_cfg.', 'Start from a recipe that trains.')
    checkpoint = newest_checkpoint(work_dir) if resume is True else resume or None
    changes: dict[str, Any] = {} if checkpoint is None else {'resume': True, 'load_from': str(checkpoint)}
    check_queue(cfg, launcher)
    with _failures_told(work_dir):
        runner = _build_runner(cfg, work_dir, launcher, changes)
        if resume is True and checkpoint is None:
            print_log(f'{work_dir} holds no checkpoint to resume from: training starts anew.', logger='current', level=logging.WARNING)
        try:
            runner.train()
        finally:
            stop_workers(runner)
    return runner


def test(cfg: Config, checkpoint: str | Path, work_dir: str | Path, launcher: str = 'none') -> dict[str, float]:
    """Evaluate a checkpoint on the recipe's test set and return its metrics by name.

    Args:
        cfg: from `configure`; it is not changed.
        checkpoint: a file that training wrote.
        work_dir: where the log goes.
        launcher: 'none', or 'pytorch' under torchrun.

    Raises:
        RecipeError: no such checkpoint, a recipe without a test set, or `work_dir` is a file.
    """
    refuse_file(work_dir, '--work-dir')
    if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
        raise RecipeError('The recipe has no test_dataloader or no test_evaluator.', 'Start from a recipe that tests.')
    if not Path(checkpoint).is_file():
        raise RecipeError(f'The checkpoint {str(checkpoint)!r} does not exist.', 'Give a .pth file that training wrote.')
    with _failures_told(work_dir):
        runner = _build_runner(cfg, work_dir, launcher, {'load_from': str(checkpoint)})
        try:
            return runner.test()
        finally:
            stop_workers(runner)


@contextmanager
def _failures_told(work_dir: str | Path) -> Iterator[None]:
    """What the trainer raises becomes one sentence; the trace that a developer wants goes to a file."""
    try:
        yield
    except SynthAugError:
        raise
    except Exception as error:  # a trainer and the user's own code may raise anything
        first = next(iter(str(error).strip().splitlines()), '').rstrip('.')
        trace = Path(work_dir) / 'error.txt'
        try:
            trace.parent.mkdir(parents=True, exist_ok=True)
            trace.write_text(traceback.format_exc(), encoding='utf-8')
            cure = f'The whole trace: {trace}'
        except OSError:
            cure = f'{str(work_dir)!r} cannot be written either.'
        raise TrainingFailed(f'The trainer stopped with {type(error).__name__}: {first[:300]}.', cure) from error


def _build_runner(cfg: Config, work_dir: str | Path, launcher: str, changes: Mapping[str, Any]) -> Runner:
    """The Runner of a configured recipe, with the loader settings that MMPretrain's own tools add."""
    if importlib.util.find_spec('mmcv') is None:
        raise MissingExtra('mmcv', 'mmcv', 'MMPretrain')
    compat.apply()
    import torch
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    cfg = copy.deepcopy(cfg)
    if cfg.get(KEY):
        raise RecipeError(f'The recipe still holds its {KEY} dict, which MMEngine would ignore.', 'Pass it through configure first.')
    join(launcher, (cfg.get('env_cfg') or {}).get('dist_cfg'))
    cfg.work_dir, cfg.launcher = str(work_dir), launcher
    cfg.update({**changes, **wrapper_without_gpu(cfg, launcher)})
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is not None:
            # What MMPretrain's tools/train.py sets, where the recipe does not.
            loader.setdefault('collate_fn', {'type': 'default_collate'})
            loader.setdefault('pin_memory', torch.cuda.is_available())
            # Without workers there is nothing to keep, and torch refuses to: num_workers=0 is often laid over a recipe that keeps them.
            loader['persistent_workers'] = loader.get('num_workers', 0) > 0 and loader.get('persistent_workers', True)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def stop_workers(runner: Runner) -> None:
    """End the loader processes of a Runner that is done.

    They would live on until Python collects the Runner; workers of a second Runner, forked meanwhile, hold their pipes
    open, and the end of the first ones then takes half a minute.
    """
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = None
        if hasattr(loop, 'dataloader'):
            loop.dataloader._iterator = None
