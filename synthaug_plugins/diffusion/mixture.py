"""A Gaussian mixture, whose denoiser is known in closed form: the truth that samplers and guidance can be held against."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class GaussianMixture:
    """A denoiser: D(x; sigma) = E[y | y + sigma n = x] for y ~ sum_k w_k N(mean_k, std_k^2 I), exact in float64.

    Args:
        weights: (K,), sum 1.
        means: (K, C, H, W).
        stds: (K,).
        class_weights: (label_dim, K), the weights of each class; `cond`, one-hot rows (B, label_dim), chooses among them.
        sigma_min, sigma_max: the supported range.
    """

    def __init__(
        self, weights: Tensor, means: Tensor, stds: Tensor, class_weights: Tensor | None = None, sigma_min: float = 0.0, sigma_max: float = math.inf
    ) -> None:
        self.weights, self.means, self.stds = weights.double(), means.double(), stds.double()
        self.class_weights = None if class_weights is None else class_weights.double()
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in x's dtype; sigma () or (B,)."""
        r = self._log_terms(x, sigma, cond).softmax(dim=1)
        s = self._column(sigma)
        v = self.stds**2 + s**2
        shrunk = (r * self.stds**2 / v).sum(dim=1)[:, None] * x.double().flatten(1)
        return (shrunk + (r * s**2 / v) @ self.means.flatten(1)).reshape(x.shape).to(x.dtype)

    def log_density(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B,): ln p(x; sigma) of the mixture blurred by sigma; its gradient is (D - x) / sigma^2."""
        return self._log_terms(x, sigma, cond).logsumexp(dim=1) - x[0].numel() / 2 * math.log(2 * math.pi)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of the flattened images, D = C H W."""
        means, w = self.means.flatten(1), self.weights[:, None]
        mean = (w * means).sum(0)
        within = (self.weights * self.stds**2).sum() * torch.eye(len(mean), dtype=torch.float64)
        return mean, within + (w * (means - mean)).T @ (means - mean)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, C, H, W) exact samples."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.means.shape[1:], dtype=torch.float64, generator=generator)
        return self.means[k] + self.stds[k][:, None, None, None] * noise

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Every noise level is supported."""
        return sigma

    def _log_terms(self, x: Tensor, sigma: Tensor, cond: Tensor | None) -> Tensor:
        """(B, K): ln(w_k N(x; mean_k, (std_k^2 + sigma^2) I)) without the factor that all share."""
        weights = self.weights[None] if cond is None or self.class_weights is None else cond.double() @ self.class_weights
        v = self.stds**2 + self._column(sigma) ** 2
        flat, means = x.double().flatten(1), self.means.flatten(1)
        distance = (flat**2).sum(1)[:, None] - 2 * flat @ means.T + (means**2).sum(1)
        return weights.log() - x[0].numel() / 2 * v.log() - distance / (2 * v)

    @staticmethod
    def _column(sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1)
