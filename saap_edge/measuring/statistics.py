"""Statistics of measurements: medians and ratios with intervals, scatter, settling, and looks at unfinished samples."""

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
    """Median of samples, its confidence interval (low, high), spread, and the samples.

    `spread` is the interquartile range over the median. The interval lies between order statistics (`order_rank`); of
    too few samples it is Student's.

    >>> {name: value for name, value in summary([1, 2, 3, 4, 5, 6, 7]).items() if name != "spread"}
    {'median': 4.0, 'low': 1.0, 'high': 7.0, 'samples': [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}
    """
    values = np.asarray(samples, dtype=np.float64)
    median = float(np.median(values))
    low, high = _interval(values, confidence)
    quartiles = np.percentile(values, [25, 75])
    spread = float((quartiles[1] - quartiles[0]) / median) if median else 0.0
    return {"median": median, "low": low, "high": high, "spread": spread, "samples": values.tolist()}


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], confidence: float = CONFIDENCE
) -> dict[str, Any]:
    """Median of the ratios of samples that were taken by turns, its confidence interval, and the number of rounds.

    Pairing removes disturbances that both members of a round share. Raises ValueError for unequal or empty samples.

    >>> found = paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])  # the machine slows down, the ratio stays
    >>> round(found["ratio"], 6), found["rounds"]
    (2.0, 3)
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
    """How far samples lie from their median, as a share of it, unmoved by a few outliers.

    It is the median absolute deviation times 1.48, which for normal samples is the standard deviation. A single sample
    has 0.

    >>> round(scatter([98, 99, 100, 101, 500]), 4)
    0.0148
    """
    values = np.asarray(samples, dtype=np.float64)
    return float(median_abs_deviation(values, scale="normal") / np.median(values))


def has_settled(samples: Sequence[float], last: int, tolerance: float) -> bool:
    """Whether the `last` samples agree: the largest is at most a share `tolerance` above the smallest.

    >>> has_settled([2.0, 1.3, 1.01, 1.0], last=2, tolerance=0.03), has_settled([1.0], last=2, tolerance=0.03)
    (True, False)
    """
    recent = samples[-last:]
    return len(recent) == last and max(recent) <= (1 + tolerance) * min(recent)


def planned_looks(rounds: int, most: int) -> tuple[int, ...]:
    """After how many rounds one looks at the samples: after `rounds`, then each time after twice as many, until `most`.

    >>> planned_looks(7, 64)
    (7, 14, 28, 56, 64)
    """
    looks = [rounds]
    while looks[-1] < most:
        looks.append(min(2 * looks[-1], most))
    return tuple(looks)


def look_confidence(looks: int) -> float:
    """Confidence that each of `looks` intervals needs for all of them to hold the truth with CONFIDENCE (Bonferroni).

    Who measures until a verdict is reached looks several times, and each look may err: three looks at 95 % each would
    err in up to 14 % of cases.

    >>> look_confidence(1), look_confidence(5)
    (0.95, 0.99)
    """
    return 1 - (1 - CONFIDENCE) / looks


def order_rank(count: int, confidence: float) -> int:
    """The k for which the true median lies between the k-th smallest and the k-th largest sample with `confidence`.

    It holds for samples of any distribution, because the number of samples below the true median is binomial. 0 where
    `count` samples are too few.

    >>> order_rank(5, 0.95), order_rank(7, 0.95), order_rank(28, 0.95)
    (0, 1, 9)
    """
    below = binom.cdf(np.arange(count + 1), count, 0.5)
    return int(np.searchsorted(below, (1 - confidence) / 2, side="right"))


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The median's confidence interval: between order statistics, or of too few samples Student's, which assumes
    that samples are normal.

    A bootstrap of the median would be too narrow: of 7 samples, its 95 % hold in 87 % of cases (docs/gate.md).
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
