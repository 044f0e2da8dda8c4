"""Adaptive importance fusion and fluctuation (arXiv 2412.15127), as pure functions of per-batch importance.

The paper fuses its coarse and fine metrics by homoscedastic uncertainty: each metric k is a noisy view of one latent
importance f(s), y_k,b(s) ~ N(f(s), sigma_k^2). The negative log-likelihood is minimised over f and sigma in closed
coordinate updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Fusion", "fluctuation", "fuse", "standardise"]


@dataclass(frozen=True)
class Fusion:
    """Fused importance.

    `importance` [S]: the paper's I(s) = sum_k y_k(s) / (2 sigma_k^2) + log prod_k sigma_k. `per_batch` [B, S]: the
    same sum for every batch without the log term, which is one constant for the whole model and would only shift the
    mean that fluctuation divides by. `sigmas` [K], `likelihood`: the negative log-likelihood after each update.
    """

    importance: np.ndarray
    per_batch: np.ndarray
    sigmas: np.ndarray
    likelihood: tuple[float, ...]


def fuse(views: np.ndarray, iterations: int = 50, floor: float = 1e-6) -> Fusion:
    """Fuse `views` [K, B, S]: K metrics, B batches, S structures of the whole model.

    Every metric is first scaled to mean 1 over the model. Raises ValueError for fewer than 2 batches (sigma would go
    to 0), or a metric that is zero everywhere (nothing was learnt: gradients vanish).
    """
    if views.ndim != 3 or views.shape[1] < 2:
        raise ValueError("fusion needs at least 2 calibration batches")
    scale = views.mean(axis=(1, 2), keepdims=True)
    if not np.all(scale > 0):
        raise ValueError("an importance metric is zero or not finite everywhere: the calibration loss has no gradient")
    scaled = views.astype(np.float64) / scale
    means = scaled.mean(axis=1)  # [K, S]
    variances = np.ones(len(views))
    history: list[float] = []
    for _ in range(iterations):
        latent = (means / variances[:, None]).sum(0) / (1 / variances).sum()
        variances = np.maximum(np.square(scaled - latent).mean(axis=(1, 2)), floor)
        history.append(float((0.5 + 0.5 * np.log(variances)).sum()))
        if len(history) > 1 and abs(history[-2] - history[-1]) < 1e-10:
            break
    per_batch = (scaled / (2 * variances[:, None, None])).sum(0)
    importance = per_batch.mean(0) + 0.5 * np.log(variances).sum()
    return Fusion(importance, per_batch, np.sqrt(variances), tuple(history))


def fluctuation(per_batch: np.ndarray, epsilon: float = 1e-12) -> np.ndarray:
    """M(s) = Var_b[I_b(s)] / (E_b[I_b(s)] + eps)^2 of `per_batch` [B, S]; returns [S]."""
    return per_batch.var(axis=0) / np.square(per_batch.mean(axis=0) + epsilon)


def standardise(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """z-score of `values` [S] within each group of `groups` [S]; a group without spread becomes 0."""
    out = np.zeros(len(values), dtype=np.float64)
    for group in np.unique(groups):
        inside = groups == group
        spread = values[inside].std()
        if spread > 0:
            out[inside] = (values[inside] - values[inside].mean()) / spread
    return out
