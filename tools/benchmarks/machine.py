"""On what a benchmark ran, for the first line of its output."""

from __future__ import annotations

import platform

import torch


def machine(device: torch.device) -> str:
    """'NVIDIA H200, torch 2.11.0' or 'x86_64 CPU (2 threads), torch 2.11.0'."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{platform.machine()} CPU ({torch.get_num_threads()} threads)'
    return f'{name}, torch {torch.__version__}'
