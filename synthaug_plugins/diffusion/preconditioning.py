"""Denoisers made of a raw network: D = c_skip x + c_out F(c_in x; c_noise, labels) in the four ways of EDM's Table 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from synthaug_plugins.diffusion.schedules import VPSchedule, model_sigmas, nearest_sigma


class Precond(nn.Module, ABC):
    """A denoiser around a raw network; subclasses say the coefficients.

    The network runs in the dtype of its own parameters and gets c_noise in float32 at least: bfloat16 would blur the noise
    level. Coefficients are worked out in float64, the sum in the dtype of x (float32 at least).

    Args:
        network: called as `network(x, c_noise, labels)`, with `augment_labels=` where there are any; x (B, C, H, W), c_noise
            (B,), labels (B,) int64, (B, d) float or None, augment_labels (B, A) or None. Returns (B, C, H, W); further channels are dropped
            by `IDDPMPrecond` only.
        sigma_min, sigma_max: supported noise levels.
    """

    def __init__(self, network: nn.Module, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in, c_noise) at noise levels of any shape, each like sigma, float64."""

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma) of the training loss (EDM, Table 1), like sigma, float64."""
        return _double(sigma) ** -2

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Every noise level is supported."""
        return sigma

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """See `Denoiser.__call__`; augment_labels (B, A): what augmentation did to the images, in training only."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        coefficients = self.coefficients(_double(torch.as_tensor(sigma)))
        c_skip, c_out = (_column(c, x) for c in coefficients[:2])
        scaled, c_noise = self._scaled(x, *coefficients[2:])
        extra = {} if augment_labels is None else {'augment_labels': augment_labels.to(x.device, scaled.dtype)}
        F_x = self.network(scaled, c_noise, cond, **extra)
        return c_skip * x + c_out * self._image(F_x, x).to(x.dtype)

    def network_input(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given of x and sigma (see `forward`): c_in x in the network's dtype, and c_noise (B,)."""
        return self._scaled(x.to(torch.promote_types(x.dtype, torch.float32)), *self.coefficients(_double(torch.as_tensor(sigma)))[2:])

    def _scaled(self, x: Tensor, c_in: Tensor, c_noise: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        return (_column(c_in, x) * x).to(dtype), _per_sample(c_noise, len(x), x.device, torch.promote_types(dtype, torch.float32))

    def _image(self, F_x: Tensor, x: Tensor) -> Tensor:
        return F_x


class EDMPrecond(Precond):
    """EDM, Table 1, last column: input and target of the network have unit variance at every noise level.

    With a network that starts at zero the expected loss is 1 at every noise level.

    Args:
        network, sigma_min, sigma_max: see `Precond`.
        sigma_data: root mean square of the training images' values.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5, sigma_min: float = 0.0, sigma_max: float = math.inf) -> None:
        super().__init__(network, sigma_min, sigma_max)
        self.sigma_data = float(sigma_data)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Precond.coefficients`."""
        sigma, sd = _double(sigma), self.sigma_data
        root = (sigma**2 + sd**2).sqrt()
        return (sd / root) ** 2, sigma * sd / root, 1 / root, sigma.log() / 4

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2."""
        sigma = _double(sigma)
        return sigma**-2 + self.sigma_data**-2


class VPPrecond(Precond):
    """EDM, Table 1, VP (DDPM++ cont.): the network predicts noise from variance-preserving input.

    Args:
        network: see `Precond`.
        beta_d, beta_min: see `VPSchedule`.
        M: time steps of the original training; c_noise = (M - 1) t.
        epsilon_t: smallest time that was trained; sigma_min = sigma(epsilon_t), sigma_max = sigma(1).
    """

    def __init__(self, network: nn.Module, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000, epsilon_t: float = 1e-5) -> None:
        self.M, self.schedule = M, VPSchedule(beta_d, beta_min)
        low, high = self.schedule.sigma(torch.tensor([epsilon_t, 1.0], dtype=torch.float64, device='cpu')).tolist()
        super().__init__(network, low, high)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Precond.coefficients`."""
        sigma = _double(sigma)
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), (self.M - 1) * self.schedule.time(sigma)


class VEPrecond(Precond):
    """EDM, Table 1, VE (NCSN++ cont.): the network predicts noise from input as it is.

    Args:
        network, sigma_min, sigma_max: see `Precond`.
    """

    def __init__(self, network: nn.Module, sigma_min: float = 0.02, sigma_max: float = 100.0) -> None:
        super().__init__(network, sigma_min, sigma_max)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Precond.coefficients`."""
        sigma = _double(sigma)
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()


class IDDPMPrecond(Precond):
    """EDM, Table 1, iDDPM + DDIM (ADM): a network trained at M discrete noise levels; channels beyond the image's are dropped.

    c_noise is the model's own step number: 0 at the lowest noise, M - 1 at the highest. Noise levels below u_{M-1} get step 0.

    Args:
        network: see `Precond`.
        C_1, C_2, M: see `iddpm_table`; sigma_min = u_{M-1}, sigma_max = u_0.
    """

    def __init__(self, network: nn.Module, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> None:
        self._options, self.M = (M, C_1, C_2), M
        table = model_sigmas(*self._options, torch.device('cpu'))
        super().__init__(network, float(table[-1]), float(table[0]))

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Precond.coefficients`."""
        sigma = _double(sigma)
        index = nearest_sigma(model_sigmas(*self._options, sigma.device), sigma)[1]
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), (self.M - 1 - index).double()

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest of the M levels, float64."""
        sigma = _double(sigma)
        return nearest_sigma(model_sigmas(*self._options, sigma.device), sigma)[0]

    def _image(self, F_x: Tensor, x: Tensor) -> Tensor:
        return F_x[:, : x.shape[1]]


def _double(sigma: Tensor) -> Tensor:
    """float64, on the CPU where the device has none."""
    return sigma.to('cpu' if sigma.device.type == 'mps' else sigma.device, torch.float64)


def _per_sample(c: Tensor, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B,) on the device from (), (1,) or (B,)."""
    if c.ndim == 0 and c.device.type == 'cpu':
        return torch.full((batch_size,), float(c), dtype=dtype, device=device)
    return c.to(device, dtype).reshape(-1).expand(batch_size)


def _column(c: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1) like x. A 0-dim CPU number stays as it is: it enters a kernel as its argument, without a copy that would wait for the device."""
    return c if c.ndim == 0 else c.to(x).reshape(-1, 1, 1, 1)
