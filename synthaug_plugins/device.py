"""Where torch computes: what a command line or a recipe calls a device, made one."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from synthaug_plugins.errors import RecipeError, first_line

if TYPE_CHECKING:
    import torch


def choose_device(name: str, option: str = '--device') -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Torch loads at the call.

    Args:
        option: what the user calls it, for the refusal.

    Raises:
        RecipeError: a device that torch does not know or this machine does not have.
    """
    import torch

    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f'{option} {name}: {first_line(error)}.', 'Use auto, cpu or cuda.') from error
    return device


def device_name(device: torch.device | str) -> str:
    """A device by the name of its kind, as cards, plans and reports have it: 'NVIDIA H100 PCIe', 'x86_64 CPU'."""
    import torch

    return torch.cuda.get_device_name(device) if torch.device(device).type == 'cuda' else f'{platform.machine()} CPU'
