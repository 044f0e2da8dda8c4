"""Medians and ratios with confidence intervals, scatter, when figures have settled, and how often one may look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binom, median_abs_deviation, t

__all__ = [
    "CONFIDENCE", "has_settled", "look_confidence", "order_rank", "paired_ratio", "planned_looks", "scatter", "summary",
]  # fmt: skip

CONFIDENCE = 0.95


def summary(samples: Sequence[float], confidence: float = CONFIDENCE) -> dict[str, Any]:
    """Median, its confidence interval (low, high), spread (interquartile range over median), and the samples."""
    values = np.asarray(samples, dtype=np.float64)
    median = float(np.median(values))
    low, high = _interval(values, confidence)
    quartiles = np.percentile(values, [25, 75])
    spread = float((quartiles[1] - quartiles[0]) / median) if median else 0.0
    return {"median": median, "low": low, "high": high, "spread": spread, "samples": values.tolist()}


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], confidence: float = CONFIDENCE
) -> dict[str, Any]:
    """Median of the ratios of samples taken side by side, its confidence interval, and how many `rounds` it is from.

    Pairing removes what both members of a round suffer alike. Raises ValueError for unequal or empty samples.
    """
    logs = np.log(np.asarray(numerator, dtype=np.float64)) - np.log(np.asarray(denominator, dtype=np.float64))
    if not len(logs):
        raise ValueError("a ratio needs samples")
    low, high = _interval(logs, confidence)
    return {
        "ratio": float(np.exp(np.median(logs))),
        "low": float(np.exp(low)),
        "high": float(np.exp(high)),
        "confidence": confidence,
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


def planned_looks(rounds: int, most: int) -> tuple[int, ...]:
    """After how many rounds the samples are looked at: `rounds`, and twice as many until `most`."""
    looks = [rounds]
    while looks[-1] < most:
        looks.append(min(2 * looks[-1], most))
    return tuple(looks)


def look_confidence(looks: int) -> float:
    """Confidence of each of `looks` intervals, so that all of them hold the truth with CONFIDENCE (Bonferroni).

    Whoever measures until a verdict is reached looks several times, and each look may err: at 95 % each, three looks
    would err in up to 14 % of cases.
    """
    return 1 - (1 - CONFIDENCE) / looks


def order_rank(count: int, confidence: float) -> int:
    """k, so that the k-th smallest and the k-th largest of `count` samples hold the median of what they are drawn from
    between them with at least `confidence`; 0 where there are too few samples for that.

    Exact for any distribution: how many samples lie below the median is binomial.
    """
    below = binom.cdf(np.arange(count + 1), count, 0.5)
    return int(np.searchsorted(below, (1 - confidence) / 2, side="right"))


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Of the median: between order statistics; where samples are too few for those, Student's, which supposes that
    they are normal.

    A bootstrap of the median would be narrower and wrong: of 7 samples its 95 % hold in 87 % of cases (docs/gate.md).
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values[0]), float(values[-1])
    rank = order_rank(len(values), confidence)
    if rank:
        ordered = np.sort(values)
        return float(ordered[rank - 1]), float(ordered[-rank])
    middle, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    reach = t.ppf((1 + confidence) / 2, len(values) - 1) * error
    return float(middle - reach), float(middle + reach)
