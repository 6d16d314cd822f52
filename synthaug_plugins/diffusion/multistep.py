"""DPM-Solver++(2M) and UniPC: diffusers' schedulers on this package's noise levels.

The schedulers keep their state in variance-preserving coordinates, x / sqrt(1 + sigma^2), and predict the clean image; D is
that prediction, so that any denoiser runs in them. Each step costs one call, earlier ones are reused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Multistep:
    """The steps of a multistep solver from a sequence of noise levels to 0.

    'dpmpp_2m' is Lu et al. 2022, arXiv 2211.01095, Algorithm 2; 'unipc' is Zhao et al. 2023, arXiv 2302.04867, order 2, B_2(h).
    The first and the last step are of order 1. UniPC solves a 2x2 system on the device and so waits for it.

    Args:
        solver: 'dpmpp_2m' or 'unipc'.
        sigmas: falling noise levels, without the final 0.
        device: of the state.
        dtype: of the state.
    """

    def __init__(self, solver: str, sigmas: list[float], device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

        self._unipc = solver == 'unipc'
        scheduler: Any = UniPCMultistepScheduler if self._unipc else DPMSolverMultistepScheduler
        self._scheduler = scheduler(prediction_type='sample')
        self._scheduler.set_timesteps(len(sigmas))
        # UniPC moves each level to the state's device, which waits for it unless it is there; DPM-Solver++ works on the host.
        table = torch.tensor([*sigmas, 0.0], dtype=dtype if self._unipc else torch.float64, device='cpu')
        self._scheduler.sigmas = table.to(device) if self._unipc else table
        self._scheduler.timesteps = torch.arange(len(sigmas))
        self._scheduler.set_begin_index(0)
        self._alphas = [(1 + sigma**2) ** -0.5 for sigma in [*sigmas, 0.0]]
        self._last: Tensor | None = None
        self._step, self._num_steps = 0, len(sigmas)

    def step(self, x: Tensor, denoised: Tensor) -> Tensor:
        """The state at the next noise level, in EDM's coordinates.

        Args:
            x: (B, C, H, W), the state at this level.
            denoised: D(x; sigma), like x.
        """
        i, scheduler = self._step, self._scheduler
        state = self._alphas[i] * x
        if self._unipc:
            state = scheduler.step(denoised, i, state, return_dict=False)[0]
        else:
            # Not its `step`, which rounds the state to float32.
            scheduler._step_index = i
            if self._last is None or i == self._num_steps - 1:
                state = scheduler.dpm_solver_first_order_update(denoised, sample=state)
            else:
                state = scheduler.multistep_dpm_solver_second_order_update([self._last, denoised], sample=state)
        self._last, self._step = denoised, i + 1
        return state / self._alphas[i + 1]
