"""On what a benchmark ran, for the first line of its output."""

from __future__ import annotations

import torch

from synthaug_plugins.device import device_name


def machine(device: torch.device) -> str:
    """'NVIDIA H200, torch 2.11.0' or 'x86_64 CPU (2 threads), torch 2.11.0'."""
    threads = '' if device.type == 'cuda' else f' ({torch.get_num_threads()} threads)'
    return f'{device_name(device)}{threads}, torch {torch.__version__}'
