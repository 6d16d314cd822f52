"""Training state on disk: tensors as safetensors, the rest as JSON, published in one rename."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.learning.ema import Snapshot
from synthaug_plugins.weights import publish

STATE = 'checkpoint.json'
_SNAPSHOT = re.compile(r'power-ema-([0-9.]+)-step-([0-9]+)\.safetensors')


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors first, then `checkpoint.json`, which names them: it is the commit mark.

    A kill at any moment leaves the previous checkpoint or the new one. The previous tensors go last; what an earlier kill
    left behind goes with them.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights, unfinished = folder / f'step-{step:09d}.safetensors', folder / '.tensors.partial'
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, unfinished)
    publish(unfinished, weights)
    unfinished = folder / '.state.partial'
    unfinished.write_text(json.dumps({**state, 'step': step, 'tensors': weights.name, 'sha256': _sha256(weights)}, indent=1) + '\n', encoding='utf-8')
    publish(unfinished, folder / STATE)
    for old in folder.glob('step-*.safetensors'):
        if old != weights:
            old.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on CPU) and state of the newest checkpoint, or None where there is none.

    Raises:
        ModelError: the checkpoint is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / STATE
    if not path.is_file():
        return None
    cure = 'Remove the folder to train from the start.'
    try:
        state = json.loads(path.read_text(encoding='utf-8'))
        weights = folder / state['tensors']
        if _sha256(weights) != state['sha256']:
            raise ModelError(f'{str(weights)!r} does not have the hash that {STATE} names.', cure)
        return load_file(weights), state
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f'The checkpoint in {str(folder)!r} cannot be read: {error!r}.', cure) from error


def saved_step(folder: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none; its tensors are not read."""
    path = folder / STATE
    return int(json.loads(path.read_text(encoding='utf-8'))['step']) if path.is_file() else 0


def take_up(
    folder: Path, identity: Mapping[str, Any], what: str = 'training', cure: str = 'Restore these values, or give a new folder.'
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """`load_checkpoint` of a run that goes on, or None where it begins.

    Args:
        folder: its work folder.
        identity: all that may not change between its calls, plain JSON; the checkpoint's state holds it under 'identity'.
        what, cure: kind of run, and what to do where it is another, for messages.

    Raises:
        ModelError: the checkpoint is damaged.
        RecipeError: it is another run's, and the keys that differ are named; or the folder holds other files and no checkpoint.
    """
    found = load_checkpoint(folder)
    if found is None:
        check_work_dir(folder)
        return None
    before = found[1]['identity']
    differ = sorted(k for k in identity.keys() | before.keys() if identity.get(k) != before.get(k))
    if differ:
        raise RecipeError(f'{str(folder)!r} holds another {what}; these differ: {", ".join(differ)}.', cure)
    return found


def remove_checkpoint(folder: Path) -> None:
    """Remove a folder of checkpoints, the commit mark first: a kill at any moment leaves a checkpoint or none."""
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def check_work_dir(folder: Path) -> None:
    """Refuse (RecipeError) a folder without a checkpoint that holds files of others; what a kill before the first checkpoint left is ours."""
    if folder.is_dir() and any(not p.name.startswith(('.', 'step-', 'power-ema-')) for p in folder.iterdir()):
        raise RecipeError(f'The folder {str(folder)!r} holds other files and no checkpoint.', 'Give a new or empty folder.')


def save_snapshot(folder: Path, step: int, std: float, tensors: Mapping[str, Tensor]) -> None:
    """Keep a power-function average (float32) for `reconstruct`. A training that repeats the step after a kill writes the same file."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / '.snapshot.partial'
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, unfinished)
    publish(unfinished, folder / f'power-ema-{std:g}-step-{step:09d}.safetensors')


def load_snapshots(folder: Path) -> list[Snapshot]:
    """Every snapshot in a training's work folder, by step; their tensors are read when asked for."""
    from safetensors.torch import load_file

    found = []
    for path in sorted(folder.glob('power-ema-*.safetensors')):
        match = _SNAPSHOT.fullmatch(path.name)
        if match:
            found.append(Snapshot(int(match[2]), float(match[1]), partial(load_file, path)))
    return sorted(found, key=lambda s: (s.step, s.std))


def adam_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The state of an Adam-like optimizer as named tensors: `optimizer.<parameter>.<entry>`."""
    return {f'optimizer.{names[p]}.{k}': torch.as_tensor(v) for p, entries in optimizer.state.items() for k, v in entries.items()}


def load_adam_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]) -> None:
    """Undo `adam_tensors`, in place."""
    for p, name in names.items():
        prefix = f'optimizer.{name}.'
        entries = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        # As torch keeps it: the step counter stays where it was saved (on the CPU), the moments live with the parameter.
        optimizer.state[p] = {k: v.clone() if k == 'step' else v.to(p.device, p.dtype, copy=True) for k, v in entries.items()}


def _sha256(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
