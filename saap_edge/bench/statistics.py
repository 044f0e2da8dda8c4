"""Medians and ratios with confidence intervals (bootstrap, by scipy), scatter, and when figures have settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, median_abs_deviation

__all__ = ["CONFIDENCE", "has_settled", "paired_ratio", "scatter", "summary"]

CONFIDENCE = 0.95


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, its confidence interval (low, high), spread (interquartile range over median), and the samples."""
    values = np.asarray(samples, dtype=np.float64)
    median = float(np.median(values))
    low, high = _interval(values)
    quartiles = np.percentile(values, [25, 75])
    spread = float((quartiles[1] - quartiles[0]) / median) if median else 0.0
    return {"median": median, "low": low, "high": high, "spread": spread, "samples": values.tolist()}


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Median of the ratios of samples taken side by side, its confidence interval, and how many `rounds` it is from.

    Pairing removes what both members of a round suffer alike. Raises ValueError for unequal or empty samples.
    """
    logs = np.log(np.asarray(numerator, dtype=np.float64)) - np.log(np.asarray(denominator, dtype=np.float64))
    if not len(logs):
        raise ValueError("a ratio needs samples")
    low, high = _interval(logs)
    return {
        "ratio": float(np.exp(np.median(logs))),
        "low": float(np.exp(low)),
        "high": float(np.exp(high)),
        "confidence": CONFIDENCE,
        "rounds": len(logs),
    }


def scatter(samples: Sequence[float]) -> float:
    """How far one sample lies from the median, relative to it: the median absolute deviation, scaled to be the
    standard deviation where samples are normal. A few outliers do not move it; a sample alone has none (0)."""
    values = np.asarray(samples, dtype=np.float64)
    return float(median_abs_deviation(values, scale="normal") / np.median(values))


def has_settled(samples: Sequence[float], last: int, tolerance: float) -> bool:
    """The `last` samples agree: the largest is at most `tolerance` (relative) above the smallest."""
    recent = samples[-last:]
    return len(recent) == last and max(recent) <= (1 + tolerance) * min(recent)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap of the median; a fixed seed, so that the same samples give the same verdict."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values[0]), float(values[-1])
    result = bootstrap(
        (values,), np.median, confidence_level=CONFIDENCE, n_resamples=2000, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(result.low), float(result.high)
