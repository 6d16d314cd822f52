"""Heads tuned the way He et al. (ICLR 2023) do it, through MMPretrain's own Runner, from the recipes that the package ships."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from synthaug_plugins.evaluation.fingerprint import run_key
from synthaug_plugins.evaluation.pool import Pool
from synthaug_plugins.evaluation.pool import Task as Call
from synthaug_plugins.evaluation.runs import METRIC, RunRecord
from synthaug_plugins.store.files import write_whole

if TYPE_CHECKING:
    import pluggy
    from mmengine.config import Config

REAL, SYNTHETIC = 'tuned_real', 'tuned_synthetic'
METHODS: Mapping[str, tuple[str, ...]] = {
    REAL: ('he2023_fewshot_real',),
    'tuned_mix': ('he2023_fewshot_mix',),
    'tuned_mix_sce': ('he2023_fewshot_mix_sce',),
    'synthetic_then_real': ('he2023_zeroshot', 'he2023_fewshot_phase_real'),
    'real_then_synthetic': ('he2023_fewshot_phase_real', 'he2023_zeroshot'),
    SYNTHETIC: ('he2023_zeroshot',),
    'tuned_synthetic_sce': ('he2023_zeroshot_sce',),
}
"""Shipped recipes by method, in the order in which they train; two are the phases of one training. SYNTHETIC's see no real image."""

VALIDATIONS = 30
"""How often a run is validated: the paper's 30 epochs."""

RESULT, HEAD = 'result.json', 'head.safetensors'


@dataclass(frozen=True)
class Setting:
    """What all runs of a study have in common.

    Attributes:
        data: folder with `train/` and perhaps `val/`.
        clip: options of the plugin `clip`, cached.
        store: folder of the synthetic images, or None.
        select: which of them.
        steps: optimiser steps of every run; the phases of one training share them.
        val_shots: validation images per class where there is no `val/`; None for min(shots, 4).
        variants: whether synthetic images started from real ones.
    """

    data: Path
    clip: Mapping[str, Any]
    store: str | None
    select: str | None
    steps: int
    val_shots: int | None
    variants: bool = False


def methods_of(setting: Setting, has_teacher: bool, real: bool) -> list[str]:
    """The methods that a study can run: those that mix need a store, SCE the teacher's logits in it, those without real images one from nothing.

    Args:
        real: those that see real shots, or those that see none.
    """
    if setting.variants and not real:
        return []
    found = [m for m, recipes in METHODS.items() if (recipes[-1].startswith('he2023_zeroshot') and len(recipes) == 1) != real]
    return [m for m in found if (setting.store or m == REAL) and (has_teacher or not m.endswith('_sce'))]


def stages(method: str, setting: Setting, shots: int, seed: int, manager: pluggy.PluginManager, lr_scale: float = 1.0) -> list[Config]:
    """The configured recipe of each phase of a method, without test images.

    Args:
        shots: real images per class; 0 where the method sees none, which then has no validation either and takes its last weights.
        lr_scale: factor on the recipes' learning rates.

    Raises:
        RecipeError and others: as `training.run.configure`.
    """
    from synthaug_plugins.recipes import find_recipe
    from synthaug_plugins.training.run import configure, load_recipe

    recipes = METHODS[method]
    configs = []
    for recipe in recipes:
        cfg = load_recipe(find_recipe(recipe, 'train'))
        cfg.synthaug.clip = dict(setting.clip)
        few = {
            'type': 'synthaug_plugins.FewShotDataset',
            'data_root': str(setting.data / 'train'),
            'shots': shots,
            'seed': seed,
            'val_shots': setting.val_shots,
        }
        if cfg.train_dataloader.dataset.type == 'synthaug_plugins.StoreDataset':
            cfg.train_dataloader.dataset |= {'store': setting.store, 'select': setting.select}
            if setting.variants:  # of validation images, and of shots of other runs, otherwise
                cfg.train_dataloader.dataset.variants_of = few
        else:
            cfg.train_dataloader.dataset = few
        if cfg.synthaug.get('mix'):
            # Steps are counted, not epochs.
            cfg.synthaug.mix |= {'store': setting.store, 'select': setting.select, 'epoch_steps': None}
        _by_steps(cfg, setting.steps // len(recipes))
        _validated(cfg, setting, few)
        for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
            cfg[key] = None
        cfg.randomness = {'seed': seed}
        cfg.optim_wrapper.optimizer.lr *= lr_scale
        configs.append(configure(cfg, manager))
    return configs


def _by_steps(cfg: Config, steps: int) -> None:
    cfg.train_cfg = {'by_epoch': False, 'max_iters': steps, 'val_interval': max(1, steps // VALIDATIONS)}
    cfg.train_dataloader.sampler = {'type': 'mmengine.InfiniteSampler', 'shuffle': True}
    cfg.param_scheduler = [{'type': 'mmengine.CosineAnnealingLR', 'by_epoch': False, 'begin': 0, 'end': steps}]
    cfg.log_processor = {'by_epoch': False}


def _validated(cfg: Config, setting: Setting, few: Mapping[str, Any]) -> None:
    """Choose the best weights on validation images, or take the last where the method may see no real image."""
    checkpoint: dict[str, Any] = {'type': 'mmengine.CheckpointHook', 'by_epoch': False, 'interval': -1}
    if few['shots']:
        own = setting.data / 'val'
        dataset = {'type': 'mmpretrain.CustomDataset', 'data_root': str(own)} if own.is_dir() else {**few, 'part': 'val'}
        cfg.val_dataloader = {
            'batch_size': 256,
            'num_workers': 0,
            'persistent_workers': False,
            'sampler': {'type': 'mmengine.DefaultSampler', 'shuffle': False},
            'dataset': dataset,
        }
        cfg.val_cfg, cfg.val_evaluator = {}, [{'type': 'mmpretrain.Accuracy', 'topk': (1,)}]
        checkpoint |= {'save_best': METRIC, 'rule': 'greater', 'save_last': False}
    else:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = checkpoint
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), {'type': 'synthaug_plugins.RunRecord'}]


def chain_key(configs: Sequence[Config], listings: dict[str, str], clip: str) -> str:
    """Name of the folder of a method's run: the hash of what decides all of its phases.

    Args:
        clip: SHA-256 of the CLIP: the name of one on a hub, or inside of this package, does not say which weights it has today.
    """
    return hashlib.sha256(' '.join([clip, *(run_key(cfg, listings) for cfg in configs)]).encode()).hexdigest()[:16]


def tune(configs: Sequence[Config], folder: Path) -> dict[str, Any]:
    """Train the phases of one method, each from the weights of the one before, and write `head.safetensors` and, last, `result.json`.

    Returns: steps, seconds (training without validation) over all phases; val (best top-1 of the last phase, percent; None without validation).
    """
    from safetensors.torch import save_file

    from synthaug_plugins.training.run import train

    steps, seconds, checkpoint, val = 0, 0.0, None, None
    for number, cfg in enumerate(configs):
        cfg = copy.deepcopy(cfg)
        # MMEngine keeps loggers and message hubs by experiment name, for the whole process: every run needs its own.
        cfg.experiment_name = f'{folder.name}-{number}-{time.time_ns()}'
        cfg.load_from = checkpoint
        work_dir = folder / f'phase-{number + 1}'
        runner = train(cfg, work_dir)
        record = next(h for h in runner.hooks if isinstance(h, RunRecord))
        steps, seconds = steps + record.iterations, seconds + record.seconds
        if record.curve:
            checkpoint, val = str(runner.message_hub.get_info('best_ckpt')), max(top1 for _, top1 in record.curve)
        else:
            checkpoint = (work_dir / 'last_checkpoint').read_text(encoding='utf-8').strip()
    state = torch.load(str(checkpoint), map_location='cpu', weights_only=True)['state_dict']
    save_file({'weight': state['head.fc.weight'].contiguous(), 'bias': state['head.fc.bias'].contiguous()}, folder / HEAD)
    result = {'steps': steps, 'seconds': seconds, 'val': val}
    write_whole(folder / RESULT, (json.dumps(result, indent=1) + '\n').encode())
    return result


def tuned_head(folder: Path) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """What `tune` wrote: weights (N, d), biases (N,), its result."""
    from safetensors.torch import load_file

    head = load_file(folder / HEAD)
    return head['weight'], head['bias'], json.loads((folder / RESULT).read_text(encoding='utf-8'))


Heads = dict[tuple[str, int, int], tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]
"""Weights, biases and result of tuned heads by (method, shots, seed)."""


def tuned_heads(
    setting: Setting,
    clip: str,
    draws: Mapping[tuple[int, int], Any],
    teacher: bool,
    lr_scales: Sequence[float],
    out: Path,
    manager: pluggy.PluginManager,
    jobs: int,
    setup: Callable[[], object] | None,
    progress: Callable[[str], None],
) -> Heads:
    """The heads of all methods, shots and seeds, each with the learning rate that validation chose: those that are missing are trained.

    Args:
        setting: of the study.
        clip: SHA-256 of the CLIP, part of the runs' keys.
        draws: those of the shots, by (shots, seed).
        teacher: whether the store has a teacher's logits.
        lr_scales: factors on the published learning rates.
        out: the study's folder.
        manager, jobs, setup, progress: see `study.study`.

    Returns: weights (N, d), biases (N,) and result (see `tune`, with `chosen`) by (method, shots, seed).
    """
    wanted = [(m, k, s, scale) for m in methods_of(setting, teacher, real=True) for k, s in draws for scale in lr_scales]
    wanted += [(m, 0, s, lr_scales[0]) for m in methods_of(setting, teacher, real=False) for s in dict.fromkeys(s for _, s in draws)]
    listings: dict[str, str] = {}
    folders: dict[tuple[str, int, int, float], Path] = {}
    missing = []
    for method, k, seed, scale in wanted:
        configs = stages(method, setting, k, seed, manager, scale)
        folder = folders[method, k, seed, scale] = out / 'runs' / chain_key(configs, listings, clip)
        if not (folder / RESULT).exists():
            label = f'{method}, {k} shots, seed {seed}' + (f', lr x {scale:g}' if len(lr_scales) > 1 else '')
            missing.append(Call(label, folder / 'log.txt', tune, (configs, folder)))
    count = iter(range(1, len(missing) + 1))
    with Pool(jobs, setup) as pool:
        pool.run(missing, lambda label, r: progress(f'[{next(count)}/{len(missing)}] {label}: {r["steps"]} steps in {r["seconds"]:.1f} s'))
    best: Heads = {}
    for (method, k, seed, scale), folder in folders.items():
        weight, bias, found = tuned_head(folder)
        found['chosen'] = {'lr_scale': scale} if k and len(lr_scales) > 1 else {}
        key = method, k, seed
        if key not in best or found['val'] > best[key][2]['val']:  # the first of equals
            best[key] = weight, bias, found
    return best
