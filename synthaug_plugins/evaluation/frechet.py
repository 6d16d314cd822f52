"""The Frechet distance between two normal distributions whose moments are known: FID's formula.

Sets of images are compared by `metrics.frechet`, with torchmetrics, which takes samples only. Benchmarks on toy distributions know the true moments,
and a sample of them in their place would add its own error to what is measured.
"""

from __future__ import annotations

import numpy as np


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of features (N, D), N at least 2; the covariance divides by N - 1."""
    return features.mean(0, dtype=np.float64), np.atleast_2d(np.cov(features, rowvar=False, dtype=np.float64))


def frechet_distance(mu: np.ndarray, sigma: np.ndarray, mu_ref: np.ndarray, sigma_ref: np.ndarray) -> float:
    """|mu - mu_ref|^2 + tr(S + S_ref - 2 (S S_ref)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500).

    The trace of the square root is the sum of the square roots of S S_ref's eigenvalues, which are those of the symmetric
    R S_ref R with R = S^(1/2): no square root of an unsymmetric matrix, hence no imaginary parts and no failure at low rank.

    Args:
        mu, mu_ref: means (D,).
        sigma, sigma_ref: covariances (D, D).
    """
    values, vectors = np.linalg.eigh(sigma)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ sigma_ref @ root), 0)).sum()
    return float(((mu - mu_ref) ** 2).sum() + np.trace(sigma) + np.trace(sigma_ref) - 2 * cross)
