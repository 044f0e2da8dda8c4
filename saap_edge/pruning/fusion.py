"""Adaptive importance fusion and fluctuation (arXiv 2412.15127), as pure functions of per-batch importance.

The paper fuses its coarse and fine metrics by homoscedastic uncertainty: each metric k is a noisy view of one latent
importance f(s), y_k,b(s) ~ N(f(s), sigma_k^2). The negative log-likelihood is minimised over f and sigma in turn; each
step has a closed form. The same holds for any number of views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Fusion", "fluctuation", "fuse", "standardise"]


@dataclass(frozen=True)
class Fusion:
    """Fused importance of S structures, from K metrics over B batches.

    Attributes:
        importance: [S], the paper's I(s) = sum_k y_k(s) / (2 sigma_k^2) + log prod_k sigma_k.
        per_batch: [B, S], the sum over k of every batch. It has no log term, which would only shift the mean that
            `fluctuation` divides by.
        sigmas: [K, groups], the noise of every metric.
        likelihood: the mean negative log-likelihood after each update.
    """

    importance: np.ndarray
    per_batch: np.ndarray
    sigmas: np.ndarray
    likelihood: tuple[float, ...]


def fuse(
    views: np.ndarray,
    groups: np.ndarray | None = None,
    scale: Literal["mean", "log"] = "mean",
    iterations: int = 50,
    floor: float = 1e-6,
) -> Fusion:
    """Fuse `views` [K, B, S]: K metrics, B batches, S structures of the whole model.

    Args:
        groups: [S], a number per structure; structures of equal number share their sigmas. One group where absent. A
            metric may be noisier in one layer than in another; with groups the log term then counts between layers.
        scale: divide every metric by its mean over the model, or take logarithms and subtract their mean.
        iterations: most updates of f and sigma.
        floor: least variance.

    Raises ValueError for fewer than 2 batches (sigma would go to 0), and for a metric whose mean is zero or not finite
    (a loss without gradient gives such ones).

    Two views over two batches of three structures. Both rank the structures alike:

    >>> views = np.array([[[1.0, 2, 3], [1, 2, 3]], [[2, 4, 6], [2, 5, 6]]])
    >>> np.argsort(fuse(views).importance).tolist()
    [0, 1, 2]
    """
    if views.ndim != 3 or views.shape[1] < 2:
        raise ValueError("fusion needs at least 2 calibration batches")
    mean = views.mean(axis=(1, 2), keepdims=True)
    if not np.all(mean > 0) or not np.isfinite(mean).all():
        raise ValueError("an importance metric is zero or not finite everywhere: the calibration loss has no gradient")
    scaled = views.astype(np.float64) / mean
    if scale == "log":
        scaled = np.log(scaled + 1e-12)
        scaled -= scaled.mean(axis=(1, 2), keepdims=True)
    groups = np.zeros(views.shape[2], dtype=int) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(groups)
    means = scaled.mean(axis=1)  # [K, S]
    variances = np.ones((len(views), len(sizes)))
    history: list[float] = []
    for _ in range(iterations):
        inverse = 1 / variances[:, groups]
        latent = (means * inverse).sum(0) / inverse.sum(0)
        noise = np.square(scaled - latent).mean(axis=1)
        variances = np.stack([np.bincount(groups, weights=row) / sizes for row in noise])
        variances = np.maximum(variances, floor)
        history.append(float(((0.5 + 0.5 * np.log(variances)).sum(0) * sizes).sum() / sizes.sum()))
        if len(history) > 1 and abs(history[-2] - history[-1]) < 1e-10:
            break
    per_batch = (scaled / (2 * variances[:, None, groups])).sum(0)
    importance = per_batch.mean(0) + 0.5 * np.log(variances).sum(0)[groups]
    return Fusion(importance, per_batch, np.sqrt(variances), tuple(history))


def fluctuation(per_batch: np.ndarray, epsilon: float = 1e-12) -> np.ndarray:
    """How much importance varies between batches (arXiv 2412.15127): Var_b[I_b(s)] / (E_b[I_b(s)]^2 + eps).

    `per_batch` is [B, S]; returns [S], no unit.

    >>> fluctuation(np.array([[1.0, 2.0], [3.0, 2.0]])).round(6).tolist()
    [0.25, 0.0]
    """
    ratio: np.ndarray = per_batch.var(axis=0) / (np.square(per_batch.mean(axis=0)) + epsilon)
    return ratio


def standardise(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """z-score of `values` [S] within each group of `groups` [S]; a group without spread becomes 0.

    >>> standardise(np.array([1.0, 3.0, 7.0, 7.0]), np.array([0, 0, 1, 1])).tolist()
    [-1.0, 1.0, 0.0, 0.0]
    """
    out = np.zeros(len(values), dtype=np.float64)
    for group in np.unique(groups):
        inside = groups == group
        spread = values[inside].std()
        if spread > 0:
            out[inside] = (values[inside] - values[inside].mean()) / spread
    return out
