"""The closed-form mixture that the tests of samplers and guidance share."""

from __future__ import annotations

import math

import torch

from synthaug_plugins.diffusion import GaussianMixture


def small_mixture(sigma_min: float = 0.0, sigma_max: float = math.inf) -> GaussianMixture:
    """Three clusters of 2x4x4 images within [-1, 1], four classes."""
    g = torch.Generator().manual_seed(1)
    means = 1.2 * torch.rand(3, 2, 4, 4, generator=g, dtype=torch.float64) - 0.6
    class_weights = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, torch.tensor([0.3, 0.2, 0.4]), class_weights, sigma_min, sigma_max)
