"""Training state on disk: tensors as safetensors, the rest as JSON, published in one rename."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.errors import ModelError

STATE = 'checkpoint.json'


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors first, then `checkpoint.json`, which names them: it is the commit mark.

    A kill at any moment leaves the previous checkpoint or the new one. The previous tensors go last; what an earlier kill
    left behind goes with them.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights, partial = folder / f'step-{step:09d}.safetensors', folder / '.tensors.partial'
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial)
    _publish(partial, weights)
    partial = folder / '.state.partial'
    partial.write_text(json.dumps({**state, 'step': step, 'tensors': weights.name, 'sha256': _sha256(weights)}, indent=1) + '\n', encoding='utf-8')
    _publish(partial, folder / STATE)
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


def _publish(partial: Path, final: Path) -> None:
    """Flush to disk, then rename: after a power cut the final name never holds half a file."""
    with open(partial, 'rb') as file:
        os.fsync(file.fileno())
    partial.replace(final)
